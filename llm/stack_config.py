"""Reads `llm.stacks` of easel.yaml into Stacks. Checks it against its schema, then for contradictions and missing keys.
Reports all errors together, with their paths and without the values, which may be secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errors import SettingsInvalid
from llm.stacks import Stacks
from schemas import LocatedError, located_errors, validator_of

SETTING = "llm.stacks"


def read_stacks(config: Any, environment: Mapping[str, str], gpus: Sequence[str] = ()) -> Stacks:
    """The stacks described by the list `config`. Keys, and the variables that are passed to commands, come from
    `environment`. An empty list or None gives Stacks that are false. `gpus`: the GPUs of the entries of `engines`; a stack
    that names none shares the first.

    Raises SettingsInvalid with all errors and their paths, such as `llm.stacks.0.url`.
    """
    entries = [] if config is None else config
    errors = list(located_errors(validator_of("stacks"), entries, show_values=False)) or list(
        _contradictions(entries, environment, gpus)
    )
    if errors:
        lines = [f"{'.'.join((SETTING, *map(str, path)))}: {message}" for path, message in errors]
        raise SettingsInvalid("\n".join(lines), errors=lines)
    if not entries:
        return Stacks([])
    # Not above: requests takes 3 MB in each worker, and most installations have no LLM server.
    from llm.stack_entries import stack_of

    default_gpu = gpus[0] if gpus else ""
    return Stacks([stack_of(entry, environment, str(entry.get("gpu", default_gpu))) for entry in entries])


# --- errors -------------------------------------------------------------------------------------------------


def _contradictions(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str], gpus: Sequence[str]
) -> Iterator[LocatedError]:
    first_uses: dict[str, int] = {}
    for index, entry in enumerate(entries):
        first = first_uses.setdefault(name_of(entry).casefold(), index)
        if first != index:
            yield (
                (index, "name"),
                f"{SETTING}.{first} is already named {name_of(entry)!r}; names must be unique",
            )
        if "gpu" in entry and not gpus:
            text = "it is only for several ComfyUIs; remove it, or list them in `engines`, each with its GPU"
            yield (index, "gpu"), text
        elif "gpu" in entry and str(entry["gpu"]) not in gpus:
            yield (index, "gpu"), f"no entry of `engines` uses this GPU; their GPUs are: {', '.join(gpus)}"
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
    shorthands = [key for key in SHORTHANDS if key in entry]
    if len(shorthands) > 1 or (shorthands and commands):
        conflicting = ", ".join([*shorthands[1:], *commands])
        yield (index, shorthands[0]), f"it cannot be combined with {conflicting}"
    elif not shorthands:
        for key in ("items", "loaded", "unload", "load"):
            if key not in commands:
                yield (index, key), f"it is missing; add it, or one of {', '.join(SHORTHANDS)}"


def name_of(entry: Mapping[str, Any]) -> str:
    """The name of an entry's stack: by default that of its driver."""
    name: str = entry.get("name", entry["driver"])
    return name


SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
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
