"""Which headers and query parameters pass between client and upstream, and which do not: those of one connection, and
everything that may be a secret of either side."""

from __future__ import annotations

import re
from collections.abc import Iterable

from conversation.upstreams import Upstream

_OF_ONE_CONNECTION = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
"""RFC 9110, section 7.6.1"""
_OF_THE_REQUEST = frozenset(
    [
        "accept-encoding",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "origin",
        "referer",
        "via",
        "x-request-id",
    ]
)
"""Set anew, or about the way to Easel"""
_OF_THE_RESPONSE = frozenset(
    ["content-length", "date", "server", "set-cookie", "via", "www-authenticate", "x-request-id"]
)
_MAY_BE_SECRET = re.compile(
    r"(?<![a-z])(?:[a-z]*auth|authorization|authentication|[a-z]*cookie2?|[a-z]*key(?:id)?|[a-z]*secret|[a-z]*token"
    r"|credentials?|[a-z]*password|sig|signature)(?![a-z])",
    re.IGNORECASE,
)
"""Whole words of a name: `api_key` and `X-AuthToken`, but not `max_tokens` and `X-Author`"""
_LINE_BREAK = re.compile(r"[ \t]*[\r\n]+[ \t]*")
_ABOUT_THE_CLIENT = re.compile(r"x-forwarded-|x-real-ip|access-control-|sec-", re.IGNORECASE)

Headers = Iterable[tuple[str, str]]


def may_be_secret(name: str) -> bool:
    """Whether a header or query parameter of this name may hold a key."""
    return _MAY_BE_SECRET.search(name) is not None


def request_headers(headers: Headers, upstream: Upstream) -> dict[str, str]:
    """The client's headers that the upstream gets, with the defaults of its preset. Clients send keys in many headers, so
    none passes whose name looks like one for a key."""
    dropped = _OF_ONE_CONNECTION | _OF_THE_REQUEST | _named_by_connection(headers) | upstream.own_headers
    sent = {name.lower() for name, _ in headers}
    defaults = {name: value for name, value in upstream.default_headers.items() if name.lower() not in sent}
    return defaults | {
        name: value
        for name, value in headers
        if name.lower() not in dropped and not may_be_secret(name) and not _ABOUT_THE_CLIENT.match(name)
    }


def request_target(path: str, query: str) -> str:
    """The path on the upstream with the client's query, without what may be a key."""
    kept = [part for part in query.split("&") if part and not may_be_secret(part.partition("=")[0])]
    return path + ("&" if "?" in path else "?") + "&".join(kept) if kept else path


def response_headers(headers: Headers) -> list[tuple[str, str]]:
    """The upstream's headers that the client gets; one that was sent in several lines in one."""
    dropped = _OF_ONE_CONNECTION | _OF_THE_RESPONSE | _named_by_connection(headers)
    return [
        (name, _LINE_BREAK.sub(" ", value))
        for name, value in headers
        if name.lower() not in dropped and not name.lower().startswith("access-control-")
    ]


def _named_by_connection(headers: Headers) -> frozenset[str]:
    """The headers that `Connection` says are for one connection only."""
    named = [value for name, value in headers if name.lower() == "connection"]
    return frozenset(part.strip().lower() for value in named for part in value.split(","))
