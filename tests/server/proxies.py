"""The reverse proxies of docs/proxies, with their recipes, in front of a server of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT
from tests.waiting import wait_until

RECIPES = ROOT / "docs" / "proxies"
CERTIFICATE, KEY = (ROOT / "tests" / "server" / "tls" / name for name in ("certificate.pem", "key.pem"))
_PATH = f"{os.environ['PATH']}:/usr/sbin"


@contextlib.contextmanager
def proxying(name: str, folder: Path, backend: str) -> Iterator[str]:
    """The URL of a proxy in front of `backend`. Skips if the program is not installed."""
    if shutil.which(name, path=_PATH) is None:
        pytest.skip(f"{name} is not installed, so its recipe was NOT tested")
    port = _free_port()
    command = PROGRAMS[name](folder, backend.removeprefix("http://"), port)
    log = folder / "log"
    with log.open("wb") as file:
        environment = {**os.environ, "HOME": str(folder), "PATH": _PATH}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    url = f"https://localhost:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _responds(url), 60)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait(90)


def _responds(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health", verify=str(CERTIFICATE), timeout=60).status_code == 200
    return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _nginx(folder: Path, backend: str, port: int) -> list[str]:
    recipe = (RECIPES / "nginx.conf").read_text()
    for text, used in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("easel.example.com;", "localhost;"),
        ("/etc/ssl/easel.pem", str(CERTIFICATE)),
        ("/etc/ssl/easel.key", str(KEY)),
        ("127.0.0.1:8080", backend),
    ):
        assert text in recipe
        recipe = recipe.replace(text, used)
    folders = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Its workers would be another user's, who cannot enter the test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders}\n{recipe}\n}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _caddy(folder: Path, backend: str, port: int) -> list[str]:
    recipe = (RECIPES / "Caddyfile").read_text()
    site = f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {CERTIFICATE} {KEY}\n"
    for text, used in (("easel.example.com {\n", site), ("127.0.0.1:8080", backend)):
        assert text in recipe
        recipe = recipe.replace(text, used)
    options = f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {folder}\n}}\n"
    (folder / "Caddyfile").write_text(options + recipe)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


PROGRAMS = {"nginx": _nginx, "caddy": _caddy}
