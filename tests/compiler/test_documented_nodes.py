"""Nodes and choices that only ComfyUI's documentation describes: they can be used, are marked, and give way to what an
engine says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compiler import Catalogue, Sources, compile_workflow, fit, load_catalogue, parse_object_info
from compiler.node_records import node_record, without_files
from compiler.proof import proofs_to_keep
from compiler.versions import Needs
from errors import NodesMissing
from tests.compiler.catalogues import exported, image_request, with_workflow

SHARPEN = {
    "inputs": {
        "images": {"type": "IMAGE"},
        "amount": {"type": "FLOAT", "default": 1.0, "min": 0.0, "max": 2.0},
        "how": {"type": "COMBO", "choices": ["soft", "hard"]},
    },
    "outputs": ["IMAGE"],
    "output_node": False,
    "since": "0.41.0",
}
DOCUMENTED = {
    "nodes": {"Sharpen": SHARPEN},
    "choices": {"CLIPLoader": {"type": {"quantum": "0.42.0"}}},
}
SHARPENED = {
    "12": {"class_type": "Sharpen", "inputs": {"images": ["8", 0], "amount": 1.5, "how": "hard"}},
}
NODE_INFO = {
    "input": {
        "required": {
            "images": ["IMAGE"],
            "amount": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0}],
            "how": [["soft", "hard"]],
        }
    },
    "output": ["IMAGE"],
    "output_node": False,
}


def sources(template: str, *, learned: dict[str, Any] | None = None, version: str = "0.43.0") -> Sources:
    """A catalogue with the model `mine`. `learned`: entries of `/object_info` of a ComfyUI of this version."""
    records = {name: without_files(node_record(entry)) for name, entry in (learned or {}).items()}
    return replace(
        with_workflow(template),
        documented_nodes=json.dumps(DOCUMENTED),
        learned_nodes=json.dumps({"versions": {version: records}}) if learned else "",
    )


def sharpening(**fields: Any) -> Catalogue:
    return load(sources(exported(add=SHARPENED, n9_images=["12", 0]), **fields))


def unverified(catalogue: Catalogue) -> tuple[str, ...]:
    return catalogue.unverified(catalogue.models["mine"])


def loader_info(*types: str) -> dict[str, Any]:
    """`/object_info` of a CLIPLoader with these types."""
    inputs = {"clip_name": [["a.safetensors"]], "type": [list(types)]}
    return {"CLIPLoader": {"input": {"required": inputs}, "output": ["CLIP"], "output_node": False}}


QUANTUM = exported(
    add={"13": {"class_type": "CLIPLoader", "inputs": {"clip_name": "q.safetensors", "type": "quantum"}}},
    n6_clip=["13", 0],
    n7_clip=["13", 0],
)


def load(known: Sources) -> Catalogue:
    return load_catalogue(known, proved={"mine"})


def test_a_model_with_a_class_that_only_the_documentation_describes_is_unverified() -> None:
    catalogue = sharpening()
    assert catalogue.undrawable == {}
    assert unverified(catalogue) == ("Sharpen",)
    model = catalogue.models["mine"]
    assert catalogue.needs(model, "generate") == (Needs("0.41.0", "0.33.0"),)
    assert [each.id for each in catalogue.models.values() if catalogue.unverified(each)] == ["mine"]


def test_a_custom_node_has_no_version_and_is_marked_all_the_same() -> None:
    custom = {"Sharpen": {key: value for key, value in SHARPEN.items() if key != "since"}}
    known = sources(exported(add=SHARPENED, n9_images=["12", 0]))
    catalogue = load(replace(known, documented_nodes=json.dumps({"nodes": custom, "choices": {}})))
    assert unverified(catalogue) == ("Sharpen",)
    assert catalogue.needed_version(catalogue.models["mine"]) is None


def test_its_inputs_are_checked_as_those_of_any_node() -> None:
    wrong = {"12": {"class_type": "Sharpen", "inputs": {"images": ["8", 0], "amount": 3, "how": "loud"}}}
    faults = load(sources(exported(add=wrong, n9_images=["12", 0]))).undrawable["mine"]["generate"]
    assert any("input 'amount': the value is out of range" in fault for fault in faults)
    assert any("input 'how': the value is not one of the choices" in fault for fault in faults)


def test_a_choice_that_only_the_documentation_describes_is_marked_too() -> None:
    catalogue = load(sources(QUANTUM))
    assert catalogue.undrawable == {}
    assert unverified(catalogue) == ("CLIPLoader.type quantum",)
    assert catalogue.needed_version(catalogue.models["mine"]) == "0.42.0"
    assert unverified(load(sources(exported()))) == ()


def test_a_model_that_says_it_needs_a_version_newer_than_all_recorded_ones_is_unverified() -> None:
    newer = {"needs": {"comfyui": "0.40.0", "too_old": "0.33.0"}}
    catalogue = load(with_workflow(exported(), model=newer))
    assert unverified(catalogue) == ("ComfyUI 0.40.0",)
    recorded = {"needs": {"comfyui": "0.33.0", "too_old": "0.8.0"}}
    assert unverified(load(with_workflow(exported(), model=recorded))) == ()


def test_what_an_engine_says_replaces_the_documentation() -> None:
    catalogue = sharpening(learned={"Sharpen": NODE_INFO})
    assert catalogue.undrawable == {}
    assert unverified(catalogue) == ()
    assert not catalogue.signatures["Sharpen"].documented


def test_an_engine_that_contradicts_the_documentation_makes_the_template_faulty() -> None:
    inputs = {**NODE_INFO["input"]["required"], "how": [["soft"]]}  # type: ignore[index]
    catalogue = sharpening(learned={"Sharpen": {**NODE_INFO, "input": {"required": inputs}}})
    (fault,) = catalogue.undrawable["mine"]["generate"]
    assert "node '12', input 'how': the value is not one of the choices" in fault


@pytest.mark.parametrize(
    ("names", "version", "parts"),
    [
        (("sd3", "quantum"), "0.42.0", ()),
        (("sd3",), "0.41.0", ("CLIPLoader.type quantum",)),  # it is older than the choice
    ],
)
def test_a_choice_that_an_engine_has_is_verified(
    names: tuple[str, ...], version: str, parts: tuple[str, ...]
) -> None:
    known = sources(QUANTUM, learned=loader_info(*names), version=version)
    catalogue = load(known)
    assert "mine" not in catalogue.undrawable
    assert unverified(catalogue) == parts


def test_a_choice_that_a_new_engine_lacks_does_not_exist() -> None:
    known = sources(QUANTUM, learned=loader_info("sd3"), version="0.42.0")
    (fault,) = load(known).undrawable["mine"]["generate"]
    assert "input 'type': the value is not one of the choices" in fault


@pytest.mark.parametrize("version", ["imported", "0.99.0"])
def test_another_class_that_an_engine_has_says_nothing_about_the_choice(version: str) -> None:
    catalogue = load(sources(QUANTUM, learned={"Custom": NODE_INFO}, version=version))
    assert unverified(catalogue) == ("CLIPLoader.type quantum",)


def test_kept_proofs_know_what_is_unverified() -> None:
    known = sources(exported(add=SHARPENED, n9_images=["12", 0]))
    catalogue = load_catalogue(known)
    again = load_catalogue(replace(known, shipped_proofs=proofs_to_keep(catalogue)))
    assert again.proofs == catalogue.proofs
    assert unverified(again) == ("Sharpen",)


# --- on an engine -----------------------------------------------------------------------------------


def fitted(**entry: Any) -> dict[str, Any]:
    """The graph fitted to an engine whose Sharpen is described by `entry`; its other nodes are those of the catalogue."""
    catalogue = sharpening()
    (graph,) = compile_workflow(image_request(model="mine"), catalogue).graphs
    live = {**catalogue.signatures, **parse_object_info({"Sharpen": {**NODE_INFO, **entry}})}
    return fit(graph.nodes, live, catalogue.signatures, {})


def required(**changes: Any) -> dict[str, Any]:
    inputs = {**NODE_INFO["input"]["required"], **changes}  # type: ignore[index]
    return {"required": {name: spec for name, spec in inputs.items() if spec is not None}}


def test_an_engine_that_agrees_draws_it() -> None:
    assert fitted()["12"]["inputs"] == {"images": ["8", 0], "amount": 1.5, "how": "hard"}


@pytest.mark.parametrize(
    ("entry", "class_type", "name"),
    [
        ({"input": required(how=[["soft"]])}, "Sharpen", "how"),
        ({"input": required(amount=None)}, "Sharpen", "amount"),
        ({"input": required(amount=["FLOAT", {"max": 1.0}])}, "Sharpen", "amount"),
        ({"input": required(amount=["STRING"])}, "Sharpen", "amount"),
        ({"input": required(images=["LATENT"])}, "Sharpen", "images"),
        ({"input": required(mask=["MASK"])}, "Sharpen", "mask"),
        ({"output": []}, "Sharpen", "images"),
        ({"output": ["LATENT"]}, "SaveImage", "images"),
    ],
)
def test_an_engine_that_disagrees_is_named_with_class_and_input(
    entry: dict[str, Any], class_type: str, name: str
) -> None:
    with pytest.raises(NodesMissing) as caught:
        fitted(**entry)
    assert (caught.value.details["class_type"], caught.value.details["input"]) == (class_type, name)
    assert class_type in caught.value.message
    assert name in caught.value.message
