"""A graph that was rendered for the proof, and how it differs from another one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.answer import Part, answer_part
from compiler.links import is_link
from compiler.proof.hints import Place, input_signature
from compiler.signatures import InputSignature, Signatures
from compiler.values import Nodes

FILE_NAME_INPUT = "filename_prefix"
"""What nodes that save pictures call the start of the file's name"""

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

    @cached_property
    def part(self) -> Part:
        """The part of the graph that decides the answer. The name of the saved file is not in it: that changes no
        picture."""
        part = answer_part(self.nodes, self.output)
        class_type, inputs = part[self.output]
        return {**part, self.output: (class_type, {k: v for k, v in inputs.items() if k != FILE_NAME_INPUT})}

    @cached_property
    def part_with_file_name(self) -> Part:
        return answer_part(self.nodes, self.output)

    @cached_property
    def fingerprint(self) -> str:
        """The part as text: graphs with equal texts draw the same."""
        return json.dumps(self.part, sort_keys=True)

    def value(self, place: Place) -> Any:
        """The value of an input of the part; ABSENT if the part does not have it."""
        return self.nodes[place[0]]["inputs"].get(place[1], ABSENT) if place[0] in self.part else ABSENT

    @property
    def shape(self) -> frozenset[Any]:
        """The nodes and links of the part, without values."""
        return frozenset(
            (node_id, class_type, name, tuple(value) if is_link(value, self.nodes) else None)
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


def changed_places(start: TrialGraph, changed: TrialGraph) -> Iterator[Place]:
    """The inputs of the part that have another value than before."""
    for node_id, (_, inputs) in changed.part.items():
        before = start.part[node_id][1] if node_id in start.part else {}
        for name, value in inputs.items():
            if name in before and before[name] != value:
                yield node_id, name
