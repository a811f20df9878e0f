"""The reader of WebSocket frames, on a real pair of sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from websocket import ABNF, WebSocketConnectionClosedException, WebSocketProtocolException

from engine.frames import FrameSocket

TEXT, BINARY, CONT = ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY, ABNF.OPCODE_CONT
CLOSE, PING, PONG = ABNF.OPCODE_CLOSE, ABNF.OPCODE_PING, ABNF.OPCODE_PONG


@pytest.fixture
def pair() -> Iterator[tuple[FrameSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        yield FrameSocket(ours), theirs


def frame(opcode: int, content: bytes = b"", *, is_last: bool = True) -> bytes:
    first = (0x80 if is_last else 0) | opcode
    if len(content) < 126:
        return bytes([first, len(content)]) + content
    if len(content) < 65536:
        return struct.pack("!BBH", first, 126, len(content)) + content
    return struct.pack("!BBQ", first, 127, len(content)) + content


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_messages_of_all_sizes_are_read_one_after_another(
    pair: tuple[FrameSocket, socket.socket], size: int
) -> None:
    frames, theirs = pair
    theirs.sendall(frame(TEXT, b"before") + frame(BINARY, b"x" * size) + frame(PONG))
    assert [frames.next_message() for _ in range(3)] == [
        (TEXT, b"before"),
        (BINARY, b"x" * size),
        (PONG, b""),
    ]


def test_a_message_in_parts_is_one_and_what_comes_between_them_comes_first(
    pair: tuple[FrameSocket, socket.socket],
) -> None:
    frames, theirs = pair
    theirs.sendall(
        frame(BINARY, b"a", is_last=False)
        + frame(PING, b"?")
        + frame(CONT, b"b", is_last=False)
        + frame(CONT, b"c")
        + frame(TEXT, b"next")
    )
    assert [frames.next_message() for _ in range(3)] == [(PING, b"?"), (BINARY, b"abc"), (TEXT, b"next")]


def test_nothing_is_lost_when_the_time_ends_inside_a_frame(pair: tuple[FrameSocket, socket.socket]) -> None:
    frames, theirs = pair
    frames.settimeout(0.001)
    message = b"x" * 300
    for byte in frame(BINARY, message, is_last=False)[:-1]:
        theirs.sendall(bytes([byte]))
        with pytest.raises(TimeoutError):
            frames.next_message()
    theirs.sendall(b"x" + frame(CONT, b"end"))
    frames.settimeout(20)
    assert frames.next_message() == (BINARY, message + b"end")


def test_what_follows_the_handshake_at_once_is_not_lost(pair: tuple[FrameSocket, socket.socket]) -> None:
    frames, theirs = pair
    theirs.sendall(b"HTTP/1.1 101 OK\r\n\r\n" + frame(TEXT, b"first"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += frames.recv(1)
    assert frames.next_message() == (TEXT, b"first")


@pytest.mark.parametrize(
    "sent",
    [
        bytes([0x81, 0x80 | 1, 1, 2, 3, 4, 5]),
        bytes([0xC1, 1, 65]),
        bytes([0x83, 0]),
        bytes([0x09, 0]),
        frame(CONT, b"x"),
        frame(TEXT, b"x", is_last=False) + frame(TEXT, b"y"),
    ],
    ids=["masked", "compressed", "unknown opcode", "control frame in parts", "no beginning", "no end"],
)
def test_what_is_no_frame_of_a_server_is_an_error(
    pair: tuple[FrameSocket, socket.socket], sent: bytes
) -> None:
    frames, theirs = pair
    theirs.sendall(sent)
    with pytest.raises(WebSocketProtocolException):
        frames.next_message()


@pytest.mark.parametrize("sent", [b"", b"\x81", frame(TEXT, b"cut")[:-1]])
def test_the_end_of_the_connection_is_an_error_of_its_own(
    pair: tuple[FrameSocket, socket.socket], sent: bytes
) -> None:
    frames, theirs = pair
    theirs.sendall(sent)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(WebSocketConnectionClosedException):
        frames.next_message()


def test_parts_of_messages_count_as_received_and_control_frames_do_not(
    pair: tuple[FrameSocket, socket.socket],
) -> None:
    frames, theirs = pair
    frames.received_at = 0.0
    theirs.sendall(frame(PONG) + frame(PING, b"x"))
    assert [frames.next_message()[0] for _ in range(2)] == [PONG, PING]
    assert frames.received_at == 0.0
    theirs.sendall(frame(PONG) + frame(TEXT, b"whole"))
    assert [frames.next_message()[0] for _ in range(2)] == [PONG, TEXT]
    assert frames.received_at > 0.0
    frames.received_at = 0.0
    theirs.sendall(frame(BINARY, b"x" * 1000)[:500])
    frames.settimeout(0.05)
    with pytest.raises(TimeoutError):
        frames.next_message()
    assert frames.received_at > 0.0
