"""A small LLM server in its own process: it streams tokens at the rate that a request asks for, counts the bytes of an
upload, and lists one model, which it unloads and loads as llama-server does. It does as little as a server can, so that it
is not what is measured."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from bench.server import ROOT

MODEL = "bench-llm"
CHAT_PATH, UPLOAD_PATH = "/v1/chat/completions", "/v1/audio/transcriptions"
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench-llm","choices":'
    b'[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_UNLOAD, _LOAD = "/models/unload", "/models/load"
_BLOCK_BYTES = 64 * 1024


class LlmServer:
    """`with LlmServer() as llm: llm.url`"""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.llm_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid


def chat_body(tokens: int, tokens_per_s: float) -> bytes:
    """The body of a request for a stream. `tokens_per_s`: 0 for as fast as they are read."""
    return json.dumps(
        {
            "model": MODEL,
            "stream": True,
            "max_tokens": tokens,
            "tokens_per_s": tokens_per_s,
            "messages": [{"role": "user", "content": "Say something."}],
        }
    ).encode()


# --- in its own process -----------------------------------------------------------------------------


_is_loaded = True


def _listed() -> dict[str, object]:
    status = {"value": "loaded" if _is_loaded else "unloaded"}
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "status": status}]}


async def _serve() -> None:
    server = await asyncio.start_server(_answer_all, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The end of the input is the end of the process that started this one.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


async def _answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            await _answer(reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"\r\ncontent-length:")
    length = int(rest.split(b"\r\n", 1)[0]) if rest else 0
    path = head.split(b" ", 2)[1].decode()
    global _is_loaded
    if path in (CHAT_PATH, _LOAD, _UNLOAD):
        _is_loaded = path != _UNLOAD
    if path == CHAT_PATH:
        request = json.loads(await reader.readexactly(length))
        await _stream(writer, request["max_tokens"], request["tokens_per_s"])
        return
    left = length
    while left:
        block = await reader.read(min(left, _BLOCK_BYTES))
        if not block:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(block)
    body = json.dumps({"text": f"{length} bytes"} if path == UPLOAD_PATH else _listed()).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, tokens: int, tokens_per_s: float) -> None:
    event = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
    writer.write(_HEAD + event)
    started_at = time.monotonic()
    for number in range(1, tokens):
        if tokens_per_s:
            await asyncio.sleep(started_at + number / tokens_per_s - time.monotonic())
        writer.write(event)
        await writer.drain()
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(_DONE), _DONE))
    await writer.drain()


if __name__ == "__main__":
    asyncio.run(_serve())
