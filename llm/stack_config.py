"""`llm.stacks` of easel.yaml -> Stacks: checked by its schema, then against itself and the environment. Every fault is
told at once, by its path, and without what was given where that may be a secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from errors import SettingsInvalid
from gpu_tenant import Resident
from llm.calls import Calls
from llm.command import Commands, CommandServer, LoadedCheck
from llm.drivers import Call, Driver, built_in_drivers, driver_data, parse_driver
from llm.http_server import HttpServer
from llm.server import Limits
from llm.stacks import Restore, Stack, Stacks
from schemas import LocatedError, located_errors, validator_of

PLACE = "llm.stacks"
DEFAULT_CALL_S = 5
DEFAULT_UNLOAD_S = 30
DEFAULT_LOAD_S = 300
_VERBS = ("health", "list", "busy", "unload", "load", "key_header")


def read_stacks(config: Any, environment: Mapping[str, str]) -> Stacks:
    """The stacks that the list `config` describes; keys and what commands may know come from `environment`. No stacks,
    or None, give Stacks that are false.

    Raises SettingsInvalid with every fault and its path, such as `llm.stacks.0.url`.
    """
    entries = [] if config is None else config
    errors = list(located_errors(validator_of("stacks"), entries, show_values=False)) or list(
        _contradictions(entries, environment)
    )
    if errors:
        lines = [f"{'.'.join((PLACE, *map(str, path)))}: {text}" for path, text in errors]
        raise SettingsInvalid("\n".join(lines), errors=lines)
    return Stacks([_stack(entry, environment) for entry in entries])


# --- faults -------------------------------------------------------------------------------------------------


def _contradictions(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[LocatedError]:
    owners: dict[str, int] = {}
    for index, entry in enumerate(entries):
        first = owners.setdefault(_name(entry).casefold(), index)
        if first != index:
            yield (index, "name"), f"{_name(entry)!r} is {PLACE}.{first} already; give each a name of its own"
        if "key_env" in entry:
            yield from _key_errors(index, entry["key_env"], environment)
        if entry["driver"] == "http":
            yield from _missing_verbs(index, entry)
        if entry["driver"] == "command":
            yield from _missing_commands(index, entry)


def _key_errors(index: int, variable: str, environment: Mapping[str, str]) -> Iterator[LocatedError]:
    key = environment.get(variable, "")
    if not key:
        yield (index, "key_env"), f"the variable {variable} is not set"
    elif not (key.isascii() and key.isprintable() and " " not in key):
        yield (index, "key_env"), f"the value of {variable} has characters that no key has"


def _missing_verbs(index: int, entry: Mapping[str, Any]) -> Iterator[LocatedError]:
    if "like" in entry:
        return
    needed = ("list", "unload") if entry.get("restore") == "lazy" else ("list", "unload", "load")
    for verb in needed:
        if verb not in entry:
            yield (index, verb), "it is missing; write it, or start from a built-in driver with `like`"


def _missing_commands(index: int, entry: Mapping[str, Any]) -> Iterator[LocatedError]:
    spelled = [key for key in ("items", "loaded", "unload", "load") if key in entry]
    shorthands = [key for key in _SHORTHANDS if key in entry]
    if len(shorthands) > 1 or (shorthands and spelled):
        yield (index, shorthands[0]), f"it cannot go together with {', '.join([*shorthands[1:], *spelled])}"
    elif not shorthands:
        for key in ("items", "loaded", "unload", "load"):
            if key not in spelled:
                yield (index, key), f"it is missing; write it, or one of {', '.join(_SHORTHANDS)}"


# --- entries -> values --------------------------------------------------------------------------------------


def _name(entry: Mapping[str, Any]) -> str:
    name: str = entry.get("name", entry["driver"])
    return name


def _limits(entry: Mapping[str, Any]) -> Limits:
    return Limits(
        call_s=entry.get("call_s", DEFAULT_CALL_S),
        unload_s=entry.get("unload_s", DEFAULT_UNLOAD_S),
        load_s=entry.get("load_s", DEFAULT_LOAD_S),
    )


def _stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    return (_command_stack if entry["driver"] == "command" else _http_stack)(entry, environment)


def _http_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits, driver = _name(entry), _limits(entry), _driver(entry)
    calls = Calls(
        name,
        entry["url"],
        key=environment.get(entry.get("key_env", ""), ""),
        key_header=driver.key_header,
        connect_s=limits.call_s,
    )
    return Stack(
        name=name,
        driver=entry["driver"],
        url=calls.url,
        server=HttpServer(name, driver, calls, limits),
        restore=_restore(entry, driver),
        keep=frozenset(map(driver.listing.full_id, entry.get("keep", ()))),
    )


def _driver(entry: Mapping[str, Any]) -> Driver:
    if entry["driver"] != "http":
        return built_in_drivers()[entry["driver"]]
    own = {verb: entry[verb] for verb in _VERBS if verb in entry}
    return parse_driver(_name(entry), {**driver_data().get(entry.get("like", ""), {}), **own})


def _restore(entry: Mapping[str, Any], driver: Driver | None = None) -> Restore:
    given = entry.get("restore", "saved")
    if isinstance(given, str):
        return "lazy" if given == "lazy" else "saved"
    return tuple(_configured(_name(entry), identity, driver) for identity in given)


def _configured(owner: str, identity: str, driver: Driver | None) -> Resident:
    """What `list` would have saved of a model that the configuration names."""
    if driver is None:
        return Resident(owner, identity)
    same = driver.listing.same
    return Resident(owner, driver.listing.full_id(identity), {same: identity} if same else {})


def _command_stack(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Stack:
    name, limits = _name(entry), _limits(entry)
    method, _, address = entry.get("health", "").partition(" ")
    base, path = _split(address)
    calls = Calls(name, base, key="", key_header="", connect_s=limits.call_s)
    commands = _commands(entry, limits, Call(method, path) if address else None)
    return Stack(
        name=name,
        driver="command",
        url=base or None,
        server=CommandServer(name, commands, calls, limits, environment),
        restore=_restore(entry),
        keep=frozenset(entry.get("keep", ())),
    )


def _split(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    base = f"{parts.scheme}://{parts.netloc}" if address else ""
    return base, address.removeprefix(base) or "/"


def _commands(entry: Mapping[str, Any], limits: Limits, health: Call | None) -> Commands:
    for shorthand, spelled in _SHORTHANDS.items():
        if shorthand in entry:
            entry = {"items": entry[shorthand], **spelled}
    loaded = entry["loaded"]
    # A container gets the time of the call, less what killing it and reporting takes.
    grace = str(max(1, int(limits.unload_s) - 5))
    return Commands(
        items=tuple(entry["items"]),
        loaded=_question(loaded if isinstance(loaded, Mapping) else {"run": loaded}),
        unload=tuple(word.replace("{grace}", grace) for word in entry["unload"]),
        load=tuple(entry["load"]),
        health=health,
    )


def _question(data: Mapping[str, Any]) -> LoadedCheck:
    """1 and 3 are how `pgrep` and service managers say no; others are faults of the command itself."""
    return LoadedCheck(
        tuple(data["run"]), tuple(data.get("exits", (0, 1, 3))), tuple(data.get("free_prints", ()))
    )


_SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
    # The word, not the status: a unit that is still starting or stopping exits like one that is down.
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
