"""A real Prometheus scrapes a real server: every query of the dashboard finds data. Runs if EASEL_TEST_PROMETHEUS is the path
of Debian's `prometheus`, with `promtool` beside it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from metrics import FAMILIES
from sketch import SketchProcess
from tests.conftest import NODES, ROOT
from tests.llm.fake_servers import FakeLlamaServer
from tests.processes import free_port
from tests.server.running import Server, running
from tests.waiting import wait_until

DASHBOARD = json.loads((ROOT / "observability/dashboard.json").read_text())
ALERTS = ROOT / "observability/alerts.yaml"
PROGRAM = os.environ.get("EASEL_TEST_PROMETHEUS", "")
needs_prometheus = pytest.mark.skipif(
    not PROGRAM,
    reason="set EASEL_TEST_PROMETHEUS to the path of Debian's prometheus (make test-prometheus)",
)
_TIMEOUT_S = 120.0


def queries() -> dict[str, str]:
    """title of the panel -> query, with the dashboard's variables filled in"""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$instance", ".*")
        .replace("$__rate_interval", "20s")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def metrics_in(text: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\beasel_\w+", text)}


def test_dashboard_and_alerts_use_metrics_that_exist() -> None:
    names = {family.name for family in FAMILIES}
    assert metrics_in(" ".join(queries().values())) <= names
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    assert metrics_in(" ".join(rule["expr"] for rule in rules)) <= names
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_alerts() -> None:
    subprocess.run([promtool(), "check", "rules", str(ALERTS)], check=True)


@needs_prometheus
def test_every_query_of_the_dashboard_returns_data(
    tmp_path: Path, catalogue_files: dict[str, list[str]]
) -> None:
    with (
        FakeLlamaServer() as llama,
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=200) as sketch,
        running(tmp_path / "state", **variables(llama, sketch.url)) as server,
        prometheus(tmp_path, server.url) as ask,
        under_load(server),
    ):
        without_data = queries()

        def drop_answered() -> bool:
            for title, query in list(without_data.items()):
                if ask(query):
                    del without_data[title]
            time.sleep(0.5)  # Prometheus scrapes once a second
            return not without_data

        with contextlib.suppress(AssertionError):
            wait_until(drop_answered, _TIMEOUT_S)
        assert without_data == {}
        found = ask(r"sum by (key) (easel_pictures_total)")
        assert {entry["metric"].get("key") for entry in found} == {"api_keys:1"}
        text = requests.get(f"{server.url}/metrics", headers=AUTHORIZATION, timeout=60).text
        checked = subprocess.run(
            [promtool(), "check", "metrics"], input=text, text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


AUTHORIZATION = {"Authorization": "Bearer key-of-the-test"}


def promtool() -> str:
    return str(Path(PROGRAM).with_name("promtool"))


def variables(llama: FakeLlamaServer, engine_url: str) -> dict[str, str]:
    return {
        "EASEL_API_KEYS": "key-of-the-test",
        "EASEL_ENGINE_URL": engine_url,
        "EASEL_LLM_STACKS": json.dumps([{"name": "chat", "driver": "llama-server", "url": llama.url}]),
        "EASEL_GPU_MIN_STAY_S": "0",
        "EASEL_GPU_LINGER_S": "0.5",
    }


@contextlib.contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Pictures, one that is cancelled, and a mistake, with pauses in which the LLM server gets the GPU back."""
    stop = threading.Event()

    def post(path: str, **body: Any) -> None:
        with contextlib.suppress(requests.RequestException):
            requests.post(f"{server.url}{path}", json=body, headers=AUTHORIZATION, timeout=60)

    def draw() -> None:
        post("/v1/images/generations", prompt="a cat", size="256x256")

    def work() -> None:
        while not stop.is_set():
            draw()
            cancelled = threading.Thread(target=draw)
            cancelled.start()
            while cancelled.is_alive():
                post("/api/comfyui/render/cancel", all=True)
                stop.wait(0.05)
            post("/v1/images/generations", prompt="a cat", model="no such model")
            stop.wait(2.5)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


@contextlib.contextmanager
def prometheus(folder: Path, url: str) -> Iterator[Any]:
    """Scrapes the server once a second. Yields a function that asks a query and returns the series with a finite value."""
    port = free_port()
    target = url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {
                "job_name": "easel",
                "authorization": {"credentials": "key-of-the-test"},
                "static_configs": [{"targets": [target]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [
            PROGRAM,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_ready() -> bool:
        assert process.poll() is None
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=60).status_code == 200
        return False

    def ask(query: str) -> list[dict[str, Any]]:
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", {"query": query}, timeout=60)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        result = answer.json()["data"]["result"]
        return [series for series in result if math.isfinite(float(series["value"][1]))]

    try:
        wait_until(is_ready)
        yield ask
    finally:
        process.terminate()
        process.wait()
