"""The WebSocket clients by client id, and the frames sent to them. The `send…` methods may be called from any thread."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

MAX_UPLOAD_BYTES = 100 * 1024 * 1024
FEATURES = {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD_BYTES}
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
FORMATS = {"image/jpeg": 1, "image/png": 2}
MAX_QUEUED_FRAMES = 10000
CLOSE_TIMEOUT_S = 0.5


class Connection:
    """One open socket. Each has its own queue of frames, so a client that does not read does not delay the others."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self.wants_metadata = False
        self.frames: asyncio.Queue[str | bytes] = asyncio.Queue()

    def queue(self, frame: str | bytes) -> None:
        """Queue a frame. If the queue is full, the oldest frame is dropped: the last ones say how the jobs ended."""
        if self.frames.qsize() >= MAX_QUEUED_FRAMES:
            self.frames.get_nowait()
        self.frames.put_nowait(frame)

    async def write_frames(self) -> None:
        """Write queued frames until cancelled."""
        while True:
            frame = await self.frames.get()
            if isinstance(frame, str):
                await self.socket.send_str(frame)
            else:
                await self.socket.send_bytes(frame)


class Sockets:
    """All connections by client id; the newest connection of an id replaces earlier ones, as in ComfyUI."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._connections: dict[str, Connection] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running_node: tuple[Any, str | None] = (None, None)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop of the sockets."""
        self._loop = loop

    def is_connected(self, client: Any) -> bool:
        """Whether this client has an open socket; for None, whether any client has."""
        return bool(self._connections) if client is None else client in self._connections

    def set_running_node(self, client: Any, node_id: str | None) -> None:
        """Remember which node runs for which client, for a client that reconnects."""
        self._running_node = (client, node_id)

    # --- sending ---

    def send(self, event: str, data: dict[str, Any], client: Any = None) -> None:
        """Send a JSON event to one client, or to all."""
        self._call_in_loop(self._queue_text, json.dumps({"type": event, "data": data}), client)

    def send_status(self) -> None:
        """Send the length of the queue to all clients."""
        self.send("status", {"status": self._status()})

    def send_progress(self, data: dict[str, Any], picture: tuple[str, bytes] | None, client: Any) -> None:
        """Send a step with its picture. Clients that negotiated metadata get the picture first, others get it last."""
        text = json.dumps({"type": "progress", "data": data})
        self._call_in_loop(self._queue_progress, text, data, picture, client)

    def _call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed() and self._connections:
            self._loop.call_soon_threadsafe(function, *args)

    def _queue_text(self, frame: str, client: Any) -> None:
        for connection in self._connections_of(client):
            connection.queue(frame)

    def _queue_progress(
        self, text: str, data: dict[str, Any], picture: tuple[str, bytes] | None, client: Any
    ) -> None:
        for connection in self._connections_of(client):
            if picture and connection.wants_metadata:
                connection.queue(_frame_with_metadata(data, *picture))
            connection.queue(text)
            if picture and not connection.wants_metadata:
                connection.queue(struct.pack(">II", PREVIEW, FORMATS[picture[0]]) + picture[1])

    def _connections_of(self, client: Any) -> list[Connection]:
        if client is None:
            return list(self._connections.values())
        return [self._connections[client]] if client in self._connections else []

    # --- receiving ---

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """`GET /ws?clientId=…`: serves one client until it disconnects."""
        socket = web.WebSocketResponse(compress=False, timeout=CLOSE_TIMEOUT_S)
        await socket.prepare(request)
        client = request.query.get("clientId", "") or uuid.uuid4().hex
        connection = self._connections[client] = Connection(socket)
        self._queue_first_events(client, connection)
        writer = asyncio.ensure_future(connection.write_frames())
        try:
            await self._read_messages(connection)
        finally:
            writer.cancel()
            # Even if a newer socket has this id: ComfyUI stops sending to that one too.
            self._connections.pop(client, None)
        return socket

    def _queue_first_events(self, client: str, connection: Connection) -> None:
        connection.queue(json.dumps({"type": "status", "data": {"status": self._status(), "sid": client}}))
        running_for, node_id = self._running_node
        if running_for == client and node_id is not None:
            connection.queue(json.dumps({"type": "executing", "data": {"node": node_id}}))

    async def _read_messages(self, connection: Connection) -> None:
        negotiated = False
        async for message in connection.socket:
            if message.type is not WSMsgType.TEXT or negotiated:
                continue
            try:
                value = json.loads(message.data)
            except ValueError:
                continue
            negotiated = True
            if isinstance(value, dict) and value.get("type") == "feature_flags":
                flags = value.get("data")
                connection.wants_metadata = isinstance(flags, dict) and bool(
                    flags.get("supports_preview_metadata")
                )
                connection.queue(json.dumps({"type": "feature_flags", "data": FEATURES}))

    async def close(self) -> None:
        """Close all sockets in parallel, within CLOSE_TIMEOUT_S: a client that does not read never confirms."""
        closing = [
            asyncio.ensure_future(connection.socket.close()) for connection in self._connections.values()
        ]
        if closing:
            _, unfinished = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)
            for task in unfinished:
                task.cancel()


def _frame_with_metadata(data: dict[str, Any], mime: str, picture: bytes) -> bytes:
    node_id = data["node"]
    metadata = {
        "node_id": node_id,
        "prompt_id": data["prompt_id"],
        "display_node_id": node_id,
        "parent_node_id": None,
        "real_node_id": node_id,
        "image_type": mime,
    }
    encoded = json.dumps(metadata).encode()
    return struct.pack(">II", PREVIEW_WITH_METADATA, len(encoded)) + encoded + picture
