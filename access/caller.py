"""Who sent a request: the name, the rights and the limits of its key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from access.limits import UNLIMITED, Limits

Scope = Literal["draw", "view", "metrics", "operate"]
"""`draw`: pictures and LLM requests. `view`: read the status and the models. `metrics`: read the metrics, which name all
keys. `operate`: everything that changes the server for others, and reading what others do; it includes `view` and
`metrics`."""
SCOPES: tuple[Scope, ...] = ("draw", "view", "metrics", "operate")
ALL_SCOPES = frozenset(SCOPES)


@dataclass(frozen=True)
class Caller:
    """`name`: for logs, the audit log and metrics; never secret. `key`: the name of its key as `Sender.key` has it, "" if it
    sent none. `id`: of its key in the key file, "" if it is not there."""

    name: str
    scopes: frozenset[Scope]
    key: str = ""
    id: str = ""
    limits: Limits = UNLIMITED

    @property
    def owner(self) -> str:
        """Whose what it made is: another key of the same name later is another owner."""
        return self.id or self.key

    @property
    def owner_hash(self) -> str:
        """`owner` in the form in which the image index has it: a mark that says which images are of one key, without the
        key's id or name. "" for a caller without a key."""
        if not self.owner:
            return ""
        return hashlib.sha256(f"image owner {self.owner}".encode()).hexdigest()[:32]

    def may(self, *scopes: Scope) -> bool:
        """Whether it has one of `scopes`."""
        return not self.scopes.isdisjoint(scopes)


ANONYMOUS = Caller("anonymous", ALL_SCOPES)
"""The caller of every request while the server needs no key"""
NOBODY = Caller("anonymous", frozenset())
"""The caller without a valid key, on the paths that need none"""
COMMAND = Caller("command", ALL_SCOPES, key="command")
"""A command of this installation, which uses the key in `command.key`"""


def settings_caller(number: int) -> Caller:
    """The caller with key number `number` (from 1) of the setting `api_keys`. A named key cannot have this name."""
    name = f"api_keys:{number}"
    return Caller(name, ALL_SCOPES, key=name)
