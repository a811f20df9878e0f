"""Who may use this server, for what, and how much: named keys, their scopes and limits, what they used, and the audit log.
Knows files in the state directory; knows no HTTP, no pictures and no GPU.
"""

from __future__ import annotations

from access.caller import ALL_SCOPES, ANONYMOUS, NOBODY, SCOPES, Caller, Scope

__all__ = ["ALL_SCOPES", "ANONYMOUS", "NOBODY", "SCOPES", "Caller", "Scope"]
