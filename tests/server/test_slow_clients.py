"""Clients that send slowly, partly or nothing: nobody else waits for them, and they are closed.

The deadlines are three seconds here instead of 10 and 15, so tests that wait for one take longer than that."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from server.worker import max_connections
from tests.conftest import ROOT
from tests.server.attacks import (
    BODY_WITHOUT_ROUTE,
    HALF_BODY,
    HALF_HEAD,
    HEAD,
    NEVER_CLOSES,
    address,
    attack,
    connect,
    drip,
    health_times,
    open_connections,
    read_to_end,
    summary,
)
from tests.server.running import Server, running, started
from tests.waiting import wait_until

TLS = Path(__file__).with_name("tls")
HEALTHY_S = 0.1


def with_short_deadlines(folder: Path, *more: str) -> str:
    """gunicorn's options for a server with deadlines of three seconds; `more`: further lines of its configuration."""
    config = folder / "short_deadlines.conf.py"
    lines = [
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())",
        "import server.worker",
        "server.worker.HEAD_TIMEOUT_S = server.worker.BODY_IDLE_TIMEOUT_S = 3",
        *more,
    ]
    config.write_text("\n".join(lines))
    return f"--config {config}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sketch_url: str) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    options = with_short_deadlines(folder)
    with running(folder / "state", EASEL_ENGINE_URL=sketch_url, GUNICORN_CMD_ARGS=options) as one:
        yield one


@pytest.mark.parametrize(
    ("data", "count", "is_dripping", "answer"),
    [
        pytest.param(HALF_HEAD, 260, True, b"408", id="260 dripping heads"),
        pytest.param(HALF_HEAD, 1500, True, b"408", id="1500 dripping heads"),
        pytest.param(HALF_BODY, 260, False, b"408", id="260 half bodies"),
        pytest.param(b"", 2100, False, b"", id="2100 idle sockets"),
        pytest.param(BODY_WITHOUT_ROUTE, 260, False, b"404", id="260 half bodies for no route"),
        pytest.param(NEVER_CLOSES, 260, False, b"200", id="260 clients that do not close"),
    ],
)
def test_nobody_waits_for_incomplete_requests(
    server: Server, data: bytes, count: int, is_dripping: bool, answer: bytes
) -> None:
    before = health_times(server)
    with attack(server, data, count) as connections:
        if is_dripping:
            drip(connections)
        during = health_times(server)
        picture = server.draw()
        if is_dripping:
            drip(connections)
        print(f"/health before: {summary(before)}; with {count} of them: {summary(during)}")
        # On a machine that is busy with other tests even an idle server may take longer. gunicorn's own worker takes
        # seconds.
        assert statistics.median(during) < max(HEALTHY_S, 10 * statistics.median(before))
        assert picture.status_code == 200
        answers = {read_to_end(connection)[9:12] for connection in connections}
        assert answers == {answer}


def test_an_incomplete_head_is_answered_with_the_envelope(server: Server) -> None:
    with connect(server, HALF_HEAD) as connection:
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
    assert b"x-should-retry: false" in head
    assert b"Connection: close" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["message"]) == (
        "request.head_timeout",
        "The head of the request did not arrive within 3 s.",
    )


def test_the_next_request_on_a_kept_connection_has_the_same_deadline(server: Server) -> None:
    with connect(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea") as connection:
        response = read_to_end(connection)
    assert response.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in response


def test_a_body_that_stops_gets_the_body_timeout(server: Server) -> None:
    with connect(server, HALF_BODY) as connection:
        assert b"request.body_timeout" in read_to_end(connection)


def test_a_small_body_that_nobody_wants_is_refused_soon(server: Server) -> None:
    times = []
    for _ in range(5):
        started_at = time.monotonic()
        with connect(server, BODY_WITHOUT_ROUTE) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 404")
        times.append(time.monotonic() - started_at)
    # The loop wakes once a second otherwise; on a busy machine some attempts may take long.
    assert min(times) < 0.9


def test_a_head_that_is_too_large_is_431(server: Server) -> None:
    with connect(
        server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000
    ) as connection:
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431")
    assert json.loads(body)["error"]["code"] == "request.malformed"


# --- complete requests in every form ---------------------------------------------------------------


def test_a_head_of_40_kilobytes_is_accepted(server: Server) -> None:
    headers = {f"X-Header-{number}": "a" * 4000 for number in range(10)}
    assert requests.get(f"{server.url}/health", headers=headers, timeout=20).status_code == 200


def test_a_request_that_arrives_byte_by_byte_is_answered(server: Server) -> None:
    body = b'{"prompt": "a cat", "size": "256x256"}'
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body:
            connection.sendall(bytes([byte]))
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    one = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    last = one % b"nope" + b"Connection: close\r\n\r\n"
    with connect(
        server, one % b"health" + b"\r\n" + chunked + one % b"v1/models" + b"\r\n" + last
    ) as connection:
        response = read_to_end(connection)
    assert [part[:3] for part in response.split(b"HTTP/1.1 ")[1:]] == [b"200", b"422", b"200", b"404"]


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    with connect(server, b"GET /health HTTP/1.0\r\n\r\n") as connection:
        assert read_to_end(connection).endswith(b'{"status":"ok"}\n')


def test_expect_100_continue_is_answered_once_and_only_if_the_body_is_wanted(server: Server) -> None:
    body = b'{"prompt": "a cat", "size": "256x256"}'
    fields = b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(server, HEAD + fields) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    with connect(server, HEAD.replace(b"generations", b"nope") + fields) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_a_connection_is_kept_for_further_requests(server: Server) -> None:
    client = http.client.HTTPConnection(*address(server))
    client.connect()
    assert client.sock is not None
    port = client.sock.getsockname()[1]
    for _ in range(3):
        body = json.dumps({"prompt": "", "padding": "a" * 300_000})
        client.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        response = client.getresponse()
        assert (response.status, b"image.prompt_required" in response.read()) == (422, True)
        assert client.sock.getsockname()[1] == port
    client.close()


def test_large_bodies_leave_no_files(server: Server, tmp_path: Path) -> None:
    listing = wait_until(lambda: server.workers())
    with connect(server, HEAD + b"Content-Length: 900000\r\n\r\n" + b"{" * 500_000):
        # A file without a name: the link of its descriptor ends with "(deleted)".
        wait_until(lambda: any(deleted_files(pid) for pid in listing))
    wait_until(lambda: not any(deleted_files(pid) for pid in listing))


def deleted_files(pid: int) -> list[str]:
    """Files of a state directory that have no name."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if "/state/" in link and link.endswith("(deleted)")]


# --- limits ----------------------------------------------------------------------------------------


def test_a_full_worker_drops_the_oldest_idle_connection_and_no_request(
    tmp_path: Path, sketch_url: str
) -> None:
    options = with_short_deadlines(
        tmp_path,
        "worker_connections = 20",
        "server.worker.HEAD_TIMEOUT_S = server.worker.BODY_IDLE_TIMEOUT_S = 60",
    )
    variables = {
        "EASEL_WORKERS": "1",
        "EASEL_THREADS": "8",
        "EASEL_MAX_WAITING": "4",
        "EASEL_ENGINE_URL": sketch_url,
    }
    body = b'{"prompt": "a cat", "size": "256x256"}'
    with running(tmp_path / "state", GUNICORN_CMD_ARGS=options, **variables) as server:
        first = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        with connect(server, first + body[:5]) as in_progress, attack(server, b"", 60) as idle:
            assert read_to_end(idle[0]) == b""  # dropped
            assert requests.get(f"{server.url}/health", timeout=20).status_code == 200
            in_progress.sendall(body[5:])
            assert read_to_end(in_progress).startswith(b"HTTP/1.1 200")
            idle[-1].sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b" 200 OK" in read_to_end(idle[-1])


def test_a_client_may_open_only_so_many_connections(tmp_path: Path, sketch_url: str) -> None:
    variables = {"EASEL_WORKERS": "1", "EASEL_ENGINE_URL": sketch_url, "EASEL_MAX_CLIENT_CONNECTIONS": "5"}
    with running(tmp_path / "state", **variables) as server:
        # The request that found the server running counts until the server has closed it: the fifth of the others would
        # be refused.
        wait_until(lambda: open_connections(server) == 0)
        with attack(server, b"", 5) as connections:
            response = requests.get(f"{server.url}/health", timeout=20)
            assert (response.status_code, response.json()["error"]["code"]) == (
                429,
                "server.too_many_connections",
            )
            connections[0].close()
            wait_until(lambda: requests.get(f"{server.url}/health", timeout=20).status_code == 200)


@pytest.mark.parametrize("proxies", ["127.0.0.1", "127.0.0.0/8"])
def test_trusted_proxies_may_open_any_number_of_connections(
    tmp_path: Path, sketch_url: str, proxies: str
) -> None:
    variables = {"EASEL_WORKERS": "1", "EASEL_ENGINE_URL": sketch_url, "EASEL_MAX_CLIENT_CONNECTIONS": "5"}
    with (
        running(tmp_path / "state", EASEL_TRUSTED_PROXIES=proxies, **variables) as server,
        attack(server, b"", 20),
    ):
        assert requests.get(f"{server.url}/health", timeout=20).status_code == 200


def test_the_limit_of_connections_leaves_files_for_pictures() -> None:
    assert max_connections(1_048_576, threads=128) == 8192
    assert max_connections(1024, threads=128) == 256
    assert max_connections(256, threads=128) == 64
    assert max_connections(64, threads=128) == 16


def test_bodies_that_fill_a_worker_make_room_for_others(tmp_path: Path, sketch_url: str) -> None:
    options = with_short_deadlines(
        tmp_path, "worker_connections = 20", "server.worker.BODY_IDLE_TIMEOUT_S = 60"
    )
    variables = {"EASEL_WORKERS": "1", "EASEL_ENGINE_URL": sketch_url, "GUNICORN_CMD_ARGS": options}
    with running(tmp_path / "state", **variables) as server, attack(server, HALF_BODY, 60) as bodies:
        assert b"queue.full" in read_to_end(bodies[0])
        assert server.draw().status_code == 200


def test_responses_that_are_not_read_are_cut_when_requests_wait_for_a_thread(
    tmp_path: Path, sketch_url: str
) -> None:
    """gunicorn's own worker would wait for each of them in a thread, for a minute."""
    variables = {
        "EASEL_WORKERS": "1",
        "EASEL_THREADS": "8",
        "EASEL_MAX_WAITING": "4",
        "EASEL_ENGINE_URL": sketch_url,
    }
    with running(tmp_path / "state", **variables) as server, contextlib.ExitStack() as stack:
        for _ in range(16):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address(server))
            client.setblocking(False)
            client.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        # Until then there is room in the buffers of the sockets.
        sent = -1
        while sent < (sent := server.log.count("/openapi.json 200")):
            time.sleep(1.5)
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        assert server.draw(timeout=30).status_code == 200


def test_bodies_that_cannot_be_stored_leave_threads_for_others(tmp_path: Path, sketch_url: str) -> None:
    # A limit of the size of files stands for a full disk: writing fails the same way, in every folder.
    options = with_short_deadlines(
        tmp_path,
        "server.worker.BODY_IDLE_TIMEOUT_S = 60",
        "import resource",
        "def post_worker_init(worker):",
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))",
        "    _hooks.post_worker_init(worker)",
    )
    variables = {
        "EASEL_WORKERS": "1",
        "EASEL_THREADS": "8",
        "EASEL_MAX_WAITING": "4",
        "EASEL_ENGINE_URL": sketch_url,
    }
    half = HEAD.replace(b"generations", b"edits") + b"Content-Length: 900000\r\n\r\n" + b" " * 500_000
    with (
        running(tmp_path / "state", GUNICORN_CMD_ARGS=options, **variables) as server,
        attack(server, half, 12) as bodies,
    ):
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        assert server.draw().status_code == 200
        assert b"HTTP/1.1 507" in read_to_end(bodies[-1])
        bodies[0].sendall(b" " * 400_000)
        assert b"HTTP/1.1 400" in bodies[0].recv(65536)


def test_a_large_body_is_received_next_to_others(server: Server) -> None:
    body = b"{" + b" " * 20_000_000
    head = HEAD.replace(b"generations", b"edits") + b"Content-Length: %d\r\n\r\n" % len(body)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server, head + body[:-1])) for _ in range(3)]
        for client in clients:
            client.sendall(body[-1:])
            client.shutdown(socket.SHUT_WR)
            assert b"is not valid JSON" in read_to_end(client)


# --- TLS -------------------------------------------------------------------------------------------


def test_unfinished_tls_handshakes_cost_no_thread(tmp_path: Path, sketch_url: str) -> None:
    """gunicorn's own worker would wait for each of them in a thread, without an end."""
    options = with_short_deadlines(tmp_path)
    options += f" --certfile {TLS / 'certificate.pem'} --keyfile {TLS / 'key.pem'}"
    variables = {
        "EASEL_WORKERS": "1",
        "EASEL_THREADS": "8",
        "EASEL_MAX_WAITING": "4",
        "EASEL_ENGINE_URL": sketch_url,
    }
    with started(tmp_path / "state", GUNICORN_CMD_ARGS=options, **variables) as server:
        server.url = server.wait_for(r"Easel is at (https://\S+)")[1]
        server.wait_for("Booting worker")
        half_hello = b"\x16\x03\x01\x02\x00\x01"
        with attack(server, half_hello, 30) as half, attack(server, b"", 30) as silent:
            with requests.Session() as session:
                session.trust_env = False  # REQUESTS_CA_BUNDLE would replace `verify`
                session.verify = str(TLS / "certificate.pem")
                assert session.get(f"{server.url}/health", timeout=20).status_code == 200
                body = {"prompt": "", "padding": "a" * 300_000}
                for _ in range(2):
                    response = session.post(f"{server.url}/v1/images/generations", json=body, timeout=20)
                    assert response.json()["error"]["code"] == "image.prompt_required"
            context = ssl.create_default_context(cafile=str(TLS / "certificate.pem"))
            with context.wrap_socket(connect(server), server_hostname="localhost") as connection:
                connection.sendall(HALF_HEAD)
                assert connection.recv(65536).startswith(b"HTTP/1.1 408")
            assert {read_to_end(one) for one in [*half, *silent]} == {b""}


# --- heads that are not valid ----------------------------------------------------------------------

BODY = b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD + b"Transfer-Encoding: nonsense" + BODY, 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked" + BODY, 400),
        (HEAD + b"Transfer-Encoding: gzip" + BODY, 400),
        (HEAD + b"Transfer-Encoding: identity" + BODY, 400),
        (HEAD + b"Transfer-Encoding: chunked, chunked" + BODY, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked" + BODY, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 15" + BODY, 400),
        (HEAD + b"Transfer-Encoding : chunked" + BODY, 400),
        (HEAD + b"Transfer-Encoding:\x0bchunked" + BODY, 400),
        (HEAD + b"Content-Length: -5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: five\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello", 413),
        (HEAD + b"Expect: magic\r\nContent-Length: 5\r\n\r\nhello", 417),
        (b"GET /health HTTP/1.0\r\nTransfer-Encoding: chunked" + BODY, 400),
        (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400),
        (b"\r\n\r\n\r\n", 400),
        (b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /h\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX\x00: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ],
)
def test_a_head_that_is_not_valid_is_a_client_error_in_json(
    server: Server, request_bytes: bytes, status: int
) -> None:
    with connect(server, request_bytes) as connection:
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert json.loads(body)["error"]["code"] in ("request.malformed", "request.too_large")
