"""Shows the rows which requests a server received: the lines of its access log, by the id that a client gave its
request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.server.running import Server


@contextmanager
def serve_access_logs(servers: Mapping[str, Server]) -> Iterator[str]:
    """A URL, until the block ends. GET /SERVER/REQUEST-ID returns `["POST /v1/images/generations 404", …]`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, request_id = self.path.lstrip("/").partition("/")
            body = json.dumps(logged_requests(servers[name].log, request_id)).encode()
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


def logged_requests(log: str, request_id: str) -> list[str]:
    """Method, path and status of every request with this id. A client's retry has the same id and is listed again."""
    return re.findall(rf" easel\.access {re.escape(request_id)} (\S+ \S+ \d{{3}}) ", log)
