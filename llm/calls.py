"""HTTP to one LLM server. Knows its address and key, and what keeps a reply from coming; never what a reply means."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from errors import StackRefused, StackUnreachable, shorten
from http_session import DirectSession
from llm.replies import MISSING, as_json, at
from loopback import is_loopback

_MOST_BYTES = 16_000_000
_PIECE = 65_536
_MOST_WORDS = 200
_SECRET = re.compile(r"(?i)((?:api[-_]?key|token|password|secret|bearer)[\"']?[\s:=]+[\"']?)[^\s\"',}]+")


class ServerNotRunning(StackUnreachable):
    """Nobody listens on a loopback address: the server's process is not there, so it holds nothing."""


class NoReply(StackUnreachable):
    """The server took the connection but no whole reply came in time; it may well do what it was asked."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        """MISSING if the body is not JSON."""
        return as_json(self.body)

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class Calls:
    """Safe for threads and forks: each call has a connection of its own. Takes no proxies, passwords or certificates
    from the environment, follows no redirects, and never shows the key."""

    def __init__(self, stack: str, url: str, *, key: str, key_header: str, connect_s: float) -> None:
        self.stack = stack
        self.url = url.rstrip("/")
        self._key = key
        self._headers: dict[str, str] = {}
        if key:
            self._headers = {key_header: key} if key_header else {"Authorization": f"Bearer {key}"}
        self._connect_s = connect_s

    def __repr__(self) -> str:
        return f"Calls({self.stack!r}, {self.url!r})"

    def send(self, method: str, path: str, *, timeout_s: float, body: Any = MISSING) -> Reply:
        """One call; `timeout_s` is for all of it, and `body` goes as JSON.

        Raises ProcessGone, NoReply, or StackUnreachable if the server was not reached.
        """
        deadline = time.monotonic() + timeout_s
        data = None if body is MISSING else json.dumps(body).encode()
        try:
            with DirectSession() as session:
                headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
                with session.request(
                    method,
                    self.url + path,
                    data=data,
                    headers=headers,
                    timeout=(min(self._connect_s, timeout_s), timeout_s),
                    stream=True,
                ) as answer:
                    return Reply(answer.status_code, self._read(answer, deadline))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def refused(self, call: object, reply: Reply, *, why: str = "", needs: str = "") -> StackRefused:
        """The fault for a reply that came and is not what it should be. Without a `why` it says the reply's own words: its
        message, or its text if it is no JSON. Lists are full of command lines and are never repeated."""
        if reply.status in (401, 403):
            has_one = "it does not accept the key; if it has several, it wants the admin's"
            why = has_one if self._key else "it wants a key, which `key_env` can name"
        said = why or self._words(reply)
        message = f"{self.stack} at {self.url} answered {reply.status} to {call}{': ' * bool(said)}{said}."
        return StackRefused(f"{message} {needs}".strip(), stack=self.stack, status=reply.status)

    def scrubbed(self, text: str) -> str:
        """A foreign text for a person: short, on one line, without what looks like a secret."""
        line = " ".join(text.split())
        line = line.replace(self._key, "***") if self._key else line
        return shorten(_SECRET.sub(r"\1***", line), _MOST_WORDS)

    def _words(self, reply: Reply) -> str:
        body = reply.json()
        places = ("error.message", "detail.error.message", "error", "detail", "message")
        told = [value for place in places if isinstance(value := at(body, place), str)]
        return self.scrubbed(told[0] if told else reply.text() if body is MISSING else "").rstrip(".")

    def _read(self, answer: requests.Response, deadline: float) -> bytes:
        body = bytearray()
        while piece := answer.raw.read1(_PIECE):
            body += piece
            if len(body) > _MOST_BYTES:
                raise self._no_reply(f"its reply is longer than {_MOST_BYTES} bytes")
            if time.monotonic() > deadline:
                raise self._no_reply("it took too long")
        return bytes(body)

    def _no_reply(self, why: str) -> NoReply:
        return NoReply(f"{self.stack} at {self.url} does not answer: {why}.", stack=self.stack)

    def _unreachable(self, error: Exception) -> StackUnreachable:
        causes = list(_causes(error))
        slow = any(isinstance(cause, requests.Timeout | urllib3.exceptions.TimeoutError) for cause in causes)
        if not any(isinstance(cause, _NEVER_CONNECTED) for cause in causes):
            return self._no_reply("it took too long" if slow else f"it broke off ({type(error).__name__})")
        if not any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            why = "connecting took too long" if slow else "it cannot be reached"
            return StackUnreachable(f"{self.stack} at {self.url} does not answer: {why}.", stack=self.stack)
        kind = ServerNotRunning if is_loopback(urlsplit(self.url).hostname) else StackUnreachable
        return kind(f"{self.stack} at {self.url} does not answer: connection refused.", stack=self.stack)


_NEVER_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.LocationValueError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and everything it was made from: libraries put it in args, in `reason` or behind `from`."""
    yield error
    for inner in (error.__cause__, getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            yield from _causes(inner)
