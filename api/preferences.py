"""`Prefer` (RFC 7240): what a client would like, and a server may ignore. The only one applied is `respond-async`."""

from __future__ import annotations

import re

from flask import Request

HEADER = "Prefer"
APPLIED = "Preference-Applied"
RESPOND_ASYNC = "respond-async"
_PREFERENCE = re.compile(r'\s*([^\s,;="]+)\s*((?:"(?:[^"\\]|\\.)*"|[^,"])*)(?:,|$)')


def prefers_async(request: Request) -> bool:
    """Whether the client wants to have the answer later. A preference with a value is another one."""
    names = [
        name.lower()
        for value in request.headers.getlist(HEADER)
        for name, rest in _PREFERENCE.findall(value)
        if not rest.startswith("=")
    ]
    return RESPOND_ASYNC in names
