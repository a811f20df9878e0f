"""Finds what decides the size of the pictures: two numbers, what computes them, or the picture that is put in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from importer.computed_numbers import NotConstant, number_at
from importer.find_sampling import latent_input
from importer.graph_view import GraphView, Place

_SIDES = ("width", "height")


@dataclass(frozen=True)
class FoundSize:
    """`width` and `height`: the inputs that get them, more than one of each if other nodes must know the size, too; empty if
    the size is that of a loaded picture. `origin`: where the numbers come from if they are computed."""

    width: tuple[Place, ...] = ()
    height: tuple[Place, ...] = ()
    value: tuple[int, int] | None = None
    """pixels, as exported; None if the size comes from a picture or is not known"""
    node: str | None = None
    origin: str | None = None
    from_picture: bool = False


def find_size(graph: GraphView, sampler: str) -> FoundSize:
    """The size of what `sampler` draws."""
    place, seen = latent_input(graph, sampler), set()
    while place is not None and (producer := graph.producer(place)) is not None and producer[0] not in seen:
        node = producer[0]
        seen.add(node)
        if all(side in graph.nodes[node]["inputs"] for side in _SIDES):
            return _size_of(graph, node)
        following = latent_input(graph, node)
        if following is None and list(graph.named(node, "IMAGE")):
            return FoundSize(node=node, from_picture=_uses_picture(graph, node))
        place = following
    return FoundSize()


def _size_of(graph: GraphView, node: str) -> FoundSize:
    sides = [(node, side) for side in _SIDES]
    traced = [graph.traced(place) for place in sides]
    if all(traced):
        width, height = (place for place in traced if place is not None)
        value = _as_size(graph, width, height)
        if value is not None and 0 not in value:
            also = list(_same_size(graph, value, {width, height}))
            return FoundSize((width, *(w for w, _ in also)), (height, *(h for _, h in also)), value, node)
    if any(_uses_picture(graph, node, side) for side in _SIDES) or _takes_size_of_picture(graph, node):
        return FoundSize(node=node, from_picture=True)
    value = _as_size(graph, *sides)
    if value is None:
        return FoundSize(node=node)
    links = [graph.link(place) for place in sides]
    origin = next((link[0] for place in sides if (link := graph.producer(place)) is not None), None)
    width_places, height_places = (
        tuple(_fed_by(graph, link, side)) for link, side in zip(links, sides, strict=True)
    )
    return FoundSize(width_places, height_places, value, node, origin)


def _as_size(graph: GraphView, width: Place, height: Place) -> tuple[int, int] | None:
    try:
        return round(number_at(graph, width)), round(number_at(graph, height))
    except NotConstant:
        return None


def _fed_by(graph: GraphView, link: tuple[str, int] | None, place: Place) -> Iterator[Place]:
    """`place`, and every other input that the same output feeds."""
    yield place
    for node in graph.nodes:
        for name in graph.nodes[node]["inputs"]:
            if link is not None and (node, name) != place and graph.link((node, name)) == link:
                yield node, name


def _same_size(graph: GraphView, value: tuple[int, int], found: set[Place]) -> Iterator[tuple[Place, Place]]:
    """Nodes that are told the size besides, such as a scheduler."""
    for node in graph.nodes:
        places = [(node, side) for side in _SIDES]
        if (
            all(graph.is_literal(place) and place not in found for place in places)
            and (
                graph.value(places[0]),
                graph.value(places[1]),
            )
            == value
        ):
            yield places[0], places[1]


def _uses_picture(graph: GraphView, node: str, name: str | None = None) -> bool:
    """Whether a loaded picture is among what the node, or one of its inputs, depends on."""
    if name is None:
        behind = graph.upstream(node)
    else:
        producer = graph.producer((node, name))
        behind = graph.upstream(producer[0]) if producer is not None else {}
    return any(loads_picture(graph, each) for each in behind)


def _takes_size_of_picture(graph: GraphView, node: str) -> bool:
    return any(graph.value((node, side)) == 0 for side in _SIDES) and _uses_picture(graph, node)


def loads_picture(graph: GraphView, node: str) -> bool:
    """Whether the node loads a picture that a user puts in."""
    return any(signature.folder == "input" for signature in graph.inputs(node).values())
