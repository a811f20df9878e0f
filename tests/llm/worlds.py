"""Stacks over fake servers, as a test needs them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from gpu_tenant import Resident
from llm import Stacks, read_stacks
from tests.llm.fake_servers import FakeServer

SHORT = {"call_s": 2, "unload_s": 2, "load_s": 4}


def stacks_of(*servers: FakeServer, **more: Any) -> Stacks:
    """One stack per server, by its built-in driver; its key, if it wants one, comes from the environment."""
    config = [_entry(server) | more for server in servers]
    return read_stacks(config, {f"{_variable(server)}": server.key for server in servers if server.key})


def _variable(server: FakeServer) -> str:
    return f"KEY_OF_{server.DRIVER.upper().replace('-', '_')}"


def _entry(server: FakeServer) -> dict[str, Any]:
    key = {"key_env": _variable(server)} if server.key else {}
    return {"driver": server.DRIVER, "url": server.url, **SHORT, **key}


def ids(residents: tuple[Resident, ...]) -> set[str]:
    return {resident.id for resident in residents}


def until(look: Callable[[], bool], within_s: float = 5) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if look():
            return True
        time.sleep(0.01)
    return look()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
