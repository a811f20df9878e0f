"""Server-sent events of image jobs."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from access import Caller
from api.errors import envelope
from api.job_documents import QueueEstimate, job_document, summary
from api.responses import Links
from api.services import Services
from api.stream_events import encode_event
from api.streams import KEEP_ALIVE_INTERVAL_S
from errors import QueueFull
from image_jobs import JobView

_POLL_INTERVAL_S = 0.1
_RETRY_AFTER_S = 5
_SHARE_OF_ONE_OWNER = 0.75
"""Of the streams, while there are several keys: the others then always find one"""


class EventStreams:
    """The streams of this process, each of which holds a thread. `limit`: how many there may be. `has_several_owners`:
    whether each must leave some to others."""

    def __init__(self, limit: int, has_several_owners: Callable[[], bool]) -> None:
        self._limit, self._has_several_owners = limit, has_several_owners
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, owner: str) -> Callable[[], None]:
        """Take a place for a stream of `owner`; call what is returned at its end. Raises QueueFull."""
        share = self._limit
        if owner and self._has_several_owners():
            share = max(1, int(self._limit * _SHARE_OF_ONE_OWNER))
        with self._lock:
            own, total = self._open[owner], self._open.total()
            if total < self._limit and own < share:
                self._open[owner] += 1
                return lambda: self._leave(owner)
        whose = f"{total} clients" if total >= self._limit else f"{own} clients with this key"
        rest = "" if total >= self._limit else "; the other places are for other keys"
        raise QueueFull(
            f"{whose} follow jobs already{rest}. Ask for the job itself instead.",
            waiting=total,
            retry_after_s=_RETRY_AFTER_S,
        )

    def _leave(self, owner: str) -> None:
        with self._lock:
            self._open[owner] -= 1
            self._open = +self._open


class ReleasedStream:
    """An iterator that calls `leave` once, when it is closed."""

    def __init__(self, events: Iterator[bytes], leave: Callable[[], None]) -> None:
        self._events, self._leave = events, leave
        self._lock, self._is_open = threading.Lock(), True

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._leave()


class JobEvents:
    """The events of one job for one client, from the one after `seen`."""

    def __init__(
        self,
        services: Services,
        estimate: QueueEstimate,
        job_id: str,
        links: Links,
        seen: int,
        caller: Caller,
    ) -> None:
        self._services, self._estimate, self._id, self._links = services, estimate, job_id, links
        self._seen, self._caller = seen, caller
        self._place: int | None = None

    def stream(self, has_hung_up: Callable[[], bool]) -> Iterator[bytes]:
        yield b": image job\n\n"
        sent_at = time.monotonic()
        while not has_hung_up():
            if (ended := self._services.gate.ended(self._caller)) is not None:
                yield from encode_event({"type": "error", **envelope(ended)}, named=True)
                return
            view = self._services.jobs.get(self._id)
            if view is None:
                return
            if view.status.has_ended:
                yield from self._last(view)
                return
            chunks = [*self._new(), *self._moved(view)]
            if not chunks and time.monotonic() - sent_at > KEEP_ALIVE_INTERVAL_S:
                chunks = [b": still there\n\n"]
            if chunks:
                sent_at = time.monotonic()
                yield b"".join(chunks)
            time.sleep(_POLL_INTERVAL_S)

    def _new(self) -> Iterator[bytes]:
        for number, name, data in self._services.jobs.events(self._id):
            if number > self._seen:
                self._seen = number
                yield _event(name, data, number)

    def _moved(self, view: JobView) -> Iterator[bytes]:
        """The place in the queue, which nobody needs to be told later, so without an id."""
        if view.status.state == "queued" and view.waiting_before != self._place:
            self._place = view.waiting_before
            yield _event("queued", summary(view, self._services, self._estimate))

    def _last(self, view: JobView) -> Iterator[bytes]:
        document = job_document(view, self._services, self._estimate, self._links)
        yield f"id: {view.status.events + 1}\n".encode()
        yield from encode_event({"type": view.status.state, **document}, named=True)


def _event(name: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
