"""`python -m bench.image_jobs`: many image jobs at once, with `kill -9` of the whole server while they are drawn. Prints how
long adding, listing and asking take, and fails if a job is lost or answered twice."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.processes import child_pids
from compiler import SourcePaths, load_catalogue, read_sources
from scratch_folder import ScratchFolder
from sketch import SketchProcess

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "tests/small_catalogue"
START_TIMEOUT_S = 120.0
CONNECTIONS = 8
CALLERS = 4
_HEADERS = {"Content-Type": "application/json", "Prefer": "respond-async"}


class Server:
    """Easel with two workers on one state directory; started again after each kill."""

    def __init__(self, state: Path, engine_url: str, port: int) -> None:
        self._state, self._engine_url, self._port = state, engine_url, port

    @contextmanager
    def running(self) -> Iterator[None]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
        settings = {
            "EASEL_PORT": str(self._port),
            "EASEL_STATE_DIR": str(self._state),
            "EASEL_ENGINE_URL": self._engine_url,
            "EASEL_CATALOGUE": str(CATALOGUE / "catalogue.yaml"),
            "EASEL_TEMPLATES": str(CATALOGUE / "templates_wf"),
            "EASEL_API_KEYS": ",".join(f"key-{number}" for number in range(CALLERS)),
        }
        command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
        log = (self._state / "log").open("ab")
        with (
            log,
            subprocess.Popen(
                command, cwd=ROOT, env={**own, **settings}, stdout=log, stderr=log
            ) as self._process,
        ):
            try:
                self._wait()
                yield
            finally:
                self._process.terminate()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if self.call("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the server did not start")

    def kill(self) -> None:
        """The master and the workers, at once."""
        for pid in (self._process.pid, *child_pids(self._process.pid)):
            os.kill(pid, signal.SIGKILL)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def call(self, method: str, path: str, key: int = 0) -> tuple[int, Any]:
        connection = self.connect()
        connection.request(method, path, headers={"Authorization": f"Bearer key-{key}"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content


def add_jobs(server: Server, count: int) -> tuple[list[str], list[float]]:
    """The ids of the jobs, and how long each answer took, in seconds."""
    ids: list[str] = []
    times: list[float] = []
    numbers = iter(range(count))
    lock = threading.Lock()

    def send() -> None:
        connection = server.connect()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            body = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5", "seed": number, "steps": 1}
            headers = {**_HEADERS, "Authorization": f"Bearer key-{number % CALLERS}"}
            began_at = time.perf_counter()
            connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            if answer.status != 202:
                raise RuntimeError(f"status {answer.status}: {content}")
            with lock:
                times.append(time.perf_counter() - began_at)
                ids.append(content["id"])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for sending in [pool.submit(send) for _ in range(CONNECTIONS)]:
            sending.result()
    return ids, times


def done(state: Path) -> dict[str, str]:
    """The results of the jobs that have ended, by id. Raises RuntimeError if one failed, or ended twice."""
    found: dict[str, str] = {}
    for name in os.listdir(state / "image-jobs/ended"):
        job_id = name.rpartition(".")[2]
        status = json.loads((state / "image-jobs/work" / job_id / "status.json").read_text())
        if status["state"] != "done" or job_id in found:
            raise RuntimeError(f"{job_id} is {status['state']}, or ended twice: {status['error']}")
        found[job_id] = json.dumps(status["result"])
    return found


def timed(call: Callable[[], object], repeats: int = 50) -> dict[str, float]:
    """Milliseconds."""
    times = []
    for _ in range(repeats):
        began_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_at)
    return summary(times)


def summary(times: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(times)
    return {
        "median_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000, 2),
    }


def measure(server: Server, state: Path, jobs: int, kills: int) -> dict[str, Any]:
    """Raises RuntimeError if a job is lost or answered twice."""
    results: dict[str, Any] = {"jobs": jobs, "kills": kills}
    with server.running():
        began_at = time.perf_counter()
        ids, times = add_jobs(server, jobs)
        results["add"] = {**summary(times), "seconds_for_all": round(time.perf_counter() - began_at, 1)}
        results["waiting_when_all_were_added"] = len(os.listdir(state / "image-jobs/queue"))
        results["list"] = timed(lambda: server.call("GET", "/v1/images/jobs?limit=100"))
        results["ask"] = timed(lambda: server.call("GET", f"/v1/images/jobs/{ids[-1]}", (jobs - 1) % CALLERS))
        before = _drawn_until_killed(server, state, jobs // (kills + 1), {})
    for number in range(2, kills + 1):
        with server.running():
            before = _drawn_until_killed(server, state, number * jobs // (kills + 1), before)
    with server.running():
        began_at, first = time.perf_counter(), len(before)
        while len(os.listdir(state / "image-jobs/queue")):
            time.sleep(0.5)
        seconds = time.perf_counter() - began_at
        results["drawn_per_second"] = round((jobs - first) / seconds, 1)
    after = done(state)
    _require(before.items() <= after.items(), "an answer changed")
    _require(sorted(after) == sorted(ids), "a job is lost")
    attempts = Counter(_status(state, job_id)["attempts"] for job_id in ids)
    results["jobs_by_attempts"] = dict(sorted(attempts.items()))
    results["lost"] = results["answered_twice"] = 0
    return results


def _drawn_until_killed(server: Server, state: Path, number: int, before: dict[str, str]) -> dict[str, str]:
    while len(os.listdir(state / "image-jobs/ended")) < number:
        time.sleep(0.05)
    server.kill()
    after = done(state)
    _require(before.items() <= after.items(), "an answer changed")
    return after


def _status(state: Path, job_id: str) -> Any:
    return json.loads((state / "image-jobs/work" / job_id / "status.json").read_text())


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.image_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3, help="how often everything is killed (at least once)")
    parser.add_argument("--port", type=int, default=8799)
    arguments = parser.parse_args()
    paths = SourcePaths(CATALOGUE / "catalogue.yaml", CATALOGUE / "templates_wf", ROOT / "schemas")
    with (
        ScratchFolder("easel-bench-") as folder,
        SketchProcess(
            nodes=ROOT / "schemas/nodes.json", files=load_catalogue(read_sources(paths)).files
        ) as sketch,
    ):
        server = Server(folder, sketch.url, arguments.port)
        print(json.dumps(measure(server, folder, arguments.jobs, arguments.kills), indent=1))


if __name__ == "__main__":
    main()
