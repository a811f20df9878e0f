"""Which pictures of a workflow a request may leave out: those that only feed inputs which need not be linked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from importer.graph_view import GraphView, Place


@dataclass(frozen=True)
class OptionalImages:
    """`least`: how many pictures a request must have. `nodes` and `inputs`: how many it must have for a node, or an optional
    input of a node, to be in the graph; those that are always there are left out."""

    least: int
    nodes: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[Place, int] = field(default_factory=dict)


def find_optional_images(
    graph: GraphView, images: Sequence[Place], output: str, values: Collection[Sequence[Place]]
) -> OptionalImages:
    """What depends on the pictures `images`, which a request sends in this order. `graph` has each node after those that
    feed it. The first picture is required, and each without which another one, or a value, would have no effect. `values`:
    for each value of a request or a model, the places that get it."""
    least, needed = min(1, len(images)), 0
    nodes: dict[str, int] = {}
    while least != needed:
        least = max(least, needed)
        nodes = _optional_nodes(graph, images, output, least)
        needed = max([least, nodes.get(output, 0), *_needed_for(images, nodes), *_needed_by(values, nodes)])
    inputs = {
        (node, name): nodes[link[0]]
        for node in graph.nodes
        for name in graph.nodes[node]["inputs"]
        if (link := graph.link((node, name))) is not None and nodes.get(link[0], 0) > nodes.get(node, 0)
    }
    bare = {node for node, _ in inputs if all((node, name) in inputs for name in graph.nodes[node]["inputs"])}
    if bare:  # its inputs could not be written with commas in between
        return OptionalImages(len(images))
    return OptionalImages(least, nodes, inputs)


def _needed_for(images: Sequence[Place], nodes: Mapping[str, int]) -> Iterator[int]:
    """The pictures without which an earlier one would have no effect"""
    for number, (loader, _) in enumerate(images, 1):
        if nodes.get(loader, 0) > number:
            yield nodes[loader]


def _needed_by(values: Collection[Sequence[Place]], nodes: Mapping[str, int]) -> Iterator[int]:
    """The pictures without which a value would have no effect"""
    for places in values:
        if places and all(node in nodes for node, _ in places):
            yield min(nodes[node] for node, _ in places)


def _optional_nodes(graph: GraphView, images: Sequence[Place], output: str, least: int) -> dict[str, int]:
    """How many pictures a request must have for a node to be in the graph, without the nodes that are always there. A node
    that only feeds optional ones, such as the loader of an upscale model for one picture, is as optional as they are."""
    numbers: dict[str, int] = {}
    for number, (loader, _) in enumerate(images, 1):
        if number > least:
            numbers |= dict.fromkeys(_needing(graph, loader), number)
    readers: dict[str, list[str]] = {}
    for node in reversed(list(graph.nodes)):
        if node in readers and node != output:
            fewest = min(numbers.get(reader, 0) for reader in readers[node])
            numbers[node] = max(numbers.get(node, 0), fewest)
        for name in graph.nodes[node]["inputs"]:
            if (link := graph.link((node, name))) is not None:
                readers.setdefault(link[0], []).append(node)
    return {node: number for node, number in numbers.items() if number}


def _needing(graph: GraphView, loader: str) -> set[str]:
    """`loader`, and every node with a required input that is linked to one of them."""
    found = {loader}
    for node in graph.nodes:
        if any(_requires(graph, node, name, found) for name in graph.nodes[node]["inputs"]):
            found.add(node)
    return found


def _requires(graph: GraphView, node: str, name: str, found: set[str]) -> bool:
    link = graph.link((node, name))
    if link is None or link[0] not in found:
        return False
    signature = graph.inputs(node).get(name)
    return signature is None or signature.required
