"""Which pictures of a workflow a request may leave out: those that only feed inputs which need not be linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from importer.graph_view import GraphView, Place


@dataclass(frozen=True)
class OptionalImages:
    """`least`: how many pictures a request must have. `nodes` and `inputs`: how many it must have for a node, or an optional
    input of a node, to be in the graph; those that are always there are left out."""

    least: int
    nodes: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[Place, int] = field(default_factory=dict)


def find_optional_images(graph: GraphView, images: Sequence[Place], output: str) -> OptionalImages:
    """What depends on the pictures `images`, which a request sends in this order. The first is always required."""
    least = max(
        [
            min(1, len(images)),
            *(number for number, image in enumerate(images, 1) if output in _needing(graph, image[0])),
        ]
    )
    nodes: dict[str, int] = {}
    for number, (loader, _) in enumerate(images, 1):
        if number > least:
            nodes |= dict.fromkeys(_needing(graph, loader), number)
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


def _needing(graph: GraphView, loader: str) -> set[str]:
    """`loader`, and every node with a required input that is linked to one of them."""
    found = {loader}
    while True:
        more = {
            node
            for node in graph.nodes
            if node not in found
            and any(_requires(graph, node, name, found) for name in graph.nodes[node]["inputs"])
        }
        if not more:
            return found
        found |= more


def _requires(graph: GraphView, node: str, name: str, found: set[str]) -> bool:
    link = graph.link((node, name))
    if link is None or link[0] not in found:
        return False
    signature = graph.inputs(node).get(name)
    return signature is None or signature.required
