"""Idempotency keys and image jobs on a real server with two workers: processes that are killed, clients that hang up."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import APITimeoutError, OpenAI

from engine import Engine
from sketch import SketchProcess
from tests.conftest import NODES
from tests.server.running import Server, running, stopped
from tests.waiting import wait_until

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5"}
LATER = {"Prefer": "respond-async"}
Sketch = Any


@pytest.fixture
def sketch(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """Takes 1.5 s for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1500) as process:
        yield process


@pytest.fixture
def fast(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """Takes 0.1 s for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=100) as process:
        yield process


def post(server: Server, headers: dict[str, str], **fields: Any) -> requests.Response:
    return requests.post(server.url + PATH, json={**SMALL, **fields}, headers=headers, timeout=60)


def kill_everything(server: Server) -> None:
    for pid in (server.process.pid, *server.workers()):
        os.kill(pid, signal.SIGKILL)
    server.process.wait(90)


def has_running_job(engine: Engine) -> bool:
    return bool(engine.queue().running)


def seed_of(state: Path) -> int:
    (path,) = (state / "idempotency").glob("*.json")
    return int(json.loads(path.read_text())["seed"])


# --- idempotency keys ------------------------------------------------------------------------------


def test_a_request_that_runs_in_another_worker_is_joined(tmp_path: Path, sketch: SketchProcess) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server, ThreadPoolExecutor(2) as pool:
        engine = Engine(sketch.url)
        first = pool.submit(post, server, {"Idempotency-Key": "k"})
        wait_until(lambda: has_running_job(engine))
        joining = [pool.submit(post, server, {"Idempotency-Key": "k"}) for _ in range(8)]
        answers = [first.result(), *(one.result() for one in joining)]
        engine.close()
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1


def test_a_request_whose_worker_was_killed_is_drawn_once_more_with_the_same_seed(
    tmp_path: Path, sketch: SketchProcess
) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server, ThreadPoolExecutor(1) as pool:
        engine = Engine(sketch.url)
        first = pool.submit(post, server, {"Idempotency-Key": "k"})
        wait_until(lambda: has_running_job(engine))
        seed = seed_of(tmp_path)
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        assert isinstance(first.exception(), requests.ConnectionError)
        wait_until(lambda: requests.get(f"{server.url}/health", timeout=60).status_code == 200)
        again = post(server, {"Idempotency-Key": "k"})
        replay = post(server, {"Idempotency-Key": "k"})
        engine.close()
    assert again.status_code == 200, again.text
    assert again.json()["_hal0"]["meta"]["seed"] == seed
    assert again.json()["_hal0"]["adjusted"][0]["field"] == "Idempotency-Key"
    assert replay.headers["idempotency-replayed"] == "true"
    assert replay.text == again.text


def test_a_drawing_with_a_key_goes_on_when_its_client_hangs_up(tmp_path: Path, sketch: SketchProcess) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server:
        with pytest.raises(requests.ReadTimeout):
            requests.post(server.url + PATH, json=SMALL, headers={"Idempotency-Key": "k"}, timeout=0.8)
        answer = post(server, {"Idempotency-Key": "k"})
    assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (200, "true")


def test_the_job_of_an_openai_client_that_hung_up_is_cancelled_before_its_retry_is_drawn(
    tmp_path: Path, catalogue_files: dict[str, list[str]]
) -> None:
    """The SDK sends no key. After its timeout it closes the connection and sends the request again."""
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as sketch,
        running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server,
    ):
        engine = Engine(sketch.url)
        seen: list[str] = []
        most = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.is_set():
                queue = engine.queue()
                jobs = [*queue.running, *queue.pending]
                most = max(most, len(jobs))
                seen.extend(job for job in queue.running if job not in seen)
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        client = OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=2.0, max_retries=1)
        with client, pytest.raises(APITimeoutError):
            client.images.generate(prompt="a cat", size="256x256", model="sd-1.5")
        wait_until(lambda: not has_running_job(engine))
        done.set()
        watcher.join()
        engine.close()
    assert (len(seen), most) == (2, 1)  # two were drawn, never at the same time


# --- jobs ------------------------------------------------------------------------------------------


def jobs_of(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        after = f"&after={found[-1]['id']}" if found else ""
        page = requests.get(f"{server.url}/v1/images/jobs?limit=100{after}", timeout=60).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def states(server: Server) -> Counter[str]:
    return Counter(one["state"] for one in jobs_of(server))


def test_kill_9_of_everything_loses_no_job_and_answers_none_twice(
    tmp_path: Path, fast: SketchProcess
) -> None:
    environment = {"EASEL_ENGINE_URL": fast.url}
    with running(tmp_path, **environment) as server:
        ids = [post(server, LATER, seed=number).json()["id"] for number in range(30)]
        wait_until(lambda: states(server)["done"] >= 5)
        kill_everything(server)
    before = _done(tmp_path)
    for _ in range(2):
        with running(tmp_path, **environment) as server:
            number = len(before)
            wait_until(lambda number=number: len(_done(tmp_path)) > number)  # type: ignore[misc]
            kill_everything(server)
        assert before.items() <= _done(tmp_path).items()
        before = _done(tmp_path)
    with running(tmp_path, **environment) as server:
        wait_until(lambda: states(server) == Counter(done=30), 120)
        for number, job_id in enumerate(ids):
            answer = requests.get(f"{server.url}/v1/images/jobs/{job_id}", timeout=60).json()
            assert answer["result"]["_hal0"]["meta"]["seed"] == number
            assert requests.get(answer["result"]["data"][0]["url"], timeout=60).status_code == 200
    after = _done(tmp_path)
    assert before.items() <= after.items()  # what was done is as it was
    assert sorted(after) == sorted(ids)
    assert list((tmp_path / "image-jobs/queue").iterdir()) == []


def _done(state: Path) -> dict[str, str]:
    """The results of the jobs that were done, by id."""
    found = {}
    for path in (state / "image-jobs/ended").glob("*"):
        job_id = path.name.rpartition(".")[2]
        status = json.loads((state / "image-jobs/work" / job_id / "status.json").read_text())
        assert status["state"] == "done"
        assert job_id not in found
        found[job_id] = json.dumps(status["result"])
    return found


def test_a_job_that_ran_when_the_server_was_killed_is_drawn_once_more(
    tmp_path: Path, sketch: SketchProcess
) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server:
        engine = Engine(sketch.url)
        job_id = post(server, LATER).json()["id"]
        wait_until(lambda: has_running_job(engine))
        kill_everything(server)
        engine.close()
    request = json.loads((tmp_path / "image-jobs/work" / job_id / "request.json").read_text())
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server:
        wait_until(lambda: states(server)["done"] == 1)
        answer = requests.get(f"{server.url}/v1/images/jobs/{job_id}", timeout=60).json()
    assert answer["attempts"] == 2
    assert answer["result"]["_hal0"]["meta"]["seed"] == request["seed"]


def test_a_stop_lets_the_job_end_that_is_drawn_and_puts_the_others_back(
    tmp_path: Path, sketch: SketchProcess
) -> None:
    environment = {"EASEL_ENGINE_URL": sketch.url, "EASEL_JOBS_THREADS": "1"}
    engine = Engine(sketch.url)
    with running(tmp_path, **environment) as server:
        ids = [post(server, LATER).json()["id"] for _ in range(4)]
        wait_until(lambda: has_running_job(engine))
    engine.close()
    assert _done(tmp_path)
    with running(tmp_path, **environment) as server:
        wait_until(lambda: states(server) == Counter(done=4))
        jobs = jobs_of(server)
    assert {one["id"] for one in jobs} == set(ids)
    assert {one["attempts"] for one in jobs} == {1}


def test_another_worker_draws_lists_and_cancels(tmp_path: Path, sketch: SketchProcess) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch.url, EASEL_JOBS_THREADS="1") as server:
        first, second = wait_until(lambda: len(server.workers()) == 2 and server.workers())
        with stopped(second):
            ids = [post(server, LATER).json()["id"] for _ in range(4)]
            wait_until(lambda: states(server)["running"])
        with stopped(first):
            assert {one["id"] for one in jobs_of(server)} == set(ids)
            answer = requests.delete(f"{server.url}/v1/images/jobs/{ids[3]}", timeout=60).json()
            assert answer["state"] == "cancelled"
        wait_until(lambda: states(server) == Counter(done=3, cancelled=1))


def test_ordinary_requests_keep_their_places_beside_a_full_queue(tmp_path: Path, fast: SketchProcess) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=fast.url) as server:
        for _ in range(40):
            post(server, LATER)
        started_at = time.monotonic()
        assert server.draw(model="sd-1.5").status_code == 200
        # At most the four that are drawn come before it: it does not wait for the queue.
        assert states(server)["queued"] > 0, time.monotonic() - started_at
        wait_until(lambda: states(server) == Counter(done=40), 120)


def test_a_client_that_polls_a_hundred_times_a_second_is_served(tmp_path: Path, fast: SketchProcess) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=fast.url) as server, requests.Session() as session:
        ids = [post(server, LATER).json()["id"] for _ in range(20)]
        polls = 0
        while (found := session.get(f"{server.url}/v1/images/jobs/{ids[-1]}", timeout=60).json())[
            "state"
        ] != "done":
            assert found["state"] in ("queued", "running")
            polls += 1
        assert polls > 20
        assert found["result"]


def test_an_openai_client_gets_a_job_and_its_result(tmp_path: Path, fast: SketchProcess) -> None:
    with (
        running(tmp_path, EASEL_ENGINE_URL=fast.url) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        raw = client.images.with_raw_response.generate(
            prompt="a cat", size="256x256", model="sd-1.5", extra_headers=LATER
        )
        assert raw.http_response.status_code == 202
        path = raw.headers["Location"].removeprefix(f"{server.url}/v1")

        def job() -> Any:
            return client.get(path, cast_to=object)

        wait_until(lambda: job()["state"] == "done")
        assert job()["result"]["data"][0]["url"].startswith(server.url)
        with requests.get(f"{server.url}/v1{path}/events", stream=True, timeout=60) as events:
            assert b"event: done" in events.content
