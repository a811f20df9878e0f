"""One client's connection, and the way from the received bytes to gunicorn's parser."""

from __future__ import annotations

import re
import ssl
from enum import Enum, auto
from typing import Any

from gunicorn.http.errors import UnsupportedTransferCoding
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from server.framing import Body, FixedBody, body_of, end_of_head
from server.received import MAX_IN_MEMORY_BYTES, ReceivedBytes

_EXPECT = re.compile(rb"^expect[ \t]*:", re.IGNORECASE | re.MULTILINE)


class Phase(Enum):
    """What a connection waits for, if no thread handles it."""

    HANDSHAKE = auto()
    """TLS"""
    IDLE = auto()
    """The first byte of the next request"""
    HEAD = auto()
    BODY = auto()
    CLOSING = auto()
    """The client, which has its response, to close too"""


class Connection(TConn):
    """A connection that reads without blocking until a request is complete."""

    def __init__(
        self, cfg: Any, sock: Any, client: Any, server: Any, folders: tuple[str | None, ...]
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self._folders = folders
        self.phase: Phase | None = None
        """None: a thread handles it"""
        self.events = 0
        """What the poller watches; 0: it does not watch this connection"""
        self.since = self.deadline = 0.0
        """When it began to wait, and until when it may"""
        self.last_body_deadline = 0.0
        self.body_limit = 0
        self.counted_bytes = 0
        """Bytes of this connection in the worker's sum of incomplete bodies"""
        self.is_counted = False
        """Whether it counts towards the connections of its client"""
        self.is_closed = False
        self.received = ReceivedBytes(folders)
        self.body: Body | None = None
        """The body that the head announced; None while the head is not complete"""
        self.head_size = 0
        self._scanned = 0

    def start_parser(self) -> None:
        """Use the socket as it is now; TLS has its own."""
        self.parser = BufferedParser(self.cfg, self.sock, self.client)
        # gunicorn's own preparation, which would block, is not needed any more.
        self.initialized = self.data_ready = True

    def start_request(self, received: bytes) -> None:
        """Forget the last request; `received` are the first bytes of the next one."""
        self.received.close()
        self.received = ReceivedBytes(self._folders)
        self.body, self.head_size, self._scanned = None, 0, 0
        if received:
            self.add(received)

    def add(self, data: bytes | memoryview) -> None:
        """Take received bytes. Raises OSError if they cannot be stored on disk."""
        if self.body is None:
            self.received.write(data, in_memory=True)
            self._find_body()
        else:
            self.body.feed(data)
            self.received.write(data)

    def _find_body(self) -> None:
        received = self.received.memory
        end = end_of_head(received, self._scanned)
        self._scanned = len(received)
        if end is not None:
            self.head_size = end
            self.body = body_of(received[:end])
            self.body.feed(received[end:])  # type: ignore[arg-type]

    @property
    def is_complete(self) -> bool:
        """Whether the request can be handled without waiting for the client."""
        return self.body is not None and self.body.is_complete

    @property
    def is_small(self) -> bool:
        """Whether the whole request fits in memory, and the client sends it without being asked to continue."""
        is_short = isinstance(self.body, FixedBody) and self.body.size <= MAX_IN_MEMORY_BYTES // 2
        return is_short and _EXPECT.search(self.received.memory, 0, self.head_size) is None

    def hand_over(self, *, reads_socket: bool = False) -> None:
        """Give the received bytes to the parser. `reads_socket`: what is missing is read from the socket, which blocks;
        otherwise the request ends with the received bytes, and the connection with the request if they are not all."""
        is_cut = not reads_socket and (self.body is None or not self.body.is_complete or self.body.is_invalid)
        self.parser.use(self.received, reads_socket=reads_socket, is_cut=is_cut)  # type: ignore[union-attr]

    def take_rest(self) -> bytes:
        """What was received after the end of the request that was handled."""
        return self.parser.unreader.take_rest()  # type: ignore[no-any-return, union-attr]

    def handshake(self) -> Phase:
        """Continue the TLS handshake. Raises ssl.SSLWantReadError, ssl.SSLWantWriteError, and OSError if it failed."""
        self.sock.do_handshake()  # type: ignore[attr-defined]
        self.start_parser()
        return Phase.HEAD

    def receive(self, buffer: memoryview) -> int | None:
        """Read into `buffer`. The number of bytes, 0 at the end of the stream, None if there is nothing yet. Raises
        OSError."""
        try:
            return int(self.sock.recv_into(buffer))
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    @property
    def has_pending_data(self) -> bool:
        """Whether the TLS layer holds bytes that the poller does not see."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0


class BufferedUnreader(SocketUnreader):
    """Where gunicorn's parser reads: first the bytes that were received already, then the socket if it may."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._received = ReceivedBytes()
        self._reads_socket = False

    def use(self, received: ReceivedBytes, *, reads_socket: bool) -> None:
        """Read `received` next."""
        self._received, self._reads_socket = received, reads_socket

    def chunk(self, size_hint: int | None = None) -> bytes:
        """gunicorn's name for: the next piece. Empty at the end."""
        data = self._received.read()
        if data or not self._reads_socket:
            return data
        return super().chunk(size_hint)  # type: ignore[call-arg]

    def take_rest(self) -> bytes:
        """The bytes that the request did not need."""
        parts = [self.take_buffered()]
        while part := self._received.read():
            parts.append(part)
        return b"".join(parts)


class EaselRequest(Request):
    """A request whose body may be chunked, and not encoded in any other way."""

    def set_body_reader(self) -> None:
        """Raises UnsupportedTransferCoding; gunicorn would pass on `gzip, chunked` as if it were plain."""
        encodings = [value for name, value in self.headers if name == "TRANSFER-ENCODING"]
        if encodings and (len(encodings) > 1 or encodings[0].lower() != "chunked"):
            raise UnsupportedTransferCoding(", ".join(encodings))
        super().set_body_reader()


class BufferedParser(RequestParser):
    """gunicorn's parser over the received bytes."""

    mesg_class = EaselRequest

    def __init__(self, cfg: Any, sock: Any, client: Any) -> None:
        super().__init__(cfg, sock, client)
        self.unreader = BufferedUnreader(sock)
        self._reads_socket = self._is_cut = False

    def use(self, received: ReceivedBytes, *, reads_socket: bool, is_cut: bool) -> None:
        """Parse `received` next; see `Connection.hand_over`."""
        self.unreader.use(received, reads_socket=reads_socket)  # type: ignore[attr-defined]
        self._reads_socket, self._is_cut = reads_socket, is_cut

    def __next__(self) -> Any:
        request = super().__next__()
        # The worker has answered `Expect: 100-continue`, if there is something to wait for.
        request._expected_100_continue = False  # type: ignore[attr-defined]
        # Read by `api.connection.discard_body`.
        request.body.is_received = not self._reads_socket  # type: ignore[union-attr]
        if self._is_cut:
            request.force_close()
        return request

    next = __next__  # type: ignore[assignment]
