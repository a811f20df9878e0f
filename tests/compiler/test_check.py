"""Errors that template authors make, and how they are reported."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import compile_workflow, find_errors, load_catalogue
from compiler.catalogue_file import parse_catalogue
from compiler.signatures import parse_signatures
from errors import GraphInvalid, TemplateInvalid
from tests.compiler.catalogues import CATALOGUE, SOURCES, image_request, with_template

TEXT = SOURCES.templates["sd15_simple.json.j2"]


def errors_of(text: str) -> list[dict[str, Any]]:
    """The errors of SD 1.5's graph if its template is `text`."""
    catalogue = parse_catalogue(with_template(text))
    with pytest.raises(GraphInvalid) as caught:
        compile_workflow(image_request(model="sd-1.5"), catalogue)
    return list(caught.value.details["errors"])


CASES = [
    ('"samples": ["sampler", 0]', '"samples": ["smapler", 0]', "decoded", "samples", "node that does not exist"),
    ('"samples": ["sampler", 0]', '"samples": ["sampler", 1]', "decoded", "samples", "output that does not exist"),
    ('"samples": ["sampler", 0]', '"samples": ["checkpoint", 0]', "decoded", "samples", "wrong type"),
    ('"samples": ["sampler", 0]', '"samples": ["sampler"]', "decoded", "samples", "not a link"),
    ('"samples": ["sampler", 0]', '"samples": [["sampler"], 0]', "decoded", "samples", "not a link"),
    ('"samples": ["sampler", 0]', '"samples": "sampler"', "decoded", "samples", "where a link is required"),
    ('"samples": ["sampler", 0], ', "", "decoded", "samples", "required input is missing"),
    ('"denoise": {{ strength }}', '"denoise": 1.5', "sampler", "denoise", "out of range"),
    ('"denoise": {{ strength }}', '"denoise": "1"', "sampler", "denoise", "wrong type"),
    ('"denoise": {{ strength }}', '"denoise": true', "sampler", "denoise", "wrong type"),
    ('"denoise": {{ strength }}', '"denoise": 1.0, "denoize": 1.0', "sampler", "denoize", "no such input"),
    ('"scheduler": {{ schedule }}', '"scheduler": "nope"', "sampler", "scheduler", "not one of the choices"),
    ('"class_type": "VAEDecode"', '"class_type": "VAEDecoder"', "decoded", None, "unknown node class"),
    ('"class_type": "VAEDecode"', '"klass": "VAEDecode"', "decoded", None, "not a node"),
    ('"decoded": {"class_type": "VAEDecode", "inputs"', '"decoded": {"class_type": "VAEDecode", "input"', "decoded", None, "`inputs` is not an object"),
    ('"decoded": {', '"spare": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}, "decoded": {', "spare", None, "no output needs this node"),
    ('"latent_image": ["latent", 0]', '"latent_image": ["sampler", 0]', "sampler", None, "the links form a cycle"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "node", "name", "message"), CASES)
def test_an_error_names_template_node_input_and_what_is_allowed(
    old: str, new: str, node: str, name: str | None, message: str
) -> None:
    assert old in TEXT
    errors = [error for error in errors_of(TEXT.replace(old, new)) if error["node"] == node]
    assert [error["input"] for error in errors if message in error["message"]] == [name]
    for error in errors:
        assert error["template"] == "sd15_simple.json.j2"
        assert error["allowed"]
        assert error["given"]


def test_a_graph_without_an_output_is_refused() -> None:
    (error,) = errors_of(TEXT.replace('{% include "part_picture.json.j2" %}', ""))
    assert error["message"] == "no output node"


def test_a_chain_and_a_cycle_of_3000_nodes_are_checked() -> None:
    chain: dict[str, Any] = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    }
    for index in range(1, 3000):
        chain[str(index)] = {
            "class_type": "ImageScale",
            "inputs": {
                "image": [str(index - 1), 0],
                "upscale_method": "area",
                "width": 8,
                "height": 8,
                "crop": "disabled",
            },
        }
    chain["end"] = {"class_type": "PreviewImage", "inputs": {"images": ["2999", 0]}}
    assert list(find_errors(chain, CATALOGUE.signatures, "t")) == []
    chain["1"]["inputs"]["image"] = ["2999", 0]
    messages = {error.message for error in find_errors(chain, CATALOGUE.signatures, "t")}
    assert "the links form a cycle" in messages


def test_an_input_that_only_some_versions_have_is_optional() -> None:
    source = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    scale: dict[str, Any] = {"image": ["source", 0], "upscale_method": "area", "megapixels": 1.0}
    for inputs in (scale, {**scale, "resolution_steps": 1}):
        nodes = {
            "source": source,
            "scaled": {"class_type": "ImageScaleToTotalPixels", "inputs": inputs},
            "end": {"class_type": "PreviewImage", "inputs": {"images": ["scaled", 0]}},
        }
        assert list(find_errors(nodes, CATALOGUE.signatures, "t")) == []


def test_an_input_of_several_types_accepts_each_and_a_star_accepts_any() -> None:
    document = {
        "nodes": {
            "Source": {"inputs": {}, "outputs": ["MASK"]},
            "Either": {"inputs": {"in": {"type": "IMAGE,MASK"}}, "outputs": [], "output_node": True},
            "Any": {"inputs": {"in": {"type": "*"}}, "outputs": [], "output_node": True},
            "Other": {"inputs": {"in": {"type": "IMAGE"}}, "outputs": [], "output_node": True},
        }
    }
    signatures = parse_signatures(document)
    for class_type, count in (("Either", 0), ("Any", 0), ("Other", 1)):
        nodes = {
            "a": {"class_type": "Source", "inputs": {}},
            "b": {"class_type": class_type, "inputs": {"in": ["a", 0]}},
        }
        assert len(list(find_errors(nodes, signatures, "t"))) == count


# --- rendering -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{{ prompt }}", '"{{ prompt }}"', "does not render to JSON"),
        ("{{ prompt }}", "{{ promt }}", "'promt' is undefined"),
        ("{{ prompt }}", "{{ prompt | tojson }}", "does not contain the prompt unchanged"),
        ("{{ prompt }}", "{% if %}", "sd15_simple.json.j2:5"),
        ("{{ files.checkpoint }}", "{{ files.chekpoint }}", "chekpoint"),
        ("{{ prompt }}", "{{ prompt.__class__.__mro__ }}", "unsafe"),
        ("{{ prompt }}", "{{ 1 / 0 }}", "division"),
        ('"positive": {', '"checkpoint": {', "given twice"),
    ],
)
def test_a_broken_template_makes_its_model_undrawable_and_no_other(old: str, new: str, message: str) -> None:
    assert old in TEXT
    undrawable = load_catalogue(with_template(TEXT.replace(old, new))).undrawable
    assert list(undrawable) == ["sd-1.5-pruned-emaonly"]
    for faults in undrawable["sd-1.5-pruned-emaonly"].values():
        assert any(message in fault for fault in faults)


def test_a_template_may_render_to_several_objects() -> None:
    split = TEXT.replace('},\n  "negative"', '}\n}\n{% if true %}\n{\n  "negative"')
    assert split != TEXT
    head, negative = split.split("{% if true %}")
    catalogue = load_catalogue(
        with_template(head + "{% if true %}" + negative.replace("}}\n}\n", "}}\n}\n{% endif %}\n", 1))
    )
    (graph,) = compile_workflow(image_request(model="sd-1.5"), catalogue).graphs
    assert graph.nodes == compile_workflow(image_request(model="sd-1.5"), CATALOGUE).graphs[0].nodes


@pytest.mark.parametrize(
    "addition", ['{"picture": {}}', "[1]", "7", '{"x": {"class_type": "A", "class_type": "B"}}']
)
def test_a_repeated_node_id_and_anything_but_objects_of_nodes_is_refused(addition: str) -> None:
    catalogue = parse_catalogue(with_template(TEXT + addition))
    with pytest.raises(TemplateInvalid):
        compile_workflow(image_request(model="sd-1.5"), catalogue)
