"""Saving workflows into ComfyUI's user folder: the names that are allowed, and what becomes of a ComfyUI that refuses. What
works is in tests/contract/test_user_files.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from engine import Engine, workflow_file_name
from errors import (
    EngineAccessDenied,
    EngineUnreachable,
    InvalidValue,
    WorkflowExists,
    WorkflowNotSaved,
)

DATA = b'{"nodes": [], "links": []}'


class Refusing(ThreadingHTTPServer):
    """A server whose answers a test sets by method and route: (status, body). `files` are those of its user; `requests` are
    recorded. A store that is answered 400 leaves the first `kept_bytes` of the file, unless they are None."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, bytes]] = {
            "list": (200, b"[]"),
            "users": (200, b'{"storage": "server"}'),
        }
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.kept_bytes: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Refusing

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _name(self) -> str:
        name = unquote(unquote(self.path.partition("?")[0].removeprefix("/userdata/")))
        self.server.requests.append(f"{self.command} {name}")
        return name

    def do_GET(self) -> None:
        if self.path.startswith("/users"):
            self._answer(*self.server.answers["users"])
        elif self.path.startswith("/userdata?"):
            self._answer(*self.server.answers["list"])
        else:
            name = self._name()
            self._answer(200, self.server.files[name]) if name in self.server.files else self._answer(404)

    def do_POST(self) -> None:
        data, name = self.rfile.read(int(self.headers["Content-Length"])), self._name()
        if self.server.kept_bytes is not None:
            self.server.files[name] = data[: self.server.kept_bytes]
        self._answer(*self.server.answers["store"])

    def do_DELETE(self) -> None:
        self._answer(204 if self.server.files.pop(self._name(), None) is not None else 404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def comfy() -> Iterator[Refusing]:
    with Refusing() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def save(comfy: Refusing, *, numbered: bool = True) -> str:
    engine = Engine(comfy.url)
    try:
        return engine.save_workflow("cat.json", DATA, numbered=numbered)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("listed", "stored", "reason"),
    [
        ((200, b"[]"), (400, b""), "not_written"),
        ((404, b"404: Not Found"), (404, b"404: Not Found"), "no_user_files"),
        ((404, b"404: Not Found"), (405, b""), "no_user_files"),
        ((405, b""), None, "no_user_files"),
        ((200, b"[]"), (413, b"<html>"), "too_large"),
        ((500, b""), None, "unexpected_answer"),
        ((200, b"<html>log in</html>"), None, "unexpected_answer"),
        ((200, b"[]"), (200, b"<html>log in</html>"), "unexpected_answer"),
        ((200, b"[]"), (200, b'"workflows/another.json"'), "unexpected_answer"),
        ((200, b"[]"), (507, b""), "unexpected_answer"),
    ],
)
def test_a_refusal_says_why_and_what_to_do_instead(
    comfy: Refusing, listed: tuple[int, bytes], stored: tuple[int, bytes] | None, reason: str
) -> None:
    comfy.answers["list"] = listed
    if stored is not None:
        comfy.answers["store"] = stored
    with pytest.raises(WorkflowNotSaved) as caught:
        save(comfy)
    assert caught.value.details["reason"] == reason
    assert "Download it instead" in caught.value.message


def test_a_comfyui_for_several_users_is_named_as_that(comfy: Refusing) -> None:
    comfy.answers |= {"list": (500, b""), "users": (200, b'{"storage": "server", "users": {}}')}
    with pytest.raises(WorkflowNotSaved, match="--multi-user") as caught:
        save(comfy)
    assert caught.value.details["reason"] == "several_users"


@pytest.mark.parametrize(
    ("status", "error"), [(403, EngineAccessDenied), (401, EngineAccessDenied), (502, EngineUnreachable)]
)
def test_a_proxy_that_refuses_is_reported_as_for_every_other_call(
    comfy: Refusing, status: int, error: type[Exception]
) -> None:
    comfy.answers["store"] = (status, b"")
    with pytest.raises(error):
        save(comfy)


@pytest.mark.parametrize("kept", [0, 5])
def test_the_beginning_of_a_file_that_a_full_disk_left_is_deleted(comfy: Refusing, kept: int) -> None:
    comfy.answers["store"] = (400, b"")
    comfy.kept_bytes = kept
    with pytest.raises(WorkflowNotSaved):
        save(comfy)
    assert comfy.files == {}


def test_a_file_that_is_not_the_beginning_of_what_was_sent_stays(comfy: Refusing) -> None:
    comfy.answers["store"] = (400, b"")
    comfy.files["workflows/cat.json"] = b"[]"
    with pytest.raises(WorkflowNotSaved):
        save(comfy)
    assert comfy.files == {"workflows/cat.json": b"[]"}


def test_the_first_number_that_is_free_is_taken_with_one_request(comfy: Refusing) -> None:
    comfy.answers["list"] = (200, b'["cat.json", "cat (2).json", "dog.json"]')
    comfy.answers["store"] = (200, b'"workflows\\\\cat (3).json"')  # as on Windows
    assert save(comfy) == "cat (3).json"
    assert comfy.requests == ["POST workflows/cat (3).json"]


def test_a_name_that_only_the_server_knows_to_be_taken_is_not_replaced(comfy: Refusing) -> None:
    comfy.answers["store"] = (409, b"File already exists")
    with pytest.raises(WorkflowExists):
        save(comfy, numbered=False)
    assert comfy.requests == ["POST workflows/cat.json"]


def test_an_engine_that_is_down_is_reported() -> None:
    with pytest.raises(EngineUnreachable):
        Engine("http://127.0.0.1:9").save_workflow("cat.json", DATA, numbered=True)


@pytest.mark.parametrize(
    "name", ["cat", "cat.json", "a b", "猫", "100%41", "x" * 200, "nullable", "com10", "a.b"]
)
def test_names_of_files_are_accepted_with_and_without_ending(name: str) -> None:
    assert workflow_file_name(name) == f"{name.removesuffix('.json')}.json"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".json",
            ".",
            "..",
            "../x",
            "a/b",
            "a\\b",
            "/etc/passwd",
            "C:x",
            " a",
            "a ",
            "a.",
            ".hidden",
            "a .json",
        ),
        *(
            "a\0b",
            "a\nb",
            "a\u202eb",
            "a\ud800b",
            "a?b",
            'a"b',
            "a|b",
            "<a>",
            "a*",
            "nul",
            "NUL.json",
            "com1.x",
        ),
        *("x" * 201, "猫" * 67),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        workflow_file_name(name, "file_name")
    assert caught.value.param == "file_name"
