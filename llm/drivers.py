"""Drivers: the HTTP calls of one kind of LLM server, as values read from data. `drivers.yaml` has the built-in ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm.responses import MISSING, Conditions
from schemas.yaml_document import read_yaml

_FILE = Path(__file__).with_name("drivers.yaml")


@dataclass(frozen=True)
class Call:
    """One HTTP call, and which responses mean success.

    `ok`: successful statuses, any 2xx if empty. `expect`: required fields of a 2xx response and their values. `events`:
    the response is an event stream whose last event has these fields. `once`: one call for all models. `after`: this
    call is an alternative, made if the previous one got one of these statuses. `loaded_as`: field of the response that
    has the id of the loaded model.
    """

    method: str
    path: str
    json: Any = MISSING
    ok: tuple[int, ...] = ()
    expect: Mapping[str, Any] = field(default_factory=dict)
    events: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False
    after: tuple[int, ...] = ()
    loaded_as: str = ""

    def is_ok(self, status: int) -> bool:
        return status in self.ok if self.ok else 200 <= status < 300

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class SavedField:
    """A field of a list entry that is saved for the reload. With `above`: `value` is saved if the field sorts after
    `above`, otherwise nothing."""

    path: str
    above: str = ""
    value: Any = None


@dataclass(frozen=True)
class NothingLoaded:
    """A response with this status and this text in its body means that no model is loaded."""

    status: int
    text: str


@dataclass(frozen=True)
class Listing:
    """How to read from the response to `call` what is loaded.

    `items`: path of the list; None if the whole response is the only entry. `id`: field with an entry's id; `name`: the
    id itself, for servers without ids. An entry holds GPU memory unless it meets `unless`; it is ready to serve if it
    meets `ready`; it is being loaded for a request if it meets `loading`; its load failed if it meets `failed`. `same`:
    saved field that identifies a model across reloads; the id if empty.
    """

    call: Call
    items: str | None
    id: str
    name: str
    default_tag: str
    unless: Conditions
    ready: Conditions
    loading: Conditions
    failed: Conditions
    none_on: NothingLoaded | None
    save: Mapping[str, SavedField]
    save_parent: Mapping[str, str]
    same: str

    def full_id(self, model_id: str) -> str:
        """An id from the configuration, as the server lists it."""
        return f"{model_id}:{self.default_tag}" if self.default_tag and ":" not in model_id else model_id


@dataclass(frozen=True)
class BusyProbe:
    """How to read from the response to `call` how many requests run or wait: the sum of the metrics `prometheus`, or the
    number of entries in the list `items` that meet `count`."""

    call: Call
    prometheus: tuple[str, ...]
    items: str
    count: Conditions

    @property
    def per_model(self) -> bool:
        return "{id}" in self.call.path


@dataclass(frozen=True)
class Driver:
    """The five operations of a server. `needs`: what the server requires, shown if it answers in another way.
    `key_header`: header with the bare key; if empty, the key is sent as `Authorization: Bearer`."""

    name: str
    health: Call
    listing: Listing
    busy: BusyProbe | None
    unload: Call
    load: tuple[Call, ...]
    needs: str
    key_header: str


@cache
def driver_data() -> Mapping[str, Any]:
    """The contents of `drivers.yaml`."""
    return MappingProxyType(read_yaml(_FILE.read_text("utf-8")))


@cache
def built_in_drivers() -> Mapping[str, Driver]:
    return MappingProxyType({name: parse_driver(name, data) for name, data in driver_data().items()})


def parse_driver(name: str, data: Mapping[str, Any]) -> Driver:
    """A driver from data that is valid against the schema. Without `health`, the list call is the health check."""
    load = data.get("load", [])
    return Driver(
        name=name,
        health=_call(data.get("health", {"call": data["list"]["call"]})),
        listing=_listing(data["list"]),
        busy=_busy_probe(data["busy"]) if "busy" in data else None,
        unload=_call(data["unload"]),
        load=tuple(_call(entry) for entry in (load if isinstance(load, list) else [load])),
        needs=data.get("needs", ""),
        key_header=data.get("key_header", ""),
    )


def _call(data: Mapping[str, Any]) -> Call:
    method, _, path = data["call"].partition(" ")
    return Call(
        method=method,
        path=path,
        json=data.get("json", MISSING),
        ok=tuple(data.get("ok", ())),
        expect=data.get("expect", {}),
        events=data.get("events", {}),
        once=data.get("once", False),
        after=tuple(data.get("after", ())),
        loaded_as=data.get("loaded_as", ""),
    )


def _listing(data: Mapping[str, Any]) -> Listing:
    return Listing(
        call=_call(data),
        items=data.get("items"),
        id=data.get("id", ""),
        name=data.get("name", ""),
        default_tag=data.get("default_tag", ""),
        unless=data.get("unless", {}),
        ready=data.get("ready", {}),
        loading=data.get("loading", {}),
        failed=data.get("failed", {}),
        none_on=NothingLoaded(**data["none_on"]) if "none_on" in data else None,
        save={key: SavedField(**entry) for key, entry in data.get("save", {}).items()},
        save_parent=data.get("save_parent", {}),
        same=data.get("same", ""),
    )


def _busy_probe(data: Mapping[str, Any]) -> BusyProbe:
    return BusyProbe(
        call=_call(data),
        prometheus=tuple(data.get("prometheus", ())),
        items=data.get("items", ""),
        count=data.get("count", {}),
    )
