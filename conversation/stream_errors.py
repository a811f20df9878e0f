"""Finds errors in a streamed response, which has begun with status 200: a line that is no event (llama-server writes
`proxy error: …`), and events that carry an error in another form than the client's. Complete lines pass at once and as they
are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from conversation.routes import Dialect
from conversation.upstream_errors import as_envelope, in_dialect, message_of, parse
from errors import shorten

MAX_HELD_BYTES = 1_000_000
"""Of an incomplete line; a longer one passes in parts"""
_SHOWN_CHARS = 500
_NO_EVENT = re.compile(
    rb"^(?!(?:data|event|id|retry)(?::|\r?\n)|[:\r\n]|\Z)"
    rb'|^data: ?\{ ?"(?:error"|object": ?"error")',
    re.MULTILINE,
)
"""Finds a line that is no field of an event, and an event that begins like an error"""
_NO_OBJECT = re.compile(rb'^(?![{\r\n]|\Z)|^\{ ?"error"', re.MULTILINE)
"""Finds a line that is no JSON object, and one that begins like an error; for Ollama, which sends an object in each line"""


class StreamErrors:
    """For one response of `text/event-stream`, or of Ollama's lines (`has_events` is false). `upstream`: its name. `clean`
    removes secrets from a text."""

    def __init__(
        self, dialect: Dialect, *, has_events: bool, upstream: str, clean: Callable[[str], str] = str
    ) -> None:
        self._dialect, self._has_events = dialect, has_events
        self._suspect = _NO_EVENT if has_events else _NO_OBJECT
        self._upstream, self._clean = upstream, clean
        self._held = bytearray()
        """The beginning of an incomplete line"""
        self._is_in_line = False
        """The beginning of the present line has passed, because it is long"""

    def feed(self, data: bytes) -> bytes:
        """The bytes for the client: every line that is complete."""
        if not self._held and not self._is_in_line and data.endswith(b"\n"):
            return self._lines(data)  # nearly always
        if self._is_in_line:
            end = data.find(b"\n") + 1
            self._is_in_line = not end
            return data if not end else data[:end] + self.feed(data[end:])
        lines = b""
        if end := data.rfind(b"\n") + 1:
            lines = self._lines(bytes(self._held) + data[:end])
            self._held.clear()
        self._held += data[end:]
        if len(self._held) <= MAX_HELD_BYTES:
            return lines
        self._is_in_line = True
        return lines + self._take_held()

    def end(self) -> bytes:
        """What is left when the upstream has sent everything."""
        held = self._take_held()
        return self._lines(held + b"\n") if held.strip() else held

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def cut_off(self, envelope: Mapping[str, Any]) -> bytes:
        """The end of a response that cannot be completed: an error, in the place of an incomplete line or event."""
        self._held.clear()
        return (b"\n\n" if self._has_events else b"\n" * self._is_in_line) + self._event(envelope)

    def _lines(self, data: bytes) -> bytes:
        if self._suspect.search(data) is None:
            return data
        return b"".join(map(self._line, data.splitlines(keepends=True)))

    def _line(self, line: bytes) -> bytes:
        if self._suspect.search(line) is None:
            return line
        if not self._has_events and line.startswith(b"{"):
            return self._cleaned(line)
        name, _, value = line.partition(b":")
        document = parse(value) if name in (b"data", b"error") else None
        if name == b"data" and not (isinstance(document, Mapping) and message_of(document)):
            return line
        if name == b"data" and self._dialect != "openai":
            return self._cleaned(line)
        if not isinstance(document, Mapping):
            document = {"message": line.decode("utf-8", "replace").strip()}
        envelope = as_envelope(document, upstream=self._upstream)
        envelope = json.loads(self._clean(json.dumps(envelope)))  # the other fields may quote the key, too
        envelope["error"]["message"] = shorten(envelope["error"]["message"], _SHOWN_CHARS)
        # The line of an event is followed by the empty line that ends it.
        return b"data: " + json.dumps(envelope).encode() + b"\n" if name == b"data" else self._event(envelope)

    def _cleaned(self, line: bytes) -> bytes:
        return self._clean(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def _event(self, envelope: Mapping[str, Any]) -> bytes:
        data = json.dumps(in_dialect(envelope, self._dialect)).encode()
        if not self._has_events:
            return data + b"\n"
        name = b"event: error\n" if self._dialect == "anthropic" else b""
        return name + b"data: " + data + b"\n\n"
