"""Questions about a graph in API format: what feeds an input, which literal decides a value, what an output depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.signatures import InputSignature, NodeSignature, Signatures, plain_value
from compiler.values import Nodes
from dynamic_inputs import is_link

Place = tuple[str, str]
"""node id, input name"""
Output = tuple[str, int]
"""node id, output index"""

_SWITCH_INPUTS = ("switch", "on_true", "on_false")
_PREVIEW = "PreviewAny"
_EMPTY = NodeSignature()


class GraphView:
    """A graph with the signatures of its nodes. A node whose class is not known has no inputs or outputs of any type."""

    def __init__(self, nodes: Nodes, signatures: Signatures) -> None:
        self.nodes = nodes
        self._signatures = {
            node_id: signatures.get(node["class_type"], _EMPTY) for node_id, node in nodes.items()
        }
        self._inputs = {
            node_id: self._signatures[node_id].inputs_for(node["inputs"]) for node_id, node in nodes.items()
        }

    def signature(self, node_id: str) -> NodeSignature:
        return self._signatures[node_id]

    def node_class(self, node_id: str) -> str:
        return str(self.nodes[node_id]["class_type"])

    def inputs(self, node_id: str) -> Mapping[str, InputSignature]:
        """The inputs that the node has with its values, by full name."""
        return self._inputs[node_id]

    def value(self, place: Place) -> Any:
        """The literal at `place`; None if there is a link or nothing."""
        value = self.nodes[place[0]]["inputs"].get(place[1])
        return None if self._link(value) else plain_value(value)

    def is_literal(self, place: Place) -> bool:
        inputs = self.nodes[place[0]]["inputs"]
        return place[1] in inputs and self._link(inputs[place[1]]) is None

    def link(self, place: Place) -> Output | None:
        """The output that is linked to `place`, as written."""
        return self._link(self.nodes[place[0]]["inputs"].get(place[1]))

    def _link(self, value: Any) -> Output | None:
        return (value[0], value[1]) if is_link(value) and value[0] in self.nodes else None

    def producer(self, place: Place) -> Output | None:
        """The output that `place` really gets: behind switches, on the side that is on, and previews."""
        link, seen = self.link(place), set()
        while link is not None and link not in seen:
            seen.add(link)
            through = self._way_through(link[0])
            if through is None:
                return link
            if self.is_literal(through):
                return link
            link = self.link(through)
        return None

    def _way_through(self, node_id: str) -> Place | None:
        """The input that a switch or preview passes on."""
        if self.is_switch(node_id):
            side = self.chosen_side(node_id)
            return None if side is None else (node_id, side)
        return (node_id, "source") if self.node_class(node_id) == _PREVIEW else None

    def is_switch(self, node_id: str) -> bool:
        return all(name in self._signatures[node_id].inputs for name in _SWITCH_INPUTS)

    def chosen_side(self, switch: str) -> str | None:
        """The input that a switch passes on; None if that is decided during the run."""
        chosen = self.traced((switch, "switch"))
        value = None if chosen is None else self.value(chosen)
        return None if value is None else ("on_true" if value else "on_false")

    def traced(self, place: Place) -> Place | None:
        """Where the literal is that decides `place`: itself, or a node behind it that only holds a value. None if the value
        is computed."""
        seen: set[Place] = set()
        while place not in seen:
            seen.add(place)
            if self.is_literal(place):
                return place
            producer = self.producer(place)
            if producer is None:
                return None
            holder = self._held_value(producer[0])
            if holder is None:
                return None
            place = holder
        return None

    def _held_value(self, node_id: str) -> Place | None:
        """The only input of a node that does nothing but hold a value (PrimitiveInt, SeedNode, …) or pass one on."""
        if (through := self._way_through(node_id)) is not None:
            return through
        signature = self._signatures[node_id]
        names = list(signature.inputs)
        if len(names) != 1 or len(signature.outputs) != 1:
            return None
        declared = signature.inputs[names[0]]
        return (node_id, names[0]) if declared.type == signature.outputs[0] and not declared.is_file else None

    def named(self, node_id: str, kind: str) -> Iterator[str]:
        """The names of the node's inputs of type `kind` that have a value or link, auto-grown ones in order."""
        present = self.nodes[node_id]["inputs"]
        return (
            name
            for name, signature in self._inputs[node_id].items()
            if name in present and kind in signature.type.split(",")
        )

    def output_types(self, node_id: str) -> tuple[str, ...]:
        return self._signatures[node_id].outputs

    def upstream(self, node_id: str, *, active_only: bool = True) -> dict[str, int]:
        """Every node that `node_id` depends on, itself included, with its distance in links; nearest first.
        `active_only`: without what stands behind the side of a switch that is off."""
        found, pending = {node_id: 0}, [node_id]
        for current in pending:
            for place in self._followed(current, active_only):
                link = self.link(place)
                if link is not None and link[0] not in found:
                    found[link[0]] = found[current] + 1
                    pending.append(link[0])
        return found

    def unlisted_inputs(self, node_id: str) -> Iterator[str]:
        """The inputs that the node has in the graph, but not in its signature."""
        signature = self._signatures[node_id]
        if not signature.more_inputs:
            yield from (name for name in self.nodes[node_id]["inputs"] if name not in self._inputs[node_id])

    def unlisted_choices(self, node_id: str) -> Iterator[str]:
        """The inputs whose values are not among the choices that the signature has."""
        for name, signature in self._inputs[node_id].items():
            place = (node_id, name)
            if signature.choices is None or not self.is_literal(place) or signature.is_file:
                continue
            value = self.value(place)
            values = value if signature.several and isinstance(value, list) else [value]
            if any(each not in signature.choices for each in values):
                yield name

    def _followed(self, node_id: str, active_only: bool) -> Iterator[Place]:
        side = self.chosen_side(node_id) if active_only and self.is_switch(node_id) else None
        for name in self.nodes[node_id]["inputs"]:
            if side is None or name in ("switch", side):
                yield node_id, name
