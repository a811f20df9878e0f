"""Builds Stacks over fake servers, and other helpers of these tests."""

from __future__ import annotations

import socket
from typing import Any

from gpu_tenant import Resident
from llm import Stacks, read_stacks
from tests.llm.fake_servers import FakeServer

SHORT_TIMEOUTS = {"call_s": 2, "unload_s": 2, "load_s": 4}


def stacks_of(*servers: FakeServer, **settings: Any) -> Stacks:
    """One stack per server, with its built-in driver; its key, if it requires one, comes from the environment."""
    config = [_entry(server) | settings for server in servers]
    return read_stacks(config, {f"{_variable(server)}": server.key for server in servers if server.key})


def _variable(server: FakeServer) -> str:
    return f"KEY_OF_{server.DRIVER.upper().replace('-', '_')}"


def _entry(server: FakeServer) -> dict[str, Any]:
    key = {"key_env": _variable(server)} if server.key else {}
    return {"driver": server.DRIVER, "url": server.url, **SHORT_TIMEOUTS, **key}


def ids(residents: tuple[Resident, ...]) -> set[str]:
    return {resident.id for resident in residents}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
