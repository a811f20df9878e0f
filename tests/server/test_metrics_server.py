"""/metrics of a real server with two workers."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import Server, running, started, stopped
from tests.waiting import wait_until

Samples = dict[tuple[str, ...], float]


def scrape(server: Server) -> Samples:
    response = requests.get(f"{server.url}/metrics", timeout=60)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def pictures(server: Server) -> float:
    return sum(value for name, value in scrape(server).items() if name[0] == "easel_pictures_total")


def test_the_counts_of_a_killed_worker_stay_and_its_gauges_go(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server, ThreadPoolExecutor(6) as pool:
        wait_until(lambda: len(server.workers()) == 2 and server.sketch())
        workers, sketch = server.workers(), server.sketch()
        assert sketch is not None
        for worker in workers:
            with stopped(worker):
                assert server.draw().status_code == 200
        wait_until(lambda: pictures(server) == 2)
        with stopped(sketch):
            drawn = [pool.submit(server.draw) for _ in range(6)]
            wait_until(lambda: scrape(server)["easel_http_requests_in_progress",] >= 7)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            wait_until(lambda: len(set(server.workers()) - set(workers)) == 2)
            wait_until(lambda: scrape(server)["easel_http_requests_in_progress",] <= 2)
            assert pictures(server) == 2
        for task in drawn:
            assert isinstance(task.exception(), requests.ConnectionError)
        assert server.draw().status_code == 200
        wait_until(lambda: pictures(server) == 3)


def test_a_new_start_counts_from_zero(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        assert server.draw().status_code == 200
        wait_until(lambda: pictures(server) == 1)
    with running(tmp_path / "state") as server:
        assert pictures(server) == 0


def test_a_second_server_with_the_same_state_does_not_touch_the_counts(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server:
        assert server.draw().status_code == 200
        wait_until(lambda: pictures(server) == 1)
        with started(tmp_path / "state") as second:
            second.wait_for("Another Easel already uses")
        assert pictures(server) == 1


def test_without_a_writable_folder_no_request_fails_and_it_is_said_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "metrics").write_text("in the way")
    with running(state, EASEL_WORKERS="1") as server:
        for _ in range(3):
            assert server.draw().status_code == 200
        wait_until(lambda: pictures(server) == 3)
        assert scrape(server)["easel_metrics_writable",] == 0
        status = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
        assert status["metrics"]["problem"]
        assert server.log.count("metrics cannot be written") == 1
        (state / "metrics").unlink()
        wait_until(lambda: scrape(server)["easel_metrics_writable",] == 1)
        assert pictures(server) == 3
        assert (state / "metrics").is_dir()


def test_a_dead_engine_does_not_hold_up_a_scrape(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with running(tmp_path / "state", EASEL_ENGINE_URL=url) as server:
            began_at = time.monotonic()
            found = scrape(server)
            assert time.monotonic() - began_at < 10
            assert found["easel_engine_up",] == 0
            assert ("easel_engine_ram_free_bytes",) not in found


def test_a_hundred_scrapes_a_second_cost_few_probes(tmp_path: Path) -> None:
    with running(tmp_path / "state") as server, ThreadPoolExecutor(8) as pool:
        scrape(server)
        stop, errors = threading.Event(), []

        def hammer() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    response = session.get(f"{server.url}/metrics", timeout=60)
                    if response.status_code != 200:
                        errors.append(response.status_code)
                    stop.wait(0.08)

        tasks = [pool.submit(hammer) for _ in range(8)]
        for _ in range(5):
            assert server.draw().status_code == 200
        stop.set()
        for task in tasks:
            task.result()
        assert errors == []


def test_a_key_is_needed_as_for_the_status(tmp_path: Path) -> None:
    with running(tmp_path / "state", EASEL_API_KEYS="secret-key") as server:
        assert requests.get(f"{server.url}/metrics", timeout=60).status_code == 401
        headers = {"Authorization": "Bearer secret-key"}
        response = requests.get(f"{server.url}/metrics", headers=headers, timeout=60)
        assert response.status_code == 200
        assert "secret-key" not in response.text
