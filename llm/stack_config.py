"""Reads `llm.stacks` of easel.yaml into Stacks. Checks it against its schema, then for contradictions and missing keys.
Reports all errors together, with their paths and without the values, which may be secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from errors import SettingsInvalid
from gpu_tenant import Resident
from llm.command import CommandLlmServer, Commands, LoadedCheck
from llm.drivers import Call, Driver, built_in_drivers, driver_data, parse_driver
from llm.http import LlmHttp
from llm.http_server import HttpLlmServer
from llm.server import Limits
from llm.stacks import Restore, Stack, Stacks
from schemas import LocatedError, located_errors, validator_of

SETTING = "llm.stacks"
DEFAULT_CALL_TIMEOUT_S = 5
DEFAULT_UNLOAD_TIMEOUT_S = 30
DEFAULT_LOAD_TIMEOUT_S = 300
_DRIVER_KEYS = ("health", "list", "busy", "unload", "load", "key_header")


def read_stacks(config: Any, environment: Mapping[str, str]) -> Stacks:
    """The stacks described by the list `config`. Keys, and the variables that are passed to commands, come from
    `environment`. An empty list or None gives Stacks that are false.

    Raises SettingsInvalid with all errors and their paths, such as `llm.stacks.0.url`.
    """
    entries = [] if config is None else config
    errors = list(located_errors(validator_of("stacks"), entries, show_values=False)) or list(
        _contradictions(entries, environment)
    )
    if errors:
        lines = [f"{'.'.join((SETTING, *map(str, path)))}: {message}" for path, message in errors]
        raise SettingsInvalid("\n".join(lines), errors=lines)
    return Stacks([_stack(entry, environment) for entry in entries])


# --- errors -------------------------------------------------------------------------------------------------


def _contradictions(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[LocatedError]:
    first_uses: dict[str, int] = {}
    for index, entry in enumerate(entries):
        first = first_uses.setdefault(_name(entry).casefold(), index)
        if first != index:
            yield (
                (index, "name"),
                f"{SETTING}.{first} is already named {_name(entry)!r}; names must be unique",
            )
        if "key_env" in entry:
            yield from _key_errors(index, entry["key_env"], environment)
        if entry["driver"] == "http":
            yield from _missing_operations(index, entry)
        if entry["driver"] == "command":
            yield from _command_errors(index, entry)


def _key_errors(index: int, variable: str, environment: Mapping[str, str]) -> Iterator[LocatedError]:
    key = environment.get(variable, "")
    if not key:
        yield (index, "key_env"), f"the environment variable {variable} is not set"
    elif not (key.isascii() and key.isprintable() and " " not in key):
        yield (index, "key_env"), f"the value of {variable} contains characters that cannot be sent as a key"


def _missing_operations(index: int, entry: Mapping[str, Any]) -> Iterator[LocatedError]:
    if "like" in entry:
        return
    required = ("list", "unload") if entry.get("restore") == "lazy" else ("list", "unload", "load")
    for operation in required:
        if operation not in entry:
            yield (index, operation), "it is missing; add it, or start from a built-in driver with `like`"


def _command_errors(index: int, entry: Mapping[str, Any]) -> Iterator[LocatedError]:
    commands = [key for key in ("items", "loaded", "unload", "load") if key in entry]
    shorthands = [key for key in _SHORTHANDS if key in entry]
    if len(shorthands) > 1 or (shorthands and commands):
        conflicting = ", ".join([*shorthands[1:], *commands])
        yield (index, shorthands[0]), f"it cannot be combined with {conflicting}"
    elif not shorthands:
        for key in ("items", "loaded", "unload", "load"):
            if key not in commands:
                yield (index, key), f"it is missing; add it, or one of {', '.join(_SHORTHANDS)}"


# --- entries -> values --------------------------------------------------------------------------------------


def _name(entry: Mapping[str, Any]) -> str:
    name: str = entry.get("name", entry["driver"])
    return name


def _limits(entry: Mapping[str, Any]) -> Limits:
    return Limits(
        call_s=entry.get("call_s", DEFAULT_CALL_TIMEOUT_S),
        unload_s=entry.get("unload_s", DEFAULT_UNLOAD_TIMEOUT_S),
        load_s=entry.get("load_s", DEFAULT_LOAD_TIMEOUT_S),
    )


def _stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    return (_command_stack if entry["driver"] == "command" else _http_stack)(entry, environment)


def _http_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits, driver = _name(entry), _limits(entry), _driver(entry)
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
    return parse_driver(_name(entry), {**driver_data().get(entry.get("like", ""), {}), **own_data})


def _restore(entry: Mapping[str, Any], driver: Driver | None = None) -> Restore:
    restore = entry.get("restore", "saved")
    if isinstance(restore, str):
        return "lazy" if restore == "lazy" else "saved"
    return tuple(_configured_resident(_name(entry), model_id, driver) for model_id in restore)


def _configured_resident(owner: str, model_id: str, driver: Driver | None) -> Resident:
    """A model from the configuration, with what `list` would have saved of it."""
    if driver is None:
        return Resident(owner, model_id)
    same = driver.listing.same
    return Resident(owner, driver.listing.full_id(model_id), {same: model_id} if same else {})


def _command_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits = _name(entry), _limits(entry)
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
    for shorthand, commands in _SHORTHANDS.items():
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


_SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
    # By the output, not the status: the status is the same for a stopped unit and one that is starting or stopping.
    "systemd": {
        "loaded": {
            "run": ["systemctl", "is-active", "{id}"],
            "exits": [0, 3],
            "free_prints": ["inactive", "failed"],
        },
        "unload": ["systemctl", "stop", "{id}"],
        "load": ["systemctl", "start", "{id}"],
    },
    "docker": {
        "loaded": {
            "run": ["docker", "inspect", "-f", "{{.State.Running}}", "{id}"],
            "exits": [0],
            "free_prints": ["false"],
        },
        "unload": ["docker", "stop", "-t", "{grace}", "{id}"],
        "load": ["docker", "start", "{id}"],
    },
}
