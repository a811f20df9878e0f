"""What was measured on one engine: averages, history, and a file that any process may damage or delete."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.measured_costs import Cost, Costs, CostStore, EndedJob


def test_loading_is_what_a_job_takes_longer_whose_model_was_not_loaded() -> None:
    costs = Costs().with_job(EndedJob("flux", 10), 12.0, was_loaded=False)
    assert costs.models["flux"] == Cost(None, 12.0)
    assert costs.models["flux"].load_s is None  # no job with the loaded model was measured
    costs = costs.with_job(EndedJob("flux", 14), 4.0, was_loaded=True)
    assert costs.models["flux"].load_s == pytest.approx(8.0)


def test_new_measurements_weigh_more_than_old_ones() -> None:
    costs = Costs()
    for seconds in (10.0, 10.0, 2.0, 2.0, 2.0, 2.0):
        costs = costs.with_job(EndedJob("flux", 0), seconds, was_loaded=True)
    assert 2 < (costs.models["flux"].render_s or 0) < 4


def test_a_first_job_that_is_hardly_slower_has_loaded_nothing() -> None:
    costs = Costs().with_job(EndedJob("a", 1), 0.22, was_loaded=False)
    assert costs.with_job(EndedJob("a", 2), 0.2, was_loaded=True).models["a"].load_s == 0


def test_the_models_of_the_last_jobs_are_listed_once_and_the_newest_first() -> None:
    costs = Costs()
    for at, model in enumerate(["a", "b", "a", "c"]):
        costs = costs.with_job(EndedJob(model, at), 1, was_loaded=True)
    assert costs.recent() == ("c", "a", "b")
    assert costs.recent(since=1) == ("c", "a")
    assert replace(costs, unloaded_at=2).recent(since=1) == ("c",)
    assert costs.ended_at == 3


def test_pictures_per_hour_counts_an_hour_or_extends_what_is_remembered() -> None:
    few = Costs(tuple(EndedJob("a", at, 2) for at in (5000, 4000, 100)))
    assert few.pictures_per_hour(5100) == 4  # the oldest ended more than an hour ago
    many = Costs()
    for second in range(200):
        many = many.with_job(EndedJob("a", 1000 + second), 1, was_loaded=True)
    assert many.pictures_per_hour(1200) == pytest.approx(3600, rel=0.03)


def test_all_processes_read_what_one_has_written(tmp_path: Path) -> None:
    one, other = CostStore(tmp_path / "gpus/0/costs.json"), CostStore(tmp_path / "gpus/0/costs.json")
    assert other.read() == Costs()
    costs = replace(Costs(), unloaded_at=9.0).with_job(EndedJob("flux", 10.5, 4), 12.0, was_loaded=False)
    one.write(costs)
    assert other.read() == one.read() == costs


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"models": {}}',
        '{"history": [["a"]], "models": {}}',
        '{"history": [], "models": {"a": [-1, null]}}',
        '{"history": [], "models": {"a": ["1", null]}}',
        '{"history": [], "models": {"a": [true, null]}}',
        '{"history": [["a", "now", 1]], "models": {}}',
        '{"history": [["a", 1, -5]], "models": {}}',
        '{"history": [], "models": {"a": [1e300, null]}}',
        '{"history": [], "models": {"a": [NaN, null]}}',
    ],
)
def test_a_damaged_file_is_measured_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)
    store = CostStore(path)
    assert store.read() == Costs()
    store.write(Costs((EndedJob("a", 1.0),)))
    assert json.loads(path.read_text())["history"] == [["a", 1.0, 1]]


def test_a_time_of_loss_in_the_future_is_that_of_now(tmp_path: Path) -> None:
    """The clock was set back."""
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"history": [], "models": {}, "unloaded_at": time.time() + 86_400}))
    assert CostStore(path).read().unloaded_at <= time.time()


def test_a_file_that_cannot_be_written_fails_no_job(tmp_path: Path) -> None:
    (tmp_path / "gpus").write_text("a file where the folder should be")
    store = CostStore(tmp_path / "gpus" / "costs.json")
    costs = Costs((EndedJob("a", 1.0),))
    store.write(costs)
    assert store.read() == costs
