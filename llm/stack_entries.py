"""Makes stacks of the entries of `llm.stacks`, which `llm.stack_config` has checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from gpu_tenant import Resident
from llm.command import CommandLlmServer, Commands, LoadedCheck
from llm.drivers import Call, Driver, built_in_drivers, driver_data, parse_driver
from llm.http import LlmHttp
from llm.http_server import HttpLlmServer
from llm.server import Limits
from llm.stack_config import SHORTHANDS, name_of
from llm.stacks import Restore, Stack

DEFAULT_CALL_TIMEOUT_S = 5
DEFAULT_UNLOAD_TIMEOUT_S = 30
DEFAULT_LOAD_TIMEOUT_S = 300
_DRIVER_KEYS = ("health", "list", "busy", "unload", "load", "key_header")


def stack_of(entry: Mapping[str, Any], environment: Mapping[str, str], gpu: str = "") -> Stack:
    """The stack that a valid entry describes. `environment` has its key, and the variables for its commands. `gpu`: the GPU
    that it shares."""
    stack = (_command_stack if entry["driver"] == "command" else _http_stack)(entry, environment)
    return replace(stack, gpu=gpu)


def _limits(entry: Mapping[str, Any]) -> Limits:
    return Limits(
        call_s=entry.get("call_s", DEFAULT_CALL_TIMEOUT_S),
        unload_s=entry.get("unload_s", DEFAULT_UNLOAD_TIMEOUT_S),
        load_s=entry.get("load_s", DEFAULT_LOAD_TIMEOUT_S),
    )


def _http_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits, driver = name_of(entry), _limits(entry), _driver(entry)
    http = LlmHttp(
        name,
        entry["url"],
        key=environment.get(entry.get("key_env", ""), ""),
        key_header=driver.key_header,
        connect_timeout_s=limits.call_s,
    )
    return Stack(
        name=name,
        driver=entry["driver"],
        url=http.url,
        server=HttpLlmServer(name, driver, http, limits),
        restore=_restore(entry, driver),
        keep=frozenset(map(driver.listing.full_id, entry.get("keep", ()))),
    )


def _driver(entry: Mapping[str, Any]) -> Driver:
    if entry["driver"] != "http":
        return built_in_drivers()[entry["driver"]]
    own_data = {key: entry[key] for key in _DRIVER_KEYS if key in entry}
    return parse_driver(name_of(entry), {**driver_data().get(entry.get("like", ""), {}), **own_data})


def _restore(entry: Mapping[str, Any], driver: Driver | None = None) -> Restore:
    restore = entry.get("restore", "saved")
    if isinstance(restore, str):
        return "lazy" if restore == "lazy" else "saved"
    return tuple(_configured_resident(name_of(entry), model_id, driver) for model_id in restore)


def _configured_resident(owner: str, model_id: str, driver: Driver | None) -> Resident:
    """A model from the configuration, with what `list` would have saved of it."""
    if driver is None:
        return Resident(owner, model_id)
    same = driver.listing.same
    return Resident(owner, driver.listing.full_id(model_id), {same: model_id} if same else {})


def _command_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits = name_of(entry), _limits(entry)
    method, _, health_url = entry.get("health", "").partition(" ")
    base, path = _split_url(health_url)
    http = LlmHttp(name, base, key="", key_header="", connect_timeout_s=limits.call_s)
    commands = _commands(entry, limits, Call(method, path) if health_url else None)
    return Stack(
        name=name,
        driver="command",
        url=base or None,
        server=CommandLlmServer(name, commands, http, limits, environment),
        restore=_restore(entry),
        keep=frozenset(entry.get("keep", ())),
    )


def _split_url(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}" if url else ""
    return base, url.removeprefix(base) or "/"


def _commands(entry: Mapping[str, Any], limits: Limits, health: Call | None) -> Commands:
    for shorthand, commands in SHORTHANDS.items():
        if shorthand in entry:
            entry = {"items": entry[shorthand], **commands}
    loaded = entry["loaded"]
    # `docker stop -t`: shorter than the command's timeout, because killing the container takes time too.
    grace = str(max(1, int(limits.unload_s) - 5))
    return Commands(
        items=tuple(entry["items"]),
        loaded=_loaded_check(loaded if isinstance(loaded, Mapping) else {"run": loaded}),
        unload=tuple(argument.replace("{grace}", grace) for argument in entry["unload"]),
        load=tuple(entry["load"]),
        health=health,
    )


def _loaded_check(data: Mapping[str, Any]) -> LoadedCheck:
    """By default, statuses 1 and 3 mean not loaded (`pgrep` and service managers), and others are errors of the command."""
    return LoadedCheck(
        tuple(data["run"]), tuple(data.get("exits", (0, 1, 3))), tuple(data.get("free_prints", ()))
    )
