"""Drivers: how one kind of LLM server is spoken to, as values read from data. The built-in ones are `drivers.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm.replies import MISSING, Conditions
from schemas.yaml_document import read_yaml

_FILE = Path(__file__).with_name("drivers.yaml")


@dataclass(frozen=True)
class Call:
    """One HTTP call, and what a good reply to it is.

    `ok`: statuses that are fine, any 2xx if empty. `expect`: fields of a 2xx reply and their values. `events`: the
    reply is a stream of events, the last of which has these. `once`: one call for all models. `after`: as an alternative,
    tried when the call before it got one of these statuses. `loaded_as`: field of the reply that names the loaded id.
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
    """A field worth saving for the reload. With `above`, `value` is saved if the field sorts after it, else nothing."""

    path: str
    above: str = ""
    value: Any = None


@dataclass(frozen=True)
class NothingLoaded:
    """A status, with a text in its body, that means that no model is loaded."""

    status: int
    text: str


@dataclass(frozen=True)
class Listing:
    """How the reply to `call` tells what is loaded.

    `items` is the path of the list, None where the whole reply is the one entry. An entry's id is its field `id`, or
    `name` where it has none. It holds memory unless `unless`; it is ready to serve if `ready`; a load failed if `failed`.
    `same`: saved field that tells which entries are the same model, the id if empty.
    """

    call: Call
    items: str | None
    id: str
    name: str
    default_tag: str
    unless: Conditions
    ready: Conditions
    failed: Conditions
    none_on: NothingLoaded | None
    save: Mapping[str, SavedField]
    save_parent: Mapping[str, str]
    same: str

    def full_id(self, given: str) -> str:
        """An id that a person wrote, as the server lists it."""
        return f"{given}:{self.default_tag}" if self.default_tag and ":" not in given else given


@dataclass(frozen=True)
class BusyProbe:
    """How the reply to `call` tells how many requests there are: the sum of metrics, or the entries that `count`."""

    call: Call
    prometheus: tuple[str, ...]
    items: str
    count: Conditions

    @property
    def per_model(self) -> bool:
        return "{id}" in self.call.path


@dataclass(frozen=True)
class Driver:
    """Five verbs. `needs` is what to tell a person whose server answers in another way. `key_header` carries the bare
    key; if empty it goes as `Authorization: Bearer`."""

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
    """The built-in drivers as they are written."""
    return MappingProxyType(read_yaml(_FILE.read_text("utf-8")))


@cache
def built_in_drivers() -> Mapping[str, Driver]:
    return MappingProxyType({name: parse_driver(name, data) for name, data in driver_data().items()})


def parse_driver(name: str, data: Mapping[str, Any]) -> Driver:
    """A driver from data that the schema has passed; without `health`, a server is well if it can list."""
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
