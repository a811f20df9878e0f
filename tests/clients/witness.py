"""Tells the rows what really reached a server: the lines of its access log, by the id that a client gave its request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.server.running import Server


@contextmanager
def witness(servers: Mapping[str, Server]) -> Iterator[str]:
    """Its address until the block ends: GET /SERVER/REQUEST-ID gives `["POST /v1/images/generations 404", …]`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, request_id = self.path.lstrip("/").partition("/")
            body = json.dumps(requests_seen(servers[name].log, request_id)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def requests_seen(log: str, request_id: str) -> list[str]:
    """Method, path and status of every request of this id. A retry of a client keeps the id and counts again."""
    return re.findall(rf" easel\.access {re.escape(request_id)} (\S+ \S+ \d{{3}}) ", log)
