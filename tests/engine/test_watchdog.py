"""When a silent job is lost or stuck, decided from values alone."""

from __future__ import annotations

from engine.values import QueueState
from engine.watchdog import Limits, Watchdog
from errors import EngineStalled, EngineUnreachable, JobLost

LIMITS = Limits(stall_s=120, idle_s=10, gone_s=10)
RUNNING, PENDING, ABSENT = QueueState(("me",), ()), QueueState(("other",), ("me",)), QueueState((), ())
IDLE = QueueState((), ("me",))
NONE: frozenset[str] = frozenset()


def watchdog() -> Watchdog:
    return Watchdog("me", LIMITS, 0.0)


def test_one_absence_is_a_race_and_two_are_a_loss() -> None:
    dog = watchdog()
    assert dog.saw(1, ABSENT, NONE) is None
    assert isinstance(dog.saw(2, ABSENT, NONE), JobLost)


def test_a_sign_between_two_absences_makes_them_a_race() -> None:
    for sign in (
        lambda dog: dog.heard(1.5),
        lambda dog: dog.saw(1.5, RUNNING, NONE),
        lambda dog: dog.saw(1.5, PENDING, NONE),
    ):
        dog = watchdog()
        dog.saw(1, ABSENT, NONE)
        sign(dog)
        assert dog.saw(2, ABSENT, NONE) is None


def test_a_running_job_may_be_silent_for_just_so_long() -> None:
    dog = watchdog()
    dog.heard(100)
    assert dog.saw(219, RUNNING, NONE) is None
    assert isinstance(dog.saw(220, RUNNING, NONE), EngineStalled)


def test_time_spent_pending_is_no_silence() -> None:
    dog = watchdog()
    assert dog.saw(500, PENDING, NONE) is None
    assert dog.saw(619, RUNNING, NONE) is None


def test_silence_says_nothing_once_the_socket_is_gone() -> None:
    dog = watchdog()
    dog.deaf()
    assert dog.saw(10_000, RUNNING, NONE) is None


def test_a_pending_job_waits_while_others_run_and_not_long_while_nothing_does() -> None:
    dog = watchdog()
    assert dog.saw(1_000, PENDING, NONE) is None
    assert dog.saw(1_001, IDLE, NONE) is None
    assert dog.saw(1_005, PENDING, NONE) is None
    assert dog.saw(1_006, IDLE, NONE) is None
    assert dog.saw(1_015, IDLE, NONE) is None
    assert isinstance(dog.saw(1_016, IDLE, NONE), EngineStalled)


def test_a_job_that_is_known_to_be_stuck_counts_as_nothing_running() -> None:
    dog, stuck = watchdog(), frozenset({"other"})
    assert dog.saw(1, PENDING, stuck) is None
    assert isinstance(dog.saw(11, PENDING, stuck), EngineStalled)


def test_an_engine_that_does_not_answer_is_given_a_little_time() -> None:
    dog = watchdog()
    error = EngineUnreachable("refused")
    dog.saw(5, RUNNING, NONE)
    assert dog.unanswered(14, error) is None
    assert isinstance(dog.unanswered(15, error), EngineUnreachable)


def test_an_engine_that_answers_late_is_given_as_long_as_one_that_is_silent() -> None:
    dog = watchdog()
    error = EngineUnreachable("late", slow=True)
    assert dog.unanswered(119, error) is None
    assert isinstance(dog.unanswered(120, error), EngineUnreachable)
