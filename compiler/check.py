"""Checks a graph against the node signatures, without an engine.

It is stricter than ComfyUI, which ignores an input name that the node does not have, accepts a plain value where a
link is required and fails later, converts any text to true, and crashes on an unconnected node without inputs.

Not done with JSON Schema, which cannot say that a link must point to an existing output of a matching type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from compiler.link_types import LinkTypes
from compiler.links import sources_of, upstream
from compiler.signatures import PLAIN_TYPES, InputSignature, NodeSignature, Signatures, plain_value
from dynamic_inputs import OPAQUE_PREFIX, grown_inputs
from errors import GraphInvalid, shorten
from schemas import did_you_mean, nearest

_NODE_KEYS = ("class_type", "inputs", "_meta")
NO_SUCH_NODE = "the link points to a node that does not exist"
NOT_A_LINK = "not a link"
NO_LINK = "a plain value where a link is required"
CYCLE = "the links form a cycle"
BROKEN_LINKS = (NO_SUCH_NODE, NOT_A_LINK, NO_LINK, CYCLE)
"""How the messages begin after which nothing can be said about nodes further up: the mistake cuts them off."""
_NOT_FINITE = "not a finite number, which JSON requires"


@dataclass(frozen=True)
class GraphError:
    """One error and its place in the graph. `given` and `allowed` are short texts."""

    template: str
    node: str
    input: str | None
    given: str
    allowed: str
    message: str

    def __str__(self) -> str:
        place = f"{self.template}: node {self.node!r}" + (f", input {self.input!r}" if self.input else "")
        return f"{place}: {self.message} (given: {self.given}; allowed: {self.allowed})"


def check(nodes: Mapping[str, Any], signatures: Signatures, template: str) -> None:
    """Raises GraphInvalid with every error of the graph."""
    errors = list(find_errors(nodes, signatures, template))
    if errors:
        raise GraphInvalid("\n".join(map(str, errors)), errors=[asdict(error) for error in errors])


def find_errors(nodes: Mapping[str, Any], signatures: Signatures, template: str) -> Iterator[GraphError]:
    """Every error of the graph. Inputs and connections are only checked if all nodes have the right form."""
    new_error = _ErrorFactory(template)
    has_valid_nodes = True
    for node_id, node in nodes.items():
        for error in _form_errors(node_id, node, signatures, new_error):
            has_valid_nodes = False
            yield error
    if not has_valid_nodes:
        return
    has_broken_links = False
    for error in find_errors_in(nodes, nodes, signatures, template, LinkTypes(nodes, signatures)):
        has_broken_links |= error.message.startswith(BROKEN_LINKS)
        yield error
    yield from _connection_errors(nodes, signatures, new_error, has_broken_links=has_broken_links)


def find_errors_in(
    changed: Iterable[str],
    nodes: Mapping[str, Any],
    signatures: Signatures,
    template: str,
    types: LinkTypes,
) -> Iterator[GraphError]:
    """Every error of the inputs of some nodes of the graph, of which all have the right form."""
    new_error = _ErrorFactory(template)
    for node_id in changed:
        yield from _input_errors(node_id, nodes[node_id], nodes, signatures, types, new_error)


@dataclass(frozen=True)
class _ErrorFactory:
    template: str

    def __call__(self, node: str, name: str | None, given: Any, allowed: str, message: str) -> GraphError:
        text = given if isinstance(given, str) else repr(given)
        return GraphError(self.template, node, name, shorten(text, 120), allowed, message)


def _form_errors(
    node_id: str, node: Any, signatures: Signatures, new_error: _ErrorFactory
) -> Iterator[GraphError]:
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
        is_missing = isinstance(node, dict) and "class_type" not in node
        misspelt = nearest("class_type", node) if is_missing else None
        hint = f" (did you mean class_type instead of {misspelt}?)" if misspelt else ""
        yield new_error(node_id, None, node, '{"class_type": …, "inputs": {…}}', f"not a node{hint}")
        return
    if not isinstance(node.get("inputs"), dict):
        yield new_error(node_id, None, node.get("inputs"), "an object", "`inputs` is not an object")
    for extra in sorted(set(node) - set(_NODE_KEYS)):
        hint = did_you_mean(extra, _NODE_KEYS)
        yield new_error(node_id, None, extra, ", ".join(_NODE_KEYS), f"a node must not have this key{hint}")
    if node["class_type"] not in signatures:
        yield new_error(
            node_id,
            None,
            node["class_type"],
            "a node class that Easel knows; `easel snapshot-nodes URL` learns those of your ComfyUI",
            f"unknown node class{did_you_mean(node['class_type'], signatures, cutoff=0.85)}",
        )


# --- inputs ---------------------------------------------------------------------------------------


def _input_errors(
    node_id: str,
    node: Mapping[str, Any],
    nodes: Mapping[str, Any],
    signatures: Signatures,
    types: LinkTypes,
    new_error: _ErrorFactory,
) -> Iterator[GraphError]:
    signature, values = signatures[node["class_type"]], node["inputs"]
    inputs = signature.inputs_for(values)
    for name, expected in inputs.items():
        if name not in values and expected.required and not expected.only_in:
            yield new_error(node_id, name, "nothing", _describe(expected), "a required input is missing")
    for name, value in values.items():
        expected_input = inputs.get(name)
        if expected_input is None:
            yield from _unlisted_input_errors(node_id, node, name, signature, new_error)
            if not isinstance(value, list) and _has_no_json(value):
                yield new_error(node_id, name, value, "a value of JSON", _NOT_FINITE)
        elif isinstance(value, list):
            yield from _link_errors(node_id, name, value, expected_input, nodes, signatures, types, new_error)
        else:
            yield from _value_errors(node_id, name, plain_value(value), expected_input, new_error)
    if (conflict := types.conflict(node_id)) is not None:
        name, given, allowed = conflict
        yield new_error(node_id, name, given, allowed, "the links must have one type")


def _unlisted_input_errors(
    node_id: str, node: Mapping[str, Any], name: str, signature: NodeSignature, new_error: _ErrorFactory
) -> Iterator[GraphError]:
    """The error for an input that the node does not have, unless nobody can know that."""
    values = node["inputs"]
    grown = grown_inputs(signature.inputs, values).get(name)
    if grown is not None:
        message = "this input stands for several; each has a link of its own"
        yield new_error(node_id, name, values[name], _names({name: grown}), message)
        return
    parent = name.rpartition(".")[0]
    owner = signature.inputs_for(values).get(parent)
    if owner is not None and owner.options is not None:
        if values.get(parent) not in owner.options:
            return  # that is an error of its own
        allowed = [other for other in signature.inputs_for(values) if other.startswith(f"{parent}.")]
        hint = did_you_mean(name, allowed)
        message = f"the node has no such input if {parent} is {values[parent]!r}{hint}"
        yield new_error(node_id, name, values[name], ", ".join(allowed) or "no further input", message)
        return
    if signature.more_inputs or (owner is not None and owner.type.startswith(OPAQUE_PREFIX)):
        return
    class_type = json.dumps(node["class_type"], ensure_ascii=False)
    known = signature.inputs_for(values)
    hint = did_you_mean(name, [other for other in known if other not in values] or known)
    yield new_error(
        node_id,
        name,
        values[name],
        _names(known) or "no inputs",
        f"the node has no such input{hint}. If it takes inputs that ComfyUI does not list, add to catalogue.yaml: "
        f"`nodes: {{{class_type}: {{more_inputs: true}}}}`, or add it to a file of your own folder",
    )


def _names(inputs: Mapping[str, InputSignature]) -> str:
    """The names of inputs; of an auto-grown one the first and the last."""
    return ", ".join(
        f"{name}.{signature.grown_names[0]} to {name}.{signature.grown_names[-1]}"
        if signature.grown_names
        else name
        for name, signature in inputs.items()
    )


def _link_errors(
    node_id: str,
    name: str,
    link: list[Any],
    expected: InputSignature,
    nodes: Mapping[str, Any],
    signatures: Signatures,
    types: LinkTypes,
    new_error: _ErrorFactory,
) -> Iterator[GraphError]:
    if len(link) != 2 or not isinstance(link[0], str) or type(link[1]) is not int:
        yield new_error(node_id, name, link, "[node id, output index]", NOT_A_LINK)
        return
    source, index = link
    if source not in nodes:
        message = f"{NO_SUCH_NODE}{did_you_mean(source, nodes)}"
        yield new_error(node_id, name, link, ", ".join(nodes), message)
        return
    outputs = signatures[nodes[source]["class_type"]].outputs
    if not 0 <= index < len(outputs):
        listed = ", ".join(f"{i}: {kind}" for i, kind in enumerate(outputs)) or "no outputs"
        yield new_error(node_id, name, link, listed, "the link points to an output that does not exist")
        return
    output = types.of((source, index))
    if not _is_compatible(output, expected.type):
        yield new_error(
            node_id, name, f"{link} of type {output}", expected.type, "the link has the wrong type"
        )


def _is_compatible(output: str, expected: str) -> bool:
    # ComfyUI writes "*" for any type and "A,B" for one of several.
    if "*" in (output, expected) or expected.startswith(OPAQUE_PREFIX) or output.startswith(OPAQUE_PREFIX):
        return True
    return bool(set(output.split(",")) & set(expected.split(",")))


def _value_errors(
    node_id: str, name: str, value: Any, expected: InputSignature, new_error: _ErrorFactory
) -> Iterator[GraphError]:
    if _has_no_json(value):
        yield new_error(node_id, name, value, _describe(expected), _NOT_FINITE)
        return
    if expected.several and isinstance(value, list):
        for item in value:
            yield from _value_errors(node_id, name, item, replace(expected, several=False), new_error)
        return
    if expected.widget or expected.type == "*" or expected.type.startswith(OPAQUE_PREFIX):
        return
    kinds = PLAIN_TYPES.get(expected.type) or _plain_kinds(expected.type)
    if not kinds:
        allowed, message = f"a link of type {expected.type}", NO_LINK
        yield new_error(node_id, name, value, allowed, message)
    elif not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield new_error(node_id, name, value, _describe(expected), "the value has the wrong type")
    elif expected.choices is not None and not expected.any_value and value not in expected.choices:
        message = f"the value is not one of the choices{did_you_mean(value, expected.choices)}"
        yield new_error(node_id, name, value, _describe(expected), message)
    elif is_out_of_range(value, expected):
        yield new_error(node_id, name, value, _describe(expected), "the value is out of range")


def is_valid_value(value: Any, expected: InputSignature) -> bool:
    """Whether the check of a graph accepts this plain value for an input."""
    return not any(_value_errors("", "", plain_value(value), expected, _ErrorFactory("")))


def _has_no_json(value: Any) -> bool:
    """Whether the value is, or contains, a number such as NaN that Python reads but JSON does not have."""
    if isinstance(value, float):
        return not math.isfinite(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_no_json, items))


def _plain_kinds(type_name: str) -> tuple[type, ...]:
    """The Python types of the plain values that an input of this type (or one of several) takes; empty if none."""
    return tuple(kind for name in type_name.split(",") for kind in PLAIN_TYPES.get(name, ()))


def is_out_of_range(value: Any, expected: InputSignature) -> bool:
    """Whether a number is below the minimum or above the maximum of its input."""
    if not isinstance(value, int | float):
        return False
    below = expected.minimum is not None and value < expected.minimum
    return below or (expected.maximum is not None and value > expected.maximum)


def _describe(expected: InputSignature) -> str:
    if expected.choices is not None:
        return "one of " + ", ".join(map(str, expected.choices))
    if expected.is_file:
        return f"a file in {expected.folder}" if expected.folder else "a file"
    if not _plain_kinds(expected.type):
        return f"a link of type {expected.type}"
    text = expected.type
    if expected.minimum is not None:
        text += f" from {expected.minimum}"
    if expected.maximum is not None:
        text += f" to {expected.maximum}"
    return text


# --- connections ----------------------------------------------------------------------------------


def _connection_errors(
    nodes: Mapping[str, Any],
    signatures: Signatures,
    new_error: _ErrorFactory,
    *,
    has_broken_links: bool,
) -> Iterator[GraphError]:
    outputs = [node_id for node_id, node in nodes.items() if signatures[node["class_type"]].output_node]
    if not outputs:
        yield new_error(
            "", None, ", ".join(nodes) or "no nodes", "a node such as SaveImage", "no output node"
        )
        return
    cycle = _cycle(nodes)
    if cycle:
        yield new_error(cycle[0], None, " -> ".join(cycle), "links without a cycle", CYCLE)
    if cycle or has_broken_links:
        return
    needed = upstream(nodes, outputs)
    for node_id in nodes:
        if node_id not in needed:
            yield new_error(
                node_id, None, "unconnected", "a node that an output needs", "no output needs this node"
            )


def _cycle(nodes: Mapping[str, Any]) -> list[str] | None:
    """A cycle of links as node ids, from a node to its source and so on, with the first one repeated at the end; None if
    there is no cycle."""
    try:
        TopologicalSorter({node_id: list(sources_of(nodes, node_id)) for node_id in nodes}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None
