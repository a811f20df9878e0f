"""The connections to ComfyUI: time limits, whatever the server sends, and what is sent."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import select
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from deadline import time_limit
from engine import Engine
from engine.http import ComfyuiHttp
from errors import EngineUnreachable
from http_connections import ConnectionPool, OpenResponse
from tests.raw_server import SLOW_ANSWERS, Serve, raw_server, silent

CERTIFICATE = Path(__file__).parent / "server" / "tls" / "certificate.pem"
LIMIT_S, SLACK_S = 0.4, 1.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def pool_of(port: int, path: str = "") -> ConnectionPool:
    return ConnectionPool(f"http://127.0.0.1:{port}{path}", connect_timeout_s=5, max_kept=4)


def tls_pool_of(port: int) -> ConnectionPool:
    trusted = ssl.create_default_context(cafile=CERTIFICATE)
    return ConnectionPool(f"https://127.0.0.1:{port}", connect_timeout_s=5, max_kept=4, trusted=trusted)


def over_tls(serve: Serve) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))

    def serve_tls(connection: socket.socket, stopped: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            serve(secure, stopped)

    return serve_tls


def answering(*answers: bytes) -> tuple[Serve, list[bytes]]:
    """Sends the next of `answers` to each request on a connection, then closes it. Records the requests."""
    requests: list[bytes] = []

    def serve(connection: socket.socket, _: threading.Event) -> None:
        for answer in answers:
            request = b""
            while not _is_complete(request):
                data = connection.recv(65536)
                if not data:
                    return
                request += data
            requests.append(request)
            connection.sendall(answer)

    return serve, requests


def _is_complete(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return bool(end) and len(body) == int(length[1] if length else 0)


@pytest.mark.parametrize("serve", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
def test_a_call_ends_within_the_limit_however_slowly_the_server_answers(serve: Serve) -> None:
    with raw_server(serve) as port:
        started_at = time.monotonic()
        with pytest.raises(TimeoutError), time_limit(LIMIT_S):
            pool_of(port).call("GET", "/", timeout_s=30)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_a_server_that_does_not_read_an_upload_does_not_hold_the_call_either() -> None:
    with raw_server(silent) as port:
        started_at = time.monotonic()
        with pytest.raises(TimeoutError), time_limit(LIMIT_S):
            pool_of(port).call("POST", "/", timeout_s=30, body=b"x" * 50_000_000)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_each_operation_has_its_own_timeout() -> None:
    with raw_server(silent) as port, time_limit(60), pytest.raises(TimeoutError):
        pool_of(port).call("GET", "/", timeout_s=0.1)


def test_a_tls_handshake_keeps_to_the_limit() -> None:
    with raw_server(silent) as port:
        pool = ConnectionPool(f"https://127.0.0.1:{port}", connect_timeout_s=30, max_kept=4)
        started_at = time.monotonic()
        with pytest.raises(TimeoutError), time_limit(LIMIT_S):
            pool.call("GET", "/", timeout_s=30)
        assert time.monotonic() - started_at < LIMIT_S + SLACK_S


def test_a_secret_query_and_the_headers_are_sent_and_are_in_no_error() -> None:
    serve, requests = answering(OK, b"")
    with raw_server(serve) as port:
        pool = ConnectionPool(
            f"http://127.0.0.1:{port}/comfy",
            connect_timeout_s=5,
            max_kept=4,
            headers={"Authorization": "Bearer t0ken"},
            secret_query="token=s3cret",
        )
        pool.call("GET", "/view?a=b", timeout_s=5)
        with pytest.raises(ConnectionError) as caught:
            pool.call("POST", "/prompt", timeout_s=5, body=b"{}")
        assert "s3cret" not in repr(caught.value)
        assert "t0ken" not in repr(caught.value)
    heads = [request.decode().split("\r\n") for request in requests]
    assert [head[0] for head in heads] == [
        "GET /comfy/view?a=b&token=s3cret HTTP/1.1",
        "POST /comfy/prompt?token=s3cret HTTP/1.1",
    ]
    assert {f"Host: 127.0.0.1:{port}", "Authorization: Bearer t0ken"} <= set(heads[0])
    assert heads[1][-1] == "{}"
    assert "Content-Length: 2" in heads[1]


@pytest.mark.parametrize(
    ("answer", "content", "is_kept"),
    [
        (OK, b"ok", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok", True),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
            b"abc0123456789",
            True,
        ),
    ],
)
def test_a_response_ends_where_its_head_says_and_its_connection_is_used_again(
    answer: bytes, content: bytes, is_kept: bool
) -> None:
    connections: list[socket.socket] = []
    answer_to, _ = answering(answer, OK)

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        connections.append(connection)
        if not is_kept:
            answering(answer)[0](connection, stopped)
        else:
            answer_to(connection, stopped)

    with raw_server(serve) as port:
        pool = pool_of(port)
        assert pool.call("GET", "/", timeout_s=5).content == content
        pool.call("GET", "/", timeout_s=5)
        assert len(connections) == (1 if is_kept else 2)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"",
    ],
)
def test_an_answer_that_is_cut_or_is_no_http_is_an_error(answer: bytes) -> None:
    serve, _ = answering(answer)
    with raw_server(serve) as port, pytest.raises((HTTPException, ConnectionError)):
        pool_of(port).call("GET", "/", timeout_s=5)


def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        answering(OK)[0](connection, stopped)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with raw_server(serve) as port:
        pool = pool_of(port)
        for _ in range(3):
            assert pool.call("POST", "/prompt", timeout_s=5, body=b"{}").status == 200
            assert closed.wait(90)
            closed.clear()


def test_a_call_that_met_a_closing_connection_is_repeated_on_a_new_one() -> None:
    """A proxy closes connections that are equally old at the same moment."""
    all_connected, connections = threading.Barrier(3), itertools.count()

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        if next(connections) < all_connected.parties:
            connection.recv(65536)
            all_connected.wait(5)
            connection.sendall(OK)
            connection.recv(65536)  # closed in answer to the next request
        else:
            answering(OK)[0](connection, stopped)

    with raw_server(serve) as port, ThreadPoolExecutor(3) as threads:
        pool = pool_of(port)
        for call in [threads.submit(pool.call, "GET", "/", timeout_s=5) for _ in range(3)]:
            assert call.result(5).content == b"ok"
        with pytest.raises(ConnectionError):
            pool.call("GET", "/", timeout_s=5)
        assert pool.call("GET", "/", timeout_s=5).content == b"ok"


def test_an_interim_response_is_never_followed_by_one_that_belongs_to_another_call() -> None:
    may_end, connections = threading.Event(), itertools.count()

    def serve(connection: socket.socket, stopped: threading.Event) -> None:
        if next(connections) == 0:
            answering(b"HTTP/1.1 103 Early Hints\r\n\r\n")[0](connection, stopped)
            may_end.wait(5)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        else:
            answering(OK)[0](connection, stopped)

    with raw_server(serve) as port:
        pool = pool_of(port)
        assert pool.call("GET", "/", timeout_s=5).status == 103
        assert pool.call("GET", "/", timeout_s=5).content == b"ok"
        may_end.set()


@pytest.mark.parametrize("body", [None, b"x" * 5_000_000], ids=["small", "large"])
def test_a_tls_connection_that_ends_before_the_answer_is_a_closed_connection(body: bytes | None) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(1000)

    with raw_server(over_tls(serve)) as port, pytest.raises(ConnectionError):
        tls_pool_of(port).call("POST", "/", timeout_s=5, body=body)


def test_a_server_that_refuses_a_large_body_over_tls_is_heard() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    with raw_server(over_tls(serve)) as port:
        assert tls_pool_of(port).call("POST", "/", timeout_s=5, body=b"x" * 5_000_000).status == 413


@pytest.mark.parametrize(
    ("path", "sent"), [("/bü ro", "/b%C3%BC%20ro"), ("/a%20b", "/a%20b"), ('/"<|', "/%22%3C%7C"), ("", "")]
)
def test_the_path_of_the_url_is_sent_encoded(path: str, sent: str) -> None:
    serve, requests = answering(OK)
    with raw_server(serve) as port:
        pool_of(port, path).call("GET", "/queue", timeout_s=5)
    assert requests[0].startswith(f"GET {sent}/queue HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["gpu..example", "x" * 70 + ".example", "no-such-host.invalid"])
def test_a_host_that_cannot_be_is_an_error_that_says_so(scheme: str, host: str) -> None:
    http = ComfyuiHttp(f"{scheme}://{host}", connect_timeout_s=5)
    with pytest.raises(EngineUnreachable, match="its host name cannot be resolved"):
        http.queue()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_the_answer_of_a_proxy_is_named_and_is_no_sign_of_life_of_comfyui(status: int) -> None:
    serve, _ = answering(b"HTTP/1.1 %d Bad\r\nContent-Length: 6\r\n\r\n<html>" % status, OK)
    with raw_server(serve) as port:
        http = ComfyuiHttp(f"http://127.0.0.1:{port}", connect_timeout_s=5)
        with pytest.raises(EngineUnreachable, match=f"A proxy in front of ComfyUI at .* answered {status}"):
            http.queue()
        assert http.answered_at == -math.inf
        with pytest.raises(EngineUnreachable, match="may not be ComfyUI"):
            http.queue()
        assert http.answered_at > 0


def test_a_certificate_that_is_not_trusted_is_named_as_the_reason_whatever_the_environment_trusts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(CERTIFICATE))
    with raw_server(over_tls(answering(OK)[0])) as port:
        engine = Engine(f"https://127.0.0.1:{port}", connect_timeout_s=5)
        for call in (engine.queue, engine.connect):
            with pytest.raises(EngineUnreachable, match=r"its certificate is not accepted \(self-signed"):
                call()


def test_a_server_that_refuses_a_large_body_before_it_has_read_it_is_heard() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    with raw_server(serve) as port:
        assert pool_of(port).call("POST", "/", timeout_s=5, body=b"x" * 5_000_000).status == 413


def test_repeated_headers_are_kept_and_a_redirect_is_returned_as_it_is() -> None:
    serve, _ = answering(
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    with raw_server(serve) as port:
        response = pool_of(port).call("GET", "/", timeout_s=5)
    assert (response.status, response.headers["location"]) == (302, "http://[")
    assert response.headers.get_all("www-authenticate") == ["Basic", "Bearer"]


def test_closing_leaves_no_connection_and_the_pool_can_still_be_used() -> None:
    serve, _ = answering(OK, OK, OK)
    with raw_server(serve) as port:
        pool = pool_of(port)
        pool.call("GET", "/", timeout_s=5)
        pool.close()
        assert pool.call("GET", "/", timeout_s=5).content == b"ok"
        pool.close()


# --- responses that are read in parts ----------------------------------------------------------------


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (OK, 2),
        (CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", None),
        (b"HTTP/1.0 200 OK\r\n\r\nok", None),
    ],
)
def test_an_open_response_is_read_to_its_end(answer: bytes, length: int | None) -> None:
    serve, _ = answering(answer)
    with raw_server(serve) as port:
        response = pool_of(port).open("GET", "/", timeout_s=5)
        assert (response.status, response.length) == (200, length)
        parts = []
        while part := response.read1(1):
            parts.append(part)
        assert parts == [b"o", b"k"]
        assert response.read1(1) == b""
        response.close()


def test_a_part_is_there_before_the_next_one_is_sent() -> None:
    proceed = threading.Event()

    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(CHUNKED + b"5\r\nfirst\r\n")
        proceed.wait(10)
        connection.sendall(b"4\r\nlast\r\n0\r\n\r\n")

    with raw_server(serve) as port:
        response = pool_of(port).open("GET", "/", timeout_s=10)
        assert response.read1(100) == b"first"
        proceed.set()
        assert response.read1(100) == b"last"
        response.close()


def read_all(response: OpenResponse) -> None:
    while response.read1(100):
        pass


@pytest.mark.parametrize("answer", [OK[:-1], CHUNKED + b"5\r\nha", CHUNKED + b"2\r\nok\r\n", CHUNKED])
def test_an_open_response_that_is_cut_is_an_error(answer: bytes) -> None:
    serve, _ = answering(answer)
    with raw_server(serve) as port:
        response = pool_of(port).open("GET", "/", timeout_s=5)
        with pytest.raises((OSError, HTTPException)):
            read_all(response)
        response.close()


def test_a_response_that_was_read_gives_its_connection_back_and_another_one_closes_it() -> None:
    serve, requests = answering(OK, OK, OK)
    with raw_server(serve) as port:
        pool = pool_of(port)
        for _ in range(2):
            response = pool.open("POST", "/", timeout_s=5, body=[b"a", b"b"], headers={"Content-Length": "2"})
            read_all(response)
            response.close()
            response.close()
        assert len(pool._kept) == 1
        pool.open("GET", "/", timeout_s=5).close()
        assert pool._kept == []
    assert [request.endswith(b"\r\n\r\nab") for request in requests[:2]] == [True, True]


def test_before_each_read_the_caller_may_end_the_call() -> None:
    class Ended(Exception):
        pass

    seen: list[bool] = []

    def before_recv(sock: socket.socket) -> None:
        seen.append(sock.fileno() > 0)
        if len(seen) > 1:
            raise Ended
        poll = select.poll()  # select takes no descriptor above 1023
        poll.register(sock, select.POLLIN)
        poll.poll()

    serve, _ = answering(CHUNKED + b"2\r\nok\r\n")
    with raw_server(serve) as port:
        pool = pool_of(port)
        response = pool.open("GET", "/", timeout_s=5, before_recv=before_recv)
        with pytest.raises(Ended):
            read_all(response)
        response.close()
        assert all(seen)


def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    serve, requests = answering(OK, OK)
    with raw_server(serve) as port:
        pool = ConnectionPool(f"http://127.0.0.1:{port}", connect_timeout_s=5, max_kept=4, max_idle_s=0)
        pool.call("GET", "/", timeout_s=5)
        pool.call("GET", "/", timeout_s=5)
        assert len(pool._kept) == 1
    assert len(requests) == 2


def test_connections_that_were_idle_for_long_are_closed_though_newer_ones_are_used() -> None:
    serve, _ = answering(*[OK] * 4)
    with raw_server(serve) as port:
        pool = ConnectionPool(f"http://127.0.0.1:{port}", connect_timeout_s=5, max_kept=4, max_idle_s=0.5)
        responses = [pool.open("GET", "/", timeout_s=5) for _ in range(4)]
        for response in responses:
            while response.read1(10):
                pass
            response.close()
        older = [connection for connection, _ in pool._kept[:3]]
        pool._kept[:3] = [(connection, time.monotonic() - 1) for connection in older]
        pool.call("GET", "/", timeout_s=5)
        assert len(pool._kept) == 1
        assert [connection.sock for connection in older] == [None] * 3


@pytest.mark.parametrize("uses_tls", [False, True])
def test_the_caller_is_asked_while_a_server_does_not_read(uses_tls: bool) -> None:
    class HungUp(Exception):
        pass

    asked: list[socket.socket] = []

    def before_send(sock: socket.socket) -> None:
        asked.append(sock)
        raise HungUp

    with raw_server(over_tls(silent) if uses_tls else silent) as port:
        pool = tls_pool_of(port) if uses_tls else pool_of(port)
        body = b"x" * 100_000_000
        with pytest.raises(HungUp):
            pool.open("POST", "/", timeout_s=60, body=body, before_send=before_send)
        assert asked[0].fileno() == -1


@pytest.mark.parametrize("uses_tls", [False, True])
def test_a_body_that_is_sent_in_pieces_arrives_whole(uses_tls: bool) -> None:
    body = bytes(range(256)) * 40_000
    serve, requests = answering(OK)
    waits = 0

    def before_send(sock: socket.socket) -> None:
        nonlocal waits
        waits += 1
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(5000)

    with raw_server(over_tls(serve) if uses_tls else serve) as port:
        pool = tls_pool_of(port) if uses_tls else pool_of(port)
        headers = {"Content-Length": str(len(body))}
        blocks = (body[start : start + 65536] for start in range(0, len(body), 65536))
        response = pool.open("POST", "/", timeout_s=5, body=blocks, headers=headers, before_send=before_send)
        assert response.read1(10) == b"ok"
        response.close()
    assert requests[0].partition(b"\r\n\r\n")[2] == body
    assert waits
