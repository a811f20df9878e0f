"""Streams and uploads over real sockets: gunicorn, two workers, clients that disconnect, a server that is stopped."""

from __future__ import annotations

import io
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, Request
from PIL import Image

from api.connection import body_timeouts
from bench.lines import lines_of
from errors import BodyTimeout
from sketch import SketchProcess
from tests.conftest import NODES
from tests.server.running import Server, running
from tests.waiting import wait_until

BODY = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5", "steps": 6, "stream": True}


@pytest.fixture
def slow(tmp_path: Path, catalogue_files: dict[str, list[str]]) -> Iterator[tuple[Server, str]]:
    """A server over a sketch engine that takes three seconds a picture, and that engine's address."""
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=3000) as sketch,
        running(tmp_path, EASEL_ENGINE_URL=sketch.url) as server,
    ):
        yield server, sketch.url


def lines(response: requests.Response) -> Iterator[bytes]:
    return (line for line in lines_of(response.raw) if line)


def stream(server: Server, path: str = "/v1-openai/image/generate", **fields: Any) -> requests.Response:
    return requests.post(server.url + path, json={**BODY, **fields}, stream=True, timeout=60)


def running_jobs(engine: str) -> int:
    return len(requests.get(f"{engine}/queue", timeout=60).json()["queue_running"])


def test_every_event_is_sent_when_it_happens(slow: tuple[Server, str]) -> None:
    server, _ = slow
    started_at = time.monotonic()
    with stream(server) as response:
        received = [(time.monotonic() - started_at, line) for line in lines(response)]
    times = [seconds for seconds, line in received if b'"progress"' in line]
    assert times[0] < 1
    assert len(times) == 8
    # Half a second from step to step; a buffer would deliver them together.
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[1:7])]
    assert all(0.2 < gap < 1.0 for gap in gaps), gaps
    assert received[-1][1] == b"data: [DONE]"


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1-openai/image/generate"])
def test_the_job_of_a_client_that_disconnects_is_cancelled_within_a_second(
    slow: tuple[Server, str], path: str
) -> None:
    server, engine = slow
    response = stream(server, path)
    events = lines(response)  # kept: a generator that is deleted closes the connection
    next(events)
    wait_until(lambda: running_jobs(engine) == 1, 5)
    response.close()
    closed_at = time.monotonic()
    wait_until(lambda: running_jobs(engine) == 0, 5)
    assert time.monotonic() - closed_at < 1.3  # includes the poll interval of this test
    assert server.draw(model="sdxl-turbo").status_code == 200


def test_a_stop_of_the_server_is_an_error_event_in_the_stream(slow: tuple[Server, str]) -> None:
    server, engine = slow
    with stream(server, "/v1/images/generations", n=8, steps=6) as response:
        events = lines(response)
        next(events)
        wait_until(lambda: running_jobs(engine) == 1, 5)
        server.process.send_signal(signal.SIGINT)
        rest = list(events)
    assert b'"code":"server.stopping"' in b"".join(rest)
    wait_until(lambda: running_jobs(engine) == 0, 5)


def photo(width: int = 256, height: int = 256) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path: Path, sketch_url: str) -> Iterator[Server]:
    with running(tmp_path, EASEL_ENGINE_URL=sketch_url) as server:
        yield server


def test_a_chunked_upload_as_node_sends_it_is_accepted(server: Server) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: application/octet-stream\r\n\r\n'
    body = head + photo(700, 700) + b"\r\n--b--\r\n"

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    response = requests.post(
        f"{server.url}/v1/images/edits",
        data=chunks(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        timeout=180,
    )
    assert response.status_code == 200, response.text[:300]
    assert response.json()["size"] == "704x704" or response.json()["size"] == "700x700"


def test_an_upload_that_breaks_off_affects_no_other_request(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                head + b"Content-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name="
            )
    files = {"image": ("a.png", photo(), "image/png")}
    response = requests.post(f"{server.url}/v1/images/edits", data={"prompt": "x"}, files=files, timeout=60)
    assert response.status_code == 200
    assert "Traceback" not in server.log


def test_a_body_that_is_too_large_is_413_before_it_is_sent(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/images/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 200000000\r\n\r\n--b\r\n"
        )
        response = b"".join(iter(lambda: connection.recv(65536), b""))
    assert response.startswith(b"HTTP/1.1 413")
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"] == "request.too_large"


def test_sixty_four_streams_of_one_process_get_all_events(tmp_path: Path, sketch_url: str) -> None:
    with running(tmp_path, EASEL_ENGINE_URL=sketch_url, EASEL_WORKERS="1") as server:
        responses = [stream(server, seed=index) for index in range(64)]
        for response in responses:
            events = [json.loads(line[6:]) for line in lines(response) if line != b"data: [DONE]"]
            # A job that waits in the engine for longer than a second is told so, too.
            progress = [chunk["data"][0]["progress"] for chunk in events if "waiting" not in chunk]
            assert progress == [0.0, 16.7, 33.3, 50.0, 66.7, 83.3, 99.0, 100.0]


def test_clients_that_do_not_read_their_responses_leave_threads_for_others(
    tmp_path: Path, sketch_url: str
) -> None:
    variables = {"EASEL_WORKERS": "1", "EASEL_THREADS": "8", "EASEL_MAX_WAITING": "6"}
    with running(tmp_path, EASEL_ENGINE_URL=sketch_url, **variables) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "a", "size": "1024x1024", "n": 10, "stream": True}).encode()
        head = (
            b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        )
        connections = []
        for _ in range(12):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            connections.append(connection)
        wait_until(lambda: server.log.count("/generations 200") == 6, 30)
        wait_until(lambda: not running_jobs(sketch_url), 60)
        assert requests.get(f"{server.url}/health", timeout=60).status_code == 200
        assert server.draw().status_code == 429
        for connection in connections:
            connection.close()
        wait_until(lambda: server.draw().status_code == 200, 10)


def test_a_body_that_arrives_too_slowly_is_cut_off(tmp_path: Path) -> None:
    """The limit of a real server is three minutes; the code that enforces it is the same."""
    server_end, client_end = socket.socketpair()
    with server_end, client_end:
        stop = threading.Event()

        def send_slowly() -> None:
            while not stop.wait(0.05):
                try:
                    client_end.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=send_slowly)
        thread.start()
        stream = server_end.makefile("rb", buffering=0)
        environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "1000000", "gunicorn.socket": server_end, "wsgi.input": stream,
                   "wsgi.url_scheme": "http", "SERVER_NAME": "x", "SERVER_PORT": "80"}  # fmt: skip
        try:
            with Flask("test").test_request_context("/"), pytest.raises(BodyTimeout, match=r"within 0\.5 s"):
                read_a_million(Request(environ), stream)
        finally:
            stop.set()
            thread.join()
            stream.close()


def read_a_million(request: Request, stream: Any) -> None:
    with body_timeouts(request, total_timeout_s=0.5):
        received = 0
        while received < 1_000_000:
            chunk = stream.read(1000)
            if not chunk:
                raise OSError("the body ended")
            received += len(chunk)
