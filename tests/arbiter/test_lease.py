"""Leases: granted in order, kept until they end, revoked only by force."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from arbiter import UNKNOWN_SENDER, Arbiter, Sender
from arbiter.leases import Claim, OwnClaim
from arbiter.values import State
from arbiter.waiting import DEFAULT_SWITCH_S
from errors import (
    EaselError,
    EngineUnreachable,
    GpuBusy,
    GpuInGenerationMode,
    GpuPreempted,
    JobNotFound,
    OutOfMemory,
    RenderCancelled,
    RequestCancelled,
    StateUnwritable,
    StoreFull,
    SwitchFailed,
    TooManyFiles,
)
from tests.arbiter.conftest import MakeArbiter
from tests.arbiter.fakes import GB, WAIT_S, FakeEngine, FakeStacks, Request
from tests.arbiter.test_switchover import wait_for_mode
from tests.waiting import wait_until


def in_generation_mode(arbiter: Arbiter, *, pin: bool | None = None) -> Arbiter:
    arbiter.switch("generation", pin=pin)
    wait_for_mode(arbiter, "generation")
    return arbiter


# --- the queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_engine_gets_no_more_jobs_at_once_than_its_depth(make_arbiter: MakeArbiter, depth: int) -> None:
    arbiter = in_generation_mode(make_arbiter(depth=depth, restore="never"))
    first = [Request(arbiter, "generation", f"job-{number}").wait_granted() for number in range(depth)]
    late = Request(arbiter, "generation", "late").wait_queued()
    assert [claim.kind for claim in arbiter.claims.all()] == ["lease"] * depth + ["ticket"]
    assert first[-1].finish() is None
    assert late.wait_granted().finish() is None
    assert [request.finish() for request in first[:-1]] == [None] * (depth - 1)


def test_the_queue_is_in_order_over_all_processes(make_arbiter: MakeArbiter) -> None:
    """Two arbiters over one folder stand for two processes."""
    arbiters = [
        in_generation_mode(make_arbiter(depth=1, restore="never")),
        make_arbiter(depth=1, restore="never"),
    ]
    running = Request(arbiters[0], "generation", "running").wait_granted()
    queue = [
        Request(arbiters[number % 2], "generation", f"job-{number}").wait_queued() for number in range(6)
    ]
    order: list[str] = []
    assert running.finish() is None
    while len(order) < len(queue):
        (granted,) = wait_until(
            lambda: [request for request in queue if request.is_granted and request.job not in order]
        )
        order.append(granted.job)
        assert granted.finish() is None
    assert order == [request.job for request in queue]
    assert arbiters[0].claims.all() == ()


def test_llm_requests_run_side_by_side(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(depth=1)
    requests = [Request(arbiter, "inference", f"job-{number}").wait_granted() for number in range(5)]
    assert [request.finish() for request in requests] == [None] * 5


def test_a_cancelled_request_leaves_the_queue_at_once(make_arbiter: MakeArbiter) -> None:
    arbiter = in_generation_mode(make_arbiter(depth=1, restore="never"))
    running = Request(arbiter, "generation", "running").wait_granted()
    second = Request(arbiter, "generation", "second").wait_queued()
    third = Request(arbiter, "generation", "third").wait_queued()
    second.is_cancelled = True
    assert isinstance(second.wait_ended(), RequestCancelled)
    assert running.finish() is None
    assert third.wait_granted().finish() is None


def test_a_request_that_waits_too_long_gets_its_place_and_a_retry_after(make_arbiter: MakeArbiter) -> None:
    arbiter = in_generation_mode(make_arbiter(depth=1, restore="never"))
    running = Request(arbiter, "generation", "running").wait_granted()
    second = Request(arbiter, "generation", "second").wait_queued()
    with pytest.raises(GpuBusy) as refused, arbiter.lease("generation", job="third", timeout_s=0.05):
        pytest.fail("the lease was granted")
    assert refused.value.details["place"] == 1
    # Two jobs are ahead. None was timed yet, so only one counts, with the default of ten seconds.
    assert refused.value.details["retry_after_s"] == 10
    assert [claim.job for claim in arbiter.claims.all()] == ["running", "second"]
    assert [request.finish() for request in (running, second)] == [None, None]


def test_a_free_lease_is_granted_with_a_timeout_of_zero(make_arbiter: MakeArbiter) -> None:
    with make_arbiter().lease("inference", job="a-job", timeout_s=0) as lease:
        assert lease.queued_s < 1


def test_a_lease_ends_after_any_exception(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    for error in (EngineUnreachable("gone"), ValueError("a mistake"), KeyboardInterrupt()):
        with pytest.raises(type(error)), arbiter.lease("inference", job="a-job", timeout_s=1):
            raise error
        assert arbiter.claims.all() == ()


def test_an_uncontended_lease_takes_less_than_three_milliseconds(make_arbiter: MakeArbiter) -> None:
    """Well under a millisecond on a quiet machine; the limit is higher because this machine may be busy."""
    arbiter = make_arbiter()
    times: list[float] = []
    for number in range(300):
        started_at = time.perf_counter()
        with arbiter.lease("inference", job=f"job-{number}", timeout_s=1):
            pass
        times.append(time.perf_counter() - started_at)
    assert statistics.median(times) < 0.003


def test_a_file_in_place_of_a_folder_is_moved_aside(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(reconciles=False)
    arbiter.state_store.folder.mkdir()
    for folder in (arbiter.claims.folder, arbiter.state_store.folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.write_bytes(b"")
        with arbiter.lease("inference", job="a-job", timeout_s=WAIT_S):
            assert [claim.job for claim in arbiter.claims.all()] == ["a-job"]
        assert list(folder.parent.glob(f"{folder.name}.*.corrupt"))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StateUnwritable),
        (errno.EROFS, StateUnwritable),
        (errno.EMFILE, TooManyFiles),
        (errno.ENFILE, TooManyFiles),
        (errno.ENOMEM, OutOfMemory),
    ],
)
def test_the_reason_why_the_state_directory_cannot_be_written_is_named(
    make_arbiter: MakeArbiter, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[EaselError]
) -> None:
    arbiter = make_arbiter(reconciles=False)

    def fail(claim: Claim) -> OwnClaim:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(arbiter.claims, "create", fail)
    with pytest.raises(expected) as caught, arbiter.lease("inference", job="a-job", timeout_s=1):
        pytest.fail("the lease was granted")
    assert type(caught.value) is expected


# --- from one side to the other --------------------------------------------------------------------


def test_chat_then_image_tool_then_chat_works_with_default_settings(make_arbiter: MakeArbiter) -> None:
    """A chat that calls an image tool and continues does not wait for the idle restore."""
    arbiter = make_arbiter()
    for mode in ("inference", "generation", "inference", "generation", "inference"):
        with arbiter.lease(mode, job=f"for-{mode}", timeout_s=WAIT_S):
            assert arbiter.state_store.state().mode == mode


def test_an_llm_request_waits_for_the_running_picture_but_not_for_the_idle_restore(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = make_arbiter(restore="idle", idle_restore_s=3600)
    picture = Request(arbiter, "generation", "picture").wait_granted()
    llm = Request(arbiter, "inference", "llm").wait_queued()
    wait_until(lambda: arbiter.state_store.state().active_switch)
    late = Request(arbiter, "generation", "late").wait_queued()
    assert picture.finish() is None
    assert llm.wait_granted().finish() is None
    assert late.wait_granted().finish() is None


def test_two_processes_never_disagree_about_who_has_the_gpu(make_arbiter: MakeArbiter) -> None:
    one, two = make_arbiter(restore="never"), make_arbiter(restore="never", llm_during_generation="refuse")
    for _ in range(3):
        with two.lease("inference", job="chat", timeout_s=1):
            pass
        in_generation_mode(one)
        with pytest.raises(GpuInGenerationMode), two.lease("inference", job="chat", timeout_s=1):
            pytest.fail("a lease was granted in generation mode")
        one.switch("inference")
        wait_for_mode(one, "inference")


def test_refuse_fails_an_llm_request_at_once_with_a_retry_after(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = in_generation_mode(make_arbiter(llm_during_generation="refuse", idle_restore_s=100.0))
    started_at = time.monotonic()
    with (
        pytest.raises(GpuInGenerationMode) as refused,
        arbiter.lease("inference", job="llm", timeout_s=WAIT_S),
    ):
        pytest.fail("the lease was granted")
    assert time.monotonic() - started_at < WAIT_S / 2
    assert 90 < refused.value.details["retry_after_s"] <= 100 + DEFAULT_SWITCH_S
    assert arbiter.state_store.state().mode == "generation"


def test_wait_lets_an_llm_request_wait_without_a_switch(make_arbiter: MakeArbiter) -> None:
    arbiter = in_generation_mode(make_arbiter(llm_during_generation="wait", restore="never"))
    llm = Request(arbiter, "inference", "llm").wait_queued()
    picture = Request(arbiter, "generation", "picture").wait_granted()
    assert picture.finish() is None
    with pytest.raises(GpuBusy) as refused, arbiter.lease("inference", job="second", timeout_s=0.1):
        pytest.fail("the lease was granted")
    assert refused.value.details["retry_after_s"] is None, "the GPU is not handed back by itself"
    assert not llm.is_granted
    arbiter.switch("inference")
    assert llm.wait_granted().finish() is None


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_a_pin_fails_every_llm_request_at_once_without_a_retry_after(
    make_arbiter: MakeArbiter, policy: Any
) -> None:
    arbiter = in_generation_mode(make_arbiter(llm_during_generation=policy), pin=True)
    with (
        pytest.raises(GpuInGenerationMode, match="pinned") as refused,
        arbiter.lease("inference", job="llm", timeout_s=WAIT_S),
    ):
        pytest.fail("the lease was granted")
    assert refused.value.details["retry_after_s"] is None


def test_a_new_pin_fails_llm_requests_that_wait(make_arbiter: MakeArbiter) -> None:
    arbiter = in_generation_mode(make_arbiter(min_stay_s=10**6))
    picture = Request(arbiter, "generation", "picture").wait_granted()
    llm = Request(arbiter, "inference", "llm").wait_queued()
    arbiter.pin(True)
    assert isinstance(llm.wait_ended(), GpuInGenerationMode)
    picture.finish()


def test_a_failed_switch_fails_the_waiting_requests_and_is_not_tried_again_within_the_minimum_stay(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    calls: list[str] = []

    def fail_once_both_wait(call: str) -> None:
        calls.append(call)
        if call == "release":
            wait_until(lambda: len(arbiter.claims.all()) == 2)

    stacks.on_call = fail_once_both_wait
    stacks.refuses_unload = True
    arbiter = make_arbiter(min_stay_s=1000.0, max_retry_after_s=2000.0)
    first, second = (Request(arbiter, "generation", job) for job in ("first", "second"))
    for request in (first, second):
        error = request.wait_ended()
        assert isinstance(error, SwitchFailed)
        assert (error.details["phase"], error.details["cause"]) == ("releasing", "llm.refused")
        assert error.details["retry_after_s"] >= 990
    with pytest.raises(GpuBusy) as refused, arbiter.lease("generation", job="third", timeout_s=0.2):
        pytest.fail("the lease was granted")
    assert refused.value.details["retry_after_s"] >= 990
    assert calls.count("release") == 1
    with arbiter.lease("inference", job="llm", timeout_s=WAIT_S):
        assert sorted(stacks.loaded) == ["chat", "embed"]


def test_a_request_that_arrives_after_a_failed_switch_does_not_fail(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    stacks.refuses_unload = True
    arbiter = make_arbiter()
    assert isinstance(Request(arbiter, "generation", "first").wait_ended(), SwitchFailed)
    stacks.refuses_unload = False
    assert Request(arbiter, "generation", "second").wait_granted().finish() is None


# --- force and cancel ------------------------------------------------------------------------------


def test_force_cancels_the_running_render_and_the_queue(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = in_generation_mode(make_arbiter(depth=1, restore="never"))
    with (  # noqa: PT012  the block does what a render does until its lease is void
        pytest.raises(GpuPreempted) as preempted,
        arbiter.lease("generation", job="running", timeout_s=WAIT_S) as lease,
    ):
        waiting = Request(arbiter, "generation", "waiting").wait_queued()
        assert not lease.is_void()
        arbiter.switch("inference", force=True)
        wait_until(lease.is_void)
        wait_until(lambda: None in engine.cancelled)
        raise EngineUnreachable("any error of the engine")
    assert isinstance(preempted.value.__cause__, EngineUnreachable)
    assert isinstance(waiting.wait_ended(), GpuPreempted)
    wait_for_mode(arbiter, "inference")
    assert arbiter.claims.all() == ()


def test_a_forced_switch_loads_no_llm_before_the_revoked_lease_has_ended(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = in_generation_mode(make_arbiter(restore="never"))
    with arbiter.lease("generation", job="slow-to-end", timeout_s=WAIT_S) as lease:
        arbiter.switch("inference", force=True)
        wait_until(lease.is_void)
        wait_until(
            lambda: (switch := arbiter.state_store.state().active_switch) and switch.phase == "draining"
        )
        assert stacks.loaded == {}
    wait_for_mode(arbiter, "inference")
    assert sorted(stacks.loaded) == ["chat", "embed"]


def test_force_to_generation_cancels_the_llm_requests(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    llm = Request(arbiter, "inference", "llm").wait_granted()
    arbiter.switch("generation", force=True, pin=True)
    assert isinstance(llm.wait_ended(), GpuPreempted)
    wait_for_mode(arbiter, "generation")


def test_a_request_that_arrives_after_a_forced_switch_is_not_cancelled(make_arbiter: MakeArbiter) -> None:
    arbiter = in_generation_mode(make_arbiter(restore="never"))
    arbiter.switch("inference", force=True)
    wait_until(lambda: (switch := arbiter.state_store.state().switch) and switch.force)
    picture = Request(arbiter, "generation", "picture").wait_granted()
    assert picture.finish() is None


@pytest.mark.parametrize("cancel_all", [False, True], ids=["one job", "all jobs"])
def test_a_running_or_waiting_job_can_be_cancelled_from_any_process(
    make_arbiter: MakeArbiter, cancel_all: bool
) -> None:
    mine, other = (
        in_generation_mode(make_arbiter(depth=1, restore="never")),
        make_arbiter(depth=1, restore="never"),
    )
    running = Request(mine, "generation", "running").wait_granted()
    waiting = Request(mine, "generation", "waiting").wait_queued()
    spared = Request(mine, "generation", "spared").wait_queued()
    if cancel_all:
        assert sorted(other.cancel(None)) == ["running", "spared", "waiting"]
    else:
        assert other.cancel("waiting") == ("waiting",)
        assert isinstance(waiting.wait_ended(), RenderCancelled)
        assert other.cancel("running") == ("running",)
    for request in (running, waiting):
        error = request.wait_ended()
        assert isinstance(error, RenderCancelled)
        assert error.details["id"] == request.job
    if cancel_all:
        assert isinstance(spared.wait_ended(), RenderCancelled)
    else:
        assert spared.wait_granted().finish() is None
    assert mine.claims.all() == ()
    assert list((mine.state_store.folder / "jobs").glob("*")) == []


def test_only_existing_jobs_can_be_cancelled_and_llm_requests_are_not_jobs(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    assert arbiter.cancel(None) == ()
    with arbiter.lease("inference", job="a-chat", timeout_s=1), pytest.raises(JobNotFound):
        arbiter.cancel("a-chat")
    with pytest.raises(JobNotFound):
        arbiter.cancel("../state")


def test_every_process_sees_the_progress_of_a_job_until_it_ends(make_arbiter: MakeArbiter) -> None:
    mine, other = in_generation_mode(make_arbiter(restore="never")), make_arbiter(restore="never")
    with mine.lease("generation", job="picture", timeout_s=WAIT_S) as lease:
        lease.report_progress(1, 20)
        assert other.job_progress.get("picture") is None, "nothing is written in the first moments"

        def report() -> object:
            lease.report_progress(4, 20)
            return other.job_progress.get("picture")

        wait_until(report)
        progress = other.job_progress.get("picture")
        assert progress is not None
        assert (progress.step, progress.steps) == (4, 20)
        lease.record_run(4.0)
    assert other.job_progress.get("picture") is None
    assert other.snapshot().pace.seconds_each < 10.0
    assert other.snapshot().claims == ()


# --- a GPU that is not shared, and memory for both -------------------------------------------------


def test_a_job_that_begins_while_a_snapshot_is_taken_is_listed_with_its_request(
    make_arbiter: MakeArbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = in_generation_mode(make_arbiter(restore="never"))
    sender = Sender("r1", "192.0.2.1 curl/8")
    with contextlib.ExitStack() as begun:
        read, has_begun = arbiter.state_store.state, False

        def begin_and_read() -> State:
            """The state is read after the requests, and before the claims."""
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                begun.enter_context(arbiter.listed("r", model="m", jobs=["j"], sender=sender))
                begun.enter_context(arbiter.lease("generation", job="j", timeout_s=WAIT_S))
            return read()

        monkeypatch.setattr(arbiter.state_store, "state", begin_and_read)
        snapshot = arbiter.snapshot()
    assert [claim.job for claim in snapshot.claims] == ["j"]
    assert [request.client for request in snapshot.requests] == [sender.client]


def test_prompts_of_requests_are_private_to_the_user(tmp_path: Path) -> None:
    arbiter = Arbiter(tmp_path)
    with arbiter.listed("r", model="m", jobs=["j"], sender=UNKNOWN_SENDER, prompt="a secret"):
        (path,) = (tmp_path / "requests").glob("*.json")
        assert "a secret" in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_llm_stacks_a_lease_is_granted_at_once_and_can_be_cancelled(tmp_path: Path) -> None:
    arbiter = Arbiter(tmp_path)
    with (
        arbiter.lease("generation", job="one", timeout_s=0),
        arbiter.lease("generation", job="two", timeout_s=0),
    ):
        third = Request(arbiter, "generation", "three", timeout_s=0).wait_granted()
        arbiter.cancel("three")
        assert isinstance(third.wait_ended(), RenderCancelled)
    assert arbiter.state_store.state().mode == "inference"


def test_without_llm_stacks_the_jobs_of_dead_processes_are_cancelled_too(
    tmp_path: Path, engine: FakeEngine
) -> None:
    arbiter = Arbiter(tmp_path, engine=engine)
    with arbiter.lease("generation", job="orphan", timeout_s=0):
        (name,) = (claim.name for claim in arbiter.claims.all())
    (tmp_path / "holds" / name).touch()  # unlocked, as a killed process leaves it
    arbiter.reconciler.tick()
    assert engine.cancelled == ["orphan"]
    assert arbiter.claims.all() == ()


def test_a_lease_that_is_kept_lasts_until_it_is_released(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    with arbiter.lease("generation", job="picture", timeout_s=WAIT_S) as lease:
        release = lease.keep()
    assert [claim.job for claim in arbiter.claims.all()] == ["picture"]
    release()
    assert arbiter.claims.all() == ()


COEXIST = {"sharing": "coexist", "reserve_bytes": 2 * GB, "restore": "never"}


def test_coexist_draws_beside_the_llms_if_there_is_enough_memory(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter(available_bytes=lambda: 10 * GB, **COEXIST)
    picture = Request(arbiter, "generation", "picture", need_bytes=8 * GB).wait_granted()
    assert arbiter.state_store.state().mode == "inference"
    with arbiter.lease("inference", job="chat", timeout_s=1):
        assert sorted(stacks.loaded) == ["chat", "embed"]
    assert picture.finish() is None
    assert arbiter.state_store.state().switch is None


def unreachable_engine() -> int | None:
    raise EngineUnreachable("the engine is down")


@pytest.mark.parametrize(
    ("available", "need"),
    [(lambda: 9 * GB, 8 * GB), (lambda: None, 8 * GB), (unreachable_engine, 8 * GB), (lambda: 80 * GB, 0)],
    ids=["less than need and reserve", "memory unknown", "the engine is down", "need unknown"],
)
def test_coexist_switches_if_the_memory_is_too_small_or_unknown(
    make_arbiter: MakeArbiter, stacks: FakeStacks, available: Any, need: int
) -> None:
    arbiter = make_arbiter(available_bytes=lambda: available() if stacks.loaded else 90 * GB, **COEXIST)
    picture = Request(arbiter, "generation", "picture", need_bytes=need).wait_granted()
    assert arbiter.state_store.state().mode == "generation"
    assert stacks.loaded == {}
    assert picture.finish() is None


def test_coexist_gives_the_engine_no_more_jobs_than_its_depth(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(available_bytes=lambda: 80 * GB, depth=1, **COEXIST)
    first = Request(arbiter, "generation", "first", need_bytes=GB).wait_granted()
    second = Request(arbiter, "generation", "second", need_bytes=GB).wait_queued()
    assert first.finish() is None
    assert second.wait_granted().finish() is None
    assert arbiter.state_store.state().switch is None
