"""How the benchmark ends if it is ended early, used wrongly, or if something that it measures fails."""

from __future__ import annotations

import contextlib
import http.server
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from PIL import Image

from bench.__main__ import argument_parser, options_of, selected_measurements
from bench.clients import Drawn, GatewayRoute, check_all_new, fingerprint
from bench.equality import same_pixels
from bench.load import LoadGenerator
from bench.options import Options
from bench.testbed import open_engine, open_testbed
from bench.throughput import Meter
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
"""Only so that a run that hangs ends: on a busy machine a quick one takes minutes."""


def png(colour: int, size: int = 64) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (size, size), (colour, 0, 0)).save(encoded, "PNG")
    return encoded.getvalue()


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    """The URL of a server that answers every POST with 200 and `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_benchmark_that_is_ended_leaves_no_server_and_no_folder(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--only", "latency"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def gateway() -> str | None:
        logs = "".join(path.read_text() for path in tmp_path.glob("easel-bench-*/log"))
        found = re.search(r"Easel is at (\S+)", logs)
        return found[1] if found else None

    url = wait_until(gateway)
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=60)
    assert list(tmp_path.glob("easel-*")) == []


def test_ctrl_c_while_a_server_stops_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wait, interrupts = subprocess.Popen.wait, [KeyboardInterrupt()]

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is not None and interrupts:
            raise interrupts.pop()
        return wait(process, timeout)

    with contextlib.ExitStack() as stack:
        testbed = stack.enter_context(open_testbed(Options(sizes=[64])))
        process = testbed.server._process
        monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stack.close()
    assert process is not None
    assert process.poll() is not None
    assert list(tmp_path.glob("easel-bench-*")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "--sizes 0",
        "--sizes 65",
        "--sizes 4096",
        "--sizes 64,x",
        "--clients 0",
        "--clients -1",
        "--peer name",
        "--peer direct=http://127.0.0.1:1",
        "--peer a=http://127.0.0.1:1 --peer a=http://127.0.0.1:2",
        "--peer-model a=b",
        "--json /no-such-folder/numbers.json",
        "--only models",
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments: str) -> None:
    def read() -> None:
        parsed = argument_parser().parse_args(arguments.split())
        selected_measurements(options_of(parsed), parsed.only)

    with pytest.raises(SystemExit) as caught:
        read()
    assert caught.value.code not in (None, 0)


def test_a_process_that_does_not_exist_is_no_engine() -> None:
    with (
        open_engine(Options()) as sketch,
        pytest.raises(RuntimeError, match="no such process"),
        open_engine(Options(url=sketch.url, engine_pid=2**22 + 1)),
    ):
        pass


@pytest.mark.parametrize("body", [b"<html>busy</html>", b'{"error": {}}', b'{"data": []}', b'{"data": [{}]}'])
def test_a_server_that_sends_no_picture_is_named(body: bytes) -> None:
    with (
        answering(body) as url,
        contextlib.closing(GatewayRoute(url, {}, 64, name="other").open()) as client,
        pytest.raises(RuntimeError, match="other sent no picture"),
    ):
        client.draw(1)


def test_a_stream_that_ends_without_a_picture_is_not_measured() -> None:
    body = b'data: {"progress":50.0}\n\ndata: {"error":{"message":"out of memory"}}\n\n'
    with (
        answering(body) as url,
        contextlib.closing(GatewayRoute(url, {}, 64).open()) as client,
        pytest.raises(RuntimeError, match="no picture"),
    ):
        client.first_step_s(1)


def test_one_picture_for_two_seeds_is_no_measurement() -> None:
    large = bytearray(os.urandom(3_000_000))
    first = fingerprint(bytes(large))
    check_all_new("other", [first, fingerprint(bytes(large[1:])), fingerprint(png(1)), fingerprint(png(2))])
    with pytest.raises(RuntimeError, match="other sent the same picture"):
        check_all_new("other", [first, fingerprint(bytes(large))])


@dataclass(frozen=True)
class OnePicture:
    """A route and its client that always gives `picture`, or raises `error` when it is opened."""

    picture: bytes = b""
    error: str = ""
    name: str = "one"

    def open(self) -> OnePicture:
        if self.error:
            raise RuntimeError(self.error)
        return self

    def draw(self, seed: int) -> Drawn:
        return Drawn(self.picture, 0.001)

    def wire_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def test_two_commits_that_draw_different_pictures_are_noticed() -> None:
    same, other = OnePicture(png(1)), OnePicture(png(2))
    assert same_pixels([same, OnePicture(png(1))], 1)
    assert not same_pixels([same, other], 1)


@pytest.mark.parametrize(
    ("route", "message"),
    [(OnePicture(error="the server is away"), "is away"), (OnePicture(png(1)), "the same picture")],
)
def test_clients_that_fail_under_load_say_why_and_their_processes_end(
    route: OnePicture, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message), LoadGenerator() as load:
        load.run(route, 4, list(range(8)))  # type: ignore[arg-type]
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the CPU time of other processes in /proc")
def test_the_cpu_time_of_a_worker_that_has_ended_is_not_taken_for_zero() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    with open_engine(Options()) as engine, pytest.raises(RuntimeError, match="has ended"):
        Meter([process.pid], engine).read()
