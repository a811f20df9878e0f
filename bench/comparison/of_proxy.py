"""What is measured of comfy-api-proxy. Its clients submit a graph, poll the job, and fetch the picture."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from bench.clients import Drawn, check_png, with_seed
from bench.comparison.cells import Cell, measured, not_aim
from bench.comparison.engine import Engine, NewerEngine
from bench.comparison.programs import Environment, Program, proxy
from bench.http import Http

POLL_S = 0.005
_MID_S = 1.0
_TIMEOUT_S = 120.0
_ENDED = ("succeeded", "failed", "canceled", "cancelled")
Graph = Mapping[str, Any]


def measure(env: Environment, folder: Path, fast: Engine, slow: Engine, graph: Graph) -> dict[str, Cell]:
    """`graph`: the one that Easel compiles for the same picture."""
    return {
        "start": measured(lambda: _start(env, folder, fast, graph)),
        "kill": measured(lambda: _kill(env, folder, slow, graph)),
        "term": measured(lambda: _term(env, folder, slow, graph)),
        "idempotency": measured(
            lambda: _idempotency(proxy(env, folder / "idempotency", slow.url), slow, graph)
        ),
        "cancel": measured(lambda: _cancel(env, folder, slow, graph)),
        "unknown": measured(lambda: _unknown(proxy(env, folder / "unknown", fast.url), graph)),
        "chat": not_aim("it knows no LLM servers"),
    }


class Client:
    """As `bench.clients.Client`: one client with a kept connection."""

    name = "comfy-api-proxy"

    def __init__(self, url: str, graph: Graph, size: int) -> None:
        self._http, self._graph, self._size = Http(url, _TIMEOUT_S), graph, size

    def draw(self, seed: int) -> Drawn:
        """Submit, poll as fast as it is of use, fetch."""
        started_at = time.perf_counter()
        graph = with_seed(self._graph, seed, uuid.uuid4().hex)
        job = json.loads(self._post("/api/v2/jobs", {"workflow": graph}))
        while job["status"] not in _ENDED:
            time.sleep(POLL_S)
            job = json.loads(self._http.call("GET", f"/api/v2/jobs/{job['id']}"))
        if job["status"] != "succeeded":
            raise RuntimeError(f"the job {job['status']}")
        parts = urlsplit(content_url(job))
        picture = self._http.call("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        check_png(picture, self._size)
        return Drawn(picture, time.perf_counter() - started_at)

    def _post(self, path: str, body: Any) -> bytes:
        return self._http.open("POST", path, json.dumps(body).encode(), expected=201).read()

    def close(self) -> None:
        self._http.close()


def content_url(job: Mapping[str, Any]) -> str:
    """Where the picture of a job is."""
    output = job["outputs"][0]
    return str(output.get("url") or output["urls"]["content"])


def submit(server: Program, graph: Graph, headers: Mapping[str, str] | None = None) -> requests.Response:
    new = with_seed(graph, uuid.uuid4().int % 2**31, uuid.uuid4().hex)
    return server.call("POST", "/api/v2/jobs", {"workflow": new}, headers=headers or {})


def end_of_job(server: Program, job: str) -> dict[str, Any]:
    """The job, or the error."""
    deadline = time.perf_counter() + _TIMEOUT_S
    while True:
        answer = server.call("GET", f"/api/v2/jobs/{job}")
        document: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            return {"status": f"{answer.status_code}", **document}
        if document["status"] in _ENDED or time.perf_counter() > deadline:
            return document
        time.sleep(0.02)


def _has_picture(server: Program, job: Mapping[str, Any]) -> bool:
    if job["status"] != "succeeded" or not job.get("outputs"):
        return False
    parts = urlsplit(content_url(job))
    return server.call("GET", f"{parts.path}?{parts.query}").content.startswith(b"\x89PNG")


def _start(env: Environment, folder: Path, engine: Engine, graph: Graph) -> dict[str, Any]:
    answers, pictures = [], []
    for number in range(3):
        server = proxy(env, folder / f"start-{number}", engine.url)
        started_at = time.perf_counter()
        with server:
            answers.append(time.perf_counter() - started_at)
            job = end_of_job(server, submit(server, graph).json()["id"])
            assert _has_picture(server, job), job
            pictures.append(time.perf_counter() - started_at)
    return {"answer_s": answers, "picture_s": pictures}


def _kill(env: Environment, folder: Path, engine: Engine, graph: Graph) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, options in (("", ()), ("state_dir_", ("--state-dir", str(folder / "kept")))):
        with proxy(env, folder / f"{name}kill", engine.url, *options) as server:
            job = submit(server, graph).json()["id"]
            engine.wait_until_busy()
            time.sleep(_MID_S)
            server.kill()
            killed_at = time.perf_counter()
            values[f"{name}start_s"] = server.start()
            document = end_of_job(server, job)
            values[f"{name}job_state"] = document["status"]
            values[f"{name}has_picture"] = _has_picture(server, document)
            values[f"{name}picture_s"] = time.perf_counter() - killed_at
            engine.wait_until_idle()
    return values


def _term(env: Environment, folder: Path, engine: Engine, graph: Graph) -> dict[str, Any]:
    with proxy(env, folder / "term", engine.url) as server:
        job = submit(server, graph).json()["id"]
        engine.wait_until_busy()
        time.sleep(_MID_S)
        exit_s = server.stop()
        server.start()
        document = end_of_job(server, job)
        return {
            "exit_s": exit_s,
            "job_state": document["status"],
            "has_picture": _has_picture(server, document),
        }


def _idempotency(server: Program, engine: Engine, graph: Graph) -> dict[str, Any]:
    with server:
        before, key = engine.drawn(), {"Idempotency-Key": uuid.uuid4().hex}
        new = {"workflow": with_seed(graph, uuid.uuid4().int % 2**31, uuid.uuid4().hex)}
        answers = [server.call("POST", "/api/v2/jobs", new, headers=key) for _ in range(2)]
        end_of_job(server, answers[0].json()["id"])
        engine.wait_until_idle()
        return {
            "statuses": [answer.status_code for answer in answers],
            "code": _code(answers[1]),
            "drawn": engine.drawn() - before,
        }


def _cancel(env: Environment, folder: Path, engine: Engine, graph: Graph) -> dict[str, Any]:
    with NewerEngine(engine.url) as newer, proxy(env, folder / "cancel", newer.url) as server:
        job = submit(server, graph).json()["id"]
        engine.wait_until_busy()
        time.sleep(_MID_S)
        answer = server.call("POST", f"/api/v2/jobs/{job}/cancel")
        stopped_s = engine.wait_until_idle()
        values = {
            "status": answer.status_code,
            "stopped_s": stopped_s,
            "state": end_of_job(server, job)["status"],
        }
    # An engine without the route: the answer says nothing of it.
    with proxy(env, folder / "cancel-older", engine.url) as server:
        job = submit(server, graph).json()["id"]
        engine.wait_until_busy()
        time.sleep(_MID_S)
        values["older_status"] = server.call("POST", f"/api/v2/jobs/{job}/cancel").status_code
        values["older_state"] = end_of_job(server, job)["status"]
    return values


def _unknown(server: Program, graph: Graph) -> dict[str, Any]:
    with server:
        new = with_seed(graph, 1, uuid.uuid4().hex)
        answer = server.call("POST", "/api/v2/jobs", {"workflow": new, "stepz": 4})
        node = next(iter(new))
        new[node]["inputs"]["stepz"] = 4
        inside = server.call("POST", "/api/v2/jobs", {"workflow": new})
        extra = server.call("POST", "/api/v2/jobs", {"workflow": new, "extra_data": {"stepz": 4}})
        return {
            "status": answer.status_code,
            "is_named": "stepz" in answer.text,
            "node_input_status": inside.status_code,
            "extra_data_status": extra.status_code,
        }


def _code(answer: requests.Response) -> str:
    document = answer.json()
    error = document.get("error", document)
    return str(error.get("code") if isinstance(error, dict) else error)
