"""The engine behind Easel and comfy-api-proxy: Easel's sketch engine, which speaks ComfyUI's protocol. It is the same
process for both."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import requests

from bench.clients import session

_END_TIMEOUT_S = 60.0


class Engine:
    """What an engine has done and does, asked over its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def drawn(self) -> int:
        """How many jobs it has finished or failed since it started."""
        return len(self._get("/history?max_items=100000"))

    def is_busy(self) -> bool:
        queue = self._get("/queue")
        return bool(queue["queue_running"] or queue["queue_pending"])

    def wait_until_idle(self) -> float:
        """Seconds until it had no job."""
        started_at = time.perf_counter()
        while self.is_busy():
            if time.perf_counter() > started_at + _END_TIMEOUT_S:
                raise RuntimeError("the engine is not done")
            time.sleep(0.005)
        return time.perf_counter() - started_at

    def wait_until_busy(self) -> None:
        deadline = time.perf_counter() + _END_TIMEOUT_S
        while not self._get("/queue")["queue_running"]:
            if time.perf_counter() > deadline:
                raise RuntimeError("the engine has no job")
            time.sleep(0.005)

    def _get(self, path: str) -> Any:
        with session() as http:
            return http.get(self.url + path, timeout=30).json()


class NewerEngine:
    """The engine with the route with which newer ComfyUIs cancel one job, which the sketch engine lacks: comfy-api-proxy
    cancels by it only. For the measurement of cancelling; it has no WebSocket. `with NewerEngine(url) as url:`"""

    def __init__(self, url: str) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_to(url))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_to(url: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with session() as http:
                parts = self.path.split("/")
                if self.command == "POST" and parts[1:3] == ["api", "jobs"] and parts[4:] == ["cancel"]:
                    http.post(f"{url}/queue", json={"delete": [parts[3]]}, timeout=30)
                    http.post(f"{url}/interrupt", json={"prompt_id": parts[3]}, timeout=30)
                    self._send(200, "application/json", json.dumps({"cancelled": True}).encode())
                    return
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                answer: requests.Response = http.request(
                    self.command, url + self.path, data=body, headers=headers, timeout=60
                )
                self._send(answer.status_code, answer.headers.get("Content-Type", ""), answer.content)

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _any

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
