"""Who sent a request: the name and the rights of its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["draw", "view", "operate"]
"""`draw`: pictures and LLM requests. `view`: read the status and the models. `operate`: everything that changes the server
for others, and reading what others do."""
SCOPES: tuple[Scope, ...] = ("draw", "view", "operate")
ALL_SCOPES = frozenset(SCOPES)


@dataclass(frozen=True)
class Caller:
    """`name`: for logs, the audit log and metrics; never secret. `key`: the name of its key as `Sender.key` has it, "" if it
    sent none."""

    name: str
    scopes: frozenset[Scope]
    key: str = ""

    def may(self, *scopes: Scope) -> bool:
        """Whether it has one of `scopes`."""
        return not self.scopes.isdisjoint(scopes)


ANONYMOUS = Caller("anonymous", ALL_SCOPES)
"""The caller of every request while the server needs no key"""
NOBODY = Caller("anonymous", frozenset())
"""The caller without a valid key, on the paths that need none"""
