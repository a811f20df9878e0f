"""HTTP calls to one LLM server. Knows its address and key, and why a response failed to arrive; never what one means."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from deadline import time_limit
from errors import StackRefused, StackUnreachable, shorten
from http_session import DirectSession
from llm.responses import MISSING, field_at, parse_json
from llm.server import NoResponse, ServerNotRunning
from loopback import is_loopback
from system_errors import causes, shortage_as

_MAX_RESPONSE_BYTES = 16_000_000
_CHUNK_BYTES = 65_536
_MAX_QUOTED_CHARS = 200
_SECRET = re.compile(r"(?i)((?:api[-_]?key|token|password|secret|bearer)[\"']?[\s:=]+[\"']?)[^\s\"',}]+")
_ERROR_FIELDS = ("error.message", "detail.error.message", "error", "detail", "message")
"""Where LLM servers put an error message, by priority."""


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes

    def json(self) -> Any:
        """MISSING if the body is not JSON."""
        return parse_json(self.body)

    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class LlmHttp:
    """Safe for threads and forks: each call opens its own connection. Takes no proxies, passwords or certificates from
    the environment, follows no redirects, and never shows the key."""

    def __init__(self, stack: str, url: str, *, key: str, key_header: str, connect_timeout_s: float) -> None:
        self.stack = stack
        self.url = url.rstrip("/")
        self._key = key
        self._headers: dict[str, str] = {}
        if key:
            self._headers = {key_header: key} if key_header else {"Authorization": f"Bearer {key}"}
        self._connect_timeout_s = connect_timeout_s

    def __repr__(self) -> str:
        return f"LlmHttp({self.stack!r}, {self.url!r})"

    def send(self, method: str, path: str, *, timeout_s: float, body: Any = MISSING) -> Response:
        """Make one call. `timeout_s` limits the whole call, as does the time limit of the thread; `body` is sent as JSON.

        Raises ServerNotRunning, NoResponse, or StackUnreachable if the server was not reached.
        """
        data = None if body is MISSING else json.dumps(body).encode()
        try:
            with time_limit(timeout_s), DirectSession() as session:
                headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
                with session.request(
                    method,
                    self.url + path,
                    data=data,
                    headers=headers,
                    timeout=(min(self._connect_timeout_s, timeout_s), timeout_s),
                    stream=True,
                ) as response:
                    return Response(response.status_code, self._read(response))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def refused(self, call: object, response: Response, *, reason: str = "", hint: str = "") -> StackRefused:
        """The error for a response that is not as expected. Without a `reason` it quotes the server's error message, or
        the text of a body that is not JSON. Other JSON is never quoted: lists contain command lines."""
        if response.status in (401, 403):
            rejected = "it rejected the key; a server with several keys needs the admin key"
            reason = (
                rejected if self._key else "it requires a key; set `key_env` to the variable that holds it"
            )
        reason = reason or self._error_text(response)
        message = f"{self.stack} at {self.url} answered {response.status} to {call}"
        message += f": {reason}." if reason else "."
        return StackRefused(f"{message} {hint}".strip(), stack=self.stack, status=response.status)

    def sanitize(self, text: str) -> str:
        """Text from a server or program, shortened to one line, without the key and anything that looks like a secret."""
        line = " ".join(text.split())
        line = line.replace(self._key, "***") if self._key else line
        return shorten(_SECRET.sub(r"\1***", line), _MAX_QUOTED_CHARS)

    def _error_text(self, response: Response) -> str:
        body = response.json()
        messages = [value for path in _ERROR_FIELDS if isinstance(value := field_at(body, path), str)]
        text = messages[0] if messages else response.text() if body is MISSING else ""
        return self.sanitize(text).rstrip(".")

    def _read(self, response: requests.Response) -> bytes:
        body = bytearray()
        while chunk := response.raw.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > _MAX_RESPONSE_BYTES:
                raise self._no_response(f"the response is longer than {_MAX_RESPONSE_BYTES} bytes")
        return bytes(body)

    def _no_response(self, reason: str) -> NoResponse:
        return NoResponse(f"{self.stack} at {self.url}: {reason}.", stack=self.stack)

    def _unreachable(self, error: Exception) -> StackUnreachable:
        if shortage := shortage_as(StackUnreachable, error):
            return shortage
        chain = list(causes(error))
        timed_out = any(
            isinstance(cause, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError)
            for cause in chain
        )
        if not any(isinstance(cause, _NEVER_CONNECTED) for cause in chain):
            lost = f"the connection was lost ({type(error).__name__})"
            return self._no_response("the request timed out" if timed_out else lost)
        if not any(isinstance(cause, ConnectionRefusedError) for cause in chain):
            reason = "connecting timed out" if timed_out else "cannot connect"
            return StackUnreachable(f"{self.stack} at {self.url}: {reason}.", stack=self.stack)
        error_class = ServerNotRunning if is_loopback(urlsplit(self.url).hostname) else StackUnreachable
        return error_class(f"{self.stack} at {self.url}: connection refused.", stack=self.stack)


_NEVER_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.LocationValueError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
)
