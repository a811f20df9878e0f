"""A server that may open no more files, or start no more threads, says so, and blames no engine, no LLM server and no
client."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask, Request
from werkzeug.test import EnvironBuilder

from api.connection import _Deadlines, read_body
from arbiter.monitor import Monitor, QuickCheck
from engine import Engine, EngineSelector
from engine.watchdog import Limits, Watchdog
from errors import (
    EaselError,
    EngineUnreachable,
    ImageUrlFailed,
    OutOfMemory,
    StackUnreachable,
    StoreFull,
    TooManyFiles,
)
from gpu_tenant import Resident, Tenant
from llm.http import LlmHttp
from pictures.fetch import fetch_image
from server.worker import _ThreadPool
from sketch import SharedFiles, SketchSupervisor
from system_errors import shortage_as
from tests.conftest import MakeApp
from tests.waiting import TIMEOUT_S, wait_until


@contextlib.contextmanager
def no_file_left() -> Iterator[None]:
    """This process can open no file, no connection and no pipe."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


CALLS: dict[str, Callable[[Engine], object]] = {
    "stats": Engine.stats,
    "queue": Engine.queue,
    "socket": Engine.connect,
    "upload": lambda engine: engine.upload(b"x", "x.png"),
}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("call", list(CALLS))
def test_an_engine_is_not_called_unreachable_if_no_file_can_be_opened(
    silent: str, host: str, call: str
) -> None:
    socket.getaddrinfo(host, 80)  # imports what it needs
    engine = Engine(silent.replace("127.0.0.1", host), connect_timeout_s=0.2)
    with no_file_left(), pytest.raises(TooManyFiles) as caught:
        CALLS[call](engine)
    assert isinstance(caught.value, EngineUnreachable)  # so that those who wait for an engine go on waiting
    assert caught.value.code == "server.too_many_files"


def test_an_llm_server_is_not_called_unreachable_either(silent: str) -> None:
    http = LlmHttp("llama", silent, key="", key_header="", connect_timeout_s=0.2)
    with no_file_left(), pytest.raises(TooManyFiles) as caught:
        http.send("GET", "/models", timeout_s=0.2)
    assert isinstance(caught.value, StackUnreachable)


def test_a_picture_url_is_not_blamed_either(silent: str) -> None:
    options = {"resolve": lambda host, port: ["127.0.0.1"], "is_public": lambda ip: True}
    with pytest.raises(ImageUrlFailed):
        fetch_image(silent, max_bytes=10, timeout_s=0.2, **options)  # type: ignore[arg-type]
    with no_file_left(), pytest.raises(TooManyFiles):
        fetch_image(silent, max_bytes=10, timeout_s=5, **options)  # type: ignore[arg-type]
    socket.getaddrinfo("localhost", 80)
    with no_file_left(), pytest.raises(TooManyFiles):
        fetch_image("http://no-such-host.invalid/a.png", max_bytes=10, timeout_s=30)


def test_a_shortage_can_be_an_error_of_the_engine_too() -> None:
    error = shortage_as(EngineUnreachable, RuntimeError("can't start new thread"))
    assert isinstance(error, OutOfMemory)
    assert isinstance(error, EngineUnreachable)
    assert shortage_as(EngineUnreachable, ConnectionRefusedError()) is None


def test_without_more_threads_a_request_waits_for_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, begun = threading.Event(), threading.Event()

    def occupy() -> str:
        begun.set()
        may_end.wait()
        return "first"

    with _ThreadPool(max_workers=2) as pool:
        first = pool.submit(occupy)
        begun.wait()
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        second = pool.submit(lambda: "second")
        may_end.set()
        assert (first.result(60), second.result(60)) == ("first", "second")
    with _ThreadPool(max_workers=2) as empty, pytest.raises(RuntimeError, match="can't start new thread"):
        empty.submit(lambda: "nobody runs it")


def no_thread(self: threading.Thread) -> None:
    """In place of `Thread.start`"""
    raise RuntimeError("can't start new thread")


class LoadedLlm:
    """A tenant with one LLM."""

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        return (Resident("llama", "chat"),)


def test_a_check_of_the_tenants_that_could_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(None, lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            monitor.poll(1, may_start=True)
    observation = wait_until(lambda: monitor.poll(1, may_start=True))
    assert observation.is_engine_down


def test_a_check_of_the_llms_that_could_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check = QuickCheck(cast(Tenant, LoadedLlm()))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            check.run()
    assert check.run() == (Resident("llama", "chat"),)


def test_a_deadline_that_could_not_be_watched_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection serves other requests later."""
    deadlines, called, other = _Deadlines(), threading.Event(), threading.Event()
    monkeypatch.setattr("api.connection._DEADLINE_POLL_INTERVAL_S", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError), deadlines.call_after(0, called.set):
            pass
    with deadlines.call_after(0, other.set):
        assert other.wait(TIMEOUT_S)
    assert not called.is_set()


def test_a_status_without_probes_says_why(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_app().test_client()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        problem = client.get("/api/comfyui/status").json["problem"]
    assert problem["code"] == "server.out_of_memory"
    assert "cannot start more threads" in problem["message"]
    wait_until(lambda: client.get("/api/comfyui/status").json["problem"] is None)


def test_a_shortage_that_lasts_while_a_job_runs_keeps_its_name() -> None:
    watchdog = Watchdog("job", Limits(stall_timeout_s=9, idle_timeout_s=9, unreachable_timeout_s=5), now=0)
    error = shortage_as(EngineUnreachable, OSError(errno.EMFILE, "too many"))
    assert error is not None
    assert watchdog.check_unreachable(1, error) is None
    assert watchdog.check_unreachable(6, error) is error


def test_the_choice_of_an_engine_does_not_fall_back_to_another_one(tmp_path: Path, silent: str) -> None:
    (tmp_path / "engine-seen.json").write_text(f'{{"url": "{silent}"}}')
    selector = EngineSelector(
        None, sketch_url=lambda: "http://127.0.0.1:1", state_dir=tmp_path, probe_urls=[silent]
    )
    with no_file_left(), pytest.raises(TooManyFiles):
        selector.current()
    assert selector.current().url == silent


def test_the_address_of_the_sketch_engine_is_not_called_lost(tmp_path: Path) -> None:
    files = SharedFiles(tmp_path / "nodes.json", tmp_path / "files.json")
    supervisor = SketchSupervisor(
        files, url_file=tmp_path / "url", folder=tmp_path / "sketch", prepare=lambda: None
    )
    (tmp_path / "url").write_text("http://127.0.0.1:1234")
    with no_file_left(), pytest.raises(TooManyFiles):
        supervisor.url()
    assert supervisor.url() == "http://127.0.0.1:1234"
    with no_file_left():  # it is read only if it has changed
        assert supervisor.url() == "http://127.0.0.1:1234"


class FailingBody:
    """A body whose bytes cannot be received."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def read(self, *_: Any) -> bytes:
        raise self._error

    readinto = readline = read


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), StoreFull),
        (OSError(errno.EMFILE, "many"), TooManyFiles),
        (MemoryError(), OutOfMemory),
    ],
)
def test_a_body_that_this_server_cannot_take_is_not_blamed_on_the_client(
    error: Exception, expected: type[EaselError]
) -> None:
    environ = EnvironBuilder(method="POST", data=b"0123456789").get_environ()
    environ["wsgi.input"] = FailingBody(error)
    with Flask("x").app_context(), pytest.raises(expected):
        read_body(Request(environ))


def test_the_other_uploads_are_erased_if_one_cannot_be() -> None:
    engine = Engine("http://127.0.0.1:1")
    tried: list[tuple[str, bool]] = []

    def upload(data: bytes, name: str, subfolder: str, timeout_s: float) -> None:
        tried.append((name, threading.current_thread().name == "easel-erase"))
        if name == "b":
            raise EngineUnreachable("gone")
        if name == "c":
            raise OSError(errno.EMFILE, "many")

    engine._http.upload = upload  # type: ignore[method-assign]
    engine.erase_uploads(["a", "b", "c", "d"])
    assert tried == [(name, True) for name in "abcd"]
