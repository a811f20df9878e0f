"""Reads `engines` of easel.yaml. Checks it against its schema, then for contradictions and missing variables. Reports all
errors together, without the values, which may be secrets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import Credentials
from errors import SettingsInvalid
from schemas import LocatedError, line_of, located_errors, read_yaml, validator_of
from schemas.engine_access import CredentialKind, credential_problems, has_valid_host

SETTING = "engines"
_VARIABLE_KEYS: Mapping[str, CredentialKind] = {
    "user_env": "user",
    "password_env": "password",
    "token_env": "token",
    "query_token_env": "query_token",
}
"""The keys that name an environment variable -> what it holds"""


@dataclass(frozen=True)
class EngineEntry:
    """One ComfyUI of `engines`.

    `url` has no slash at its end. `gpu`: the GPU that it draws on; no two entries have the same. `models`: the ids of the
    models that it draws; None: all. `weight`: its speed compared to the other entries, above 0, while its pace has not
    been measured. `start`: how to start it, as the setting `engine.start`; empty: never. `depth`: how many jobs it gets
    at the same time; None: as the setting `engine.depth` says.
    """

    name: str
    url: str
    gpu: str
    models: tuple[str, ...] | None
    weight: float
    start: Mapping[str, Any]
    depth: int | None
    credentials: Credentials = field(repr=False)


def read_engines(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> tuple[EngineEntry, ...]:
    """The engines that the list `entries` describes, in its order. Credentials come from `environment`.

    Raises SettingsInvalid with all errors and their paths, such as `engines.0.url`.
    """
    errors = [f"{_name_of(path)}: {text}" for path, text in _errors_of(list(entries), environment)]
    if errors:
        raise SettingsInvalid("\n".join(errors), errors=errors)
    return tuple(_engine_of(entry, environment) for entry in entries)


def engines_of_text(
    text: str, environment: Mapping[str, str], *, file_name: str = "easel.yaml"
) -> tuple[EngineEntry, ...]:
    """The engines of a changed configuration file; none if it has no `engines`. Other settings in `text` are not checked.

    Raises SettingsInvalid with all errors, each with file, line and path: `easel.yaml:3: engines.0.url: …`.
    """
    try:
        document = read_yaml(text)
    except ValueError as error:
        lines = [f"{file_name}:{error}"]
        raise SettingsInvalid(lines[0], errors=lines) from error
    if document is not None and not isinstance(document, dict):
        lines = [f"{file_name}:1: it must be settings, such as `port: 8080`"]
        raise SettingsInvalid(lines[0], errors=lines)
    entries = (document or {}).get(SETTING)
    if entries is None:
        return ()
    errors = [
        f"{file_name}:{line_of(text, (SETTING, *path))}: {_name_of(path)}: {problem}"
        for path, problem in _errors_of(entries, environment)
    ]
    if errors:
        raise SettingsInvalid("\n".join(errors), errors=errors)
    return tuple(_engine_of(entry, environment) for entry in entries)


def credential_variables(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The names of the environment variables that hold credentials. `entries` need not be checked."""
    for entry in entries:
        for key in _VARIABLE_KEYS:
            if isinstance(name := entry.get(key), str):
                yield name


def _name_of(path: Iterable[str | int]) -> str:
    return ".".join((SETTING, *map(str, path)))


# --- errors -------------------------------------------------------------------------------------------------


def _errors_of(entries: Any, environment: Mapping[str, str]) -> list[LocatedError]:
    found = located_errors(validator_of("engines"), entries, show_values=False)
    return [(path, _url_advice(entries, path) or text) for path, text in found] or list(
        _contradictions(entries, environment)
    )


def _url_advice(entries: Any, path: tuple[str | int, ...]) -> str | None:
    """What to write instead of a URL with credentials."""
    match path:
        case (int(index), "url"):
            url = str(entries[index]["url"])
            if "@" in url:
                return (
                    "write it without user and password, and name the environment variables that hold them in `user_env` "
                    "and `password_env`"
                )
            if "?" in url:
                return "write it without a query, and name the environment variable that holds a token in `query_token_env`"
    return None


def _contradictions(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[LocatedError]:
    names, urls, gpus = dict[str, int](), dict[str, int](), dict[str, int]()
    for index, entry in enumerate(entries):
        if (first := names.setdefault(entry["name"].casefold(), index)) != index:
            text = f"{SETTING}.{first} is already named {entries[first]['name']!r}; names must be unique"
            yield (index, "name"), text
        if not has_valid_host(entry["url"]):
            text = "its host name or port is not valid; write it such as http://127.0.0.1:8188"
            yield (index, "url"), text
        if (first := urls.setdefault(_url_of(entry).casefold(), index)) != index:
            yield (index, "url"), f"{SETTING}.{first} already has this address; list each ComfyUI once"
        if (first := gpus.setdefault(_gpu_of(entry).casefold(), index)) != index:
            text = f"{SETTING}.{first} already uses the GPU {_gpu_of(entry)!r}; there can be only one ComfyUI per GPU"
            yield (index, "gpu"), text
        if "user_env" in entry and "token_env" in entry:
            text = "it and `user_env` exclude each other: both are sent in the same header; remove one"
            yield (index, "token_env"), text
        for key, problem in _variable_errors(entry, environment):
            yield (index, key), problem


def _variable_errors(entry: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, kind in _VARIABLE_KEYS.items():
        if key not in entry:
            continue
        variable = entry[key]
        value = environment.get(variable, "")
        if not value:
            yield key, f"the environment variable {variable} is not set"
        for rule in credential_problems(kind, value, "the variable that `password_env` names"):
            yield key, f"the value of {variable} is not allowed; {rule}"


# --- entries -> values --------------------------------------------------------------------------------------


def _engine_of(entry: Mapping[str, Any], environment: Mapping[str, str]) -> EngineEntry:
    models, depth = entry.get("models"), entry.get("depth")
    credentials = {kind: environment[entry[key]] for key, kind in _VARIABLE_KEYS.items() if key in entry}
    return EngineEntry(
        name=entry["name"],
        url=_url_of(entry),
        gpu=_gpu_of(entry),
        models=None if models is None else tuple(models),
        weight=float(entry.get("weight", 1)),
        start=entry.get("start", {}),
        depth=None if depth is None else int(depth),
        credentials=Credentials(
            **credentials, query_name=entry.get("query_token_name", "token"), entry=entry["name"]
        ),
    )


def _url_of(entry: Mapping[str, Any]) -> str:
    return str(entry["url"]).rstrip("/")


def _gpu_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("gpu", entry["name"]))
