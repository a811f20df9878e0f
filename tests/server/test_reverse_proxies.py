"""The recipes for reverse proxies, with the real programs: TLS, a path prefix, streams, uploads, the client's address.

Skipped for a program that is not installed (Debian's packages `nginx-light` and `caddy`)."""

from __future__ import annotations

import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from PIL import Image

from tests.conftest import ROOT
from tests.server.proxies import CERTIFICATE, PROGRAMS, RECIPES, proxying
from tests.server.running import Server, running

FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Prefix": "/evil",
}


class Upstream(http.server.BaseHTTPRequestHandler):
    """An LLM server whose stream goes on only when the client has got its beginning."""

    got_beginning = threading.Event()
    timeout = 30

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'data: {"choices": []}\n\n')
        arrived = self.got_beginning.wait(20)
        self.wfile.write(b"data: at once\n\n" if arrived else b"data: late\n\n")

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "chat", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class Proxied:
    """A server behind a proxy; `url` is the proxy's, with the prefix."""

    server: Server
    url: str


@pytest.fixture(scope="module")
def easel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    upstreams = json.dumps([{"name": "llm", "url": f"http://127.0.0.1:{upstream.server_port}"}])
    state = tmp_path_factory.mktemp("state")
    with running(state, EASEL_TRUSTED_PROXIES="127.0.0.1", EASEL_LLM_UPSTREAMS=upstreams) as server:
        yield server
    upstream.shutdown()
    upstream.server_close()


@pytest.fixture(
    scope="module", params=[(name, prefix) for name in PROGRAMS for prefix in ("", "/easel")], ids=str
)
def proxied(
    request: pytest.FixtureRequest, easel: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    name, prefix = request.param
    with proxying(name, tmp_path_factory.mktemp(name), easel.url) as url:
        yield Proxied(easel, f"{url}{prefix}")


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.verify = str(CERTIFICATE)
        session.trust_env = False
        yield session


def test_the_urls_of_images_are_those_of_the_proxy_and_lead_to_them(
    proxied: Proxied, session: requests.Session
) -> None:
    body = {"prompt": "a cat", "size": "256x256", "response_format": "url"}
    answer = session.post(f"{proxied.url}/v1/images/generations", json=body, timeout=60, headers=FORGED)
    assert answer.status_code == 200, answer.text
    url = answer.json()["data"][0]["url"]
    assert url.startswith(f"{proxied.url}/"), url
    assert Image.open(io.BytesIO(session.get(url, timeout=60).content)).size == (256, 256)


def test_a_stream_is_passed_on_as_it_comes(proxied: Proxied, session: requests.Session) -> None:
    Upstream.got_beginning.clear()
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with session.post(f"{proxied.url}/v1/chat/completions", json=body, timeout=60, stream=True) as answer:
        assert answer.status_code == 200, answer.text
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines) == b'data: {"choices": []}'
        Upstream.got_beginning.set()
        assert next(lines) == b"data: at once"


def test_a_large_upload_arrives_whole(proxied: Proxied, session: requests.Session) -> None:
    picture = io.BytesIO()
    Image.effect_noise((2600, 2600), 100).convert("RGB").save(picture, "PNG", compress_level=0)
    assert picture.tell() > 20_000_000
    fields = {"prompt": "a hat", "size": "256x256", "response_format": "b64_json"}
    files = {"image": ("photo.png", picture.getvalue(), "image/png")}
    answer = session.post(f"{proxied.url}/v1/images/edits", data=fields, files=files, timeout=120)
    assert answer.status_code == 200, answer.text


def test_the_address_of_the_client_is_that_of_the_connection(
    proxied: Proxied, session: requests.Session
) -> None:
    """What a client claims about its address is not believed."""
    body = {"prompt": "a cat", "size": "1024x1024", "n": 4, "response_format": "b64_json"}
    clients: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            status = requests.get(f"{proxied.server.url}/api/comfyui/status", timeout=60).json()
            clients.update(each["client"] for each in (*status["jobs"], *status["tickets"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(20):
            headers = {**FORGED, "User-Agent": "forger/1"}
            answer = session.post(
                f"{proxied.url}/v1/images/generations", json=body, headers=headers, timeout=60
            )
            assert answer.status_code == 200, answer.text
            if clients:
                break
    finally:
        done.set()
        watcher.join()
    assert clients == {"127.0.0.1 forger/1"}


def test_the_page_about_the_network_names_each_recipe() -> None:
    page = (ROOT / "docs" / "network.md").read_text("utf-8")
    recipes = {path.name for path in RECIPES.iterdir()}
    assert set(re.findall(r"\(proxies/([\w.]+)\)", page)) == recipes
