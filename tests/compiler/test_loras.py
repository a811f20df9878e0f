"""LoRA tags in prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compiler import Catalogue, LoraChoice, Plan, compile_workflow, load_catalogue
from errors import CatalogueInvalid, InvalidValue, PromptRequired
from tests.compiler.catalogues import CATALOGUE, SOURCES, image_request, with_document


def two_loras(document: dict[str, Any]) -> None:
    document["loras"]["ink"] = {
        **document["loras"]["lcm-sd-1.5"],
        "file": {"name": "styles/Ink_v2.safetensors"},
    }
    document["loras"]["ink"]["strength"] = 0.6


TWO = load_catalogue(with_document(two_loras, SOURCES))


def plan(prompt: str, catalogue: Catalogue = TWO, model: str = "sd-1.5", **fields: Any) -> Plan:
    return compile_workflow(image_request(prompt, model=model, **fields), catalogue).plan


def loras(compiled: Plan) -> list[tuple[str, float]]:
    return [(lora["id"], lora["strength"]) for lora in compiled.values["loras"].value]


@pytest.mark.parametrize(
    ("prompt", "text", "applied"),
    [
        ("a castle <lora:lcm-sd-1.5:0.8>", "a castle", [("lcm-sd-1.5", 0.8)]),
        ("a castle <lora:lcm-sd-1.5>", "a castle", [("lcm-sd-1.5", 1.0)]),
        ("<lora:ink>, a castle", "a castle", [("ink", 1.0)]),
        ("a castle, <lora:ink:-0.5>, at night", "a castle, at night", [("ink", -0.5)]),
        (
            "a <LoRA:INK:1:1> castle<lora:lcm-lora-sdv1-5:.25>",
            "a castle",
            [("ink", 1.0), ("lcm-sd-1.5", 0.25)],
        ),
        ("a castle <lora:ink_v2.safetensors:2>", "a castle", [("ink", 2.0)]),
        ("a castle <lyco:styles\\ink_v2:1e0>", "a castle", [("ink", 1.0)]),
        ("a < b > c, <lora>", "a < b > c, <lora>", []),
    ],
)
def test_a_tag_applies_the_lora_and_is_removed_from_the_text_and_listed(
    prompt: str, text: str, applied: list[tuple[str, float]]
) -> None:
    compiled = compile_workflow(image_request(prompt, model="sd-1.5"), TWO)
    assert compiled.plan.values["prompt"].value == text
    assert compiled.graphs[0].nodes["positive"]["inputs"]["text"] == text
    assert loras(compiled.plan) == applied
    assert sum("LoraLoader" in node["class_type"] for node in compiled.graphs[0].nodes.values()) == len(
        applied
    )
    assert [note.field for note in compiled.plan.adjusted] == ["prompt"] * len(applied)


def test_tags_and_the_field_combine() -> None:
    both = plan("a castle <lora:lcm-sd-1.5:0.8>", loras=(LoraChoice("ink"),))
    assert loras(both) == [("ink", 0.6), ("lcm-sd-1.5", 0.8)]


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "message"),
    [
        ("a <lora:nope:1>", {}, "prompt", "available: lcm-sd-1.5, ink"),
        ("a <lora:ink:1>", {"model": "flux-schnell"}, "prompt", "available: none"),
        ("a <lora:ink:strong>", {}, "prompt", "<lora:NAME:0.8>"),
        ("a <lora:ink:0.5:1>", {}, "prompt", "one number"),
        ("a <lora:ink:5>", {}, "prompt", "-4 to 4"),
        ("a <lora:ink:nan>", {}, "prompt", "one number"),
        ("a <lora::1>", {}, "prompt", "<lora:NAME:STRENGTH>"),
        ("a <lora:ink><lora:ink_v2>", {}, "prompt", "given twice"),
        ("a <lora:ink>", {"loras": (LoraChoice("ink"),)}, "prompt", "given twice"),
        ("a", {"loras": (LoraChoice("ink"), LoraChoice("ink"))}, "lora", "given twice"),
        ("a <hypernet:ink:1>", {}, "prompt", "hypernetworks"),
        ("a", {"inputs": {"negative_prompt": "b <lora:ink:1>"}}, "negative_prompt", "into `prompt`"),
    ],
)
def test_a_tag_that_cannot_be_applied_is_refused(
    prompt: str, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        plan(prompt, **fields)
    assert caught.value.param == param
    assert message in caught.value.message


def test_a_prompt_of_tags_only_is_blank() -> None:
    with pytest.raises(PromptRequired):
        plan("<lora:ink:1>, ")


def test_a_million_spaces_beside_a_tag_are_read_once() -> None:
    spaces = " " * 1_000_000
    with pytest.raises(InvalidValue, match="1000002 characters"):
        plan(f"a{spaces}b<lora:ink:1>")


def test_the_setting_refuses_tags_or_draws_them_as_text() -> None:
    with pytest.raises(InvalidValue, match=r"images\.lora_tags"):
        plan("a <lora:ink:1>", replace(TWO, lora_tags="refuse"))
    assert loras(plan("a", replace(TWO, lora_tags="refuse"), loras=(LoraChoice("ink"),))) == [("ink", 0.6)]
    drawn = plan("a <lora:nope:1>", replace(TWO, lora_tags="text"))
    assert drawn.values["prompt"].value == "a <lora:nope:1>"
    assert [(note.field, note.asked) for note in drawn.ignored] == [("prompt", "<lora:nope:1>")]


def test_a_prompt_without_tags_is_not_changed() -> None:
    prompt = " , a, , castle,\n<b> <lora >, "
    assert plan(prompt, CATALOGUE).values["prompt"].value == prompt


# --- what a LoRA sets -------------------------------------------------------------------------------


def distilled(document: dict[str, Any]) -> None:
    two_loras(document)
    document["loras"]["lcm-sd-1.5"]["defaults"] = {"steps": 4, "cfg": 1.0, "sampler": "lcm"}
    document["loras"]["ink"]["defaults"] = {"cfg": 3.0}


DISTILLED = load_catalogue(with_document(distilled, SOURCES))
LCM = (LoraChoice("lcm-sd-1.5"),)


def test_a_lora_sets_the_inputs_that_the_request_does_not_set() -> None:
    planned = plan("a cat", DISTILLED, loras=LCM, inputs={"cfg": 1.5}).values
    values = {
        name: (planned[name].value, planned[name].origin) for name in ("steps", "cfg", "sampler", "schedule")
    }
    assert values == {
        "steps": (4, "lora"),
        "cfg": (1.5, "request"),
        "sampler": ("lcm", "lora"),
        "schedule": ("normal", "workflow"),
    }
    assert plan("a cat", DISTILLED).values["steps"].value == 20


def test_a_tag_in_the_prompt_sets_them_too() -> None:
    compiled = compile_workflow(image_request("a cat <lora:lcm-sd-1.5:0.7>", model="sd-1.5"), DISTILLED)
    sampler = compiled.graphs[0].nodes["sampler"]["inputs"]
    assert (sampler["steps"], sampler["cfg"], sampler["sampler_name"]) == (4, 1.0, "lcm")


def test_a_lora_wins_over_a_preset_and_that_is_listed() -> None:
    planned = plan("a cat", DISTILLED, loras=LCM, presets={"quality": "high"})
    assert planned.values["steps"].value == 4
    assert [note.field for note in planned.ignored] == ["quality"]


def test_a_lora_that_is_off_sets_nothing() -> None:
    off = LoraChoice("lcm-sd-1.5", 0)
    planned = plan("a cat", DISTILLED, loras=(off,), presets={"quality": "high"})
    assert (planned.values["steps"].origin, planned.values["sampler"].value) == ("preset", "euler")
    assert planned.ignored == ()
    assert plan("a cat", DISTILLED, loras=(off, LoraChoice("ink"))).values["cfg"].value == 3.0


def test_two_loras_that_differ_are_refused_unless_the_request_decides() -> None:
    both = (*LCM, LoraChoice("ink"))
    with pytest.raises(
        InvalidValue, match=r"'lcm-sd-1.5' is made for `cfg` 1.0 and 'ink' for 3.0; send `cfg`"
    ) as caught:
        plan("a cat", DISTILLED, loras=both)
    assert caught.value.param == "cfg"
    assert plan("a cat", DISTILLED, loras=both, inputs={"cfg": 2.0}).values["steps"].value == 4


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({"steps": 0}, "defaults.steps: 0 is not allowed"),
        ({"stesp": 4}, "no model of its families has an input 'stesp' (did you mean steps?)"),
    ],
)
def test_what_no_model_of_its_families_allows_is_an_error_of_the_catalogue(
    defaults: dict[str, Any], text: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["loras"]["lcm-sd-1.5"]["defaults"] = defaults

    with pytest.raises(CatalogueInvalid) as caught:
        load_catalogue(with_document(change, SOURCES))
    assert text in caught.value.message


def test_a_model_that_does_not_allow_the_value_says_what_to_send() -> None:
    def change(document: dict[str, Any]) -> None:
        distilled(document)
        document["workflows"]["slow"] = {
            **document["workflows"]["sd15_simple"],
            "template": "sd15_simple.json.j2",
        }
        document["workflows"]["slow"]["inputs"] = {
            **document["workflows"]["slow"]["inputs"],
            "steps": {"type": "integer", "minimum": 10, "maximum": 50, "default": 20},
        }
        document["workflows"]["slow"].pop("presets", None)
        document["models"]["slow"] = {
            **document["models"]["sd-1.5-pruned-emaonly"],
            "workflow": "slow",
            "aliases": [],
        }

    catalogue = load_catalogue(with_document(change, SOURCES))
    with pytest.raises(InvalidValue, match="made for `steps` 4, which slow does not allow") as caught:
        plan("a cat", catalogue, "slow", loras=LCM)
    assert caught.value.param == "steps"
    assert plan("a cat", catalogue, "slow", loras=LCM, inputs={"steps": 12}).values["cfg"].value == 1.0


def test_the_file_of_a_lora_may_be_named() -> None:
    def change(document: dict[str, Any]) -> None:
        document["files"] = {"ink": {"name": "ink.safetensors", "folder": "loras"}}
        document["loras"]["lcm-sd-1.5"]["file"] = "ink"

    assert load_catalogue(with_document(change, SOURCES)).loras["lcm-sd-1.5"].file.name == "ink.safetensors"
