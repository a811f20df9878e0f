"""Nodes whose inputs depend on the graph: dynamic combos, auto-grown inputs, match types, unlisted inputs."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest

from compiler import find_errors, fit
from compiler.node_records import record_nodes, with_facts
from compiler.signatures import Signatures, parse_object_info, parse_signatures
from errors import NodesMissing
from tests.compiler.dynamic_nodes import graph_of, versions


def recorded(order: tuple[str, ...] = ("0.8.0", "0.33.0")) -> dict[str, Any]:
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version in order:
        entries = versions()[version]
        document = record_nodes(document, entries, version=version, classes=list(entries), facts={})
    return document


SIGNATURES = parse_signatures(recorded())
LIVE = {version: parse_object_info(entries) for version, entries in versions().items()}
IMAGE = ["s", 0]
RESIZE = {"input": IMAGE, "scale_method": "area"}
NESTED = {"image": IMAGE, "setting": "tuned", "setting.note": "x"}


def errors_of(
    class_type: str, inputs: dict[str, Any], signatures: Signatures = SIGNATURES
) -> list[tuple[str | None, str, str]]:
    """(input, message, allowed) of each error of the node."""
    errors = find_errors(graph_of(class_type, inputs), signatures, "t")
    return [(error.input, error.message, error.allowed) for error in errors if error.node == "n"]


VALID = [
    ("Resize", {**RESIZE, "resize_type": "by factor", "resize_type.multiplier": 2.0}),
    ("Resize", {**RESIZE, "resize_type": "to size", "resize_type.width": 64, "resize_type.height": 64, "resize_type.crop": "center"}),
    ("Resize", {**RESIZE, "input": ["s", 1], "resize_type": "to multiple", "resize_type.multiple": 8}),
    ("Batch", {"images.image0": IMAGE, "images.image1": IMAGE}),
    ("Batch", {"images.image0": IMAGE, "images.image1": IMAGE, "images.image3": IMAGE}),
    ("Nested", {**NESTED, "setting.mode": "low", "setting.mode.level": 3}),
    ("Nested", {**NESTED, "setting.mode": "off"}),
    ("Nested", {"image": IMAGE, "setting": "plain"}),
    ("Formula", {"values.a": 1.5, "values.c": 2}),
    ("Chosen", {"image": IMAGE, "tags": {"__value__": ["x", "y"]}}),
    ("Coloured", {"image": IMAGE, "colour": "#ff0000"}),
    ("Save", {"images": IMAGE, "format": "png", "format.depth": "16-bit"}),
    ("Save", {"images": IMAGE, "format": "jpeg"}),
    ("Switch", {"switch": True, "on_false": IMAGE, "on_true": IMAGE}),
    ("Switch", {"switch": True, "on_false": ["s", 2], "on_true": ["s", 2]}),
]  # fmt: skip


@pytest.mark.parametrize(("class_type", "inputs"), VALID)
def test_inputs_as_api_graphs_write_them_are_valid(class_type: str, inputs: dict[str, Any]) -> None:
    unconnected = "no output needs this node"
    assert [error for error in errors_of(class_type, inputs) if error[1] != unconnected] == []


INVALID = [
    ("Resize", {**RESIZE, "resize_type": "by factor"}, "resize_type.multiplier", "required input is missing", "FLOAT from 0.01 to 8"),
    ("Resize", {**RESIZE, "resize_type": "by factor", "resize_type.multiplier": 9.0}, "resize_type.multiplier", "out of range", "8"),
    ("Resize", {**RESIZE, "resize_type": "by factor", "resize_type.multiplier": "2"}, "resize_type.multiplier", "wrong type", "FLOAT"),
    ("Resize", {**RESIZE, "resize_type": "by factor", "resize_type.multiplier": 2.0, "resize_type.width": 8}, "resize_type.width", "no such input if resize_type is 'by factor'", "resize_type.multiplier"),
    ("Resize", {**RESIZE, "resize_type": "by faktor", "resize_type.multiplier": 2.0}, "resize_type", "not one of the choices", "by factor, to size, to multiple"),
    ("Resize", RESIZE, "resize_type", "required input is missing", "by factor"),
    ("Resize", {**RESIZE, "input": ["s", 2], "resize_type": "by factor", "resize_type.multiplier": 2.0}, "input", "wrong type", "IMAGE,MASK"),
    ("Batch", {"images": IMAGE}, "images", "stands for several", "images.image0 to images.image5"),
    ("Batch", {"images": IMAGE}, "images.image0", "required input is missing", "IMAGE"),
    ("Batch", {"images.image0": IMAGE, "images.image6": IMAGE}, "images.image6", "no such input", "images.image5"),
    ("Batch", {"images.image0": ["s", 2]}, "images.image0", "wrong type", "IMAGE"),
    ("Batch", {"images.image0": "x"}, "images.image0", "where a link is required", "IMAGE"),
    ("Nested", {**NESTED, "setting.mode": "low"}, "setting.mode.level", "required input is missing", "INT"),
    ("Nested", {**NESTED, "setting.mode": "high"}, "setting.mode", "not one of the choices", "low, off"),
    ("Nested", {**NESTED, "setting.mode": "off", "setting.mode.level": 3}, "setting.mode.level", "no such input if setting.mode is 'off'", "no further input"),
    ("Formula", {"values.b": 1}, "values.a", "required input is missing", "FLOAT"),
    ("Formula", {"values.a": "x"}, "values.a", "wrong type", "FLOAT"),
    ("Chosen", {"image": IMAGE, "tags": {"__value__": ["x", "z"]}}, "tags", "not one of the choices", "x, y"),
    ("Save", {"images": IMAGE, "format": "exr", "format.depth": "8-bit"}, "format.depth", "not one of the choices", "32-bit"),
    ("Switch", {"switch": True, "on_false": IMAGE, "on_true": ["s", 2]}, "on_true", "must have one type", "IMAGE"),
    ("Coloured", {"image": IMAGE, "colour": "#0", "colours": 1}, "colours", 'add to catalogue.yaml: `nodes: {"Coloured": {more_inputs: true}}`', "image, colour"),
]  # fmt: skip


@pytest.mark.parametrize(("class_type", "inputs", "name", "message", "allowed"), INVALID)
def test_a_wrong_or_missing_input_is_named_with_what_is_allowed(
    class_type: str, inputs: dict[str, Any], name: str, message: str, allowed: str
) -> None:
    found = [error for error in errors_of(class_type, inputs) if error[0] == name and message in error[1]]
    assert found
    assert allowed in found[0][2]


@pytest.mark.parametrize(("output", "count"), [(0, 0), (2, 1)])
def test_the_type_of_a_matched_output_is_that_of_its_input_however_many_nodes_lie_between(
    output: int, count: int
) -> None:
    nodes = graph_of("Switch", {"switch": True, "on_false": ["s", output], "on_true": ["s", output]})
    for index in range(2000):
        source = [f"x{index - 1}", 0] if index else ["n", 0]
        nodes[f"x{index}"] = {
            "class_type": "Switch",
            "inputs": {"switch": True, "on_false": source, "on_true": source},
        }
    nodes["end"] = {"class_type": "End", "inputs": {"images": ["x1999", 0]}}
    errors = [error for error in find_errors(nodes, SIGNATURES, "t") if error.node == "end"]
    assert len(errors) == count


# --- several versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(["0.8.0", "0.33.0"])))
def test_whatever_a_version_accepts_is_accepted_in_whatever_order_they_were_recorded(
    order: tuple[str, ...],
) -> None:
    document = recorded(order)
    signatures = parse_signatures(document)
    for class_type, inputs in VALID:
        errors = errors_of(class_type, inputs, signatures)
        assert [message for _, message, _ in errors if message != "no output needs this node"] == []
    for version in order:
        entries = versions()[version]
        again = record_nodes(document, entries, version=version, classes=list(entries), facts={})
        assert again == document


def test_options_and_names_that_not_all_versions_have_are_marked() -> None:
    inputs = recorded()["nodes"]["Resize"]["inputs"]
    marks = {option["key"]: option.get("only_in") for option in inputs["resize_type"]["options"]}
    assert marks == {"by factor": None, "to size": None, "to multiple": ["0.33.0"]}
    assert recorded()["nodes"]["Batch"]["inputs"]["images"]["min"] == 1


@pytest.mark.parametrize(("class_type", "inputs"), VALID)
@pytest.mark.parametrize("version", ["0.8.0", "0.33.0"])
def test_fit_keeps_every_input_or_says_what_the_engine_lacks(
    version: str, class_type: str, inputs: dict[str, Any]
) -> None:
    only_new = "to multiple" in inputs.values() or "format.depth" in inputs
    lacks = only_new if version == "0.8.0" else inputs.get("format") == "jpeg"
    with pytest.raises(NodesMissing, match=r"resize_type|format") if lacks else contextlib.nullcontext():
        fitted = fit(graph_of(class_type, inputs), LIVE[version], SIGNATURES, {})
        assert inputs.items() <= fitted["n"]["inputs"].items()


def test_fit_fills_in_what_an_option_of_the_engine_requires() -> None:
    fitted = fit(graph_of("Save", {"images": IMAGE, "format": "png"}), LIVE["0.33.0"], SIGNATURES, {})
    assert fitted["n"]["inputs"]["format.depth"] == "8-bit"


def test_fit_reports_a_grown_input_that_the_engine_requires() -> None:
    with pytest.raises(NodesMissing, match=r"images\.image1"):
        fit(graph_of("Batch", {"images.image0": IMAGE}), LIVE["0.8.0"], SIGNATURES, {})


def test_a_value_outside_the_range_of_this_version_is_reported() -> None:
    entries = {
        version: {"A": {"input": {"required": {"steps": ["INT", {"min": 1, "max": maximum}]}}, "output": ["X"], "output_node": True}}
        for version, maximum in (("1", 100), ("2", 50))
    }  # fmt: skip
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version, info in entries.items():
        document = record_nodes(document, info, version=version, classes=["A"], facts={})
    signatures, nodes = parse_signatures(document), {"n": {"class_type": "A", "inputs": {"steps": 80}}}
    assert list(find_errors(nodes, signatures, "t")) == []
    assert fit(nodes, parse_object_info(entries["1"]), signatures, {}) == nodes
    with pytest.raises(NodesMissing, match="allows steps from 1 to 50"):
        fit(nodes, parse_object_info(entries["2"]), signatures, {})


# --- facts ----------------------------------------------------------------------------------------------

POWER_LORAS = {
    "input": {"required": {}, "optional": {"model": ["MODEL"], "clip": ["CLIP"]}},
    "output": ["MODEL", "CLIP"],
    "output_node": True,
}


def test_inputs_that_comfyui_does_not_list_are_kept_if_the_facts_say_so() -> None:
    name = "Power Lora Loader (rgthree)"
    lora = {"on": True, "lora": "a.safetensors", "strength": 1.0}
    nodes = {"n": {"class_type": name, "inputs": {"lora_1": lora, "➕ Add Lora": ""}}}
    document = record_nodes(
        {"versions": [], "nodes": {}}, {name: POWER_LORAS}, version="1", classes=[name], facts={}
    )
    errors = list(find_errors(nodes, parse_signatures(document), "t"))
    assert len(errors) == 2
    assert all(f"nodes: {{{json.dumps(name)}: {{more_inputs: true}}}}" in error.message for error in errors)
    known = {**document, "nodes": with_facts(document["nodes"], {name: {"more_inputs": True}})}
    signatures = parse_signatures(known)
    assert list(find_errors(nodes, signatures, "t")) == []
    assert fit(nodes, parse_object_info({name: POWER_LORAS}), signatures, {}) == nodes


def test_any_value_of_an_input_is_allowed_if_the_facts_say_so() -> None:
    entry = {"input": {"required": {"choice": [[], {}]}}, "output": ["STRING"], "output_node": True}
    nodes = {"n": {"class_type": "A", "inputs": {"choice": "mine"}}}
    document = record_nodes({"versions": [], "nodes": {}}, {"A": entry}, version="1", classes=["A"], facts={"A": {"any_value": ["choice"]}})  # fmt: skip
    signatures = parse_signatures(document)
    assert list(find_errors(nodes, signatures, "t")) == []
    assert fit(nodes, parse_object_info({"A": entry}), signatures, {}) == nodes


@pytest.mark.parametrize(
    "spec", [[], None, "INT", [5], [None, {}], ["COMFY_AUTOGROW_V3", {}], ["COMFY_DYNAMICCOMBO_V3"], ["COMFY_MATCHTYPE_V3", {"template": {}}], ["COMFY_NEWER_V9", {"x": 1}]]
)  # fmt: skip
def test_an_input_that_is_described_in_an_unknown_way_takes_anything(spec: Any) -> None:
    entry = {"input": {"required": {"x": spec}, "optional": None}, "output": None, "output_node": True}
    signatures = parse_object_info({"A": entry})
    for value in (1, "x", {"a": 1}):
        assert list(find_errors({"n": {"class_type": "A", "inputs": {"x": value}}}, signatures, "t")) == []
