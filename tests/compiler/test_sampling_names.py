"""Names of samplers and schedules, as clients of other servers spell them."""

from __future__ import annotations

from typing import Any

import pytest

from compiler import compile_workflow
from compiler.sampling_names import squeezed
from errors import InvalidValue
from tests.compiler.catalogues import CATALOGUE, image_request

INPUTS = CATALOGUE.models["sd-1.5-pruned-emaonly"].workflows["generate"]
RULES = CATALOGUE.workflows[INPUTS].inputs_for("generate")
SAMPLERS: tuple[str, ...] = tuple(RULES["sampler"].schema["enum"])
SCHEDULES: tuple[str, ...] = tuple(RULES["schedule"].schema["enum"])

A1111_SAMPLERS = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun",
    "DPM++ 2S a": "dpmpp_2s_ancestral",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "DPM fast": "dpm_fast",
    "DPM adaptive": "dpm_adaptive",
    "DDIM": "ddim",
    "DDIM CFG++": "euler_cfg_pp",
    "PLMS": "ipndm",
    "UniPC": "uni_pc",
    "LCM": "lcm",
    "k_euler_a": "euler_ancestral",
    "k_dpmpp_2m": "dpmpp_2m",
    "euler ancestral": "euler_ancestral",
}
A1111_SCHEDULES = {
    "Automatic": "normal",
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "ays",
    "Align Your Steps GITS": "gits",
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "ddim_uniform",
    "Beta": "beta",
}


def sampling(inputs: dict[str, Any], model: str = "sd-1.5") -> tuple[Any, Any]:
    values = compile_workflow(image_request(model=model, inputs=inputs), CATALOGUE).plan.values
    return values["sampler"].value, values["schedule"].value if "schedule" in values else None


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_engine_keeps_its_name_and_takes_every_schedule_behind_it(name: str) -> None:
    assert sampling({"sampler": name}) == (name, "normal")
    assert sampling({"sampler": name.upper()}) == (name, "normal")
    for schedule in SCHEDULES:
        if name + squeezed(schedule) not in SAMPLERS:
            assert sampling({"sampler": f"{name} {schedule}"}) == (name, schedule)


def test_no_two_names_of_the_engine_are_the_same_without_punctuation() -> None:
    for names in (SAMPLERS, SCHEDULES):
        assert len({squeezed(name) for name in names}) == len(names)


def test_every_entry_of_the_table_is_a_name_of_the_engine() -> None:
    for kind, choices in (("sampler", SAMPLERS), ("schedule", SCHEDULES)):
        for mapping in CATALOGUE.sampling_names[kind].values():
            assert mapping.name is None or mapping.name in choices
            assert mapping.exact == (not mapping.why)


@pytest.mark.parametrize(("name", "sampler"), A1111_SAMPLERS.items())
def test_a1111s_samplers_are_understood_alone_and_with_every_schedule_behind_them(
    name: str, sampler: str
) -> None:
    assert sampling({"sampler": name}) == (sampler, "normal")
    for suffix, schedule in A1111_SCHEDULES.items():
        assert sampling({"sampler": f"{name} {suffix}"}) == (sampler, schedule)


@pytest.mark.parametrize(("name", "schedule"), A1111_SCHEDULES.items())
def test_a1111s_schedules_are_understood(name: str, schedule: str) -> None:
    assert sampling({"schedule": name}) == ("euler", schedule)


def test_the_same_schedule_may_be_given_twice_and_another_one_is_refused() -> None:
    assert sampling({"sampler": "DPM++ 2M Karras", "schedule": "karras"}) == ("dpmpp_2m", "karras")
    assert sampling({"sampler": "k_dpmpp_2m_ka"}) == ("dpmpp_2m", "karras")
    assert sampling({"sampler": "DPM++ 2M Karras", "schedule": "Automatic"}) == ("dpmpp_2m", "karras")
    with pytest.raises(InvalidValue, match=r"DPM\+\+ 2M Karras.*simple") as caught:
        sampling({"sampler": "DPM++ 2M Karras", "schedule": "simple"})
    assert caught.value.param == "schedule"


@pytest.mark.parametrize(
    "name", ["", "Karras", "Restart", "DPM++", "DPM++ 2M Nope", "k_", "x" * 10_000, "+" * 200]
)
def test_an_unknown_sampler_is_refused_with_the_known_ones(name: str) -> None:
    if not name:
        assert sampling({"sampler": None}) == ("euler", "normal")
        return
    with pytest.raises(InvalidValue) as caught:
        sampling({"sampler": name})
    assert caught.value.param == "sampler"
    assert "euler" in caught.value.message


def test_a_schedule_behind_the_sampler_of_a_model_without_schedules_is_listed_as_ignored() -> None:
    plan = compile_workflow(image_request(inputs={"sampler": "DPM++ 2M Karras"}), CATALOGUE).plan
    assert plan.values["sampler"].value == "dpmpp_2m"
    assert [(note.field, note.asked) for note in plan.ignored] == [("schedule", "Karras")]
