"""How edits, inpainting and variations compile: size, graph and values."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest

from compiler import Compiled, LoraChoice, Shape, Size, SourceImage, compile_workflow, load_catalogue
from compiler.catalogue_file import parse_catalogue
from compiler.strength import largest_strength
from compiler.values import Task
from errors import CatalogueInvalid, InvalidValue, PromptRequired, SizeNotAllowed
from tests.compiler.catalogues import CATALOGUE, image_request, with_document

MODELS = list(CATALOGUE.models)


def source(width: int = 512, height: int = 512, mask: bool = False) -> SourceImage:
    return SourceImage(Size(width, height), "easel/a.png [temp]", "easel/m.png [temp]" if mask else None)


def edited(task: Task = "edit", *, image: SourceImage | None = None, **fields: Any) -> Compiled:
    image = image or source(mask=task == "inpaint")
    return compile_workflow(image_request(task=task, source=image, **fields), CATALOGUE)


def value(compiled: Compiled, name: str) -> tuple[Any, str]:
    planned = compiled.plan.values[name]
    return planned.value, planned.origin


@pytest.mark.parametrize("schedule", ["ays", "gits"])
@pytest.mark.parametrize(
    ("task", "strength"), [("generate", 1.0), ("edit", 0.3), ("edit", 0.75), ("edit", 1.0)]
)
@pytest.mark.parametrize("steps", [2, 3, 5, 20, 50])
def test_schedules_with_their_own_node_run_the_requested_number_of_steps(
    schedule: str, task: Task, strength: float, steps: int
) -> None:
    inputs = {"schedule": schedule, "steps": steps} | ({"strength": strength} if task == "edit" else {})
    image = source() if task == "edit" else None
    compiled = compile_workflow(
        image_request(model="sd-1.5", task=task, source=image, inputs=inputs), CATALOGUE
    )
    sigmas = compiled.graphs[0].nodes["sigmas"]
    assert sigmas["class_type"] == {"ays": "AlignYourStepsScheduler", "gits": "GITSScheduler"}[schedule]
    # Both nodes keep the last round(steps * denoise) of their steps.
    assert round(sigmas["inputs"]["steps"] * sigmas["inputs"]["denoise"]) == steps
    assert compiled.graphs[0].nodes["sampler"]["class_type"] == "SamplerCustom"


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "size", "canvas"),
    [
        ("512x512", "512x512", "512x512"),
        ("500x333", "500x333", "504x336"),
        ("1024x1017", "1024x1017", "1024x1024"),
        ("257x256", "257x256", "264x256"),
    ],
)
def test_an_image_within_the_limits_keeps_its_size(image_size: str, size: str, canvas: str) -> None:
    plan = edited(model="sd-1.5", image=source(*map(int, image_size.split("x")))).plan
    assert (str(plan.size), str(plan.canvas), plan.adjusted) == (size, canvas, ())
    same = edited(
        model="sd-1.5", image=source(*map(int, image_size.split("x"))), size=Size.parse(image_size)
    ).plan
    assert (str(same.size), str(same.canvas), same.adjusted) == (size, canvas, ())


@pytest.mark.parametrize(
    ("image_size", "model", "size"),
    [
        ("4000x3000", "sd-1.5", "1024x768"),
        ("3000x4000", "sdxl-turbo", "768x1024"),
        ("64x64", "sd-1.5", "256x256"),
        ("8000x6000", "flux-schnell", "1664x1248"),
        ("100x300", "sd-1.5", "256x768"),
        ("1x1", "sd-1.5", "256x256"),
    ],
)
def test_an_image_outside_the_limits_is_scaled_in_proportion_and_listed(
    image_size: str, model: str, size: str
) -> None:
    plan = edited(model=model, image=source(*map(int, image_size.split("x")))).plan
    assert (str(plan.size), plan.size) == (size, plan.canvas)
    (note,) = plan.adjusted
    assert (note.field, note.asked, note.done) == ("image", image_size, size)


def test_an_image_that_is_too_long_for_the_model_is_cropped_and_listed() -> None:
    plan = edited(model="sd-1.5", image=source(4000, 200)).plan
    assert str(plan.size) == "1024x256"
    assert plan.adjusted[0].done == "1024x256"
    assert str(edited(model="sd-1.5", image=source(4000, 200), size=Size(512, 512)).plan.size) == "512x512"


def test_a_requested_size_other_than_the_images_is_drawn_and_the_crop_is_listed() -> None:
    plan = edited(model="sd-1.5", image=source(640, 480), size=Size(512, 510)).plan
    assert str(plan.size) == str(plan.canvas) == "512x512"
    assert [note.field for note in plan.adjusted] == ["size", "image"]


def test_a_requested_size_outside_the_limits_is_refused_even_if_it_is_the_images_size() -> None:
    with pytest.raises(SizeNotAllowed):
        edited(model="sd-1.5", image=source(2000, 2000), size=Size(2000, 2000))


@pytest.mark.parametrize(
    ("image_size", "size", "drawn", "notes"),
    [
        (Size(640, 480), Size(1536, 1024), "1024x680", ["size", "image"]),
        (Size(1536, 1024), Size(1536, 1024), "1024x680", ["size", "image"]),
        (Size(1024, 680), Size(1536, 1024), "1024x680", ["size"]),
    ],
)
@pytest.mark.parametrize("task", ["edit", "inpaint", "vary"])
def test_openais_sizes_are_fitted_for_every_task(
    image_size: Size, size: Size, drawn: str, notes: list[str], task: Task
) -> None:
    plan = edited(
        task, model="sd-1.5", image=source(*astuple(image_size), mask=task == "inpaint"), size=size
    ).plan
    assert str(plan.size) == drawn
    assert [note.field for note in plan.adjusted] == notes


@pytest.mark.parametrize(
    ("ratio", "pixels", "drawn", "notes"),
    [
        (1.0, None, "552x552", ["image"]),
        (None, 1024 * 1024, "1024x768", ["image_size", "image"]),
        (4 / 3, None, "640x480", []),
    ],
)
def test_a_shape_is_applied_to_the_image(
    ratio: float | None, pixels: int | None, drawn: str, notes: list[str]
) -> None:
    shape = Shape(ratio, pixels, "image_size", "text")
    plan = edited(model="sd-1.5", image=source(640, 480), shape=shape).plan
    assert (str(plan.size), [note.field for note in plan.adjusted]) == (drawn, notes)


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "task", "strength"),
    [
        ("sdxl-turbo", "edit", 0.5),
        ("sdxl-turbo", "inpaint", 1.0),
        ("sd-1.5", "vary", 0.75),
        ("flux-schnell", "inpaint", 1.0),
    ],
)
def test_each_task_has_its_own_strength(model: str, task: Task, strength: float) -> None:
    assert value(edited(task, model=model), "strength") == (strength, "workflow")


@pytest.mark.parametrize("strength", [0, 1.01, -1, "strong", True])
def test_an_invalid_strength_is_refused(strength: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        edited(model="sd-1.5", inputs={"strength": strength})
    assert caught.value.param == "strength"


def test_a_turbo_edit_is_limited_to_the_steps_that_its_strength_leaves() -> None:
    assert value(edited(), "steps") == (2, "workflow")
    plan = edited(inputs={"steps": 20}).plan
    assert (plan.values["steps"].value, plan.adjusted[0].field, plan.adjusted[0].done) == (4, "steps", 4)
    assert value(compile_workflow(image_request(inputs={"steps": 5}), CATALOGUE), "steps") == (5, "request")


def test_a_strength_without_an_image_is_listed_as_ignored() -> None:
    plan = compile_workflow(image_request(model="sd-1.5", inputs={"strength": 0.5}), CATALOGUE).plan
    assert [note.field for note in plan.ignored] == ["strength"]
    assert "strength" not in plan.values


def test_only_a_variation_needs_no_prompt() -> None:
    assert edited("vary", prompt="").graphs[0].nodes["positive"]["inputs"]["text"] == ""
    with pytest.raises(PromptRequired):
        edited("edit", prompt=" ")


def test_a_task_that_the_model_does_not_support_is_refused_with_a_list_of_its_tasks() -> None:
    def only_generate(document: Any) -> None:
        document["models"]["sdxl-turbo"]["workflow"] = {"generate": "sdxl_turbo_simple"}

    catalogue = load_catalogue(with_document(only_generate))
    with pytest.raises(InvalidValue, match="does not support the task 'edit', only generate"):
        compile_workflow(image_request(task="edit", source=source()), catalogue)


# --- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "steps"),
    [("low", 12), ("medium", 20), ("high", 30), ("hd", 30), ("max", 50)],
)
def test_a_quality_sets_the_number_of_steps(quality: str, steps: int) -> None:
    compiled = compile_workflow(image_request(model="sd-1.5", presets={"quality": quality}), CATALOGUE)
    assert value(compiled, "steps") == (steps, "preset")
    assert compiled.plan.presets == {"quality": quality}
    assert compiled.plan.ignored == ()


def test_a_value_in_the_request_overrides_a_preset_which_is_listed_as_ignored() -> None:
    request = image_request(model="sd-1.5", presets={"quality": "high"}, inputs={"steps": 7})
    plan = compile_workflow(request, CATALOGUE).plan
    assert plan.values["steps"].value == 7
    assert [note.field for note in plan.ignored] == ["quality"]
    assert plan.presets == {}


@pytest.mark.parametrize(("quality", "listed"), [("auto", []), ("vast", ["quality"]), ("", ["quality"])])
def test_an_unknown_quality_is_listed_as_ignored_and_auto_is_the_default(
    quality: str, listed: list[str]
) -> None:
    plan = compile_workflow(image_request(model="sd-1.5", presets={"quality": quality}), CATALOGUE).plan
    assert [note.field for note in plan.ignored] == listed
    assert plan.values["steps"].origin == "workflow"


@pytest.mark.parametrize("task", ["generate", "edit", "inpaint"])
@pytest.mark.parametrize("model", MODELS)
def test_sending_a_default_preset_changes_nothing(model: str, task: Task) -> None:
    image = None if task == "generate" else source(mask=task == "inpaint")
    presets = (
        {"quality": "standard"} if task == "generate" else {"quality": "standard", "input_fidelity": "low"}
    )
    explicit = compile_workflow(
        image_request(model=model, task=task, source=image, presets=presets), CATALOGUE
    )
    implicit = compile_workflow(image_request(model=model, task=task, source=image), CATALOGUE)
    assert explicit.graphs == implicit.graphs
    assert explicit.plan.ignored == ()


@pytest.mark.parametrize(
    ("model", "inputs", "done"),
    [
        ("flux-schnell", {"steps": 20, "cfg": 4.5}, {"steps": 8, "cfg": 1}),
        ("sdxl-turbo", {"steps": 20}, {"steps": 10}),
    ],
)
def test_a_distilled_model_reduces_large_values_to_its_maximum_and_lists_them(
    model: str, inputs: dict[str, Any], done: dict[str, Any]
) -> None:
    plan = compile_workflow(image_request(model=model, inputs=inputs), CATALOGUE).plan
    assert {note.field: note.done for note in plan.adjusted} == done
    assert {name: plan.values[name].value for name in done} == done
    for wrong in (0, -1, True, float("inf"), "many"):
        with pytest.raises(InvalidValue):
            compile_workflow(image_request(model=model, inputs={"steps": wrong}), CATALOGUE)


def test_a_higher_fidelity_sets_a_lower_strength() -> None:
    def strength(fidelity: str) -> float:
        compiled = edited(model="sd-1.5", presets={"input_fidelity": fidelity})
        return float(compiled.plan.values["strength"].value)

    assert strength("high") < strength("low") == 0.75


def test_the_presets_of_a_model_override_those_of_its_workflow() -> None:
    def add_preset(document: Any) -> None:
        document["models"]["sd-1.5-pruned-emaonly"]["presets"] = {"quality": {"low": {"steps": 5}}}

    catalogue = load_catalogue(with_document(add_preset))
    for quality, steps in (("low", 5), ("high", 30)):
        compiled = compile_workflow(image_request(model="sd-1.5", presets={"quality": quality}), catalogue)
        assert compiled.plan.values["steps"].value == steps


# --- LoRAs -----------------------------------------------------------------------------------------


def two_loras(document: Any) -> None:
    document["loras"]["second"] = {
        **document["loras"]["lcm-sd-1.5"],
        "file": {"name": "second.safetensors"},
        "strength": 0.7,
    }


def test_loras_are_chained_in_the_order_of_the_request() -> None:
    catalogue = load_catalogue(with_document(two_loras))
    loras = (LoraChoice("second"), LoraChoice("lcm-sd-1.5", -0.5))
    (graph,) = compile_workflow(image_request(model="sd-1.5", loras=loras), catalogue).graphs
    first, last = graph.nodes["lora_1"]["inputs"], graph.nodes["lora_2"]["inputs"]
    assert (first["lora_name"], first["strength_model"], first["model"]) == (
        "second.safetensors",
        0.7,
        ["checkpoint", 0],
    )
    assert (last["strength_clip"], last["model"], last["clip"]) == (-0.5, ["lora_1", 0], ["lora_1", 1])
    assert graph.nodes["sampler"]["inputs"]["model"] == ["lora_2", 0]
    assert graph.nodes["positive"]["inputs"]["clip"] == ["lora_2", 1]


@pytest.mark.parametrize("name", ["nope", "../../etc/passwd", "lcm-lora-sdv1-5.safetensors", "LCM-SD-1.5"])
def test_a_lora_that_is_not_in_the_catalogue_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"available: lcm-sd-1\.5") as caught:
        compile_workflow(image_request(model="sd-1.5", loras=(LoraChoice(name),)), CATALOGUE)
    assert caught.value.param == "lora"


def test_a_lora_of_another_family_is_refused() -> None:
    with pytest.raises(InvalidValue, match="available: none"):
        compile_workflow(image_request(model="flux-schnell", loras=(LoraChoice("lcm-sd-1.5"),)), CATALOGUE)


# --- the catalogue ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("workflows", "sd15_simple", "presets", "quality", "low"), {"stepz": 3}, "'stepz' is not an input"),
        (("workflows", "sd15_simple", "presets", "quality", "low"), {"steps": 300}, "300 is not allowed"),
        (("models", "sdxl-turbo", "presets"), {"quality": {"low": {"steps": 99}}}, "99 is not allowed"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"moon": 1}, "then": {"minimum": 2}}], "'moon'"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"schedule": "gits"}, "then": {"default": 2}}], "only depend on the task"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"task": "edit"}, "then": {"default": 99}}], "99 is not allowed"),
        (("workflows", "sd15_simple", "inputs", "cfg"), {"type": "number", "default": 1.0, "x-takes-more": True}, "requires a `maximum`"),
        (("loras", "lcm-sd-1.5", "families"), ["SD 9"], "no model has the family 'SD 9'"),
        (("loras", "lcm-sd-1.5", "file", "name"), "../x", "is not allowed"),
        (("models", "sdxl-turbo", "workflow"), {"upscale": "sdxl_turbo_simple"}, "it must be one of generate, edit"),
    ],
)  # fmt: skip
def test_an_error_in_presets_conditions_and_loras_is_reported_with_its_path(
    path: tuple[str, ...], value: Any, message: str
) -> None:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    with pytest.raises(CatalogueInvalid) as caught:
        parse_catalogue(with_document(change))
    assert message in caught.value.message
    assert path[1] in caught.value.message


def test_the_catalogues_files_include_those_of_loras() -> None:
    assert CATALOGUE.files["loras"] == ["lcm-lora-sdv1-5.safetensors"]
    assert replace(CATALOGUE, loras={}).files.get("loras") is None


@pytest.mark.parametrize(
    ("steps", "strength", "done"),
    [
        (1, 0.75, 0.5),
        (1, 0.8, 1.0),
        (2, 0.75, 0.66),
        (2, 0.9, 1.0),
        (4, 0.85, 0.8),
        (20, 0.96, 0.95),
        (20, 0.99, 1.0),
        (2, 0.66, None),
        (3, 0.75, None),
        (20, 0.75, None),
        (1, 1.0, None),
    ],
)
@pytest.mark.parametrize("task", ["edit", "inpaint", "vary"])
def test_a_strength_that_would_ignore_the_image_is_adjusted_and_listed(
    task: Task, steps: int, strength: float, done: float | None
) -> None:
    inputs = {"steps": steps, "strength": strength}
    compiled = edited(task, model="sd-1.5", image=source(mask=task == "inpaint"), inputs=inputs)
    drawn = strength if done is None else done
    sampler = compiled.graphs[0].nodes["sampler"]
    assert (sampler["class_type"], sampler["inputs"]["denoise"]) == ("KSampler", drawn)
    assert value(compiled, "strength") == (drawn, "request")
    notes = [(note.field, note.asked, note.done) for note in compiled.plan.adjusted]
    assert notes == ([] if done is None else [("strength", strength, done)])
    # ComfyUI draws the last `steps` of int(steps / denoise) steps.
    assert drawn == 1 or int(steps / drawn) > steps


@pytest.mark.parametrize("steps", range(1, 151))
def test_every_number_of_steps_has_a_strength_that_uses_the_image(steps: int) -> None:
    assert int(steps / largest_strength(steps)) > steps
