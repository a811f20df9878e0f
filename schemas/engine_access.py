"""What the address of a ComfyUI and the credentials for it may be. The texts repeat no value: it may be a secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

CredentialKind = Literal["user", "password", "token", "query_token"]


def has_valid_host(url: str) -> bool:
    """Whether the host name of `url` can be looked up and its port exists."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # at most 65535
        return bool(parts.hostname and parts.hostname.encode("idna"))
    except ValueError:
        return False


def credential_problems(kind: CredentialKind, text: str, password_place: str) -> Iterator[str]:
    """The rules that a credential breaks, such as `it must not contain a colon`. `password_place`: where the password is
    written."""
    if kind == "user" and ":" in text:
        yield f"it must not contain a colon; the password belongs into {password_place}"
    if kind == "token" and " " in text.strip():
        yield "it must be the token alone: it must contain no space, and not the word Bearer"
    is_ascii_only = kind == "token"
    if not text.isprintable() or (is_ascii_only and not text.isascii()) or text != text.strip():
        yield "it must have no line breaks, no spaces around it" + (
            " and only ASCII characters" if is_ascii_only else ""
        )
