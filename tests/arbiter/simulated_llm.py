"""The LLM server of the soak test over real HTTP: each chat is in use of the simulated GPU until its last token or its
connection ends."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.arbiter.simulated_gpu import SimulatedGpu

MODEL = "chat"
_TOKEN_INTERVAL_S = 0.003
_TOKEN = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'


class SimulatedLlmServer(ThreadingHTTPServer):
    """Streams tokens for the seconds that a request asks for. If its model is unloaded meanwhile, the connection is cut."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SimulatedLlmServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the process of the client was killed
            super().handle()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        gpu, job = self.server.gpu, request["job"]
        gpu.begin_serving(job, request["pid"], lambda: _is_open(self.connection))
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            ends_at = time.monotonic() + request["seconds"]
            while time.monotonic() < ends_at:
                if not gpu.is_serving(job):
                    self.close_connection = True
                    return
                self._chunk(_TOKEN)
                time.sleep(_TOKEN_INTERVAL_S)
            self._chunk(b"data: [DONE]\n\n")
            # Before the last bytes: with them the lease ends.
            gpu.end_serving(job)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            gpu.end_serving(job)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *_: Any) -> None:
        pass


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side has not closed it."""
    if connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return not poll.poll(0)
