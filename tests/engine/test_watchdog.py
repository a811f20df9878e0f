"""The watchdog decides from values when a silent job is lost or stuck."""

from __future__ import annotations

from engine.values import QueueState
from engine.watchdog import Limits, Watchdog
from errors import EngineStalled, EngineUnreachable, JobLost

LIMITS = Limits(stall_timeout_s=120, idle_timeout_s=10, unreachable_timeout_s=10)
RUNNING, PENDING, ABSENT = QueueState(("me",), ()), QueueState(("other",), ("me",)), QueueState((), ())
IDLE = QueueState((), ("me",))
NONE: frozenset[str] = frozenset()


def make_watchdog() -> Watchdog:
    return Watchdog("me", LIMITS, 0.0)


def test_a_job_is_lost_only_when_it_is_absent_from_two_polls() -> None:
    watchdog = make_watchdog()
    assert watchdog.check_queue(1, ABSENT, NONE) is None
    assert isinstance(watchdog.check_queue(2, ABSENT, NONE), JobLost)


def test_a_job_seen_between_two_absent_polls_is_not_lost() -> None:
    for seen in (
        lambda watchdog: watchdog.on_event(1.5),
        lambda watchdog: watchdog.check_queue(1.5, RUNNING, NONE),
        lambda watchdog: watchdog.check_queue(1.5, PENDING, NONE),
    ):
        watchdog = make_watchdog()
        watchdog.check_queue(1, ABSENT, NONE)
        seen(watchdog)
        assert watchdog.check_queue(2, ABSENT, NONE) is None


def test_a_running_job_stalls_after_the_stall_timeout_without_events() -> None:
    watchdog = make_watchdog()
    watchdog.on_event(100)
    assert watchdog.check_queue(219, RUNNING, NONE) is None
    assert isinstance(watchdog.check_queue(220, RUNNING, NONE), EngineStalled)


def test_time_spent_pending_does_not_count_as_silence() -> None:
    watchdog = make_watchdog()
    assert watchdog.check_queue(500, PENDING, NONE) is None
    assert watchdog.check_queue(619, RUNNING, NONE) is None


def test_a_silent_job_does_not_stall_once_the_socket_is_lost() -> None:
    watchdog = make_watchdog()
    watchdog.on_socket_lost()
    assert watchdog.check_queue(10_000, RUNNING, NONE) is None


def test_a_pending_job_stalls_only_after_the_idle_timeout_without_a_running_job() -> None:
    watchdog = make_watchdog()
    assert watchdog.check_queue(1_000, PENDING, NONE) is None
    assert watchdog.check_queue(1_001, IDLE, NONE) is None
    assert watchdog.check_queue(1_005, PENDING, NONE) is None
    assert watchdog.check_queue(1_006, IDLE, NONE) is None
    assert watchdog.check_queue(1_015, IDLE, NONE) is None
    assert isinstance(watchdog.check_queue(1_016, IDLE, NONE), EngineStalled)


def test_a_stuck_job_does_not_count_as_running() -> None:
    watchdog, stuck = make_watchdog(), frozenset({"other"})
    assert watchdog.check_queue(1, PENDING, stuck) is None
    assert isinstance(watchdog.check_queue(11, PENDING, stuck), EngineStalled)


def test_an_engine_that_refuses_connections_fails_after_the_unreachable_timeout() -> None:
    watchdog = make_watchdog()
    error = EngineUnreachable("refused")
    watchdog.check_queue(5, RUNNING, NONE)
    assert watchdog.check_unreachable(14, error) is None
    assert isinstance(watchdog.check_unreachable(15, error), EngineUnreachable)


def test_an_engine_that_answers_late_fails_after_the_stall_timeout() -> None:
    watchdog = make_watchdog()
    error = EngineUnreachable("late", slow=True)
    assert watchdog.check_unreachable(119, error) is None
    assert isinstance(watchdog.check_unreachable(120, error), EngineUnreachable)
