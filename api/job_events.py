"""Server-sent events of image jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from access import Caller
from api.errors import envelope
from api.job_documents import QueueEstimate, job_document, summary
from api.responses import Links
from api.services import Services
from api.stream_events import encode_event
from api.streams import KEEP_ALIVE_INTERVAL_S
from image_jobs import JobView

_POLL_INTERVAL_S = 0.1


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
