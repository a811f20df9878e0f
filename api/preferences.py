"""`Prefer` (RFC 7240): what a client would like, and a server may ignore. The only one applied is `respond-async`."""

from __future__ import annotations

from urllib.request import parse_http_list

from flask import Request

HEADER = "Prefer"
APPLIED = "Preference-Applied"
RESPOND_ASYNC = "respond-async"


def prefers_async(request: Request) -> bool:
    """Whether the client wants to have the answer later. A preference with a value is another one."""
    preferences = [item for value in request.headers.getlist(HEADER) for item in parse_http_list(value)]
    return any(item.partition(";")[0].strip().lower() == RESPOND_ASYNC for item in preferences)
