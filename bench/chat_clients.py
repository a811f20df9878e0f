"""Many chat clients in one thread: each keeps a connection and reads a stream as it comes."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.llm_server import CHAT_PATH

TIMEOUT_S = 60.0
_READ_BYTES = 256 * 1024
_TOKEN, _END = b'"content"', b"0\r\n\r\n"


@dataclass(frozen=True)
class Streamed:
    """One stream that was read to its end. Times on the clock of time.perf_counter."""

    sent_at: float
    first_token_at: float
    ended_at: float
    tokens: int

    @property
    def first_token_s(self) -> float:
        return self.first_token_at - self.sent_at


class ChatClient:
    """A client of the server at `url`. For one stream at a time."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        address = (self._parts.hostname or "", self._parts.port or 80)
        self.socket = socket.create_connection(address, TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest, self._tokens, self._first_at = b"", 0, 0.0

    @property
    def has_begun(self) -> bool:
        """Whether the first token of the present stream has come."""
        return self._tokens > 0

    def send(self, body: bytes) -> None:
        """Ask for a stream."""
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: {self._parts.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._rest, self._tokens, self._first_at = b"", 0, 0.0
        self._sent_at = time.perf_counter()
        self.socket.sendall(head.encode() + body)

    def read(self) -> Streamed | None:
        """Take what has arrived; the stream when it has ended. Raises RuntimeError for another answer."""
        data = self.socket.recv(_READ_BYTES)
        now = time.perf_counter()
        data, known = self._rest + data, self._tokens
        self._tokens += data.count(_TOKEN)
        if not known:
            if not data or (len(data) > 12 and not data.startswith(b"HTTP/1.1 200")):
                raise RuntimeError(f"no stream: {data[:500]!r}")
            if not self._tokens:
                self._rest = data  # only a part of the head
                return None
            self._first_at = now
        if data.endswith(_END):
            return Streamed(self._sent_at, self._first_at, now, self._tokens)
        if not data:
            raise RuntimeError("the stream was cut off")
        # A token that is cut in two counts with its second part.
        self._rest = data[-(len(_TOKEN) - 1) :]
        return None

    def stream(self, body: bytes) -> Streamed:
        """Ask for a stream and read it to its end."""
        self.send(body)
        while (streamed := self.read()) is None:
            pass
        return streamed

    def close(self) -> None:
        self.socket.close()


def stream_at_once(clients: Iterable[ChatClient], body: bytes) -> list[Streamed]:
    """One stream for each client, all begun at the same moment."""
    return _run({client: [(0.0, body)] for client in clients})


def stream_staggered(
    clients: Iterable[ChatClient], body: bytes, *, stream_s: float, rounds: int
) -> list[Streamed]:
    """`rounds` streams for each client, one after another; their starts are spread evenly over the duration of one."""
    all_clients = list(clients)
    return _run(
        {
            client: [(stream_s * number / len(all_clients), body), *[(0.0, body)] * (rounds - 1)]
            for number, client in enumerate(all_clients)
        }
    )


def _run(plan: dict[ChatClient, list[tuple[float, bytes]]]) -> list[Streamed]:
    """`plan`: for each client the seconds before each stream, from the start or the end of the one before, and its body."""
    done: list[Streamed] = []
    begin_at: dict[ChatClient, float] = {}
    started_at = time.perf_counter()
    begin_at = {client: started_at + streams[0][0] for client, streams in plan.items()}
    deadline = started_at + TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for client in plan:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while any(plan.values()):
            now = time.perf_counter()
            if now > deadline:
                raise TimeoutError(f"the streams did not end within {TIMEOUT_S:g} s")
            for client in [client for client, at in begin_at.items() if at <= now]:
                del begin_at[client]
                client.send(plan[client][0][1])
            wait_s = min([at - now for at in begin_at.values()], default=1.0)
            for key, _ in selector.select(max(0.0, wait_s)):
                if (streamed := key.data.read()) is not None:
                    done.append(streamed)
                    streams = plan[key.data]
                    streams.pop(0)
                    if streams:
                        begin_at[key.data] = time.perf_counter() + streams[0][0]
    return done
