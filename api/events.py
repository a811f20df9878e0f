"""GET /api/events: everything that happens on this server, as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, g, request

from access import Caller
from api.compression import compressed_stream
from api.connection import disconnect_check
from api.errors import envelope
from api.event_hub import EventHub, Listener, parse_position
from api.event_streams import EventStreams, ReleasedStream
from api.image_requests import links_of
from api.openapi import description
from api.paths import EVENTS
from api.services import Services
from api.status_document import Audience
from api.stream_events import encode_event
from api.streams import HEADERS, KEEP_ALIVE_INTERVAL_S, MIME

_CHECK_INTERVAL_S = 1.0
"""How often a stream looks whether its client has hung up and its key is still valid"""


def events_blueprint(services: Services, streams: EventStreams) -> Blueprint:
    """The route. `streams`: the places of all event streams of this process."""
    routes, hub = Blueprint("events", __name__), EventHub(services)
    routes.add_url_rule(EVENTS, "events", lambda: _events(services, hub, streams))
    return routes


def _events(services: Services, hub: EventHub, streams: EventStreams) -> Response:
    leave = streams.enter(g.caller.owner)
    try:
        stream = EventStream(services, hub, _listener(services, hub, g.caller), g.caller)
        events = stream.events(disconnect_check(request.environ))
        accepts_gzip = request.accept_encodings["gzip"] > 0
        body = ReleasedStream(compressed_stream(events) if accepts_gzip else events, leave)
    except BaseException:
        leave()
        raise
    response = Response(body, mimetype=MIME, headers=HEADERS)
    response.vary.add("Accept-Encoding")
    if accepts_gzip:
        response.headers["Content-Encoding"] = "gzip"
    return response


def _listener(services: Services, hub: EventHub, caller: Caller) -> Listener:
    sent = request.headers.get("Last-Event-ID", "")
    seen = parse_position(sent) if sent else None
    return Listener(
        Audience.of(caller),
        sees_pulls=caller.may("view", "operate"),
        owner=services.image_feed.owner_of(caller),
        links=links_of(services.options),
        position=seen or hub.position(),
        must_list=bool(sent) and seen is None,
    )


class EventStream:
    """The events of one client."""

    def __init__(self, services: Services, hub: EventHub, listener: Listener, caller: Caller) -> None:
        self._services, self._hub, self._listener, self._caller = services, hub, listener, caller

    def events(self, has_hung_up: Callable[[], bool]) -> Iterator[bytes]:
        self._listener.put("hello", json.dumps(self._hello()))
        self._hub.join(self._listener)
        try:
            yield from self._follow(has_hung_up)
        finally:
            self._hub.leave(self._listener)

    def _follow(self, has_hung_up: Callable[[], bool]) -> Iterator[bytes]:
        sent_at = checked_at = time.monotonic()
        while True:
            chunk = self._listener.take(_CHECK_INTERVAL_S)
            now = time.monotonic()
            if chunk:
                sent_at = now
                yield chunk
            if self._listener.has_ended:
                return
            if now - checked_at < _CHECK_INTERVAL_S and chunk:
                continue
            checked_at = now
            if has_hung_up():
                return
            if (ended := self._services.gate.ended(self._caller)) is not None:
                yield from encode_event({"type": "error", **envelope(ended)}, named=True)
                return
            if not self._services.gate.is_current(self._caller):
                return  # it may see something else now: its client connects again
            if now - sent_at > KEEP_ALIVE_INTERVAL_S:
                sent_at = now
                yield b": still there\n\n"

    def _hello(self) -> dict[str, Any]:
        caller = self._caller
        key = {"name": caller.name, "scopes": sorted(caller.scopes)} if caller.key else None
        return {"version": description()["info"]["version"], "key": key}
