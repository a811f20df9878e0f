"""The simulation of `python -m bench.simulate`: what it counts, the targets, and the page that it writes."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.simulate import page
from bench.simulate.__main__ import simulate_all, simulate_condition
from bench.simulate.costs import Costs
from bench.simulate.engines import Engine, LoadedModels
from bench.simulate.placement import Easel
from bench.simulate.plot import svg
from bench.simulate.report import Result, table, worse
from bench.simulate.simulation import PLACEMENTS, Outcome, run, simulate
from bench.simulate.traces import TRACES, Demand, Job, Model, make
from tests.conftest import ROOT

GB = 10**9
SMALL, LARGE, OTHER = Model("small", 4 * GB), Model("large", 20 * GB), Model("other", 20 * GB)
COSTS = Costs(switch_s=0.5, render_s=1.0, read_bytes_per_s=4e9, memory_bytes=24 * GB)
"""A small model is loaded in 1 s, a large one in 5 s."""


def jobs(*asked: tuple[float, Model]) -> list[Job]:
    return [Job(number, at, model, 1.0) for number, (at, model) in enumerate(asked)]


def zipf(count: int = 1000, per_s: float = 1.6, render_s: float = 1.0, seed: int = 1) -> list[Job]:
    return make("zipf", Demand(count, per_s, render_s), seed)


def test_memory_keeps_the_models_that_were_used_last() -> None:
    loaded = LoadedModels(24 * GB)
    assert [loaded.use(model) for model in (SMALL, LARGE, SMALL, OTHER, SMALL, LARGE)] == [
        *(False, False, True, False, True, False)
    ]
    assert list(loaded) == [SMALL, LARGE]
    assert loaded.displaced_by(OTHER) == [SMALL, LARGE]
    assert loaded.displaced_by(LARGE) == []


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_engine_draws_one_job_after_another(placement: str) -> None:
    outcome = simulate(jobs((0.0, LARGE), (1.0, LARGE), (2.0, OTHER)), 1, placement, COSTS)
    # loads 5 s, draws 1 s; draws 1 s; loads 5 s
    assert outcome.waits_s == (5.0, 5.0, 10.0)
    assert outcome.loads == 2
    assert outcome.length_s == 13.0
    assert outcome.utilisation == pytest.approx(3 / 13)


def test_fifo_takes_the_first_free_engine_and_round_robin_the_next() -> None:
    asked = jobs((0.0, LARGE), (0.0, SMALL), (3.0, LARGE))
    assert simulate(asked, 2, "fifo", COSTS).waits_s == (5.0, 1.0, 5.0)
    assert simulate(asked, 2, "round robin", COSTS).waits_s == (5.0, 1.0, 3.0)


def test_easel_keeps_two_models_on_two_engines() -> None:
    asked = jobs(*((5.0 * number, (LARGE, OTHER)[number % 3 == 0]) for number in range(20)))
    assert simulate(asked, 2, "easel", COSTS).loads == 2
    assert simulate(asked, 2, "round robin", COSTS).loads > 10


def test_an_engine_that_shares_its_gpu_has_lost_its_models_after_a_pause() -> None:
    shared = Costs(0.5, 1.0, 4e9, 24 * GB, linger_s=5.0, is_shared=True)
    asked = jobs((0.0, SMALL), (3.0, SMALL), (20.0, SMALL))
    outcome = simulate(asked, 1, "easel", shared)
    assert outcome.waits_s == (1.5, 0.0, 1.5)
    assert outcome.loads == 2


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_clients_send_a_job_when_their_last_one_has_ended(placement: str) -> None:
    outcome = simulate(jobs(*[(99.0, SMALL)] * 5), 1, placement, COSTS, clients=2)
    assert outcome.waits_s == (1.0, 2.0, 1.0, 1.0, 1.0)
    assert outcome.length_s == 6.0


def test_a_job_that_waits_behind_a_slow_one_moves() -> None:
    """The first job takes sixty times as long as a render takes on average, which nobody could know."""
    slow = [Job(0, 0.0, LARGE, 60.0), *(Job(number, 0.1, LARGE, 1.0) for number in range(1, 4))]
    engines = [Engine(number, COSTS) for number in range(2)]
    busy = Job(4, 0.2, OTHER, 1.0)
    outcome = run([*slow, busy], engines, Easel(engines, 1.0))
    assert outcome.moved > 0
    assert max(outcome.waits_s) < 30.0
    stays = [Engine(number, COSTS) for number in range(2)]
    assert max(run([*slow, busy], stays, Easel(stays, 1.0, moves=False)).waits_s) > 60.0


@pytest.mark.parametrize("trace", TRACES)
def test_a_seed_gives_the_same_result_each_time(trace: str) -> None:
    demand = Demand(100, 1.0, 1.0)
    assert make(trace, demand, 7) == make(trace, demand, 7)
    assert make(trace, demand, 7) != make(trace, demand, 8)
    first, second = (simulate(make(trace, demand, 7), 3, "easel", COSTS) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_has_the_demand_that_was_asked_for(trace: str) -> None:
    asked = make(trace, Demand(4000, 2.0, 0.5), 1)
    assert [job.number for job in asked] == list(range(4000))
    assert 4000 / asked[-1].at == pytest.approx(2.0, rel=0.2)
    assert sum(job.render_s for job in asked) / 4000 == pytest.approx(0.5, rel=0.02)
    assert [job.at for job in asked] == sorted(job.at for job in asked)


def test_the_traces_are_what_they_are_called() -> None:
    def shares(trace: str) -> list[float]:
        names = [job.model.name for job in make(trace, Demand(4000, 2.0, 0.5), 1)]
        return sorted((names.count(name) / 4000 for name in set(names)), reverse=True)

    assert shares("one-model")[0] == pytest.approx(0.9, abs=0.02)
    assert shares("zipf")[0] / shares("zipf")[1] == pytest.approx(2**1.1, rel=0.15)
    assert len(shares("zipf")) == 40
    assert sum(shares("long-tail")[:3]) == pytest.approx(0.5, abs=0.03)
    assert max(shares("poisson")) < 0.13
    times = [job.at for job in make("bursts", Demand(100, 2.0, 0.5), 1)]
    assert len(set(times)) == 5


@pytest.mark.parametrize(
    ("costs", "per_s"),
    [
        (Costs(), 1.6),
        (Costs(memory_bytes=21 * GB), 1.6),
        (Costs(render_s=0.2), 8.0),
        (Costs(render_s=0.2, read_bytes_per_s=1e15), 24.0),
    ],
    ids=["usual", "one model in memory", "renders of 200 ms", "loads that take no time"],
)
def test_easel_loads_at_most_half_as_often_as_round_robin(costs: Costs, per_s: float) -> None:
    """The target: Zipf 1.1 over 40 models, 8 engines, seed 1."""
    asked = zipf(per_s=per_s, render_s=costs.render_s)
    ours, theirs = (simulate(asked, 8, placement, costs) for placement in ("easel", "round robin"))
    assert ours.loads <= 0.5 * theirs.loads


@pytest.mark.parametrize("trace", ["zipf", "one-model", "poisson"])
def test_keeping_models_loaded_costs_at_most_a_twentieth_of_the_throughput(trace: str) -> None:
    """Where loads take no time there is nothing to gain by waiting for an engine that has the model loaded."""
    costs = Costs(render_s=0.2, read_bytes_per_s=1e15)
    outcome = simulate(make(trace, Demand(1000, 1.0, 0.2), 1), 8, "easel", costs, clients=16)
    assert outcome.utilisation >= 0.95


def waits_of_a_model_that_one_engine_has(per_s: float) -> tuple[list[float], list[float]]:
    """The waits of its jobs, and those of all others, on 4 engines."""
    asked = make("poisson", Demand(1000, per_s, 1.0), 1)
    rare = asked[0].model.name
    engines = [Engine(number, COSTS, frozenset({rare} if number else ())) for number in range(4)]
    outcome = run(asked, engines, Easel(engines, 1.0))
    waits = list(zip(asked, outcome.waits_s, strict=True))
    assert engines[0].loads < 1000
    return [wait for job, wait in waits if job.model.name == rare], [
        wait for job, wait in waits if job.model.name != rare
    ]


@pytest.mark.parametrize("per_s", [0.4, 1.2, 4.0], ids=["few jobs", "many jobs", "more than can be drawn"])
def test_a_model_that_one_engine_has_waits_no_longer_than_others(per_s: float) -> None:
    own, others = waits_of_a_model_that_one_engine_has(per_s)
    assert len(own) > 50
    assert max(own) <= 1.25 * max(others)


def test_a_thousand_engines_can_be_simulated() -> None:
    outcome = simulate(zipf(60, 200.0), 1000, "easel", Costs())
    assert len(outcome.waits_s) == 60
    # Nobody waits for a loaded model much longer than a load takes: 10.35 s for the largest one.
    assert max(outcome.waits_s) <= 1.5 * 10.35


def result(placement: str, waits: Sequence[float], loads: int, trace: str = "zipf") -> Result:
    return Result(trace, 2, placement, Outcome(tuple(waits), loads, 0.5, 10.0))


def test_the_report_names_what_is_worse() -> None:
    results = [
        result("easel", [0.0, 4.0], 1),
        result("fifo", [1.0, 2.0], 2),
        result("round robin", [1.0, 3.0], 2),
    ]
    assert list(table(results))[2] == "| zipf | 2 | easel | 4.0 | 4.0 | 4.0 | 50.0 | 50% |"
    assert "| zipf | 2 | longest wait | 4.0 | fifo 2.0 |" in worse(results)
    assert not [line for line in worse(results) if "loads" in line or "round robin" in line]
    assert worse([result(name, [1.0], 1) for name in PLACEMENTS]) == []


def test_the_plot_has_a_line_for_each_way_and_trace() -> None:
    drawn = ET.fromstring(svg(simulate_all(["zipf", "bursts"], [1, 2], seed=1, jobs=40)))
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * 2 * 3
    width, height = (float(number) for number in drawn.attrib["viewBox"].split()[2:])
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = (float(number) for number in point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_the_page_has_what_the_simulation_gives() -> None:
    written = page.PAGE.read_text("utf-8")
    lines = list(table(simulate_all(list(TRACES), [page.ENGINES], seed=1)))
    assert [line for line in lines if line not in written] == []


def test_the_page_has_what_a_condition_gives() -> None:
    """One of them stands for all; the command writes them together."""
    condition = page.CONDITIONS[0]
    results = simulate_condition(condition, 1)
    written = page.PAGE.read_text("utf-8")
    (row,) = re.findall(
        rf"^\| {condition.title} \| \d\.\d\d, .*$",
        page.text(results, {condition.title: results}),
        re.MULTILINE,
    )
    assert row in written
    assert [line for line in worse(results) if f"| {condition.title} {line}" not in written] == []
    assert set(re.findall(r"^\| (\w[^|]*) \| \d\.\d\d, ", written, re.MULTILINE)) == {
        each.title for each in page.CONDITIONS
    }


def test_writing_the_page_again_changes_only_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = simulate_all(["zipf"], [page.ENGINES], seed=1, jobs=20)
    monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
    monkeypatch.setattr(page, "PLOT", tmp_path / "scaling.svg")
    page.PAGE.write_text(f"before\n{page.BEGIN}old\n{page.END}after\n", "utf-8")
    page.write(results, {"another": results})
    once = page.PAGE.read_text("utf-8")
    page.write(results, {"another": results})
    assert page.PAGE.read_text("utf-8") == once
    assert once.startswith(f"before\n{page.BEGIN}\n| trace")
    assert once.endswith(f"\n{page.END}after\n")
    assert "old" not in once
    assert "| another | " in once


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.simulate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_a_table_and_writes_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = command("--engines", "1,2", "--trace", "zipf", "--jobs", "30", "--seed", "3", "--plot", str(plot))
    assert done.returncode == 0
    assert len(re.findall(r"^\| zipf \| [12] \| ", done.stdout, re.MULTILINE)) == 6
    assert "better other way" in done.stdout
    assert ET.parse(plot).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--engines", "0"),
        ("--engines", "1,x"),
        ("--engines", ""),
        ("--trace", "none"),
        ("--demand", "nan"),
        ("--demand", "-1"),
        ("--render", "inf"),
        ("--jobs", "0"),
        ("--write", "--seed", "2"),
    ],
    ids=" ".join,
)
def test_the_command_refuses_what_makes_no_sense(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr
