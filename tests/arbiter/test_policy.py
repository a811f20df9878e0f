"""Who gets the GPU next, decided with values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from arbiter import Claim, Mode, Policy, State, Switch
from arbiter.policy import (
    SWITCH_S,
    NextSwitch,
    Now,
    idle_restore_at,
    is_first,
    is_open,
    is_revoked,
    next_number,
    next_switch,
    place,
    seconds_until,
    turns_away,
)
from arbiter.values import MODES, Pace, SwitchRequest, other

SINCE = 1_000.0
INFERENCE, GENERATION = State("inference", since=SINCE), State("generation", since=SINCE)
POLICY = Policy(min_stay_s=30, idle_restore_s=600)


def claim(kind: Any, number: int, mode: Mode, asks: bool = True) -> Claim:
    return Claim(kind, number, mode, asks, 0, 1, f"job-{number}")


def under_way(target: Mode, **given: Any) -> Switch:
    return Switch(1, target, "asked", SINCE, **given)


def going(state: State, target: Mode, **given: Any) -> State:
    return replace(state, switch=under_way(target, **given))


def over(state: State, target: Mode) -> State:
    return replace(state, switch=under_way(target).ending(SINCE + 1))


IMAGE_TICKET, LLM_TICKET = claim("ticket", 1, "generation"), claim("ticket", 1, "inference")


# --- what begins next ------------------------------------------------------------------------------


def plan(
    state: State, *claims: Claim, at: float = SINCE + 100, last: float = 0, **policy: Any
) -> NextSwitch | None:
    return next_switch(state, claims, Pace(last=last), replace(POLICY, **policy), at)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pinned", [False, True])
def test_what_was_asked_for_by_name_comes_before_stay_pin_and_queue(mode: Mode, pinned: bool) -> None:
    wish = SwitchRequest(mode, force=True, pin=mode == "generation")
    state = State(other(mode), since=SINCE, pinned=pinned, wanted=wish)
    waiting = claim("ticket", 1, other(mode))
    assert plan(state, waiting, at=SINCE) == NextSwitch(mode, "asked", force=True, pin=mode == "generation")


@pytest.mark.parametrize(
    ("state", "ticket", "next_"),
    [
        (INFERENCE, IMAGE_TICKET, NextSwitch("generation", "image request")),
        (GENERATION, LLM_TICKET, NextSwitch("inference", "LLM request")),
    ],
)
def test_a_waiting_request_moves_the_gpu_once_the_minimum_stay_is_over_and_not_before(
    state: State, ticket: Claim, next_: NextSwitch
) -> None:
    assert plan(state, ticket, at=SINCE) is None
    assert plan(state, ticket, at=SINCE + 29.9) is None
    assert plan(state, ticket, at=SINCE + 30) == next_


def test_a_ticket_that_was_revoked_and_has_not_left_yet_moves_nothing() -> None:
    revoked = replace(INFERENCE, revoked={"inference": 0, "generation": IMAGE_TICKET.number})
    assert plan(revoked, IMAGE_TICKET) is None


def test_after_a_lost_state_the_gpu_goes_to_the_llms_before_anybody_gets_it() -> None:
    lost = replace(GENERATION, rebuilt="state.1.corrupt: torn")
    assert not is_open(lost, "generation")
    assert plan(lost, IMAGE_TICKET) == NextSwitch("inference", "the state was lost")
    assert plan(replace(lost, pinned=True)) == NextSwitch("inference", "the state was lost")


@pytest.mark.parametrize("mode", MODES)
def test_nobody_moves_the_gpu_by_waiting_for_the_mode_that_is_in_force(mode: Mode) -> None:
    state = State(mode, since=SINCE)
    assert plan(state, claim("ticket", 1, mode), claim("lease", 2, mode), at=SINCE + 31) is None


def test_a_ticket_that_only_waits_moves_nothing() -> None:
    waits = claim("ticket", 1, "inference", asks=False)
    assert plan(GENERATION, waits) is None
    assert plan(INFERENCE, claim("ticket", 1, "generation", asks=False)) is None


@pytest.mark.parametrize("restore", ["idle", "when_done", "never"])
def test_a_pin_holds_image_mode_against_requests_idleness_and_being_done(restore: str) -> None:
    pinned = replace(GENERATION, pinned=True)
    assert plan(pinned, at=SINCE + 10**6, restore=restore) is None
    assert plan(pinned, LLM_TICKET, at=SINCE + 10**6, restore=restore) is None


def test_the_gpu_goes_back_when_it_was_idle_long_enough() -> None:
    assert plan(GENERATION, at=SINCE + 599) is None
    assert plan(GENERATION, at=SINCE + 600) == NextSwitch("inference", "idle")
    assert plan(GENERATION, at=SINCE + 600, last=SINCE + 100) is None
    assert plan(GENERATION, at=SINCE + 700, last=SINCE + 100) == NextSwitch("inference", "idle")


@pytest.mark.parametrize("kind", ["ticket", "lease"])
@pytest.mark.parametrize("restore", ["idle", "when_done"])
def test_the_gpu_does_not_go_back_while_a_picture_is_wanted(kind: str, restore: str) -> None:
    assert plan(GENERATION, claim(kind, 1, "generation"), at=SINCE + 10**6, restore=restore) is None


def test_when_done_means_as_soon_as_the_pictures_are_done_and_the_stay_is_over() -> None:
    assert plan(GENERATION, at=SINCE + 29, last=SINCE + 5, restore="when_done") is None
    assert plan(GENERATION, at=SINCE + 30, last=SINCE + 5, restore="when_done") == NextSwitch(
        "inference", "pictures done"
    )


@pytest.mark.parametrize("policy", [{"restore": "never"}, {"restore": "idle", "idle_restore_s": 0}])
def test_never_is_never(policy: dict[str, Any]) -> None:
    assert plan(GENERATION, at=SINCE + 10**9, **policy) is None
    assert idle_restore_at(GENERATION, Pace(), replace(POLICY, **policy)) is None


@pytest.mark.parametrize("restore", ["idle", "when_done", "never"])
def test_the_llms_keep_the_gpu_for_as_long_as_nobody_wants_it(restore: str) -> None:
    assert plan(INFERENCE, at=SINCE + 10**6, restore=restore) is None


def test_a_clock_that_was_set_back_does_not_keep_the_gpu_where_it_is() -> None:
    assert plan(INFERENCE, IMAGE_TICKET, at=SINCE - 86_400) == NextSwitch("generation", "image request")
    assert plan(GENERATION, LLM_TICKET, at=SINCE - 86_400) == NextSwitch("inference", "LLM request")


# --- who is let in, and who is turned away ---------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_open_only_while_it_is_in_force_and_nobody_takes_it_away(mode: Mode) -> None:
    here = State(mode, since=SINCE)
    assert is_open(here, mode)
    assert not is_open(here, other(mode))
    assert not is_open(going(here, other(mode)), mode)
    assert not is_open(going(here, mode), mode), "image mode that is put right"
    assert not is_open(replace(here, wanted=SwitchRequest(other(mode))), mode)
    assert is_open(over(here, mode), mode)


@pytest.mark.parametrize(
    ("policy", "pinned", "away"),
    [
        ("switch", False, False),
        ("switch", True, True),
        ("wait", False, False),
        ("wait", True, True),
        ("refuse", False, True),
        ("refuse", True, True),
    ],
)
def test_an_llm_request_is_turned_away_in_image_mode_by_refusal_or_pin_only(
    policy: Any, pinned: bool, away: bool
) -> None:
    settings = Policy(llm_during_generation=policy)
    state = replace(GENERATION, pinned=pinned)
    assert turns_away(state, "inference", settings) is away
    assert not turns_away(going(state, "inference"), "inference", settings), "it is on its way back"
    assert not turns_away(replace(state, wanted=SwitchRequest("inference")), "inference", settings)


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_an_llm_request_is_refused_as_soon_as_image_mode_is_coming(policy: Any) -> None:
    settings = Policy(llm_during_generation=policy)
    refuses = policy == "refuse"
    assert not turns_away(INFERENCE, "inference", settings)
    assert turns_away(going(INFERENCE, "generation"), "inference", settings) is refuses
    assert (
        turns_away(replace(INFERENCE, wanted=SwitchRequest("generation")), "inference", settings) is refuses
    )


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
@pytest.mark.parametrize("state", [INFERENCE, GENERATION, going(GENERATION, "inference")])
def test_no_image_request_is_ever_turned_away(policy: Any, state: State) -> None:
    assert not turns_away(state, "generation", Policy(llm_during_generation=policy))


def test_the_engine_gets_so_many_jobs_as_its_depth_and_the_oldest_first() -> None:
    lease, second, third = (
        claim("lease", 1, "generation"),
        claim("ticket", 5, "generation"),
        claim("ticket", 7, "generation"),
    )
    claims = (lease, claim("ticket", 2, "inference"), second, third)
    assert [place(claims, mine) for mine in (second, third)] == [0, 1]
    assert [is_first(claims, mine, 2) for mine in (second, third)] == [True, False]
    assert [is_first(claims, mine, 1) for mine in (second, third)] == [False, False]
    assert [is_first(claims, mine, 3) for mine in (second, third)] == [True, True]


def test_llm_requests_do_not_queue_here() -> None:
    claims = tuple(claim("lease", number, "inference") for number in range(1, 50))
    assert is_first((*claims, claim("ticket", 99, "inference")), claim("ticket", 99, "inference"), 1)


def test_a_number_comes_after_every_hold_there_is_and_every_one_that_was_revoked() -> None:
    assert next_number(State(), ()) == 1
    assert next_number(State(), (claim("lease", 4, "generation"), claim("ticket", 3, "inference"))) == 5
    revoked = State(revoked={"inference": 0, "generation": 9})
    assert next_number(revoked, (claim("lease", 4, "generation"),)) == 10
    assert not is_revoked(revoked, claim("lease", next_number(revoked, ()), "generation"))


def test_what_was_revoked_is_one_mode_up_to_one_number() -> None:
    state = State(revoked={"inference": 0, "generation": 4})
    assert is_revoked(state, claim("lease", 4, "generation"))
    assert not is_revoked(state, claim("lease", 5, "generation"))
    assert not is_revoked(state, claim("lease", 4, "inference"))


# --- when to come again ----------------------------------------------------------------------------


def wait_s(
    mode: Mode,
    state: State,
    *claims: Claim,
    mine: Claim | None = None,
    at: float = SINCE + 100,
    last: float = 0.0,
    **policy: Any,
) -> int | None:
    given = Now(state, claims, Pace(last, 10.0), replace(POLICY, **policy), at)
    return seconds_until(mode, mine, given)


TOOK = {"inference": 4.0, "generation": 6.0}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_free_can_be_had_in_a_second(mode: Mode) -> None:
    assert wait_s(mode, State(mode, since=SINCE)) == 1


def test_the_queue_counts_as_long_as_its_pictures_take() -> None:
    queue = [
        claim("lease", 1, "generation"),
        claim("ticket", 2, "generation"),
        claim("ticket", 3, "generation"),
    ]
    assert wait_s("generation", GENERATION, *queue) == 30
    assert wait_s("generation", GENERATION, *queue, mine=queue[1]) == 10
    assert wait_s("generation", GENERATION, *queue, mine=queue[2]) == 20


def test_a_switch_that_was_measured_is_reckoned_as_it_was_and_an_unknown_one_by_a_guess() -> None:
    assert wait_s("generation", INFERENCE) == SWITCH_S
    assert wait_s("generation", replace(INFERENCE, took_s=TOOK)) == 6
    assert wait_s("inference", replace(GENERATION, took_s=TOOK)) == 4


def test_the_rest_of_the_minimum_stay_is_waited_for() -> None:
    assert wait_s("generation", replace(INFERENCE, took_s=TOOK), at=SINCE + 10) == 20 + 6
    assert wait_s("inference", replace(GENERATION, took_s=TOOK), at=SINCE + 10) == 20 + 4


def test_a_clock_that_was_set_back_makes_nobody_wait_longer_than_one_stay() -> None:
    assert wait_s("generation", replace(INFERENCE, took_s=TOOK), at=SINCE - 86_400) == 30 + 6


def test_a_switch_under_way_is_waited_for_as_long_as_it_has_left() -> None:
    coming = replace(going(INFERENCE, "generation"), took_s=TOOK)
    assert wait_s("generation", coming, at=SINCE + 2) == 4
    assert wait_s("generation", coming, at=SINCE + 60) == 60, "what takes long takes longer"


def test_who_wants_the_mode_that_is_just_leaving_waits_for_both_ways_and_the_stay_between() -> None:
    leaving = replace(going(INFERENCE, "generation"), took_s=TOOK)
    assert wait_s("inference", leaving, at=SINCE + 2) == 30 + 6 + 4


def test_the_llms_are_told_of_the_pictures_that_run() -> None:
    leases = [claim("lease", number, "generation") for number in (1, 2)]
    assert wait_s("inference", replace(GENERATION, took_s=TOOK), *leases) == 20 + 4


@pytest.mark.parametrize("policy", ["switch", "wait", "refuse"])
def test_nobody_can_say_how_long_a_pin_holds(policy: Any) -> None:
    pinned = replace(GENERATION, pinned=True)
    assert wait_s("inference", pinned, llm_during_generation=policy) is None
    assert wait_s("generation", pinned) == 1


@pytest.mark.parametrize("policy", ["wait", "refuse"])
def test_who_may_not_ask_for_the_gpu_is_told_when_it_goes_back_by_itself(policy: Any) -> None:
    state = replace(GENERATION, took_s=TOOK)
    told = {"llm_during_generation": policy}
    assert wait_s("inference", state, restore="never", **told) is None
    assert wait_s("inference", state, idle_restore_s=0, **told) is None
    assert wait_s("inference", state, **told) == 500 + 4, "600 s idle, of which 100 are over"
    assert wait_s("inference", state, last=SINCE + 50, **told) == 550 + 4
    assert wait_s("inference", state, restore="when_done", **told) == 4
    one = claim("lease", 1, "generation")
    assert wait_s("inference", state, one, restore="when_done", **told) == 10 + 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", [INFERENCE, GENERATION, going(INFERENCE, "generation")])
def test_a_retry_after_is_a_whole_second_or_more(mode: Mode, state: State) -> None:
    told = wait_s(mode, replace(state, took_s={"inference": 0.01, "generation": 0.01}))
    assert isinstance(told, int)
    assert told >= 1


def test_who_waited_for_a_mode_is_let_in_before_it_is_left_again() -> None:
    policy, state = Policy(min_stay_s=0), State(mode="inference", since=100.0)
    llm = Claim("ticket", 1, "inference", True, 0, 1, "llm")
    image = Claim("ticket", 2, "generation", True, 0, 1, "image")
    assert next_switch(state, [llm, image], Pace(), policy, 100.5) is None
    let_in = replace(llm, kind="lease")
    assert next_switch(state, [let_in, image], Pace(), policy, 100.5) is not None
    # Somebody who does not come is not waited for.
    assert next_switch(state, [llm, image], Pace(), policy, 101.5) is not None
