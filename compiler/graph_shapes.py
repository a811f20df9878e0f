"""Graphs that differ only in prompt, negative prompt, seed and file name share a shape: it is rendered and checked once, and
then filled in. Rendering and checking every graph would be a quarter of the CPU time of a small picture."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.check import is_valid_value
from compiler.signatures import PLAIN_TYPES, InputSignature, Signatures
from compiler.slots import Slot
from compiler.values import Nodes, Plan

MAX_SHAPES = 256
"""Per catalogue; the oldest ones are dropped"""
_SLOTS: Mapping[str, type] = {"prompt": str, "negative_prompt": str, "seed": int, "prefix": str}
"""The variables that differ in each request, and their types. A template that needs to know more of them has no shape."""


@dataclass(frozen=True)
class ShapeKey:
    """What a shape depends on: the workflow, and all values that have no slots."""

    template: str
    workflow: str
    slots: tuple[str, ...]
    values: str

    @classmethod
    def of(cls, plan: Plan, values: Mapping[str, Any]) -> ShapeKey | None:
        """None if no other request will have the same, because the names of its images differ in each, or if a value could
        be taken for a slot."""
        if plan.task != "generate" or values["crop"] is not None:
            return None
        slots = tuple(name for name, kind in _SLOTS.items() if type(values.get(name)) is kind)
        others = repr({name: value for name, value in values.items() if name not in slots})
        # A value with a NUL could look like the marker of a slot.
        return None if repr("\0")[1:-1] in others else cls(plan.template, plan.workflow, slots, others)


@dataclass(frozen=True)
class _Place:
    """An input that gets the value of a slot."""

    node: str
    input: str
    slot: str
    expected: InputSignature


@dataclass(frozen=True)
class Shape:
    """A checked graph without the values of its slots."""

    nodes: Nodes
    places: tuple[_Place, ...]
    output: str

    def fill(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The graph for `values`; None if the check would refuse one of them for its place, which it then explains."""
        nodes = dict(self.nodes)
        for place in self.places:
            value = values[place.slot]
            if not is_valid_value(value, place.expected):
                return None
            node = nodes[place.node]
            nodes[place.node] = {**node, "inputs": {**node["inputs"], place.input: value}}
        return nodes


class GraphShapes:
    """The shapes of one catalogue. Thread-safe."""

    def __init__(self) -> None:
        self._shapes: dict[ShapeKey, Shape | None] = {}
        """None: the template has no shape for these values"""
        self._seen: set[ShapeKey] = set()
        self._lock = threading.Lock()

    def get(self, key: ShapeKey) -> Shape | None:
        return self._shapes.get(key)

    def wants(self, key: ShapeKey) -> bool:
        """Whether to add a shape for this key: from its second graph on, because most are compiled only once."""
        if key in self._shapes:
            return False
        if key in self._seen:
            return True
        if len(self._seen) >= MAX_SHAPES:
            self._seen.clear()
        self._seen.add(key)
        return False

    def add(
        self,
        key: ShapeKey,
        values: Mapping[str, Any],
        nodes: Nodes,
        output: str,
        signatures: Signatures,
        render: Callable[[Mapping[str, Any]], Nodes],
    ) -> None:
        """Add the shape of `nodes`, the checked graph for `values`. `render`: gives the nodes for other values."""
        shape = None
        slots = {name: Slot(name) for name in key.slots}
        # A template that computes with one of the values has no shape: each of its graphs is rendered.
        with contextlib.suppress(Exception):
            shape = _shape(render({**values, **slots}), key.slots, output, signatures)
        if shape is not None and shape.fill(values) != nodes:
            shape = None
        with self._lock:
            if len(self._shapes) >= MAX_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            self._shapes[key] = shape


def _shape(nodes: Nodes, slots: tuple[str, ...], output: str, signatures: Signatures) -> Shape | None:
    """The shape of nodes that were rendered with slots; None if a slot is in another place than a plain input."""
    markers = {f"\0{name}\0": name for name in slots}
    places = []
    for node_id, node in nodes.items():
        expected = signatures[node["class_type"]].inputs_for(node["inputs"])
        for name, value in node["inputs"].items():
            slot = markers.get(value) if isinstance(value, str) else None
            if slot is None:
                continue
            if name not in expected or not _is_plain(expected[name]):
                return None
            places.append(_Place(node_id, name, slot, expected[name]))
    rest = {
        node_id: {
            **node,
            "inputs": {
                name: None if any((node_id, name) == (place.node, place.input) for place in places) else value
                for name, value in node["inputs"].items()
            },
        }
        for node_id, node in nodes.items()
    }
    if any(repr(marker)[1:-1] in repr(rest) for marker in markers):
        return None
    return Shape(rest, tuple(places), output)


def _is_plain(expected: InputSignature) -> bool:
    """Whether the value decides nothing but the input itself: neither other inputs of the node nor a file."""
    is_fixed = expected.options is None and not expected.grown_names and not expected.is_file
    is_free = expected.choices is None and expected.match is None and not expected.several
    return is_fixed and is_free and expected.type in PLAIN_TYPES
