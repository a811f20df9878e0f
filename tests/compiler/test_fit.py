"""One template, several ComfyUIs: what the live engine requires, lacks or does not list."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import compile_workflow, fit
from compiler.signatures import learn, parse_object_info, parse_signatures
from errors import FilesMissing, NodesMissing
from tests.compiler.worlds import CATALOGUE, asked

SCALE_OLD = {
    "input": {
        "required": {
            "image": ["IMAGE"],
            "upscale_method": [["area", "lanczos"]],
            "megapixels": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0}],
        }
    },
    "output": ["IMAGE"],
    "output_node": False,
}
SCALE_NEW = {
    "input": {
        "required": {
            "image": ["IMAGE", {}],
            "upscale_method": ["COMBO", {"options": ["area", "lanczos", "new"]}],
            "megapixels": ["FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0}],
            "resolution_steps": ["INT", {"default": 1, "min": 1, "max": 256}],
        }
    },
    "output": ["IMAGE"],
    "output_node": False,
}


def learnt() -> dict[str, Any]:
    facts: dict[str, Any] = {"versions": [], "nodes": {}}
    for version, entry in (("0.3.64", SCALE_OLD), ("0.8.0", SCALE_NEW)):
        facts = learn(facts, {"Scale": entry}, version=version, wanted=["Scale"], folders={})
    return facts


def scaled(**inputs: Any) -> dict[str, Any]:
    base = {"image": ["source", 0], "upscale_method": "area", "megapixels": 1.0}
    return {"scale": {"class_type": "Scale", "inputs": {**base, **inputs}}}


def test_what_not_every_version_has_is_marked() -> None:
    inputs = learnt()["nodes"]["Scale"]["inputs"]
    assert inputs["resolution_steps"]["only_in"] == ["0.8.0"]
    assert inputs["upscale_method"]["choices_in"] == {"new": ["0.8.0"]}
    assert "only_in" not in inputs["megapixels"]


def test_learning_a_version_again_changes_nothing() -> None:
    facts = learnt()
    for version, entry in (("0.8.0", SCALE_NEW), ("0.3.64", SCALE_OLD)):
        assert learn(facts, {"Scale": entry}, version=version, wanted=["Scale"], folders={}) == facts


def test_an_input_that_went_from_every_version_is_forgotten() -> None:
    facts = learnt()
    facts = learn(facts, {"Scale": SCALE_OLD}, version="0.8.0", wanted=["Scale"], folders={})
    assert "resolution_steps" not in facts["nodes"]["Scale"]["inputs"]


def test_an_input_that_the_live_engine_requires_is_filled_from_its_default() -> None:
    signatures = parse_signatures(learnt())
    fitted = fit(scaled(), parse_object_info({"Scale": SCALE_NEW}), signatures, {})
    assert fitted["scale"]["inputs"]["resolution_steps"] == 1


def test_an_input_that_the_live_engine_lacks_is_dropped_only_when_that_changes_nothing() -> None:
    signatures, live = parse_signatures(learnt()), parse_object_info({"Scale": SCALE_OLD})
    assert "resolution_steps" not in fit(scaled(resolution_steps=1), live, signatures, {})["scale"]["inputs"]
    with pytest.raises(NodesMissing, match="resolution_steps"):
        fit(scaled(resolution_steps=8), live, signatures, {})


def test_a_choice_that_the_live_engine_lacks_is_named() -> None:
    signatures, live = parse_signatures(learnt()), parse_object_info({"Scale": SCALE_OLD})
    with pytest.raises(NodesMissing, match="'new'"):
        fit(scaled(upscale_method="new"), live, signatures, {})


def test_a_node_that_the_live_engine_lacks_is_named() -> None:
    with pytest.raises(NodesMissing) as caught:
        fit(scaled(), {}, parse_signatures(learnt()), {})
    assert caught.value.details["nodes"] == ["Scale"]


def live_with(**files: list[str]) -> dict[str, Any]:
    """An engine with every node of the signatures, listing `files` by folder."""
    live = {}
    for name, node in CATALOGUE.signatures.items():
        inputs = {
            key: [files.get(known.folder, []), {}] if known.folder else [known.type, {}]
            for key, known in node.inputs.items()
            if known.choices is None
        } | {
            key: [list(known.choices), {}] for key, known in node.inputs.items() if known.choices is not None
        }
        live[name] = {
            "input": {"required": inputs},
            "output": list(node.outputs),
            "output_node": node.output_node,
        }
    return parse_object_info(live)


def test_missing_files_are_named_with_folder_and_address_all_at_once() -> None:
    (graph,) = compile_workflow(asked(model="flux-schnell"), CATALOGUE).graphs
    live = {name: node for name, node in live_with(vae=["ae.safetensors"]).items() if name in graph.classes}
    with pytest.raises(FilesMissing) as caught:
        fit(graph.nodes, live, CATALOGUE.signatures, CATALOGUE.models["flux-schnell"].files)
    files = caught.value.details["files"]
    assert [(file["name"], file["folder"]) for file in files] == [
        ("flux1-schnell.safetensors", "models/diffusion_models"),
        ("clip_l.safetensors", "models/text_encoders"),
        ("t5xxl_fp16.safetensors", "models/text_encoders"),
    ]
    assert all(file["url"].startswith("https://") for file in files)
