"""Which node of a graph decides the size of the pictures.

The pictures are followed from the answer's node to where they begin, an empty latent or the loaded image. The last node
on this way that has a size of its own decides, such as the empty latent, or an ImageScale behind the decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from compiler.links import is_link, upstream
from compiler.proof.hints import SIDE_NAMES, Place
from compiler.values import Nodes

_PICTURE_INPUTS = (
    *("images", "image", "samples", "latent_image", "latent", "pixels"),
    *("destination", "samples_to", "images.image0", "input"),
)
"""What nodes call the picture or latent that they work on, the first one first"""

_TOTAL_NAMES = ("megapixels", "largest_size")
"""Inputs that set the size of both sides, whatever the size was before"""

_SAMPLED_INPUT = "latent_image"
"""What samplers call the latent that they start from"""


def size_place(nodes: Nodes, output: str, name: str) -> Place | None:
    """The input that decides the side `name` (width or height) of the pictures of `output`; None if they have the size
    of the loaded image, or if that is not known."""
    for node_id in _way_of_pictures(nodes, output):
        inputs = nodes[node_id]["inputs"]
        for key in (*SIDE_NAMES[name], *_TOTAL_NAMES):
            if inputs.get(key):  # 0 keeps the aspect ratio
                return node_id, key
    return None


def sets_both_sides(place: Place) -> bool:
    """Whether the input sets width and height together, such as a number of megapixels."""
    return place[1] in _TOTAL_NAMES


def content(nodes: Nodes, place: Place) -> str:
    """What an input gets, as text to compare: its value, or all nodes that it is computed by."""
    value = nodes[place[0]]["inputs"].get(place[1])
    if not is_link(value, nodes):
        return json.dumps(value)
    behind = {node_id: nodes[node_id] for node_id in upstream(nodes, [value[0]])}
    return json.dumps([value, behind], sort_keys=True)


def is_before_a_sampler(nodes: Nodes, part: set[str], changed: set[str]) -> bool:
    """Whether a sampler of `part` depends on one of the nodes `changed`, or is one; true if there is no sampler."""
    samplers = [node_id for node_id in part if is_link(nodes[node_id]["inputs"].get(_SAMPLED_INPUT), nodes)]
    return not samplers or bool(changed & upstream(nodes, samplers))


def _way_of_pictures(nodes: Nodes, output: str) -> Iterator[str]:
    seen: set[str] = set()
    node_id: str | None = output
    while node_id is not None and node_id not in seen:
        seen.add(node_id)
        yield node_id
        node_id = _picture_source(nodes, nodes[node_id]["inputs"])


def _picture_source(nodes: Nodes, inputs: Any) -> str | None:
    for key in _PICTURE_INPUTS:
        if is_link(inputs.get(key), nodes):
            source: str = inputs[key][0]
            return source
    links = [value[0] for value in inputs.values() if is_link(value, nodes)]
    return links[0] if len(links) == 1 else None
