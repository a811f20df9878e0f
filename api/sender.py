"""Who sent a request, for the log and the status."""

from __future__ import annotations

from flask import Request, g

from arbiter import Sender
from errors import shorten

_MAX_CLIENT_CHARS = 80


def sender_of(request: Request) -> Sender:
    """The address of the client, the name of its program, the name of its key and its owner."""
    header = request.headers.get("User-Agent", "").encode("latin-1", "replace").decode("utf-8", "replace")
    program = header.partition(" ")[0]
    client = f"{request.remote_addr or 'unknown'} {program}".strip()
    trace = g.trace.parent if "trace" in g else ""
    return Sender(g.request_id, shorten(client, _MAX_CLIENT_CHARS), g.caller.key, trace, g.caller.owner)
