"""Named keys in a real server with two workers: one allowance for both, changes without a restart, keys that end while
they draw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from access import AuditLog, Gate
from sketch import SketchProcess
from tests.conftest import NODES, ROOT
from tests.conversation.upstream import Exchange, upstream
from tests.server.running import Server, running, started, stopped
from tests.waiting import wait_until

FAST_S = 2.0
"""How soon the requests of a revoked key end"""


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def draw(server: Server, key: str, **fields: Any) -> requests.Response:
    """On a connection of its own, so that either worker may answer. Only a stream must be closed."""
    body = {"prompt": "a cat", "size": "256x256", "response_format": "b64_json", **fields}
    url, is_stream = f"{server.url}/v1/images/generations", "stream" in fields
    return requests.post(url, json=body, headers=headers(key), timeout=60, stream=is_stream)


def add(state: Path, name: str, scopes: str = "draw,view", **limits: Any) -> str:
    return Gate(state).add_key(name, scopes.split(","), limits)[1]


@pytest.fixture
def slow_engine(catalogue_files: dict[str, list[str]]) -> Iterator[str]:
    """An engine that takes 20 s for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as sketch:
        yield sketch.url


def test_both_workers_share_one_allowance_and_a_restart_gives_no_new_one(
    tmp_path: Path, sketch_url: str
) -> None:
    state = tmp_path / "state"
    key = add(state, "phone", requests_per_day=30, pictures_per_day=12)
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: draw(server, key).status_code, range(40)))
        assert sorted(set(statuses)) == [200, 429]
        assert statuses.count(200) == 12
        usage = requests.get(f"{server.url}/api/keys/me", headers=headers(key), timeout=60).json()["usage"]
        assert {window["name"]: window["used"] for window in usage["windows"]} == {
            "requests_per_day": 30,
            "pictures_per_day": 12,
        }
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _status(lambda: draw(server, key)) == 429)
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:
        assert draw(server, key).status_code == 429


def _status(call: Any) -> int:
    try:
        return int(call().status_code)
    except requests.ConnectionError:
        return 0


def test_concurrent_requests_are_counted_over_both_workers(tmp_path: Path, slow_engine: str) -> None:
    state = tmp_path / "state"
    key, other = add(state, "phone", concurrent=2), add(state, "other", concurrent=1)
    with running(state, EASEL_ENGINE_URL=slow_engine) as server:
        wait_until(lambda: len(server.workers()) == 2)
        first, second = server.workers()
        held = []
        for worker in (first, second):
            with stopped(worker):
                stream = draw(server, key, stream=True)
                assert stream.status_code == 200
                held.append(stream)
        for worker in (first, second):
            with stopped(worker):
                refused = draw(server, key)
                assert refused.status_code == 429
                assert refused.json()["error"]["details"]["name"] == "concurrent"
        with draw(server, other, stream=True) as stream:
            assert stream.status_code == 200
        os.kill(second, signal.SIGKILL)  # its requests end with it
        wait_until(lambda: second not in server.workers() and len(server.workers()) == 2)
        stream = wait_until(lambda: _accepted(server, key))
        held[0].close()
        held[1].close()
        stream.close()


def _accepted(server: Server, key: str) -> requests.Response | None:
    try:
        response = draw(server, key, stream=True)
    except requests.ConnectionError:
        return None
    if response.status_code == 200:
        return response
    response.close()
    return None


def test_the_requests_of_a_key_that_is_revoked_end_and_those_of_others_go_on(
    tmp_path: Path, slow_engine: str
) -> None:
    state = tmp_path / "state"
    key, other = add(state, "phone"), add(state, "other")
    ended: dict[str, float] = {}

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        while not exchange.stopped.wait(0.1):
            exchange.chunk(b'data: {"choices": []}\n\n')

    with (
        upstream(answer) as llm,
        running(
            state,
            EASEL_ENGINE_URL=slow_engine,
            EASEL_LLM_UPSTREAMS=json.dumps([{"name": "chat", "url": llm.url}]),
        ) as server,
    ):

        def run(name: str, call: Any) -> Any:
            response = call()
            content = response.content
            ended[name] = time.monotonic()
            return response, content

        def chat() -> requests.Response:
            body = {"model": "tiny", "messages": [], "stream": True}
            url = f"{server.url}/v1/chat/completions"
            return requests.post(url, json=body, headers=headers(key), timeout=60, stream=True)

        with ThreadPoolExecutor(8) as pool:
            going_on = draw(server, other, stream=True)
            calls = {
                "drawing": lambda: draw(server, key),
                "waiting": lambda: draw(server, key, n=2),
                "stream": lambda: draw(server, key, stream=True),
                "chat": chat,
            }
            running_now = {name: pool.submit(run, name, call) for name, call in calls.items()}
            wait_until(lambda: len(_jobs(server, other)) == 4)
            wait_until(lambda: llm.posts)
            began = time.monotonic()
            Gate(state).revoke_key("phone")
            results = {name: future.result(30) for name, future in running_now.items()}
            assert max(ended.values()) - began < FAST_S
            for name in ("drawing", "waiting"):
                response, _ = results[name]
                assert (response.status_code, response.json()["error"]["code"]) == (401, "auth.key_ended")
            for name in ("stream", "chat"):
                assert b"auth.key_ended" in results[name][1]
            wait_until(lambda: len(_jobs(server, other)) == 1)
            going_on.close()
        assert draw(server, key).status_code == 401
        assert key not in server.log


def _jobs(server: Server, key: str) -> list[Any]:
    report = requests.get(f"{server.url}/api/comfyui/status", headers=headers(key), timeout=60).json()
    return [*report["jobs"], *report["tickets"]]


def flask(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", *arguments],
        cwd=ROOT,
        env={**environment, "EASEL_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_commands_add_and_revoke_keys_of_a_running_server_and_operate_it(
    tmp_path: Path, sketch_url: str
) -> None:
    state = tmp_path / "state"
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:
        assert draw(server, "none").status_code == 200
        added = flask(
            state,
            "keys",
            "add",
            "phone",
            "--pictures-per-day",
            "3",
            "--max-size",
            "512x512",
            "--expires",
            "2d",
        )
        assert added.returncode == 0, added.stderr
        key = added.stdout.strip()
        assert draw(server, "none").status_code == 401  # both workers know it at once
        assert draw(server, "none").status_code == 401
        assert draw(server, key).status_code == 200

        again = flask(state, "keys", "add", "phone")
        assert (again.returncode, "revoke" in again.stderr) == (2, True)
        for wrong in (["--max-size", "big"], ["--expires", "soon"], ["--scopes", "all"], ["--models", ","]):
            refused = flask(state, "keys", "add", "tablet", *wrong)
            assert refused.returncode == 2
            assert "must be" in refused.stderr or "one or more of" in refused.stderr

        (report,) = json.loads(flask(state, "keys", "list", "--json").stdout)
        assert (report["name"], report["limits"]) == ("phone", {"pictures_per_day": 3, "max_size": "512x512"})
        assert report["usage"]["today"]["pictures"] == 1
        listed = flask(state, "keys", "list")
        assert "pictures per day 3" in listed.stdout
        assert key not in listed.stdout

        # The command has no key of its own in the environment.
        assert flask(state, "gpu", "status").returncode == 0
        cancelled = flask(state, "gpu", "cancel", "--all")
        assert cancelled.returncode == 0, cancelled.stderr

        assert flask(state, "keys", "revoke", "phone").returncode == 0
        assert draw(server, key).status_code == 401
        assert flask(state, "keys", "revoke", "nobody").returncode == 2
        entries = [
            (entry.who, entry.action, entry.result) for entry in AuditLog(state / "audit.jsonl").entries()
        ]
        assert ("command", "keys.add", "done") in entries
        assert ("command", "render.cancel", "done") in entries
        assert ("command", "keys.revoke", "auth.key_not_found") in entries
        printed = flask(state, "audit", "--json", "--last", "2")
        assert [json.loads(line)["result"] for line in printed.stdout.splitlines()] == [
            "done",
            "auth.key_not_found",
        ]
        assert key not in (state / "audit.jsonl").read_text() + server.log + flask(state, "audit").stdout


def test_a_named_key_is_enough_for_a_public_address(tmp_path: Path, sketch_url: str) -> None:
    state = tmp_path / "state"
    with started(state, EASEL_HOST="0.0.0.0", EASEL_ENGINE_URL=sketch_url) as server:
        assert server.process.wait(60) != 0
        assert "easel keys add" in server.log
    key = add(state, "phone")
    with running(state, EASEL_HOST="0.0.0.0", EASEL_ENGINE_URL=sketch_url) as server:
        port = server.url.rpartition(":")[2]
        server.url = f"http://127.0.0.1:{port}"
        assert draw(server, key).status_code == 200
        assert draw(server, "x").status_code == 401
        for file in state.glob("keys*.json"):
            file.unlink()
        assert draw(server, "").status_code == 401


def test_a_server_that_starts_with_a_damaged_key_file_accepts_no_named_key_until_it_is_corrected(
    tmp_path: Path, sketch_url: str
) -> None:
    state = tmp_path / "state"
    key = add(state, "phone")
    good = (state / "keys.json").read_text()
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:
        assert draw(server, key).status_code == 200
        (state / "keys.json").write_text(good[:-30])
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        # New workers have the keys that the server had.
        wait_until(lambda: len(server.workers()) == 2 and not set(server.workers()) & set(before))
        wait_until(lambda: _status(lambda: draw(server, key)) == 200)
        server.wait_for("auth.keys_unreadable: keys.json cannot be used")
    with running(state, EASEL_ENGINE_URL=sketch_url, EASEL_API_KEYS="owner") as server:
        refused = draw(server, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "auth.keys_unreadable")
        assert draw(server, "").status_code == 401
        assert draw(server, "owner").status_code == 200
        assert "keys.json" in requests.get(f"{server.url}/ready", timeout=60).json()["keys"]["error"]
        (state / "keys.json").write_text(good)
        assert draw(server, key).status_code == 200


def test_the_openai_library_raises_its_errors_for_limits_and_rights(tmp_path: Path, sketch_url: str) -> None:
    state = tmp_path / "state"
    limited, viewer = add(state, "phone", pictures_per_day=1, models=["sd15"]), add(state, "viewer", "view")
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(api_key=key, base_url=f"{server.url}/v1")

        def generate(key: str, model: str = "sd15") -> Any:
            with client(key) as library:
                return library.images.generate(model=model, prompt="a cat", size="256x256")  # type: ignore[arg-type]

        assert generate(limited).data
        began = time.monotonic()
        with pytest.raises(openai.RateLimitError) as rate:
            generate(limited)
        assert time.monotonic() - began < 5  # it does not retry what takes a day
        assert rate.value.code == "auth.limit_reached"
        assert rate.value.response.headers["x-ratelimit-remaining-images"] == "0"
        for key, model in ((viewer, "sd15"), (limited, "sdxl")):
            with pytest.raises(openai.PermissionDeniedError):
                generate(key, model)
        with pytest.raises(openai.AuthenticationError):
            generate("easel_wrong")
        with client(viewer) as library:
            assert [model.id for model in library.models.list()]


def test_the_key_file_may_be_edited_while_many_requests_come(tmp_path: Path, sketch_url: str) -> None:
    state = tmp_path / "state"
    key = add(state, "phone")
    statuses: list[int] = []
    with running(state, EASEL_ENGINE_URL=sketch_url) as server:
        stop = threading.Event()

        def ask() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    response = session.get(f"{server.url}/v1/models", headers=headers(key), timeout=60)
                    statuses.append(response.status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(30):
            new = add(state, f"key-{number}")
            answer = requests.get(f"{server.url}/v1/models", headers=headers(new), timeout=60)
            assert answer.status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
