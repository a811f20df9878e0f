"""Who gets the GPU next, and when: the policy as a pure function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from arbiter import Claim, Mode, Policy, State, Switch
from arbiter.fair_queue import has_turn, queue_position
from arbiter.policy import (
    NextSwitch,
    Situation,
    after_llm_load,
    idle_restore_at,
    is_open,
    is_refused,
    is_revoked,
    next_claim_number,
    next_switch,
)
from arbiter.values import MODES, Pace, SwitchRequest, other_mode
from arbiter.waiting import DEFAULT_SWITCH_S, seconds_until, waiting, waiting_in_engine
from gpu_tenant import Resident

SINCE = 1_000.0
INFERENCE, GENERATION = State("inference", since=SINCE), State("generation", since=SINCE)
POLICY = Policy(min_stay_s=30, restore="idle", idle_restore_s=600, linger_s=5, max_retry_after_s=10_000)
LINGER = "linger"


def claim(kind: Any, number: int, mode: Mode, triggers: bool = True) -> Claim:
    return Claim(kind, number, mode, triggers, 0, 1, f"job-{number}")


def switch_to(target: Mode) -> Switch:
    return Switch(1, target, "requested", SINCE)


def during_switch(state: State, target: Mode) -> State:
    return replace(state, switch=switch_to(target))


def after_switch(state: State, target: Mode) -> State:
    return replace(state, switch=switch_to(target).with_end(SINCE + 1))


IMAGE_TICKET, LLM_TICKET = claim("ticket", 1, "generation"), claim("ticket", 1, "inference")


# --- the next switch -------------------------------------------------------------------------------


def plan(
    state: State,
    *claims: Claim,
    at: float = SINCE + 100,
    last: float = 0,
    asked_at: float = 0,
    **policy: Any,
) -> NextSwitch | None:
    pace = Pace(last=last)
    return next_switch(Situation(state, claims, pace, replace(POLICY, **policy), at, asked_at))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pinned", [False, True])
def test_an_explicit_request_comes_before_the_minimum_stay_a_pin_and_the_queue(
    mode: Mode, pinned: bool
) -> None:
    request = SwitchRequest(mode, force=True, pin=mode == "generation")
    state = State(other_mode(mode), since=SINCE, pinned=pinned, wanted=request)
    waiting = claim("ticket", 1, other_mode(mode))
    assert plan(state, waiting, at=SINCE) == NextSwitch(
        mode, "requested", force=True, pin=mode == "generation"
    )


@pytest.mark.parametrize(
    ("state", "ticket", "other", "expected"),
    [
        (INFERENCE, IMAGE_TICKET, claim("lease", 2, "inference"), NextSwitch("generation", "image request")),
        (GENERATION, LLM_TICKET, claim("lease", 2, "generation"), NextSwitch("inference", "LLM request")),
        (GENERATION, LLM_TICKET, claim("ticket", 2, "generation"), NextSwitch("inference", "LLM request")),
    ],
)
def test_the_minimum_stay_delays_a_switch_only_while_both_modes_are_asked_for(
    state: State, ticket: Claim, other: Claim, expected: NextSwitch
) -> None:
    assert plan(state, ticket, at=SINCE + 2) == expected, "the current mode is not asked for"
    assert plan(state, ticket, other, at=SINCE + 2) is None
    assert plan(state, ticket, other, at=SINCE + 29.9) is None
    assert plan(state, ticket, other, at=SINCE + 30) == expected


def test_a_mode_is_asked_for_until_shortly_after_its_last_request() -> None:
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE + 10, asked_at=SINCE + 9.9) is None
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE + 10, asked_at=SINCE + 9.75) is not None
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE + 31, asked_at=SINCE + 31) is not None
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE + 10, asked_at=SINCE + 99) is not None, (
        "the clock went back"
    )


@pytest.mark.parametrize(("state", "ticket"), [(INFERENCE, IMAGE_TICKET), (GENERATION, LLM_TICKET)])
def test_after_a_switch_that_failed_late_nothing_is_tried_again_within_the_minimum_stay(
    state: State, ticket: Claim
) -> None:
    error = {"code": "x", "message": "y"}
    drained = replace(switch_to(ticket.mode).with_phase("draining", SINCE).with_end(SINCE), error=error)
    assert plan(replace(state, switch=drained), ticket, at=SINCE + 2) is not None, "nothing was unloaded"
    released = replace(switch_to(ticket.mode).with_phase("releasing", SINCE).with_end(SINCE), error=error)
    failed = replace(state, switch=released)
    assert plan(failed, ticket, at=SINCE + 29.9) is None
    assert plan(failed, ticket, at=SINCE + 30) is not None
    explicit = replace(failed, wanted=SwitchRequest(ticket.mode))
    assert plan(explicit, at=SINCE + 1) is not None


def test_a_failed_restore_is_not_tried_again_within_the_minimum_stay() -> None:
    failed = replace(
        GENERATION,
        switch=replace(switch_to("inference").with_end(SINCE), error={"code": "x", "message": "y"}),
    )
    assert plan(failed, at=SINCE + 29, restore=LINGER) is None
    assert plan(failed, at=SINCE + 31, restore=LINGER) is not None


def test_a_revoked_ticket_triggers_no_switch() -> None:
    revoked = replace(INFERENCE, revoked={"inference": 0, "generation": IMAGE_TICKET.number})
    assert plan(revoked, IMAGE_TICKET) is None


def test_after_a_lost_state_no_lease_is_granted_until_a_switch_to_inference() -> None:
    lost = replace(GENERATION, rebuilt="state.1.corrupt: truncated")
    assert not is_open(lost, "generation")
    assert plan(lost, IMAGE_TICKET) == NextSwitch("inference", "the state was lost")
    assert plan(replace(lost, pinned=True)) == NextSwitch("inference", "the state was lost")


@pytest.mark.parametrize("mode", MODES)
def test_tickets_for_the_current_mode_trigger_no_switch(mode: Mode) -> None:
    state = State(mode, since=SINCE)
    assert plan(state, claim("ticket", 1, mode), claim("lease", 2, mode), at=SINCE + 31) is None


def test_a_ticket_that_only_waits_triggers_no_switch() -> None:
    waits = claim("ticket", 1, "inference", triggers=False)
    assert plan(GENERATION, waits) is None
    assert plan(INFERENCE, claim("ticket", 1, "generation", triggers=False)) is None


@pytest.mark.parametrize("restore", ["linger", "idle", "never"])
def test_a_pin_keeps_generation_mode_against_requests_and_restore(restore: str) -> None:
    pinned = replace(GENERATION, pinned=True)
    assert plan(pinned, at=SINCE + 10**6, restore=restore) is None
    assert plan(pinned, LLM_TICKET, at=SINCE + 10**6, restore=restore) is None


RESTORED = NextSwitch("inference", "no more pictures")


def test_idle_restores_inference_mode_after_idle_restore_s_without_use() -> None:
    assert plan(GENERATION, at=SINCE + 599) is None
    assert plan(GENERATION, at=SINCE + 600) == RESTORED
    assert plan(GENERATION, at=SINCE + 600, last=SINCE + 100) is None
    assert plan(GENERATION, at=SINCE + 700, last=SINCE + 100) == RESTORED


def test_linger_restores_inference_mode_linger_s_after_the_last_picture_whatever_the_minimum_stay() -> None:
    assert plan(GENERATION, at=SINCE + 6.9, last=SINCE + 2, restore=LINGER) is None
    assert plan(GENERATION, at=SINCE + 7, last=SINCE + 2, restore=LINGER) == RESTORED
    assert plan(GENERATION, at=SINCE + 5, restore=LINGER) == RESTORED, "no picture was drawn at all"
    assert plan(GENERATION, at=SINCE, last=SINCE, restore=LINGER, linger_s=0) == RESTORED


def test_an_explicit_switch_to_generation_stays_for_idle_restore_s() -> None:
    requested = replace(GENERATION, requested=True)
    assert plan(requested, at=SINCE + 599, restore=LINGER) is None
    assert plan(requested, at=SINCE + 600, restore=LINGER) == RESTORED
    assert plan(requested, LLM_TICKET, at=SINCE + 1, restore=LINGER) is not None, "an LLM request ends it"
    assert plan(requested, at=SINCE + 10**9, restore="never") is None


@pytest.mark.parametrize("restore", ["linger", "idle"])
def test_a_clock_that_was_set_back_restores_at_once_rather_than_a_day_late(restore: str) -> None:
    assert plan(GENERATION, at=SINCE - 1, last=SINCE + 10, restore=restore) == RESTORED


@pytest.mark.parametrize("kind", ["ticket", "lease"])
@pytest.mark.parametrize("restore", ["linger", "idle"])
def test_there_is_no_restore_while_a_picture_is_drawn_or_waited_for(kind: str, restore: str) -> None:
    assert plan(GENERATION, claim(kind, 1, "generation"), at=SINCE + 10**6, restore=restore) is None


@pytest.mark.parametrize("policy", [{"restore": "never"}, {"restore": "idle", "idle_restore_s": 0}])
def test_never_and_zero_minutes_disable_the_restore(policy: dict[str, Any]) -> None:
    assert plan(GENERATION, at=SINCE + 10**9, **policy) is None
    situation = Situation(GENERATION, (), Pace(), replace(POLICY, **policy), SINCE)
    assert idle_restore_at(situation) is None


@pytest.mark.parametrize("restore", ["linger", "idle", "never"])
def test_inference_mode_stays_while_no_request_waits(restore: str) -> None:
    assert plan(INFERENCE, at=SINCE + 10**6, restore=restore) is None


def test_a_clock_that_was_set_back_does_not_extend_the_minimum_stay() -> None:
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE - 86_400) == NextSwitch("generation", "image request")
    assert plan(GENERATION, LLM_TICKET, at=SINCE - 86_400) == NextSwitch("inference", "LLM request")


# --- LLMs that are loaded in generation mode -------------------------------------------------------

LOADED = (Resident("llama", "chat"), Resident("ollama", "embed"))


def plan_after_load(
    state: State, *claims: Claim, at: float = SINCE + 100, is_in_use: bool = False
) -> NextSwitch | None:
    situation = Situation(state, claims, Pace(), POLICY, at)
    return after_llm_load(situation, LOADED, is_in_use=is_in_use)


def test_an_llm_that_is_loaded_while_nothing_is_drawn_gets_the_gpu() -> None:
    plan = NextSwitch("inference", "LLM loaded: llama/chat, ollama/embed")
    assert plan_after_load(GENERATION) == plan
    assert plan_after_load(GENERATION, at=SINCE) == plan, "whatever the minimum stay"
    assert plan_after_load(replace(GENERATION, requested=True)) == plan


@pytest.mark.parametrize("kind", ["ticket", "lease"])
def test_an_llm_that_is_loaded_while_a_picture_is_drawn_or_waits_is_unloaded(kind: str) -> None:
    plan = NextSwitch("generation", "loaded outside Easel: llama/chat, ollama/embed")
    assert plan_after_load(GENERATION, claim(kind, 1, "generation")) == plan
    assert plan_after_load(GENERATION, is_in_use=True) == plan, "ComfyUI's own page draws"


def test_a_pin_unloads_an_llm_and_stays() -> None:
    plan = plan_after_load(replace(GENERATION, pinned=True))
    assert plan == NextSwitch("generation", "loaded outside Easel: llama/chat, ollama/embed", pin=True)


def test_an_llm_gets_no_second_switch_soon_after_a_failed_one() -> None:
    failed = replace(
        GENERATION,
        switch=replace(switch_to("inference").with_end(SINCE), error={"code": "x", "message": "y"}),
    )
    assert plan_after_load(failed, at=SINCE + 29) is None
    assert plan_after_load(failed, at=SINCE + 31) is not None


def test_a_loaded_llm_starts_no_switch_while_another_one_is_active_or_requested() -> None:
    assert plan_after_load(during_switch(GENERATION, "inference")) is None
    assert plan_after_load(replace(GENERATION, wanted=SwitchRequest("inference"))) is None
    assert plan_after_load(INFERENCE) is None


# --- granting and refusing -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_leases_are_granted_only_for_the_current_mode_and_not_during_a_switch(mode: Mode) -> None:
    here = State(mode, since=SINCE)
    assert is_open(here, mode)
    assert not is_open(here, other_mode(mode))
    assert not is_open(during_switch(here, other_mode(mode)), mode)
    assert not is_open(during_switch(here, mode), mode), "a repair of generation mode"
    assert not is_open(replace(here, wanted=SwitchRequest(other_mode(mode))), mode)
    assert is_open(after_switch(here, mode), mode)


@pytest.mark.parametrize(
    ("policy", "pinned", "refused"),
    [
        ("switch", False, False),
        ("switch", True, True),
        ("wait", False, False),
        ("wait", True, True),
        ("refuse", False, True),
        ("refuse", True, True),
    ],
)
def test_an_llm_request_in_generation_mode_is_refused_only_by_policy_or_pin(
    policy: Any, pinned: bool, refused: bool
) -> None:
    settings = Policy(llm_during_generation=policy)
    state = replace(GENERATION, pinned=pinned)
    assert is_refused(state, "inference", settings) is refused
    assert not is_refused(during_switch(state, "inference"), "inference", settings), "a switch back is active"
    assert not is_refused(replace(state, wanted=SwitchRequest("inference")), "inference", settings)


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_an_llm_request_is_refused_once_a_switch_to_generation_is_active_or_requested(policy: Any) -> None:
    settings = Policy(llm_during_generation=policy)
    refuses = policy == "refuse"
    assert not is_refused(INFERENCE, "inference", settings)
    assert is_refused(during_switch(INFERENCE, "generation"), "inference", settings) is refuses
    assert (
        is_refused(replace(INFERENCE, wanted=SwitchRequest("generation")), "inference", settings) is refuses
    )


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
@pytest.mark.parametrize("state", [INFERENCE, GENERATION, during_switch(GENERATION, "inference")])
def test_image_requests_are_never_refused(policy: Any, state: State) -> None:
    assert not is_refused(state, "generation", Policy(llm_during_generation=policy))


def test_the_engine_gets_depth_jobs_the_oldest_first() -> None:
    lease, second, third = (
        claim("lease", 1, "generation"),
        claim("ticket", 5, "generation"),
        claim("ticket", 7, "generation"),
    )
    claims = (lease, claim("ticket", 2, "inference"), second, third)
    assert [queue_position(claims, ticket) for ticket in (second, third)] == [0, 1]
    assert [has_turn(claims, ticket, 2) for ticket in (second, third)] == [True, False]
    assert [has_turn(claims, ticket, 1) for ticket in (second, third)] == [False, False]
    assert [has_turn(claims, ticket, 3) for ticket in (second, third)] == [True, True]


def test_llm_requests_are_not_queued() -> None:
    claims = tuple(claim("lease", number, "inference") for number in range(1, 50))
    assert has_turn((*claims, claim("ticket", 99, "inference")), claim("ticket", 99, "inference"), 1)


def test_a_new_claim_number_is_higher_than_all_existing_and_revoked_ones() -> None:
    assert next_claim_number(State(), ()) == 1
    assert next_claim_number(State(), (claim("lease", 4, "generation"), claim("ticket", 3, "inference"))) == 5
    revoked = State(revoked={"inference": 0, "generation": 9})
    assert next_claim_number(revoked, (claim("lease", 4, "generation"),)) == 10
    assert not is_revoked(revoked, claim("lease", next_claim_number(revoked, ()), "generation"))


def test_revoking_affects_one_mode_up_to_one_number() -> None:
    state = State(revoked={"inference": 0, "generation": 4})
    assert is_revoked(state, claim("lease", 4, "generation"))
    assert not is_revoked(state, claim("lease", 5, "generation"))
    assert not is_revoked(state, claim("lease", 4, "inference"))


# --- Retry-After -----------------------------------------------------------------------------------


def wait_s(
    mode: Mode,
    state: State,
    *claims: Claim,
    ticket: Claim | None = None,
    at: float = SINCE + 100,
    last: float = 0.0,
    **policy: Any,
) -> int | None:
    situation = Situation(state, claims, Pace(last, 10.0, jobs=5), replace(POLICY, **policy), at)
    return seconds_until(mode, ticket, situation)


TOOK = {"inference": 4.0, "generation": 6.0}


@pytest.mark.parametrize("mode", MODES)
def test_a_free_mode_gives_a_retry_after_of_one_second(mode: Mode) -> None:
    assert wait_s(mode, State(mode, since=SINCE)) == 1


def test_the_retry_after_counts_the_pictures_ahead() -> None:
    queue = [
        claim("lease", 1, "generation"),
        claim("ticket", 2, "generation"),
        claim("ticket", 3, "generation"),
    ]
    assert wait_s("generation", GENERATION, *queue) == 30
    assert wait_s("generation", GENERATION, *queue, ticket=queue[1]) == 10
    assert wait_s("generation", GENERATION, *queue, ticket=queue[2]) == 20


def test_until_a_picture_was_timed_only_the_first_of_a_queue_counts() -> None:
    queue = tuple(claim("lease", number, "generation") for number in range(1, 200))
    unknown = Situation(GENERATION, queue, Pace(), POLICY, SINCE)
    assert seconds_until("generation", None, unknown) == Pace().seconds_each


def test_no_retry_after_exceeds_its_maximum() -> None:
    queue = tuple(claim("lease", number, "generation") for number in range(1, 200))
    assert wait_s("generation", GENERATION, *queue, max_retry_after_s=270) == 270


def test_a_switch_counts_as_long_as_the_last_one_took_or_a_default() -> None:
    assert wait_s("generation", INFERENCE) == DEFAULT_SWITCH_S
    assert wait_s("generation", replace(INFERENCE, took_s=TOOK)) == 6
    assert wait_s("inference", replace(GENERATION, took_s=TOOK)) == 4


def test_the_retry_after_includes_the_rest_of_the_minimum_stay_only_if_both_modes_are_asked_for() -> None:
    inference, generation = replace(INFERENCE, took_s=TOOK), replace(GENERATION, took_s=TOOK)
    llm, image = claim("lease", 1, "inference"), claim("ticket", 1, "generation")
    assert wait_s("generation", inference, at=SINCE + 10) == 6
    assert wait_s("generation", inference, llm, at=SINCE + 10) == 20 + 6
    assert wait_s("inference", generation, at=SINCE + 10) == 4
    assert wait_s("inference", generation, image, at=SINCE + 10) == 10 + 4, "the picture takes 10 s"
    assert wait_s("inference", generation, image, at=SINCE + 25) == 5 + 4


def test_a_clock_that_was_set_back_adds_no_minimum_stay() -> None:
    llm = claim("lease", 1, "inference")
    assert wait_s("generation", replace(INFERENCE, took_s=TOOK), llm, at=SINCE - 86_400) == 6


def test_an_active_switch_counts_with_its_remaining_time() -> None:
    coming = replace(during_switch(INFERENCE, "generation"), took_s=TOOK)
    assert wait_s("generation", coming, at=SINCE + 2) == 4
    assert wait_s("generation", coming, at=SINCE + 60) == 60, (
        "a slow switch is expected to take as long again"
    )


def test_the_retry_after_for_the_mode_being_left_includes_both_switches_and_the_pictures() -> None:
    leaving = replace(during_switch(INFERENCE, "generation"), took_s=TOOK)
    images = [claim("ticket", number, "generation") for number in range(1, 6)]
    assert wait_s("inference", leaving, images[0], at=SINCE + 2) == 10 + 6 + 4
    assert wait_s("inference", leaving, *images, at=SINCE + 2) == 30 + 6 + 4, "the minimum stay is shorter"


def test_the_retry_after_of_an_llm_request_includes_the_running_pictures() -> None:
    leases = [claim("lease", number, "generation") for number in (1, 2)]
    assert wait_s("inference", replace(GENERATION, took_s=TOOK), *leases) == 20 + 4


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_a_pin_makes_the_retry_after_of_llm_requests_unknown(policy: Any) -> None:
    pinned = replace(GENERATION, pinned=True)
    assert wait_s("inference", pinned, llm_during_generation=policy) is None
    assert wait_s("generation", pinned) == 1


@pytest.mark.parametrize("policy", ["wait", "refuse"])
def test_without_switch_an_llm_request_gets_the_time_of_the_restore(policy: Any) -> None:
    state = replace(GENERATION, took_s=TOOK)
    setting = {"llm_during_generation": policy}
    assert wait_s("inference", state, restore="never", **setting) is None
    assert wait_s("inference", state, idle_restore_s=0, **setting) is None
    assert wait_s("inference", state, **setting) == 500 + 4, "100 of the 600 s are over"
    assert wait_s("inference", state, last=SINCE + 50, **setting) == 550 + 4
    assert wait_s("inference", state, restore=LINGER, linger_s=0, **setting) == 4
    running = claim("lease", 1, "generation")
    assert wait_s("inference", state, running, restore=LINGER, linger_s=0, **setting) == 10 + 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", [INFERENCE, GENERATION, during_switch(INFERENCE, "generation")])
def test_a_retry_after_is_a_whole_number_of_at_least_one(mode: Mode, state: State) -> None:
    seconds = wait_s(mode, replace(state, took_s={"inference": 0.01, "generation": 0.01}))
    assert isinstance(seconds, int)
    assert seconds >= 1


def test_a_request_that_waited_for_a_mode_gets_its_lease_before_the_next_switch() -> None:
    llm, image = claim("ticket", 1, "inference"), claim("ticket", 2, "generation")
    assert plan(INFERENCE, llm, image, at=SINCE + 0.5, min_stay_s=0) is None
    granted = replace(llm, kind="lease")
    assert plan(INFERENCE, granted, image, at=SINCE + 0.5, min_stay_s=0) is not None
    # The mode is kept for one second only.
    assert plan(INFERENCE, llm, image, at=SINCE + 1.5, min_stay_s=0) is not None


# --- the pace --------------------------------------------------------------------------------------


def test_the_pace_is_a_moving_average_of_the_jobs() -> None:
    pace = Pace().with_use(100, 4.0)
    assert (pace.seconds_each, pace.jobs) == (4.0, 1)
    assert pace.with_use(200, 8.0).seconds_each == pytest.approx(6.0)
    assert pace.with_use(200, None) == replace(pace, last=200)


def test_a_job_does_not_count_longer_than_the_time_since_the_one_before_it() -> None:
    pace = Pace().with_use(100, 2.0)
    for second in range(101, 121):
        pace = pace.with_use(second, 20.0 + second)  # its own clock began when it was submitted
    assert pace.seconds_each == pytest.approx(1.0, abs=0.1)
    assert pace.with_use(90, 3.0).seconds_each > 1.0, "the clock went back: the job counts as it says"


# --- what a request waits for ----------------------------------------------------------------------

SAVED = (Resident("llama", "chat"),)


def in_phase(target: Mode, phase: Any) -> State:
    return State(other_mode(target), since=SINCE, switch=replace(switch_to(target), phase=phase))


@pytest.mark.parametrize(
    ("state", "mode", "reason"),
    [
        (GENERATION, "generation", {"code": "pictures_before", "count": 0}),
        (GENERATION, "inference", {"code": "pictures"}),
        (INFERENCE, "generation", {"code": "llm_requests"}),
        (replace(GENERATION, pinned=True), "inference", {"code": "pin"}),
        (in_phase("generation", "draining"), "generation", {"code": "running_llm_requests"}),
        (in_phase("inference", "draining"), "inference", {"code": "running_pictures"}),
        (in_phase("generation", "starting"), "generation", {"code": "comfyui_starting"}),
        (in_phase("generation", "releasing"), "generation", {"code": "gpu"}),
        (
            replace(in_phase("generation", "releasing"), saved=SAVED),
            "generation",
            {"code": "llms_unloading", "names": "llama/chat"},
        ),
        (
            replace(in_phase("inference", "restoring"), saved=SAVED),
            "inference",
            {"code": "llms_loading", "names": "llama/chat"},
        ),
        (in_phase("inference", "releasing"), "inference", {"code": "comfyui_unloading"}),
    ],
)
def test_what_a_request_waits_for_has_a_code_whose_values_are_in_its_text(
    state: State, mode: Mode, reason: dict[str, Any]
) -> None:
    ticket = claim("ticket", 1, mode)
    found = waiting(ticket, Situation(state, (ticket,), Pace(), POLICY, SINCE), 1.0)
    assert found.reason == reason
    assert reason.get("names", "") in found.waits_for


def test_a_job_in_the_queue_of_the_engine_waits_for_those_before_it() -> None:
    assert waiting_in_engine(2, Pace(), 0.0).reason == {"code": "pictures_before", "count": 2}
