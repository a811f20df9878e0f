"""Stops: by signals, with requests in every state, and by the death of the master or a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from engine import Engine
from engine.job_runner import CANCEL_TIMEOUT_S
from server.hooks import GRACEFUL_TIMEOUT_S, JOB_GRACE_S
from sketch import SketchProcess
from tests.conftest import NODES
from tests.processes import free_port, is_alive
from tests.server.attacks import HALF_BODY, HALF_HEAD, HEAD, address, connect, read_to_end
from tests.server.running import Server, running
from tests.waiting import wait_until

PICTURE = b'{"prompt": "a cat", "size": "256x256", "model": "sd-1.5"}'
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE


@pytest.fixture
def slow_sketch(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """A sketch engine that takes 20 s for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as sketch:
        yield sketch


def is_refused(server: Server) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection(address(server), timeout=10).close()
    except ConnectionRefusedError:
        return True
    return False


def test_after_sigterm_new_connections_are_refused_while_pictures_run(
    tmp_path: Path, slow_sketch: SketchProcess
) -> None:
    engine = Engine(slow_sketch.url)
    with (
        running(tmp_path / "state", EASEL_ENGINE_URL=slow_sketch.url) as server,
        connect(server, REQUEST) as client,
    ):
        wait_until(lambda: len(engine.queue().running) == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(server))
        assert len(engine.queue().running) == 1
        server.process.send_signal(signal.SIGINT)  # not to wait for the picture
        assert b"server.stopping" in read_to_end(client)
    engine.close()


def test_incomplete_requests_and_idle_connections_do_not_extend_a_stop(
    tmp_path: Path, sketch_url: str
) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url) as server, contextlib.ExitStack() as stack:
        head, body, silent = (
            stack.enter_context(connect(server, data)) for data in (HALF_HEAD, HALF_BODY, b"")
        )
        kept = stack.enter_context(connect(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        answer = b""
        while not answer.endswith(b'{"status":"ok"}\n'):
            answer += kept.recv(65536)
        sent_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for connection in (head, body):
            answer = read_to_end(connection)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"server.stopping" in answer
        assert (read_to_end(silent), read_to_end(kept)) == (b"", b"")
        assert server.process.wait(90) == 0
        assert time.monotonic() - sent_at < GRACEFUL_TIMEOUT_S / 2


def test_a_connection_that_was_accepted_just_before_a_stop_gets_its_answer(
    tmp_path: Path, sketch_url: str
) -> None:
    with running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, EASEL_WORKERS="1") as server:
        with connect(server, b"") as new:
            # The answer to a later connection: the worker has accepted this one.
            assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(server))
            time.sleep(0.05)  # between the close of the listener and the look at the connections
            new.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_to_end(new).startswith(b"HTTP/1.1 200")
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_response_that_is_not_read_does_not_extend_a_stop(
    tmp_path: Path, sketch_url: str, number: signal.Signals
) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        running(tmp_path / "state", EASEL_ENGINE_URL=sketch_url, EASEL_WORKERS="1") as server,
        connect(server, request * 500),
    ):
        sent = -1
        while sent < (sent := server.log.count("/openapi.json 200")):
            time.sleep(1.0)
        server.process.send_signal(number)
        sent_at = time.monotonic()
        assert server.process.wait(GRACEFUL_TIMEOUT_S * 2) == 0
        assert time.monotonic() - sent_at < GRACEFUL_TIMEOUT_S / 2


def test_the_time_to_stop_covers_the_grace_and_a_cancellation() -> None:
    assert JOB_GRACE_S + CANCEL_TIMEOUT_S < GRACEFUL_TIMEOUT_S
    assert GRACEFUL_TIMEOUT_S < 50, (
        "systemd kills after 90 s, and the master hands the GPU back after its workers ended"
    )


def test_workers_end_with_their_master_free_the_port_and_cancel_their_pictures(
    tmp_path: Path, slow_sketch: SketchProcess
) -> None:
    engine = Engine(slow_sketch.url)
    variables = {"EASEL_ENGINE_URL": slow_sketch.url, "EASEL_PORT": str(free_port())}
    with running(tmp_path / "state", **variables) as server:
        workers = server.workers()
        with connect(server, REQUEST) as client, connect(server, HALF_BODY):
            wait_until(lambda: len(engine.queue().running) == 1)
            os.kill(server.process.pid, signal.SIGKILL)
            killed_at = time.monotonic()
            wait_until(lambda: not any(is_alive(pid) for pid in workers))
            took_s = time.monotonic() - killed_at
            assert b"server.stopping" in read_to_end(client)
        print(f"the workers ended {took_s:.2f} s after their master")
        assert took_s < GRACEFUL_TIMEOUT_S / 4
        wait_until(lambda: engine.queue().running == ())
    with running(tmp_path / "state", **variables) as server:
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
    engine.close()


@pytest.mark.parametrize("victim", ["worker", "master", "all"])
def test_nothing_is_left_in_the_temporary_folder_after_a_kill(tmp_path: Path, victim: str) -> None:
    temporary, state = tmp_path / "temporary", tmp_path / "state"
    temporary.mkdir()
    with running(state, TMPDIR=str(temporary), EASEL_WORKERS="1") as server:
        assert server.draw().status_code == 200
        sketch, workers = server.sketch(), server.workers()
        assert sketch is not None
        large = HEAD + b"Content-Length: 900000\r\n\r\n" + b"{" * 500_000
        with connect(server, large), connect(server, HALF_HEAD):
            pids = {
                "worker": workers,
                "master": [server.process.pid],
                "all": [server.process.pid, *workers, sketch],
            }
            for pid in pids[victim]:
                os.kill(pid, signal.SIGKILL)
        if victim == "worker":
            wait_until(lambda: server.workers() and server.workers() != workers)
            assert server.draw().status_code == 200
        else:
            wait_until(lambda: not any(is_alive(pid) for pid in [*workers, sketch]))
        assert list(temporary.iterdir()) == []
    assert list(temporary.iterdir()) == []
    if victim == "master":
        assert list((state / "sketch").iterdir()) == []
    with running(state, TMPDIR=str(temporary)) as server:
        assert server.draw().status_code == 200
        assert len(list((state / "sketch").iterdir())) == 1
    assert list(temporary.iterdir()) == []
