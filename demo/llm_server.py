"""A simulated LLM server with llama-server's API. Its model takes memory of the simulated GPU, and time to load and to
answer; a model that does not fit beside what ComfyUI holds is not loaded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from atomic_file import write_atomic

MODEL = "demo-llm"
_ANSWER = "This is a simulated answer: no model ran. "
_TOKENS_PER_SENTENCE = 10
_METRICS = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {}\nllamacpp:requests_deferred 0\n"


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the simulated GPU and of the two models, in bytes."""

    total: int = 24_000_000_000
    llm: int = 18_000_000_000
    image_model: int = 8_000_000_000

    def write(self, path: Path, *, llm_is_loaded: bool) -> None:
        """The file that the sketch engine reads."""
        others = self.llm if llm_is_loaded else 0
        document = {"total": self.total, "others": others, "model": self.image_model}
        write_atomic(path, json.dumps(document).encode())


class LlmServer:
    """`with LlmServer(…) as llm: llm.url`. `free_bytes`: what the GPU has free. `load_s`, `unload_s`: how long these take;
    `tokens_per_s`: how fast it answers. `failed_loads` counts those for which there was no memory. The model is loaded at
    first."""

    def __init__(
        self,
        memory: Memory,
        path: Path,
        free_bytes: Callable[[], int],
        *,
        load_s: float,
        unload_s: float,
        tokens_per_s: float,
    ) -> None:
        self._memory, self._path, self._free_bytes = memory, path, free_bytes
        self._load_s, self._unload_s, self._tokens_per_s = load_s, unload_s, tokens_per_s
        self._changes = threading.Lock()
        """Held while the model is loaded or unloaded"""
        self._count = threading.Lock()
        self._state, self._running = "loaded", 0
        self.failed_loads = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status, and JSON or text."""
        match method, path:
            case "GET", "/health":
                return 200, {"status": "ok"}
            case "GET", "/models" | "/v1/models":
                entry = {"id": MODEL, "object": "model", "status": {"value": self._state}}
                return 200, {"object": "list", "data": [entry]}
            case "GET", "/metrics":
                return 200, _METRICS.format(self._running)
            case "POST", "/models/load":
                return (200, {"success": True}) if self._load() else (500, _error("out of memory"))
            case "POST", "/models/unload":
                self._unload()
                return 200, {"success": True}
            case "POST", "/v1/chat/completions":
                return self._chat(body)
        return 404, _error("File Not Found")

    def _chat(self, body: Any) -> tuple[int, Any]:
        with self._count:
            self._running += 1
        try:
            if not self._load():
                return 500, _error("out of memory")
            tokens = int(body.get("max_tokens") or 100)
            time.sleep(tokens / self._tokens_per_s)
            if self._state != "loaded":
                return 500, _error("the model was unloaded while it answered")
        finally:
            with self._count:
                self._running -= 1
        text = _ANSWER * max(1, tokens // _TOKENS_PER_SENTENCE)
        message = {"role": "assistant", "content": text.strip()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        return 200, {
            "id": "chatcmpl-demo",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }

    def _load(self) -> bool:
        """Whether the model is loaded now."""
        with self._changes:
            if self._state == "loaded":
                return True
            if self._free_bytes() < self._memory.llm:
                self.failed_loads += 1
                return False
            self._state = "loading"
            self._memory.write(self._path, llm_is_loaded=True)
            time.sleep(self._load_s)
            self._state = "loaded"
            return True

    def _unload(self) -> None:
        with self._changes:
            if self._state == "loaded":
                time.sleep(self._unload_s)
                self._memory.write(self._path, llm_is_loaded=False)
                self._state = "unloaded"


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "code": 500}}


def _handler_of(llm: LlmServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, document = llm.answer(
                self.command, urlsplit(self.path).path, json.loads(raw) if raw else {}
            )
            content = document if isinstance(document, str) else json.dumps(document)
            kind = "text/plain" if isinstance(document, str) else "application/json"
            try:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())
            except OSError:
                pass  # the client has hung up

        do_GET = do_POST = _any

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
