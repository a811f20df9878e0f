"""Which node of a graph delivers the answer is known before anything is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compiler import compile_workflow, load_catalogue
from errors import CatalogueInvalid
from tests.compiler.catalogues import exported, faults_of, image_request, with_workflow

PREVIEW = {"10": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}}
SECOND = {
    "11": {"class_type": "SaveImage", "inputs": {"filename_prefix": "{{ prefix }}", "images": ["8", 0]}}
}
ADVANCED = {
    "SaveImageAdvanced": {
        "inputs": {"images": {"type": "IMAGE"}, "filename_prefix": {"type": "STRING"}},
        "outputs": [],
        "output_node": True,
    }
}


@pytest.mark.parametrize(
    ("text", "fields", "output"),
    [
        (exported(), {}, "9"),
        (exported(add=PREVIEW), {}, "9"),
        (exported(add=SECOND), {"output": "11"}, "11"),
        (exported(add=SECOND), {"output": 9}, "9"),
        (exported(add=PREVIEW), {"output": "10"}, "10"),
        (exported().replace('"SaveImage"', '"SaveImageAdvanced"'), {"nodes": ADVANCED}, "9"),
        (exported().replace('"SaveImage"', '"PreviewImage"').replace('"filename_prefix": {{ prefix }},', ""), {"output": "9"}, "9"),
    ],
)  # fmt: skip
def test_the_answer_is_the_only_node_that_saves_a_picture_or_the_declared_one(
    text: str, fields: dict[str, Any], output: str
) -> None:
    catalogue = load_catalogue(with_workflow(text, **fields))
    assert catalogue.undrawable == {}
    (graph,) = compile_workflow(image_request(model="mine"), catalogue).graphs
    assert graph.output == output


BOTH = "node '9' (SaveImage), node '11' (SaveImage)"


@pytest.mark.parametrize(
    ("text", "fields", "fault"),
    [
        (exported(add=SECOND), {}, f'several nodes save a picture: {BOTH}; write `output: "9"` (or another of {BOTH}) under workflows.mine in catalogue.yaml'),
        (exported(add=SECOND), {"output": "12"}, "`output` names a node '12' that does not exist; write `output: \"9\"`"),
        (exported(), {"output": "8"}, "`output` names node '8' (VAEDecode), which delivers no picture; write `output: \"9\"` under workflows.mine"),
        (exported().replace('"SaveImage"', '"PreviewImage"').replace('"filename_prefix": {{ prefix }},', ""), {}, "no node saves a picture, only node '9' (PreviewImage); add a SaveImage node, or write `output: \"9\"` under workflows.mine"),
    ],
)  # fmt: skip
def test_a_graph_whose_answer_is_not_clear_is_a_fault_with_the_line_to_write(
    text: str, fields: dict[str, Any], fault: str
) -> None:
    (given,) = faults_of(text, **fields)
    assert fault in given


def test_the_prefix_is_required_of_the_answers_node_only() -> None:
    second = {"11": {"class_type": "SaveImage", "inputs": {"filename_prefix": "fixed", "images": ["8", 0]}}}
    assert faults_of(exported(add=second), output="9") == []
    (fault,) = faults_of(exported(add=second), output="11")
    assert "node '11' (SaveImage), input 'filename_prefix': write {{ prefix }}" in fault


@pytest.mark.parametrize("task", ["edit", "vary"])
def test_a_graph_knows_whether_it_crops_its_canvas(task: str) -> None:
    from compiler import Size, SourceImage
    from tests.compiler.catalogues import CATALOGUE

    source = SourceImage(Size(500, 333), "easel/a.png [temp]")
    (graph,) = compile_workflow(image_request(model="sd-1.5", task=task, source=source), CATALOGUE).graphs
    assert graph.crops
    ignores = {
        "10": {"class_type": "LoadImage", "inputs": {"image": "{{ image }}"}},
        "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
    }
    text = exported(add=ignores, n3_latent_image=["11", 0])
    text = text[: text.index('  "5": {')] + text[text.index('  "6": {') :]
    catalogue = load_catalogue(with_workflow(text, tasks=[task]))
    (graph,) = compile_workflow(image_request(model="mine", task=task, source=source), catalogue).graphs
    assert not graph.crops
    whole = SourceImage(Size(512, 512), "easel/a.png [temp]")
    (graph,) = compile_workflow(image_request(model="mine", task=task, source=whole), catalogue).graphs
    assert graph.crops  # there is nothing to crop


def test_an_unknown_node_is_reported_alone_even_if_it_is_the_answer() -> None:
    text = exported().replace('"SaveImage"', '"Image Save"')
    for fields in ({}, {"output": "9"}):
        (fault,) = faults_of(text, **fields)
        assert "node '9': unknown node class (given: Image Save" in fault


@pytest.mark.parametrize(("node", "meaning"), [("13:59", "839"), ("010", "8"), ("0x1F", "31")])
def test_an_answers_node_that_yaml_reads_as_another_number_is_refused_with_the_text_to_write(
    node: str, meaning: str
) -> None:
    sources = with_workflow(exported().replace('"9"', f'"{node}"'), output="NODE")
    line = 1 + sources.catalogue[: sources.catalogue.index("output: NODE")].count("\n")
    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(replace(sources, catalogue=sources.catalogue.replace("NODE", node)))
    assert f':{line}: YAML reads {node} as the number {meaning}; write it in quotes: "{node}"' in str(
        caught.value
    )
    quoted = replace(sources, catalogue=sources.catalogue.replace("NODE", f'"{node}"'))
    assert load_catalogue(quoted).undrawable == {}
