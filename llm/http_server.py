"""An LLM server that is controlled over HTTP, by the calls of its driver."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errors import StackError, StackRefused
from gpu_tenant import Failure, Resident
from llm.drivers import BusyProbe, Call, Driver, Listing, SavedField
from llm.http import LlmHttp, Response
from llm.parallel import parallel_map
from llm.responses import (
    MISSING,
    WrongShape,
    entries_at,
    event_objects,
    field_at,
    meets,
    prometheus_sum,
    require_fields,
)
from llm.server import Limits, NoResponse, ServerNotRunning, poll_with_backoff
from llm.templates import fill_json, fill_path

_NO_METRICS_STATUSES = (400, 404, 405, 501)
"""Statuses of servers without metrics, or without metrics for a model that is not loaded"""

_LISTED_TIMEOUT_S = 3.0
"""After a successful load call, the list must show the model within this time, at least as loading"""


@dataclass(frozen=True)
class Entry:
    """One entry of a list. An entry may hold no GPU memory."""

    resident: Resident
    holds_memory: bool
    ready: bool
    loading: bool
    failed: bool


class HttpLlmServer:
    def __init__(self, name: str, driver: Driver, http: LlmHttp, limits: Limits) -> None:
        self.name = name
        self._driver = driver
        self._http = http
        self._limits = limits

    def health(self) -> None:
        self._send(self._driver.health, None, self._limits.call_s)

    def list(self) -> tuple[Resident, ...]:
        try:
            return tuple(entry.resident for entry in self._entries() if entry.holds_memory)
        except ServerNotRunning:
            return ()

    def identity(self, resident: Resident) -> Any:
        same = self._driver.listing.same
        return resident.saved.get(same, resident.id) if same else resident.id

    def busy(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        requests = self._running_requests(residents)
        loading = self._loading()
        return loading or None if requests is None else requests + loading

    def _loading(self) -> int:
        """The number of models that are being loaded: a request waits for each."""
        if not self._driver.listing.loading:
            return 0
        try:
            return sum(entry.loading for entry in self._entries())
        except ServerNotRunning:
            return 0

    def _running_requests(self, residents: Callable[[], Sequence[Resident]]) -> int | None:
        probe = self._driver.busy
        if probe is None:
            return None
        if not probe.per_model:
            return self._request_count(probe, None)
        counts = [self._request_count(probe, resident) for resident in residents()]
        known = [count for count in counts if count is not None]
        return sum(known) if known or not counts else None

    def unload(self, residents: Sequence[Resident]) -> None:
        parallel_map(self._unload, residents[:1] if self._driver.unload.once else residents)

    def load(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        failures = []
        for resident in self._not_ready(residents):
            if is_cancelled():
                break
            try:
                self._load(resident)
            except StackError as error:
                failures.append(Failure(self.name, resident.id, error.message))
        return tuple(failures)

    def _unload(self, resident: Resident) -> None:
        try:
            self._send(self._driver.unload, resident, self._limits.unload_s)
        except (NoResponse, ServerNotRunning):
            return  # whether the model is unloaded is decided by `list`

    def _not_ready(self, residents: Sequence[Resident]) -> Iterator[Resident]:
        """Those of `residents` that are not loaded and ready. A model that occurs twice must be loaded twice."""
        try:
            ready = Counter(self.identity(entry.resident) for entry in self._entries() if entry.ready)
        except ServerNotRunning:
            ready = Counter()
        for resident in residents:
            identity = self.identity(resident)
            if ready[identity] == 0:
                yield resident
            else:
                ready[identity] -= 1

    def _load(self, resident: Resident) -> None:
        deadline = time.monotonic() + self._limits.load_s
        loaded_id = self._send_load(resident)
        listed_deadline = time.monotonic() + _LISTED_TIMEOUT_S
        for _ in poll_with_backoff(deadline):
            try:
                entries = [entry for entry in self._entries() if entry.resident.id == loaded_id]
            except NoResponse:
                continue  # some servers do not respond while they load
            if any(entry.ready for entry in entries):
                return
            if any(entry.failed for entry in entries):
                raise self._load_failed(resident, "failed to load; see the server's log")
            if time.monotonic() > listed_deadline and not any(entry.holds_memory for entry in entries):
                problem = "is listed as holding no GPU memory" if entries else "is not listed under this id"
                raise self._load_failed(resident, f"{problem} after a successful load call")
        raise self._load_failed(resident, f"is not ready after {self._limits.load_s:g} s")

    def _load_failed(self, resident: Resident, problem: str) -> StackRefused:
        return StackRefused(f"{self.name} at {self._http.url}: {resident.id} {problem}.", stack=self.name)

    def _send_load(self, resident: Resident) -> str:
        """Send the load call. Returns the id under which the model is listed from then on."""
        calls = self._driver.load
        for call, alternative in zip(calls, (*calls[1:], None), strict=True):
            response = self._response(call, resident, self._limits.load_s)
            if alternative is None or response.status not in alternative.after:
                self._check(call, resident, response)
                loaded_as = field_at(response.json(), call.loaded_as) if call.loaded_as else MISSING
                return loaded_as if isinstance(loaded_as, str) else resident.id
        raise StackRefused(f"The driver of {self.name} has no `load` call.", stack=self.name)

    # --- responses --------------------------------------------------------------------------------------------

    def _send(self, call: Call, resident: Resident | None, timeout_s: float) -> None:
        self._check(call, resident, self._response(call, resident, timeout_s))

    def _response(self, call: Call, resident: Resident | None, timeout_s: float) -> Response:
        path = fill_path(call.path, resident)
        return self._http.send(call.method, path, timeout_s=timeout_s, body=fill_json(call.json, resident))

    def _check(self, call: Call, resident: Resident | None, response: Response) -> None:
        """Raises StackRefused unless the response is a success as the call defines it."""
        if not call.is_ok(response.status):
            raise self._refused(call, response)
        if response.status >= 300:
            return
        expected = fill_json(call.expect, resident)
        if expected and not _has_fields(response.json(), expected):
            raise self._refused(
                call, response, f"{', '.join(map(repr, expected))} is missing or not as expected"
            )
        if call.events:
            self._check_events(call, response)

    def _check_events(self, call: Call, response: Response) -> None:
        events = event_objects(response.body)
        for event in events:
            if "error" in event:
                message = field_at(event, "error.message")
                text = str(message if message else event["error"])
                raise self._refused(call, response, self._http.sanitize(text))
        if not events or not _has_fields(events[-1], call.events):
            raise self._refused(call, response, "the event stream ended before the operation was done")

    def _refused(self, call: Call, response: Response, reason: str = "") -> StackRefused:
        hint = self._driver.needs if call in (self._driver.listing.call, self._driver.unload) else ""
        return self._http.refused(call, response, reason=reason, hint=hint)

    def _entries(self) -> tuple[Entry, ...]:
        listing = self._driver.listing
        response = self._response(listing.call, None, self._limits.call_s)
        none_on = listing.none_on
        if none_on and response.status == none_on.status and none_on.text in response.text():
            return ()
        if not listing.call.is_ok(response.status):
            raise self._refused(listing.call, response, "not a list of models")
        try:
            return tuple(read_entries(self.name, listing, response.json()))
        except WrongShape as error:
            raise self._refused(listing.call, response, str(error)) from error

    def _request_count(self, probe: BusyProbe, resident: Resident | None) -> int | None:
        try:
            response = self._response(probe.call, resident, self._limits.call_s)
        except ServerNotRunning:
            return 0
        if response.status in _NO_METRICS_STATUSES:
            return None
        if not probe.call.is_ok(response.status):
            raise self._refused(probe.call, response)
        if probe.prometheus:
            total = prometheus_sum(response.text(), probe.prometheus)
            return None if total is None else int(total)
        try:
            return sum(meets(entry, probe.count) for _, entry in entries_at(response.json(), probe.items))
        except WrongShape as error:
            raise self._refused(probe.call, response, str(error)) from error


def read_entries(owner: str, listing: Listing, body: Any) -> Iterator[Entry]:
    """The entries in the body of a list response. Raises WrongShape if it is not built as the listing describes."""
    if not isinstance(body, Mapping):
        raise WrongShape("the body is not a JSON object")
    pairs = [(body, body)] if listing.items is None else entries_at(body, listing.items)
    for parent, entry in pairs:
        require_fields(entry, listing.unless)
        holds_memory = not (listing.unless and meets(entry, listing.unless))
        yield Entry(
            resident=Resident(owner, _id(listing, entry), _saved(listing, parent, entry)),
            holds_memory=holds_memory,
            ready=holds_memory and meets(entry, listing.ready),
            loading=bool(listing.loading) and meets(entry, listing.loading),
            failed=bool(listing.failed) and meets(entry, listing.failed),
        )


def _id(listing: Listing, entry: Mapping[str, Any]) -> str:
    model_id = listing.name or field_at(entry, listing.id)
    if not isinstance(model_id, str) or not model_id:
        raise WrongShape(f"an entry has no text `{listing.id}`")
    return model_id


def _saved(listing: Listing, parent: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: _saved_value(entry, field) for key, field in listing.save.items()}
    values |= {key: field_at(parent, path) for key, path in listing.save_parent.items()}
    return {key: value for key, value in values.items() if value is not MISSING and value is not None}


def _saved_value(entry: Mapping[str, Any], field: SavedField) -> Any:
    value = field_at(entry, field.path)
    if not field.above:
        return value
    return field.value if isinstance(value, str) and value > field.above else MISSING


def _has_fields(body: Any, expected: Mapping[str, Any]) -> bool:
    return all(field_at(body, path) == value for path, value in expected.items())
