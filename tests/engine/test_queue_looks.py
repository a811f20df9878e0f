"""All waiting jobs of a process share one look at ComfyUI's queue."""

from __future__ import annotations

import itertools
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import pytest
from fake_comfyui import FakeComfyUI

from engine import Engine, QueueState
from engine.http import ComfyuiHttp
from engine.inbox import Inbox, QueueLook
from engine.job_runner import cancel_job
from engine.queue_looks import QueueLooks
from errors import EngineAccessDenied, EngineUnreachable, ServerStopping
from tests.raw_server import raw_server
from tests.waiting import TIMEOUT_S, wait_until

JOBS, REPORTS = 64, 10
GRAPH = {"save": {"class_type": "SaveImage", "inputs": {}}}


def run_until_stopped(engine: Engine, reports: list[int]) -> None:
    with pytest.raises(ServerStopping):
        engine.run(GRAPH, prompt_id=str(uuid.uuid4()), timeout_s=600, on_queued=reports.append)


def test_waiting_jobs_share_the_requests_for_the_queue_and_make_none_for_their_history() -> None:
    reports: list[list[int]] = [[] for _ in range(JOBS)]
    with FakeComfyUI() as comfy, ThreadPoolExecutor(JOBS) as pool:
        engine = Engine(comfy.url, poll_interval_s=0.2, idle_timeout_s=600)
        jobs = [pool.submit(run_until_stopped, engine, own) for own in reports]
        wait_until(lambda: min(map(len, reports)) >= REPORTS)
        looks, used = comfy.queue_requests, sum(map(len, reports))
        engine.cancel_all(ServerStopping("The server is stopping."))
        for job in jobs:
            job.result(TIMEOUT_S)
        engine.close()
    assert looks * 6 < used, "of its own looks, each job would have used one"
    assert comfy.history_requests == 0
    assert {own[-1] for own in reports} == set(range(JOBS)), "each job knows its own place"


def test_a_slow_look_delays_neither_the_check_for_a_cancel_nor_the_end_of_the_time() -> None:
    checks = itertools.count()
    seen: list[int] = []

    def cancelled() -> bool:
        seen.append(next(checks))
        return False

    with FakeComfyUI() as comfy:
        engine = Engine(comfy.url, poll_interval_s=0.05)
        comfy.slow_queue = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(
                engine.run, GRAPH, prompt_id=str(uuid.uuid4()), timeout_s=600, cancelled=cancelled
            )
            comfy.wait_for(lambda: comfy.queue_requests)
            before = len(seen)
            wait_until(lambda: len(seen) >= before + 3)
            assert comfy.queue_requests == 1
            engine.cancel_all(ServerStopping("The server is stopping."))
            comfy.slow_queue.set()
            with pytest.raises(ServerStopping):
                job.result(TIMEOUT_S)
        engine.close()


class Queue:
    """Each look waits until it may end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def __call__(self) -> QueueState:
        self.begun.release()
        assert self.may_end.acquire(timeout=TIMEOUT_S)
        return QueueState((), ())


def look_in(inbox: Inbox) -> QueueLook:
    item = inbox.get(TIMEOUT_S)
    assert isinstance(item, QueueLook)
    return item


def test_a_job_never_gets_a_look_that_began_before_it_asked_for_a_newer_one() -> None:
    queue, early, late = Queue(), Inbox(), Inbox()
    looks = QueueLooks(queue)
    looks.request(early, newer_than=0)
    assert queue.begun.acquire(timeout=TIMEOUT_S)
    looks.request(late, newer_than=looks.begun)  # as a job that was submitted meanwhile
    queue.may_end.release()
    assert look_in(early).number == 1
    with pytest.raises(Empty):
        late.get(0)
    queue.may_end.release()
    assert look_in(late).number == 2


def test_the_latest_look_serves_every_job_that_has_not_used_it() -> None:
    queue, first, second = Queue(), Inbox(), Inbox()
    looks = QueueLooks(queue)
    queue.may_end.release()
    looks.request(first, newer_than=0)
    assert look_in(first).number == 1
    looks.request(second, newer_than=0)
    assert look_in(second).number == 1


@pytest.mark.parametrize(
    "error", [EngineUnreachable("ComfyUI does not answer."), MemoryError(), KeyError("x")]
)
def test_a_failed_look_is_given_to_all_who_wait_for_it_and_the_next_one_can_begin(error: Exception) -> None:
    def queue() -> QueueState:
        raise error

    inboxes = [Inbox(), Inbox()]
    looks = QueueLooks(queue)
    for number in range(2):
        for inbox in inboxes:
            looks.request(inbox, newer_than=number)
        assert all(isinstance(look_in(inbox).result, EngineUnreachable) for inbox in inboxes)


def test_each_job_gets_an_error_of_its_own_of_the_same_kind() -> None:
    denied = EngineAccessDenied("ComfyUI answered 403.", status=403)

    def queue() -> QueueState:
        raise denied

    looks, inboxes = QueueLooks(queue), [Inbox() for _ in range(3)]
    errors = []
    for inbox in inboxes:
        looks.request(inbox, newer_than=0)
        errors.append(look_in(inbox).result)
    assert len({id(error) for error in (denied, *errors)}) == 4
    for error in errors:
        assert isinstance(error, EngineAccessDenied)
        assert (error.message, error.details) == (denied.message, denied.details)


def test_without_threads_a_job_looks_once_and_those_who_wait_for_the_next_look_ask_again() -> None:
    def no_thread(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    queue, early, late = Queue(), Inbox(), Inbox()
    looks = QueueLooks(queue, no_thread)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(looks.request, early, newer_than=0)
        assert queue.begun.acquire(timeout=TIMEOUT_S)
        looks.request(late, newer_than=looks.begun)
        queue.may_end.release()
        looking.result(TIMEOUT_S)
    assert look_in(early).number == 1
    assert len(late) == 0
    queue.may_end.release()
    looks.request(late, newer_than=1)
    assert look_in(late).number == 2


def test_a_job_that_asks_often_while_a_look_is_slow_gets_it_once() -> None:
    queue, inbox = Queue(), Inbox()
    looks = QueueLooks(queue)
    for _ in range(5):
        looks.request(inbox, newer_than=0)
    queue.may_end.release()
    assert look_in(inbox).number == 1
    assert len(inbox) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b"[]",
        b"<html>",
        b'{"queue_running": [], "queue_pending": 5}',
        b'{"queue_running": null, "queue_pending": []}',
        b'{"queue_running": "none", "queue_pending": []}',
    ],
)
def test_an_answer_that_is_no_queue_does_not_say_that_the_job_is_gone(answer: bytes) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))

    with raw_server(serve) as port:
        http = ComfyuiHttp(f"http://127.0.0.1:{port}", connect_timeout_s=5)
        with pytest.raises(EngineUnreachable, match="Unexpected response"):
            http.queue()
        assert not cancel_job(http, "job", Inbox(), 0.1)
        http.close()


def test_an_item_that_wakes_nobody_comes_before_the_next_one_and_at_the_end_of_the_time() -> None:
    inbox, first, second = Inbox(), QueueLook(1, QueueState((), ())), QueueLook(2, QueueState((), ()))
    inbox.put(first, wakes=False)
    inbox.put(second)
    assert [inbox.get(0), inbox.get(0)] == [first, second]
    with pytest.raises(Empty):
        inbox.get(0.01)
    inbox.put(first, wakes=False)
    assert inbox.get(0) == first
