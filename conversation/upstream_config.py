"""Reads `llm.upstreams`, the upstreams among `llm.stacks`, and `llm.aliases` of easel.yaml. Checks them against their
schemas, then for contradictions and missing keys. Reports all errors together, without the values, which may be secrets."""

from __future__ import annotations

import json
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from conversation.headers import may_be_secret
from conversation.upstreams import (
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_PRESET,
    DEFAULT_SILENCE_TIMEOUT_S,
    MAX_IDLE_S,
    MAX_KEPT_CONNECTIONS,
    Upstream,
    presets,
    route_paths,
)
from errors import SettingsInvalid
from http_connections import ConnectionPool
from schemas import LocatedError, located_errors, validator_of

UPSTREAMS, STACKS, ALIASES = "llm.upstreams", "llm.stacks", "llm.aliases"
_IMAGE_SLOT = "img"
_MIN_SECRET_CHARS = 8

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Alias:
    """What a name stands for: a model, of one upstream or of the first that has it (None)."""

    model: str
    upstream: str | None = None


def read_upstreams(
    upstreams: Sequence[Config], stacks: Sequence[Config], environment: Mapping[str, str]
) -> tuple[Upstream, ...]:
    """The upstreams in the order in which they are asked for a model: those of `llm.upstreams` first. `stacks`: the
    checked entries of `llm.stacks`; each with a URL is an upstream, too, unless it has `upstream: false`.

    Raises SettingsInvalid with all errors and their paths, such as `llm.upstreams.0.url`.
    """
    errors = [((UPSTREAMS, *path), text) for path, text in _schema_errors("upstreams", list(upstreams))]
    entries: list[tuple[tuple[str | int, ...], Config]] = []
    if not errors:
        entries += [((UPSTREAMS, index), entry) for index, entry in enumerate(upstreams)]
        entries += [
            ((STACKS, index, "upstream"), entry)
            for index, stack in enumerate(stacks)
            if (entry := _entry_of_stack(stack)) is not None
        ]
        errors += _contradictions(entries, [_stack_name(stack) for stack in stacks], environment)
    if errors:
        _raise_invalid(errors)
    keep = {_stack_name(stack): frozenset(stack.get("keep", ())) for stack in stacks}
    return tuple(_upstream(entry, keep, environment) for _, entry in entries)


def read_aliases(config: Config, upstreams: Sequence[Upstream]) -> Mapping[str, Alias]:
    """The aliases by name, of a checked `config`. Raises SettingsInvalid."""
    errors: list[LocatedError] = []
    names = [upstream.name for upstream in upstreams]
    for alias, value in config.items():
        if alias.casefold() == _IMAGE_SLOT:
            text = "this name stands for the default image model; set images.default_model instead"
            errors.append(((ALIASES, alias), text))
        if isinstance(value, Mapping) and value["upstream"] not in names:
            text = f"there is no such upstream; there are: {', '.join(names) or 'none'}"
            errors.append(((ALIASES, alias, "upstream"), text))
    if errors:
        _raise_invalid(errors)
    return {
        name: Alias(value) if isinstance(value, str) else Alias(value["model"], value["upstream"])
        for name, value in config.items()
    }


def _schema_errors(schema: str, config: Any) -> list[LocatedError]:
    return list(located_errors(validator_of(schema), config, show_values=False))


def _raise_invalid(errors: Sequence[LocatedError]) -> None:
    lines = [f"{'.'.join(map(str, path))}: {text}" for path, text in errors]
    raise SettingsInvalid("\n".join(lines), errors=lines)


# --- errors -------------------------------------------------------------------------------------------------


def _contradictions(
    entries: Sequence[tuple[tuple[str | int, ...], Config]],
    stacks: Sequence[str],
    environment: Mapping[str, str],
) -> Iterator[LocatedError]:
    first_uses: dict[str, tuple[str | int, ...]] = {}
    for path, entry in entries:
        first = first_uses.setdefault(_name(entry).casefold(), path)
        if first != path:
            where = ".".join(map(str, first))
            yield (*path, "name"), f"{where} is already named {_name(entry)!r}; names must be unique"
        preset = presets()[_preset_name(entry)]
        if not entry.get("url", preset.url):
            yield (
                (*path, "url"),
                "it is missing; write the address of the server, such as http://127.0.0.1:8081",
            )
        if "stack" in entry and entry["stack"] not in stacks:
            known = ", ".join(stacks) or "none"
            yield (*path, "stack"), f"there is no such stack; the names in {STACKS} are: {known}"
        for problem_path, text in (*_auth_errors(entry, environment), *_certificate_errors(entry)):
            yield (*path, *problem_path), text


def _auth_errors(entry: Config, environment: Mapping[str, str]) -> Iterator[LocatedError]:
    auth, header = _auth(entry)
    variable = entry.get("key_env")
    if variable is None:
        if auth != "none" and ("auth" in entry or "header" in entry):
            yield (
                ("key_env",),
                f"it is missing; with auth: {auth}, name the environment variable that holds the key",
            )
        return
    if auth == "none":
        yield ("auth",), "with auth: none no key is sent; remove key_env, or write auth: bearer"
    if auth == "header" and not header:
        yield (
            ("header",),
            "it is missing; with auth: header, write the name of the header that the key is sent in",
        )
    if "header" in entry and auth != "header":
        yield ("header",), f"it is not used with auth: {auth}; remove it, or write auth: header"
    for name in entry.get("headers", {}):
        if name.lower() in map(str.lower, _key_headers(entry)):
            yield (
                ("headers", name),
                "the key of key_env is sent in this header; remove one of the two",
            )
    key = environment.get(variable, "")
    if not key:
        yield ("key_env",), f"the environment variable {variable} is not set"
    elif not (key.isascii() and key.isprintable() and " " not in key):
        yield ("key_env",), f"the value of {variable} contains characters that cannot be sent as a key"


def _certificate_errors(entry: Config) -> Iterator[LocatedError]:
    if "ca_file" not in entry:
        return
    url = entry.get("url", presets()[_preset_name(entry)].url)
    if not url.startswith("https:"):
        yield ("ca_file",), "it is for an https URL only; remove it, or write https:// in `url`"
    try:
        _trusted(entry)
    except ssl.SSLError:
        yield ("ca_file",), "the file contains no certificate in PEM format"
    except OSError as error:
        yield ("ca_file",), f"the file cannot be read: {error.strerror}"


def _trusted(entry: Config) -> ssl.SSLContext | None:
    """Raises OSError, ssl.SSLError."""
    file = entry.get("ca_file")
    return None if file is None else ssl.create_default_context(cafile=file)


# --- entries -> values --------------------------------------------------------------------------------------


def _entry_of_stack(stack: Config) -> Config | None:
    """The upstream that a stack is; None if it is none."""
    own = stack.get("upstream", {})
    if own is False or not (own.get("url") or "url" in stack):
        return None
    driver = stack.get("like", stack["driver"])
    inherited = {name: stack[name] for name in ("url", "key_env") if name in stack}
    preset = driver if driver in presets() else DEFAULT_PRESET
    return {"preset": preset, **inherited, **own, "name": _stack_name(stack), "stack": _stack_name(stack)}


def _stack_name(stack: Config) -> str:
    name: str = stack.get("name", stack["driver"])
    return name


def _preset_name(entry: Config) -> str:
    name: str = entry.get("preset", DEFAULT_PRESET)
    return name


def _name(entry: Config) -> str:
    name: str = entry.get("name", _preset_name(entry))
    return name


def _auth(entry: Config) -> tuple[str, str]:
    """How the key is sent, and the name of the header for `header`."""
    preset = presets()[_preset_name(entry)]
    return entry.get("auth", preset.auth), entry.get("header", preset.header)


def _bearer_routes(entry: Config) -> frozenset[str]:
    """Those of the preset; none if the owner says how the key is sent."""
    is_own = "auth" in entry or "header" in entry
    return frozenset() if is_own else presets()[_preset_name(entry)].bearer


def _key_headers(entry: Config) -> list[str]:
    """The names of the headers that the key is sent in."""
    if "key_env" not in entry:
        return []
    auth, header = _auth(entry)
    is_bearer = auth == "bearer" or bool(_bearer_routes(entry))
    return [header] * (auth == "header") + ["Authorization"] * is_bearer


def _upstream(entry: Config, keep: Mapping[str, frozenset[str]], environment: Mapping[str, str]) -> Upstream:
    preset = presets()[_preset_name(entry)]
    auth, header = _auth(entry)
    variable = entry.get("key_env", "")
    key = environment.get(variable, "") if variable else ""
    headers = entry.get("headers", {})
    own_headers = frozenset(name.lower() for name in (*headers, *_key_headers(entry)))
    paths = _paths(preset.paths, entry.get("paths", {}))
    url = _base_url(entry.get("url", preset.url), paths.values())
    stack = entry.get("stack")
    models = entry.get("models")
    return Upstream(
        name=_name(entry),
        url=url,
        preset=_preset_name(entry),
        paths=paths,
        models=None if models is None else tuple(models),
        listing=preset.listing,
        stack=stack,
        not_on_gpu=keep.get(stack, frozenset()) if stack else frozenset(),
        silence_timeout_s=entry.get("silence_timeout_s", DEFAULT_SILENCE_TIMEOUT_S),
        default_headers={
            name: value for name, value in preset.headers.items() if name.lower() not in own_headers
        },
        own_headers=own_headers,
        key=key,
        secrets=_secrets(key, headers),
        key_variable=variable,
        key_header=header if auth == "header" else "",
        bearer_routes=_bearer_routes(entry),
        connections=ConnectionPool(
            url,
            connect_timeout_s=entry.get("connect_timeout_s", DEFAULT_CONNECT_TIMEOUT_S),
            max_kept=MAX_KEPT_CONNECTIONS,
            max_idle_s=MAX_IDLE_S,
            headers=headers,
            trusted=_trusted(entry),
        ),
    )


def _secrets(key: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Also as JSON writes them. Of `Bearer KEY` also the key, because servers quote that. A short value, such as `true`, is
    no secret and may occur anywhere in an answer."""
    values = [value for name, value in headers.items() if may_be_secret(name)]
    values += [value.rpartition(" ")[2] for value in values]
    found = {key, *(value for value in values if len(value) >= _MIN_SECRET_CHARS)}
    found |= {json.dumps(text)[1:-1] for text in found}
    return tuple(sorted((text for text in found if text), key=len, reverse=True))


def _paths(of_preset: Mapping[str, str], own: Config) -> dict[str, str]:
    kept = {name: path for name, path in of_preset.items() if own.get(name) is not False}
    return {**kept, **route_paths(own)}


def _base_url(url: str, paths: Collection[str]) -> str:
    """`url` without the `/v1`, `/api` or `/api/v1` that clients want at its end, as far as the paths have it."""
    url = url.rstrip("/")
    for prefix in ("/v1", "/api"):
        if urlsplit(url).path.endswith(prefix) and any(path.startswith(prefix + "/") for path in paths):
            url = url.removesuffix(prefix)
    return url
