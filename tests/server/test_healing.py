"""A running server restores what is deleted or damaged in its state directory, and names a shortage of its own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from filelock import FileLock, Timeout

from tests.conftest import ROOT, SMALL_CATALOGUE
from tests.server.running import Server, running, started
from tests.waiting import wait_until

SKETCH_FILES = ("sketch-url", "sketch-nodes.json", "sketch-files.json")


def remove(path: Path) -> None:
    """Whatever it is, and even if the server writes into it meanwhile."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True) if not path.is_dir() else None


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        remove(path)


def damage(text: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("x") as file:
            file.write(text)

    return lambda path: turn_into(path, write)


def turn_into(path: Path, make: Callable[[Path], object]) -> None:
    """Again if the server has written the file in between."""
    while True:
        remove(path)
        with contextlib.suppress(FileExistsError):
            make(path)
            return


def to_folder(path: Path) -> None:
    turn_into(path, Path.mkdir)


def to_pipe(path: Path) -> None:
    turn_into(path, os.mkfifo)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": remove,
    "empty": damage(""),
    "half": damage('{"nodes": {"KSam'),
    "of another shape": damage("[]"),
    "without content": damage("{}"),
    "a folder": to_folder,
    "a pipe": to_pipe,
}


def test_files_of_the_sketch_engine_that_are_lost_or_damaged_are_restored(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state) as server:
        assert server.draw().status_code == 200
        good = {name: (state / name).read_bytes() for name in SKETCH_FILES}
        for name in SKETCH_FILES:
            for how, harm in DAMAGES.items():
                harm(state / name)
                answers = [server.draw().status_code for _ in range(2)]
                if name == "sketch-url":  # written by the master, within its check interval
                    wait_until(lambda name=name: is_content(state / name, good[name]))  # type: ignore[misc]
                    answers = [server.draw().status_code for _ in range(2)]
                assert answers == [200, 200], (name, how)
                assert is_content(state / name, good[name]), (name, how)
        assert server.sketch() is not None


def is_content(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def test_after_the_state_directory_was_emptied_or_deleted_everything_works_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state) as server:
        address = (state / "server-url").read_text()
        for harm in (empty, remove):
            assert server.draw().status_code == 200
            harm(state)
            wait_until(lambda: is_content(state / "server-url", address.encode()))
            wait_until(lambda: server.draw().status_code == 200)
            body = server.draw().json()
            assert body["_hal0"]["engine"] == "sketch"
            assert requests.get(body["data"][0]["url"], timeout=60).status_code == 200
            status = requests.get(f"{server.url}/api/comfyui/status", timeout=60)
            assert status.status_code == 200
            assert edit(server).status_code == 200
            with pytest.raises(Timeout), FileLock(state / "server.lock").acquire(blocking=False):
                pass


def edit(server: Server) -> requests.Response:
    """An edit uploads its picture to the sketch engine, whose folder was deleted too."""
    picture = requests.get(server.draw().json()["data"][0]["url"], timeout=60).content
    form = {"prompt": "a cat", "response_format": "b64_json"}
    return requests.post(f"{server.url}/v1/images/edits", data=form, files={"image": picture}, timeout=60)


def test_a_second_server_is_refused_after_the_lock_was_deleted_or_replaced(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state):
        for harm in (remove, to_folder):
            harm(state / "server.lock")
            wait_until((state / "server.lock").is_file)
            wait_until(lambda: not is_free(state / "server.lock"))
            with started(state) as second:
                second.wait_for("Another Easel already uses the state directory")


def is_free(lock: Path) -> bool:
    with contextlib.suppress(Timeout), FileLock(lock).acquire(blocking=False):
        return True
    return False


def test_a_server_starts_with_damaged_files_and_a_killed_sketch_engine_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for name in (*SKETCH_FILES, "engine-seen.json", "server-url"):
        (state / name).write_text("{half")
    (state / "server.lock").mkdir()
    with running(state) as server:
        assert server.draw().json()["_hal0"]["engine"] == "sketch"
        first = server.sketch()
        assert first is not None
        for name in SKETCH_FILES:
            (state / name).write_text("{half")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.sketch() not in (None, first))
        wait_until(lambda: server.draw().status_code == 200)
        assert list(state.glob("engine-seen.json.*.corrupt"))


# --- learned nodes ---------------------------------------------------------------------------------


def test_nodes_that_were_just_learned_are_drawn_by_every_worker_at_once(tmp_path: Path) -> None:
    templates, catalogue = tmp_path / "templates", tmp_path / "catalogue.yaml"
    shutil.copytree(SMALL_CATALOGUE / "templates_wf", templates)
    template = templates / "sd15_simple.json.j2"
    text = template.read_text()
    polished = {"class_type": "Polish (new)", "inputs": {"image": ["raw", 0]}}
    include = '{% include "part_picture.json.j2" %}'
    changed = text.replace('{"decoded":', '{"raw":').replace(
        include, f'{{"decoded": {json.dumps(polished)}}}\n{include}'
    )
    assert changed.count("Polish") == 1
    shutil.copy(SMALL_CATALOGUE / "catalogue.yaml", catalogue)
    variables = {"EASEL_CATALOGUE": str(catalogue), "EASEL_TEMPLATES": str(templates)}
    entry = {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"], "output_node": False}
    (tmp_path / "object_info.json").write_text(json.dumps({"Polish (new)": entry}))

    def draw(_: int) -> int:
        return server.draw(model="sd-1.5").status_code

    with running(tmp_path / "state", **variables) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(draw, range(8))) == {200}
        template.write_text(changed)
        wait_until(lambda: set(pool.map(draw, range(8))) == {503})
        learn(tmp_path, variables)
        assert list(pool.map(draw, range(8))) == [200] * 8


def learn(folder: Path, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flask", "--app", "app", "snapshot-nodes"]
    environment = {**os.environ, **variables, "EASEL_STATE_DIR": str(folder / "state")}
    arguments = [str(folder / "object_info.json"), "--version", "0.99.0"]
    subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)


# --- no more threads -------------------------------------------------------------------------------


def test_a_worker_without_its_threads_serves_says_so_and_starts_them_later(tmp_path: Path) -> None:
    catalogue, shortage, config = tmp_path / "catalogue.yaml", tmp_path / "shortage", tmp_path / "gunicorn.py"
    shutil.copy(SMALL_CATALOGUE / "catalogue.yaml", catalogue)
    shortage.touch()
    config.write_text(
        f"""
exec(open({str(ROOT / "gunicorn.conf.py")!r}).read())
import os, threading

def post_worker_init(worker):
    start = threading.Thread.start
    def start_unless_short(thread):
        if thread.name in {THREADS} and os.path.exists({str(shortage)!r}):
            raise RuntimeError("can't start new thread")
        start(thread)
    threading.Thread.start = start_unless_short
    _hooks.post_worker_init(worker)
"""
    )
    variables = {
        "EASEL_CATALOGUE": str(catalogue),
        "GUNICORN_CMD_ARGS": f"--config {config}",
        "EASEL_WORKERS": "1",
    }
    with running(tmp_path / "state", **variables) as server:
        for name in THREADS:
            server.wait_for(f"The thread {name} cannot be started, will retry: can't start new thread")
        assert server.draw().status_code == 200
        text = catalogue.read_text()
        catalogue.write_text(text.replace("default_model: ", "default_model: no-such-"))
        wait_until(lambda: server.draw().status_code == 200 and "is not valid; the last good" in server.log)
        shortage.unlink()
        for name in THREADS:
            server.wait_for(f"The thread {name} has started")
        assert server.draw().status_code == 200


THREADS = ("catalogue-watch", "image-sweeps", "gpu-reconciler")


# --- too many open files ---------------------------------------------------------------------------

SHORTAGES = {"server.too_many_files", "server.out_of_memory", "queue.full", "server.too_many_connections"}


def test_with_too_few_files_clients_get_pictures_or_the_name_of_the_shortage_and_it_heals(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "state", EASEL_THREADS="32", EASEL_MAX_WAITING="24") as server:
        assert {server.draw().status_code for _ in range(4)} == {200}
        workers = server.workers()
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}

        def attempt(number: int) -> tuple[int, Any]:
            try:
                answer = server.draw(seed=number, response_format="b64_json")
            except requests.ConnectionError as error:
                return 0, str(error)
            return answer.status_code, answer.json().get("error", {}).get("code")

        for pid in workers:
            used = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 12, limits[pid][1]))
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(attempt, range(96)))
        # To make room, a worker may close a connection before it has read the request.
        aborted = [answer for answer in answers if answer[0] == 0]
        others = [answer for answer in answers if answer[0] not in (0, 200) and answer[1] not in SHORTAGES]
        assert not others, others
        assert len(aborted) < len(answers) / 2, aborted
        assert (
            any(code == "server.too_many_files" for _, code in answers) or "cannot be accepted" in server.log
        )
        assert server.workers() == workers
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits[pid])
        wait_until(lambda: {server.draw().status_code for _ in range(6)} == {200})
