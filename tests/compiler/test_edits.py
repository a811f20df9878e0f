"""Edits, inpainting and variations as the compiler sees them: which size, which graph, which values."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler import Compiled, LoraChoice, Size, Source, compile_workflow
from compiler.catalogue_file import parse_catalogue
from compiler.values import Task
from errors import CatalogueInvalid, InvalidValue, PromptRequired, SizeNotAllowed
from tests.compiler.worlds import CATALOGUE, asked, loaded, with_document

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
MODELS = list(CATALOGUE.models)


def source(width: int = 512, height: int = 512, mask: bool = False) -> Source:
    return Source(Size(width, height), "easel/a.png [temp]", "easel/m.png [temp]" if mask else None)


def edited(task: Task = "edit", *, image: Source | None = None, **fields: Any) -> Compiled:
    image = image or source(mask=task == "inpaint")
    return compile_workflow(asked(task=task, source=image, **fields), CATALOGUE)


def value(compiled: Compiled, name: str) -> tuple[Any, str]:
    planned = compiled.plan.values[name]
    return planned.value, planned.origin


@pytest.mark.parametrize("task", ["edit", "inpaint", "vary"])
@pytest.mark.parametrize("model", MODELS)
def test_an_edits_graph_is_the_one_that_was_reviewed(model: str, task: Task) -> None:
    compiled = edited(task, model=model, image=source(500, 333, task == "inpaint"), n=2)
    graphs = [graph.nodes for graph in compiled.graphs]
    golden = GOLDENS / f"{model}-{task}.json"
    text = json.dumps(graphs, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("EASEL_TEST_WRITE_GOLDENS"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


@pytest.mark.parametrize("schedule", ["ays", "gits"])
@pytest.mark.parametrize(
    ("task", "strength"), [("generate", 1.0), ("edit", 0.3), ("edit", 0.75), ("edit", 1.0)]
)
@pytest.mark.parametrize("steps", [2, 3, 5, 20, 50])
def test_schedules_that_are_nodes_run_as_many_steps_as_were_asked(
    schedule: str, task: Task, strength: float, steps: int
) -> None:
    inputs = {"schedule": schedule, "steps": steps} | ({"strength": strength} if task == "edit" else {})
    image = source() if task == "edit" else None
    compiled = compile_workflow(asked(model="sd-1.5", task=task, source=image, inputs=inputs), CATALOGUE)
    sigmas = compiled.graphs[0].nodes["sigmas"]
    assert sigmas["class_type"] == {"ays": "AlignYourStepsScheduler", "gits": "GITSScheduler"}[schedule]
    # Both nodes keep the last round(steps * denoise) of their steps.
    assert round(sigmas["inputs"]["steps"] * sigmas["inputs"]["denoise"]) == steps
    assert compiled.graphs[0].nodes["sampler"]["class_type"] == "SamplerCustom"


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "size", "canvas"),
    [
        ("512x512", "512x512", "512x512"),
        ("500x333", "500x333", "504x336"),
        ("1024x1017", "1024x1017", "1024x1024"),
        ("257x256", "257x256", "264x256"),
    ],
)
def test_an_image_within_the_limits_keeps_its_very_size(own: str, size: str, canvas: str) -> None:
    plan = edited(model="sd-1.5", image=source(*map(int, own.split("x")))).plan
    assert (str(plan.size), str(plan.canvas), plan.adjusted) == (size, canvas, ())
    same = edited(model="sd-1.5", image=source(*map(int, own.split("x"))), size=Size.parse(own)).plan
    assert (str(same.size), str(same.canvas), same.adjusted) == (size, canvas, ())


@pytest.mark.parametrize(
    ("own", "model", "size"),
    [
        ("4000x3000", "sd-1.5", "1024x768"),
        ("3000x4000", "sdxl-turbo", "768x1024"),
        ("64x64", "sd-1.5", "256x256"),
        ("8000x6000", "flux-schnell", "1680x1248"),
        ("100x300", "sd-1.5", "256x768"),
        ("1x1", "sd-1.5", "256x256"),
    ],
)
def test_an_image_outside_of_the_limits_is_brought_within_in_its_shape_and_that_is_told(
    own: str, model: str, size: str
) -> None:
    plan = edited(model=model, image=source(*map(int, own.split("x")))).plan
    assert (str(plan.size), plan.size) == (size, plan.canvas)
    (note,) = plan.adjusted
    assert (note.field, note.asked, note.done) == ("image", own, size)


def test_an_image_too_long_for_any_size_of_the_model_is_cut_and_that_is_told() -> None:
    plan = edited(model="sd-1.5", image=source(4000, 200)).plan
    assert str(plan.size) == "1024x256"
    assert plan.adjusted[0].done == "1024x256"
    assert str(edited(model="sd-1.5", image=source(4000, 200), size=Size(512, 512)).plan.size) == "512x512"


def test_another_size_than_the_images_is_honoured_and_the_cut_is_told() -> None:
    plan = edited(model="sd-1.5", image=source(640, 480), size=Size(512, 510)).plan
    assert str(plan.size) == str(plan.canvas) == "512x512"
    assert [note.field for note in plan.adjusted] == ["size", "image"]


def test_an_explicit_size_outside_of_the_limits_is_refused_also_if_it_is_the_images_own() -> None:
    with pytest.raises(SizeNotAllowed):
        edited(model="sd-1.5", image=source(2000, 2000), size=Size(2000, 2000))


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
def test_a_strength_that_is_none_is_refused(strength: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        edited(model="sd-1.5", inputs={"strength": strength})
    assert caught.value.param == "strength"


def test_a_turbo_edit_has_no_more_steps_than_its_strength_leaves() -> None:
    assert value(edited(), "steps") == (2, "workflow")
    plan = edited(inputs={"steps": 20}).plan
    assert (plan.values["steps"].value, plan.adjusted[0].field, plan.adjusted[0].done) == (4, "steps", 4)
    assert value(compile_workflow(asked(inputs={"steps": 5}), CATALOGUE), "steps") == (5, "request")


def test_a_strength_without_an_image_is_listed_as_ignored() -> None:
    plan = compile_workflow(asked(model="sd-1.5", inputs={"strength": 0.5}), CATALOGUE).plan
    assert [note.field for note in plan.ignored] == ["strength"]
    assert "strength" not in plan.values


def test_only_a_variation_needs_no_prompt() -> None:
    assert edited("vary", prompt="").graphs[0].nodes["positive"]["inputs"]["text"] == ""
    with pytest.raises(PromptRequired):
        edited("edit", prompt=" ")


def test_a_task_that_the_model_has_not_is_refused_and_says_what_it_can() -> None:
    def only_generate(document: Any) -> None:
        document["models"]["sdxl-turbo"]["workflow"] = {"generate": "sdxl_turbo_simple"}

    catalogue = loaded(with_document(only_generate))
    with pytest.raises(InvalidValue, match="cannot edit; it can generate"):
        compile_workflow(asked(task="edit", source=source()), catalogue)


# --- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "steps"),
    [("low", 12), ("medium", 20), ("high", 30), ("hd", 30), ("max", 50)],
)
def test_a_quality_is_a_number_of_steps(quality: str, steps: int) -> None:
    compiled = compile_workflow(asked(model="sd-1.5", presets={"quality": quality}), CATALOGUE)
    assert value(compiled, "steps") == (steps, "preset")
    assert compiled.plan.presets == {"quality": quality}
    assert compiled.plan.ignored == ()


def test_what_the_request_gives_itself_wins_over_a_preset_which_is_then_listed() -> None:
    request = asked(model="sd-1.5", presets={"quality": "high"}, inputs={"steps": 7})
    plan = compile_workflow(request, CATALOGUE).plan
    assert plan.values["steps"].value == 7
    assert [note.field for note in plan.ignored] == ["quality"]
    assert plan.presets == {}


@pytest.mark.parametrize(("quality", "listed"), [("auto", []), ("vast", ["quality"]), ("", ["quality"])])
def test_a_quality_that_there_is_not_is_listed_and_auto_is_the_default(
    quality: str, listed: list[str]
) -> None:
    plan = compile_workflow(asked(model="sd-1.5", presets={"quality": quality}), CATALOGUE).plan
    assert [note.field for note in plan.ignored] == listed
    assert plan.values["steps"].origin == "workflow"


@pytest.mark.parametrize("task", ["generate", "edit", "inpaint"])
@pytest.mark.parametrize("model", MODELS)
def test_a_default_that_is_sent_changes_nothing(model: str, task: Task) -> None:
    image = None if task == "generate" else source(mask=task == "inpaint")
    presets = (
        {"quality": "standard"} if task == "generate" else {"quality": "standard", "input_fidelity": "low"}
    )
    said = compile_workflow(asked(model=model, task=task, source=image, presets=presets), CATALOGUE)
    unsaid = compile_workflow(asked(model=model, task=task, source=image), CATALOGUE)
    assert said.graphs == unsaid.graphs
    assert said.plan.ignored == ()


@pytest.mark.parametrize(
    ("model", "inputs", "done"),
    [
        ("flux-schnell", {"steps": 20, "cfg": 4.5}, {"steps": 8, "cfg": 1}),
        ("sdxl-turbo", {"steps": 20}, {"steps": 10}),
    ],
)
def test_a_distilled_model_takes_what_it_can_of_what_clients_of_others_send(
    model: str, inputs: dict[str, Any], done: dict[str, Any]
) -> None:
    plan = compile_workflow(asked(model=model, inputs=inputs), CATALOGUE).plan
    assert {note.field: note.done for note in plan.adjusted} == done
    assert {name: plan.values[name].value for name in done} == done
    for wrong in (0, -1, True, float("inf"), "many"):
        with pytest.raises(InvalidValue):
            compile_workflow(asked(model=model, inputs={"steps": wrong}), CATALOGUE)


def test_a_higher_fidelity_is_a_lower_strength() -> None:
    def strength(fidelity: str) -> float:
        compiled = edited(model="sd-1.5", presets={"input_fidelity": fidelity})
        return float(compiled.plan.values["strength"].value)

    assert strength("high") < strength("low") == 0.75


def test_a_models_own_numbers_win_over_its_workflows() -> None:
    def own(document: Any) -> None:
        document["models"]["sd-1.5-pruned-emaonly"]["presets"] = {"quality": {"low": {"steps": 5}}}

    catalogue = loaded(with_document(own))
    for quality, steps in (("low", 5), ("high", 30)):
        compiled = compile_workflow(asked(model="sd-1.5", presets={"quality": quality}), catalogue)
        assert compiled.plan.values["steps"].value == steps


# --- LoRAs -----------------------------------------------------------------------------------------


def two_loras(document: Any) -> None:
    document["loras"]["second"] = {
        **document["loras"]["lcm-sd-1.5"],
        "file": {"name": "second.safetensors"},
        "strength": 0.7,
    }


def test_loras_are_a_chain_in_the_order_of_the_request() -> None:
    catalogue = loaded(with_document(two_loras))
    loras = (LoraChoice("second"), LoraChoice("lcm-sd-1.5", -0.5))
    (graph,) = compile_workflow(asked(model="sd-1.5", loras=loras), catalogue).graphs
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
def test_only_a_lora_of_the_catalogue_is_taken(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"there is lcm-sd-1\.5") as caught:
        compile_workflow(asked(model="sd-1.5", loras=(LoraChoice(name),)), CATALOGUE)
    assert caught.value.param == "lora"


def test_a_lora_of_another_family_is_not_taken() -> None:
    with pytest.raises(InvalidValue, match="there is none"):
        compile_workflow(asked(model="flux-schnell", loras=(LoraChoice("lcm-sd-1.5"),)), CATALOGUE)


# --- the catalogue ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        (("workflows", "sd15_simple", "presets", "quality", "low"), {"stepz": 3}, "'stepz' is not an input"),
        (("workflows", "sd15_simple", "presets", "quality", "low"), {"steps": 300}, "300 is not allowed"),
        (("models", "sdxl-turbo", "presets"), {"quality": {"low": {"steps": 99}}}, "99 is not allowed"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"moon": 1}, "then": {"minimum": 2}}], "'moon'"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"schedule": "gits"}, "then": {"default": 2}}], "only depend on the task"),
        (("workflows", "sd15_simple", "inputs", "steps", "x-when"), [{"if": {"task": "edit"}, "then": {"default": 99}}], "99 is not allowed"),
        (("workflows", "sd15_simple", "inputs", "cfg"), {"type": "number", "default": 1.0, "x-takes-more": True}, "needs a maximum"),
        (("loras", "lcm-sd-1.5", "families"), ["SD 9"], "no model is of the family 'SD 9'"),
        (("loras", "lcm-sd-1.5", "file", "name"), "../x", "is not allowed"),
        (("models", "sdxl-turbo", "workflow"), {"upscale": "sdxl_turbo_simple"}, "it must be one of generate, edit"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_new_parts_is_named_with_its_place(
    path: tuple[str, ...], given: Any, words: str
) -> None:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = given

    with pytest.raises(CatalogueInvalid) as caught:
        parse_catalogue(with_document(change))
    assert words in caught.value.message
    assert path[1] in caught.value.message


def test_files_of_loras_are_among_the_catalogues_files() -> None:
    assert CATALOGUE.files["loras"] == ["lcm-lora-sdv1-5.safetensors"]
    assert replace(CATALOGUE, loras={}).files.get("loras") is None
