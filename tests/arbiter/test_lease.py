"""A lease is a promise: had in order, kept until it is ended, and lost by force only."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter
from arbiter.policy import SWITCH_S
from errors import (
    EngineUnreachable,
    GpuBusy,
    GpuImageMode,
    GpuPreempted,
    JobNotFound,
    RenderCancelled,
    RequestCancelled,
    StoreFull,
    SwitchFailed,
)
from tests.arbiter.conftest import MakeArbiter
from tests.arbiter.fakes import GB, WAIT_S, FakeEngine, FakeStacks, Request, until
from tests.arbiter.test_switchover import told


def in_image_mode(arbiter: Arbiter, *, pin: bool | None = None) -> Arbiter:
    arbiter.switch("generation", pin=pin)
    told(arbiter, "generation")
    return arbiter


# --- the queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_engine_gets_no_more_jobs_at_once_than_its_depth(make_arbiter: MakeArbiter, depth: int) -> None:
    arbiter = in_image_mode(make_arbiter(depth=depth, restore="never"))
    first = [Request(arbiter, "generation", f"job-{number}").gets_it() for number in range(depth)]
    late = Request(arbiter, "generation", "late").waits()
    assert [claim.kind for claim in arbiter.claims.all()] == ["lease"] * depth + ["ticket"]
    assert first[-1].lets_go() is None
    assert late.gets_it().lets_go() is None
    assert [request.lets_go() for request in first[:-1]] == [None] * (depth - 1)


def test_who_came_first_is_first_in_whichever_process(make_arbiter: MakeArbiter) -> None:
    """Two arbiters on one folder stand for two processes."""
    arbiters = [in_image_mode(make_arbiter(depth=1, restore="never")), make_arbiter(depth=1, restore="never")]
    running = Request(arbiters[0], "generation", "running").gets_it()
    queue = [Request(arbiters[number % 2], "generation", f"job-{number}").waits() for number in range(6)]
    order: list[str] = []
    assert running.lets_go() is None
    while len(order) < len(queue):
        (one,) = until(lambda: [request for request in queue if request.has_it and request.job not in order])
        order.append(one.job)
        assert one.lets_go() is None
    assert order == [request.job for request in queue]
    assert arbiters[0].claims.all() == ()


def test_llm_requests_run_side_by_side(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(depth=1)
    requests = [Request(arbiter, "inference", f"job-{number}").gets_it() for number in range(5)]
    assert [request.lets_go() for request in requests] == [None] * 5


def test_who_hangs_up_while_waiting_leaves_the_queue_and_holds_nobody_up(make_arbiter: MakeArbiter) -> None:
    arbiter = in_image_mode(make_arbiter(depth=1, restore="never"))
    running = Request(arbiter, "generation", "running").gets_it()
    second = Request(arbiter, "generation", "second").waits()
    third = Request(arbiter, "generation", "third").waits()
    second.hung_up = True
    assert isinstance(second.ends(), RequestCancelled)
    assert running.lets_go() is None
    assert third.gets_it().lets_go() is None


def test_who_waits_too_long_is_told_its_place_and_when_to_come_again(make_arbiter: MakeArbiter) -> None:
    arbiter = in_image_mode(make_arbiter(depth=1, restore="never"))
    running = Request(arbiter, "generation", "running").gets_it()
    second = Request(arbiter, "generation", "second").waits()
    with pytest.raises(GpuBusy) as refused, arbiter.lease("generation", job="third", timeout_s=0.05):
        pytest.fail("it was had")
    assert refused.value.details["place"] == 1
    assert refused.value.details["retry_after_s"] == 20  # two jobs of ten seconds, as far as anybody knows
    assert [claim.job for claim in arbiter.claims.all()] == ["running", "second"]
    assert [request.lets_go() for request in (running, second)] == [None, None]


def test_a_lease_that_is_there_is_had_even_by_who_cannot_wait(make_arbiter: MakeArbiter) -> None:
    with make_arbiter().lease("inference", job="a-job", timeout_s=0) as lease:
        assert lease.waited_s < 1


def test_whatever_happens_in_a_lease_it_ends(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    for error in (EngineUnreachable("gone"), ValueError("a mistake"), KeyboardInterrupt()):
        with pytest.raises(type(error)), arbiter.lease("inference", job="a-job", timeout_s=1):
            raise error
        assert arbiter.claims.all() == ()


def test_an_uncontended_lease_costs_next_to_nothing(make_arbiter: MakeArbiter) -> None:
    """Well under a millisecond on a quiet machine; the bound is generous because this one may be busy."""
    arbiter = make_arbiter()
    took: list[float] = []
    for number in range(300):
        began = time.perf_counter()
        with arbiter.lease("inference", job=f"job-{number}", timeout_s=1):
            pass
        took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.003


def test_a_folder_that_takes_no_file_is_told_as_what_it_is(make_arbiter: MakeArbiter, tmp_path: Path) -> None:
    arbiter = make_arbiter(reconciles=False)
    arbiter.state_store.folder.mkdir()
    arbiter.claims.folder.write_bytes(b"")  # a file in the folder's place
    with pytest.raises(StoreFull), arbiter.lease("inference", job="a-job", timeout_s=1):
        pytest.fail("it was had")


# --- from one side to the other --------------------------------------------------------------------


def test_chat_then_image_tool_then_chat_works_with_default_settings(make_arbiter: MakeArbiter) -> None:
    """A chat that calls an image tool and goes on: nobody waits for the window of an idle restore."""
    arbiter = make_arbiter()
    for mode in ("inference", "generation", "inference", "generation", "inference"):
        with arbiter.lease(mode, job=f"for-{mode}", timeout_s=WAIT_S):
            assert arbiter.state_store.state().mode == mode


def test_a_long_picture_costs_the_llms_its_own_time_and_not_the_idle_window(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = make_arbiter(restore="idle", idle_restore_s=3600)
    picture = Request(arbiter, "generation", "picture").gets_it()
    llm = Request(arbiter, "inference", "llm").waits()
    until(lambda: arbiter.state_store.state().under_way)
    late = Request(arbiter, "generation", "late").waits()
    assert picture.lets_go() is None
    assert llm.gets_it().lets_go() is None
    assert late.gets_it().lets_go() is None


def test_two_processes_never_disagree_about_who_has_the_gpu(make_arbiter: MakeArbiter) -> None:
    one, two = make_arbiter(restore="never"), make_arbiter(restore="never", llm_during_generation="refuse")
    for _ in range(3):
        with two.lease("inference", job="chat", timeout_s=1):
            pass
        in_image_mode(one)
        with pytest.raises(GpuImageMode), two.lease("inference", job="chat", timeout_s=1):
            pytest.fail("LLM traffic was let through")
        one.switch("inference")
        told(one, "inference")


def test_refuse_turns_an_llm_request_away_at_once_with_a_time_to_come_again(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = in_image_mode(make_arbiter(llm_during_generation="refuse", idle_restore_s=100.0))
    began = time.monotonic()
    with pytest.raises(GpuImageMode) as refused, arbiter.lease("inference", job="llm", timeout_s=WAIT_S):
        pytest.fail("it was had")
    assert time.monotonic() - began < WAIT_S / 2
    assert 90 < refused.value.details["retry_after_s"] <= 100 + SWITCH_S
    assert arbiter.state_store.state().mode == "generation"


def test_wait_lets_an_llm_request_wait_without_moving_the_gpu(make_arbiter: MakeArbiter) -> None:
    arbiter = in_image_mode(make_arbiter(llm_during_generation="wait", restore="never"))
    llm = Request(arbiter, "inference", "llm").waits()
    picture = Request(arbiter, "generation", "picture").gets_it()
    assert picture.lets_go() is None
    with pytest.raises(GpuBusy) as refused, arbiter.lease("inference", job="second", timeout_s=0.1):
        pytest.fail("it was had")
    assert refused.value.details["retry_after_s"] is None, "nobody will give the GPU back"
    assert not llm.has_it
    arbiter.switch("inference")
    assert llm.gets_it().lets_go() is None


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_a_pin_turns_every_llm_request_away_at_once_and_says_that_nobody_knows_for_how_long(
    make_arbiter: MakeArbiter, policy: Any
) -> None:
    arbiter = in_image_mode(make_arbiter(llm_during_generation=policy), pin=True)
    with (
        pytest.raises(GpuImageMode, match="pinned") as refused,
        arbiter.lease("inference", job="llm", timeout_s=WAIT_S),
    ):
        pytest.fail("it was had")
    assert refused.value.details["retry_after_s"] is None


def test_a_pin_that_comes_turns_away_who_waits(make_arbiter: MakeArbiter) -> None:
    arbiter = in_image_mode(make_arbiter(min_stay_s=10**6))
    llm = Request(arbiter, "inference", "llm").waits()
    arbiter.pin(True)
    assert isinstance(llm.ends(), GpuImageMode)


def test_a_failed_switch_is_told_to_who_waits_and_not_tried_again_within_the_minimum_stay(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    unloads: list[str] = []
    stacks.before = unloads.append
    stacks.refuses_unload = True
    arbiter = make_arbiter(min_stay_s=1000.0)
    first, second = (Request(arbiter, "generation", job) for job in ("first", "second"))
    for request in (first, second):
        error = request.ends()
        assert isinstance(error, SwitchFailed)
        assert (error.details["phase"], error.details["cause"]) == ("releasing", "llm.refused")
        assert error.details["retry_after_s"] >= 990
    with pytest.raises(GpuBusy) as refused, arbiter.lease("generation", job="third", timeout_s=0.2):
        pytest.fail("it was had")
    assert refused.value.details["retry_after_s"] >= 990
    assert unloads.count("release") == 1
    with arbiter.lease("inference", job="llm", timeout_s=WAIT_S):
        assert sorted(stacks.loaded) == ["chat", "embed"]


def test_who_comes_after_a_failure_is_not_told_of_the_old_one(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    stacks.refuses_unload = True
    arbiter = make_arbiter()
    assert isinstance(Request(arbiter, "generation", "first").ends(), SwitchFailed)
    stacks.refuses_unload = False
    assert Request(arbiter, "generation", "second").gets_it().lets_go() is None


# --- force and cancel ------------------------------------------------------------------------------


def test_force_drops_the_render_and_the_queue_and_lets_no_old_holder_go_on(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = in_image_mode(make_arbiter(depth=1, restore="never"))
    with (  # noqa: PT012  the block is what a holder does until it is told to stop
        pytest.raises(GpuPreempted) as dropped,
        arbiter.lease("generation", job="running", timeout_s=WAIT_S) as lease,
    ):
        waiting = Request(arbiter, "generation", "waiting").waits()
        assert not lease.is_void()
        arbiter.switch("inference", force=True)
        until(lease.is_void)
        until(lambda: None in engine.dropped)
        raise EngineUnreachable("whatever the engine said")
    assert isinstance(dropped.value.__cause__, EngineUnreachable)
    assert isinstance(waiting.ends(), GpuPreempted)
    told(arbiter, "inference")
    assert arbiter.claims.all() == ()


def test_while_a_forced_out_holder_has_not_let_go_no_llm_is_loaded(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = in_image_mode(make_arbiter(restore="never"))
    with arbiter.lease("generation", job="slow-to-go", timeout_s=WAIT_S) as lease:
        arbiter.switch("inference", force=True)
        until(lease.is_void)
        until(lambda: (switch := arbiter.state_store.state().under_way) and switch.phase == "draining")
        assert stacks.loaded == {}
    told(arbiter, "inference")
    assert sorted(stacks.loaded) == ["chat", "embed"]


def test_force_in_the_other_direction_voids_the_llm_requests(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    llm = Request(arbiter, "inference", "llm").gets_it()
    arbiter.switch("generation", force=True, pin=True)
    assert isinstance(llm.ends(), GpuPreempted)
    told(arbiter, "generation")


def test_who_comes_after_a_force_is_not_dropped_by_it(make_arbiter: MakeArbiter) -> None:
    arbiter = in_image_mode(make_arbiter(restore="never"))
    arbiter.switch("inference", force=True)
    until(lambda: (switch := arbiter.state_store.state().switch) and switch.force)
    picture = Request(arbiter, "generation", "picture").gets_it()
    assert picture.lets_go() is None


@pytest.mark.parametrize("everything", [False, True], ids=["one job", "all jobs"])
def test_a_cancelled_job_stops_whether_it_runs_or_waits_in_whichever_process(
    make_arbiter: MakeArbiter, everything: bool
) -> None:
    mine, other = (
        in_image_mode(make_arbiter(depth=1, restore="never")),
        make_arbiter(depth=1, restore="never"),
    )
    running = Request(mine, "generation", "running").gets_it()
    waiting = Request(mine, "generation", "waiting").waits()
    spared = Request(mine, "generation", "spared").waits()
    if everything:
        assert sorted(other.cancel(None)) == ["running", "spared", "waiting"]
    else:
        assert other.cancel("waiting") == ("waiting",)
        assert isinstance(waiting.ends(), RenderCancelled)
        assert other.cancel("running") == ("running",)
    for request in (running, waiting):
        error = request.ends()
        assert isinstance(error, RenderCancelled)
        assert error.details["id"] == request.job
    if everything:
        assert isinstance(spared.ends(), RenderCancelled)
    else:
        assert spared.gets_it().lets_go() is None
    assert mine.claims.all() == ()
    assert list((mine.state_store.folder / "jobs").glob("*")) == []


def test_only_jobs_that_there_are_can_be_cancelled_and_chats_are_none(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    assert arbiter.cancel(None) == ()
    with arbiter.lease("inference", job="a-chat", timeout_s=1), pytest.raises(JobNotFound):
        arbiter.cancel("a-chat")
    with pytest.raises(JobNotFound):
        arbiter.cancel("../state")


def test_how_far_a_job_is_is_seen_from_any_process_and_forgotten_with_it(make_arbiter: MakeArbiter) -> None:
    mine, other = in_image_mode(make_arbiter(restore="never")), make_arbiter(restore="never")
    with mine.lease("generation", job="picture", timeout_s=WAIT_S) as lease:
        lease.show(1, 20)
        assert (
            other.job_progress.progress("picture") is None
        )  # nobody could see a job that is over in no time

        def seen() -> object:
            lease.show(4, 20)
            return other.job_progress.progress("picture")

        until(seen)
        progress = other.job_progress.progress("picture")
        assert progress is not None
        assert (progress.step, progress.steps) == (4, 20)
        lease.ran(4.0)
    assert other.job_progress.progress("picture") is None
    assert other.view().pace.seconds_each < 10.0
    assert other.view().claims == ()


# --- nobody to share with, and room for both -------------------------------------------------------


def test_with_nobody_to_share_with_a_lease_is_had_at_once_and_can_be_cancelled(tmp_path: Path) -> None:
    arbiter = Arbiter(tmp_path)
    with (
        arbiter.lease("generation", job="one", timeout_s=0),
        arbiter.lease("generation", job="two", timeout_s=0),
    ):
        third = Request(arbiter, "generation", "three", timeout_s=0).gets_it()
        arbiter.cancel("three")
        assert isinstance(third.ends(), RenderCancelled)
    assert arbiter.state_store.state().mode == "inference"


def test_with_nobody_to_share_with_the_dead_are_buried_and_their_jobs_taken_back(
    tmp_path: Path, engine: FakeEngine
) -> None:
    arbiter = Arbiter(tmp_path, engine=engine)
    with arbiter.lease("generation", job="orphan", timeout_s=0):
        (name,) = (claim.name for claim in arbiter.claims.all())
    (tmp_path / "holds" / name).touch()  # as a killed process leaves it
    arbiter.reconciler.tick()
    assert engine.dropped == ["orphan"]
    assert arbiter.claims.all() == ()


COEXIST = {"sharing": "coexist", "reserve_bytes": 2 * GB, "restore": "never"}


def test_where_there_is_room_a_picture_is_drawn_beside_the_llms(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter(measure=lambda: 10 * GB, **COEXIST)
    picture = Request(arbiter, "generation", "picture", need_bytes=8 * GB).gets_it()
    assert arbiter.state_store.state().mode == "inference"
    with arbiter.lease("inference", job="chat", timeout_s=1):
        assert sorted(stacks.loaded) == ["chat", "embed"]
    assert picture.lets_go() is None
    assert arbiter.state_store.state().switch is None


def cannot_tell() -> int | None:
    raise EngineUnreachable("the engine is down")


@pytest.mark.parametrize(
    ("measure", "need"),
    [(lambda: 9 * GB, 8 * GB), (lambda: None, 8 * GB), (cannot_tell, 8 * GB), (lambda: 80 * GB, 0)],
    ids=["too little with the reserve", "nobody measures", "the engine is down", "nobody knows the need"],
)
def test_where_there_is_no_room_or_nobody_can_tell_the_gpu_changes_hands(
    make_arbiter: MakeArbiter, stacks: FakeStacks, measure: Any, need: int
) -> None:
    arbiter = make_arbiter(measure=lambda: measure() if stacks.loaded else 90 * GB, **COEXIST)
    picture = Request(arbiter, "generation", "picture", need_bytes=need).gets_it()
    assert arbiter.state_store.state().mode == "generation"
    assert stacks.loaded == {}
    assert picture.lets_go() is None


def test_beside_the_llms_the_engine_gets_no_more_than_its_depth_either(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(measure=lambda: 80 * GB, depth=1, **COEXIST)
    first = Request(arbiter, "generation", "first", need_bytes=GB).gets_it()
    second = Request(arbiter, "generation", "second", need_bytes=GB).waits()
    assert first.lets_go() is None
    assert second.gets_it().lets_go() is None
    assert arbiter.state_store.state().switch is None
