"""Where a request ends, however its bytes are cut."""

from __future__ import annotations

import pytest

from server.framing import ChunkedBody, FixedBody, body_of, end_of_head
from server.received import MAX_IN_MEMORY_BYTES, ReceivedBytes

CHUNKED = b"5;name=value\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("received", "end"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\n\r\n\r\n", 27),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", 24),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 15),
        (b"\nGET / HTTP/1.1\r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\r\n\r\n", 19),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r", None),
    ],
)
def test_a_head_ends_at_its_empty_line_or_at_a_bare_line_feed(
    step: int, received: bytes, end: int | None
) -> None:
    found = None
    for position in range(step, len(received) + step, step):
        found = end_of_head(received[:position], max(0, position - step))
        if found is not None:
            break
    assert found == end


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_chunked_body_is_complete_at_its_last_byte(step: int) -> None:
    body = ChunkedBody()
    for position in range(0, len(CHUNKED), step):
        assert not body.is_complete
        body.feed(CHUNKED[position : position + step])
    assert (body.is_complete, body.is_invalid, body.size) == (True, False, 31)


def test_what_follows_a_chunked_body_is_ignored() -> None:
    body = ChunkedBody()
    body.feed(CHUNKED + b"GET / HTTP/1.1\r\n")
    assert (body.is_complete, body.is_invalid) == (True, False)


def test_the_size_of_a_chunk_counts_when_it_is_announced() -> None:
    body = ChunkedBody()
    body.feed(b"ffffff\r\nx")
    assert (body.is_complete, body.size) == (False, 0xFFFFFF)


@pytest.mark.parametrize(
    "data", [b"ZZ\r\n", b"\r\n", b"-5\r\n", b"f" * 20 + b"\r\n", b"5" * 10_000, b"0x5\r\n"]
)
def test_an_invalid_chunk_is_complete_at_once_and_marked(data: bytes) -> None:
    body = ChunkedBody()
    body.feed(data)
    assert (body.is_complete, body.is_invalid) == (True, True)


def test_endless_trailers_are_invalid() -> None:
    body = ChunkedBody()
    body.feed(b"0\r\n" + b"Trailer: x\r\n" * 10_000)
    assert (body.is_complete, body.is_invalid) == (True, True)


def test_a_fixed_body_is_complete_when_all_bytes_are_there() -> None:
    body = FixedBody(5)
    body.feed(b"abc")
    assert not body.is_complete
    body.feed(b"de and more")
    assert body.is_complete


@pytest.mark.parametrize(
    ("field", "is_complete", "is_invalid"),
    [
        (b"", True, False),
        (b"content-LENGTH:5\r\n", False, False),
        (b"Content-Length: 0\r\n", True, False),
        (b"Transfer-Encoding:  CHUNKED \r\n", False, False),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", True, True),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", True, True),
        (b"Transfer-Encoding: gzip, chunked\r\n", True, True),
        (b"Content-Length: -1\r\n", True, True),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", True, True),
        (b"X-Content-Length: 5\r\n", True, False),
    ],
)
def test_a_head_announces_its_body(field: bytes, is_complete: bool, is_invalid: bool) -> None:
    body = body_of(b"POST / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n")
    assert (body.is_complete, body.is_invalid) == (is_complete, is_invalid)


@pytest.mark.parametrize(("end", "rest"), [(b"\r\n\r\n", b"body"), (b"\n", b"\n"), (b"\r\n\r\n", b"")])
def test_the_end_of_a_head_is_found_when_it_arrives_byte_by_byte(end: bytes, rest: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a" + end
    data = head + rest
    for size in range(1, len(head)):
        assert end_of_head(data[:size], size - 1) is None
    assert end_of_head(data, len(head) - 1) == len(head)


@pytest.mark.parametrize(
    "sizes", [[10], [MAX_IN_MEMORY_BYTES, 1], [1, MAX_IN_MEMORY_BYTES, 300_000], [700_000]]
)
def test_received_bytes_are_read_in_the_order_of_their_arrival(sizes: list[int]) -> None:
    received = ReceivedBytes()
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        received.write(piece)
    assert received.size == sum(sizes)
    assert b"".join(iter(received.read, b"")) == b"".join(pieces)
    received.close()


def test_without_a_writable_folder_nothing_that_arrived_is_lost() -> None:
    received = ReceivedBytes(("/nonexistent/a", "/nonexistent/b"))
    with pytest.raises(OSError, match="nonexistent"):
        received.write(b"a" * 200_000)
    assert b"".join(iter(received.read, b"")) == b"a" * 200_000
