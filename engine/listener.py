"""One persistent WebSocket to ComfyUI, read by a thread that hands every message to its job's inbox and never waits
for anybody: ComfyUI delivers to all its clients in one loop, so a reader that dawdles stalls the others too."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from urllib.parse import urlsplit, urlunsplit

import websocket

from engine.messages import Event, Frame, read_binary, read_text
from errors import EaselError, EngineUnreachable

log = logging.getLogger(__name__)

_HELLO = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
_PREVIEW_BACKLOG = 32


@dataclass(frozen=True)
class SocketLost:
    """The socket ended; events of the jobs that were using it are gone for good."""


@dataclass(frozen=True)
class CancelSignal:
    """Somebody in this process wants the job taken back, for this reason."""

    reason: EaselError


Item = Event | Frame | SocketLost | CancelSignal
Inbox = SimpleQueue[Item]


class Listener:
    """Connects on the first use, and again on the next use after a loss, each time with a new client id.

    A client id is never used twice: when the older of two sockets with one id closes, ComfyUI forgets the newer.
    """

    def __init__(
        self, url: str, *, connect_timeout_s: float, ping_s: float, on_connect: Callable[[], None]
    ) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._ping_s = ping_s
        self._on_connect = on_connect
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._failures = 0

    @contextlib.contextmanager
    def listening(self, prompt_id: str, inbox: Inbox) -> Iterator[str]:
        """Deliver what concerns this prompt to the inbox; yields the client id to submit with."""
        connection = self._joined(prompt_id, inbox)
        try:
            yield connection.client_id
        finally:
            connection.leave(prompt_id)

    def _joined(self, prompt_id: str, inbox: Inbox) -> _Connection:
        failures = self._failures
        with self._lock:
            if self._connection is not None and self._connection.join(prompt_id, inbox):
                return self._connection
            if (
                self._failures != failures
            ):  # do not queue up to find out, one timeout after another, what is known
                raise EngineUnreachable(f"ComfyUI at {self._url} does not answer.", url=self._url)
            self._connection = self._connect()
            self._connection.join(prompt_id, inbox)
            return self._connection

    def _connect(self) -> _Connection:
        try:
            connection = _Connection(self._url, self._connect_timeout_s, self._ping_s)
        except EngineUnreachable:
            self._failures += 1
            raise
        self._on_connect()
        return connection

    def close(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Connection:
    def __init__(self, url: str, connect_timeout_s: float, ping_s: float) -> None:
        self.client_id = uuid.uuid4().hex
        self._ping_s = ping_s
        self._lock = threading.Lock()
        self._inboxes: dict[str, Inbox] = {}
        self._open = True
        self._executing: tuple[str, str | None] | None = None
        self._socket = _connected(url, self.client_id, connect_timeout_s)
        self._thread = threading.Thread(target=self._read, name="easel-engine-listener", daemon=True)
        self._thread.start()

    def join(self, prompt_id: str, inbox: Inbox) -> bool:
        """False if the connection is over: nothing would ever arrive."""
        with self._lock:
            if self._open:
                self._inboxes[prompt_id] = inbox
            return self._open

    def leave(self, prompt_id: str) -> None:
        with self._lock:
            self._inboxes.pop(prompt_id, None)

    def close(self) -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            self._socket.send_close()
        raw = self._socket.sock
        if raw is not None:  # the reader closes it as it ends
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=2)

    def _read(self) -> None:
        try:
            self._socket.settimeout(self._ping_s)
            awaiting_pong = False
            while True:
                try:
                    opcode, message = self._socket.recv_data(control_frame=True)
                except websocket.WebSocketTimeoutException:
                    if awaiting_pong:
                        return
                    self._socket.ping()
                    awaiting_pong = True
                    continue
                awaiting_pong = False
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return
                self._deliver(opcode, message)
        except (OSError, websocket.WebSocketException) as error:
            log.debug("the engine's socket ended: %s", error)
        finally:
            self._end()

    def _deliver(self, opcode: int, message: bytes) -> None:
        if opcode == websocket.ABNF.OPCODE_TEXT:
            event = read_text(message)
            if event is not None:
                self._deliver_event(event)
        elif opcode == websocket.ABNF.OPCODE_BINARY:
            frame = read_binary(message)
            if frame is not None:
                self._deliver_frame(frame)

    def _deliver_event(self, event: Event) -> None:
        if event.prompt_id is None:
            return
        if event.kind == "executing":
            node = event.data.get("node")
            self._executing = (event.prompt_id, node) if isinstance(node, str) else None
        inbox = self._inboxes.get(event.prompt_id)
        if inbox is not None:
            inbox.put(event)

    def _deliver_frame(self, frame: Frame) -> None:
        # Without ids it is ours only while a job of ours executes a node: ComfyUI runs one job at a time, and
        # shows the frames of jobs that gave no client id to everybody.
        if frame.prompt_id is None and self._executing is not None:
            frame = Frame(*self._executing, frame.mime, frame.data)
        inbox = self._inboxes.get(frame.prompt_id) if frame.prompt_id is not None else None
        if inbox is not None and (frame.mime == "image/png" or inbox.qsize() < _PREVIEW_BACKLOG):
            inbox.put(frame)

    def _end(self) -> None:
        with self._lock:
            self._open = False
            inboxes = list(self._inboxes.values())
        self._socket.shutdown()  # type: ignore[no-untyped-call]
        for inbox in inboxes:
            inbox.put(SocketLost())


def _connected(url: str, client_id: str, timeout_s: float) -> websocket.WebSocket:
    """A socket that ComfyUI has registered (it has sent its first `status`) and that asked for previews with ids.

    No compression is offered: a picture of 3 MB would be deflated in ComfyUI's event loop.
    """
    raw = None
    try:
        raw = _raw_socket(url, timeout_s)
        connection = websocket.create_connection(
            f"{_websocket_url(url)}/ws?clientId={client_id}",
            timeout=timeout_s,
            socket=raw,
            suppress_origin=True,
            enable_multithread=True,
            skip_utf8_validation=True,
            redirect_limit=0,
        )
        connection.send(_HELLO)
        connection.recv()
        return connection
    except (OSError, websocket.WebSocketException) as error:
        if raw is not None:
            raw.close()
        refused = isinstance(error, ConnectionRefusedError)
        reason = "connection refused" if refused else f"no WebSocket at /ws, {type(error).__name__}"
        raise EngineUnreachable(
            f"ComfyUI at {url} does not answer: {reason}.", url=url, refused=refused
        ) from error


def _raw_socket(url: str, timeout_s: float) -> socket.socket:
    """Connected by us, because websocket-client takes proxies from the environment when it connects itself."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    raw = socket.create_connection((host, port), timeout=timeout_s)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not secure:
        return raw
    return ssl.create_default_context().wrap_socket(raw, server_hostname=host)


def _websocket_url(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme="wss" if parts.scheme == "https" else "ws")).rstrip("/")
