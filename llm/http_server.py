"""The interpreter of drivers: one server's five verbs, carried out as its driver says."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errors import StackError, StackRefused
from gpu_tenant import Failure, Resident
from llm.calls import Calls, NoReply, Reply, ServerNotRunning
from llm.drivers import BusyProbe, Call, Driver, Listing, SavedField
from llm.parallel import ask_all
from llm.replies import (
    MISSING,
    WrongShape,
    at,
    entries_at,
    event_objects,
    meets,
    must_tell,
    prometheus_sum,
)
from llm.server import Limits, poll_with_backoff
from llm.templates import fill_json, fill_path

_CANNOT_TELL = (400, 404, 405, 501)
"""How servers say that there are no metrics, or none for a model that is not loaded."""

_SHOWN_WITHIN_S = 3.0
"""After the reply to a load, the list must show the model within this time, be it as loading."""


@dataclass(frozen=True)
class Entry:
    """One entry of a list. Not all that is listed holds memory."""

    resident: Resident
    holds: bool
    ready: bool
    failed: bool


class HttpServer:
    def __init__(self, name: str, driver: Driver, calls: Calls, limits: Limits) -> None:
        self.name = name
        self._driver = driver
        self._calls = calls
        self._limits = limits

    def health(self) -> None:
        self._send(self._driver.health, None, self._limits.call_s)

    def list(self) -> tuple[Resident, ...]:
        try:
            return tuple(entry.resident for entry in self._entries() if entry.holds)
        except ServerNotRunning:
            return ()

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        probe = self._driver.busy
        if probe is None:
            return None
        if not probe.per_model:
            return self._requests(probe, None)
        told = [self._requests(probe, resident) for resident in residents()]
        known = [count for count in told if count is not None]
        return sum(known) if known or not told else None

    def unload(self, residents: Sequence[Resident]) -> None:
        ask_all(self._unload, residents[:1] if self._driver.unload.once else residents)

    def load(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        failures = []
        for resident in self._missing(residents):
            try:
                self._load(resident)
            except StackError as error:
                failures.append(Failure(self.name, resident.id, error.message))
        return tuple(failures)

    def _unload(self, resident: Resident) -> None:
        try:
            self._send(self._driver.unload, resident, self._limits.unload_s)
        except (NoReply, ServerNotRunning):
            return  # whether it let go is for `list` to say

    def _missing(self, wanted: Sequence[Resident]) -> Iterator[Resident]:
        """Those of `wanted` that are not there and ready, however often one model is wanted."""
        try:
            there = Counter(self._identity(entry.resident) for entry in self._entries() if entry.ready)
        except ServerNotRunning:
            there = Counter()
        for resident in wanted:
            identity = self._identity(resident)
            if there[identity] == 0:
                yield resident
            else:
                there[identity] -= 1

    def _identity(self, resident: Resident) -> Any:
        same = self._driver.listing.same
        return resident.saved.get(same, resident.id) if same else resident.id

    def _load(self, resident: Resident) -> None:
        deadline = time.monotonic() + self._limits.load_s
        loaded_id = self._ask_to_load(resident)
        shown_by = time.monotonic() + _SHOWN_WITHIN_S
        for _ in poll_with_backoff(deadline):
            try:
                entries = [entry for entry in self._entries() if entry.resident.id == loaded_id]
            except NoReply:
                continue  # some servers answer nothing while they load
            if any(entry.ready for entry in entries):
                return
            if any(entry.failed for entry in entries):
                raise self._not_loaded(resident, "failed to load; the server's log says why")
            if time.monotonic() > shown_by and not any(entry.holds for entry in entries):
                shown = "is listed as holding no GPU memory" if entries else "is not listed under this id"
                raise self._not_loaded(resident, f"was asked for, but {shown}")
        raise self._not_loaded(resident, f"is not ready after {self._limits.load_s:g} s")

    def _not_loaded(self, resident: Resident, why: str) -> StackRefused:
        return StackRefused(f"{self.name} at {self._calls.url}: {resident.id} {why}.", stack=self.name)

    def _ask_to_load(self, resident: Resident) -> str:
        """Asks, and returns the id under which the model is listed from then on."""
        calls = self._driver.load
        for call, other in zip(calls, (*calls[1:], None), strict=True):
            reply = self._reply(call, resident, self._limits.load_s)
            if other is None or reply.status not in other.after:
                self._check(call, resident, reply)
                loaded_as = at(reply.json(), call.loaded_as) if call.loaded_as else MISSING
                return loaded_as if isinstance(loaded_as, str) else resident.id
        raise StackRefused(f"{self.name} has no way to load models.", stack=self.name)

    # --- replies ----------------------------------------------------------------------------------------------

    def _send(self, call: Call, resident: Resident | None, timeout_s: float) -> Reply:
        reply = self._reply(call, resident, timeout_s)
        self._check(call, resident, reply)
        return reply

    def _reply(self, call: Call, resident: Resident | None, timeout_s: float) -> Reply:
        path = fill_path(call.path, resident)
        return self._calls.send(call.method, path, timeout_s=timeout_s, body=fill_json(call.json, resident))

    def _check(self, call: Call, resident: Resident | None, reply: Reply) -> None:
        """Raises StackRefused unless the reply is as good as the call says."""
        if not call.is_ok(reply.status):
            raise self._refused(call, reply)
        if reply.status >= 300:
            return
        wanted = fill_json(call.expect, resident)
        if wanted and not _has(reply.json(), wanted):
            raise self._refused(call, reply, f"without {', '.join(map(repr, wanted))} as it should be")
        if call.events:
            self._check_events(call, reply)

    def _check_events(self, call: Call, reply: Reply) -> None:
        events = event_objects(reply.body)
        for event in events:
            if "error" in event:
                told = at(event, "error.message")
                raise self._refused(call, reply, self._calls.scrubbed(str(told if told else event["error"])))
        if not events or not _has(events[-1], call.events):
            raise self._refused(call, reply, "the stream ended before the work was done")

    def _refused(self, call: Call, reply: Reply, why: str = "") -> StackRefused:
        needs = self._driver.needs if call in (self._driver.listing.call, self._driver.unload) else ""
        return self._calls.refused(call, reply, why=why, needs=needs)

    def _entries(self) -> tuple[Entry, ...]:
        listing = self._driver.listing
        reply = self._reply(listing.call, None, self._limits.call_s)
        nothing = listing.none_on
        if nothing and reply.status == nothing.status and nothing.text in reply.text():
            return ()
        if not listing.call.is_ok(reply.status):
            raise self._refused(listing.call, reply, "that is no list of models")
        try:
            return tuple(read_entries(self.name, listing, reply.json()))
        except WrongShape as error:
            raise self._refused(listing.call, reply, str(error)) from error

    def _requests(self, probe: BusyProbe, resident: Resident | None) -> int | None:
        try:
            reply = self._reply(probe.call, resident, self._limits.call_s)
        except ServerNotRunning:
            return 0
        if reply.status in _CANNOT_TELL:
            return None
        if not probe.call.is_ok(reply.status):
            raise self._refused(probe.call, reply)
        if probe.prometheus:
            total = prometheus_sum(reply.text(), probe.prometheus)
            return None if total is None else int(total)
        try:
            return sum(meets(entry, probe.count) for _, entry in entries_at(reply.json(), probe.items))
        except WrongShape as error:
            raise self._refused(probe.call, reply, str(error)) from error


def read_entries(owner: str, listing: Listing, body: Any) -> Iterator[Entry]:
    """The entries of a list's reply. Raises WrongShape where it is not built as the listing says."""
    if not isinstance(body, Mapping):
        raise WrongShape("it is not a JSON object")
    pairs = [(body, body)] if listing.items is None else entries_at(body, listing.items)
    for parent, entry in pairs:
        must_tell(entry, listing.unless)
        holds = not (listing.unless and meets(entry, listing.unless))
        yield Entry(
            resident=Resident(owner, _id(listing, entry), _saved(listing, parent, entry)),
            holds=holds,
            ready=holds and meets(entry, listing.ready),
            failed=bool(listing.failed) and meets(entry, listing.failed),
        )


def _id(listing: Listing, entry: Mapping[str, Any]) -> str:
    found = listing.name or at(entry, listing.id)
    if not isinstance(found, str) or not found:
        raise WrongShape(f"an entry has no text `{listing.id}`")
    return found


def _saved(listing: Listing, parent: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: _kept(entry, keepsake) for key, keepsake in listing.save.items()}
    inherited = {key: at(parent, path) for key, path in listing.save_parent.items()}
    return {
        key: value for key, value in (own | inherited).items() if value is not MISSING and value is not None
    }


def _kept(entry: Mapping[str, Any], keepsake: SavedField) -> Any:
    value = at(entry, keepsake.path)
    if not keepsake.above:
        return value
    return keepsake.value if isinstance(value, str) and value > keepsake.above else MISSING


def _has(reply: Any, wanted: Mapping[str, Any]) -> bool:
    return all(at(reply, path) == value for path, value in wanted.items())
