"""Inputs of a workflow that are images, such as a control image."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import (
    Catalogue,
    Compiled,
    InputPicture,
    Size,
    compile_workflow,
    load_catalogue,
    sample_requests,
)
from errors import InvalidValue
from tests.compiler.catalogues import image_request, with_document, with_template

MODEL = "controlled"
PART = """
{% if control_image %}
{"control_image": {"class_type": "LoadImage", "inputs": {"image": {{ control_image }}}}}
{"control_net": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": {{ files.control_net }}}}}
{
  "controlled": {
    "class_type": "ControlNetApplyAdvanced",
    "inputs": {
      "positive": ["positive", 0], "negative": ["negative", 0], "control_net": ["control_net", 0],
      "image": ["control_image", 0], "strength": {{ control_strength }}, "start_percent": 0.0, "end_percent": 1.0
    }
  }
}
{% set at.positive = ["controlled", 0] %}
{% set at.negative = ["controlled", 1] %}
{% endif %}
"""
START = """
{% set at = namespace(positive=["positive", 0], negative=["negative", 0]) %}
{
  "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {{ files.checkpoint }}}},
  "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["checkpoint", 1], "text": {{ prompt }}}},
  "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["checkpoint", 1], "text": "blurry"}},
  "latent": {
    "class_type": "EmptyLatentImage",
    "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": {{ batch }}}
  }
}
"""
END = """
{
  "sampler": {
    "class_type": "KSampler",
    "inputs": {
      "model": ["checkpoint", 0], "positive": {{ at.positive }}, "negative": {{ at.negative }},
      "latent_image": ["latent", 0], "seed": {{ seed }}, "steps": 20, "cfg": 7.0, "sampler_name": "euler",
      "scheduler": "normal", "denoise": 1.0
    }
  },
  "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}},
  "picture": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": {{ prefix }}}}
}
"""


def with_control(part: str = PART) -> Catalogue:
    """The small catalogue with a model that takes a control image; only this one is proved."""

    def change(document: dict[str, Any]) -> None:
        strength = {"type": "number", "minimum": 0, "maximum": 2, "default": 1.0}
        document["workflows"]["controlled"] = {
            "title": "With a ControlNet",
            "tasks": ["generate"],
            "inputs": {
                "control_image": {"type": "image"},
                "control_strength": {**strength, "x-unused-when": {"control_image": None}},
            },
        }
        document["models"][MODEL] = {
            **document["models"]["sd-1.5-pruned-emaonly"],
            "family": "alone",
            "workflow": "controlled",
            "aliases": [],
            "files": {
                "checkpoint": {"name": "a.safetensors", "folder": "checkpoints"},
                "control_net": {"name": "canny.safetensors", "folder": "controlnet"},
            },
        }
        for key in ("defaults", "presets"):
            document["models"][MODEL].pop(key, None)

    sources = with_template(START + part + END, name="controlled.json.j2")
    return load_catalogue(with_document(change, sources), proved=[MODEL])


CATALOGUE = with_control()
PICTURE = InputPicture(Size(600, 400), "easel/r-control_image.png [temp]")


def compiled(**fields: Any) -> Compiled:
    return compile_workflow(image_request(model=MODEL, **fields), CATALOGUE)


def test_the_graph_loads_the_picture_only_if_the_request_has_one() -> None:
    assert CATALOGUE.undrawable == {}
    graph = compiled(input_images={"control_image": PICTURE}).graphs[0].nodes
    assert graph["control_image"]["inputs"] == {"image": PICTURE.name}
    assert graph["sampler"]["inputs"]["positive"] == ["controlled", 0]
    assert "control_image" not in compiled().graphs[0].nodes


def test_without_it_the_other_inputs_are_listed_as_ignored() -> None:
    (note,) = compiled(inputs={"control_strength": 0.5}).plan.ignored
    assert (note.field, note.why) == ("control_strength", "it has no effect if there is no control_image")


def test_the_picture_gives_a_generation_its_shape_unless_a_size_is_requested() -> None:
    plan = compiled(input_images={"control_image": PICTURE}).plan
    assert (plan.size, plan.adjusted) == (Size(624, 416), ())
    plan = compiled(input_images={"control_image": PICTURE}, size=Size(512, 512)).plan
    assert [(note.field, note.done) for note in plan.adjusted] == [("control_image", "512x512")]


def test_a_name_in_its_place_is_refused_because_the_engine_would_load_any_file() -> None:
    with pytest.raises(InvalidValue, match="`control_image` must be an image"):
        compiled(inputs={"control_image": "secret.png"})


def test_an_engine_is_asked_for_what_the_control_image_needs() -> None:
    (request,) = sample_requests(CATALOGUE.models[MODEL], CATALOGUE)
    graph = compile_workflow(request, CATALOGUE).graphs[0]
    assert graph.classes >= {"ControlNetLoader", "ControlNetApplyAdvanced"}


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("", "`control_image` has no effect"),
        (PART.replace("{{ control_image }}", '"input.png"'), "`control_image` has no effect"),
        (PART.replace("{{ control_strength }}", "1.0"), "`control_strength` has no effect"),
        (PART.replace("{% if control_image %}", "{% if true %}"), "control_image"),
        (PART.replace("{{ files.control_net }}", '"canny.safetensors"'), "files.control_net"),
    ],
)
def test_a_template_that_does_not_use_it_is_not_drawable(part: str, fault: str) -> None:
    faults = with_control(part).undrawable[MODEL]["generate"]
    assert any(fault in each for each in faults), faults


def test_a_graph_with_a_picture_is_never_shared_with_other_requests() -> None:
    for number in range(4):
        picture = InputPicture(Size(512, 512), f"easel/{number}-control_image.png [temp]")
        graph = compiled(input_images={"control_image": picture}).graphs[0].nodes
        assert graph["control_image"]["inputs"]["image"] == picture.name
