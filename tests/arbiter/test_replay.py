"""Replaying a log: what the simulation says agrees with what happened, and a policy changes it as it should."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter, Policy
from arbiter.event_log import before, line_name, read_lines
from arbiter.replay import Recording, Request, read_recording, recorded_waits, simulate
from tests.arbiter.fakes import FakeEngine, FakeStacks
from tests.conftest import MakeApp

POLICY = Policy(min_stay_s=30, restore="linger", linger_s=5, depth=2)
SWITCH_S = {"generation": 4.0, "inference": 6.0}


def recording(*requests: Request, **values: Any) -> Recording:
    return Recording(requests, SWITCH_S, POLICY, 0, 0, **values)  # type: ignore[arg-type]


def picture(at: float, run_s: float = 2.0, key: str = "") -> Request:
    return Request("generation", at, run_s, key, None)


def chat(at: float, run_s: float = 1.0) -> Request:
    return Request("inference", at, run_s, "", None)


def test_a_picture_waits_for_the_switch_and_a_chat_for_the_way_back() -> None:
    waits = simulate(recording(picture(100.0), chat(103.0)), replace(POLICY, min_stay_s=0))
    assert waits.by_mode["generation"] == pytest.approx([4.0])
    # The picture ends at 106; the chat asked at 103, and the switch back takes 6 s.
    assert waits.by_mode["inference"] == pytest.approx([9.0])
    assert (waits.switches, waits.switching_s) == (2, pytest.approx(4.0 + 6.0, abs=2.1))


def test_the_minimum_stay_counts_while_both_sides_ask() -> None:
    pictures = [picture(100.0 + 2 * number) for number in range(30)]
    short, long = (
        simulate(recording(*pictures, chat(110.0)), replace(POLICY, min_stay_s=stay)) for stay in (0, 30)
    )
    assert short.by_mode["inference"][0] < 15
    assert 30 < long.by_mode["inference"][0] + 6 < 50


def test_the_gpu_returns_when_nobody_draws_and_restore_says_so() -> None:
    requests = (picture(100.0), chat(120.0))
    lingering = simulate(recording(*requests), POLICY)
    staying = simulate(recording(*requests), replace(POLICY, restore="never"))
    assert lingering.by_mode["inference"] == pytest.approx([0.0])
    assert staying.by_mode["inference"] == pytest.approx([6.0])


def test_a_policy_that_waits_or_refuses() -> None:
    requests = (picture(100.0), chat(105.0))
    refused = simulate(recording(*requests), replace(POLICY, llm_during_generation="refuse"))
    assert (refused.refused, refused.by_mode["inference"]) == (1, [])
    never = replace(POLICY, llm_during_generation="wait", restore="never")
    assert simulate(recording(*requests), never).never_ran == 1


def test_llm_requests_that_never_get_the_gpu_are_counted_in_seconds() -> None:
    requests = [picture(100.0), *(chat(105.0 + number) for number in range(10_000))]
    never = replace(POLICY, llm_during_generation="wait", restore="never")
    assert simulate(recording(*requests), never).never_ran == 10_000
    idle = replace(never, restore="idle", idle_restore_s=0)
    assert simulate(recording(*requests), idle).never_ran == 10_000


def test_pictures_run_one_after_another_and_keys_take_turns() -> None:
    flood = [picture(100.0, 10.0, "flood") for _ in range(6)]
    waits = simulate(recording(*flood, picture(101.0, 10.0, "other"), first_mode="generation"), POLICY)
    # Of the flood the first runs at once; the other key's picture comes next.
    assert waits.by_mode["generation"][:2] == pytest.approx([0.0, 0.0], abs=11)
    assert max(waits.by_mode["generation"]) == pytest.approx(60.0, abs=11)


def test_a_week_of_a_busy_server_is_played_in_seconds() -> None:
    requests = [
        each
        for hour in range(24 * 7)
        for minute in range(0, 60, 3)
        for each in (picture(1e9 + hour * 3600 + minute * 60), chat(1e9 + hour * 3600 + minute * 60 + 30))
    ]
    waits = simulate(recording(*requests), POLICY)
    assert sum(map(len, waits.by_mode.values())) == len(requests)


def lines(*events: dict[str, Any]) -> Iterator[str]:
    return (json.dumps(event) for event in events)


LEASE = {
    "at": 10.0, "event": "lease", "mode": "generation", "job": "a", "key": "", "asked_at": 5.0, "uses_gpu": True,
    "waited_s": 3.0, "held_s": 2.0, "run_s": 1.5, "error": "",
}  # fmt: skip


def test_damaged_lines_are_counted_and_the_rest_is_read() -> None:
    bad = [
        "nonsense",
        "[]",
        "{}",
        '{"event": "lease"}',
        '{"event": "switch_ended", "target": "x"}',
        "\x00",
        "[" * 9999,
    ]
    found = read_recording([*bad, "", *lines(LEASE, {"event": "policy", **asdict(POLICY), "new": 1})])
    assert found.skipped_lines == len(bad)
    assert found.requests == (Request("generation", 5.0, 1.5, "", 3.0),)
    assert found.policy == POLICY
    assert recorded_waits(found).by_mode["generation"] == [3.0]


@pytest.mark.parametrize(
    "event",
    [
        {**LEASE, "asked_at": float("nan")},
        {**LEASE, "asked_at": -1.0},
        {**LEASE, "run_s": float("inf")},
        {**LEASE, "run_s": 10**400},
        {**LEASE, "waited_s": "3"},
        {"event": "policy", **asdict(POLICY), "min_stay_s": "30"},
        {"event": "policy", **asdict(POLICY), "restore": "always"},
        {"event": "policy", **asdict(POLICY), "restore": ["never"]},
        {"event": "policy", **asdict(POLICY), "depth": None},
        {
            "event": "switch_ended",
            "target": "inference",
            "mode": "inference",
            "error": None,
            "phases": [["releasing", float("inf")]],
        },
    ],
)
def test_values_that_no_server_writes_are_a_damaged_line(event: dict[str, Any]) -> None:
    found = read_recording(lines(event, LEASE))
    assert found.skipped_lines == 1
    assert (len(found.requests), found.policy) == (1, None)
    assert simulate(found, POLICY).never_ran == 0


def test_a_long_queue_is_played_in_seconds() -> None:
    flood = [picture(100.0, 1.0, f"key-{number % 7}") for number in range(1_000)]
    waits = simulate(recording(*flood), POLICY)
    assert len(waits.by_mode["generation"]) == len(flood)


def test_sketches_beside_llms_are_left_out_and_those_that_gave_up_are_played() -> None:
    gave_up = {**LEASE, "event": "gave_up", "asked_at": 7.0, "error": "arbiter.gpu_busy"}
    found = read_recording(lines(LEASE, {**LEASE, "uses_gpu": False}, gave_up))
    assert [request.waited_s for request in found.requests] == [3.0, None]
    assert found.requests[1].run_s == 1.5
    assert recorded_waits(found).never_ran == 1


def test_the_simulation_agrees_with_a_real_arbiter(tmp_path: Path) -> None:
    arbiter = Arbiter(
        tmp_path,
        tenants={"inference": FakeStacks(), "generation": FakeEngine()},
        policy=Policy(min_stay_s=0, restore="never"),
        event_log_bytes=10**6,
    )
    arbiter.reconciler.start()
    for number in range(6):
        mode = "generation" if number % 2 else "inference"
        with arbiter.lease(mode, job=f"job-{number}", timeout_s=20) as lease:  # type: ignore[arg-type]
            lease.record_run(0.0)
    arbiter.reconciler.stop()
    found = read_recording(read_lines(arbiter.events.path))
    real, simulated = recorded_waits(found), simulate(found, found.policy or POLICY)
    assert found.switches == simulated.switches == 5
    for mode, waits in real.by_mode.items():
        # The reconciler looks every 20 ms, and a busy machine takes longer.
        assert simulated.by_mode[mode] == pytest.approx(waits, abs=1.0)


def test_the_command_prints_both(tmp_path: Path, make_app: MakeApp) -> None:
    file = tmp_path / "events.jsonl"
    switch = {
        "event": "switch_ended", "target": "generation", "mode": "generation", "error": None,
        "phases": [["closing", 0.1], ["draining", 5.0], ["releasing", 2.0]],
    }  # fmt: skip
    file.write_text("\n".join(lines({"event": "policy", **asdict(POLICY)}, switch, LEASE)) + "\n")
    run = make_app().test_cli_runner().invoke
    result = run(args=["gpu", "replay", str(file), "--min-stay-s", "0", "--restore", "never"])
    assert result.exit_code == 0, result.output
    assert "to generation 2.0 s" in result.output
    assert "min_stay_s=0.0, restore=never" in result.output
    document = json.loads(run(args=["gpu", "replay", str(file), "--depth", "1", "--json"]).output)
    assert document["recorded"]["generation"] == {
        "requests": 1,
        "median_s": 3.0,
        "p95_s": 3.0,
        "longest_s": 3.0,
    }
    assert document["other_policy"] == {"depth": 1}
    file.write_text("\n".join(lines({"event": "policy", **asdict(POLICY), "sharing": "coexist"}, LEASE)))
    assert "gpu.sharing was coexist" in run(args=["gpu", "replay", str(file)]).output
    missing = run(args=["gpu", "replay", str(tmp_path / "none")])
    assert missing.exit_code == 1
    assert "cannot read" in missing.output
    file.write_text("nonsense\n")
    empty = run(args=["gpu", "replay", str(file)])
    assert "no request that needed the GPU (1 lines are damaged)" in empty.output


def test_a_long_queue_of_llm_requests_makes_no_decision_slower() -> None:
    """While pictures come all the time and LLM requests wait for their end."""
    policy = replace(POLICY, llm_during_generation="wait")

    def cpu_of(count: int) -> float:
        requests = [each for at in range(count) for each in (picture(at, 0.9, "a"), chat(at + 0.5))]
        began = time.thread_time()
        waits = simulate(recording(*requests, first_mode="generation"), policy)
        assert len(waits.by_mode["inference"]) == count
        return time.thread_time() - began

    assert cpu_of(4000) < 9 * cpu_of(1000)


def test_progress_adds_up_to_the_requests() -> None:
    told: list[int] = []
    simulate(recording(*[chat(number) for number in range(2500)]), POLICY, told.append)
    assert told == [1000, 1000, 500]


def test_damaged_lines_are_counted_and_the_first_are_named_with_their_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = json.dumps({"event": "requested"})
    before(path).write_text(f"{good}\nno json\n")
    path.write_text("\n".join([good, "{", *["[]"] * 20, "x" * 2_500_000, good]))
    found = read_recording(read_lines(path))
    assert found.skipped_lines == 1 + 1 + 20 + 3
    names = [line_name(path, number) for number in found.damaged_lines]
    assert names[:3] == ["events.1.jsonl:2", "events.jsonl:2", "events.jsonl:3"]
    assert len(names) == 10
