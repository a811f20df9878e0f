"""Follows the arbiter's event log and says each decision when it is made; keeps the log's lines for the table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from demo import words
from demo.script import HOUR_S

_COLUMN = 11
ARBITER = "arbiter"


class Narrator:
    """`say` gets each line. `asks(mode, at)`: whether somebody wanted that side of the GPU at that time. `chats_of`: whose
    the chats are; the log names the keys of pictures only. `started_at`: Unix time of the beginning of the hour, which
    lasts `seconds`."""

    def __init__(
        self,
        log: Path,
        say: Callable[[str], None],
        asks: Callable[[str, float], bool],
        *,
        chats_of: str,
        started_at: float,
        seconds: float,
    ) -> None:
        self._log, self._say, self._asks, self._chats_of = log, say, asks, chats_of
        self._started_at, self._seconds = started_at, seconds
        self._position, self._rest = 0, b""
        self._policy: Mapping[str, Any] = {}
        self._mode_since = self._began_at = started_at
        self._told: dict[str, str] = {}
        """What each waiting request was said to wait for"""
        self.lines: list[str] = []

    def read(self) -> None:
        """Say what is new in the log."""
        for line in self._new_lines():
            self.lines.append(line)
            self._tell(json.loads(line))

    def _new_lines(self) -> Iterator[str]:
        try:
            with self._log.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return
        self._position += len(content)
        *complete, self._rest = (self._rest + content).split(b"\n")
        yield from (line.decode() for line in complete if line)

    def _tell(self, event: Mapping[str, Any]) -> None:
        at = event["at"]
        match event["event"]:
            case "policy":
                self._policy = event
            case "switch_began":
                other = "inference" if event["target"] == "generation" else "generation"
                text = words.switch_began(
                    event,
                    self._policy,
                    stayed_s=at - self._mode_since,
                    is_contended=self._asks(other, at),
                )
                self._began_at = at
                self._line(at, ARBITER, text)
            case "switch_ended":
                self._mode_since = self._began_at + event["took_s"]
                self._line(at, ARBITER, words.switch_ended(event))
            case "lease" | "gave_up":
                who = event["key"] or (self._chats_of if event["mode"] == "inference" else "")
                self._line(at, who, words.request_ended(event))

    def look(self, status: Mapping[str, Any], now: float) -> None:
        """Say what each request waits for, when that is new. `status`: a document of `GET /api/comfyui/status`."""
        for request in status["requests"]:
            reason = request["waits_for"]
            if request["state"] == "waiting" and reason and request["id"] not in self._told:
                self._told[request["id"]] = reason
                what, who = "picture", request["key"] or ""
                if request["kind"] == "llm":
                    what, who = "chat", who or self._chats_of
                self._line(now, who, f"{what}: waits for {reason}")

    def _line(self, at: float, who: str, text: str) -> None:
        minute, second = divmod(int(max(0.0, at - self._started_at) * HOUR_S / self._seconds), 60)
        self._say(f"{minute:02}:{second:02}  {who:{_COLUMN}} {text}")
