"""The gunicorn master may create the Engine before it forks; then each child and the parent have their own
connections."""

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


def can_run(engine: Engine) -> bool:
    outcome = engine.run(GRAPH, prompt_id=str(uuid.uuid4()), timeout_s=20)
    return [picture.data for picture in outcome.pictures] == [PICTURE]


def can_run_in_a_child(engine: Engine) -> bool:
    def child() -> None:
        try:
            os._exit(0 if can_run(engine) else 1)
        finally:
            os._exit(2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    return process.exitcode == 0


def test_an_unused_engine_works_in_children_and_parent_after_a_fork() -> None:
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        assert can_run_in_a_child(engine)
        assert can_run_in_a_child(engine)
        assert can_run(engine)
        assert len({body["client_id"] for body in comfy.submitted}) == 3
        engine.close()


def test_a_used_engine_works_in_a_child_and_keeps_its_socket_in_the_parent() -> None:
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        assert can_run(engine)
        assert can_run_in_a_child(engine)
        assert can_run(engine)
        first, child, last = (body["client_id"] for body in comfy.submitted)
        assert first == last != child
        engine.close()


def test_a_fork_while_another_thread_connects_does_not_hang_the_child() -> None:
    """A lock that is held at the fork stays locked in the child for ever."""
    with FakeComfyUI(happy) as comfy:
        engine = Engine(comfy.url)
        with engine._listener._lock:
            assert can_run_in_a_child(engine)
        engine.close()


def test_making_an_engine_starts_no_thread_and_opens_no_socket() -> None:
    threads = threading.active_count()
    files = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    Engine("http://127.0.0.1:9")
    assert threading.active_count() == threads
    if files:
        assert set(os.listdir("/proc/self/fd")) == files
