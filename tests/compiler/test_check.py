"""Faults of a graph that the check proves, each by the template's own text, as an author would make it."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import compile_workflow, find_errors
from compiler.catalogue_file import parse_catalogue
from compiler.signatures import parse_signatures
from errors import CatalogueInvalid, GraphInvalid, TemplateInvalid
from tests.compiler.worlds import CATALOGUE, SOURCES, asked, loaded, with_template

TEXT = SOURCES.templates["sd15_simple.json.j2"]


def errors_of(text: str) -> list[dict[str, Any]]:
    """The faults of SD 1.5's graph when its template is `text`."""
    catalogue = parse_catalogue(with_template(text))
    with pytest.raises(GraphInvalid) as caught:
        compile_workflow(asked(model="sd-1.5"), catalogue)
    return list(caught.value.details["errors"])


CASES = [
    ('"samples": ["sampler", 0]', '"samples": ["smapler", 0]', "decoded", "samples", "not there"),
    ('"samples": ["sampler", 0]', '"samples": ["sampler", 1]', "decoded", "samples", "output that is not there"),
    ('"samples": ["sampler", 0]', '"samples": ["checkpoint", 0]', "decoded", "samples", "wrong type"),
    ('"samples": ["sampler", 0]', '"samples": ["sampler"]', "decoded", "samples", "not a link"),
    ('"samples": ["sampler", 0]', '"samples": [["sampler"], 0]', "decoded", "samples", "not a link"),
    ('"samples": ["sampler", 0]', '"samples": "sampler"', "decoded", "samples", "where a link is wanted"),
    ('"samples": ["sampler", 0], ', "", "decoded", "samples", "required input is missing"),
    ('"denoise": {{ strength }}', '"denoise": 1.5', "sampler", "denoise", "outside the range"),
    ('"denoise": {{ strength }}', '"denoise": "1"', "sampler", "denoise", "wrong type"),
    ('"denoise": {{ strength }}', '"denoise": true', "sampler", "denoise", "wrong type"),
    ('"denoise": {{ strength }}', '"denoise": 1.0, "denoize": 1.0', "sampler", "denoize", "no such input"),
    ('"scheduler": {{ schedule }}', '"scheduler": "nope"', "sampler", "scheduler", "not among the choices"),
    ('"class_type": "VAEDecode"', '"class_type": "VAEDecoder"', "decoded", None, "unknown node class"),
    ('"class_type": "VAEDecode"', '"klass": "VAEDecode"', "decoded", None, "not a node"),
    ('"decoded": {"class_type": "VAEDecode", "inputs"', '"decoded": {"class_type": "VAEDecode", "input"', "decoded", None, "object of inputs"),
    ('"decoded": {', '"spare": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}, "decoded": {', "spare", None, "no output needs this node"),
    ('"latent_image": ["latent", 0]', '"latent_image": ["sampler", 0]', "sampler", None, "circle"),
]  # fmt: skip


@pytest.mark.parametrize(("was", "becomes", "node", "name", "words"), CASES)
def test_an_error_names_template_node_input_and_what_is_allowed(
    was: str, becomes: str, node: str, name: str | None, words: str
) -> None:
    assert was in TEXT
    named = [error for error in errors_of(TEXT.replace(was, becomes)) if error["node"] == node]
    assert [error["input"] for error in named if words in error["message"]] == [name]
    for error in named:
        assert error["template"] == "sd15_simple.json.j2"
        assert error["allowed"]
        assert error["given"]


def test_a_graph_without_an_output_is_refused() -> None:
    (error,) = errors_of(TEXT.replace('{% include "part_picture.json.j2" %}', ""))
    assert error["message"] == "no output node"


def test_a_long_chain_and_a_long_circle_are_judged_without_recursion() -> None:
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
    assert "the links run in a circle" in messages


def test_an_input_that_only_some_versions_have_may_be_left_out_or_given() -> None:
    source = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    scale: dict[str, Any] = {"image": ["source", 0], "upscale_method": "area", "megapixels": 1.0}
    for inputs in (scale, {**scale, "resolution_steps": 1}):
        nodes = {
            "source": source,
            "scaled": {"class_type": "ImageScaleToTotalPixels", "inputs": inputs},
            "end": {"class_type": "PreviewImage", "inputs": {"images": ["scaled", 0]}},
        }
        assert list(find_errors(nodes, CATALOGUE.signatures, "t")) == []


def test_a_type_of_several_takes_each_and_a_star_takes_any() -> None:
    facts = {
        "nodes": {
            "Source": {"inputs": {}, "outputs": ["MASK"]},
            "Either": {"inputs": {"in": {"type": "IMAGE,MASK"}}, "outputs": [], "output_node": True},
            "Any": {"inputs": {"in": {"type": "*"}}, "outputs": [], "output_node": True},
            "Other": {"inputs": {"in": {"type": "IMAGE"}}, "outputs": [], "output_node": True},
        }
    }
    signatures = parse_signatures(facts)
    for kind, errors in (("Either", 0), ("Any", 0), ("Other", 1)):
        nodes = {
            "a": {"class_type": "Source", "inputs": {}},
            "b": {"class_type": kind, "inputs": {"in": ["a", 0]}},
        }
        assert len(list(find_errors(nodes, signatures, "t"))) == errors


# --- rendering -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("{{ prompt }}", '"{{ prompt }}"', "not JSON"),
        ("{{ prompt }}", "{{ promt }}", "'promt' is undefined"),
        ("{{ prompt }}", "{{ prompt | tojson }}", "not in the graph as it was given"),
        ("{{ prompt }}", "{% if %}", "sd15_simple.json.j2:5"),
        ("{{ files.checkpoint }}", "{{ files.chekpoint }}", "chekpoint"),
        ("{{ prompt }}", "{{ prompt.__class__.__mro__ }}", "unsafe"),
        ("{{ prompt }}", "{{ 1 / 0 }}", "division"),
        ('"positive": {', '"checkpoint": {', "given twice"),
    ],
)
def test_a_broken_template_stops_the_start_and_says_where(was: str, becomes: str, words: str) -> None:
    assert was in TEXT
    with pytest.raises(CatalogueInvalid) as caught:
        loaded(with_template(TEXT.replace(was, becomes)))
    assert "sd-1.5-pruned-emaonly" in caught.value.message
    assert words in caught.value.message


def test_a_template_may_be_several_objects_one_after_another() -> None:
    split = TEXT.replace('},\n  "negative"', '}\n}\n{% if true %}\n{\n  "negative"')
    assert split != TEXT
    head, negative = split.split("{% if true %}")
    catalogue = loaded(
        with_template(head + "{% if true %}" + negative.replace("}}\n}\n", "}}\n}\n{% endif %}\n", 1))
    )
    (graph,) = compile_workflow(asked(model="sd-1.5"), catalogue).graphs
    assert graph.nodes == compile_workflow(asked(model="sd-1.5"), CATALOGUE).graphs[0].nodes


EMPTY_LATENT = (
    '{"latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}}'
)
PLAIN_PICTURE = (
    '{"picture": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "a"}}}'
)


@pytest.mark.parametrize(
    ("parts", "lost"),
    [
        ({"part_loras": ""}, "LoRAs"),
        ({"part_image_to_latent": EMPTY_LATENT, "part_picture": PLAIN_PICTURE}, "image"),
    ],
)
def test_a_template_that_would_lose_what_a_request_brings_stops_the_start(
    parts: dict[str, str], lost: str
) -> None:
    text = TEXT
    for part, instead in parts.items():
        text = text.replace(f'{{% include "{part}.json.j2" %}}', instead)
    with pytest.raises(CatalogueInvalid) as caught:
        loaded(with_template(text))
    assert f"the graph does not use the request's {lost}" in caught.value.message


@pytest.mark.parametrize(
    "more", ['{"picture": {}}', "[1]", "7", '{"x": {"class_type": "A", "class_type": "B"}}']
)
def test_an_id_given_twice_or_something_that_is_no_object_is_refused(more: str) -> None:
    catalogue = parse_catalogue(with_template(TEXT + more))
    with pytest.raises(TemplateInvalid):
        compile_workflow(asked(model="sd-1.5"), catalogue)
