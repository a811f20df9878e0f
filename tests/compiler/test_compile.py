"""The plan and the graphs that a request compiles to."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import MAX_SEED, Shape, Size, compile_workflow, find_errors
from compiler.openai_names import OPENAI_SIZES
from compiler.size import size_error
from errors import InvalidValue, ModelNotCurated, PromptRequired, SizeNotAllowed
from tests.compiler.catalogues import CATALOGUE, image_request

PROMPTS = [
    'quotes " and \' and \\ and \\"',
    "braces {{ 7*7 }} {% raw %} {# no #} ,} ]",
    "lines\nand\ttabs\r\n\0",
    "猫 🐈 \u2028\u2029",
    '"}}, "evil": {"class_type": "LoadImage", "inputs": {"image": "/etc/passwd"}',
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("model", list(CATALOGUE.models))
def test_a_prompt_stays_text_whatever_it_contains(model: str, prompt: str) -> None:
    (graph,) = compile_workflow(image_request(prompt, model=model), CATALOGUE).graphs
    assert graph.nodes["positive"]["inputs"]["text"] == prompt
    assert "evil" not in graph.nodes


@pytest.mark.parametrize("model", list(CATALOGUE.models))
def test_every_model_draws_1024x1024(model: str) -> None:
    plan = compile_workflow(image_request(model=model, size=Size(1024, 1024)), CATALOGUE).plan
    assert plan.size == Size(1024, 1024)
    assert plan.adjusted == ()


def test_a_plain_sdxl_checkpoint_draws_with_25_steps_and_cfg_7_and_its_own_table() -> None:
    (graph,) = compile_workflow(image_request(model="sdxl-base-1.0"), CATALOGUE).graphs
    sampler = graph.nodes["sampler"]["inputs"]
    assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (25, 7.0, 1.0)
    assert graph.nodes["latent"]["inputs"]["width"] == 1024
    request = image_request(model="sdxl-base", inputs={"schedule": "ays"})
    (graph,) = compile_workflow(request, CATALOGUE).graphs
    assert graph.nodes["sigmas"]["inputs"] == {"model_type": "SDXL", "steps": 25, "denoise": 1.0}


def test_sdxl_turbo_uses_its_own_schedule_with_one_step_by_default() -> None:
    (graph,) = compile_workflow(image_request(model="sdxl-turbo"), CATALOGUE).graphs
    assert graph.nodes["sigmas"] == {
        "class_type": "SDTurboScheduler",
        "inputs": {"model": ["checkpoint", 0], "steps": 1, "denoise": 1.0},
    }
    assert graph.nodes["sampler"]["inputs"]["cfg"] == 1.0
    (graph,) = compile_workflow(image_request(model="sdxl-turbo", inputs={"steps": 4}), CATALOGUE).graphs
    assert graph.nodes["sigmas"]["inputs"]["steps"] == 4


def test_flux_has_its_own_graph() -> None:
    (graph,) = compile_workflow(image_request(model="flux-schnell"), CATALOGUE).graphs
    assert {"UNETLoader", "DualCLIPLoader", "VAELoader", "ConditioningZeroOut"} <= graph.classes
    assert "CheckpointLoaderSimple" not in graph.classes


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("", "sdxl-turbo"),
        ("  ", "sdxl-turbo"),
        ("img", "sdxl-turbo"),
        ("dall-e-3", "sdxl-turbo"),
        ("gpt-image-1", "sdxl-turbo"),
        ("ChatGPT-image-latest", "sdxl-turbo"),
        ("SDXL_Turbo", "sdxl-turbo"),
        ("stabilityai/sdxl-turbo", "sdxl-turbo"),
        ("black-forest-labs/flux.1-SCHNELL", "flux-schnell"),
        ("Flux-Schnell-FP8", "flux-schnell-fp8"),
    ],
)
def test_a_model_is_found_by_the_names_that_clients_use(name: str, model: str) -> None:
    assert CATALOGUE.find(name).id == model


@pytest.mark.parametrize("name", ["nope", "SD3", "dall", "gpt-4"])
def test_an_unknown_model_is_refused_with_a_list_of_the_known_ones(name: str) -> None:
    with pytest.raises(ModelNotCurated) as caught:
        compile_workflow(image_request(model=name), CATALOGUE)
    assert caught.value.details["models"] == list(CATALOGUE.models)


# --- values ----------------------------------------------------------------------------------------


def test_each_value_has_its_origin() -> None:
    plan = compile_workflow(image_request(model="sd-1.5", inputs={"steps": 3}), CATALOGUE).plan
    origins = {name: planned.origin for name, planned in plan.values.items()}
    assert origins["steps"] == "request"
    assert origins["cfg"] == "workflow"
    assert origins["width"] == "model"


@pytest.mark.parametrize(
    ("inputs", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 51}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": "4"}, "steps"),
        ({"cfg": -1}, "cfg"),
        ({"cfg": 101}, "cfg"),
        ({"sampler": "nope"}, "sampler"),
        ({"schedule": "tcd"}, "schedule"),
        ({"schedule": "gits", "steps": 1}, "steps"),
        ({"negative_prompt": 5}, "negative_prompt"),
        ({"negative_prompt": "\ud800"}, "negative_prompt"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_its_param(inputs: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        compile_workflow(image_request(model="sd-1.5", inputs=inputs), CATALOGUE)
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_blank_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(PromptRequired):
        compile_workflow(image_request(prompt), CATALOGUE)


@pytest.mark.parametrize("prompt", ["x" * 32_001, "half a pair \udc00"])
def test_a_prompt_that_is_too_long_or_not_valid_unicode_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidValue, match="prompt"):
        compile_workflow(image_request(prompt), CATALOGUE)


@pytest.mark.parametrize(
    ("name", "value", "used", "exact"),
    [
        ("sampler", "euler_a", "euler_ancestral", True),
        ("sampler", "Euler_A", "euler_ancestral", True),
        ("sampler", "dpm++2m", "dpmpp_2m", True),
        ("sampler", "dpm++2mv2", "dpmpp_2m", False),
        ("sampler", "dpm2", "dpm_2", False),
        ("sampler", "default", "euler", True),
        ("schedule", "discrete", "normal", True),
        ("schedule", "KARRAS", "karras", True),
    ],
)
def test_other_servers_names_are_mapped_and_inexact_mappings_are_listed(
    name: str, value: str, used: str, exact: bool
) -> None:
    plan = compile_workflow(image_request(model="sd-1.5", inputs={name: value}), CATALOGUE).plan
    assert plan.values[name].value == used
    assert [note.field for note in plan.adjusted] == ([] if exact else [name])


@pytest.mark.parametrize(
    ("model", "inputs", "ignored"),
    [
        ("sdxl-turbo", {"negative_prompt": "fog"}, ["negative_prompt"]),
        ("sdxl-turbo", {"negative_prompt": "fog", "cfg": 2.0}, []),
        ("sd-1.5", {"negative_prompt": "fog"}, []),
        ("sd-1.5", {"negative_prompt": "fog", "cfg": 1}, ["negative_prompt"]),
        ("flux-schnell", {"negative_prompt": "fog"}, ["negative_prompt"]),
        ("flux-schnell", {"negative_prompt": ""}, []),
        ("sdxl-turbo", {"schedule": "karras"}, ["schedule"]),
    ],
)
def test_an_input_that_has_no_effect_is_listed_as_ignored(
    model: str, inputs: dict[str, Any], ignored: list[str]
) -> None:
    plan = compile_workflow(image_request(model=model, inputs=inputs), CATALOGUE).plan
    assert [note.field for note in plan.ignored] == ignored


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size", "drawn"),
    [
        ("sd-1.5", "512x512", "512x512"),
        ("sd-1.5", "513x509", "512x512"),
        ("sd-1.5", "1020x1021", "1024x1024"),
        ("sd-1.5", "257x256", "256x256"),
        ("flux-schnell", "1000x1000", "1008x1008"),
        ("flux-schnell", "2048x1024", "2048x1024"),
        ("flux-schnell", "2047x1024", "2048x1024"),
        ("flux-schnell", "1448x1448", "1440x1440"),
    ],
)
def test_a_size_is_rounded_to_the_multiple_within_the_limits_and_listed(
    model: str, size: str, drawn: str
) -> None:
    plan = compile_workflow(image_request(model=model, size=Size.parse(size)), CATALOGUE).plan
    assert str(plan.size) == drawn
    assert [note.done for note in plan.adjusted] == ([] if size == drawn else [drawn])


@pytest.mark.parametrize(
    ("model", "size"),
    [("sd-1.5", "255x512"), ("sd-1.5", "512x1025"), ("flux-schnell", "2048x2000"), ("sd-1.5", "0x0")],
)
def test_a_size_outside_the_limits_is_refused_with_the_limits_and_the_nearest_size(
    model: str, size: str
) -> None:
    with pytest.raises(SizeNotAllowed) as caught:
        compile_workflow(image_request(model=model, size=Size.parse(size)), CATALOGUE)
    rule, nearest = CATALOGUE.find(model).size, caught.value.details["nearest"]
    assert caught.value.details["max"] == str(rule.max)
    assert nearest in caught.value.message
    plan = compile_workflow(image_request(model=model, size=Size.parse(nearest)), CATALOGUE).plan
    assert (str(plan.size), plan.adjusted) == (nearest, ())


@pytest.mark.parametrize(
    "model", ["gpt-image-1", "dall-e-3", "chatgpt-image-latest", "img", "", "openai/gpt-image-2"]
)
@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ("1536x1024", "1024x680"),
        ("1024x1536", "680x1024"),
        ("1792x1024", "1024x584"),
        ("2048x1152", "1024x576"),
        ("3840x2160", "1024x576"),
        ("200x500", "256x640"),
        ("64x64", "256x256"),
        ("2000x1000", "1024x512"),
    ],
)
def test_without_a_model_of_ours_every_size_is_fitted_in_its_shape_and_listed(
    model: str, size: str, drawn: str
) -> None:
    plan = compile_workflow(image_request(model=model, size=Size.parse(size)), CATALOGUE).plan
    assert str(plan.size) == drawn
    (note,) = plan.adjusted
    assert (note.field, note.asked, note.done) == ("size", size, drawn)


@pytest.mark.parametrize("model", list(CATALOGUE.models))
@pytest.mark.parametrize("size", sorted(OPENAI_SIZES))
def test_every_model_draws_every_size_of_openai_in_its_shape(model: str, size: Size) -> None:
    plan = compile_workflow(image_request(model=model, size=size), CATALOGUE).plan
    rule = CATALOGUE.find(model).size
    assert plan.size.ratio == pytest.approx(size.ratio, rel=0.02)
    assert plan.size.width % rule.multiple_of == plan.size.height % rule.multiple_of == 0
    if size_error(size, rule) is None:
        assert (plan.size, plan.adjusted) == (size, ())
    else:
        # No size of this shape that is a step larger would be allowed.
        larger = Size(plan.size.width + 2 * rule.multiple_of, plan.size.height + 2 * rule.multiple_of)
        assert plan.size.pixels < size.pixels
        assert size_error(larger, rule) is not None


@pytest.mark.parametrize(
    ("size", "nearest"),
    [("3800x100", "1024x256"), ("64x3000", "256x1024"), ("4096x4096", "1024x1024"), ("10x10", "256x256")],
)
def test_sizes_of_another_shape_and_absurd_ones_are_refused_even_without_a_model(
    size: str, nearest: str
) -> None:
    with pytest.raises(SizeNotAllowed) as caught:
        compile_workflow(image_request(size=Size.parse(size)), CATALOGUE)
    assert caught.value.details["nearest"] == nearest


@pytest.mark.parametrize(
    ("model", "ratio", "pixels", "drawn", "noted"),
    [
        ("sdxl-turbo", 16 / 9, None, "680x384", False),
        ("flux-schnell", 16 / 9, None, "1360x768", False),
        ("flux-schnell", 16 / 9, 1024 * 1024, "1360x768", False),
        ("flux-schnell", None, 2048 * 2048, "1440x1440", True),
        ("sdxl-turbo", 16 / 9, 1024 * 1024, "1024x576", True),
        ("sdxl-turbo", None, 512 * 512, "512x512", False),
    ],
)
def test_a_shape_is_drawn_with_the_area_that_was_asked_for_or_the_models_default(
    model: str, ratio: float | None, pixels: int | None, drawn: str, noted: bool
) -> None:
    shape = Shape(ratio, pixels, "image_size", "text")
    plan = compile_workflow(image_request(model=model, shape=shape), CATALOGUE).plan
    assert str(plan.size) == drawn
    assert [note.done for note in plan.adjusted] == ([drawn] if noted else [])


def test_an_aspect_ratio_that_the_model_cannot_draw_is_refused() -> None:
    with pytest.raises(SizeNotAllowed) as caught:
        compile_workflow(image_request(shape=Shape(8.0, None, "aspect_ratio", "8:1")), CATALOGUE)
    assert (caught.value.param, caught.value.details["nearest"]) == ("aspect_ratio", "1024x256")


@pytest.mark.parametrize(
    "text", ["banana", "", "512", "512x", "-1x5", "5.5x5", "512x512x3", "٥x٥", "100000x1"]
)
def test_a_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)


# --- jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "batches", "seeds"),
    [(1, [1], [7]), (4, [4], [7]), (5, [4, 1], [7, 11]), (10, [4, 4, 2], [7, 11, 15])],
)
def test_an_n_larger_than_the_batch_is_split_into_jobs_with_different_seeds(
    n: int, batches: list[int], seeds: list[int]
) -> None:
    compiled = compile_workflow(image_request(n=n), CATALOGUE)
    assert [job.batch for job in compiled.plan.jobs] == batches
    assert [graph.nodes["sampler"]["inputs"]["noise_seed"] for graph in compiled.graphs] == seeds
    prefixes = [graph.nodes["picture"]["inputs"]["filename_prefix"] for graph in compiled.graphs]
    assert len(set(prefixes)) == len(prefixes)


def test_seeds_wrap_around_after_the_largest() -> None:
    compiled = compile_workflow(image_request(n=5, seed=MAX_SEED), CATALOGUE)
    assert [job.seed for job in compiled.plan.jobs] == [MAX_SEED, 3]


@pytest.mark.parametrize(("field", "value"), [("n", 0), ("n", 11), ("seed", -1), ("seed", MAX_SEED + 1)])
def test_numbers_outside_their_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(InvalidValue) as caught:
        compile_workflow(image_request(**{field: value}), CATALOGUE)
    assert caught.value.param == field


# --- the whole catalogue ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", list(CATALOGUE.models))
def test_the_graphs_of_every_model_have_no_errors(model: str) -> None:
    for graph in compile_workflow(image_request(model=model, n=3), CATALOGUE).graphs:
        assert list(find_errors(graph.nodes, CATALOGUE.signatures, graph.template)) == []


@pytest.mark.parametrize("model", list(CATALOGUE.models.values()), ids=lambda model: model.id)
def test_every_file_of_a_model_has_a_url_and_a_checksum(model: Any) -> None:
    for file in model.files.values():
        assert file.url.startswith("https://")
        assert len(file.sha256) == 64
    assert model.disk_gb == pytest.approx(sum(file.size for file in model.files.values()) / 1e9, abs=0.01)
