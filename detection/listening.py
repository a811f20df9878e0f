"""Whether a server could listen at an address, and which port is free instead."""

from __future__ import annotations

import errno
import socket

from errors import SettingsInvalid

_TRIED_PORTS = 100


def check_address(host: str, port: int) -> None:
    """Raises SettingsInvalid if the server cannot listen there. gunicorn would try for five seconds, and its messages name
    no setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise SettingsInvalid(_address_problem(host, port, error)) from error


def _address_problem(host: str, port: int, error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return (
                f"Port {port} of {host} is in use, by another Easel or by another program (`ss -ltnp` lists them). Stop it, "
                f"or set EASEL_PORT (or `port` in easel.yaml) to a free port; 0 picks one."
            )
        case errno.EACCES:
            return f"This user may not listen on port {port}. Set EASEL_PORT (or `port`) to 1024 or more."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine. Set EASEL_HOST (or `host`) to one; 0.0.0.0 means all."
    return f"Cannot listen on {host} port {port}: {error}. Set EASEL_HOST and EASEL_PORT."


def free_port(host: str, after: int) -> int | None:
    """The first port after `after` on which a server could listen; None if the next hundred are taken."""
    for port in range(after + 1, min(after + _TRIED_PORTS, 65_535) + 1):
        try:
            check_address(host, port)
        except SettingsInvalid:
            continue
        return port
    return None
