"""What a state directory holds for its owner: a key, pictures, a favourite, an audit log, and a job that was not drawn yet.
Written and read through the public interface, so that servers of several versions can do either."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from sketch import SketchProcess
from tests.conftest import NODES
from tests.server.running import running
from tests.waiting import wait_until

SMALL = {"prompt": "a lighthouse", "size": "256x256", "model": "sd-1.5"}


@dataclass(frozen=True)
class Content:
    """`pictures`: the paths of their URLs and their SHA-256 are what was drawn; `job`: the id of the queued one."""

    key: str
    pictures: tuple[str, ...]
    favourite: str
    """Empty if that version had no favourites"""
    job: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def write(project: Path, state: Path, files: Mapping[str, list[str]]) -> Content:
    """Let the server of the checkout `project` make a state directory."""
    key = _add_key(project, state)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        SketchProcess(nodes=NODES, files=files) as sketch,
        running(state, project, EASEL_ENGINE_URL=sketch.url) as server,
    ):
        pictures = []
        for seed in (1, 2):
            url = f"{server.url}/v1/images/generations"
            answer = requests.post(url, json={**SMALL, "seed": seed}, headers=headers, timeout=120)
            assert answer.status_code == 200, answer.text
            pictures.append(answer.json()["data"][0]["url"].removeprefix(server.url))
        name = pictures[0].rpartition("/")[2]
        mark = requests.patch(
            f"{server.url}/api/images/{name}", json={"favourite": True}, headers=headers, timeout=60
        )
        favourite = name if mark.ok else ""
    with (
        SketchProcess(nodes=NODES, files=files, render_ms=60_000) as sketch,
        running(state, project, EASEL_ENGINE_URL=sketch.url) as server,
    ):
        later = {**headers, "Prefer": "respond-async"}
        answer = requests.post(url_of(server.url), json={**SMALL, "seed": 3}, headers=later, timeout=120)
        assert answer.status_code == 202, answer.text
        # As after a power cut: nothing is told to anybody.
        server.process.kill()
        server.process.wait(30)
    return Content(key, tuple(pictures), favourite, answer.json()["id"])


def url_of(server: str) -> str:
    return f"{server}/v1/images/generations"


def _add_key(project: Path, state: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "flask",
        "--app",
        "app",
        "keys",
        "add",
        "phone",
        "--scopes",
        "draw,operate",
    ]
    environment = {"PATH": "/usr/bin:/bin", "EASEL_STATE_DIR": str(state)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1].split()[-1]


def check_pictures(content: Content, server: str) -> None:
    """What every version can tell: a key is needed, this one counts, and the pictures are there."""
    headers = {"Authorization": f"Bearer {content.key}"}
    assert requests.get(f"{server}/v1/models", timeout=60).status_code == 401
    assert requests.get(f"{server}/v1/models", headers=headers, timeout=60).status_code == 200
    for path in content.pictures:
        picture = requests.get(server + path, headers=headers, timeout=60)
        assert picture.status_code == 200, path
        assert picture.content.startswith(b"\x89PNG")


def check(content: Content, server: str) -> None:
    """All of it is there, and the job gets drawn."""
    check_pictures(content, server)
    headers = {"Authorization": f"Bearer {content.key}"}
    names = {path.rpartition("/")[2] for path in content.pictures}

    def listed(**query: str) -> set[str]:
        answer = requests.get(f"{server}/api/images", params=query, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return {image["name"] for image in answer.json()["images"]}

    wait_until(lambda: names <= listed())
    assert listed(favourite="true") == {content.favourite} - {""}

    def job() -> dict[str, object]:
        answer = requests.get(f"{server}/v1/images/jobs/{content.job}", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        result: dict[str, object] = answer.json()
        return result

    wait_until(lambda: job()["state"] not in ("queued", "running"), 120)
    assert job()["state"] == "done", job()
