"""The time limit of a thread, and that a call to any server ends within it."""

from __future__ import annotations

import math
import socket
import threading
import time
from typing import Any

import pytest
import requests
import urllib3

from bounded_socket import connect, tls
from deadline import limited, no_time_limit, remaining_s, time_limit
from http_session import DirectSession
from tests.raw_server import SLOW_ANSWERS, Serve, raw_server, silent

LIMIT_S = 0.4
FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
SLACK_S = 1.0
"""A busy machine may take this much longer"""


def test_without_a_limit_the_remaining_time_is_infinite() -> None:
    assert remaining_s() == float("inf")
    assert (limited(5.0), limited(None)) == (5.0, None)


def test_of_nested_limits_the_earliest_counts_and_it_ends_with_its_block() -> None:
    with time_limit(100):
        with time_limit(1000):
            assert 90 < remaining_s() <= 100
        with time_limit(10):
            assert remaining_s() <= 10
            assert limited(50) == pytest.approx(10, abs=1)
        assert remaining_s() > 90
    assert remaining_s() == float("inf")


def test_a_limit_that_has_passed_leaves_no_time() -> None:
    with time_limit(-1):
        assert remaining_s() == 0
        with pytest.raises(TimeoutError):
            limited(5)
        with no_time_limit():
            assert limited(5) == 5


def test_a_new_thread_has_no_limit() -> None:
    seen: list[float] = []
    with time_limit(1):
        thread = threading.Thread(target=lambda: seen.append(remaining_s()))
        thread.start()
        thread.join()
    assert seen == [float("inf")]


@pytest.mark.parametrize("serve", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
def test_a_call_ends_within_the_limit_however_slowly_the_server_answers(
    serve: Serve,
) -> None:
    with raw_server(serve) as port, DirectSession() as session:
        started_at = time.monotonic()
        with pytest.raises(FAILURES), time_limit(LIMIT_S):
            session.get(f"http://127.0.0.1:{port}", timeout=30, stream=True).raw.read()
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_a_server_that_does_not_read_an_upload_does_not_hold_the_call_either() -> None:
    with raw_server(silent) as port, DirectSession() as session:
        started_at = time.monotonic()
        with pytest.raises(FAILURES), time_limit(LIMIT_S):
            session.post(f"http://127.0.0.1:{port}", data=b"x" * 50_000_000, timeout=60)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_each_operation_still_has_its_own_timeout() -> None:
    with (
        raw_server(silent) as port,
        DirectSession() as session,
        time_limit(60),
        pytest.raises(requests.Timeout),
    ):
        session.get(f"http://127.0.0.1:{port}", timeout=0.1)


def test_a_socket_is_not_connected_once_no_time_is_left() -> None:
    with pytest.raises(TimeoutError), time_limit(0):
        connect("127.0.0.1", 9, 5.0)


def test_a_name_server_that_does_not_answer_does_not_hold_a_connection() -> None:
    answered = threading.Event()

    def resolve(host: str, port: int) -> list[Any]:
        answered.wait()
        return []

    started_at = time.monotonic()
    try:
        with pytest.raises(TimeoutError), time_limit(LIMIT_S):
            connect("comfyui.example", 8188, 30, resolve=resolve)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S
    finally:
        answered.set()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_name_is_looked_up_and_an_unknown_one_is_an_error(host: str) -> None:
    with raw_server(silent) as port, connect(host, port, 5) as connection:
        assert connection.getpeername()[1] == port
    with pytest.raises(socket.gaierror):
        connect("no-such-name.invalid", 80, 5)


@pytest.mark.parametrize("limit_s", [LIMIT_S, 30])
def test_a_tls_handshake_that_does_not_end_keeps_to_the_limit_and_to_its_timeout(limit_s: float) -> None:
    with raw_server(silent) as port:
        raw = connect("127.0.0.1", port, 30 if limit_s == LIMIT_S else LIMIT_S)
        started_at = time.monotonic()
        with pytest.raises(TimeoutError), time_limit(limit_s):
            tls(raw, "127.0.0.1")
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_a_tls_handshake_of_a_session_keeps_to_the_limit() -> None:
    with raw_server(silent) as port, DirectSession() as session:
        started_at = time.monotonic()
        with pytest.raises(FAILURES), time_limit(LIMIT_S):
            session.get(f"https://127.0.0.1:{port}", timeout=60)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


@pytest.mark.parametrize("location", [b"/login", b"http://[", b"\xff\xfe", b"http://sso.example/"])
def test_a_redirect_is_returned_as_it_is_however_malformed(location: bytes) -> None:
    def redirect(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")

    with raw_server(redirect) as port, DirectSession() as session:
        response = session.get(f"http://127.0.0.1:{port}", timeout=60)
    assert (response.status_code, response.headers["Location"].encode("latin-1")) == (302, location)


def test_the_next_call_on_a_kept_connection_has_no_limit_of_the_last_one() -> None:
    with raw_server(silent) as port, connect("127.0.0.1", port, 30) as connection:
        for limit_s, expected in ((10, 10), (1000, 30), (math.inf, 30)):
            with time_limit(limit_s):
                connection.sendall(b"x")
            assert socket.socket.gettimeout(connection) == pytest.approx(expected, abs=5)
            assert connection.gettimeout() == 30
