"""Passing the GPU on: phase by phase, each bounded, and never by believing what somebody answered."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter, Mode, Policy
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
from tests.arbiter.fakes import GB, WAIT_S, FakeEngine, FakeStacks, Request, Stage, until
from tests.arbiter.soak import PHASES, PROCESSES, Op, Plan, work
from tests.arbiter.soak import make_arbiter as arbiter_of_the_world
from tests.arbiter.world import MODELS, Caller, World, WorldServer

TO_GENERATION = ["closing", "draining", "releasing", "verifying", "starting"]
TO_INFERENCE = ["closing", "draining", "releasing", "verifying", "restoring"]


def phases(stage: Stage) -> list[str]:
    return [name for name, _ in stage.switch.phases]


def told(arbiter: Arbiter, mode: Mode) -> None:
    """The mode is `mode` and nothing is under way."""

    def is_so() -> bool:
        state = arbiter.state_store.state()
        return state.mode == mode and not state.under_way and not state.wanted

    until(is_so)


# --- a switch that goes well -----------------------------------------------------------------------


def test_each_way_goes_through_its_phases_in_order_and_tells_how_long_each_took(stage: Stage) -> None:
    stage.stacks.unload_s = 2.0
    began = stage.clock.now
    switch = stage.play("generation")
    assert phases(stage) == TO_GENERATION
    assert dict(switch.phases)["verifying"] == pytest.approx(2.0, abs=0.2)
    assert sum(seconds for _, seconds in switch.phases) == pytest.approx(stage.clock.now - began, abs=0.01)
    assert switch.ended == stage.clock.now == stage.state_store.state().since
    assert stage.state_store.state().took_s["generation"] == pytest.approx(2.0, abs=0.2)
    assert stage.state_store.state().mode == "generation"
    assert stage.stacks.loaded == {}

    stage.engine.claims = True
    stage.play("inference")
    assert phases(stage) == TO_INFERENCE
    assert stage.switch.number == 2
    assert stage.state_store.state().mode == "inference"
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]
    assert not stage.engine.claims
    assert stage.state_store.state().saved == ()


def test_from_its_first_moment_to_its_last_a_switch_lets_nobody_in(stage: Stage) -> None:
    seen: list[bool] = []

    def look(op: str) -> None:
        state = stage.state_store.state()
        seen.append(is_open(state, "inference") or is_open(state, "generation"))

    stage.stacks.before = stage.engine.before = look
    stage.play("generation")
    stage.play("inference")
    assert len(seen) > 8
    assert not any(seen)


def test_what_is_to_be_loaded_again_is_written_down_before_the_first_unload(stage: Stage) -> None:
    on_disk: list[Any] = []

    def look(op: str) -> None:
        if op == "release":
            document = json.loads((stage.folder / "state.json").read_text())
            on_disk.append([(item["id"], item["saved"]) for item in document["saved"]])

    stage.stacks.before = look
    stage.play("generation")
    assert on_disk[0] == [("chat", {"of": "chat"}), ("embed", {"of": "embed"})]


def test_a_mode_with_nothing_loaded_is_handed_over_as_well(stage: Stage) -> None:
    stage.stacks.loaded = {}
    assert stage.play("generation").error is None
    assert stage.play("inference").failed == ()
    assert stage.stacks.loaded == {}


# --- draining --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["generation", "inference"])
def test_a_switch_waits_for_what_runs_and_cuts_nobody(
    make_arbiter: MakeArbiter, stacks: FakeStacks, target: Mode
) -> None:
    arbiter = make_arbiter(restore="never")
    mode: Mode = "inference" if target == "generation" else "generation"
    running = Request(arbiter, mode, "running").gets_it()
    other = Request(arbiter, target, "waits")
    until(lambda: (switch := arbiter.state_store.state().under_way) and switch.phase == "draining")
    assert arbiter.state_store.state().mode == mode
    assert running.lets_go() is None
    assert other.gets_it().lets_go() is None
    assert stacks.loaded.keys() == ({"chat", "embed"} if target == "inference" else set())


def test_requests_that_easel_did_not_send_are_waited_for_as_well(stage: Stage) -> None:
    stage.stacks.busy_until = stage.clock.now + 30
    stage.play("generation")
    assert dict(stage.switch.phases)["draining"] == pytest.approx(30, abs=0.2)
    stage.engine.renders_until = stage.clock.now + 40
    stage.play("inference")
    assert dict(stage.switch.phases)["draining"] == pytest.approx(40, abs=0.2)
    assert stage.engine.dropped == []


@pytest.mark.parametrize("mine", [True, False], ids=["a lease", "somebody else's request"])
@pytest.mark.parametrize("target", ["generation", "inference"])
def test_a_drain_that_takes_too_long_gives_the_gpu_back_untouched(
    stage: Stage, target: Mode, mine: bool
) -> None:
    if target == "inference":
        stage.play("generation")
    before = stage.state_store.state()
    own_claim = (
        stage.claim("inference" if target == "generation" else "generation", job="slow") if mine else None
    )
    stage.stacks.busy_until = stage.engine.renders_until = stage.clock.now + (0 if mine else 10**6)
    switch = stage.play(target)
    assert switch.error is not None
    assert switch.error["phase"] == "draining"
    assert ("slow" if mine else "not sent by Easel") in switch.error["message"]
    assert dict(switch.phases)["draining"] == pytest.approx(stage.policy.drain_s, abs=1)
    after = stage.state_store.state()
    assert (after.mode, after.saved) == (before.mode, before.saved)
    assert sorted(stage.stacks.loaded) == ([] if target == "inference" else ["chat", "embed"])
    assert stage.engine.dropped == []
    if own_claim:
        own_claim.end()


def test_with_kill_a_drain_that_takes_too_long_drops_the_pictures_and_goes_on(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(on_drain_timeout="kill", drain_s=0.1, restore="never")
    running = Request(arbiter, "generation", "running").gets_it()
    llm = Request(arbiter, "inference", "waits").gets_it()
    error = running.ends()
    assert error is not None
    assert error.code == "gpu.preempted"
    assert None in engine.dropped
    assert llm.lets_go() is None


def test_with_kill_an_llm_request_that_takes_too_long_is_left_to_its_server_to_cut(
    tmp_path: Path, stage: Stage
) -> None:
    stage = Stage(tmp_path / "other", Policy(on_drain_timeout="kill"))
    own_claim = stage.claim("inference")
    assert stage.play("generation").error is None
    assert stage.state_store.state().revoked["inference"] >= own_claim.claim.number
    assert stage.stacks.loaded == {}
    own_claim.end()


# --- nothing is believed ---------------------------------------------------------------------------


def test_an_unload_that_lies_is_asked_again_until_it_is_true(stage: Stage) -> None:
    stage.stacks.lies = 5
    assert stage.play("generation").error is None
    assert stage.stacks.loaded == {}


def test_an_unload_that_never_comes_true_fails_in_its_phase_and_gives_back_what_was_loaded(
    stage: Stage,
) -> None:
    stage.stacks.lies = 10**6
    switch = stage.play("generation")
    assert switch.error is not None
    assert switch.error["phase"] == "verifying"
    assert "fake/chat, fake/embed" in switch.error["message"]
    assert dict(switch.phases)["verifying"] == pytest.approx(stage.policy.release_s, abs=1)
    assert phases(stage) == [*TO_GENERATION[:4], "restoring"]
    assert stage.state_store.state().mode == "inference"
    assert is_open(stage.state_store.state(), "inference")
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


def test_a_refused_unload_loads_again_what_had_gone_and_the_next_attempt_is_a_real_one(stage: Stage) -> None:
    stage.stacks.refuses_unload = True
    switch = stage.play("generation")
    assert switch.error is not None
    assert switch.error["phase"] == "releasing"
    assert switch.error["code"] == "llm.refused"
    assert stage.state_store.state().mode == "inference"
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]
    stage.stacks.refuses_unload = False
    assert stage.play("generation").error is None
    assert stage.stacks.loaded == {}


def test_a_model_that_a_late_request_loads_again_is_noticed_and_unloaded_again(stage: Stage) -> None:
    stage.stacks.unload_s = 1.0
    stage.stacks.reloads_at = stage.clock.now + 1.04  # when the list was empty once
    assert stage.play("generation").error is None
    assert stage.stacks.loaded == {}


def test_a_server_that_does_not_answer_for_a_moment_is_asked_again(stage: Stage) -> None:
    def go_deaf(op: str) -> None:
        if op == "release":
            stage.stacks.deaf = 5

    stage.stacks.before = go_deaf
    assert stage.play("generation").error is None


def test_a_server_that_answers_no_more_is_not_taken_for_empty(stage: Stage) -> None:
    stage.stacks.deaf = 10**6
    switch = stage.play("generation")
    assert switch.error is not None
    assert switch.error["code"] == "llm.unreachable"
    assert stage.state_store.state().mode == "inference"


def test_an_engine_that_keeps_its_memory_keeps_no_llm_from_its_gpu_and_is_told_of(stage: Stage) -> None:
    stage.play("generation")
    stage.engine.claims = stage.engine.keeps_memory = True
    switch = stage.play("inference")
    assert switch.error is None
    assert "engine/models" in switch.notes[0]
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


# --- restoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True], ids=["one model", "the whole server"])
def test_a_model_that_cannot_be_loaded_again_is_named_and_keeps_nobody_from_the_gpu(
    stage: Stage, raises: bool
) -> None:
    stage.play("generation")
    stage.stacks.load_fails, stage.stacks.loading_raises = {"chat": "no room"}, raises
    switch = stage.play("inference")
    assert switch.error is None
    assert Failure("fake", "chat", "the fake is gone" if raises else "no room") in switch.failed
    assert len(switch.failed) == (2 if raises else 1)
    assert sorted(stage.stacks.loaded) == ([] if raises else ["embed"])
    assert stage.state_store.state().mode == "inference"
    assert is_open(stage.state_store.state(), "inference")
    count = switch.number
    stage.ticks(7200, each=10)
    assert stage.switch.number == count, "nobody tries for ever"


# --- free memory -----------------------------------------------------------------------------------


def after(stage: Stage, seconds: float, before: int, then: int) -> Callable[[], int]:
    """Free memory that rises so long after the unload."""

    def free() -> int:
        gone = not stage.stacks.loaded and stage.clock.now >= start[0] + seconds
        return then if gone else before

    start = [stage.clock.now]
    return free


def test_memory_that_never_comes_free_fails_the_switch_and_loads_the_llms_again(stage: Stage) -> None:
    stage.free = lambda: 2 * GB
    ticket = stage.claim("generation", "ticket", need=8 * GB)
    switch = stage.play("generation")
    ticket.end()
    assert switch.error is not None
    assert switch.error["code"] == "gpu.switch_failed"
    assert switch.error["phase"] == "verifying"
    assert "2.0 GB" in switch.error["message"]
    assert dict(switch.phases)["verifying"] == pytest.approx(stage.policy.verify_s, abs=1)
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


@pytest.mark.parametrize("need", [0, 8 * GB])
def test_an_llm_that_held_next_to_nothing_stops_no_switch_where_enough_is_free(
    stage: Stage, need: int
) -> None:
    """An embedding model of some megabytes, or one on the CPU; and no card has all of its 8 GB free."""
    stage.free = lambda: int(7.6 * GB)
    ticket = stage.claim("generation", "ticket", need=need)
    switch = stage.play("generation")
    ticket.end()
    assert (switch.error, len(switch.notes)) == (None, 1)


def test_who_takes_a_switch_up_after_the_models_are_gone_still_verifies_the_memory(stage: Stage) -> None:
    stage.free = lambda: 1 * GB
    stage.state_store.update(lambda state: replace(state, saved=stage.stacks.resident()))
    stage.stacks.loaded.clear()
    with stage.state_store.mutex():
        stage.switchover.begin(NextSwitch("generation", "asked"))
    dead = replace(stage.switch, pid=1, phase="verifying", had=True, free_before=1 * GB)
    stage.state_store.update(lambda state: replace(state, switch=dead))
    ticket = stage.claim("generation", "ticket", need=8 * GB)
    switch = stage.resume()
    ticket.end()
    assert switch.error is not None
    assert "1.0 GB" in switch.error["message"]
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


def test_memory_that_comes_free_late_is_waited_for(stage: Stage) -> None:
    stage.free = after(stage, 7.0, 2 * GB, 20 * GB)
    switch = stage.play("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] == pytest.approx(7.0, abs=0.5)


def test_memory_that_covers_what_is_needed_is_not_waited_for(stage: Stage) -> None:
    """It need not rise: another card, or models that were asleep in RAM."""
    stage.free = lambda: 12 * GB
    ticket = stage.claim("generation", "ticket", need=8 * GB)
    switch = stage.play("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] < 0.5
    ticket.end()


def test_a_model_that_needs_more_than_there_is_waits_only_until_no_more_comes(stage: Stage) -> None:
    stage.free = after(stage, 1.0, 2 * GB, 20 * GB)
    ticket = stage.claim("generation", "ticket", need=48 * GB)
    switch = stage.play("generation")
    assert switch.error is None
    assert dict(switch.phases)["verifying"] < 2.0
    ticket.end()


def test_memory_that_nobody_can_tell_is_not_waited_for(stage: Stage) -> None:
    stage.free = lambda: None
    assert dict(stage.play("generation").phases)["verifying"] < 0.5


def test_where_nothing_was_loaded_no_memory_is_expected_to_come(stage: Stage) -> None:
    stage.stacks.loaded = {}
    stage.free = lambda: 2 * GB
    assert stage.play("generation").error is None


# --- the engine ------------------------------------------------------------------------------------


def test_an_engine_that_is_down_is_started_with_the_switch(stage: Stage) -> None:
    stage.engine.is_up = False
    assert stage.play("generation").error is None
    assert stage.engine.starts == 1


def test_an_engine_that_does_not_start_gives_the_gpu_back_to_the_llms(stage: Stage) -> None:
    stage.engine.is_up, stage.engine.start_fails = False, 1
    switch = stage.play("generation")
    assert switch.error is not None
    assert (switch.error["code"], switch.error["phase"]) == ("engine.start_failed", "starting")
    assert stage.state_store.state().mode == "inference"
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]
    assert stage.play("generation").error is None


def test_an_engine_that_dies_in_image_mode_is_started_again_and_the_mode_stays(stage: Stage) -> None:
    stage.play("generation", pin=True)
    stage.engine.is_up = False
    stage.ticks(5)
    assert stage.engine.starts == 1
    assert stage.switch.reason == "the engine is down"
    assert stage.switch.error is None
    state = stage.state_store.state()
    assert (state.mode, state.pinned) == ("generation", True)
    stage.play("inference")
    assert sorted(stage.stacks.loaded) == ["chat", "embed"], "what was saved outlives the repair"


def test_an_engine_that_stays_dead_gives_the_gpu_back_to_the_llms(stage: Stage) -> None:
    stage.play("generation")
    stage.engine.is_up, stage.engine.start_fails = False, 10**6
    stage.ticks(10)
    assert stage.state_store.state().mode == "inference"
    assert not stage.state_store.state().under_way
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


# --- intruders -------------------------------------------------------------------------------------


def test_an_llm_loaded_behind_our_back_is_noticed_and_unloaded_and_not_kept_for_later(stage: Stage) -> None:
    stage.play("generation")
    stage.stacks.loaded["intruder"] = None
    stage.ticks(3)
    assert stage.stacks.loaded == {}
    assert "fake/intruder" in stage.switch.reason
    assert stage.state_store.state().mode == "generation"
    stage.play("inference")
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


def test_while_a_picture_is_drawn_no_llm_is_loaded_even_if_an_intruder_cannot_be_unloaded(
    stage: Stage,
) -> None:
    stage.play("generation")
    stage.engine.claims = True
    picture = stage.claim("generation")
    stage.stacks.loaded["intruder"], stage.stacks.lies = None, 10**6

    def look(op: str) -> None:
        assert op != "restore" or (not stage.engine.claims and not stage.claims.all())

    stage.stacks.before = look
    stage.ticks(62)
    assert sorted(stage.stacks.loaded) == ["intruder"]
    picture.end()
    stage.ticks(5)
    assert stage.state_store.state().mode == "inference", "image mode that cannot be put right is given back"
    assert sorted(stage.stacks.loaded) == ["chat", "embed", "intruder"]


@pytest.mark.parametrize("sharing", ["exclusive", "coexist"])
def test_who_shares_the_gpu_has_no_intruders(tmp_path: Path, sharing: Any) -> None:
    stage = Stage(tmp_path, Policy(sharing=sharing))
    stage.play("generation")
    stage.stacks.loaded["intruder"] = None
    stage.ticks(3)
    assert list(stage.stacks.loaded) == ([] if sharing == "exclusive" else ["intruder"])


# --- nobody's wish ---------------------------------------------------------------------------------


def in_image_mode(folder: Path, *, pin: bool = False, **policy: Any) -> Stage:
    stage = Stage(folder, Policy(min_stay_s=30, idle_restore_s=600, **policy))
    stage.play("generation", pin=pin)
    return stage


def test_an_idle_gpu_goes_back_once(tmp_path: Path) -> None:
    stage = in_image_mode(tmp_path)
    stage.ticks(599, each=1)
    assert stage.state_store.state().mode == "generation"
    stage.ticks(5, each=1)
    assert stage.state_store.state().mode == "inference"
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]
    stage.ticks(7200, each=10)
    assert stage.switch.number == 2


def test_a_pinned_gpu_does_not_go_back(tmp_path: Path) -> None:
    stage = in_image_mode(tmp_path, pin=True)
    stage.ticks(7200, each=10)
    assert stage.state_store.state().mode == "generation"


def test_the_gpu_does_not_go_back_as_idle_while_comfyui_renders_for_somebody_else(tmp_path: Path) -> None:
    stage = in_image_mode(tmp_path)
    stage.engine.renders_until = stage.clock.now + 1000
    stage.ticks(1150, each=5)
    assert (stage.state_store.state().mode, stage.switch.number) == ("generation", 1)
    stage.ticks(700, each=5)
    assert stage.state_store.state().mode == "inference"


def test_when_done_gives_the_gpu_back_after_the_last_picture_and_the_minimum_stay(tmp_path: Path) -> None:
    stage = in_image_mode(tmp_path, restore="when_done")
    picture = stage.claim("generation")
    stage.ticks(60)
    assert stage.state_store.state().mode == "generation"
    picture.end()
    stage.ticks(1)
    assert stage.state_store.state().mode == "inference"


def test_never_leaves_the_gpu_where_it_is(tmp_path: Path) -> None:
    stage = in_image_mode(tmp_path, restore="never")
    stage.ticks(7200, each=10)
    assert stage.state_store.state().mode == "generation"


def test_llms_that_were_loaded_while_easel_was_down_keep_the_gpu_when_it_starts(
    tmp_path: Path, make_arbiter: MakeArbiter, stacks: FakeStacks, engine: FakeEngine
) -> None:
    first = make_arbiter(restore="never")
    first.switch("generation")
    told(first, "generation")
    first.reconciler.stop()
    stacks.loaded = {"chat": None}  # a reboot
    first.state_store.mark_start()
    told(make_arbiter(restore="never"), "inference")
    assert sorted(stacks.loaded) == ["chat", "embed"]


# --- what the owner asks for -----------------------------------------------------------------------


def test_a_switch_is_asked_for_at_once_done_soon_and_a_noop_afterwards(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    assert arbiter.switch("inference") == "noop"
    assert arbiter.switch("generation") == "switching"
    told(arbiter, "generation")
    assert arbiter.switch("generation") == "noop"


def test_a_pin_that_comes_with_a_noop_is_applied(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(restore="when_done")
    arbiter.switch("generation", pin=True)
    told(arbiter, "generation")
    for pin, pinned in ((None, True), (False, False), (None, False), (True, True)):
        with arbiter.lease("generation", job="keeps-the-mode", timeout_s=WAIT_S):
            assert arbiter.switch("generation", pin=pin) == "noop"
            assert arbiter.state_store.state().pinned is pinned


def test_a_pin_goes_with_the_mode_it_held(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(restore="never")
    for pinned in (True, False):
        arbiter.switch("generation", pin=pinned or None)
        told(arbiter, "generation")
        assert arbiter.state_store.state().pinned is pinned, "an old pin holds no later image mode"
        arbiter.switch("inference", force=True)
        told(arbiter, "inference")
        assert arbiter.state_store.state().pinned is False


def test_no_image_mode_is_pinned_before_there_is_one(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter(restore="when_done")
    with pytest.raises(NotGenerating):
        arbiter.pin(True)
    arbiter.pin(False)
    arbiter.switch("generation")
    until(lambda: (switch := arbiter.state_store.state().switch) and switch.reason == "pictures done")


def test_a_pinned_gpu_is_refused_up_front_and_had_by_force(make_arbiter: MakeArbiter) -> None:
    arbiter = make_arbiter()
    arbiter.switch("generation", pin=True)
    told(arbiter, "generation")
    with pytest.raises(GpuPinned):
        arbiter.switch("inference")
    assert arbiter.state_store.state().wanted is None
    assert arbiter.switch("inference", force=True) == "switching"
    told(arbiter, "inference")


def test_a_busy_gpu_is_refused_up_front_with_its_queue_and_a_time_to_come_again(
    make_arbiter: MakeArbiter,
) -> None:
    arbiter = make_arbiter(depth=2, restore="never")
    first = Request(arbiter, "generation", "first").gets_it()
    second = Request(arbiter, "generation", "second").gets_it()
    third = Request(arbiter, "generation", "third").waits()
    with pytest.raises(ComfyuiBusy) as refused:
        arbiter.switch("inference")
    assert refused.value.details["queue"] == {"running": 1, "pending": 2}
    assert refused.value.details["retry_after_s"] >= 1
    assert arbiter.state_store.state().wanted is None
    assert [request.lets_go() for request in (first, second, third)] == [None] * 3


def test_a_render_of_comfyuis_own_page_is_busy_too(make_arbiter: MakeArbiter, engine: FakeEngine) -> None:
    arbiter = make_arbiter(restore="never")
    arbiter.switch("generation")
    told(arbiter, "generation")
    engine.renders_until = float("inf")
    with pytest.raises(ComfyuiBusy) as refused:
        arbiter.switch("inference")
    assert refused.value.details["queue"] == {"running": 1, "pending": 0}
    assert arbiter.switch("inference", force=True) == "switching"
    told(arbiter, "inference")
    assert None in engine.dropped, "force drops the render itself"


def test_a_picture_that_comes_after_the_wish_waits_and_one_that_came_before_is_waited_for(
    make_arbiter: MakeArbiter, engine: FakeEngine
) -> None:
    arbiter = make_arbiter(reconciles=False, restore="never", min_stay_s=10**6)
    arbiter.switch("generation")
    arbiter.reconciler.tick()
    assert arbiter.state_store.state().mode == "generation"
    arbiter.switch("inference")
    late = Request(arbiter, "generation", "late").waits()
    arbiter.reconciler.tick()
    assert arbiter.state_store.state().mode == "inference"
    assert not late.has_it
    late.hung_up = True
    assert late.ends() is not None


@pytest.mark.parametrize("asked", [True, False], ids=["asked for by name", "by an image request"])
def test_during_a_switch_every_other_wish_is_told_so_and_where_it_goes(
    make_arbiter: MakeArbiter, asked: bool
) -> None:
    arbiter = make_arbiter(restore="never")
    llm = Request(arbiter, "inference", "llm").gets_it()
    picture = None if asked else Request(arbiter, "generation", "picture")
    if asked:
        arbiter.switch("generation")
    switch = until(lambda: arbiter.state_store.state().under_way)
    assert switch.target == "generation"
    for mode in ("generation", "inference"):
        with pytest.raises(SwitchInProgress) as refused:
            arbiter.switch(mode, force=True)
        assert refused.value.details["target"] == "generation"
        assert refused.value.details["retry_after_s"] >= 1
    assert llm.lets_go() is None
    told(arbiter, "generation")
    if picture:
        assert picture.gets_it().lets_go() is None


def test_of_many_wishes_at_once_one_is_taken_and_the_others_are_told(make_arbiter: MakeArbiter) -> None:
    arbiter, ended = make_arbiter(reconciles=False), list[str]()

    def ask() -> None:
        try:
            ended.append(arbiter.switch("generation"))
        except SwitchInProgress as error:
            ended.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["comfyui.switch_in_progress"] * 7 + ["switching"]


def test_with_nobody_to_share_with_there_is_nothing_to_switch_or_pin(tmp_path: Path) -> None:
    arbiter = Arbiter(tmp_path)
    for ask in (
        lambda: arbiter.switch("generation"),
        lambda: arbiter.switch("inference", force=True),
        lambda: arbiter.pin(True),
        lambda: arbiter.pin(False),
    ):
        with pytest.raises(ArbiterUnavailable):
            ask()


# --- dying in the middle ---------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(began_at=0.0)
    server = WorldServer(tmp_path / "world", world)
    yield world
    server.close()


@pytest.fixture
def call(tmp_path: Path, world: World) -> Iterator[Caller]:
    caller = Caller(tmp_path / "world", "test")
    yield caller
    caller.close()


def dies(folder: Path, socket: Path, target: Mode, phase: str) -> None:
    """A process that begins a switch and is killed at the beginning of a phase."""
    policy = Policy(min_stay_s=0, restore="never", look_s=0.002, tick_s=0.002)
    plan = Plan(0, policy, (Op(60, 0, "switch", {"mode": target}),), {}, (), None)
    child = PROCESSES.Process(target=work, args=(folder, socket, 0, plan, "", phase), daemon=True)
    child.start()
    child.join(WAIT_S)
    assert child.exitcode == -9


DEATHS = [("generation", phase) for phase in TO_GENERATION] + [("inference", phase) for phase in TO_INFERENCE]


@pytest.mark.parametrize(("target", "phase"), DEATHS)
def test_a_switch_whose_process_was_killed_is_carried_on_by_looking_and_no_model_is_forgotten(
    tmp_path: Path, world: World, call: Caller, target: Mode, phase: str
) -> None:
    arbiter = arbiter_of_the_world(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    if target == "inference":
        arbiter.switch("generation")
        arbiter.reconciler.tick()
    arbiter.switch(target)
    dies(tmp_path / "gpu", tmp_path / "world", target, phase)

    late = StateStore(tmp_path / "gpu").state()
    assert late.under_way is not None
    assert late.under_way.phase == phase
    survivor = arbiter_of_the_world(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    survivor.reconciler.tick()
    state = survivor.state_store.state()
    assert state.switch is not None
    assert (state.mode, state.switch.error, state.switch.resumed) == (target, None, 1)
    if target == "generation":
        assert call("resident") == []
        survivor.switch("inference")
        survivor.reconciler.tick()
    assert call("resident") == sorted(MODELS)
    assert world.violations == []


def test_a_failed_switch_whose_process_was_killed_while_it_loaded_again_is_carried_on_too(
    tmp_path: Path, world: World, call: Caller
) -> None:
    world.errors.start_fails = 1
    arbiter = arbiter_of_the_world(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    arbiter.switch("generation")
    dies(tmp_path / "gpu", tmp_path / "world", "generation", "restoring")
    assert call("resident") == []
    arbiter.reconciler.tick()
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert state.switch.error is not None
    assert state.switch.error["phase"] == "starting"
    assert state.mode == "inference"
    assert call("resident") == sorted(MODELS)


@pytest.mark.parametrize("phase", ["verifying", "starting"])
def test_a_switch_that_is_carried_on_and_then_fails_early_loads_again_what_was_unloaded_before(
    tmp_path: Path, world: World, call: Caller, phase: str
) -> None:
    """The survivor fails while it drains, but the one before it had unloaded everything."""
    arbiter = arbiter_of_the_world(tmp_path / "gpu", call, Policy(restore="never", min_stay_s=0))
    arbiter.switch("generation")
    dies(tmp_path / "gpu", tmp_path / "world", "generation", phase)
    until(lambda: call("resident") == [])
    world.errors.deaf = 1
    arbiter.reconciler.tick()
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert state.switch.error is not None
    assert state.switch.error["phase"] == "draining"
    assert state.mode == "inference"
    assert call("resident") == sorted(MODELS)


def test_the_same_process_id_after_a_crash_is_another_process_all_the_same(stage: Stage) -> None:
    """In a container the server often has the id it had before."""

    class PowerCut(BaseException):
        pass

    def cut(op: str) -> None:
        if op == "resident" and stage.switch.phase == "verifying":
            raise PowerCut

    stage.stacks.before = cut
    with pytest.raises(PowerCut):
        stage.play("generation")
    reborn = Stage(stage.folder, clock=stage.clock)
    reborn.stacks.loaded = {}
    assert reborn.resume().error is None
    reborn.play("inference")
    assert sorted(reborn.stacks.loaded) == ["chat", "embed"]


def test_a_dead_holders_job_is_taken_back_before_the_gpu_changes_hands(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.play("generation")
    own_claim = stage.claim("generation", job="orphan")
    name = own_claim.claim.name
    own_claim.end()
    (stage.claims.folder / name).touch()  # as a killed process leaves it
    with caplog.at_level(logging.WARNING):
        assert stage.play("inference").error is None
    assert stage.engine.dropped == ["orphan"]
    assert stage.claims.all() == ()


def test_every_phase_is_died_in_here() -> None:
    assert {phase for _, phase in DEATHS} == set(PHASES)


def test_a_switch_that_nobody_waits_for_any_more_is_called_off_before_anything_was_touched(
    make_arbiter: MakeArbiter, stacks: FakeStacks
) -> None:
    arbiter = make_arbiter()
    with arbiter.lease("inference", job="chat", timeout_s=WAIT_S):
        waits = Request(arbiter, "generation", "picture").waits()
        until(lambda: arbiter.state_store.state().under_way)
        waits.hung_up = True
        assert isinstance(waits.ends(), RequestCancelled)
        until(lambda: arbiter.state_store.state().under_way is None)
    state = arbiter.state_store.state()
    assert state.switch is not None
    assert (state.mode, state.switch.error, state.switch.notes) == (
        "inference",
        None,
        ("nobody waits for it any more",),
    )
    assert sorted(stacks.loaded) == ["chat", "embed"]
    assert Request(arbiter, "generation", "another").gets_it().lets_go() is None
