"""Two hosts and a front end, as real processes joined by a real Redis: what is asked of one is drawn by the others."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from compiler import Catalogue
from sketch import SketchProcess
from tests.cluster.running_hosts import HostProcess, RedisServer, environment, host, variables_of
from tests.conftest import ROOT
from tests.server.running import Server, running
from tests.waiting import wait_until

RENDER_MS = 3000
"""Long enough to be seen in the status, also on a slow machine"""


@dataclass
class Joined:
    redis: RedisServer
    front: Server
    hosts: dict[str, HostProcess]
    engines: dict[str, SketchProcess]
    folder: Path
    stack: contextlib.ExitStack

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{self.front.url}/api/comfyui/status", timeout=60).json()
        return found

    def entries(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.status()["engines"]}

    def start_host(self, name: str) -> None:
        process = host(name, self.folder / name, self.redis.url, EASEL_ENGINE_URL=self.engines[name].url)
        self.hosts[name] = self.stack.enter_context(process)

    def is_ready(self, name: str) -> bool:
        entry = self.entries().get(name)
        return bool(entry and entry["reachable"] and not entry["problem"])

    def has_begun(self) -> bool:
        """Whether a host has said that its engine draws a job that it has now. What was said of earlier jobs is kept for
        two minutes."""
        with contextlib.closing(self.redis.client()) as client:
            jobs = client.hkeys("easel:assigned")
            events = [client.get(f"easel:last:{job.decode()}") for job in jobs]
        return any(isinstance(event, bytes) and b'"kind":"begun"' in event for event in events)

    def is_drawing(self, name: str) -> bool:
        """Whether its engine runs a job."""
        queue = requests.get(f"{self.engines[name].url}/queue", timeout=60).json()
        return bool(queue["queue_running"])

    def drawing_host(self) -> str:
        """The one that has a job now."""
        return wait_until(
            lambda: next((name for name, each in self.entries().items() if each["queue"]["running"]), "")
        )


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory, shipped_catalogue: Catalogue) -> Iterator[Joined]:
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "redis").mkdir()
    with contextlib.ExitStack() as stack:
        server = RedisServer(folder / "redis")
        stack.callback(server.kill)
        engines = {
            name: stack.enter_context(
                SketchProcess(
                    nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=RENDER_MS
                )
            )
            for name in ("one", "two")
        }
        front = stack.enter_context(running(folder / "front", **variables_of(server.url)))
        found = Joined(server, front, {}, engines, folder, stack)
        for name in engines:
            found.start_host(name)
        wait_until(lambda: found.is_ready("one") and found.is_ready("two"))
        yield found


def digest(response: requests.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [hashlib.sha256(pixels_of(entry["b64_json"])).hexdigest() for entry in response.json()["data"]]


def pixels_of(text: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB").tobytes()


def drawn_by(response: requests.Response) -> list[str]:
    return [image["engine"] for image in response.json()["_hal0"]["images"]]


@contextlib.contextmanager
def in_background(front: Server, **fields: Any) -> Iterator[list[requests.Response]]:
    """The response is in the list at the end of the block."""
    found: list[requests.Response] = []
    thread = threading.Thread(target=lambda: found.append(front.draw(timeout=120, **fields)))
    thread.start()
    try:
        yield found
    finally:
        thread.join()


def test_pictures_of_one_request_are_drawn_by_both_hosts_and_keep_their_order(joined: Joined) -> None:
    fields = {"prompt": "a cat", "model": "flux-schnell", "response_format": "b64_json"}
    alone = [digest(joined.front.draw(n=1, seed=seed, **fields))[0] for seed in (5, 6)]
    together = joined.front.draw(n=2, seed=5, **fields)
    assert digest(together) == alone
    assert set(drawn_by(together)) <= {"one", "two"}
    meta = together.json()["_hal0"]
    assert meta["timings"]["run_s"] > 2 * RENDER_MS / 1000 * 0.9


def test_the_log_of_a_start_says_that_other_hosts_draw(joined: Joined) -> None:
    joined.front.wait_for(
        "engine: other hosts draw; one that is ready has the sketch engine, which runs no model"
    )
    assert " at None" not in joined.front.log


def test_an_edit_finds_its_images_on_the_host(joined: Joined) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), "red").save(picture, "PNG")
    response = requests.post(
        f"{joined.front.url}/v1/images/edits",
        data={"prompt": "a blue one", "model": "sdxl-turbo"},
        files={"image": ("a.png", picture.getvalue(), "image/png")},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    assert response.json()["_hal0"]["meta"]["task"] == "edit"


def test_progress_and_previews_reach_the_stream_of_the_front_end(joined: Joined) -> None:
    body = {
        "prompt": "p",
        "size": "256x256",
        "model": "sd-1.5-pruned-emaonly",
        "stream": True,
        "partial_images": 3,
    }
    url = f"{joined.front.url}/v1/images/generations"
    with requests.post(url, json=body, stream=True, timeout=120) as response:
        lines = [line.decode() for line in response.iter_lines() if line.startswith(b"data: {")]
    kinds = [json.loads(line[6:])["type"] for line in lines]
    assert "image_generation.partial_image" in kinds
    assert kinds[-1] == "image_generation.completed"


def test_the_status_shows_the_hosts_as_engines_and_the_request(joined: Joined) -> None:
    with in_background(joined.front, seed=11) as found:
        name = joined.drawing_host()
        status = joined.status()
        assert [request["state"] for request in status["requests"]] == ["drawing"]
    assert drawn_by(found[0]) == [name]
    assert (status["reachable"], status["problem"], status["sketch"]) == (True, None, True)
    assert status["cluster"] == {"problem": None, "waiting": {}}
    assert sorted(entry["name"] for entry in status["engines"]) == ["one", "two"]
    assert requests.get(f"{joined.front.url}/ready", timeout=60).status_code == 200


def test_a_cancelled_job_stops_on_its_host_within_a_second_or_so(joined: Joined) -> None:
    with in_background(joined.front, seed=12, model="flux-schnell", n=8) as found:
        name = joined.drawing_host()
        requests.post(
            f"{joined.front.url}/api/comfyui/render/cancel", json={"all": True}, timeout=60
        ).raise_for_status()
        wait_until(lambda: not joined.status()["requests"], 30)
    assert found[0].json()["error"]["code"] == "comfyui.cancelled"
    wait_until(lambda: joined.entries()[name]["queue"]["running"] == 0, 30)


def test_a_client_that_hangs_up_ends_its_jobs_on_the_hosts(joined: Joined) -> None:
    body = {"prompt": "p", "size": "256x256", "model": "flux-schnell", "n": 8}
    with pytest.raises(requests.Timeout):
        requests.post(f"{joined.front.url}/v1/images/generations", json=body, timeout=1.5)
    # Eight pictures on two hosts would take ten seconds more.
    client = joined.redis.client()
    wait_until(lambda: client.hlen("easel:assigned") + client.hlen("easel:waiting") == 0, 20)
    wait_until(lambda: all(not each["queue"]["running"] for each in joined.entries().values()), 20)
    client.close()


def test_the_job_of_a_host_that_is_killed_is_drawn_by_another_with_the_same_seed(joined: Joined) -> None:
    fields = {"seed": 21, "model": "sdxl-turbo", "response_format": "b64_json"}
    with in_background(joined.front, **fields) as found:
        name = joined.drawing_host()
        wait_until(joined.has_begun)
        joined.hosts[name].kill()
        killed_at = time.monotonic()
        wait_until(lambda: not joined.is_ready(name))
        # Its heartbeat counts for five seconds; the test may look late on a busy machine.
        assert time.monotonic() - killed_at < 20
    joined.start_host(name)
    wait_until(lambda: joined.is_ready(name))
    (other,) = {"one", "two"} - {name}
    assert drawn_by(found[0]) == [other]
    (redrawn,) = found[0].json()["_hal0"]["redrawn"]
    assert (redrawn["failed_engine"], redrawn["engine"], redrawn["code"]) == (
        name,
        other,
        "cluster.host_gone",
    )
    assert digest(found[0]) == digest(joined.front.draw(**fields))


def test_the_job_of_a_child_that_is_killed_is_drawn_again(joined: Joined) -> None:
    fields = {"seed": 22, "model": "sdxl-turbo", "response_format": "b64_json"}
    # Not drawn before: the engines would have it in their caches, and no job would be running when its process is killed.
    with in_background(joined.front, **fields) as found:
        name = joined.drawing_host()
        wait_until(lambda: joined.is_drawing(name))
        os.kill(joined.hosts[name].child(), signal.SIGKILL)
    assert digest(found[0]) == digest(joined.front.draw(**fields))


def test_the_job_of_a_child_that_is_stopped_is_drawn_by_the_other_host_and_answered_once(
    joined: Joined,
) -> None:
    fields = {"seed": 25, "model": "sdxl-turbo", "response_format": "b64_json"}
    with in_background(joined.front, **fields) as found:
        name = joined.drawing_host()
        wait_until(lambda: joined.is_drawing(name))
        child = joined.hosts[name].child()
        os.kill(child, signal.SIGSTOP)
    try:
        (other,) = {"one", "two"} - {name}
        assert drawn_by(found[0]) == [other]
        (redrawn,) = found[0].json()["_hal0"]["redrawn"]
        assert (redrawn["failed_engine"], redrawn["code"]) == (name, "cluster.host_gone")
    finally:
        os.kill(child, signal.SIGCONT)
    assert joined.hosts[name].child() == child
    wait_until(lambda: not joined.is_drawing(name))
    client = joined.redis.client()
    wait_until(lambda: client.hlen("easel:assigned") + client.hlen("easel:waiting") == 0)
    client.close()
    assert digest(found[0]) == digest(joined.front.draw(**fields))


def test_a_job_survives_a_redis_that_is_killed_and_comes_back(joined: Joined) -> None:
    fields = {"seed": 23, "model": "sdxl-turbo", "response_format": "b64_json"}
    with in_background(joined.front, **fields) as found:
        joined.drawing_host()
        joined.redis.kill()
        refused = joined.front.draw(seed=24)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cluster.unreachable")
        problem = joined.status()["cluster"]["problem"]
        assert problem is None or problem["code"] == "cluster.unreachable"
        joined.redis.start()
    wait_until(lambda: joined.is_ready("one") and joined.is_ready("two"))
    assert digest(found[0]) == digest(joined.front.draw(**fields))


def test_forged_and_malformed_messages_change_nothing(joined: Joined) -> None:
    client = joined.redis.client()
    task = {"task": "easel.draw", "id": "x", "args": ["forged", 1], "kwargs": {}}
    for name in ("one", "two"):
        client.lpush(f"gpu.{name}", b"nonsense", json.dumps(task).encode())
        client.set("easel:job:forged", b"\0" * 32 + b'{"v":1}', ex=60)
        client.hset("easel:assigned", "forged", json.dumps({"host": name, "attempt": 1}))
    client.hset("easel:waiting", "damaged", b"{")
    numbers = {"number": float("inf"), "model": "m", "flow": "", "front": "f", "attempt": 1, "avoided": []}
    client.hset("easel:waiting", "infinite", json.dumps(numbers))
    client.hset("easel:turns", "aa", "[1e999, 1]")
    client.set("easel:host:liar", b"no heartbeat", ex=60)
    client.sadd("easel:hosts", "liar")
    for front in client.keys("easel:front:*"):
        client.publish(front.decode().replace("front", "to"), b"nonsense")
    assert joined.front.draw(seed=31).status_code == 200
    status = joined.status()
    (liar,) = (entry for entry in status["engines"] if entry["name"] == "liar")
    assert not liar["reachable"]
    assert liar["problem"] == status["cluster"]["problem"]
    assert liar["problem"]["code"] == "cluster.message_invalid"
    client.delete("easel:assigned", "easel:waiting", "easel:turns", "easel:host:liar")
    client.srem("easel:hosts", "liar")
    client.close()


def test_a_second_worker_of_the_same_name_does_not_start(joined: Joined) -> None:
    with host("one", joined.folder / "other", joined.redis.url) as second:
        second.process.wait(90)
        second.wait_for("cluster.name_taken")
    assert second.process.returncode == 1
    assert joined.front.draw(seed=32).status_code == 200


def test_a_drained_host_gets_no_jobs(joined: Joined) -> None:
    client = joined.redis.client()
    client.set("easel:drained:one", "1")
    wait_until(lambda: joined.entries()["one"]["drained"])
    assert {drawn_by(joined.front.draw(seed=seed))[0] for seed in range(41, 45)} == {"two"}
    client.delete("easel:drained:one")
    wait_until(lambda: not joined.entries()["one"]["drained"])
    client.close()


def test_a_front_end_without_hosts_says_so(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    try:
        with running(tmp_path / "front", **variables_of(server.url)) as front:
            ready = requests.get(f"{front.url}/ready", timeout=60)
            assert (ready.status_code, ready.json()["engine"]["code"]) == (503, "cluster.no_hosts")
            refused = front.draw()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cluster.no_hosts")
    finally:
        server.kill()


def test_a_front_end_that_stops_ends_its_requests_and_keeps_those_that_are_answered_later(
    joined: Joined, tmp_path: Path
) -> None:
    variables = variables_of(joined.redis.url)
    body = {"prompt": "p", "size": "256x256", "model": "flux-schnell", "n": 8, "seed": 51}
    with running(tmp_path / "front", **variables) as front:
        url = f"{front.url}/v1/images/generations"
        later = requests.post(url, json=body, headers={"Prefer": "respond-async"}, timeout=60)
        assert later.status_code == 202
        wait_until(lambda: any(each["queue"]["running"] for each in joined.entries().values()))
    with running(tmp_path / "front", **variables) as front:
        job = f"{front.url}/v1/images/jobs/{later.json()['id']}"
        found = wait_until(
            lambda: (
                (answer := requests.get(job, timeout=60).json())["state"] in ("done", "failed", "cancelled")
                and answer
            )
        )
    assert found["state"] == "done", found
    assert len(found["result"]["data"]) == 8


def test_a_worker_that_is_told_twice_to_end_ends_at_once(
    joined: Joined, tmp_path: Path, shipped_catalogue: Catalogue
) -> None:
    with (
        SketchProcess(
            nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=60_000
        ) as engine,
        host("slow", tmp_path, joined.redis.url, EASEL_ENGINE_URL=engine.url) as slow,
    ):
        client = joined.redis.client()
        client.set("easel:drained:one", "1")
        client.set("easel:drained:two", "1")
        wait_until(lambda: joined.is_ready("slow") and joined.entries()["two"]["drained"])
        with in_background(joined.front, seed=61) as found:
            wait_until(lambda: joined.entries()["slow"]["queue"]["running"])
            slow.process.send_signal(signal.SIGTERM)
            slow.wait_for("Warm shutdown")
            assert slow.process.poll() is None
            slow.process.send_signal(signal.SIGTERM)
            slow.process.wait(30)
            client.delete("easel:drained:one", "easel:drained:two")
        assert found[0].status_code == 200
        client.close()


def test_hosts_are_listed_drained_and_resumed_by_command(joined: Joined) -> None:
    def easel(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**variables_of(joined.redis.url), "EASEL_STATE_DIR": str(joined.folder / "commands")}
        return subprocess.run(
            [sys.executable, "-m", "easel", *arguments],
            cwd=ROOT,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    listed = {report["name"]: report for report in json.loads(easel("hosts", "list", "--json").stdout)}
    assert {name: report["state"] for name, report in listed.items()} == {"one": "ready", "two": "ready"}
    assert easel("hosts", "drain", "one").returncode == 0
    assert "one  drained" in easel("hosts", "list").stdout
    wait_until(lambda: joined.entries()["one"]["drained"])
    assert easel("hosts", "resume", "one").returncode == 0
    assert easel("hosts", "drain", "none").returncode == 2
    healthy = json.loads(easel("doctor", "--json").stdout)
    assert "cluster.ok" in [finding["code"] for finding in healthy["findings"]]
    joined.redis.client().close()


def test_without_the_setting_nothing_of_celery_is_imported() -> None:
    code = (
        "import sys, app; app.create_app().extensions['easel'].services; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'redis', 'billiard'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
