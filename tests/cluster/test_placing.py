"""Which host gets a waiting job, by value."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from arbiter import Turn
from cluster.host_facts import HostFacts
from cluster.placing import SOON_S, AssignedJob, Situation, WaitingJob, place
from engines import Cost, Costs

COSTS = Costs(models={"a": Cost(10.0, 30.0), "b": Cost(10.0, 30.0), "quick": Cost(0.5, 1.0)})


def host(name: str, *models: str, loaded: Sequence[str] = (), slots: int = 1) -> HostFacts:
    return HostFacts(
        name,
        "i",
        models=frozenset(models or ("a", "b", "quick")),
        loaded=tuple(loaded),
        slots=slots,
        costs=COSTS,
    )


def job(id: str, model: str = "a", number: int = 1, flow: str = "") -> WaitingJob:
    return WaitingJob(id, number, model, flow, "front")


def sent(
    waiting: Sequence[WaitingJob],
    *hosts: HostFacts,
    assigned: Sequence[AssignedJob] = (),
    turns: dict[str, Turn] | None = None,
    now: float = 100.0,
) -> list[tuple[str, str]]:
    situation = Situation(waiting, assigned, {each.name: each for each in hosts}, turns or {}, now)
    return [(each.job.id, each.host) for each in place(situation, lambda model: 0)]


def test_a_job_goes_to_the_host_that_has_its_model_loaded() -> None:
    assert sent([job("1", "b")], host("x", loaded=["a"]), host("y", loaded=["b"])) == [("1", "y")]


def test_a_job_is_never_sent_to_a_host_that_lacks_its_model_or_failed_with_it_or_is_drained_or_down() -> None:
    assert sent([job("1", "b")], host("x", "a")) == []
    assert sent([replace(job("1"), avoided=("x",))], host("x"), host("y")) == [("1", "y")]
    assert sent([job("1")], replace(host("x"), is_drained=True)) == []
    assert sent([job("1")], replace(host("x"), problem=("engine.unreachable", "It is away."))) == []


def test_several_jobs_go_to_several_hosts() -> None:
    waiting = [job(str(number), number=number) for number in range(4)]
    placed = sent(waiting, host("x", loaded=["a"]), host("y", loaded=["a"]), host("z", loaded=["a"]))
    assert sorted(name for _, name in placed) == ["x", "y", "z"]
    assert [id for id, _ in placed] == ["0", "1", "2"]


def test_a_host_with_two_engines_gets_two_jobs() -> None:
    waiting = [job(str(number), number=number) for number in range(3)]
    assert sent(waiting, host("x", loaded=["a"], slots=2)) == [("0", "x"), ("1", "x")]


def test_a_busy_host_gets_its_next_job_only_shortly_before_it_is_free() -> None:
    x = host("x", loaded=["a"])
    running = AssignedJob(job("0"), "x", at=100.0)
    assert sent([job("1", number=2)], x, assigned=[running], now=101.0) == []
    assert sent([job("1", number=2)], x, assigned=[running], now=110.0 - SOON_S + 0.1) == [("1", "x")]
    second = AssignedJob(job("2"), "x", at=101.0)
    assert sent([job("1", number=3)], x, assigned=[running, second], now=109.0) == []


def test_a_job_waits_for_a_host_that_is_sooner_than_a_load_elsewhere() -> None:
    running = AssignedJob(job("0"), "x", at=92.0)
    hosts = host("x", loaded=["a"]), host("y", loaded=["b"])
    # Two seconds at x against a load of twenty at y.
    assert sent([job("1", number=2)], *hosts, assigned=[running], now=100.5) == [("1", "x")]
    started = AssignedJob(job("0"), "x", at=100.0)
    assert sent([job("1", number=2)], *hosts, assigned=[started], now=100.5) == []
    # Enough jobs before it, and the load is worth it.
    queue = [job(str(number), number=number) for number in range(2, 9)]
    assert [name for _, name in sent(queue, *hosts, assigned=[started], now=100.5)] == ["y"]


def test_keys_take_turns() -> None:
    many = [job(f"many{number}", number=number, flow="aa") for number in range(3)]
    one = job("one", number=9, flow="bb")
    x = host("x", loaded=["a"])
    busy = AssignedJob(replace(job("0", flow="aa"), number=0), "x", at=91.0)
    # The key of many has a job already; the other one has had none.
    assert sent([*many, one], x, assigned=[busy]) == [("one", "x")]
    turns = {"aa": Turn(3, 90.0), "bb": Turn(5, 95.0)}
    assert sent([*many, one], x, turns=turns)[:1] == [("many0", "x")]


def test_jobs_of_a_model_that_no_host_has_hold_nobody_up() -> None:
    waiting = [job("0", "none", number=0), job("1", number=1)]
    assert sent(waiting, host("x", "a")) == [("1", "x")]


def test_hundreds_of_waiting_jobs_are_placed_at_once() -> None:
    """Each new job has them placed while its client waits, under a lock of three seconds."""
    busy = [host(f"busy{number}", "a", "b", loaded=["a"]) for number in range(2)]
    running = [AssignedJob(job(f"r{each.name}"), each.name, at=100.0) for each in busy]
    waiting = [job(str(number), "ab"[number % 2], number=number) for number in range(499)]
    last = job("last", "quick", number=499)
    seconds = []
    for _ in range(3):
        began_at = time.process_time()
        placed = sent([*waiting, last], *busy, host("free", "quick"), assigned=running, now=100.5)
        seconds.append(time.process_time() - began_at)
        assert placed == [("last", "free")]
    assert min(seconds) < 0.2


def test_a_job_of_which_the_hosts_that_are_free_can_draw_none_still_counts_for_those_behind_it() -> None:
    running = AssignedJob(job("0"), "x", at=100.0)
    x, y = host("x", loaded=["a"]), host("y", "a")
    only_x = [job(str(number), "b", number=number) for number in range(2, 9)]
    # Behind seven jobs that only x can draw, loading at y costs less than waiting.
    assert sent([job("9", number=9)], x, y, assigned=[running], now=105.0) == []
    assert sent([*only_x, job("9", number=9)], x, y, assigned=[running], now=105.0) == [("9", "y")]
