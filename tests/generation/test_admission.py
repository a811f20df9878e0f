"""Places for waiting requests: all of a process, and those of one key."""

from __future__ import annotations

import contextlib

import pytest

from errors import QueueFull
from generation import Admission


def test_so_many_requests_may_wait_and_the_next_is_refused() -> None:
    admission = Admission(2, lambda: 7)
    with admission.of(""), admission.of("a"):
        assert admission.count == 2
        with pytest.raises(QueueFull, match="2 requests are already waiting") as caught, admission.of("b"):
            pass
        assert caught.value.details == {"waiting": 2, "retry_after_s": 7}
    assert admission.count == 0


def test_a_key_leaves_places_for_other_keys() -> None:
    admission = Admission(8, has_several_keys=lambda: True)
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(admission.of("a"))
        with pytest.raises(QueueFull, match="6 requests of this key"), admission.of("a"):
            pass
        held.enter_context(admission.of("b"))
        held.enter_context(admission.of(""))
        with pytest.raises(QueueFull, match="8 requests are already"), admission.of("c"):
            pass
    assert admission.count == 0


def test_a_key_that_is_the_only_one_has_all_places() -> None:
    admission = Admission(4)
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(admission.of("a"))
        assert admission.count == 4


def test_one_place_serves_several_keys_in_turn() -> None:
    admission = Admission(1, has_several_keys=lambda: True)
    for key in ("a", "b"):
        with admission.of(key):
            assert admission.count == 1
