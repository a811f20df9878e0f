"""What to write to correct a fault: the node, its input, and the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import chain, count
from typing import Any

from compiler.answer import describe
from compiler.catalogue import Input, Workflow
from compiler.check import GraphError
from compiler.proof.canvas import sets_both_sides
from compiler.proof.changes import Change
from compiler.proof.hints import (
    OTHER_SIDE,
    Place,
    file_places,
    holder,
    input_signature,
    masks_of_pictures,
    places_of,
    write_at,
)
from compiler.proof.trial_graph import TrialGraph, Values, changed_places, stray_nodes
from compiler.signatures import InputSignature, Signatures
from compiler.values import Nodes
from schemas import nearest
from schemas.explain import given_value

BATCH_REMEDY = (
    "write {{ batch }} as the `batch_size` of the latent or the `amount` of a RepeatLatentBatch node before the sampler, "
    "or write `limits: {batch: 1}` in the model"
)
_WITHOUT_PLACE: Mapping[str, str] = {
    "prompt": "write {{ prompt }} as the text of the node that encodes it; a workflow that needs no prompt, such as an "
    "upscaler, is declared with `tasks: [vary]`",
    "seed": "no node has an input `seed` or `noise_seed`, so all pictures would be the same; a workflow that redraws an "
    "image without a seed is declared with `tasks: [vary]`",
    "batch": BATCH_REMEDY,
    "image": "write {{ image }} as the `image` of a LoadImage node",
    "images": "load each of them by a LoadImage node, such as one with {{ images[1] }} inside {% if images | length > 1 %}, "
    "and use them all, or correct `images` of the workflow",
    "mask": "write {{ mask }} as the `image` of a LoadImageMask node, or remove `inpaint` from the tasks",
    "loras": "the catalogue has LoRAs for the model's family: after the nodes that load the model, write "
    '{% include "part_loras.json.j2" %} and use its links at.model and at.clip, or give the model a `family` that no '
    "LoRA lists",
}


def for_no_effect(
    change: Change,
    start: TrialGraph,
    changed: TrialGraph,
    condition: str,
    taken: set[Place],
    workflow: Workflow,
    signatures: Signatures,
) -> str:
    """For a value that does not change the answer. `taken`: the places to which the template passes other values."""
    name, rule = change.name, change.rule
    places = [] if name == "loras" else _places(change, start, taken, signatures)
    remedy = write_at(places, start.nodes, name) if places else ""
    if name == "mask" and not places and (links := masks_of_pictures(start.nodes, set(start.part))):
        return _for_masks_of_pictures(links, start.nodes)
    if stray := stray_nodes(start, changed):
        reached = ", ".join(describe(changed.nodes, node_id) for node_id in stray[:3])
        reason = f"it only reaches {reached}, which {describe(start.nodes, start.output)} does not need"
        return f"{reason}; {remedy}" if remedy else reason
    if remedy:
        return remedy
    if rule is None:
        without_place = f"write {{{{ {name} }}}} as the `image` of a LoadImage node" if "[" in name else ""
        return without_place or _WITHOUT_PLACE.get(name, f"write {{{{ {name} }}}} where it belongs")
    text = f"write {{{{ {name} }}}} where it belongs, or remove `{name}` from the inputs of {workflow.entry}"
    return f"{text}, or say with `x-unused-when` that it has no effect then" if condition else text


def for_few_images(name: str, number: int, workflow: Workflow) -> str:
    """For an input that only has an effect on a request with `number` images."""
    return (
        f"write {{{{ {name} }}}} where it also belongs to a graph with fewer, or "
        f"`images: {{min: {number}, max: {workflow.images.max}}}` under {workflow.entry}"
    )


def for_side(
    change: Change,
    place: Place,
    other: Place | None,
    start: TrialGraph,
    changed: TrialGraph,
    condition: str,
    taken: set[Place],
    workflow: Workflow,
    signatures: Signatures,
) -> str:
    """For a width, or height, that does not decide the size of the pictures. `place`: the input that does. `other`: that
    of the other side."""
    nodes = start.nodes
    if sets_both_sides(place):
        return (
            f"{describe(nodes, place[0])} gives every picture the same size by its input {place[1]!r}; link the nodes "
            "behind it to the node before it, or use an ImageScale with {{ width }} and {{ height }}"
        )
    found = holder(nodes, *place)
    if found is not None and found not in taken:
        return write_at([found], nodes, change.name)
    swapped = holder(nodes, *other) if other is not None else None
    if swapped is not None and found in taken and swapped in changed_places(start, changed):
        return write_at([swapped], nodes, OTHER_SIDE[change.name])
    return for_no_effect(change, start, changed, condition, taken, workflow, signatures)


def _places(change: Change, start: TrialGraph, taken: set[Place], signatures: Signatures) -> list[Place]:
    rule = change.rule
    places = places_of(
        change.name,
        start.nodes,
        set(start.part),
        start.output,
        signatures=signatures,
        choices_from=rule.choices_from if rule is not None else "",
        default=rule.schema.get("default") if rule is not None else None,
    )
    return [place for place in places if place not in taken]


def _for_masks_of_pictures(links: list[Place], nodes: Nodes) -> str:
    new = next(name for name in chain(["mask"], map("mask{}".format, count(2))) if name not in nodes)
    where = " and ".join(f"{describe(nodes, node_id)}, input {name!r}" for node_id, name in links)
    node = (
        f'"{new}": {{"class_type": "LoadImageMask", "inputs": {{"image": {{{{ mask }}}}, "channel": "red"}}}}'
    )
    return f'{where}: write ["{new}", 0], and add the node {node}'


def for_unused_role(
    role: str,
    folder: str,
    file: str,
    start: TrialGraph,
    template: str,
    taken: set[Place],
    signatures: Signatures,
) -> tuple[str, bool]:
    """For a role of `files` that no node uses, and whether a node names a file itself instead."""
    what = f"{template}: no node uses the file `{role}`"
    places = file_places(folder, file, start.nodes, set(start.part), signatures)
    if places := [place for place in places if place not in taken]:
        return f"{what}; {write_at(places, start.nodes, f'files.{role}')}", True
    return (
        f"{what}; write {{{{ files.{role} }}}} in the node that loads it, or remove `{role}` from `files`",
        False,
    )


def for_changed_text(name: str, start: TrialGraph, changed: TrialGraph) -> str:
    """For a text that a filter or quotes have changed."""
    nodes = changed.nodes
    places = [place for place in changed_places(start, changed) if isinstance(_value(nodes, place), str)]
    where = write_at(places[:1], nodes, name) if places else f"write {{{{ {name} }}}}"
    subject = "the prompt" if name == "prompt" else f"`{name}`"
    return f"the graph does not contain {subject} unchanged; {where} without quotes or filters"


def for_refused_choices(name: str, place: Place, refused: list[Any], changed: TrialGraph) -> str:
    """For a node that does not take every choice that an input allows."""
    listed = ", ".join(map(given_value, refused[:5])) + (", …" if len(refused) > 5 else "")
    reference = f"{changed.nodes[place[0]]['class_type']}.{place[1]}"
    return (
        f"{describe(changed.nodes, place[0])}, input {place[1]!r} does not take {listed}, which `{name}` allows; "
        f"declare `x-choices: {reference}` for `{name}`"
    )


# --- errors of the template --------------------------------------------------------------------------

_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_NO_ATTRIBUTE = re.compile(r"has no attribute '(\w+)'")
_LINKS = ("model", "clip", "vae")
"""What `at` has"""
_ATTRIBUTES = ("width", "height", "file", "strength")
"""What `crop` and the entries of `loras` have"""
_NUMBERED_IMAGE = re.compile(r"images?_?([1-9]\d?)")
_NO_IMAGE = re.compile(r"list object has no element (\d+)$")
_NO_ELEMENT = re.compile(r"has no (?:attribute|element) '?(?P<key>[^']+)'?$")


def for_template_error(message: str, values: Values, workflow: Workflow) -> str:
    """What to add to the message of a template that uses a name which does not exist; empty for other errors."""
    if match := _UNDEFINED.search(message):
        return f"; {_for_undefined(match[1], values, workflow)}"
    if (match := _NO_IMAGE.search(message)) and 0 < len(values["images"]) <= (number := int(match[1])):
        return (
            f"; a request may have fewer images: write {{% if images | length > {number} %}} around what needs it, or "
            f"`images: {{min: {number + 1}, max: {max(number + 1, workflow.images.max)}}}` under {workflow.entry}"
        )
    for name in workflow.inputs:
        match = _NO_ELEMENT.search(message)
        if match and str(values.get(name)) == match["key"]:
            return f"; the template must handle every value that `{name}` allows"
    if match := _NO_ATTRIBUTE.search(message):
        similar = get_close_matches(match[1], values["files"], n=1)
        known = _LINKS if "Namespace" in message else () if similar else _ATTRIBUTES
        if (attribute := nearest(match[1], known)) and attribute != match[1]:
            return f"; did you mean `.{attribute}`?"
        roles = ", ".join(values["files"]) or "none"
        hint = f"write {{{{ files.{similar[0]} }}}}, or " if similar else ""
        return f"; {hint}add the role `{match[1]}` to the model's `files` (it has {roles})"
    return ""


_NAMES_OF_REQUESTS: Mapping[str, str] = {
    "n": "write {{ batch }}",
    "size": "write {{ width }} and {{ height }}",
    "quality": "declare the inputs that a quality sets, and the qualities as `presets: {quality: …}` of the workflow",
    "lora": 'use {% include "part_loras.json.j2" %}, or write {{ loras }}',
}
"""Names that requests have but templates cannot have, so that no input can be declared with them"""


def _for_undefined(name: str, values: Values, workflow: Workflow) -> str:
    """What to write instead of a variable that does not exist."""
    if name == "model":
        return "write " + (
            " or ".join(f"{{{{ files.{role} }}}}" for role in values["files"]) or "the name of a file"
        )
    if name in _NAMES_OF_REQUESTS:
        return _NAMES_OF_REQUESTS[name]
    if match := _NUMBERED_IMAGE.fullmatch(name):
        return f"write {{{{ images[{int(match[1]) - 1}] }}}}"
    allowed = _as_input_name(name)
    if allowed in values:
        return f"write {{{{ {allowed} }}}}"
    rename = "" if allowed == name else f"write {{{{ {allowed} }}}} and "
    declare = (
        f"{rename}declare it under workflows.{workflow.id}.inputs in {workflow.file}, such as "
        f'`{allowed}: {{type: string, default: ""}}`'
    )
    similar = get_close_matches(allowed, values, n=1)
    return f"write {{{{ {similar[0]} }}}}, or {declare}" if similar else declare


def _as_input_name(name: str) -> str:
    """`name` in the form that names of inputs have: negativePrompt as negative_prompt."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return re.sub(r"[^a-z0-9_]", "", snake).lstrip("_0123456789") or "value"


# --- graph errors ------------------------------------------------------------------------------------


def explained(
    error: GraphError,
    condition: str,
    nodes: Nodes,
    values: Values,
    rules: Mapping[str, Input],
    signatures: Signatures,
) -> str:
    """A graph error as text, with the condition under which it occurs. If it is caused by a value that a request may set,
    it says how to correct that instead."""
    node = nodes.get(error.node)
    if error.input is None or not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
        return f"{error}{condition}"
    value, entry = (
        node["inputs"].get(error.input),
        input_signature(nodes, (error.node, error.input), signatures),
    )
    where = f"{error.template}: {describe(nodes, error.node)}, input {error.input!r}"
    for name in ("seed", *rules):
        if type(values[name]) is type(value) and values[name] == value and entry is not None:
            reason = _declared_error(
                name, rules.get(name), value, entry, f"{node['class_type']}.{error.input}"
            )
            if reason:
                return f"{where}: {reason}"
    return f"{error}{condition}"


def _declared_error(name: str, rule: Input | None, value: Any, entry: InputSignature, reference: str) -> str:
    if name == "seed" and entry.maximum is not None and value > entry.maximum:
        return f"it takes at most {entry.maximum}; write {{{{ seed % {int(entry.maximum) + 1} }}}}"
    if rule is None:
        return ""
    if entry.type == "INT" and isinstance(value, float):
        return f"it takes whole numbers; declare `type: integer` for `{name}`"
    if entry.choices is not None and "enum" not in rule.schema:
        return f"it takes only certain values, but `{name}` allows others; declare `x-choices: {reference}` for `{name}`"
    if entry.choices is not None:
        return f"it does not take {given_value(value)}, which `{name}` allows; handle it in the template or remove it"
    if isinstance(value, int | float) and (entry.minimum is not None or entry.maximum is not None):
        return f"it takes {entry.minimum} to {entry.maximum}, but `{name}` allows {given_value(value)}; correct its limits"
    return ""


def _value(nodes: Nodes, place: Place) -> Any:
    return nodes[place[0]]["inputs"].get(place[1])
