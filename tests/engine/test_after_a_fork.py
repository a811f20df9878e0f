"""The gunicorn master makes the Engine and forks: each child is on its own, and so is the parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import uuid
from typing import Any

import pytest
from fake_comfyui import PICTURE, FakeComfyUI

from engine import Engine

GRAPH: dict[str, Any] = {"save": {"class_type": "SaveImage", "inputs": {}}}
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


async def happy(comfy: FakeComfyUI, job: str) -> None:
    await comfy.start(job)
    await comfy.succeed(job)


def draws(engine: Engine) -> bool:
    outcome = engine.run(GRAPH, prompt_id=str(uuid.uuid4()), timeout_s=20)
    return [picture.data for picture in outcome.pictures] == [PICTURE]


def draws_in_a_child(engine: Engine) -> bool:
    def child() -> None:
        try:
            os._exit(0 if draws(engine) else 1)
        finally:
            os._exit(2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    return process.exitcode == 0


def test_an_engine_that_was_never_used_works_in_children_and_parent() -> None:
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        assert draws_in_a_child(engine)
        assert draws_in_a_child(engine)
        assert draws(engine)
        assert len({body["client_id"] for body in comfy.submitted}) == 3
        engine.close()


def test_an_engine_that_was_in_use_works_in_a_child_and_goes_on_in_the_parent() -> None:
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        assert draws(engine)
        assert draws_in_a_child(engine)
        assert draws(engine)
        first, child, last = (body["client_id"] for body in comfy.submitted)
        assert first == last != child
        engine.close()


def test_a_fork_while_another_thread_connects_does_not_hang_the_child() -> None:
    """A lock that is held as the process forks stays held in the child for ever."""
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        with engine._listener._lock:
            assert draws_in_a_child(engine)
        engine.close()


def test_making_an_engine_starts_no_thread_and_opens_no_socket() -> None:
    threads = threading.active_count()
    files = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    Engine("http://127.0.0.1:9")
    assert threading.active_count() == threads
    if files:
        assert set(os.listdir("/proc/self/fd")) == files
