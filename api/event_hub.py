"""What happens on this server, for all event streams of a process: one thread looks, only while somebody listens, and
serializes what it finds once for all who may see the same."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from api.image_feed import ImageChange
from api.responses import Links
from api.services import Services
from api.status_document import OF_CALLER, OF_REQUESTS, Audience, whole_status
from errors import EaselError

log = logging.getLogger("easel.events")

LOOK_INTERVAL_S = 0.25
"""Between two looks for changed images; a `stat` or a read of one row each"""
STATUS_INTERVAL_S = 1.0
_LOG_INTERVAL_S = 60.0
"""Between two lines about the same failure"""
_MAX_WAITING = 512
"""Events that a client has not read"""
_MAX_WAITING_BYTES = 8_000_000
_MAX_IMAGES_AT_ONCE = 256
_MAX_IMAGE_CHARS_AT_ONCE = 2_000_000
"""Who has missed more reads the list: so many events would not fit among those that may wait for a client, and one that
comes back would be dropped again and again"""
_MAX_MODELS = 500
"""Of more the status has no list: it would be a megabyte for each client and second"""
_REPLACED = frozenset(("status", "pulls", "catalogue"))
"""Of these only the last one counts"""
_VOLATILE = ("probed_at", "memory")
"""They change with every look, and are no reason to send the status; `memory` has events of its own"""

Position = tuple[str, int]
"""Epoch and number of the last change of the images that a client knows"""


def parse_position(text: str) -> Position | None:
    """The position in `Last-Event-ID`; None if it has another form."""
    epoch, _, number = text.rpartition("-")
    if not epoch or len(text) > 100 or not (number.isascii() and number.isdecimal() and len(number) < 16):
        return None
    return epoch, int(number)


class Listener:
    """The events of one client that it has not got yet. `position`: None to begin with what changes from now on."""

    def __init__(
        self,
        audience: Audience,
        *,
        sees_pulls: bool,
        owner: str | None,
        links: Links,
        position: Position | None,
        must_list: bool = False,
    ) -> None:
        """`owner`: whose images it sees, None: everybody's. `must_list`: it has missed changes that are not known"""
        self.audience, self.sees_pulls, self.owner, self.links = audience, sees_pulls, owner, links
        self.position, self.must_list = position, must_list
        self.is_new = True
        self.has_ended = False
        """No events follow: the client did not read, or the server stops"""
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, event: str, data: str) -> None:
        """Add an event; a client that leaves too many unread gets no more."""
        id = "" if self.position is None else f"id: {self.position[0]}-{self.position[1]}\n"
        chunk = f"{id}event: {event}\ndata: {data}\n\n".encode()
        with self._changed:
            if self.has_ended:
                return
            if event in _REPLACED:
                self._forget(event)
            self._waiting.append((event, chunk))
            self._bytes += len(chunk)
            if len(self._waiting) > _MAX_WAITING or self._bytes > _MAX_WAITING_BYTES:
                self.has_ended = True
                self._waiting.clear()
            self._changed.notify()

    def _forget(self, event: str) -> None:
        kept = [(name, chunk) for name, chunk in self._waiting if name != event]
        if len(kept) < len(self._waiting):
            self._waiting = deque(kept)
            self._bytes = sum(len(chunk) for _, chunk in kept)

    def end(self) -> None:
        with self._changed:
            self.has_ended = True
            self._changed.notify()

    def take(self, timeout_s: float) -> bytes:
        """All events that wait; empty if there are none in time, or no more."""
        with self._changed:
            if not self._waiting and not self.has_ended:
                self._changed.wait(timeout_s)
            chunks = [chunk for _, chunk in self._waiting]
            self._waiting.clear()
            self._bytes = 0
            return b"".join(chunks)


class EventHub:
    """One per process; its thread runs while there are listeners."""

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services, self._clock = services, clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._state = _State()
        self._next_status_at = 0.0
        self._failed_at: dict[str, float] = {}

    def join(self, listener: Listener) -> None:
        """Begin to send events to `listener`. Raises RuntimeError if the system gives no more threads."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="event-hub", daemon=True)
                thread.start()
                self._thread = thread
            self._listeners.append(listener)
        self._wake.set()

    def leave(self, listener: Listener) -> None:
        with self._lock, suppress(ValueError):
            self._listeners.remove(listener)

    def position(self) -> Position | None:
        """The last change of the images; None if the index cannot be read now."""
        try:
            return self._services.image_feed.position()
        except Exception as error:
            self._log_failure("the changes of the images cannot be read", error)
            return None

    def _run(self) -> None:
        while True:
            with self._lock:
                listeners = tuple(self._listeners)
                if not listeners:
                    self._thread, self._state = None, _State()
                    return
            if self._services.shutdown.has_begun:
                for listener in listeners:
                    listener.end()
            try:
                self._look(listeners)
            except Exception as error:
                self._log_failure("a look at the server failed", error)
            self._wake.wait(LOOK_INTERVAL_S)
            self._wake.clear()

    def _log_failure(self, what: str, error: Exception) -> None:
        """Not in every look, even if the text of the error differs each time."""
        now = self._clock()
        if now - self._failed_at.get(what, -math.inf) < _LOG_INTERVAL_S:
            return
        self._failed_at[what] = now
        if isinstance(error, EaselError):  # its message says all
            log.error("%s: %s", what, error.message)
        else:
            log.error("%s: %s", what, error, exc_info=error)

    def _look(self, listeners: Sequence[Listener]) -> None:
        now = self._clock()
        before = self._state
        if now >= self._next_status_at or not before.is_read:
            self._state = _State.read(self._services, before)
            self._next_status_at = now + STATUS_INTERVAL_S
        self._send_images(listeners)
        for listener in listeners:
            self._state.send(listener, None if listener.is_new else before)
            listener.is_new = False

    def _send_images(self, listeners: Sequence[Listener]) -> None:
        """Bring each listener to the last change. Those that may see the same and know the same share one reading."""
        last = self.position()
        if last is None:
            return
        groups: dict[tuple[Position, str | None, str], list[Listener]] = {}
        for listener in listeners:
            if listener.position is None:
                listener.position = last
            if listener.must_list:
                listener.must_list, listener.position = False, last
                listener.put("resync", "{}")
            elif listener.position != last:
                key = (listener.position, listener.owner, listener.links.prefix)
                groups.setdefault(key, []).append(listener)
        for (position, owner, _), group in groups.items():
            self._send_changes(position, owner, last, group)

    def _send_changes(
        self, position: Position, owner: str | None, last: Position, group: Sequence[Listener]
    ) -> None:
        feed = self._services.image_feed
        changes = feed.changes_after(*position, owner)
        # There may be later ones than `last` meanwhile, which are sent now and would be sent again.
        changes = None if changes is None else [change for change in changes if change.number <= last[1]]
        events = None if changes is None else self._image_events(changes, group[0].links)
        for listener in group:
            if events is None:
                listener.position = last
                listener.put("resync", "{}")
            for number, data in events or ():
                listener.position = (last[0], number)
                listener.put("image", data)
            listener.position = last

    def _image_events(self, changes: Sequence[ImageChange], links: Links) -> list[tuple[int, str]] | None:
        """The number and the data of each event; None if they are too many. Of several changes of one image the last one is
        sent."""
        latest = {change.name: change for change in changes}
        if len(latest) > _MAX_IMAGES_AT_ONCE:
            return None
        added = {change.name for change in changes if change.kind == "added"}
        names = [change.name for change in latest.values() if change.kind != "removed"]
        documents = self._services.image_feed.documents(names, links) if names else {}
        events = []
        for change in sorted(latest.values(), key=lambda change: change.number):
            document = documents.get(change.name)
            kind = "removed" if document is None else "added" if change.name in added else "changed"
            image = {"name": change.name} if document is None else document
            events.append((change.number, json.dumps({"change": kind, "image": image})))
        return events if sum(len(data) for _, data in events) <= _MAX_IMAGE_CHARS_AT_ONCE else None


@dataclass
class _State:
    """All that is sent but images, as it was read at one moment."""

    is_read: bool = False
    common: str = ""
    """The status without what differs or changes always"""
    volatile: str = ""
    models: str = "null"
    models_of: object = None
    """What `models` was made of"""
    document: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    pulls: str = "[]"
    catalogue: Mapping[bool, str] = field(default_factory=dict)
    """Whether the listener sees messages -> the event"""
    _parts: dict[Audience, tuple[str, str]] = field(default_factory=dict)
    """The part of each audience, and the same without what changes always"""

    @classmethod
    def read(cls, services: Services, before: _State) -> _State:
        document = whole_status(services)
        models = document["models"]
        if models is before.models_of:
            models_text = before.models
        else:
            models_text = json.dumps(models) if len(models) <= _MAX_MODELS else "null"
        rest = {
            name: value for name, value in document.items() if name not in (*OF_CALLER, *_VOLATILE, "models")
        }
        return cls(
            is_read=True,
            common=json.dumps(rest),
            volatile=json.dumps({name: document[name] for name in _VOLATILE}),
            models=models_text,
            models_of=models,
            document=document,
            samples=services.system_status.memory_samples(),
            pulls=_pulls(services),
            catalogue=_catalogue(services),
        )

    def send(self, listener: Listener, before: _State | None) -> None:
        """What differs from `before`; everything if that is None."""
        if not self.is_read or self is before:
            return
        audience = listener.audience
        if before is None or self._key(audience) != before._key(audience):
            listener.put("status", self._text(audience))
        self._send_memory(listener, before)
        if listener.sees_pulls and (before is None or self.pulls != before.pulls):
            listener.put("pulls", self.pulls)
        sees_messages = listener.sees_pulls
        models_differ = before is not None and self.models_of != before.models_of
        if before is None or models_differ or self.catalogue != before.catalogue:
            listener.put("catalogue", self.catalogue[sees_messages])

    def _send_memory(self, listener: Listener, before: _State | None) -> None:
        if before is None:
            listener.put("memory", json.dumps(list(self.samples)))
        elif self.samples is not before.samples:
            last = before.samples[-1]["at"] if before.samples else 0.0
            for sample in self.samples:
                if sample["at"] > last:
                    listener.put("memory", json.dumps(sample))

    def _key(self, audience: Audience) -> tuple[str, str, str]:
        """Equal for states that need not be sent again."""
        return self.common, self.models, self._part(audience)[1]

    def _text(self, audience: Audience) -> str:
        parts = (self.common, self.volatile, f'{{"models": {self.models}}}', self._part(audience)[0])
        return "{" + ", ".join(part[1:-1] for part in parts) + "}"

    def _part(self, audience: Audience) -> tuple[str, str]:
        if audience not in self._parts:
            part = audience.part_of(self.document)
            if len(part["engines"]) == 1:  # the other fields say the same of it
                part = {**part, "engines": []}
            if len(part["gpus"]) == 1:
                part = {**part, "gpus": []}
            stable = {
                **part,
                **{
                    name: [
                        {key: value for key, value in entry.items() if key != "age_s"} for entry in part[name]
                    ]
                    for name in OF_REQUESTS
                },
                "engines": [
                    {key: value for key, value in engine.items() if key not in _VOLATILE}
                    for engine in part["engines"]
                ],
            }
            self._parts[audience] = json.dumps(part), json.dumps(stable)
        return self._parts[audience]


def _pulls(services: Services) -> str:
    with suppress(OSError):
        return json.dumps(services.pulls.reports())
    return "[]"


def _catalogue(services: Services) -> dict[bool, str]:
    """Messages name files of this installation."""
    loaded_at, error = services.catalogue_loaded_at(), services.catalogue_error()
    whole = None if error is None else {"code": error.code, "message": error.message}
    short = None if error is None else {"code": error.code, "message": None}
    return {
        sees: json.dumps({"loaded_at": loaded_at, "error": whole if sees else short})
        for sees in (True, False)
    }
