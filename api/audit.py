"""What a route gives to the audit log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from flask import g, request

from access import Actor
from api.services import Services


def recording(
    services: Services, action: str, **target: Any
) -> contextlib.AbstractContextManager[Callable[[str], None]]:
    """Record an action of the present caller, see `AuditLog.recording`."""
    actor = Actor(g.caller.name, request.remote_addr or "")
    return services.audit.recording(actor, action, target)
