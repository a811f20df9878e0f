"""The graph of a template that only writes its values: rendered once, then filled in. Most imported workflows are such, and
some have thousands of nodes, of which a value changes a few."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.answer import Part, find_output
from compiler.catalogue import Catalogue, Workflow
from compiler.check import find_errors_in
from compiler.graph import render_nodes
from compiler.link_types import LinkTypes
from compiler.links import upstream
from compiler.proof.hints import Place
from compiler.signatures import Signatures
from compiler.slots import Slot
from compiler.values import Nodes

FILE_NAME_INPUT = "filename_prefix"
"""What nodes that save pictures call the start of the file's name"""

MIN_NODES = 64
"""In smaller graphs, rendering costs less than looking for what changed."""

_SCALARS = (str, int, float, bool)
_MAX_KEPT = 4
"""fillings of each group of nodes that are kept: most changes leave a group as it was"""

Key = tuple[Any, ...]


def digest(node_id: str, class_type: str, inputs: Mapping[str, Any]) -> int:
    """A number for a node of the answer's part. Parts with equal sums of them are equal."""
    text = json.dumps([node_id, class_type, inputs], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=24).digest(), "big")


@dataclass
class _Filling:
    """The nodes of one group with certain values. `digest`: the sum of those in the answer's part."""

    nodes: Nodes
    part: Part
    digest: int
    is_checked: bool = False


@dataclass(frozen=True)
class _Group:
    """Nodes whose inputs get values of the same variables. `inputs`: node id -> input -> variable"""

    variables: tuple[str, ...]
    inputs: Mapping[str, Mapping[str, str]]
    fillings: dict[str, _Filling] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """The graph of a pattern for certain values."""

    pattern: Pattern
    nodes: Nodes
    fillings: tuple[_Filling, ...]

    @property
    def output(self) -> str:
        return self.pattern.output

    @property
    def fingerprint(self) -> int:
        return self.pattern.static_digest + sum(filling.digest for filling in self.fillings)

    @property
    def part(self) -> Part:
        part = dict(self.pattern.static_part)
        for filling in self.fillings:
            part.update(filling.part)
        return part

    def nodes_unlike(self, other: Filled) -> Iterator[str]:
        """The nodes of the part that may differ from those of another graph of the same pattern."""
        for filling, before in zip(self.fillings, other.fillings, strict=True):
            if filling is not before:
                yield from filling.part

    def errors(self, signatures: Signatures, template: str) -> list[Any] | None:
        """The errors of the graph, if those of the nodes that have new values decide; else None."""
        pattern = self.pattern
        if not pattern.is_checked or pattern.is_dynamic:
            return None
        changed = [node for filling in self.fillings if not filling.is_checked for node in filling.nodes]
        return list(find_errors_in(changed, self.nodes, signatures, template, pattern.types))

    def note_checked(self) -> None:
        """The whole graph has no errors."""
        self.pattern.is_checked = True
        for filling in self.fillings:
            filling.is_checked = True


class Pattern:
    """A rendered graph with places for values. `key`: what it depends on besides them."""

    def __init__(
        self, nodes: Nodes, places: Mapping[Place, str], output: str, signatures: Signatures
    ) -> None:
        self._nodes = nodes
        self.output = output
        self.is_checked = False
        self.shape: frozenset[Any] | None = None
        """That of its graphs, once it is known"""
        self.types = LinkTypes(nodes, signatures)
        self._part = upstream(nodes, [output])
        by_node: dict[str, dict[str, str]] = {}
        for (node, name), variable in places.items():
            by_node.setdefault(node, {})[name] = variable
        grouped: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = {}
        for node, inputs in by_node.items():
            grouped.setdefault(tuple(sorted(set(inputs.values()))), {})[node] = inputs
        self._groups = [_Group(variables, inputs) for variables, inputs in grouped.items()]
        self.is_dynamic = any(
            entry.is_dynamic
            for node in by_node
            for entry in signatures[nodes[node]["class_type"]].inputs.values()
        )
        self.static_part = {node: _entry(nodes[node]) for node in self._part if node not in by_node}
        self.static_digest = sum(self._digest(node, nodes) for node in self.static_part)

    def fill(self, values: Mapping[str, Any]) -> Filled:
        """The graph for flat `values`."""
        nodes = dict(self._nodes)
        fillings = []
        for group in self._groups:
            filling = self._filling(group, values)
            nodes.update(filling.nodes)
            fillings.append(filling)
        return Filled(self, nodes, tuple(fillings))

    def _filling(self, group: _Group, values: Mapping[str, Any]) -> _Filling:
        key = repr([values[name] for name in group.variables])
        filling = group.fillings.get(key)
        if filling is None:
            nodes = {
                node: {
                    **(entry := self._nodes[node]),
                    "inputs": {
                        **entry["inputs"],
                        **{name: values[variable] for name, variable in inputs.items()},
                    },
                }
                for node, inputs in group.inputs.items()
            }
            part = {node: _entry(entry) for node, entry in nodes.items() if node in self._part}
            filling = _Filling(nodes, part, sum(self._digest(node, nodes) for node in part))
            if len(group.fillings) >= _MAX_KEPT:
                # The first one has the base values.
                del group.fillings[next(reversed(group.fillings))]
            group.fillings[key] = filling
        return filling

    def _digest(self, node: str, nodes: Nodes) -> int:
        inputs = nodes[node]["inputs"]
        if node == self.output:
            inputs = {name: value for name, value in inputs.items() if name != FILE_NAME_INPUT}
        return digest(node, nodes[node]["class_type"], inputs)


def _entry(node: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return node["class_type"], node["inputs"]


class Patterns:
    """The patterns of one template, each made when it is first needed."""

    def __init__(self, catalogue: Catalogue, workflow: Workflow) -> None:
        self._catalogue, self._workflow = catalogue, workflow
        self._patterns: dict[Key, Pattern] = {}
        self._is_pure: bool | None = None
        """False: the template computes with a value, compares it or branches on it."""

    def give_up(self) -> None:
        """Render the template for every graph."""
        self._is_pure = False

    def fill(self, values: Mapping[str, Any]) -> Filled | None:
        """The graph for `values`; None if the template has to be rendered."""
        if self._is_pure is False:
            return None
        flat = dict(_flat(values))
        key = (
            tuple(flat),
            repr([values[name] for name in values if name not in _NESTED and name not in flat]),
        )
        if key not in self._patterns:
            pattern = None
            with contextlib.suppress(Exception):  # rendering says what is wrong
                pattern = self._make(values, list(flat))
            self._is_pure = pattern is not None
            if pattern is None:
                return None
            self._patterns[key] = pattern
        return self._patterns[key].fill(flat)

    def _make(self, values: Mapping[str, Any], names: list[str]) -> Pattern | None:
        catalogue, template = self._catalogue, self._workflow.template
        if catalogue.renderer.reads_output(template):
            return None
        nodes = render_nodes(template, _with_slots(values, set(names)), catalogue)
        markers = {f"\0{name}\0": name for name in names}
        places = {
            (node_id, name): markers[value]
            for node_id, node in nodes.items()
            for name, value in node["inputs"].items()
            if isinstance(value, str) and value in markers
        }
        bare = {
            node_id: {
                **node,
                "inputs": {
                    name: None if (node_id, name) in places else value
                    for name, value in node["inputs"].items()
                },
            }
            for node_id, node in nodes.items()
        }
        if "\0" in repr(bare) or "\\x00" in repr(bare):
            return None
        output = find_output(
            nodes,
            catalogue.signatures,
            template=template,
            entry=self._workflow.entry,
            declared=self._workflow.output,
        )
        return Pattern(bare, places, output, catalogue.signatures)


_NESTED = ("files", "images", "image")
_DECIDING = ("task",)
"""Variables that templates branch on"""


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values that can have slots, by the name of the slot."""
    for name, value in values.items():
        if name not in (*_NESTED, *_DECIDING) and isinstance(value, _SCALARS):
            yield name, value
    yield from ((f"files.{role}", name) for role, name in values["files"].items())
    yield from ((f"images.{index}", name) for index, name in enumerate(values["images"]))


def _with_slots(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    images = [Slot(f"images.{index}") for index in range(len(values["images"]))]
    return {
        **{name: Slot(name) if name in names else value for name, value in values.items()},
        "files": {role: Slot(f"files.{role}") for role in values["files"]},
        "images": images,
        "image": images[0] if images else None,
    }
