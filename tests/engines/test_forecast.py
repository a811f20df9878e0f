"""When an engine could begin a job, and which models are loaded then."""

from __future__ import annotations

import pytest

from engines.forecast import DEFAULT_RENDER_S, JobCosts, forecast, keeps_loaded
from engines.measured_costs import Cost, Costs, EndedJob

GB = 10**9
SIZES = {"flux": 24 * GB, "sdxl": 8 * GB, "sd": 4 * GB}


def need(model: str) -> int:
    return SIZES.get(model, 0)


def costs_of(measured: Costs, weight: float = 1.0, *others: tuple[float, Costs]) -> JobCosts:
    return JobCosts(measured, weight, others, need)


MEASURED = Costs((EndedJob("sdxl", 1),), {"sdxl": Cost(2.0, 7.0), "flux": Cost(4.0, 34.0)})


@pytest.mark.parametrize(
    ("running_s", "wait_s"), [(None, 4.0), (0.0, 4.0), (1.5, 2.5), (2.0, 4.0), (60.0, 62.0)]
)
def test_a_job_waits_for_those_before_it_and_for_the_rest_of_the_one_that_runs(
    running_s: float | None, wait_s: float
) -> None:
    """One that runs longer than usual is expected to take as long again."""
    assert (
        forecast(["sdxl", "sdxl"], costs_of(MEASURED), ["sdxl"], 24 * GB, running_s=running_s).wait_s
        == wait_s
    )


def test_a_job_waits_for_the_switch_to_generation_mode() -> None:
    assert forecast([], costs_of(MEASURED), ["sdxl"], 24 * GB, switch_s=12).wait_s == 12


def test_a_job_of_another_model_loads_it_and_the_next_one_of_the_first_loads_again() -> None:
    after = forecast(["flux", "sdxl"], costs_of(MEASURED), ["sdxl"], 24 * GB)
    assert after.wait_s == (30 + 4) + (5 + 2)
    assert after.loaded == ("sdxl",)


def test_a_gpu_that_has_room_for_both_loads_each_once() -> None:
    after = forecast(["flux", "sdxl"], costs_of(MEASURED), ["sdxl"], 48 * GB)
    assert after.wait_s == (30 + 4) + 2  # sdxl was loaded already
    assert after.loaded == ("sdxl", "flux")


@pytest.mark.parametrize(
    ("memory", "kept"),
    [(None, ("flux",)), (24 * GB, ("flux",)), (32 * GB, ("flux", "sdxl")), (36 * GB, ("flux", "sdxl", "sd"))],
)
def test_as_many_models_stay_loaded_as_fit_together(memory: int | None, kept: tuple[str, ...]) -> None:
    assert keeps_loaded(("flux", "sdxl", "sd"), memory, need) == kept


def test_only_the_last_model_counts_as_loaded_if_its_size_is_not_known() -> None:
    assert keeps_loaded(("unknown", "sd"), 100 * GB, need) == ("unknown",)


def test_what_was_not_measured_here_is_taken_from_the_others_by_their_weights() -> None:
    here = costs_of(Costs(), 2.0, (1.0, MEASURED))
    assert here.render_s("sdxl") == 1.0  # twice as fast
    assert here.load_s("sdxl") == 5.0  # reading a file is not


def test_a_first_job_is_divided_into_loading_and_drawing() -> None:
    """Until one with the loaded model is measured: else a warm engine would look as slow as a cold one."""
    first = costs_of(Costs((), {"flux": Cost(None, 34.0), "sdxl": Cost(None, 4.0)}))
    assert (first.render_s("flux"), first.load_s("flux")) == (10.0, 24.0)
    assert first.render_s("sdxl") == pytest.approx(0.4)
    assert first.load_s("sdxl") == pytest.approx(3.6)
    elsewhere = costs_of(Costs(), 2.0, (1.0, first.costs))
    assert (elsewhere.render_s("flux"), elsewhere.load_s("flux")) == (5.0, 24.0)


def test_before_any_measurement_a_load_is_estimated_by_its_size() -> None:
    assert costs_of(Costs()).load_s("flux") == 24
    assert costs_of(Costs()).load_s("unknown") == 2
    assert costs_of(Costs(), 2.0).render_s("flux") == DEFAULT_RENDER_S / 2


def test_a_job_of_an_unknown_model_takes_as_long_as_others() -> None:
    assert forecast([None], costs_of(MEASURED), ["sdxl"], None).wait_s == 3.0
