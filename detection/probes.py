"""Asks servers what they are, all at the same time and each for a limited time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from functools import cache
from http.client import HTTPException

from deadline import time_limit
from detection.services import Answer, Service, identify
from http_connections import ConnectionPool

LIMIT_S = 3.0
"""For all questions to one server, and so for all servers together"""
_CONNECT_S = 0.5
_MAX_BYTES = 2_000_000
_TEXT_CHARS = 200


def find_services(urls: Iterable[str], limit_s: float = LIMIT_S) -> dict[str, Service | None]:
    """URL -> what answers there; None where nothing does. A server that accepts the connection and does not answer in time
    is of kind `unknown` and has the name `no answer`. Sends no credentials, and follows no redirects."""
    asked = tuple(dict.fromkeys(urls))
    found: dict[str, Service | None] = {}

    def run(url: str) -> None:
        found[url] = _identified(url, limit_s)

    # Threads that may be left behind: finding the address of a name can take longer than any limit.
    threads = [threading.Thread(target=run, args=(url,), daemon=True) for url in asked]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s + _CONNECT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url: found.get(url) for url in asked}


def _identified(url: str, limit_s: float) -> Service | None:
    connections = ConnectionPool(url, connect_timeout_s=_CONNECT_S, max_kept=1)
    was_silent = False

    @cache
    def ask(path: str) -> Answer | None:
        nonlocal was_silent
        try:
            response = connections.call("GET", path, timeout_s=limit_s, max_bytes=_MAX_BYTES)
        except TimeoutError:
            was_silent = True
            return None
        except (HTTPException, OSError, ValueError) as error:
            was_silent = was_silent or isinstance(error, HTTPException)  # something answers, but not in HTTP
            return None
        content = response.content
        return Answer(
            response.status,
            response.headers.get("server", ""),
            _document(content),
            content[:_TEXT_CHARS].decode("utf-8", "replace"),
        )

    try:
        with time_limit(limit_s):
            service = identify(url, ask)
    finally:
        connections.close()
    return Service(url, "unknown", name="no answer") if service is None and was_silent else service


def _document(content: bytes) -> object:
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document
