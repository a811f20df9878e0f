"""The WebSocket clients: who listens under which id, and the frames they get. `send…` may be called by any thread."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

MOST_BYTES = 100 * 1024 * 1024
FEATURES = {"supports_preview_metadata": True, "max_upload_size": MOST_BYTES}
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
FORMATS = {"image/jpeg": 1, "image/png": 2}
MOST_WAITING = 10000
GOODBYE_S = 0.5


class Listener:
    """One open socket. Frames wait in its own queue, so one that does not read keeps nobody else waiting."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.metadata = False
        self.waiting: asyncio.Queue[str | bytes] = asyncio.Queue()

    def give(self, frame: str | bytes) -> None:
        """Queues a frame. Of a client that is far behind the oldest are dropped: how its jobs ended comes last."""
        if self.waiting.qsize() >= MOST_WAITING:
            self.waiting.get_nowait()
        self.waiting.put_nowait(frame)

    async def write(self) -> None:
        """Writes what waits, for ever."""
        while True:
            frame = await self.waiting.get()
            if isinstance(frame, str):
                await self.socket.send_str(frame)
            else:
                await self.socket.send_bytes(frame)


class Sockets:
    """All listeners by client id; the newest of an id wins, as in ComfyUI."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._listeners: dict[str, Listener] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at_work: tuple[Any, str | None] = (None, None)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Names the loop that the sockets live in."""
        self._loop = loop

    def listening(self, client: Any) -> bool:
        """Whether this client has a socket open; for None, whether anybody has."""
        return bool(self._listeners) if client is None else client in self._listeners

    def at_work(self, client: Any, node_id: str | None) -> None:
        """Remembers which node runs for whom, for a client that comes back."""
        self._at_work = (client, node_id)

    # --- sending ---

    def send(self, event: str, data: dict[str, Any], client: Any = None) -> None:
        """A JSON event to a client, or to everybody."""
        self._later(self._give, json.dumps({"type": event, "data": data}), client)

    def send_status(self) -> None:
        """How long the queue is, to everybody."""
        self.send("status", {"status": self._status()})

    def send_progress(self, told: dict[str, Any], picture: tuple[str, bytes] | None, client: Any) -> None:
        """A step, and its picture: before it to clients that negotiated metadata, after it to the others."""
        self._later(
            self._give_progress, json.dumps({"type": "progress", "data": told}), told, picture, client
        )

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed() and self._listeners:
            self._loop.call_soon_threadsafe(call, *args)

    def _give(self, frame: str, client: Any) -> None:
        for listener in self._to(client):
            listener.give(frame)

    def _give_progress(
        self, text: str, told: dict[str, Any], picture: tuple[str, bytes] | None, client: Any
    ) -> None:
        for listener in self._to(client):
            if picture and listener.metadata:
                listener.give(_with_metadata(told, *picture))
            listener.give(text)
            if picture and not listener.metadata:
                listener.give(struct.pack(">II", PREVIEW, FORMATS[picture[0]]) + picture[1])

    def _to(self, client: Any) -> list[Listener]:
        if client is None:
            return list(self._listeners.values())
        return [self._listeners[client]] if client in self._listeners else []

    # --- receiving ---

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """`GET /ws?clientId=…`: one client, from its coming to its going."""
        socket = web.WebSocketResponse(compress=False, timeout=GOODBYE_S)
        await socket.prepare(request)
        client = request.query.get("clientId", "") or uuid.uuid4().hex
        listener = self._listeners[client] = Listener(socket)
        self._greet(client, listener)
        writer = asyncio.ensure_future(listener.write())
        try:
            await self._listen(listener)
        finally:
            writer.cancel()
            self._listeners.pop(
                client, None
            )  # even where a newer socket has the id: ComfyUI silences that one too
        return socket

    def _greet(self, client: str, listener: Listener) -> None:
        listener.give(json.dumps({"type": "status", "data": {"status": self._status(), "sid": client}}))
        working_for, node_id = self._at_work
        if working_for == client and node_id is not None:
            listener.give(json.dumps({"type": "executing", "data": {"node": node_id}}))

    async def _listen(self, listener: Listener) -> None:
        negotiated = False
        async for message in listener.socket:
            if message.type is not WSMsgType.TEXT or negotiated:
                continue
            try:
                said = json.loads(message.data)
            except ValueError:
                continue
            negotiated = True
            if isinstance(said, dict) and said.get("type") == "feature_flags":
                flags = said.get("data")
                listener.metadata = isinstance(flags, dict) and bool(flags.get("supports_preview_metadata"))
                listener.give(json.dumps({"type": "feature_flags", "data": FEATURES}))

    async def close(self) -> None:
        """Says goodbye to all at once, for `GOODBYE_S` at most: one that stopped reading would never take it."""
        goodbyes = [asyncio.ensure_future(each.socket.close()) for each in self._listeners.values()]
        if goodbyes:
            _, unheard = await asyncio.wait(goodbyes, timeout=GOODBYE_S)
            for goodbye in unheard:
                goodbye.cancel()


def _with_metadata(told: dict[str, Any], mime: str, picture: bytes) -> bytes:
    node_id = told["node"]
    metadata = {
        "node_id": node_id,
        "prompt_id": told["prompt_id"],
        "display_node_id": node_id,
        "parent_node_id": None,
        "real_node_id": node_id,
        "image_type": mime,
    }
    written = json.dumps(metadata).encode()
    return struct.pack(">II", PREVIEW_WITH_METADATA, len(written)) + written + picture
