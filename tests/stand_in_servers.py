"""Small HTTP servers that answer as ComfyUI and the LLM servers do, for what looks at a machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LLAMA_ROUTER: Mapping[str, Any] = {
    "/props": {"role": "router", "build_info": "b1"},
    "/v1/models": {"data": [{"id": "a", "owned_by": "llamacpp", "status": {"value": "unloaded"}}]},
}
LLAMA_SINGLE: Mapping[str, Any] = {
    "/props": {"total_slots": 1, "build_info": "b1"},
    "/v1/models": {"data": [{"id": "a", "owned_by": "llamacpp"}]},
}
OLLAMA: Mapping[str, Any] = {
    "/": "Ollama is running",
    "/api/version": {"version": "0.12.3"},
    "/v1/models": {"data": [{"id": "qwen3:8b", "owned_by": "library"}]},
}
VLLM: Mapping[str, Any] = {
    "/v1/models": {"data": [{"id": "q", "owned_by": "vllm"}]},
    "/version": {"version": "0.33.0"},
    "/is_sleeping": {"is_sleeping": False},
}
OPEN_WEBUI: Mapping[str, Any] = {"/": "<!doctype html>", "/api/version": {"version": "0.6.30"}}


def comfyui(
    models: str | None = None, *, version: str = "0.33.0", device: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """The answers of a ComfyUI whose folder is `models`."""
    device = device or {
        "name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync",
        "type": "cuda",
        "vram_total": 24_000_000_000,
    }
    answers: dict[str, Any] = {
        "/system_stats": {
            "system": {"comfyui_version": version, "argv": ["main.py"], "ram_total": 64_000_000_000},
            "devices": [device],
        }
    }
    if models is not None:
        answers["/internal/folder_paths"] = {
            "checkpoints": [f"{models}/checkpoints"],
            "loras": [f"{models}/loras"],
        }
    return answers


@contextmanager
def stand_in(answers: Mapping[str, Any], *, server: str = "test", unknown: Any = None) -> Iterator[str]:
    """The URL of a server that answers GET requests: path -> JSON, or text. Other paths get 404, or `unknown` with status
    200."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def version_string(self) -> str:
            return server

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            answer = answers.get(path, unknown)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()
