"""Guesses which input of which node a value belongs to, so that a fault can say where to write it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from compiler.answer import describe
from compiler.links import is_link, upstream
from compiler.signatures import InputSignature, Signatures
from compiler.values import Nodes

Place = tuple[str, str]
"""node id, input name"""

_INPUT_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("text", "prompt", "positive", "positive_prompt", "text_g", "text_l", "clip_l", "t5xxl"),
    "negative_prompt": ("text", "negative", "negative_prompt", "text_g", "text_l"),
    "seed": ("seed", "noise_seed"),
    "width": ("width", "empty_latent_width"),
    "height": ("height", "empty_latent_height"),
    "batch": ("batch_size", "amount"),
    "prefix": ("filename_prefix",),
    "image": ("image",),
    "mask": ("image", "mask"),
    "steps": ("steps",),
    "cfg": ("cfg", "guidance"),
    "sampler": ("sampler_name", "sampler"),
    "schedule": ("scheduler",),
    "strength": ("denoise", "strength"),
}
"""template variable -> what nodes call it"""
SEED_NAMES = _INPUT_NAMES["seed"]
OTHER_SIDE = {"width": "height", "height": "width"}
SIDE_NAMES = {side: _INPUT_NAMES[side] for side in ("width", "height")}
_NODES_OF: Mapping[str, str] = {
    "width": r"Latent|EmptyImage|Efficient",
    "height": r"Latent|EmptyImage|Efficient",
    "batch": r"Latent|Batch|EmptyImage|Efficient",
    "image": r"^LoadImage",
    "mask": r"^LoadImage",
}
"""template variable -> a pattern of the classes to prefer"""
_VALUE_NAMES = ("value", "string", "text", "int", "float", "number")
"""What nodes that only hold a value call it"""
_FURTHER_IMAGE = re.compile(r"images\[\d+\]")
_MAX_DEPTH = 8
_MAX_PLACES = 3


def input_signature(nodes: Nodes, place: Place, signatures: Signatures) -> InputSignature | None:
    """The signature of an input of the graph; None if node or input are not known."""
    node = nodes[place[0]]
    signature = signatures.get(node["class_type"])
    return None if signature is None else signature.inputs_for(node["inputs"]).get(place[1])


def has_input(nodes: Nodes, part: set[str], names: tuple[str, ...]) -> bool:
    """Whether a node of `part` has an input with one of these names, literal or linked."""
    return any(name in nodes[node_id]["inputs"] for node_id in part for name in names)


def places_of(
    name: str,
    nodes: Nodes,
    part: set[str],
    output: str,
    *,
    signatures: Signatures,
    choices_from: str = "",
    default: Any = None,
) -> list[Place]:
    """The literal inputs of nodes in `part` to which the template variable `name` seems to belong, best first; empty
    if there is no guess. `choices_from`: the node input whose choices it has, such as KSampler.scheduler."""
    name = "image" if _FURTHER_IMAGE.fullmatch(name) else name
    guesses: tuple[Callable[[], list[Place]], ...] = (
        lambda: [(output, "filename_prefix")] if name == "prefix" else [],
        lambda: _conditioning_texts(name, nodes, part, signatures),
        lambda: _choice_places(choices_from, nodes, part),
        lambda: _prefer(name, nodes, part, [*_literals(nodes, part, _INPUT_NAMES.get(name, (name,)))]),
        lambda: [] if name in ("image", "mask") else [*_literals(nodes, part, (name,))],
        lambda: _equal_literals(nodes, part, default),
    )  # fmt: skip
    for guess in guesses:
        if places := guess():
            return places[:_MAX_PLACES]
    return []


def file_places(folder: str, file: str, nodes: Nodes, part: set[str], signatures: Signatures) -> list[Place]:
    """The inputs of nodes in `part` that name a file themselves: `file`, else one of `folder` or of an unknown folder."""
    literals = list(_literals(nodes, part, None))
    same_name = [place for place in literals if _value(nodes, place) == file]
    files = [place for place in literals if _is_file(nodes, place, signatures, folder)]
    return (same_name or files)[:_MAX_PLACES]


def write_at(places: list[Place], nodes: Nodes, expression: str) -> str:
    """What to write where, such as `node '3' (KSampler), input 'seed': write {{ seed }}`."""
    where = " or ".join(f"{describe(nodes, node_id)}, input {name!r}" for node_id, name in places)
    return f"{where}: write {{{{ {expression} }}}}"


# --- candidates --------------------------------------------------------------------------------------


def _literals(nodes: Nodes, part: set[str], names: tuple[str, ...] | None) -> Iterator[Place]:
    """The inputs with one of these names that have a value, in the order of `nodes` and `names`. An input that is
    linked to a node that only holds a value leads to that node. `names`: None for all."""
    seen: set[Place] = set()
    for node_id in nodes:
        if node_id not in part:
            continue
        inputs = nodes[node_id]["inputs"]
        for name in inputs if names is None else names:
            place = holder(nodes, node_id, name) if name in inputs else None
            if place is not None and place not in seen:
                seen.add(place)
                yield place


def holder(nodes: Nodes, node_id: str, name: str) -> Place | None:
    """The literal behind an input: itself, or that of the node which only holds a value for it."""
    for _ in range(_MAX_DEPTH):
        value = nodes[node_id]["inputs"].get(name)
        if not is_link(value, nodes):
            return (node_id, name) if isinstance(value, str | int | float | bool) else None
        node_id = value[0]
        inputs = nodes[node_id]["inputs"]
        plain = [key for key, inner in inputs.items() if not is_link(inner, nodes)]
        names = [key for key in (name, *_VALUE_NAMES) if key in inputs] or (plain if len(plain) == 1 else [])
        if not names or (len(plain) > 2 and name not in inputs):
            return None
        name = names[0]
    return None


def _value(nodes: Nodes, place: Place) -> Any:
    return nodes[place[0]]["inputs"].get(place[1])


def _choice_places(reference: str, nodes: Nodes, part: set[str]) -> list[Place]:
    """The literals of the node input `reference`, such as KSampler.scheduler."""
    class_type, _, name = reference.partition(".")
    places = _literals(nodes, part, (name,))
    return [place for place in places if nodes[place[0]]["class_type"] == class_type]


def _prefer(name: str, nodes: Nodes, part: set[str], places: list[Place]) -> list[Place]:
    """The places in nodes of the classes that `name` prefers, or all if there is none."""
    pattern = _NODES_OF.get(name)
    preferred = [place for place in places if pattern and re.search(pattern, nodes[place[0]]["class_type"])]
    if name in ("image", "mask"):
        # A LoadImage node delivers a picture and, from its transparency, a mask.
        used = {place: _outputs_used(nodes, part, place[0]) for place in preferred}
        preferred = [
            place
            for place in preferred
            if _loads_mask(nodes, place[0]) or (0 in used[place]) == (name == "image")
        ]
    if name == "mask":
        masks = [place for place in preferred if _loads_mask(nodes, place[0])]
        preferred = masks or preferred
    elif name == "image":
        preferred = [place for place in preferred if not _loads_mask(nodes, place[0])]
    return preferred or ([] if pattern and name in ("image", "mask") else places)


def _loads_mask(nodes: Nodes, node_id: str) -> bool:
    return bool(nodes[node_id]["class_type"] == "LoadImageMask")


def _outputs_used(nodes: Nodes, part: set[str], node_id: str) -> set[int]:
    """The outputs of a node that other nodes of `part` are linked to."""
    return {
        value[1]
        for other in part
        for value in nodes[other]["inputs"].values()
        if is_link(value, nodes) and value[0] == node_id
    }


def masks_of_pictures(nodes: Nodes, part: set[str]) -> list[Place]:
    """The inputs that get the transparency of a loaded image as their mask, although its picture is used too: its node
    cannot load the mask of a request."""
    return [
        (node_id, name)
        for node_id in nodes
        if node_id in part
        for name, value in nodes[node_id]["inputs"].items()
        if is_link(value, nodes)
        and value[1] == 1
        and nodes[value[0]]["class_type"].startswith("LoadImage")
        and 0 in _outputs_used(nodes, part, value[0])
    ][:_MAX_PLACES]


def _conditioning_texts(name: str, nodes: Nodes, part: set[str], signatures: Signatures) -> list[Place]:
    """The texts that reach an input named `positive` (for the prompt) or `negative`; for the prompt else any text."""
    side = {"prompt": "positive", "negative_prompt": "negative"}.get(name)
    if side is None:
        return []
    names = _INPUT_NAMES[name]
    avoided = set() if side == "negative" else _only_upstream_of_negative(nodes, part)
    for node_id in nodes:
        source = _encoder(nodes, node_id, side) if node_id in part else None
        if source is None:
            continue
        behind = upstream(nodes, [source]) - avoided
        texts = [place for place in _literals(nodes, behind, names) if isinstance(_value(nodes, place), str)]
        if texts := texts or _joined_texts(nodes, behind, signatures):
            return texts
    if name == "negative_prompt":
        return []
    return [
        place
        for place in _literals(nodes, part - avoided, names)
        if isinstance(_value(nodes, place), str) and not _is_file(nodes, place, signatures)
    ]


def _only_upstream_of_negative(nodes: Nodes, part: set[str]) -> set[str]:
    """The nodes that decide only what to avoid."""
    sides: dict[str, set[str]] = {"positive": set(), "negative": set()}
    for node_id in part:
        for side, behind in sides.items():
            if (source := _encoder(nodes, node_id, side)) is not None:
                behind |= upstream(nodes, [source])
    return sides["negative"] - sides["positive"]


def _joined_texts(nodes: Nodes, behind: set[str], signatures: Signatures) -> list[Place]:
    """The texts of nodes such as StringConcatenate, without names of files, choices, and what is put between them."""
    return [
        place
        for place in _literals(nodes, behind, None)
        if isinstance(_value(nodes, place), str)
        and place[1] != "delimiter"
        and (entry := input_signature(nodes, place, signatures)) is not None
        and entry.type == "STRING"
        and entry.choices is None
        and not entry.is_file
    ]


def _encoder(nodes: Nodes, node_id: str, side: str) -> str | None:
    """The node behind an input named `side`, past the nodes that pass conditioning on, such as ControlNetApply."""
    found = None
    for _ in range(_MAX_DEPTH):
        link = nodes[node_id]["inputs"].get(side)
        if link is None or not is_link(link, nodes):
            break
        found = node_id = link[0]
    return found


def _equal_literals(nodes: Nodes, part: set[str], default: Any) -> list[Place]:
    """The inputs that have the value `default`; none for values that many inputs have."""
    if default in (None, "", True, False):
        return []
    places = [place for place in _literals(nodes, part, None) if _value(nodes, place) == default]
    return places if len(places) == 1 else []


def _is_file(nodes: Nodes, place: Place, signatures: Signatures, folder: str | None = None) -> bool:
    """Whether an input names a file of weights, in `folder` if that is given and its folder is known."""
    entry = input_signature(nodes, place, signatures)
    return entry is not None and entry.is_model_file and folder in (None, entry.folder or folder)
