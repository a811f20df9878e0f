"""Which host names and addresses only this machine can reach. A leaf."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether `host` (a name or an address, with or without the brackets of IPv6) is this machine's loopback."""
    name = (host or "").strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
