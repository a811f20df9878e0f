"""Who may use this server, for what, and how much: named keys, their scopes and limits, what they used, and the audit log.
Knows files in the state directory; knows no HTTP, no pictures and no GPU.
"""

from __future__ import annotations

from access.audit import Actor, AuditLog, Entry
from access.caller import ALL_SCOPES, ANONYMOUS, COMMAND, NOBODY, SCOPES, Caller, Scope
from access.gate import Gate, PictureUse, Use, is_command_key
from access.keys import Key, KeyFile
from access.limits import UNLIMITED, WINDOWS, Limits
from access.usage import Level

__all__ = [
    "ALL_SCOPES",
    "ANONYMOUS",
    "COMMAND",
    "NOBODY",
    "SCOPES",
    "UNLIMITED",
    "WINDOWS",
    "Actor",
    "AuditLog",
    "Caller",
    "Entry",
    "Gate",
    "Key",
    "KeyFile",
    "Level",
    "Limits",
    "PictureUse",
    "Scope",
    "Use",
    "is_command_key",
]
