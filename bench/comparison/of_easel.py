"""What is measured of Easel."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from bench.clients import session
from bench.comparison.cells import Cell, measured
from bench.comparison.engine import Engine
from bench.comparison.programs import Environment, Program, easel
from demo.llm_server import MODEL
from demo.script import PEOPLE
from demo.stage import Stage, open_stage

PROMPT = "a lighthouse above a calm sea"
DEMO_SECONDS = 600.0
"""The hour of the simulated GPU: a picture takes 2 s, loading the LLM 3 s"""
_MID_S = 1.0
"""So long after its beginning a job is disturbed"""


def body(size: int = 64, **more: Any) -> dict[str, Any]:
    """A request that nobody has sent before."""
    seed = uuid.uuid4().int % 2**31
    return {"prompt": PROMPT, "size": f"{size}x{size}", "response_format": "b64_json", "seed": seed, **more}


def picture_of(answer: requests.Response) -> bytes:
    """Raises RuntimeError with what came instead."""
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def draw(server: Program, headers: dict[str, str] | None = None, **more: Any) -> requests.Response:
    return server.call("POST", "/v1/images/generations", body(**more), headers=headers or {})


def measure(
    env: Environment, folder: Path, settings: dict[str, str], slow_settings: dict[str, str], slow: Engine
) -> dict[str, Cell]:
    """`settings`: with a fast engine; `slow_settings`: with `slow`, whose pictures take seconds."""

    def server(name: str) -> Program:
        return easel(env, folder / name, slow_settings)

    return {
        "start": measured(lambda: _start(env, folder, settings)),
        "kill": measured(lambda: _kill(server("kill"), slow)),
        "term": measured(lambda: _term(server("term"))),
        "idempotency": measured(lambda: _idempotency(server("idempotency"), slow)),
        "cancel": measured(lambda: _cancel(server("cancel"), slow)),
        "unknown": measured(lambda: _unknown(easel(env, folder / "unknown", settings))),
        "chat": measured(_chat),
    }


def _start(env: Environment, folder: Path, settings: dict[str, str]) -> dict[str, Any]:
    answers, pictures = [], []
    for number in range(3):
        server = easel(env, folder / f"start-{number}", settings)
        started_at = time.perf_counter()
        with server:
            answers.append(time.perf_counter() - started_at)
            picture_of(draw(server))
            pictures.append(time.perf_counter() - started_at)
    return {"answer_s": answers, "picture_s": pictures}


def _job(server: Program) -> str:
    answer = draw(server, {"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _end_of_job(server: Program, job: str) -> dict[str, Any]:
    while True:
        document: dict[str, Any] = server.call("GET", f"/v1/images/jobs/{job}").json()
        if document["state"] in ("done", "failed", "cancelled"):
            return document
        time.sleep(0.02)


def _kill(server: Program, engine: Engine) -> dict[str, Any]:
    with server, ThreadPoolExecutor(1) as pool:
        job = _job(server)
        engine.wait_until_busy()
        time.sleep(_MID_S)
        server.kill()
        killed_at = time.perf_counter()
        start_s = server.start()
        document = _end_of_job(server, job)
        picture_s = time.perf_counter() - killed_at
        engine.wait_until_idle()
        # An ordinary request whose connection breaks is sent again with its key.
        key, request = {"Idempotency-Key": uuid.uuid4().hex}, body()
        first = pool.submit(server.call, "POST", "/v1/images/generations", request, headers=key)
        engine.wait_until_busy()
        time.sleep(_MID_S)
        server.kill()
        broke = isinstance(first.exception(60), requests.RequestException)
        server.start()
        again = server.call("POST", "/v1/images/generations", request, headers=key)
        return {
            "job_state": document["state"],
            "has_picture": bool(document["result"]["data"]),
            "attempts": document["attempts"],
            "start_s": start_s,
            "picture_s": picture_s,
            "connection_broke": broke,
            "retry_status": again.status_code,
        }


def _term(server: Program) -> dict[str, Any]:
    with server, ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw, server)
        time.sleep(_MID_S)
        job = _job(server)
        exit_s = server.stop()
        try:
            status: int | str = drawing.result(60).status_code
        except requests.RequestException as error:
            status = type(error).__name__
        server.start()
        return {"request_status": status, "exit_s": exit_s, "job_state": _end_of_job(server, job)["state"]}


def _idempotency(server: Program, engine: Engine) -> dict[str, Any]:
    with server, ThreadPoolExecutor(2) as pool:
        before, request, key = engine.drawn(), body(), {"Idempotency-Key": uuid.uuid4().hex}
        send = ("POST", "/v1/images/generations", request)
        both = [pool.submit(server.call, *send, headers=key) for _ in range(2)]
        answers = [each.result(120) for each in both] + [server.call(*send, headers=key)]
        pictures = {picture_of(answer) for answer in answers}
        other = draw(server, key)
        return {
            "statuses": [answer.status_code for answer in answers],
            "pictures": len(pictures),
            "drawn": engine.drawn() - before,
            "other_body": other.status_code,
            "other_body_code": other.json()["error"]["code"],
        }


def _cancel(server: Program, engine: Engine) -> dict[str, Any]:
    with server:
        job = _job(server)
        engine.wait_until_busy()
        time.sleep(_MID_S)
        status = server.call("POST", f"/v1/images/jobs/{job}/cancel").status_code
        stopped_s = engine.wait_until_idle()
        state = _end_of_job(server, job)["state"]
        # A client that gives up its connection.
        gone = threading.Thread(target=_give_up, args=(server,))
        gone.start()
        engine.wait_until_busy()
        gone.join()
        return {
            "status": status,
            "state": state,
            "stopped_s": stopped_s,
            "hang_up_stopped_s": engine.wait_until_idle(),
        }


def _give_up(server: Program) -> None:
    with session() as http:
        try:
            http.post(f"{server.url}/v1/images/generations", json=body(), timeout=_MID_S)
        except requests.RequestException:
            return
    raise RuntimeError("the picture came too early")


def _unknown(server: Program) -> dict[str, Any]:
    with server:
        answer = draw(server, stepz=4)
        size = server.call("POST", "/v1/images/generations", {**body(), "size": "banana"})
        ignored = answer.json().get("_hal0", {}).get("ignored", [])
        return {
            "status": answer.status_code,
            "is_named": "stepz" in str(ignored),
            "size_status": size.status_code,
            "size_code": size.json()["error"]["code"],
        }


def _chat() -> dict[str, Any]:
    with open_stage(DEMO_SECONDS) as stage, ThreadPoolExecutor(1) as pool:
        alone_s = _chat_s(stage)
        before = time.perf_counter()
        drawing = pool.submit(_picture_on, stage)
        engine = Engine(stage.engine_url)
        engine.wait_until_busy()
        time.sleep(_MID_S)
        asked_at = time.perf_counter()
        _chat_s(stage)
        chat_s = time.perf_counter() - asked_at
        return {
            "alone_s": alone_s,
            "chat_s": chat_s,
            "picture_status": drawing.result(120),
            "total_s": time.perf_counter() - before,
            "out_of_memory": stage.llm.failed_loads,
        }


def _chat_s(stage: Stage) -> float:
    message = {"role": "user", "content": "hi"}
    started_at = time.perf_counter()
    with session() as http:
        answer = http.post(
            f"{stage.url}/v1/chat/completions",
            json={"model": MODEL, "max_tokens": 90, "messages": [message]},
            headers={"Authorization": f"Bearer {stage.keys[PEOPLE[0]]}"},
            timeout=120,
        )
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
    return time.perf_counter() - started_at


def _picture_on(stage: Stage) -> int:
    with session() as http:
        return http.post(
            f"{stage.url}/v1/images/generations",
            json={"prompt": PROMPT, "size": "256x256"},
            headers={"Authorization": f"Bearer {stage.keys[PEOPLE[1]]}"},
            timeout=120,
        ).status_code
