"""Node signatures: inputs, types, ranges, choices and outputs, as values. `node_records` makes their JSON form from the
`/object_info` of ComfyUI, so that adding a node needs no Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from compiler.node_records import NodeRecord, node_record
from dynamic_inputs import AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE, expand_inputs

# Types whose values are written into the graph; a value of any other type can only come through a link.
PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "COMBO": (str, int, float, bool),
}


@dataclass(frozen=True)
class InputSignature:
    """One input of a node. `type` is a type name of ComfyUI (MODEL, LATENT, INT, FLOAT, STRING, BOOLEAN, COMBO, …), `*`
    for any, or several with commas. A dynamic combo is a COMBO with `options`."""

    type: str
    required: bool = True
    default: Any = None
    has_default: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    any_value: bool = False
    """Other values than the choices are allowed too, such as those of a later ComfyUI."""
    is_file: bool = False
    """The choices are the files in a folder of the engine, which only the engine knows."""
    folder: str | None = None
    """That folder in ComfyUI's models directory, `input` for images; None if it is not known."""
    also: tuple[str, ...] = ()
    """Choices beside the files, such as None"""
    only_in: tuple[str, ...] = ()
    """The ComfyUI versions that have this input; empty if all have it."""
    choices_in: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """choice as text -> the ComfyUI versions that have it, for those that not all have"""
    documented_choices: tuple[str, ...] = ()
    """Choices that only the documentation of ComfyUI describes"""
    match: str | None = None
    """Inputs and outputs of a node with the same match have the same type."""
    widget: bool = False
    """A plain value is allowed although the type is none of PLAIN_TYPES."""
    several: bool = False
    """The value is a list of choices."""
    socket: bool = False
    """ComfyUI's editor shows only a socket, although the type is plain."""
    multiline: bool = False
    """A text that may have several lines, such as a prompt"""
    dynamic_prompt: bool = False
    """ComfyUI's editor chooses one of `{red|blue}` in the text at random when it makes a graph."""
    control: bool = False
    """In ComfyUI's editor, a widget for what happens to the value after a run follows this one."""
    options: Mapping[str, Mapping[str, InputSignature]] | None = None
    """choice of a dynamic combo -> the inputs that it adds"""
    grown_names: tuple[str, ...] = ()
    """The names that an auto-grown input can grow to, in order"""
    grown_template: InputSignature | None = None
    grown_minimum: int = 0
    """How many of them are required"""

    def grown(self, index: int) -> InputSignature:
        return self._grown[index < self.grown_minimum]

    @cached_property
    def _grown(self) -> tuple[InputSignature, InputSignature]:
        """The inputs beyond the minimum, and those within it"""
        template = self.grown_template or InputSignature("*")
        return replace(template, required=False), template

    @property
    def is_model_file(self) -> bool:
        """Whether the value names a file of weights."""
        return self.is_file and self.folder != "input"

    @property
    def is_dynamic(self) -> bool:
        """Whether the node's inputs depend on this one."""
        return self.options is not None or bool(self.grown_names)


@dataclass(frozen=True)
class NodeSignature:
    inputs: Mapping[str, InputSignature] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_node: bool = False
    output_matches: tuple[str | None, ...] = ()
    """The match of each output; empty if no output has one."""
    more_inputs: bool = False
    """The node takes inputs that `/object_info` does not list."""
    only_in: tuple[str, ...] = ()
    """The ComfyUI versions that have this node; empty if all have it, or if that is not known."""
    documented: bool = False
    """Only the documentation of ComfyUI describes it: see compiler/documented_nodes.py"""

    def inputs_for(self, values: Mapping[str, Any]) -> Mapping[str, InputSignature]:
        """The inputs that a node has in an API graph, by full name, if `values` are its inputs in that graph."""
        return expand_inputs(self.inputs, values) if self._is_dynamic else self.inputs

    @cached_property
    def _is_dynamic(self) -> bool:
        return any(signature.is_dynamic for signature in self.inputs.values())

    def match_of(self, output: int) -> str | None:
        """The match of an output, or None."""
        return self.output_matches[output] if output < len(self.output_matches) else None


Signatures = Mapping[str, NodeSignature]


def plain_value(value: Any) -> Any:
    """A list as a value is written `{"__value__": [...]}` in API graphs, because a plain list is a link."""
    return value["__value__"] if isinstance(value, dict) and set(value) == {"__value__"} else value


def parse_signatures(document: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """Parse the content of `schemas/nodes.json` to signatures by node class."""
    return {name: _node(entry) for name, entry in document["nodes"].items()}


def parse_object_info(entries: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """Parse `/object_info` entries of any ComfyUI version to signatures by node class."""
    return {name: _node(node_record(entry)) for name, entry in entries.items()}


def _node(entry: NodeRecord) -> NodeSignature:
    return NodeSignature(
        inputs=_inputs(entry["inputs"]),
        outputs=tuple(entry["outputs"]),
        output_node=entry.get("output_node", False),
        output_matches=tuple(entry.get("output_matches", ())),
        more_inputs=entry.get("more_inputs", False),
        only_in=tuple(entry.get("only_in", ())),
        documented=entry.get("documented", False),
    )


def _inputs(entries: Mapping[str, Any]) -> dict[str, InputSignature]:
    return {name: _input(entry) for name, entry in entries.items()}


def _input(entry: Mapping[str, Any]) -> InputSignature:
    signature = InputSignature(
        type=entry["type"],
        required=not entry.get("optional", False),
        default=entry.get("default"),
        has_default="default" in entry,
        minimum=entry.get("min"),
        maximum=entry.get("max"),
        choices=tuple(entry["choices"]) if "choices" in entry else None,
        any_value=entry.get("any_value", False),
        is_file="folder" in entry or entry.get("file", False),
        folder=entry.get("folder"),
        also=tuple(entry.get("also", ())),
        only_in=tuple(entry.get("only_in", ())),
        choices_in={choice: tuple(versions) for choice, versions in entry.get("choices_in", {}).items()},
        documented_choices=tuple(entry.get("documented_choices", ())),
        widget=entry.get("widget", False),
        several=entry.get("several", False),
        socket=entry.get("socket", False),
        control=entry.get("control", False),
        multiline=entry.get("multiline", False),
        dynamic_prompt=entry.get("dynamic_prompt", False),
    )
    if entry["type"] == DYNAMIC_COMBO:
        options = {option["key"]: _inputs(option["inputs"]) for option in entry["options"]}
        marks = {
            option["key"]: tuple(option["only_in"]) for option in entry["options"] if "only_in" in option
        }
        return replace(signature, type="COMBO", choices=tuple(options), options=options, choices_in=marks)
    if entry["type"] == MATCH_TYPE:
        return replace(signature, type=entry["types"], match=entry["match"])
    if entry["type"] == AUTOGROW:
        return replace(
            signature,
            grown_names=tuple(entry["names"]),
            grown_template=_input(entry["template"]),
            grown_minimum=entry["min"],
        )
    return signature
