"""The check proves that a template uses everything that a request may set; what fails is named with its remedy."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from compiler import Sources, compile_workflow, load_catalogue
from compiler.catalogue_file import parse_catalogue
from compiler.proof import catalogue_proof
from compiler.proof.changes import base_values
from compiler.render import TemplateRenderer
from compiler.values import TASKS, Task
from errors import ModelNotDrawable
from tests.compiler.catalogues import (
    CATALOGUE,
    SOURCES,
    UPSCALER_FILES,
    UPSCALER_NODES,
    exported,
    faults_of,
    image_request,
    upscaler,
    with_document,
    with_template,
    with_workflow,
)

STEPS = {"steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 20}}
SAMPLER = {"sampler": {"type": "string", "x-choices": "KSampler.sampler_name", "default": "euler"}}
SCHEDULE = {"schedule": {"type": "string", "x-choices": "KSampler.scheduler", "default": "normal"}}


def test_a_template_that_uses_everything_is_drawable() -> None:
    assert faults_of(exported()) == []
    inputs = {**STEPS, **SAMPLER, "cfg": {"type": "number", "minimum": 0, "maximum": 100, "default": 8.0}}
    text = exported(n3_steps="{{ steps }}", n3_sampler_name="{{ sampler }}", n3_cfg="{{ cfg }}")
    assert faults_of(text, inputs=inputs) == []


def test_the_proof_sets_every_variable_that_templates_have() -> None:
    model = CATALOGUE.find("sd-1.5")
    plan = compile_workflow(image_request(model="sd-1.5"), CATALOGUE).plan
    values = base_values(CATALOGUE.workflows[plan.workflow], model, "generate")
    assert set(values) == {*plan.values, "seed", "batch", "prefix"}


def test_an_export_in_which_only_the_prompt_was_replaced_lists_every_fault_with_its_node() -> None:
    text = exported(n3_seed=1234, n4_ckpt_name="v1-5-pruned-emaonly.safetensors", n5_width=512, n5_height=512, n5_batch_size=1, n9_filename_prefix="ComfyUI")  # fmt: skip
    faults = faults_of(text, inputs=STEPS, model={"limits": {"batch": 4}})
    places = [
        "`seed` has no effect; node '3' (KSampler), input 'seed': write {{ seed }}",
        "`width` has no effect; node '5' (EmptyLatentImage), input 'width': write {{ width }}",
        "`height` has no effect; node '5' (EmptyLatentImage), input 'height': write {{ height }}",
        "`batch` has no effect; node '5' (EmptyLatentImage), input 'batch_size': write {{ batch }}",
        "`prefix` has no effect; node '9' (SaveImage), input 'filename_prefix': write {{ prefix }}",
        "`steps` has no effect; node '3' (KSampler), input 'steps': write {{ steps }}",
        "no node uses the file `checkpoint`; node '4' (CheckpointLoaderSimple), input 'ckpt_name': write {{ files.checkpoint }}",
    ]  # fmt: skip
    assert faults == [f"mine.json.j2: {place}" for place in places]


PREVIEW = {"12": {"class_type": "PreviewImage", "inputs": {"images": ["13", 0]}}}
SIDE_BRANCH = {
    **PREVIEW,
    "13": {
        "class_type": "ImageScale",
        "inputs": {"image": ["8", 0], "upscale_method": "area", "width": "{{ steps }}", "height": 64, "crop": "disabled"},
    },
}  # fmt: skip
TWO_SAMPLERS = {
    "10": {
        "class_type": "KSampler",
        "inputs": {
            "seed": "{{ seed }}", "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "11": {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["4", 2]}},
    "12": {"class_type": "PreviewImage", "inputs": {"images": ["11", 0]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fields", "fault"),
    [
        ({"n6_text": "a fixed text"}, {}, "node '6' (CLIPTextEncode), input 'text': write {{ prompt }}"),
        ({"n6_text": "{{ prompt | upper }}"}, {}, "does not contain the prompt unchanged; node '6' (CLIPTextEncode), input 'text': write {{ prompt }} without quotes or filters"),
        ({"n7_text": "{{ negative_prompt }}"}, {}, "'negative_prompt' is undefined; declare it under workflows.mine.inputs in catalogue.yaml, such as `negative_prompt: {type: string, default: \"\"}`"),
        ({"n6_text": "{{ promt }}"}, {}, "'promt' is undefined; write {{ prompt }}, or declare it"),
        ({"n4_ckpt_name": "{{ files.chekpoint }}"}, {}, "write {{ files.checkpoint }}, or add the role `chekpoint` to the model's `files` (it has checkpoint)"),
        ({"n3_seed": 5}, {}, "node '3' (KSampler), input 'seed': write {{ seed }}"),
        ({"n5_height": "{{ width }}"}, {}, "`height` has no effect"),
        ({"n5_width": "{{ height }}", "n5_height": "{{ width }}"}, {}, "`width` is used as the height; node '5' (EmptyLatentImage), input 'height': write {{ height }}"),
        ({"n5_width": 512}, {}, "node '5' (EmptyLatentImage), input 'width': write {{ width }}"),
        ({"n5_batch_size": 1}, {"model": {"limits": {"batch": 4}}}, "input 'batch_size': write {{ batch }}"),
        ({"n9_filename_prefix": "x"}, {}, "node '9' (SaveImage), input 'filename_prefix': write {{ prefix }}"),
        ({}, {"inputs": SAMPLER}, "`sampler` has no effect; node '3' (KSampler), input 'sampler_name': write {{ sampler }}"),
        ({}, {"inputs": {"negative_prompt": {"type": "string", "default": ""}}}, "node '7' (CLIPTextEncode), input 'text': write {{ negative_prompt }}"),
        ({}, {"inputs": {"hue": {"type": "integer", "minimum": 0, "maximum": 9, "default": 3}}}, "write {{ hue }} where it belongs, or remove `hue` from the inputs of workflows.mine"),
        ({"n3_steps": "{{ [steps, 20] | min }}"}, {"inputs": STEPS}, "`steps`: 20 and 31 give the same graph"),
        ({"n3_steps": "{{ steps }}"}, {"inputs": {"steps": {**STEPS["steps"], "maximum": 20_000}}}, "node '3' (KSampler), input 'steps': it takes 1 to 10000, but `steps` allows 20000; correct its limits"),
        ({"n3_cfg": "{{ 7.0 }}"}, {"inputs": {"cfg": {"type": "number", "minimum": 7, "maximum": 7, "default": 7}}}, "`cfg` has no effect"),
        ({"add": SIDE_BRANCH}, {"inputs": STEPS}, "it only reaches node '13' (ImageScale), which node '9' (SaveImage) does not need; node '3' (KSampler), input 'steps': write {{ steps }}"),
        ({"n3_seed": 5, "add": TWO_SAMPLERS}, {}, "`seed` has no effect; it only reaches node '10' (KSampler), which node '9' (SaveImage) does not need"),
        ({}, {"model": {"family": "SD 1.x"}}, "`loras` has no effect; the catalogue has LoRAs for the model's family"),
        ({"n4_ckpt_name": "other.safetensors"}, {}, "node '4' (CheckpointLoaderSimple), input 'ckpt_name': write {{ files.checkpoint }}"),
        ({}, {"model": {"files": {"checkpoint": {"name": "a", "folder": "checkpoints"}, "vae": {"name": "b", "folder": "vae"}}}}, "write {{ files.vae }} in the node that loads it, or remove `vae` from `files`"),
        ({"n3_scheduler": "{{ schedule }}"}, {"inputs": {"schedule": {**SCHEDULE["schedule"], "x-more-choices": ["ays"]}}}, "it does not take \"ays\", which `schedule` allows; handle it in the template"),
        ({"n3_scheduler": "{{ 'karras' if schedule == 'ays' else schedule }}"}, {"inputs": {"schedule": {**SCHEDULE["schedule"], "x-more-choices": ["ays"], "default": "karras"}}}, "`schedule`: \"karras\" and \"ays\" give the same graph"),
        ({"n3_scheduler": "{{ 'karras' if style == 'a' else 'normal' }}"}, {"inputs": {"style": {"type": "string", "enum": ["a", "b", "c"], "default": "a"}}}, "`style`: \"b\" and \"c\" give the same graph"),
        ({"n3_scheduler": "{{ schedule }}"}, {"inputs": {"schedule": {"type": "string", "default": "normal"}}}, "declare `x-choices: KSampler.scheduler` for `schedule`"),
        ({"n3_sampler_name": "{{ sampler }}"}, {"inputs": {"sampler": {"type": "string", "enum": ["euler", "nope"], "default": "euler"}}}, "it does not take \"nope\""),
        ({}, {"inputs": {"tiled": {"type": "boolean", "default": False}}}, "`tiled` has no effect"),
        ({"n6_text": "{{ prompt if cfg > 1 else 'nothing' }}", "n3_cfg": "{{ cfg }}"}, {"inputs": {"cfg": {"type": "number", "minimum": 1, "maximum": 9, "default": 7}}}, "`prompt` has no effect (with cfg 1.0)"),
        ({}, {"model": {"size": {"default": "512x512", "multiple_of": 8, "min": "8x256", "max": "1024x1024"}}}, "node '5' (EmptyLatentImage), input 'width' takes at least 16, but the model's size.min is 8x256; raise it"),
        ({}, {"model": {"size": {"default": "512x512", "multiple_of": 8, "min": "256x256", "max": "1024x20000"}}}, "input 'height' takes at most 16384, but the model's size.max is 1024x20000; lower it"),
    ],
)  # fmt: skip
def test_a_value_that_the_answer_would_report_and_the_graph_does_not_use_is_a_fault(
    changes: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    faults = faults_of(exported(**changes), **fields)
    assert [text for text in faults if fault in text], faults


def test_a_place_that_gets_another_value_already_is_never_suggested() -> None:
    side = {"20": {"class_type": "PrimitiveInt", "inputs": {"value": "{{ width }}"}}}
    nodes = {"PrimitiveInt": {"inputs": {"value": {"type": "INT"}}, "outputs": ["INT"]}}
    shared = exported(n5_width=["20", 0], n5_height=["20", 0], add=side)
    (fault,) = faults_of(shared, nodes=nodes)
    assert fault == "mine.json.j2: `height` has no effect; write {{ height }} where it belongs"
    first, second = faults_of(shared.replace("{{ width }}", "512"), nodes=nodes)
    assert "node '20' (PrimitiveInt), input 'value': write {{ width }}" in first
    assert "`height` has no effect" in second
    files = {name: {"name": "same", "folder": "checkpoints"} for name in ("checkpoint", "refiner")}
    (fault,) = faults_of(exported(), model={"files": files})
    assert "write {{ files.refiner }} in the node that loads it" in fault


def test_a_fraction_for_a_node_that_counts_is_a_fault_with_the_type_to_declare() -> None:
    steps = {"steps": {"type": "number", "minimum": 1, "maximum": 50, "default": 20}}
    faults = faults_of(exported(n3_steps="{{ steps }}"), inputs=steps)
    assert set(faults) == {
        "mine.json.j2: node '3' (KSampler), input 'steps': it takes whole numbers; declare `type: integer` for `steps`"
    }


@pytest.mark.parametrize(
    ("changes", "fields", "fault"),
    [
        ({"n6_text": "{{ prompt | capitalize }}"}, {}, "the prompt unchanged"),
        ({"n6_text": "{{ prompt | lower }}"}, {}, "the prompt unchanged"),
        ({"n6_text": "{{ prompt[:1000] }}"}, {}, "the prompt unchanged"),
        ({"n6_text": "{{ prompt | replace('(', '') }}"}, {}, "the prompt unchanged"),
        ({"n6_text": "a cat", "n7_text": "{{ prompt }}"}, {}, "`prompt` only reaches the input 'negative' of node '3' (KSampler)"),
        ({"n6_text": "a cat", "n9_filename_prefix": "{{ prefix ~ prompt }}"}, {}, "`prompt` has no effect; node '6'"),
        ({"n3_seed": 5, "n9_filename_prefix": "{{ prefix ~ seed }}"}, {}, "`seed` has no effect; node '3'"),
        ({"n3_seed": "{{ seed % 1000 }}"}, {}, "`seed`: 1 and 1001 give the same graph"),
        ({"n3_seed": "{{ [seed, 10] | min }}"}, {}, "`seed`: 1001 and 4294967297 give the same graph"),
        ({"n3_seed": "{{ seed % 4294967296 }}"}, {}, "`seed`: 1 and 4294967297 give the same graph"),
        ({"n3_steps": "{{ [steps, 30] | min }}"}, {"inputs": STEPS}, "`steps`: 31 and 32 give the same graph"),
        ({"n3_steps": "{{ 30 if steps == 50 else steps }}"}, {"inputs": STEPS}, "node '3' (KSampler), input 'steps' gets 30 if `steps` is 50; write {{ steps }}"),
        ({"n3_cfg": "{{ cfg | round }}"}, {"inputs": {"cfg": {"type": "number", "minimum": 0, "maximum": 20, "default": 8}}}, "`cfg`: 7.434 and 7.474 give the same graph"),
        ({"n3_denoise": "{{ strength | int }}"}, {"inputs": {"strength": {"type": "number", "minimum": 0, "maximum": 1, "default": 1}}}, "`strength`: 0.3717 and 0.3817 give the same graph"),
        ({"n3_sampler_name": "{{ 'euler' if sampler == 'euler' else 'dpmpp_2m' }}"}, {"inputs": SAMPLER}, "give the same graph; node '3' (KSampler), input 'sampler_name'"),
        ({"n3_sampler_name": "{{ 'euler' if sampler == 'ddim' else sampler }}"}, {"inputs": SAMPLER}, '`sampler`: "euler" and "ddim" give the same graph'),
        ({"n3_sampler_name": "{{ {'euler': 'euler', 'heun': 'heun'}[sampler] }}"}, {"inputs": SAMPLER}, '(with sampler "euler_cfg_pp")'),
        ({"n5_batch_size": "{{ [batch, 2] | min }}"}, {"model": {"limits": {"batch": 4}}}, "`batch`: 2 and 3 give the same graph"),
        ({"n9_images": ["10", 0], "n5_batch_size": 1, "add": {"10": {"class_type": "RepeatImageBatch", "inputs": {"image": ["8", 0], "amount": "{{ batch }}"}}}}, {"model": {"limits": {"batch": 4}}}, "`batch` only repeats pictures that are drawn already"),
    ],
)  # fmt: skip
def test_a_value_that_only_sometimes_arrives_or_arrives_changed_is_a_fault(
    changes: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    faults = faults_of(exported(**changes), **fields)
    assert [text for text in faults if fault in text], faults


SIDES = {"width": "{{ width }}", "height": "{{ height }}"}
SCALED = {"12": {"class_type": "ImageScale", "inputs": {"image": ["8", 0], "upscale_method": "area", "width": 512, "height": 512, "crop": "disabled"}}}  # fmt: skip
SHIFTED = {"12": {"class_type": "ModelSamplingFlux", "inputs": {"model": ["4", 0], "max_shift": 1.15, "base_shift": 0.5, **SIDES}}}  # fmt: skip
TWICE = {
    "12": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["8", 0], "upscale_method": "area", "scale_by": 2.0},
    }
}


@pytest.mark.parametrize(
    ("changes", "fields", "fault"),
    [
        ({"n9_images": ["12", 0], "add": SCALED}, {}, "`width` does not set the size of the picture; node '12' (ImageScale), input 'width': write {{ width }}"),
        ({"n3_model": ["12", 0], "add": SHIFTED, "n5_width": 512}, {}, "`width` does not set the size of the picture; node '5' (EmptyLatentImage), input 'width': write {{ width }}"),
        ({"n3_model": ["12", 0], "add": SHIFTED, "n5_width": "{{ height }}", "n5_height": "{{ width }}"}, {}, "`width` is used as the height; node '5' (EmptyLatentImage), input 'height': write {{ height }}"),
        ({"n5_width": 128}, {"model": {"size": {"default": "64x64", "multiple_of": 8, "min": "64x64", "max": "64x64"}}}, "`width` has no effect; node '5'"),
        ({"n9_images": ["12", 0], "add": TWICE}, {}, None),
    ],
)  # fmt: skip
def test_the_size_must_be_that_of_the_picture(
    changes: dict[str, Any], fields: dict[str, Any], fault: str | None
) -> None:
    faults = faults_of(exported(**changes), **fields)
    assert [text for text in faults if fault is not None and fault in text] or (
        faults == [] and fault is None
    ), faults


def test_all_faults_of_a_model_are_listed_together_also_beside_errors_of_the_graph() -> None:
    faults = faults_of(exported(n3_seed=5, n3_nonsense=1, n5_width=512))
    assert len(faults) == 3
    assert "no such input" in faults[0]


# --- conditions -------------------------------------------------------------------------------------

BRANCHES = exported(n3_scheduler="{{ 'karras' if schedule == 'ays' else schedule }}").replace(
    '"steps": 20', '"steps": {{ 7 if schedule == "ays" else steps }}'
)


def test_a_value_that_is_forgotten_in_one_branch_of_the_template_is_a_fault_with_its_condition() -> None:
    text = exported(n3_steps="{{ 20 if hires else steps }}").replace(
        '"images": [\n        "8"', '"images": [\n        {{ "11" if hires else "8" }}'
    )
    text += """
        {% if hires %}
        {"10": {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["4", 2]}}}
        {"11": {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["4", 2]}}}
        {% endif %}"""
    flag = {"hires": {"type": "boolean", "default": False}}
    (fault,) = faults_of(text, inputs={**STEPS, **flag})
    assert "`steps` has no effect (with hires true); node '3' (KSampler), input 'steps'" in fault
    assert faults_of(text.replace("20 if hires else steps", "steps"), inputs={**STEPS, **flag}) == []


FAST = {"fast": {"type": "boolean", "default": False}}
WIDE = {"size": {"default": "512x512", "multiple_of": 8, "min": "256x256", "max": "1024x1024"}}


@pytest.mark.parametrize(
    ("changes", "fields", "fault"),
    [
        ({"n3_seed": "{{ 5 if fast else seed }}"}, {"inputs": FAST}, "`seed` has no effect (with fast true)"),
        ({"n3_seed": "{{ 1 if fast else seed }}", "n3_cfg": "{{ 2 if fast else 8 }}"}, {"inputs": FAST}, "`seed` has no effect (with fast true)"),
        ({"n3_steps": "{{ 8 if sampler == 'lcm' else steps }}", "n3_sampler_name": "{{ sampler }}"}, {"inputs": {**STEPS, **SAMPLER}}, '`steps` has no effect (with sampler "lcm")'),
        ({"n3_seed": "{{ 5 if steps == 50 else seed }}", "n3_steps": "{{ steps }}"}, {"inputs": STEPS}, "`seed` has no effect (with steps 50)"),
        ({"n3_scheduler": "{{ 'karras' if style == 'b' else 'normal' }}", "n6_text": "{{ prompt if style == 'a' else 'a dog' }}"}, {"inputs": {"style": {"type": "string", "enum": ["a", "b"], "default": "a"}}}, '`prompt` has no effect (with style "b")'),
        ({"n5_batch_size": "{{ 1 if fast else batch }}", "n3_cfg": "{{ 2 if fast else 8 }}"}, {"inputs": FAST, "model": {"limits": {"batch": 4}}}, "`batch` has no effect (with fast true)"),
    ],
)  # fmt: skip
def test_a_value_that_is_forgotten_in_a_branch_of_the_same_shape_is_a_fault(
    changes: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    faults = faults_of(exported(**changes), **fields)
    assert [text for text in faults if fault in text], faults


def test_many_branches_are_all_proved_or_refused_in_bounded_time() -> None:
    flags = {f"b{index}": {"type": "boolean", "default": False} for index in range(40)}
    style = " ~ ".join(f"b{index}" for index in range(40))
    text = exported(n6_text=f"{{{{ prompt ~ {style} }}}}", n3_seed="{{ 5 if b39 else seed }}")
    (fault,) = faults_of(text, inputs=flags)
    assert "`seed` has no effect (with b39 true)" in fault
    numbers = {
        f"x{index}": {"type": "integer", "minimum": 0, "maximum": 9, "default": 1} for index in range(200)
    }
    style = " ~ '-' ~ ".join(numbers)
    (fault,) = faults_of(exported(n6_text=f"{{{{ prompt ~ {style} }}}}"), inputs=numbers)
    assert "it has too many values and branches to try them all" in fault


def test_an_input_is_tried_with_values_under_which_it_has_an_effect() -> None:
    cfg = {"cfg": {"type": "number", "minimum": 1, "maximum": 20, "default": 1.0}}
    negative = {"negative_prompt": {"type": "string", "default": "", "x-unused-when": {"cfg": 1.0}}}
    text = exported(n3_cfg="{{ cfg }}", n7_text="{{ negative_prompt if cfg > 1 else '' }}")
    assert faults_of(text, inputs={**cfg, **negative}) == []
    frozen = exported(n3_cfg="{{ cfg }}")
    (fault,) = faults_of(frozen, inputs={**cfg, **negative})
    assert "node '7' (CLIPTextEncode), input 'text': write {{ negative_prompt }}" in fault


def test_values_are_only_combined_as_a_request_may_combine_them() -> None:
    steps = {"type": "integer", "minimum": 1, "maximum": 50, "x-when": [{"if": {"schedule": "karras"}, "then": {"minimum": 5}}]}  # fmt: skip
    text = exported(n3_scheduler="{{ schedule }}", n3_steps="{{ steps // (0 if schedule == 'karras' and steps < 5 else 1) }}")  # fmt: skip
    schedule = {"schedule": {"type": "string", "enum": ["normal", "karras"], "default": "normal"}}
    assert faults_of(text, inputs={**schedule, "steps": {**steps, "default": 3}}) == []


def test_an_input_of_one_task_is_tried_for_this_task_only() -> None:
    strength = {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}
    for tasks, faults in ((["edit"], 0), (["generate"], 1)):
        inputs = {"strength": {**strength, "x-tasks": tasks}}
        assert len(faults_of(exported(), inputs=inputs)) == faults


def test_a_seed_that_a_node_does_not_take_is_a_fault_with_the_expression_to_write() -> None:
    nodes = {
        "SmallSeed": {
            "inputs": {"seed": {"type": "INT", "min": 0, "max": 2**32 - 1}},
            "outputs": ["INT"],
        }
    }
    node = {"20": {"class_type": "SmallSeed", "inputs": {"seed": "{{ seed }}"}}}
    text = exported(n3_seed=["20", 0], add=node)
    (fault,) = faults_of(text, nodes=nodes)
    assert (
        "node '20' (SmallSeed), input 'seed': it takes at most 4294967295; write {{ seed % 4294967296 }}"
        in fault
    )
    assert faults_of(text.replace("{{ seed }}", "{{ seed % 4294967296 }}"), nodes=nodes) == []
    (fault,) = faults_of(text.replace("{{ seed }}", "5"), nodes=nodes)
    assert "node '20' (SmallSeed), input 'seed': write {{ seed }}" in fault


def test_a_size_that_no_request_can_change_may_be_fixed() -> None:
    size = {"default": "512x512", "multiple_of": 8, "min": "512x512", "max": "512x512"}
    assert faults_of(exported(n5_width=512, n5_height=512), model={"size": size}) == []


def test_a_batch_is_only_required_of_models_that_draw_batches() -> None:
    assert faults_of(exported(n5_batch_size=1)) == []


# --- tasks with an image ----------------------------------------------------------------------------

IMAGE = {
    "10": {"class_type": "LoadImage", "inputs": {"image": "{{ image }}"}},
    "11": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
}
MASK = {
    "12": {"class_type": "LoadImageMask", "inputs": {"image": "{{ mask }}", "channel": "red"}},
    "13": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["11", 0], "mask": ["12", 0]}},
}


def edit(*, mask: bool = False, **changes: Any) -> str:
    """A template that redraws an image; the empty latent is not needed."""
    text = exported(
        add={**IMAGE, **(MASK if mask else {})}, n3_latent_image=["13" if mask else "11", 0], **changes
    )
    head, _, rest = text.partition('"5": {')
    return head + rest[rest.index('"6": {') :]


def test_an_edit_needs_neither_width_nor_height_because_the_image_has_the_size() -> None:
    assert faults_of(edit(), task="edit") == []
    assert faults_of(edit(mask=True), task="inpaint") == []


@pytest.mark.parametrize(
    ("text", "task", "fault"),
    [
        (edit().replace("{{ image }}", '"pose.png"'), "edit", "node '10' (LoadImage), input 'image': write {{ image }}"),
        (edit(mask=True).replace("{{ mask }}", '"mask.png"'), "inpaint", "node '12' (LoadImageMask), input 'image': write {{ mask }}"),
        (edit(), "inpaint", "`mask` has no effect; write {{ mask }} as the `image` of a LoadImageMask node"),
        (exported(), "edit", "`image` has no effect; write {{ image }} as the `image` of a LoadImage node"),
        (edit(n6_text="fixed"), "edit", "node '6' (CLIPTextEncode), input 'text': write {{ prompt }}"),
        (edit(n3_seed=3), "vary", "node '3' (KSampler), input 'seed': write {{ seed }}"),
    ],
)  # fmt: skip
def test_image_and_mask_must_reach_the_answer(text: str, task: str, fault: str) -> None:
    faults = faults_of(text, task=task)
    assert [each for each in faults if fault in each], faults


def test_an_edit_that_draws_on_a_canvas_of_a_fixed_size_is_a_fault() -> None:
    nodes = {**IMAGE, "14": {"class_type": "ImageCompositeMasked", "inputs": {"destination": ["8", 0], "source": ["10", 0], "x": 0, "y": 0, "resize_source": True}}}  # fmt: skip
    nodes.pop("11")
    text = exported(add=nodes, n9_images=["14", 0], n5_width=512, n5_height=512)
    faults = faults_of(text, task="edit")
    assert [fault.partition("; ")[2] for fault in faults] == [
        "node '5' (EmptyLatentImage), input 'width': write {{ width }}",
        "node '5' (EmptyLatentImage), input 'height': write {{ height }}",
    ]


@pytest.mark.parametrize(
    ("scale", "fault"),
    [
        ({"class_type": "ImageScale", "inputs": {"image": ["10", 0], "upscale_method": "area", "width": 512, "height": 512, "crop": "disabled"}}, "node '12' (ImageScale), input 'width': write {{ width }}"),
        ({"class_type": "ImageScaleToTotalPixels", "inputs": {"image": ["10", 0], "upscale_method": "area", "megapixels": 1.0}}, "node '12' (ImageScaleToTotalPixels) gives every picture the same size by its input 'megapixels'"),
        ({"class_type": "ImageCrop", "inputs": {"image": ["10", 0], "width": 512, "height": 512, "x": 0, "y": 0}}, "node '12' (ImageCrop), input 'width': write {{ width }}"),
    ],
)  # fmt: skip
def test_an_edit_that_scales_the_image_to_a_fixed_size_is_a_fault(scale: dict[str, Any], fault: str) -> None:
    text = edit(n9_images=["8", 0]).replace('"pixels": [\n        "10"', '"pixels": [\n        "12"')
    faults = faults_of(f"{text}{json.dumps({'12': scale})}", task="edit")
    assert [each for each in faults if fault in each], faults


def test_a_text_is_written_where_it_reaches_the_positive_side() -> None:
    joined = {
        "20": {
            "class_type": "JoinTexts",
            "inputs": {"string_a": "masterpiece", "string_b": "a cat", "delimiter": ", "},
        }
    }
    nodes = {"JoinTexts": {"inputs": {name: {"type": "STRING"} for name in ("string_a", "string_b", "delimiter")}, "outputs": ["STRING"]}}  # fmt: skip
    (fault,) = faults_of(exported(n6_text=["20", 0], add=joined), nodes=nodes)
    place = "node '20' (JoinTexts), input 'string_a' or node '20' (JoinTexts), input 'string_b': write {{ prompt }}"
    assert fault == f"mine.json.j2: `prompt` has no effect; {place}"


# --- graphs without a prompt or a seed --------------------------------------------------------------


def test_an_upscaler_is_drawable_as_a_variation() -> None:
    fields: dict[str, Any] = {"nodes": UPSCALER_NODES, "model": {"files": UPSCALER_FILES}}
    assert faults_of(upscaler(), task="vary", **fields) == []
    batches = {"files": UPSCALER_FILES, "limits": {"batch": 4}}
    assert faults_of(upscaler(), task="vary", nodes=UPSCALER_NODES, model=batches) == []
    (fault,) = faults_of(upscaler(), task="edit", **fields)
    assert "declared with `tasks: [vary]`" in fault
    (fault,) = faults_of(upscaler(n1_image="in.png"), task="vary", **fields)
    assert "node '1' (LoadImage), input 'image': write {{ image }}" in fault
    (fault,) = faults_of(upscaler(n2_model_name="4x.pth"), task="vary", **fields)
    assert "node '2' (UpscaleModelLoader), input 'model_name': write {{ files.upscaler }}" in fault


def test_a_drawing_without_a_seed_is_a_fault_because_all_pictures_would_be_the_same() -> None:
    flat = '{"1": {"class_type": "EmptyImage", "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": 1, "color": {{ prompt | length }}}}, "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": {{ prefix }}}}}'  # fmt: skip
    faults = faults_of(flat)
    assert any("no node has an input `seed` or `noise_seed`" in fault for fault in faults)


def test_a_file_may_be_for_one_task_only() -> None:
    both = {
        "files": {"checkpoint": {"name": "a", "folder": "checkpoints"}, **UPSCALER_FILES},
        "workflow": {"generate": "mine", "vary": "other"},
    }
    sources = with_workflow(exported(), model=both, nodes=UPSCALER_NODES)

    def add_workflow(document: Any) -> None:
        document["workflows"]["other"] = {"title": "Other", "tasks": ["vary"], "inputs": {}}

    sources = with_template(upscaler(), name="other.json.j2", sources=with_document(add_workflow, sources))
    assert load_catalogue(sources).undrawable == {}
    literal = with_template(exported(n4_ckpt_name="a"), name="mine.json.j2", sources=sources)
    assert list(load_catalogue(literal).undrawable["mine"]) == ["generate", "vary"]


def test_files_that_a_template_names_itself_are_known() -> None:
    lora = {"10": {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "strength_model": 1, "strength_clip": 1, "model": ["4", 0], "clip": ["4", 1]}}}  # fmt: skip
    catalogue = load_catalogue(with_workflow(exported(add=lora, n3_model=["10", 0])))
    assert catalogue.undrawable == {}
    assert "style.safetensors" in catalogue.files["loras"]


# --- requests ---------------------------------------------------------------------------------------


def test_a_request_for_a_task_that_failed_is_refused_with_the_faults_and_the_others_serve() -> None:
    broken = SOURCES.templates["part_image_to_latent.json.j2"].replace("{{ image }}", '"pose.png"')
    catalogue = load_catalogue(with_template(broken, name="part_image_to_latent.json.j2"))
    model = catalogue.find("sd-1.5")
    assert catalogue.drawable_tasks(model) == ("generate",)
    assert compile_workflow(image_request(model="sd-1.5"), catalogue).graphs
    with pytest.raises(ModelNotDrawable, match=re.escape("input 'image': write {{ image }}")) as caught:
        compile_workflow(image_request(model="sd-1.5", task="vary"), catalogue)
    details = caught.value.details
    assert (details["model"], details["task"], details["tasks"]) == (model.id, "vary", ["generate"])
    assert details["faults"] == list(catalogue.undrawable[model.id]["vary"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (exported(n3_model=["4", [0]]), "node '3', input 'model': not a link"),
        (exported() + "{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "mine.json.j2: too many statically nested blocks"),
        (exported() + "{% if true %}" * 120 + " " + "{% endif %}" * 120, "mine.json.j2: too many levels of indentation"),
        (exported(n3_cfg="{{ 1e308 * 10 }}"), "mine.json.j2:7: a number is too large"),
        (exported(n3_seed="{{ range(100000) | random }}"), "No filter named 'random'"),
        (exported(n7_text="{{ lipsum() }}"), "'lipsum' is undefined"),
    ],
)  # fmt: skip
def test_a_template_that_python_cannot_compile_or_a_graph_of_any_form_fails_its_model_only(
    text: str, fault: str
) -> None:
    faults = faults_of(text)
    assert [each for each in faults if fault in each], faults


def test_a_template_on_which_the_proof_itself_fails_is_not_drawable_and_the_others_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prove = catalogue_proof.prove_template

    def fails(catalogue: Any, model: Any, workflow: Any, *others: Any) -> Any:
        if workflow.id == "mine":
            raise KeyError("unexpected")
        return prove(catalogue, model, workflow, *others)

    monkeypatch.setattr(catalogue_proof, "prove_template", fails)
    monkeypatch.setattr(catalogue_proof, "_cache", {})
    (fault,) = faults_of(exported())
    assert "mine.json.j2: it cannot be checked (KeyError: 'unexpected')" in fault
    assert "Traceback" in caplog.text


# --- shared and cached ------------------------------------------------------------------------------


def many_models(count: int) -> Sources:
    """The shipped models repeated, each with files, a largest size and limits of its own."""

    def change(document: Any) -> None:
        kinds = list(document["models"].values())
        document["models"] = {
            f"m{index}": {
                **{key: value for key, value in kinds[index % len(kinds)].items() if key != "aliases"},
                "files": {
                    role: {**file, "name": f"{index}.safetensors"}
                    for role, file in kinds[index % len(kinds)]["files"].items()
                },
                "size": {
                    "default": "512x512",
                    "multiple_of": 8,
                    "min": "256x256",
                    "max": f"{1024 + 8 * index}x1024",
                },
                "limits": {"n": 1 + index % 10, "batch": 2 + index % 4},
            }
            for index in range(count)
        }
        document["default_model"] = "m0"

    return with_document(change)


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Task]]:
    """The workflow and task of each proof that is made, with an empty cache."""
    made: list[tuple[str, Task]] = []
    prove = catalogue_proof.prove_template

    def counted(catalogue: Any, model: Any, workflow: Any, task: Task, traits: Any) -> Any:
        made.append((workflow.id, task))
        return prove(catalogue, model, workflow, task, traits)

    monkeypatch.setattr(catalogue_proof, "prove_template", counted)
    monkeypatch.setattr(catalogue_proof, "_cache", {})
    return made


def test_models_that_differ_in_files_sizes_and_limits_share_one_proof(proved: list[tuple[str, Task]]) -> None:
    catalogue = load_catalogue(many_models(100))
    assert len(catalogue.models) == 100
    assert catalogue.undrawable == {}
    assert sorted(proved) == sorted((name, task) for name in catalogue.workflows for task in TASKS)


def test_models_that_differ_only_in_names_share_all_results() -> None:
    def change(document: Any) -> None:
        model = {**document["models"]["sdxl-turbo"], "aliases": []}
        checkpoint = model["files"]["checkpoint"]
        document["models"] = {
            f"m{index}": {
                **model,
                "title": f"Model {index}",
                "files": {"checkpoint": {**checkpoint, "name": f"{index}.safetensors"}},
            }
            for index in range(100)
        }
        document["default_model"] = "m0"
        del document["loras"]

    catalogue = load_catalogue(with_document(change))
    proofs = [proof for tasks in catalogue.proofs.values() for proof in tasks.values()]
    assert len(proofs) == 100 * len(TASKS)
    assert len({id(proof) for proof in proofs}) == len(TASKS)
    assert catalogue.undrawable == {}


def test_a_reload_proves_only_what_has_changed(proved: list[tuple[str, Task]]) -> None:
    load_catalogue(SOURCES)
    proved.clear()
    load_catalogue(SOURCES)
    assert proved == []
    load_catalogue(with_template(SOURCES.templates["sd15_simple.json.j2"] + "\n"))
    assert set(proved) == {("sd15_simple", task) for task in TASKS}
    proved.clear()
    part = SOURCES.templates["part_flux_sampling.json.j2"] + "\n"
    load_catalogue(with_template(part, name="part_flux_sampling.json.j2"))
    assert {name for name, _ in proved} == {"flux_schnell", "flux_schnell_checkpoint"}


def test_no_proof_that_the_catalogue_needs_is_forgotten_however_many_it_has(
    proved: list[tuple[str, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_proof, "MAX_UNUSED", 2)
    load_catalogue(SOURCES)
    proved.clear()
    load_catalogue(SOURCES)
    assert proved == []
    load_catalogue(with_template(SOURCES.templates["sd15_simple.json.j2"] + "\n"))
    proved.clear()
    load_catalogue(SOURCES)  # of those that only the other catalogue needed, the last two are left
    assert len(proved) == len(TASKS) - 2
    assert {name for name, _ in proved} == {"sd15_simple"}


def test_a_node_that_changed_is_proved_again(proved: list[tuple[str, Task]]) -> None:
    sources = with_workflow(exported(), nodes={})
    assert load_catalogue(sources).undrawable == {}
    proved.clear()
    narrow = with_workflow(
        exported(),
        nodes={
            "EmptyLatentImage": {
                "inputs": {
                    name: {"type": "INT", "min": 16, "max": 512} for name in ("width", "height", "batch_size")
                },
                "outputs": ["LATENT"],
            }
        },
    )
    assert any(
        "takes at most 512" in fault for fault in load_catalogue(narrow).undrawable["mine"]["generate"]
    )
    assert proved


def test_a_model_adds_one_rendering_for_each_of_its_tasks(
    proved: list[tuple[str, Task]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: Counter[str] = Counter()
    render = TemplateRenderer.render

    def counted(self: TemplateRenderer, template: str, values: Any) -> Any:
        rendered[template] += 1
        return render(self, template, values)

    monkeypatch.setattr(TemplateRenderer, "render", counted)
    catalogue = parse_catalogue(many_models(100))
    models = [*catalogue.models.values()]
    catalogue_proof.prove_catalogue(catalogue, models[:50])
    assert proved
    for made in (proved, rendered):
        made.clear()
    catalogue_proof.prove_catalogue(catalogue, models[50:])
    assert proved == []
    # Each has a largest size of its own, which is tried.
    assert rendered.total() == sum(len(model.workflows) for model in models[50:])
    rendered.clear()
    catalogue_proof.prove_catalogue(catalogue, models)
    assert rendered.total() == 0


# --- what each model adds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fields", "fault"),
    [
        ({"n3_steps": "{{ {20: 20, 31: 31, 32: 32, 1: 1, 50: 50}[steps] }}"}, {"inputs": STEPS, "model": {"defaults": {"steps": 30}}}, "no element 30; the template must handle every value that `steps` allows (with the model's default steps 30)"),
        ({"n3_steps": "{{ {20: 20, 31: 31, 32: 32, 1: 1, 50: 50}[steps] }}"}, {"inputs": STEPS, "presets": {"quality": {"hd": {"steps": 40}}}}, '(with quality "hd")'),
        ({"n3_steps": "{{ {20: 20, 31: 31, 32: 32, 1: 1, 50: 50}[steps] }}"}, {"inputs": STEPS, "model": {"presets": {"quality": {"low": {"steps": 7}}}}}, '(with quality "low")'),
        ({"n3_seed": "{{ 5 if sampler == 'lcm' and schedule == 'karras' else seed }}", "n3_sampler_name": "{{ sampler }}", "n3_scheduler": "{{ schedule }}"}, {"inputs": {**SAMPLER, **SCHEDULE}, "model": {"defaults": {"sampler": "lcm", "schedule": "karras"}}}, '`seed` has no effect (with the model\'s default sampler "lcm", schedule "karras")'),
        ({"n5_width": "{{ [width, 768] | min }}"}, {"model": WIDE}, "node '5' (EmptyLatentImage), input 'width' gets 768 if `width` is 1024, which the model's size allows; write {{ width }}"),
        ({"n5_height": "{{ [height, 512] | max }}"}, {"model": WIDE}, "node '5' (EmptyLatentImage), input 'height' gets 512 if `height` is 256"),
        ({"n3_seed": "{{ 1 if width > 768 else seed }}"}, {"model": WIDE}, "`seed` has no effect (with size 1024x1024)"),
        ({"n5_width": "{{ width * 20 }}", "n5_height": "{{ height * 20 }}"}, {"model": WIDE}, "the value is out of range (given: 20480;"),
        ({"n5_batch_size": "{{ [batch, 3] | min }}"}, {"model": {"limits": {"batch": 4}}}, "input 'batch_size' gets 3 if `batch` is 4, the model's `limits.batch`; write {{ batch }}, or lower the limit"),
        ({"n5_batch_size": "{{ batch * 20000 }}"}, {"model": {"limits": {"batch": 4}}}, "the value is out of range"),
    ],
)  # fmt: skip
def test_a_models_own_defaults_presets_and_limits_are_tried(
    changes: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    faults = faults_of(exported(**changes), **fields)
    assert [text for text in faults if fault in text], faults


def test_a_proof_does_not_depend_on_which_model_is_first() -> None:
    text = exported(n3_seed="{{ 1 if width >= 1024 else seed }}")
    large = {"default": "1024x1024", "multiple_of": 8, "min": "1024x1024", "max": "2048x2048"}
    small = {"default": "512x512", "multiple_of": 8, "min": "256x256", "max": "768x768"}
    for order in (("small", "large"), ("large", "small"), ("small",), ("large",)):

        def models(document: Any, order: tuple[str, ...] = order) -> None:
            mine = document["models"].pop("mine")
            sizes = {"small": small, "large": large}
            document["models"] |= {name: {**mine, "size": sizes[name]} for name in order}

        undrawable = load_catalogue(with_document(models, with_workflow(text))).undrawable
        assert list(undrawable) == [name for name in order if name == "large"]


# --- large graphs -----------------------------------------------------------------------------------


def with_chain(text: str, number: int) -> str:
    """`text` with this many LoRAs in a row between the checkpoint and the sampler."""
    nodes = [
        f'"l{index}": {{"class_type": "LoraLoaderModelOnly", "inputs": {{"lora_name": "a.safetensors", '
        f'"strength_model": 0.5, "model": ["{f"l{index - 1}" if index else "4"}", 0]}}}}'
        for index in range(number)
    ]
    changed = re.sub('(?<="model": )\\[\\s*"4"', f'["l{number - 1}"', text)
    assert changed != text
    return changed + "{" + ", ".join(nodes) + "}"


@pytest.mark.parametrize(
    "changes",
    [
        {"n3_steps": "{{ steps }}"},
        {"n3_steps": "{{ steps }}", "n3_seed": 1234},
        {"n3_steps": 20},
        {"n3_steps": "{{ [steps, 30] | min }}"},
        {"n3_steps": "{{ steps }}", "n5_height": "{{ width }}"},
        {"n3_steps": "{{ steps * 1000 }}"},
        {"n3_steps": "{{ steps }}", "n9_filename_prefix": "mine"},
        {"n3_steps": "{{ steps }}", "n4_ckpt_name": "other.safetensors"},
        {"n3_steps": "{{ steps if prompt else 3 }}"},
    ],
)
def test_a_large_graph_has_the_same_faults_as_a_small_one(changes: dict[str, Any]) -> None:
    text = exported(**changes)
    small = faults_of(text, inputs=STEPS, model={"limits": {"batch": 4}})
    assert faults_of(with_chain(text, 100), inputs=STEPS, model={"limits": {"batch": 4}}) == small


def test_a_large_template_that_only_writes_its_values_is_rendered_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered = 0
    render = TemplateRenderer.render

    def counted(self: TemplateRenderer, template: str, values: Any) -> dict[str, Any]:
        nonlocal rendered
        rendered += template == "mine.json.j2"
        return render(self, template, values)

    monkeypatch.setattr(TemplateRenderer, "render", counted)
    inputs = {**STEPS, **SAMPLER, **SCHEDULE}
    text = exported(n3_steps="{{ steps }}", n3_sampler_name="{{ sampler }}", n3_scheduler="{{ schedule }}")
    assert faults_of(with_chain(text, 100), inputs=inputs) == []
    assert rendered < 5
