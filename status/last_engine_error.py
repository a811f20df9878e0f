"""The last error of the engine, for all processes: of a drawing that failed, or of a probe."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atomic_file import write_atomic
from errors import error_classes
from observer import DrawingReport, Observer
from state_files import read_state

_PREFIX = "engine."
_REPEAT_S = 60.0
"""An error that lasts is not written with every probe"""


class LastEngineError(Observer):
    """Is told of drawings, and by the probes. A full disk costs only the display."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock

    def drawing(self, report: DrawingReport) -> None:
        if report.code.startswith(_PREFIX):
            self.record(report.code, report.message, of_drawing=True)

    def record(self, code: str, message: str, *, of_drawing: bool = False) -> None:
        """`of_drawing`: the message may quote what was asked for, such as the prompt."""
        now, last = self._clock(), self._read()
        new = {"at": round(now, 1), "code": code, "message": message, "of_drawing": of_drawing}
        if last and {**last, "at": new["at"]} == new and abs(now - last["at"]) < _REPEAT_S:
            return
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(new).encode(), mode=0o600)

    def latest(self) -> dict[str, Any] | None:
        """`at` (Unix time), `code`, `message`, `of_drawing`, and `remedy` for people; None if there was none."""
        last = self._read()
        if last is None:
            return None
        return {**last, "remedy": _remedies().get(last["code"])}

    def _read(self) -> Mapping[str, Any] | None:
        return read_state(self._path, _parse)


def _parse(document: Any) -> Mapping[str, Any]:
    """Raises TypeError or KeyError if the document is not what `record` writes."""
    texts = (document["code"], document["message"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(document["at"], int | float):
        raise TypeError("not an error")
    known = {name: document[name] for name in ("at", "code", "message")}
    return {**known, "of_drawing": document.get("of_drawing") is not False}


def _remedies() -> dict[str, str]:
    return {kind.code: kind.remedy for kind in error_classes()}
