"""Which ComfyUI a model needs: derived from the nodes, inputs and choices of its graph, or declared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compiler import SourcePaths, load_catalogue, read_sources
from compiler.node_records import node_record, record_nodes, without_files
from compiler.signatures import parse_signatures
from compiler.versions import Needs, derived_needs, marks_of, too_old_for
from errors import CatalogueInvalid
from tests.compiler.catalogues import SOURCES, with_document
from tests.conftest import ROOT


def node(*, output: bool = False, **inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": [] if output else ["IMAGE"], "output_node": output}


OLD = {"Save": node(output=True, how=[["fast", "slow"]])}
MIDDLE = {
    "Save": node(output=True, how=[["fast", "slow", "new"]], quality=["INT", {"default": 5}]),
    "Late": node(),
}
NEW = {**MIDDLE, "Last": node()}


def signatures() -> Any:
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version, info in (("0.3.64", OLD), ("0.8.0", MIDDLE), ("0.33.0", NEW)):
        document = record_nodes(document, info, version=version, classes=NEW, facts={})
    return parse_signatures(document)


@pytest.mark.parametrize(
    ("class_type", "inputs", "needs"),
    [
        ("Save", {"how": "fast"}, None),
        ("Save", {"how": "new"}, Needs("0.8.0", "0.3.64")),
        ("Save", {"how": "fast", "quality": 5}, None),  # left out for an engine that does not have it
        ("Save", {"how": "fast", "quality": 6}, Needs("0.8.0", "0.3.64")),
        ("Late", {}, Needs("0.8.0", "0.3.64")),
        ("Last", {}, Needs("0.33.0", "0.8.0")),
        ("Custom", {}, None),
    ],
)
def test_a_class_an_input_or_a_choice_that_only_newer_versions_have_is_needed(
    class_type: str, inputs: dict[str, Any], needs: Needs | None
) -> None:
    marks = marks_of({"1": {"class_type": class_type, "inputs": inputs}}, signatures())
    found = derived_needs(marks, ["0.3.64", "0.8.0", "0.33.0"])
    assert found == (() if needs is None else (needs,))


def test_the_order_in_which_versions_are_recorded_does_not_matter() -> None:
    document: dict[str, Any] = {"versions": [], "nodes": {}}
    for version, info in (("0.33.0", NEW), ("0.3.64", OLD), ("0.8.0", MIDDLE)):
        document = record_nodes(document, info, version=version, classes=NEW, facts={})
    assert {name: list(each.only_in) for name, each in parse_signatures(document).items()} == {
        "Save": [], "Late": ["0.8.0", "0.33.0"], "Last": ["0.33.0"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("needs", "version", "is_too_old"),
    [
        (Needs("0.8.0"), "0.7.9", True),
        (Needs("0.8.0"), "0.8.0", False),
        (Needs("0.8"), "0.8.0", False),
        (Needs("0.8.0"), "0.8", False),
        (Needs("0.8.0"), "0.10.0", False),
        (Needs("0.8.0", "0.3.64"), "0.3.64", True),
        (Needs("0.8.0", "0.3.64"), "0.3.64.1", False),
        (Needs("0.8.0", "0.3.64"), "0.4.0", False),
        (Needs("0.8.0"), "v0.7.1-3-gabcdef", True),
        (Needs("0.8.0"), "unknown", False),
        (Needs("0.8.0"), "", False),
        (Needs("0.8.0"), "9" * 5000, False),
    ],
)
def test_a_version_is_refused_only_if_it_is_certainly_too_old(
    needs: Needs, version: str, is_too_old: bool
) -> None:
    assert (too_old_for([needs], version) is needs) == is_too_old


def test_the_shipped_models_need_what_is_known_of_their_families() -> None:
    paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
    shipped = load_catalogue(read_sources(paths))
    needed = {model.id: shipped.needed_version(model) for model in shipped.models.values()}
    expected = {
        "sdxl-turbo": None, "flux-schnell": None, "flux2-klein-4b": "0.8.0", "qwen-image-edit-2511": "0.8.0",
        "z-image-turbo": "0.8.0", "z-image-turbo-int8": "0.33.0", "krea2-turbo": "0.33.0",
    }  # fmt: skip
    assert {name: needed[name] for name in expected} == expected


def test_a_model_may_declare_what_the_nodes_do_not_tell() -> None:
    def change(document: Any) -> None:
        document["models"]["flux-schnell"]["needs"] = {"comfyui": "0.9.0"}

    catalogue = load_catalogue(with_document(change))
    model = catalogue.models["flux-schnell"]
    assert catalogue.needs(model, "generate") == (Needs("0.9.0"),)


@pytest.mark.parametrize("needs", [{}, {"comfyui": 0.8}, {"comfyui": "new"}, {"comfyui": "0.8.0", "x": 1}])
def test_a_declared_version_must_be_one(needs: Any) -> None:
    def change(document: Any) -> None:
        document["models"]["flux-schnell"]["needs"] = needs

    with pytest.raises(CatalogueInvalid, match=r"models\.flux-schnell\.needs"):
        load_catalogue(with_document(change))


def test_what_an_owners_engine_has_is_not_called_too_old() -> None:
    """A fork of an old version, whose nodes `easel snapshot-nodes` has learned."""
    info = node(
        width=["INT", {"default": 1}], height=["INT", {"default": 1}], batch_size=["INT", {"default": 1}]
    )
    learned = {"versions": {"0.3.64": {"EmptyFlux2LatentImage": without_files(node_record(info))}}}
    catalogue = load_catalogue(replace(SOURCES, learned_nodes=json.dumps(learned)))
    assert catalogue.signatures["EmptyFlux2LatentImage"].only_in == (), "all versions have it now"
    marks = marks_of({"1": {"class_type": "EmptyFlux2LatentImage", "inputs": {}}}, catalogue.signatures)
    assert derived_needs(marks, catalogue.nodes["complete"]) == ()
