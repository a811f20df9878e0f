"""The shipped catalogue: its graphs, names, files and proofs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from commands.proofs import shipped_proofs
from compiler import (
    ImageRequest,
    InputPicture,
    Size,
    SourceImage,
    SourcePaths,
    compile_workflow,
    load_catalogue,
    read_sources,
)
from compiler.catalogue import Model
from compiler.values import Task
from compiler.versions import is_at_least
from schemas import read_yaml

ROOT = Path(__file__).resolve().parents[2]
PATHS = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
CATALOGUE = load_catalogue(read_sources(PATHS))
DOCUMENT = read_yaml((ROOT / "catalogue.yaml").read_text("utf-8"), repeated_sections=True)
GOLDENS = ROOT / "tests" / "goldens"
PROMPTS = [
    'quotes " and \' and \\ and \\"',
    "braces {{ 7*7 }} {% raw %} {# no #} ,} ]",
    '"}}, "evil": {"class_type": "LoadImage", "inputs": {"image": "/etc/passwd"}',
]


def request_for(
    model: Model, task: Task, prompt: str = 'a "cat" in a {{ hat }}', **fields: Any
) -> ImageRequest:
    """With as many images as the model takes, and those that are inputs of its workflow."""
    images = CATALOGUE.workflows[model.workflows[task]].images.max
    others = tuple(f"easel/{number}.png [temp]" for number in range(2, images + 1))
    mask = "easel/mask.png [temp]" if task == "inpaint" else None
    source = SourceImage(Size(500, 333), "easel/1.png [temp]", mask, others)
    return ImageRequest(
        prompt="" if task == "vary" else prompt,
        seed=7,
        id="test",
        model=model.id,
        task=task,
        source=None if task == "generate" else source,
        input_images={
            name: InputPicture(Size(500, 333), f"easel/{name}.png [temp]")
            for name in CATALOGUE.image_inputs(model, task)
        },
        **fields,
    )


@pytest.mark.parametrize("workflow", list(CATALOGUE.workflows))
def test_the_graphs_of_a_workflow_are_the_golden_ones(workflow: str) -> None:
    """For the first model that has it, one graph for each task."""
    model = next(each for each in CATALOGUE.models.values() if workflow in each.workflows.values())
    inputs = {"negative_prompt": "rain"}
    graphs = {
        task: compile_workflow(request_for(model, task, inputs=inputs), CATALOGUE).graphs[0].nodes
        for task, name in model.workflows.items()
        if name == workflow
    }
    golden = GOLDENS / f"{workflow}.json"
    text = json.dumps(graphs, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("EASEL_TEST_WRITE_GOLDENS"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_every_golden_file_is_that_of_a_workflow() -> None:
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(CATALOGUE.workflows)


def test_the_readme_says_how_many_models_there_are() -> None:
    assert f"[{len(CATALOGUE.models)} models](docs/models.md)" in (ROOT / "README.md").read_text("utf-8")


def test_every_model_can_draw_each_of_its_tasks() -> None:
    assert CATALOGUE.undrawable == {}


def test_a_model_is_unverified_exactly_if_it_needs_a_version_newer_than_all_recorded_ones() -> None:
    recorded = CATALOGUE.nodes["versions"]
    newer = {
        model.id
        for model in CATALOGUE.models.values()
        if (needed := CATALOGUE.needed_version(model)) and not any(is_at_least(v, needed) for v in recorded)
    }
    assert newer == {model.id for model in CATALOGUE.models.values() if CATALOGUE.unverified(model)}
    assert "qwen-image-2.1" in newer


def test_the_kept_proofs_are_those_that_the_proof_makes() -> None:
    """After a change of catalogue.yaml, a template, schemas/ or compiler/: flask write-proofs."""
    assert (ROOT / "schemas" / "proofs.json").read_text("utf-8") == shipped_proofs(PATHS)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "model", [each for each in CATALOGUE.models.values() if "generate" in each.workflows]
)
def test_a_prompt_stays_text_whatever_it_contains(model: Model, prompt: str) -> None:
    (graph,) = compile_workflow(request_for(model, "generate", prompt), CATALOGUE).graphs
    texts = [node["inputs"].get(name) for node in graph.nodes.values() for name in ("text", "prompt")]
    assert any(prompt in str(text) for text in texts)
    assert "evil" not in graph.nodes


@pytest.mark.parametrize(
    "model", [each for each in CATALOGUE.models.values() if "generate" in each.workflows]
)
def test_every_model_draws_the_size_that_most_clients_send(model: Model) -> None:
    plan = compile_workflow(request_for(model, "generate", size=Size(1024, 1024)), CATALOGUE).plan
    assert plan.size == Size(1024, 1024)
    # The control image of the request has another shape.
    assert [note.field for note in plan.adjusted if note.field != "control_image"] == []


def test_every_file_and_licence_under_a_name_is_used() -> None:
    models = DOCUMENT["models"].values()
    assert set(DOCUMENT["files"]) == {name for model in models for name in model["files"].values()}
    assert set(DOCUMENT["licences"]) == {entry["licence"] for entry in (*models, *DOCUMENT["loras"].values())}


def test_a_file_has_one_name_only() -> None:
    places = [(file["folder"], file["name"]) for file in DOCUMENT["files"].values()]
    assert len(places) == len(set(places))


GPUSTACK_MODELS = [
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3-medium",
    "TencentARC/FLUX.1-mini",
    "Freepik/FLUX.1-lite",
    "black-forest-labs/FLUX.1-dev",
    "black-forest-labs/FLUX.1-schnell",
    "stabilityai/sdxl-turbo",
    "stabilityai/stable-diffusion-xl-refiner-1.0",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/sd-turbo",
    "stabilityai/stable-diffusion-2-1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
]
GPUSTACK_SAMPLERS = [
    *("euler_a", "euler", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2"),
    *("ipndm", "ipndm_v", "lcm", "ddim_trailing", "tcd"),
]
GPUSTACK_SCHEDULES = ["default", "discrete", "karras", "exponential", "ays", "gits"]


@pytest.mark.parametrize("name", GPUSTACK_MODELS)
def test_a_model_of_gpustack_takes_each_of_its_samplers_and_schedules(name: str) -> None:
    model = CATALOGUE.find(name)
    for field, values in (("sampler", GPUSTACK_SAMPLERS), ("schedule", GPUSTACK_SCHEDULES)):
        for value in values:
            plan = compile_workflow(
                request_for(model, "generate", inputs={field: value, "steps": 10}), CATALOGUE
            ).plan
            assert plan.model == model.id


@pytest.mark.parametrize("name", ["sdxl_turbo", "sdxl", "SD3", "playv2", "flux"])
def test_the_models_of_h2ogpt_are_known_by_its_names(name: str) -> None:
    assert CATALOGUE.find(name).id in CATALOGUE.models
