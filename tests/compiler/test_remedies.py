"""Each remedy, followed to the letter, mends the fault."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from compiler import load_catalogue
from tests.compiler.catalogues import as_template, exported, faults_of, with_workflow


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("negativePrompt", "write {{ negative_prompt }} and declare it"),
        ("NegativePrompt", "write {{ negative_prompt }} and declare it"),
        ("fileName2", "write {{ file_name2 }} and declare it"),
        ("_style", "write {{ style }} and declare it"),
        ("style", "declare it under workflows.mine.inputs in catalogue.yaml"),
        ("model", "write {{ files.checkpoint }}"),
        ("size", "write {{ width }} and {{ height }}"),
        ("n", "write {{ batch }}"),
        ("quality", "`presets: {quality: …}`"),
        ("lora", "part_loras.json.j2"),
        ("Prompt", "write {{ prompt }}"),
        ("promt", "write {{ prompt }}, or declare it"),
    ],
)
def test_an_undefined_name_is_answered_with_a_name_that_the_catalogue_allows(name: str, remedy: str) -> None:
    faults = faults_of(exported(n7_text=f"{{{{ {name} }}}}"))
    assert any(f"'{name}' is undefined; " in fault and remedy in fault for fault in faults), faults
    for fault in faults:
        if declared := re.search(r"such as `(\w+): \{type: string", fault):
            written = declared[1] if declared[1] != name else name
            inputs = {declared[1]: {"type": "string", "default": ""}}
            assert faults_of(exported(n7_text=f"{{{{ {written} }}}}"), inputs=inputs) == []


# --- images and masks -------------------------------------------------------------------------------


def inpainting(*, image: Any = "photo.png", mask: Any = ("10", 1), add: dict[str, Any] | None = None) -> str:
    """An export that redraws the transparent part of an image."""
    nodes = json.loads(exported().replace("{{", '"{{').replace("}}", '}}"'))
    del nodes["5"]
    nodes["3"]["inputs"]["latent_image"] = ["12", 0]
    nodes["10"] = {"class_type": "LoadImage", "inputs": {"image": image}}
    nodes["11"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    nodes["12"] = {
        "class_type": "SetLatentNoiseMask",
        "inputs": {"samples": ["11", 0], "mask": list(mask)},
    }
    return as_template({**nodes, **(add or {})})


@pytest.mark.parametrize("image", ["photo.png", "{{ image }}"])
def test_a_mask_from_the_transparency_of_the_image_gets_a_node_of_its_own(image: str) -> None:
    faults = faults_of(inpainting(image=image), task="inpaint")
    (mask_fault,) = [fault for fault in faults if "`mask` has no effect" in fault]
    node = '"mask": {"class_type": "LoadImageMask", "inputs": {"image": {{ mask }}, "channel": "red"}}'
    assert mask_fault.endswith(
        f"node '12' (SetLatentNoiseMask), input 'mask': write [\"mask\", 0], and add the node {node}"
    )
    assert sum("write {{ image }}" in fault for fault in faults) == (image == "photo.png")
    assert not any("write {{ mask }}" in fault and "'10'" in fault for fault in faults)
    followed = inpainting(image="{{ image }}", mask=("mask", 0)).rstrip().removesuffix("}") + f", {node}}}"
    assert faults_of(followed, task="inpaint") == []


def test_a_loader_that_only_delivers_a_mask_is_the_place_of_the_mask() -> None:
    loader = {"20": {"class_type": "LoadImage", "inputs": {"image": "mask.png"}}}
    faults = faults_of(inpainting(mask=("20", 1), add=loader), task="inpaint")
    assert [re.sub(r"^.*; ", "", fault) for fault in faults] == [
        "node '10' (LoadImage), input 'image': write {{ image }}",
        "node '20' (LoadImage), input 'image': write {{ mask }}",
    ]
    loader["20"]["inputs"] = {"image": "{{ mask }}"}  # type: ignore[dict-item]
    followed = inpainting(image="{{ image }}", mask=("20", 1), add=loader)
    assert load_catalogue(with_workflow(followed, tasks=["inpaint"])).undrawable == {}


def test_the_node_to_add_gets_an_id_that_is_free() -> None:
    text = inpainting(add={"mask": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}})
    (fault,) = [fault for fault in faults_of(text, task="inpaint") if "`mask`" in fault]
    assert 'write ["mask2", 0], and add the node "mask2": {' in fault
