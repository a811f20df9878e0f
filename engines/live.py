"""Engines that are added, changed and removed by editing easel.yaml while the server runs. What is not valid is refused as a
whole, and the engines stay as they are: those that were accepted last, also in a process that starts meanwhile."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engines.entries import EngineEntry
from engines.fleet import Fleet
from engines.last_good import LastGoodEngines
from engines.unit import EngineUnit
from errors import EaselError, SettingsInvalid

log = logging.getLogger("easel.engine")

LOOK_INTERVAL_S = 1.0
SETTLE_S = 0.5
"""A file that was changed so recently may still be written"""
_STOP_TIMEOUT_S = 1.0

_Stamp = tuple[int, int, int] | None
"""The file's inode, time in ns and size"""


class LiveEngines:
    """Of one process. `path`: the settings' file. `read`: (its text) -> its entries; raises SettingsInvalid. `make`: makes
    an engine. `last_good`: what the processes of this server accepted last. Only for a list that came from a file: `entries`
    are those of the server's start."""

    def __init__(
        self,
        fleet: Fleet,
        entries: Sequence[EngineEntry],
        path: Path,
        read: Callable[[str], Sequence[EngineEntry]],
        make: Callable[[EngineEntry], EngineUnit],
        last_good: LastGoodEngines,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet, self._path, self._read, self._make, self._clock = fleet, path, read, make, clock
        self._entries, self._last_good = tuple(entries), last_good
        self._seen: _Stamp = None
        self._runs_reconcilers = False
        self._lock = threading.Lock()
        self._retired: list[EngineUnit] = []
        self.error: EaselError | None = None
        """Why the file as it is now is not what is used"""

    def start(self, *, runs_reconcilers: bool = True) -> None:
        """Catch up, then look at the file in a thread from now on. `runs_reconcilers`: whether this process runs the
        engines' reconcilers, and so those of engines that are added from now on; the caller starts those of the engines that
        are there when this returns. Raises RuntimeError if there are no more threads."""
        self._log_failure(self.catch_up)
        self._runs_reconcilers = runs_reconcilers
        threading.Thread(target=self._watch, name="engines-watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_INTERVAL_S)
            self._log_failure(self.look)

    def _log_failure(self, look: Callable[[], None]) -> None:
        try:
            look()
        except Exception:
            log.exception("the engines in %s could not be looked at", self._path.name)

    def catch_up(self) -> None:
        """Use what other processes of this server accepted last, then what the file says now."""
        with self._lock:
            self._follow()
        self.look()

    def look(self) -> None:
        """Use what the file says now, if it has changed."""
        with self._lock:
            self._close_idle()
            self._look()
            if self.error is not None:
                self._follow()  # another process may have accepted an edit that this one did not see

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp is None:
            self._seen = None
            self._refuse(SettingsInvalid(f"{self._path.name} is not there any more."))
            return
        if stamp == self._seen or 0 <= self._clock() - stamp[1] / 1e9 < SETTLE_S:
            return
        self._seen = stamp
        try:
            text = self._path.read_text("utf-8")
            entries = tuple(self._read(text))
            if not entries:
                raise SettingsInvalid(
                    f"{self._path.name} has no `engines` any more; to use `engine` instead, restart Easel."
                )
            if not self._accept(text, entries, stamp):
                self._seen = None
                return
        except OSError as error:
            self._seen = None  # it may be readable later, without a change
            self._refuse(SettingsInvalid(f"{self._path.name} cannot be read: {error.strerror}"))
        except UnicodeDecodeError as error:
            self._refuse(SettingsInvalid(f"{self._path.name} cannot be read: {error}"))
        except EaselError as error:
            self._refuse(error)
        else:
            self.error = None

    def _refuse(self, error: EaselError) -> None:
        before, self.error = self.error, error
        if before is not None and before.message == error.message:
            return
        log.error("the changed engines are not valid; those of before stay in use: %s", error.message)

    def _follow(self) -> None:
        entries = self._last_good.changed()
        if entries is None or entries == self._entries:
            return
        try:
            units = self._units(entries)
        except EaselError as error:
            log.error("the engines that were accepted last cannot be used: %s", error.message)
        else:
            self._use(entries, units)

    def _accept(self, text: str, entries: tuple[EngineEntry, ...], stamp: _Stamp) -> bool:
        """Use `entries`, which the file had when it looked like `stamp`; false if it has changed since. Raises
        SettingsInvalid if an engine cannot be made; nothing is changed then."""
        units = self._units(entries) if entries != self._entries else None
        if not self._last_good.store(text, lambda: self._stamp() == stamp):
            return False
        if units is not None:
            self._use(entries, units)
        return True

    def _units(self, entries: tuple[EngineEntry, ...]) -> list[EngineUnit]:
        known = {
            entry.name: (entry, unit) for entry, unit in zip(self._entries, self._fleet.units, strict=True)
        }
        return [self._unit(entry, *known.get(entry.name, (None, None))) for entry in entries]

    def _use(self, entries: tuple[EngineEntry, ...], units: list[EngineUnit]) -> None:
        before = self._fleet.units
        arbiters = {id(unit.arbiter) for unit in units}
        for unit in before:
            if id(unit.arbiter) not in arbiters:
                self._retire(unit, {each.gpu for each in units})
        if self._runs_reconcilers:
            running = {id(unit.arbiter) for unit in before}
            for unit in units:
                if id(unit.arbiter) not in running:
                    unit.arbiter.reconciler.start()
        self._fleet.replace(units)
        self._entries = entries
        log.info("engines are now %s", ", ".join(f"{unit.name} ({unit.url})" for unit in units))

    def _unit(self, entry: EngineEntry, before: EngineEntry | None, unit: EngineUnit | None) -> EngineUnit:
        if before is None or unit is None:
            return self._make(entry)
        if before == entry:
            return unit
        if replace(before, models=entry.models, weight=entry.weight) != entry:
            return self._make(entry)
        models = None if entry.models is None else frozenset(entry.models)
        return replace(unit, models=models, weight=entry.weight)

    def _retire(self, unit: EngineUnit, gpus: set[str]) -> None:
        """`unit` is used no more. Its GPU stays with its LLMs, which need its arbiter, unless another engine has it now."""
        if unit.gpu in gpus:  # the other one has the same queue, and so its jobs
            unit.arbiter.reconciler.stop(_STOP_TIMEOUT_S)
        else:
            self._fleet.leave(unit)
            if unit.arbiter.shares_gpu:
                self._fleet.keep_arbiter(unit)
        self._retired.append(unit)

    def _close_idle(self) -> None:
        """Let go of engines that are used no more, once their last jobs have ended."""
        for unit in list(self._retired):
            if not unit.arbiter.outlook().situation.claims:
                if not unit.arbiter.shares_gpu:
                    unit.arbiter.reconciler.stop(_STOP_TIMEOUT_S)
                unit.selector.close()
                self._fleet.left(unit)
                self._retired.remove(unit)

    def _stamp(self) -> _Stamp:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
