"""What is measured of gpu-broker's demo, which simulates GPU, LLMs and pictures, with durations of its own."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from bench.clients import session
from bench.comparison.cells import Cell, measured, not_measured
from bench.comparison.programs import Environment, Program, broker

_MODEL, _LLM = "sdxl", "qwen3-8b"
_MID_S = 2.0
_TIMEOUT_S = 110.0
_ENDED = ("done", "failed")


def measure(env: Environment, folder: Path) -> dict[str, Cell]:
    return {
        "start": measured(lambda: _start(env, folder)),
        "overhead": not_measured(
            "the demo draws placeholders in its own process, for simulated seconds, so there is no engine behind both"
        ),
        "kill": measured(lambda: _kill(env, folder / "kill")),
        "term": measured(lambda: _term(env, folder)),
        "idempotency": measured(lambda: _idempotency(broker(env, folder / "idempotency"))),
        "cancel": measured(lambda: _cancel(broker(env, folder / "cancel"))),
        "unknown": measured(lambda: _unknown(broker(env, folder / "unknown"))),
        "chat": measured(lambda: _chat(broker(env, folder / "chat"))),
    }


def _submit(server: Program, headers: dict[str, str] | None = None, **more: Any) -> requests.Response:
    body = {"model": _MODEL, "prompt": "a lighthouse", **more}
    return server.call("POST", "/v1/jobs", body, headers=headers or {})


def _end_of_job(server: Program, job: str) -> str:
    """Its state, or the status of the error."""
    deadline = time.perf_counter() + _TIMEOUT_S
    while True:
        answer = server.call("GET", f"/v1/jobs/{job}")
        if answer.status_code != 200:
            return str(answer.status_code)
        state = str(answer.json()["state"])
        if state in _ENDED or time.perf_counter() > deadline:
            return state
        time.sleep(0.1)


def _wait_until_runs(server: Program, job: str) -> None:
    deadline = time.perf_counter() + _TIMEOUT_S
    while server.call("GET", f"/v1/jobs/{job}").json()["state"] != "running":
        if time.perf_counter() > deadline:
            raise RuntimeError("the job does not run")
        time.sleep(0.1)


def _start(env: Environment, folder: Path) -> dict[str, Any]:
    answers = []
    for number in range(3):
        server = broker(env, folder / f"start-{number}")
        started_at = time.perf_counter()
        with server:
            answers.append(time.perf_counter() - started_at)
    return {"answer_s": answers}


def _kill(env: Environment, folder: Path) -> dict[str, Any]:
    with broker(env, folder) as server:
        job = _submit(server).json()["id"]
        time.sleep(_MID_S)
        server.kill()
    # On another port: it refuses the one that was just in use.
    started_at = time.perf_counter()
    with broker(env, folder) as server:
        start_s = time.perf_counter() - started_at
        return {"job_state": _end_of_job(server, job), "start_s": start_s}


def _term(env: Environment, folder: Path) -> dict[str, Any]:
    with ThreadPoolExecutor(1) as pool:
        with broker(env, folder / "term") as server:
            waiting = pool.submit(_submit, server, wait=True)
            time.sleep(_MID_S)
            waited_exit_s = server.stop()
            is_answered = waiting.done() and waiting.exception() is None
        with contextlib.suppress(requests.RequestException):
            waiting.result(_TIMEOUT_S)
    with broker(env, folder / "term-alone") as server:
        _submit(server)
        time.sleep(_MID_S)
        return {"is_answered": is_answered, "waited_exit_s": waited_exit_s, "exit_s": server.stop()}


def _idempotency(server: Program) -> dict[str, Any]:
    with server:
        key = {"Idempotency-Key": "one"}
        answers = [_submit(server, key) for _ in range(2)]
        jobs = {answer.json()["id"] for answer in answers}
        return {"statuses": [answer.status_code for answer in answers], "jobs": len(jobs)}


def _cancel(server: Program) -> dict[str, Any]:
    with server:
        job = _submit(server).json()["id"]
        _wait_until_runs(server, job)
        statuses = [
            server.call(method, path).status_code
            for method, path in (("DELETE", f"/v1/jobs/{job}"), ("POST", f"/v1/jobs/{job}/cancel"))
        ]
        # A client that gives up its connection.
        with session() as http:
            http.headers["Authorization"] = f"Bearer {server.token}"
            body = {"model": _MODEL, "prompt": "another", "wait": True}
            with contextlib.suppress(requests.RequestException):
                http.post(f"{server.url}/v1/jobs", json=body, timeout=_MID_S)
            recent = server.call("GET", "/v1/status").json()["recent"]
            left = next(each["id"] for each in recent if each["id"] != job)
            return {
                "statuses": statuses,
                "job_state": _end_of_job(server, job),
                "left_state": _end_of_job(server, left),
            }


def _unknown(server: Program) -> dict[str, Any]:
    with server:
        answer = _submit(server, stepz=4)
        size = _submit(server, size="banana")
        return {
            "status": answer.status_code,
            "is_named": "stepz" in answer.text,
            "size_status": size.status_code,
            "size_is_named": "banana" in size.text or "size" in size.json().get("notes", []),
        }


def _chat(server: Program) -> dict[str, Any]:
    with server:
        alone_s = _chat_s(server)
        job = _submit(server).json()["id"]
        _wait_until_runs(server, job)
        time.sleep(_MID_S)
        chat_s = _chat_s(server)
        return {"alone_s": alone_s, "chat_s": chat_s, "job_state": _end_of_job(server, job)}


def _chat_s(server: Program) -> float:
    started_at = time.perf_counter()
    body = {"model": _LLM, "messages": [{"role": "user", "content": "hi"}]}
    answer = server.call("POST", "/v1/chat/completions", body)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
    return time.perf_counter() - started_at
