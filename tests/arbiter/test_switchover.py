"""The switchover: its phases, their time limits, failures, and what happens when a process is killed in one."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbiter import UNKNOWN_SENDER, Arbiter, Mode, Policy
from arbiter.policy import NextSwitch, is_open
from arbiter.state_store import StateStore
from errors import (
    ArbiterUnavailable,
    ComfyuiBusy,
    GpuPinned,
    NotGenerating,
    RequestCancelled,
    SwitchInProgress,
)
from gpu_tenant import Failure
from tests.arbiter.conftest import MakeArbiter
from tests.arbiter.fakes import GB, WAIT_S, FakeEngine, FakeStacks, Harness, Request
from tests.arbiter.simulated_gpu import MODELS, Caller, SimulatedGpu, SimulatedGpuServer
from tests.arbiter.soak import PHASES, PROCESSES, Op, Plan, work
from tests.arbiter.soak import make_arbiter as make_soak_arbiter
from tests.waiting import wait_until

TO_GENERATION = ["closing", "draining", "releasing", "verifying", "starting"]
TO_INFERENCE = ["closing", "draining", "releasing", "verifying", "restoring"]


def phases(harness: Harness) -> list[str]:
    return [name for name, _ in harness.switch.phases]


def wait_for_mode(arbiter: Arbiter, mode: Mode) -> None:
    """Waits until `mode` is reached and no switch is active or requested."""

    def is_reached() -> bool:
        state = arbiter.state_store.state()
        return state.mode == mode and not state.active_switch and not state.wanted

    wait_until(is_reached)


# --- success ---------------------------------------------------------------------------------------


def test_a_switch_runs_its_phases_in_order_and_records_their_durations(harness: Harness) -> None:
    harness.stacks.unload_s = 2.0
    started_at = harness.clock.now
    switch = harness.run_switch("generation")
    assert phases(harness) == TO_GENERATION
    assert dict(switch.phases)["verifying"] == pytest.approx(2.0, abs=0.2)
    assert sum(seconds for _, seconds in switch.phases) == pytest.approx(
        harness.clock.now - started_at, abs=0.01
    )
    assert switch.ended == harness.clock.now == harness.state_store.state().since
    assert harness.state_store.state().took_s["generation"] == pytest.approx(2.0, abs=0.2)
    assert harness.state_store.state().mode == "generation"
    assert harness.stacks.loaded == {}

    harness.engine.holds_memory = True
    harness.run_switch("inference")
    assert phases(harness) == TO_INFERENCE
    assert harness.switch.number == 2
    assert harness.state_store.state().mode == "inference"
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]
    assert not harness.engine.holds_memory
    assert harness.state_store.state().saved == ()


def test_no_lease_is_granted_during_a_switch(harness: Harness) -> None:
    open_modes: list[bool] = []

    def check(op: str) -> None:
        state = harness.state_store.state()
        open_modes.append(is_open(state, "inference") or is_open(state, "generation"))

    harness.stacks.on_call = harness.engine.on_call = check
    harness.run_switch("generation")
    harness.run_switch("inference")
    assert len(open_modes) > 8
    assert not any(open_modes)


def test_the_loaded_models_are_saved_before_the_first_unload(harness: Harness) -> None:
    saved: list[Any] = []

    def read_state(op: str) -> None:
        if op == "release":
            document = json.loads((harness.folder / "state.json").read_text())
            saved.append([(item["id"], item["saved"]) for item in document["saved"]])

    harness.stacks.on_call = read_state
    harness.run_switch("generation")
    assert saved[0] == [("chat", {"of": "chat"}), ("embed", {"of": "embed"})]


def test_a_switch_works_with_no_model_loaded(harness: Harness) -> None:
    harness.stacks.loaded = {}
    assert harness.run_switch("generation").error is None
    assert harness.run_switch("inference").failed == ()
    assert harness.stacks.loaded == {}


# --- draining --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["generation", "inference"])
def test_a_switch_waits_for_running_requests(
    make_arbiter: MakeArbiter, stacks: FakeStacks, target: Mode
) -> None:
    arbiter = make_arbiter(restore="never")
    mode: Mode = "inference" if target == "generation" else "generation"
    running = Request(arbiter, mode, "running").wait_granted()
    waiting = Request(arbiter, target, "waits")
    wait_until(lambda: (switch := arbiter.state_store.state().active_switch) and switch.phase == "draining")
    assert arbiter.state_store.state().mode == mode
    assert running.finish() is None
    assert waiting.wait_granted().finish() is None
    assert stacks.loaded.keys() == ({"chat", "embed"} if target == "inference" else set())


def test_a_switch_waits_for_requests_that_easel_did_not_send(harness: Harness) -> None:
    harness.stacks.busy_until = harness.clock.now + 30
    harness.run_switch("generation")
    assert dict(harness.switch.phases)["draining"] == pytest.approx(30, abs=0.2)
    harness.engine.busy_until = harness.clock.now + 40
    harness.run_switch("inference")
    assert dict(harness.switch.phases)["draining"] == pytest.approx(40, abs=0.2)
    assert harness.engine.cancelled == []


@pytest.mark.parametrize("is_own", [True, False], ids=["a lease", "a request of another client"])
@pytest.mark.parametrize("target", ["generation", "inference"])
def test_a_drain_timeout_fails_the_switch_and_changes_nothing(
    harness: Harness, target: Mode, is_own: bool
) -> None:
    if target == "inference":
        harness.run_switch("generation")
    before = harness.state_store.state()
    own_claim = (
        harness.claim("inference" if target == "generation" else "generation", job="slow") if is_own else None
    )
    harness.stacks.busy_until = harness.engine.busy_until = harness.clock.now + (0 if is_own else 10**6)
    switch = harness.run_switch(target)
    assert switch.error is not None
    assert switch.error["phase"] == "draining"
    assert ("slow" if is_own else "not sent by Easel") in switch.error["message"]
    assert dict(switch.phases)["draining"] == pytest.approx(harness.policy.drain_timeout_s, abs=1)
    after = harness.state_store.state()
    assert (after.mode, after.saved) == (before.mode, before.saved)
    assert sorted(harness.stacks.loaded) == ([] if target == "inference" else ["chat", "embed"])
    assert harness.engine.cancelled == []
    if own_claim:
        own_claim.end()


def test_kill_cancels_the_pictures_after_the_drain_timeout(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(on_drain_timeout="kill", drain_timeout_s=0.1, restore="never")
    running = Request(arbiter, "generation", "running").wait_granted()
    llm = Request(arbiter, "inference", "waits").wait_granted()
    error = running.wait_ended()
    assert error is not None
    assert error.code == "gpu.preempted"
    assert None in engine.cancelled
    assert llm.finish() is None


def test_kill_unloads_the_llms_under_a_running_request_after_the_drain_timeout(
    tmp_path: Path, harness: Harness
) -> None:
    harness = Harness(tmp_path / "other", Policy(on_drain_timeout="kill"))
    own_claim = harness.claim("inference")
    assert harness.run_switch("generation").error is None
    assert harness.state_store.state().revoked["inference"] >= own_claim.claim.number
    assert harness.stacks.loaded == {}
    own_claim.end()


# --- verifying -------------------------------------------------------------------------------------


def test_an_unload_without_effect_is_repeated(harness: Harness) -> None:
    harness.stacks.ignored_unloads = 5
    assert harness.run_switch("generation").error is None
    assert harness.stacks.loaded == {}


def test_a_model_that_is_never_unloaded_fails_the_switch_and_the_llms_are_restored(
    harness: Harness,
) -> None:
    harness.stacks.ignored_unloads = 10**6
    switch = harness.run_switch("generation")
    assert switch.error is not None
    assert switch.error["phase"] == "verifying"
    assert "fake/chat, fake/embed" in switch.error["message"]
    assert dict(switch.phases)["verifying"] == pytest.approx(harness.policy.release_timeout_s, abs=1)
    assert phases(harness) == [*TO_GENERATION[:4], "restoring"]
    assert harness.state_store.state().mode == "inference"
    assert is_open(harness.state_store.state(), "inference")
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


def test_a_refused_unload_fails_the_switch_and_the_next_switch_can_succeed(
    harness: Harness,
) -> None:
    harness.stacks.refuses_unload = True
    switch = harness.run_switch("generation")
    assert switch.error is not None
    assert switch.error["phase"] == "releasing"
    assert switch.error["code"] == "llm.refused"
    assert harness.state_store.state().mode == "inference"
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]
    harness.stacks.refuses_unload = False
    assert harness.run_switch("generation").error is None
    assert harness.stacks.loaded == {}


def test_a_model_that_a_late_request_loads_again_is_unloaded_again(harness: Harness) -> None:
    harness.stacks.unload_s = 1.0
    harness.stacks.reloads_at = harness.clock.now + 1.04  # when the list was empty once
    assert harness.run_switch("generation").error is None
    assert harness.stacks.loaded == {}


def test_a_server_that_does_not_respond_for_a_moment_is_read_again(harness: Harness) -> None:
    def stop_responding(op: str) -> None:
        if op == "release":
            harness.stacks.failing_lists = 5

    harness.stacks.on_call = stop_responding
    assert harness.run_switch("generation").error is None


def test_a_server_that_stops_responding_does_not_count_as_unloaded(harness: Harness) -> None:
    harness.stacks.failing_lists = 10**6
    switch = harness.run_switch("generation")
    assert switch.error is not None
    assert switch.error["code"] == "llm.unreachable"
    assert harness.state_store.state().mode == "inference"


def test_an_engine_that_keeps_its_memory_does_not_fail_the_switch_and_is_noted(harness: Harness) -> None:
    harness.run_switch("generation")
    harness.engine.holds_memory = harness.engine.keeps_memory = True
    switch = harness.run_switch("inference")
    assert switch.error is None
    assert "engine/models" in switch.notes[0]
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


# --- restoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True], ids=["one model", "the whole server"])
def test_a_model_that_cannot_be_loaded_again_is_reported_and_does_not_fail_the_switch(
    harness: Harness, raises: bool
) -> None:
    harness.run_switch("generation")
    harness.stacks.load_errors, harness.stacks.fails_restore = {"chat": "too little memory"}, raises
    switch = harness.run_switch("inference")
    assert switch.error is None
    assert (
        Failure("fake", "chat", "the fake does not respond" if raises else "too little memory")
        in switch.failed
    )
    assert len(switch.failed) == (2 if raises else 1)
    assert sorted(harness.stacks.loaded) == ([] if raises else ["embed"])
    assert harness.state_store.state().mode == "inference"
    assert is_open(harness.state_store.state(), "inference")
    count = switch.number
    harness.run_ticks(7200, interval_s=10)
    assert harness.switch.number == count, "it is not tried again"


# --- free memory -----------------------------------------------------------------------------------


def rising_memory(harness: Harness, seconds: float, before: int, then: int) -> Callable[[], int]:
    """Free memory that rises from `before` to `then`, `seconds` after the start and once nothing is loaded."""
    start = harness.clock.now

    def free() -> int:
        is_freed = not harness.stacks.loaded and harness.clock.now >= start + seconds
        return then if is_freed else before

    return free


def test_memory_that_is_never_freed_fails_the_switch_and_the_llms_are_restored(harness: Harness) -> None:
    harness.free = lambda: 2 * GB
    ticket = harness.claim("generation", "ticket", need=8 * GB)
    switch = harness.run_switch("generation")
    ticket.end()
    assert switch.error is not None
    assert switch.error["code"] == "gpu.switch_failed"
    assert switch.error["phase"] == "verifying"
    assert "2.0 GB" in switch.error["message"]
    assert dict(switch.phases)["verifying"] == pytest.approx(harness.policy.verify_timeout_s, abs=1)
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


@pytest.mark.parametrize("need", [0, 8 * GB])
def test_an_llm_that_held_little_memory_does_not_fail_the_switch_if_enough_is_free(
    harness: Harness, need: int
) -> None:
    """A small embedding model, or one on the CPU; and a GPU with 8 GB never has all of them free."""
    harness.free = lambda: int(7.6 * GB)
    ticket = harness.claim("generation", "ticket", need=need)
    switch = harness.run_switch("generation")
    ticket.end()
    assert (switch.error, len(switch.notes)) == (None, 1)


@pytest.mark.parametrize("need", [0, 8 * GB])
@pytest.mark.parametrize("freed", [0, 6 * GB], ids=["nothing was freed", "memory was freed"])
def test_a_switch_fails_if_less_than_min_free_gb_is_free_however_little_is_missing(
    tmp_path: Path, need: int, freed: int
) -> None:
    harness = Harness(tmp_path, Policy(min_free_bytes=10 * GB))
    harness.free = rising_memory(harness, 1.0, int(9.9 * GB) - freed, int(9.9 * GB))
    ticket = harness.claim("generation", "ticket", need=need)
    switch = harness.run_switch("generation")
    ticket.end()
    assert switch.error is not None
    assert "9.9 GB" in switch.error["message"]
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


def test_a_process_that_resumes_a_switch_after_the_unload_still_verifies_the_memory(harness: Harness) -> None:
    harness.free = lambda: 1 * GB
    harness.state_store.update(lambda state: replace(state, saved=harness.stacks.resident()))
    harness.stacks.loaded.clear()
    with harness.state_store.mutex():
        harness.switchover.begin(NextSwitch("generation", "requested"))
    interrupted = replace(harness.switch, pid=1, phase="verifying", had=True, free_before=1 * GB)
    harness.state_store.update(lambda state: replace(state, switch=interrupted))
    ticket = harness.claim("generation", "ticket", need=8 * GB)
    switch = harness.resume()
    ticket.end()
    assert switch.error is not None
    assert "1.0 GB" in switch.error["message"]
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


def test_a_switch_waits_for_memory_that_is_freed_late(harness: Harness) -> None:
    harness.free = rising_memory(harness, 7.0, 2 * GB, 20 * GB)
    switch = harness.run_switch("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] == pytest.approx(7.0, abs=0.5)


def test_a_switch_does_not_wait_if_enough_memory_is_free(harness: Harness) -> None:
    """It need not rise: the models were on another GPU, or asleep in RAM."""
    harness.free = lambda: 12 * GB
    ticket = harness.claim("generation", "ticket", need=8 * GB)
    switch = harness.run_switch("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] < 0.5
    ticket.end()


def test_a_model_that_needs_more_than_the_gpu_has_waits_only_until_no_more_is_freed(harness: Harness) -> None:
    harness.free = rising_memory(harness, 1.0, 2 * GB, 20 * GB)
    ticket = harness.claim("generation", "ticket", need=48 * GB)
    switch = harness.run_switch("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] < 2.0
    ticket.end()


def test_a_switch_does_not_wait_if_the_free_memory_is_unknown(harness: Harness) -> None:
    harness.free = lambda: None
    assert dict(harness.run_switch("generation").phases)["verifying"] < 0.5


def test_a_switch_does_not_wait_for_memory_if_nothing_was_loaded(harness: Harness) -> None:
    harness.stacks.loaded = {}
    harness.free = lambda: 2 * GB
    assert harness.run_switch("generation").error is None


# --- the engine ------------------------------------------------------------------------------------


def test_a_switch_starts_an_engine_that_is_down(harness: Harness) -> None:
    harness.engine.is_up = False
    assert harness.run_switch("generation").error is None
    assert harness.engine.starts == 1


def test_an_engine_that_does_not_start_fails_the_switch_and_the_llms_are_restored(harness: Harness) -> None:
    harness.engine.is_up, harness.engine.failing_starts = False, 1
    switch = harness.run_switch("generation")
    assert switch.error is not None
    assert (switch.error["code"], switch.error["phase"]) == ("engine.start_failed", "starting")
    assert harness.state_store.state().mode == "inference"
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]
    assert harness.run_switch("generation").error is None


def test_an_engine_that_goes_down_in_generation_mode_is_started_again(harness: Harness) -> None:
    harness.run_switch("generation", pin=True)
    harness.engine.is_up = False
    harness.run_ticks(5)
    assert harness.engine.starts == 1
    assert harness.switch.reason == "the engine is down"
    assert harness.switch.error is None
    state = harness.state_store.state()
    assert (state.mode, state.pinned) == ("generation", True)
    harness.run_switch("inference")
    assert sorted(harness.stacks.loaded) == ["chat", "embed"], "the repair keeps what was saved"


def test_an_engine_that_cannot_be_started_again_leads_to_a_switch_to_inference(harness: Harness) -> None:
    harness.run_switch("generation")
    harness.engine.is_up, harness.engine.failing_starts = False, 10**6
    harness.run_ticks(10)
    assert harness.state_store.state().mode == "inference"
    assert not harness.state_store.state().active_switch
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


# --- LLMs loaded outside Easel ---------------------------------------------------------------------


def test_an_llm_that_is_loaded_during_a_picture_is_unloaded_and_loaded_again_after_it(
    harness: Harness,
) -> None:
    harness.run_switch("generation")
    picture = harness.claim("generation")
    harness.stacks.loaded["outside"] = None
    harness.run_ticks(3)
    assert harness.stacks.loaded == {}
    assert harness.switch.reason == "loaded outside Easel: fake/outside"
    assert harness.state_store.state().mode == "generation"
    picture.end()
    harness.run_switch("inference")
    assert sorted(harness.stacks.loaded) == ["outside"], (
        "it may not fit beside the ones that were loaded before"
    )


def test_an_llm_that_is_loaded_while_nothing_is_drawn_is_never_unloaded(harness: Harness) -> None:
    harness.run_switch("generation")
    harness.engine.holds_memory = True
    harness.stacks.loaded["outside"] = None
    released: list[str] = []
    harness.stacks.on_call = lambda op: released.append(op) if op == "release" else None
    harness.run_ticks(2)
    assert harness.state_store.state().mode == "inference"
    assert harness.switch.reason == "LLM loaded: fake/outside"
    assert "outside" in harness.stacks.loaded
    assert released == []
    assert not harness.engine.holds_memory


def test_an_llm_that_is_loaded_during_the_switch_is_loaded_again_later(harness: Harness) -> None:
    harness.stacks.unload_s = 2.0
    harness.stacks.late_request = ("late", harness.clock.now + 1)
    harness.run_switch("generation")
    assert harness.stacks.loaded == {}
    assert [item.id for item in harness.state_store.state().saved] == ["chat", "embed", "late"]


def test_no_llm_is_loaded_while_a_picture_is_drawn_even_if_an_outside_llm_cannot_be_unloaded(
    harness: Harness,
) -> None:
    harness.run_switch("generation")
    harness.engine.holds_memory = True
    picture = harness.claim("generation")
    harness.stacks.loaded["outside"], harness.stacks.ignored_unloads = None, 10**6

    def check(op: str) -> None:
        assert op != "restore" or (not harness.engine.holds_memory and not harness.claims.all())

    harness.stacks.on_call = check
    harness.run_ticks(62)
    assert sorted(harness.stacks.loaded) == ["outside"]
    picture.end()
    harness.run_ticks(5)
    assert harness.state_store.state().mode == "inference", "a failed repair leads to a switch to inference"
    assert sorted(harness.stacks.loaded) == ["outside"]


@pytest.mark.parametrize("sharing", ["exclusive", "coexist"])
def test_coexist_leaves_outside_llms_loaded(tmp_path: Path, sharing: Any) -> None:
    harness = Harness(tmp_path, Policy(sharing=sharing))
    harness.run_switch("generation")
    picture = harness.claim("generation")
    harness.stacks.loaded["outside"] = None
    harness.run_ticks(3)
    assert list(harness.stacks.loaded) == ([] if sharing == "exclusive" else ["outside"])
    picture.end()


# --- restore ---------------------------------------------------------------------------------------


def in_generation_mode(folder: Path, *, pin: bool = False, **policy: Any) -> Harness:
    harness = Harness(folder, Policy(**{"min_stay_s": 30, "restore": "idle", "idle_restore_s": 600} | policy))
    harness.run_switch("generation", pin=pin)
    return harness


def test_idle_restores_inference_mode_once(tmp_path: Path) -> None:
    harness = in_generation_mode(tmp_path)
    harness.run_ticks(599, interval_s=1)
    assert harness.state_store.state().mode == "generation"
    harness.run_ticks(5, interval_s=1)
    assert harness.state_store.state().mode == "inference"
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]
    harness.run_ticks(7200, interval_s=10)
    assert harness.switch.number == 2


def test_a_pinned_gpu_is_not_restored(tmp_path: Path) -> None:
    harness = in_generation_mode(tmp_path, pin=True)
    harness.run_ticks(7200, interval_s=10)
    assert harness.state_store.state().mode == "generation"


def test_a_render_of_another_client_is_not_idle_time(tmp_path: Path) -> None:
    harness = in_generation_mode(tmp_path)
    harness.engine.busy_until = harness.clock.now + 1000
    harness.run_ticks(1150, interval_s=5)
    assert (harness.state_store.state().mode, harness.switch.number) == ("generation", 1)
    harness.run_ticks(700, interval_s=5)
    assert harness.state_store.state().mode == "inference"


def test_linger_restores_inference_mode_soon_after_the_last_picture(tmp_path: Path) -> None:
    harness = Harness(tmp_path, Policy(min_stay_s=30, linger_s=5))
    first = harness.claim("generation", "ticket")
    harness.run_ticks(1)
    assert harness.switch.reason == "image request"
    harness.run_ticks(60)
    first.end()
    harness.state_store.record_use(harness.clock.now)
    harness.run_ticks(4)
    second = harness.claim("generation")
    harness.run_ticks(10)
    second.end()
    harness.state_store.record_use(harness.clock.now)
    harness.run_ticks(4.5)
    assert harness.switch.number == 1, "a burst of pictures costs one switch"
    harness.run_ticks(1)
    assert harness.state_store.state().mode == "inference"
    assert harness.switch.reason == "no more pictures"


def test_an_engine_that_does_not_answer_fails_the_restore_once_in_each_minimum_stay(tmp_path: Path) -> None:
    harness = Harness(tmp_path, Policy(min_stay_s=30, linger_s=5))
    picture = harness.claim("generation", "ticket")
    harness.run_switch("generation", reason="image request")
    picture.end()
    harness.engine.is_hung = True
    harness.run_ticks(40)
    assert harness.switch.error is not None
    assert harness.switch.number == 3, "the first attempt after 5 s, the second 30 s later"


def test_never_keeps_generation_mode(tmp_path: Path) -> None:
    harness = in_generation_mode(tmp_path, restore="never")
    harness.run_ticks(7200, interval_s=10)
    assert harness.state_store.state().mode == "generation"


def test_llms_that_were_loaded_while_easel_was_down_stay_loaded_when_it_starts(
    tmp_path: Path, make_arbiter: MakeArbiter, stacks: FakeStacks, engine: FakeEngine
) -> None:
    first = make_arbiter(restore="never")
    first.switch("generation")
    wait_for_mode(first, "generation")
    first.reconciler.stop()
    stacks.loaded = {"chat": None}
    wait_for_mode(make_arbiter(restore="never"), "inference")
    assert sorted(stacks.loaded) == ["chat", "embed"]


def test_a_repair_that_outlives_its_picture_does_not_unload_the_next_chat(harness: Harness) -> None:
    harness.run_switch("generation", reason="requested")
    picture = harness.claim("generation")
    harness.stacks.loaded["first"], harness.stacks.unload_s = None, 3.0
    released: list[str] = []

    def call(op: str) -> None:
        if op == "release":
            released.append(op)
            picture.end()
            harness.stacks.late_request = ("second", harness.clock.now + 0.5)

    harness.stacks.on_call = call
    harness.run_ticks(8)
    assert released == ["release"], "only the chat that came during the picture was unloaded"
    assert "second" in harness.stacks.loaded
    assert harness.state_store.state().mode == "inference"


def test_a_switch_whose_client_leaves_while_it_unloads_turns_back(harness: Harness) -> None:
    picture = harness.claim("generation", "ticket")
    harness.stacks.unload_s = 3.0
    calls: list[str] = []

    def call(op: str) -> None:
        calls.append(op)
        if op == "release":
            picture.end()

    harness.stacks.on_call = call
    harness.run_ticks(8)
    assert calls.count("release") == 1
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]
    assert harness.state_store.state().mode == "inference"
    assert harness.switch.error is None
    assert "turned back: no picture is drawn or waits any more" in harness.switch.notes


def test_a_picture_does_not_wait_for_models_that_it_would_unload_at_once(harness: Harness) -> None:
    harness.run_switch("generation", reason="requested")
    loaded: list[str] = []
    pictures = []

    def call(op: str) -> None:
        if op == "restore":
            loaded.append(op)
            pictures.append(harness.claim("generation", "ticket"))

    harness.stacks.on_call = call
    harness.run_switch("inference")
    assert harness.stacks.loaded == {}
    assert [item.id for item in harness.state_store.state().saved] == ["chat", "embed"]
    harness.stacks.on_call = lambda op: None
    harness.run_ticks(1)
    assert harness.state_store.state().mode == "generation"
    pictures[0].end()
    harness.run_switch("inference")
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


def test_a_repair_unloads_what_is_known_although_another_server_hangs(harness: Harness) -> None:
    harness.run_switch("generation")
    picture = harness.claim("generation")
    harness.stacks.loaded["outside"] = None
    harness.stacks.hides_behind_error = True
    harness.run_ticks(3)
    assert harness.stacks.loaded == {}
    assert harness.switch.error is None
    picture.end()


@pytest.mark.parametrize("busy_s", [0.0, 1.0])
def test_the_last_process_hands_the_gpu_back_and_waits_for_jobs_that_comfyui_still_has(
    make_arbiter: MakeArbiter, stacks: FakeStacks, engine: FakeEngine, busy_s: float
) -> None:
    arbiter = make_arbiter(restore="idle")
    with arbiter.lease("generation", job="picture", timeout_s=WAIT_S):
        pass
    assert stacks.loaded == {}
    engine.busy_until = time.time() + busy_s
    arbiter.restore_before_exit(WAIT_S)
    assert arbiter.state_store.state().mode == "inference"
    assert sorted(stacks.loaded) == ["chat", "embed"]
    assert time.time() >= engine.busy_until
    assert engine.cancelled == []


def test_a_second_signal_ends_the_wait_for_the_gpu_to_be_handed_back(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(restore="idle")
    with arbiter.lease("generation", job="picture", timeout_s=WAIT_S):
        pass
    engine.busy_until = time.time() + 5
    started_at = time.monotonic()
    arbiter.restore_before_exit(WAIT_S, lambda: time.monotonic() - started_at > 0.2)
    assert time.monotonic() - started_at < 4


def test_a_stop_cancels_a_switch_to_generation_that_has_not_unloaded_anything(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter()
    stacks.busy_until = time.time() + 5
    arbiter.switch("generation")
    wait_until(lambda: arbiter.state_store.state().active_switch)
    started_at = time.monotonic()
    arbiter.restore_before_exit(WAIT_S)
    assert time.monotonic() - started_at < 4
    assert arbiter.state_store.state().mode == "inference"
    assert sorted(stacks.loaded) == ["chat", "embed"]


def test_sketches_count_for_no_decision_about_the_gpu(make_arbiter: MakeArbiter, stacks: FakeStacks) -> None:
    arbiter = make_arbiter(restore="never")
    with arbiter.lease("generation", job="picture", timeout_s=WAIT_S):
        pass
    with arbiter.lease("generation", job="sketch", timeout_s=WAIT_S, uses_gpu=False):
        stacks.loaded = {"chat": None}
        wait_for_mode(arbiter, "inference")
        assert "chat" in stacks.loaded
        assert [claim.job for claim in arbiter.snapshot().claims] == ["sketch"]
    with arbiter.lease("generation", job="sketch", timeout_s=WAIT_S, uses_gpu=False):
        assert arbiter.state_store.state().mode == "inference"
        assert arbiter.cancel("sketch") == ("sketch",)


def test_a_retry_after_counts_the_later_jobs_of_the_present_requests(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(restore="never")
    arbiter.state_store.record_use(time.time(), 2.0)
    jobs = [f"job-{number}" for number in range(10)]
    with (
        arbiter.listed("request", model="m", jobs=jobs, sender=UNKNOWN_SENDER),
        arbiter.lease("generation", job=jobs[2], timeout_s=WAIT_S),
    ):
        assert arbiter.seconds_until("generation") == 8 * 2
    assert arbiter.seconds_until("generation") == 1


def test_a_picture_is_not_drawn_beside_an_llm_that_was_loaded_a_moment_ago(
    make_arbiter: MakeArbiter, stacks: FakeStacks, engine: FakeEngine
) -> None:
    # No check of the monitor in between: the request itself looks.
    arbiter = make_arbiter(restore="never", check_interval_s=WAIT_S)
    with arbiter.lease("generation", job="first", timeout_s=WAIT_S):
        pass
    stacks.loaded = {"chat": None}
    stacks.busy_until = time.time() + 0.3
    with arbiter.lease("generation", job="second", timeout_s=WAIT_S):
        assert stacks.loaded == {}
        assert time.time() >= stacks.busy_until, "the chat came first and was not cut"
    switch = arbiter.state_store.state().switch
    assert switch is not None
    assert switch.number == 3, "to the pictures, to the chat, and back"


def test_soon_after_a_failed_switch_a_picture_is_not_drawn_beside_an_llm_either(
    make_arbiter: MakeArbiter, stacks: FakeStacks, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(restore="never", check_interval_s=WAIT_S, min_stay_s=WAIT_S)
    with arbiter.lease("generation", job="first", timeout_s=WAIT_S):
        pass
    engine.is_hung = True
    arbiter.switch("inference")
    wait_until(lambda: (switch := arbiter.state_store.state().switch) and switch.error and switch.ended)
    engine.is_hung = False
    stacks.loaded = {"chat": None}
    with arbiter.lease("generation", job="second", timeout_s=WAIT_S):
        assert stacks.loaded == {}
    assert [item.id for item in arbiter.state_store.state().saved] == ["chat", "embed"]


def test_a_hung_llm_server_delays_a_picture_in_generation_mode_by_about_two_seconds(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter(restore="never", check_interval_s=WAIT_S)
    with arbiter.lease("generation", job="first", timeout_s=WAIT_S):
        pass
    answer = threading.Event()
    stacks.on_call = lambda op: answer.wait(WAIT_S) and None
    started_at = time.monotonic()
    with arbiter.lease("generation", job="second", timeout_s=WAIT_S):
        assert 1.9 < time.monotonic() - started_at < 10
    answer.set()


# --- explicit requests -----------------------------------------------------------------------------


def test_a_requested_switch_is_a_noop_once_its_mode_is_reached(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    assert arbiter.switch("inference") == "noop"
    assert arbiter.switch("generation") == "switching"
    wait_for_mode(arbiter, "generation")
    assert arbiter.switch("generation") == "noop"


def test_a_pin_is_applied_in_a_noop(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(linger_s=0)
    arbiter.switch("generation", pin=True)
    wait_for_mode(arbiter, "generation")
    for pin, pinned in ((None, True), (False, False), (None, False), (True, True)):
        with arbiter.lease("generation", job="keeps-the-mode", timeout_s=WAIT_S):
            assert arbiter.switch("generation", pin=pin) == "noop"
            assert arbiter.state_store.state().pinned is pinned


def test_a_pin_ends_with_its_generation_mode(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(restore="never")
    for pinned in (True, False):
        arbiter.switch("generation", pin=pinned or None)
        wait_for_mode(arbiter, "generation")
        assert arbiter.state_store.state().pinned is pinned, "an old pin does not apply again"
        arbiter.switch("inference", force=True)
        wait_for_mode(arbiter, "inference")
        assert arbiter.state_store.state().pinned is False


def test_only_generation_mode_can_be_pinned(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    with pytest.raises(NotGenerating):
        arbiter.pin(True)
    arbiter.pin(False)
    arbiter.switch("generation")
    wait_for_mode(arbiter, "generation")
    arbiter.pin(True)
    assert arbiter.state_store.state().pinned


def test_a_switch_from_a_pinned_mode_is_refused_unless_forced(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    arbiter.switch("generation", pin=True)
    wait_for_mode(arbiter, "generation")
    with pytest.raises(GpuPinned):
        arbiter.switch("inference")
    assert arbiter.state_store.state().wanted is None
    assert arbiter.switch("inference", force=True) == "switching"
    wait_for_mode(arbiter, "inference")


def test_a_switch_from_a_busy_engine_is_refused_with_its_queue_and_a_retry_after(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = make_arbiter(depth=2, restore="never")
    first = Request(arbiter, "generation", "first").wait_granted()
    second = Request(arbiter, "generation", "second").wait_granted()
    third = Request(arbiter, "generation", "third").wait_queued()
    with pytest.raises(ComfyuiBusy) as refused:
        arbiter.switch("inference")
    assert refused.value.details["queue"] == {"running": 1, "pending": 2}
    assert refused.value.details["retry_after_s"] >= 1
    assert arbiter.state_store.state().wanted is None
    assert [request.finish() for request in (first, second, third)] == [None] * 3


def test_a_job_of_comfyuis_own_page_makes_the_engine_busy_too(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(restore="never")
    arbiter.switch("generation")
    wait_for_mode(arbiter, "generation")
    engine.busy_until = float("inf")
    with pytest.raises(ComfyuiBusy) as refused:
        arbiter.switch("inference")
    assert refused.value.details["queue"] == {"running": 1, "pending": 0}
    assert arbiter.switch("inference", force=True) == "switching"
    wait_for_mode(arbiter, "inference")
    assert None in engine.cancelled, "force cancels the job itself"


def test_an_image_request_that_arrives_after_a_switch_request_waits(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(reconciles=False, restore="never", min_stay_s=10**6)
    arbiter.switch("generation")
    arbiter.reconciler.tick()
    assert arbiter.state_store.state().mode == "generation"
    arbiter.switch("inference")
    late = Request(arbiter, "generation", "late").wait_queued()
    arbiter.reconciler.tick()
    assert arbiter.state_store.state().mode == "inference"
    assert not late.is_granted
    late.is_cancelled = True
    assert late.wait_ended() is not None


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "by an image request"])
def test_a_switch_request_during_a_switch_is_refused_with_its_target(
    make_arbiter: MakeArbiter, explicit: bool
) -> None:
    arbiter = make_arbiter(restore="never")
    llm = Request(arbiter, "inference", "llm").wait_granted()
    picture = None if explicit else Request(arbiter, "generation", "picture")
    if explicit:
        arbiter.switch("generation")
    switch = wait_until(lambda: arbiter.state_store.state().active_switch)
    assert switch.target == "generation"
    for mode in ("generation", "inference"):
        with pytest.raises(SwitchInProgress) as refused:
            arbiter.switch(mode, force=True)
        assert refused.value.details["target"] == "generation"
        assert refused.value.details["retry_after_s"] >= 1
    assert llm.finish() is None
    wait_for_mode(arbiter, "generation")
    if picture:
        assert picture.wait_granted().finish() is None


def test_of_many_switch_requests_at_the_same_time_one_is_accepted(make_arbiter: MakeArbiter) -> None:
    arbiter, results = make_arbiter(reconciles=False), list[str]()

    def request() -> None:
        try:
            results.append(arbiter.switch("generation"))
        except SwitchInProgress as error:
            results.append(error.code)

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["comfyui.switch_in_progress"] * 7 + ["switching"]


def test_without_llm_stacks_switch_and_pin_are_refused(tmp_path: Path) -> None:
    arbiter = Arbiter(tmp_path)
    for request in (
        lambda: arbiter.switch("generation"),
        lambda: arbiter.switch("inference", force=True),
        lambda: arbiter.pin(True),
        lambda: arbiter.pin(False),
    ):
        with pytest.raises(ArbiterUnavailable):
            request()


# --- killed processes ------------------------------------------------------------------------------


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[SimulatedGpu]:
    gpu = SimulatedGpu(starts_at=0.0)
    server = SimulatedGpuServer(tmp_path / "socket", gpu)
    yield gpu
    server.close()


@pytest.fixture
def call(tmp_path: Path, gpu: SimulatedGpu) -> Iterator[Caller]:
    caller = Caller(tmp_path / "socket", "test")
    yield caller
    caller.close()


def run_killed_process(folder: Path, socket: Path, target: Mode, phase: str) -> None:
    """Runs a process that runs a switch and is killed at the start of a phase."""
    policy = Policy(min_stay_s=0, restore="never", poll_interval_s=0.002, reconcile_interval_s=0.002)
    plan = Plan(0, policy, (Op(60, 0, "switch", {"mode": target}),), {}, (), None)
    no_llm = "http://127.0.0.1:1"  # the plan has no LLM request
    child = PROCESSES.Process(target=work, args=(folder, socket, no_llm, 0, plan, "", phase), daemon=True)
    child.start()
    child.join(WAIT_S)
    assert child.exitcode == -9


KILLS = [("generation", phase) for phase in TO_GENERATION] + [("inference", phase) for phase in TO_INFERENCE]


@pytest.mark.parametrize(("target", "phase"), KILLS)
def test_a_switch_whose_process_was_killed_is_resumed_and_no_model_is_lost(
    tmp_path: Path, gpu: SimulatedGpu, call: Caller, target: Mode, phase: str
) -> None:
    arbiter = make_soak_arbiter(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    if target == "inference":
        arbiter.switch("generation")
        arbiter.reconciler.tick()
    arbiter.switch(target)
    run_killed_process(tmp_path / "gpu", tmp_path / "socket", target, phase)

    interrupted = StateStore(tmp_path / "gpu").state()
    assert interrupted.active_switch is not None
    assert interrupted.active_switch.phase == phase
    survivor = make_soak_arbiter(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    survivor.reconciler.tick()
    state = survivor.state_store.state()
    assert state.switch is not None
    assert (state.mode, state.switch.error, state.switch.resumed) == (target, None, 1)
    if target == "generation":
        assert call("resident") == []
        survivor.switch("inference")
        survivor.reconciler.tick()
    assert call("resident") == sorted(MODELS)
    assert gpu.violations == []


def test_a_failed_switch_whose_process_was_killed_while_it_restored_is_resumed_too(
    tmp_path: Path, gpu: SimulatedGpu, call: Caller
) -> None:
    gpu.misbehaviour.failing_starts = 1
    arbiter = make_soak_arbiter(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    arbiter.switch("generation")
    run_killed_process(tmp_path / "gpu", tmp_path / "socket", "generation", "restoring")
    assert call("resident") == []
    arbiter.reconciler.tick()
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert state.switch.error is not None
    assert state.switch.error["phase"] == "starting"
    assert state.mode == "inference"
    assert call("resident") == sorted(MODELS)


@pytest.mark.parametrize("phase", ["verifying", "starting"])
def test_a_resumed_switch_that_fails_while_draining_restores_what_was_unloaded_before(
    tmp_path: Path, gpu: SimulatedGpu, call: Caller, phase: str
) -> None:
    """The process that was killed had unloaded everything."""
    arbiter = make_soak_arbiter(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    arbiter.switch("generation")
    run_killed_process(tmp_path / "gpu", tmp_path / "socket", "generation", phase)
    wait_until(lambda: call("resident") == [])
    gpu.misbehaviour.failing_lists = 1
    arbiter.reconciler.tick()
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert state.switch.error is not None
    assert state.switch.error["phase"] == "draining"
    assert state.mode == "inference"
    assert call("resident") == sorted(MODELS)


def test_a_switch_is_resumed_after_a_crash_even_with_the_same_process_id(harness: Harness) -> None:
    """In a container the server often gets the process id that it had before."""

    class PowerCut(BaseException):
        pass

    def cut(op: str) -> None:
        if op == "resident" and harness.switch.phase == "verifying":
            raise PowerCut

    harness.stacks.on_call = cut
    with pytest.raises(PowerCut):
        harness.run_switch("generation")
    restarted = Harness(harness.folder, clock=harness.clock)
    restarted.stacks.loaded = {}
    assert restarted.resume().error is None
    restarted.run_switch("inference")
    assert sorted(restarted.stacks.loaded) == ["chat", "embed"]


def abandon(harness: Harness, job: str) -> None:
    """A lease as a killed process leaves it: its file is there and unlocked."""
    claim = harness.claim("generation", job=job)
    name = claim.claim.name
    claim.end()
    (harness.folder / "holds" / name).touch()


def test_a_cancel_that_the_engine_loses_is_repeated_and_the_lease_stays_until_the_job_is_gone(
    harness: Harness,
) -> None:
    abandon(harness, "orphan")
    harness.engine.lost_cancels = 3
    for asked in (1, 2, 3):
        harness.switchover.reclaim_dead_leases()
        assert harness.engine.cancelled == ["orphan"] * asked
        assert [claim.job for claim in harness.claims.all()] == ["orphan"]
    harness.switchover.reclaim_dead_leases()
    assert harness.claims.all() == ()


def test_the_lease_of_a_job_that_never_ends_ends_after_two_minutes(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    abandon(harness, "orphan")
    harness.engine.lost_cancels = 1000
    harness.switchover.reclaim_dead_leases()
    harness.clock.sleep(119)
    harness.switchover.reclaim_dead_leases()
    assert len(harness.claims.all()) == 1
    harness.clock.sleep(2)
    harness.switchover.reclaim_dead_leases()
    assert harness.claims.all() == ()
    assert "orphan still runs" in caplog.text
    assert caplog.text.count("is gone, cancelling the job") == 1


def test_the_job_of_a_dead_process_is_cancelled_before_the_gpu_is_handed_over(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.run_switch("generation")
    own_claim = harness.claim("generation", job="orphan")
    name = own_claim.claim.name
    own_claim.end()
    (harness.claims.folder / name).touch()  # unlocked, as a killed process leaves it
    with caplog.at_level(logging.WARNING):
        assert harness.run_switch("inference").error is None
    assert harness.engine.cancelled == ["orphan"]
    assert harness.claims.all() == ()


def test_a_process_is_killed_in_every_phase() -> None:
    assert {phase for _, phase in KILLS} == set(PHASES)


def test_a_switch_is_cancelled_when_no_request_waits_for_it_any_more(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter()
    with arbiter.lease("inference", job="chat", timeout_s=WAIT_S):
        waiting = Request(arbiter, "generation", "picture").wait_queued()
        wait_until(lambda: arbiter.state_store.state().active_switch)
        waiting.is_cancelled = True
        assert isinstance(waiting.wait_ended(), RequestCancelled)
        wait_until(lambda: arbiter.state_store.state().active_switch is None)
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert (state.mode, state.switch.error, state.switch.notes) == (
        "inference",
        None,
        ("cancelled: no request waits for it any more",),
    )
    assert sorted(stacks.loaded) == ["chat", "embed"]
    assert Request(arbiter, "generation", "another").wait_granted().finish() is None
