"""The last turns of the flows, in a file that all processes share. A file that is lost or damaged only costs fairness
until each flow had a turn."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from arbiter.fair_queue import Turn, Turns, next_turn_number, with_end, with_turn
from arbiter.leases import Claim
from atomic_file import write_atomic
from state_files import read_state

_NO_FILE = (0, 0)
_MAX_NUMBER = 10**18
"""Later claims get higher numbers, which are in the names of their files"""


class TurnStore:
    """Call `begin` and `end` under the state's mutex."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cached: tuple[tuple[int, int], Turns] = (_NO_FILE, {})

    def turns(self) -> Turns:
        """Costs one stat call while the file is unchanged. Each write makes a new file, so its inode and time tell."""
        try:
            entry = self._path.stat()
        except OSError:
            return {}
        stamp = entry.st_ino, entry.st_mtime_ns
        if stamp != self._cached[0]:
            self._cached = stamp, read_state(self._path, _turns) or {}
        return self._cached[1]

    def begin(self, flow: str, claims: Sequence[Claim], now: float) -> None:
        """A turn of `flow` begins."""
        turns = self.turns()
        self._write(with_turn(turns, flow, next_turn_number(claims, turns), now))

    def end(self, flow: str, now: float) -> None:
        """A turn of `flow` ends."""
        self._write(with_end(self.turns(), flow, now))

    def _write(self, turns: Turns) -> None:
        with contextlib.suppress(OSError):  # a full disk must not fail the job
            content = {flow: astuple(turn) for flow, turn in turns.items()}
            write_atomic(self._path, json.dumps(content).encode())


def _turns(document: Any) -> Mapping[str, Turn]:
    """Raises AttributeError, TypeError or ValueError if the document has no turns."""
    turns = {flow: Turn(*values) for flow, values in document.items()}
    if not all(
        isinstance(turn.number, int) and 0 <= turn.number < _MAX_NUMBER and math.isfinite(turn.at)
        for turn in turns.values()
    ):
        raise ValueError("not turns")
    return turns
