"""Where the Redis is that joins the hosts, and what this one is called there."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from errors import SettingsInvalid

MIN_KEY_LENGTH = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEMES = ("redis", "rediss")


@dataclass(frozen=True)
class ClusterOptions:
    """`url`: of Redis, without credentials. `key`: what all messages are authenticated with. `name`: that of this host.
    `ca_file`: certificates that Redis' own is checked by; empty: those of the system."""

    url: str
    key: bytes = field(repr=False)
    name: str
    ca_file: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def uses_tls(self) -> bool:
        return self.url.startswith("rediss:")

    @property
    def broker_url(self) -> str:
        """With the credentials, as Celery wants it. Never to be shown."""
        if not (self.user or self.password):
            return self.url
        scheme, rest = self.url.split("://", 1)
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{rest}"


def read_options(
    *, url: str, key: str, name: str, ca_file: str, user: str, password: str
) -> ClusterOptions | None:
    """The settings of `cluster`, None without an address of Redis. Raises SettingsInvalid."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise _invalid("redis", "its host name or port is not valid") from None
    if parts.scheme not in _SCHEMES or not is_address:
        raise _invalid("redis", "write it such as redis://HOST:6379/0, or rediss://HOST:6379/0 for TLS")
    if "@" in parts.netloc:
        raise _invalid(
            "redis",
            "write it without user and password, and set EASEL_CLUSTER_USER and EASEL_CLUSTER_PASSWORD instead",
        )
    if parts.query or not re.fullmatch(r"(/\d*)?", parts.path):
        raise _invalid("redis", "after the address only the number of a database may follow, such as /0")
    if len(key) < MIN_KEY_LENGTH:
        raise _invalid(
            "key",
            f"set EASEL_CLUSTER_KEY to at least {MIN_KEY_LENGTH} characters, the same on all hosts: "
            '`python3 -c "import secrets; print(secrets.token_hex(32))"` makes one',
        )
    if ca_file and parts.scheme != "rediss":
        raise _invalid("ca_file", "it is of use only with rediss://")
    name = name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:63]
    if not _NAME.fullmatch(name):
        raise _invalid("name", "letters, digits, `.`, `_` and `-`, at most 63, the first a letter or digit")
    return ClusterOptions(url.rstrip("/"), key.encode(), name, ca_file, user, password)


def _invalid(setting: str, text: str) -> SettingsInvalid:
    line = f"cluster.{setting}: {text}"
    return SettingsInvalid(line, errors=[line])
