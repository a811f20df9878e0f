"""A graph that was rendered for the proof, and how it differs from another one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.answer import Part, answer_part
from compiler.links import is_link
from compiler.proof.hints import Place, input_signature
from compiler.proof.pattern import FILE_NAME_INPUT, Filled, digest
from compiler.signatures import InputSignature, Signatures
from compiler.values import Nodes

ABSENT = object()

Values = Mapping[str, Any]
"""variable of the templates -> value"""


@dataclass(frozen=True)
class TrialGraph:
    """A graph with its answer's node, and the values that it was rendered with."""

    values: Values
    nodes: Nodes
    output: str
    errors: tuple[str, ...] = ()
    filled: Filled | None = None
    """How it was made, if its template only writes its values"""
    has_digest: bool = False
    """Whether it is compared with graphs that were made so"""

    @cached_property
    def part(self) -> Part:
        """The part of the graph that decides the answer. The name of the saved file is not in it: that changes no
        picture."""
        part = self.part_with_file_name
        class_type, inputs = part[self.output]
        return {**part, self.output: (class_type, {k: v for k, v in inputs.items() if k != FILE_NAME_INPUT})}

    @cached_property
    def part_with_file_name(self) -> Part:
        return answer_part(self.nodes, self.output) if self.filled is None else self.filled.part

    @cached_property
    def fingerprint(self) -> str | int:
        """Graphs with equal fingerprints draw the same."""
        if self.filled is not None:
            return self.filled.fingerprint
        if self.has_digest:
            return sum(digest(node_id, *entry) for node_id, entry in self.part.items())
        return json.dumps(self.part, sort_keys=True)

    def value(self, place: Place) -> Any:
        """The value of an input of the part; ABSENT if the part does not have it."""
        return self.nodes[place[0]]["inputs"].get(place[1], ABSENT) if place[0] in self.part else ABSENT

    @property
    def shape(self) -> frozenset[Any]:
        """The nodes and links of the part, without values."""
        if self.filled is None:
            return self._shape
        pattern = self.filled.pattern
        if pattern.shape is None:
            pattern.shape = self._shape
        return pattern.shape

    @cached_property
    def _shape(self) -> frozenset[Any]:
        return frozenset(
            (
                node_id,
                class_type,
                name,
                tuple(value) if isinstance(value, list) and is_link(value, self.nodes) else None,
            )
            for node_id, (class_type, inputs) in self.part.items()
            for name, value in inputs.items()
        )

    def contains(self, text: str) -> bool:
        """Whether an input of the part contains `text` unchanged."""
        inputs = (value for _, inputs in self.part.values() for value in inputs.values())
        return any(isinstance(value, str) and text in value for value in inputs)


def stray_nodes(start: TrialGraph, changed: TrialGraph) -> list[str]:
    """The nodes that changed although the answer does not depend on them."""
    return [
        node_id
        for node_id, node in changed.nodes.items()
        if node_id not in changed.part
        and node_id in start.nodes
        and start.nodes[node_id]["inputs"] != node["inputs"]
    ]


def arrivals(
    name: str, start: TrialGraph, changed: TrialGraph, signatures: Signatures
) -> Iterator[tuple[Place, InputSignature | None]]:
    """The inputs to which the changed value `name` is passed as it is, each with its signature if it is known."""
    old, new = start.values.get(name), changed.values.get(name)
    for place in changed_places(start, changed):
        value = changed.nodes[place[0]]["inputs"][place[1]]
        if type(value) is type(new) and value == new and start.nodes[place[0]]["inputs"][place[1]] == old:
            yield place, input_signature(changed.nodes, place, signatures)


def _nodes_unlike(start: TrialGraph, changed: TrialGraph) -> Iterable[str]:
    if start.filled is None or changed.filled is None or start.filled.pattern is not changed.filled.pattern:
        return changed.part
    return changed.filled.nodes_unlike(start.filled)


def changed_places(start: TrialGraph, changed: TrialGraph) -> Iterator[Place]:
    """The inputs of the part that have another value than before."""
    for node_id in _nodes_unlike(start, changed):
        inputs = changed.part[node_id][1]
        before = start.part[node_id][1] if node_id in start.part else {}
        for name, value in inputs.items():
            if name in before and before[name] != value:
                yield node_id, name
