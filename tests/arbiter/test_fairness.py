"""Neither side starves, and a request that waits for its `Retry-After` succeeds. In real time, with jobs of some tenths
of a second."""

from __future__ import annotations

import itertools
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter import Arbiter, Mode, Policy
from errors import GpuBusy, GpuInGenerationMode
from tests.arbiter.fakes import FakeEngine, FakeStacks

JOB_S, STAY_S = 0.05, 0.3
SLACK_S = 1.0
"""For a busy machine; a side that starves would wait until the test ends"""
TEST_S = 5.0


def start_arbiter(folder: Path, **policy: object) -> Arbiter:
    """Its reconciler runs; the caller stops it."""
    arbiter = Arbiter(
        folder,
        tenants={"inference": FakeStacks(), "generation": FakeEngine()},
        policy=Policy(**policy),  # type: ignore[arg-type]
    )
    arbiter.reconciler.start()
    return arbiter


def test_two_sides_that_request_all_the_time_get_the_gpu_in_turn(tmp_path: Path) -> None:
    arbiter = start_arbiter(tmp_path, min_stay_s=STAY_S)
    granted_at: dict[Mode, list[float]] = {"inference": [], "generation": []}
    end = time.monotonic() + TEST_S

    def request_repeatedly(mode: Mode, number: int) -> None:
        for turn in itertools.count():
            if time.monotonic() > end:
                return
            with arbiter.lease(mode, job=f"{mode}-{number}-{turn}", timeout_s=TEST_S):
                granted_at[mode].append(time.monotonic())
                time.sleep(JOB_S)

    started_at = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(request_repeatedly, mode, number) for mode in granted_at for number in range(4)
        ]
        for future in futures:
            future.result()
    arbiter.reconciler.stop()
    switch_s = max(arbiter.state_store.state().took_s.values())
    for times in granted_at.values():
        gaps = [after - before for before, after in itertools.pairwise([started_at, *times])]
        # The other side's stay and job, and a switch in each direction.
        assert max(gaps) < STAY_S + JOB_S + 2 * switch_s + SLACK_S
    last = arbiter.state_store.state().switch
    assert last is not None
    # About one switch for each stay.
    assert 3 <= last.number <= math.ceil(TEST_S / STAY_S) + 2


TRIES = 10


def test_a_retry_after_in_a_queue_of_pictures_is_right_nine_times_in_ten(tmp_path: Path) -> None:
    with ThreadPoolExecutor(TRIES) as pool:
        outcomes = list(pool.map(lambda number: _retry_in_a_queue(tmp_path / str(number)), range(TRIES)))
    assert sum(outcomes) >= 0.9 * TRIES, outcomes


def _retry_in_a_queue(folder: Path) -> bool:
    """Four pictures of 0.4 s are ahead; whether a lease is granted once the `Retry-After` is over."""
    arbiter = start_arbiter(folder, min_stay_s=0, depth=1)
    _draw(arbiter, "measured", 0.4)
    threads = [threading.Thread(target=_draw, args=(arbiter, f"job-{number}", 0.4)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        while len(arbiter.snapshot().claims) < 4:
            time.sleep(0.005)
        with pytest.raises(GpuBusy) as busy, arbiter.lease("generation", job="fifth", timeout_s=0.05):
            pass
        wait_s = busy.value.details["retry_after_s"]
        assert 1 <= wait_s <= 4  # not much longer than needed
        time.sleep(wait_s)
        return _is_granted(arbiter, "generation")
    finally:
        for thread in threads:
            thread.join()
        arbiter.reconciler.stop()


@pytest.mark.parametrize("restore", ["when_done", "idle"])
def test_a_retry_after_in_generation_mode_is_right_nine_times_in_ten(tmp_path: Path, restore: str) -> None:
    with ThreadPoolExecutor(TRIES) as pool:
        outcomes = list(
            pool.map(lambda number: _retry_in_generation_mode(tmp_path / str(number), restore), range(TRIES))
        )
    assert sum(outcomes) >= 0.9 * TRIES, outcomes


def _retry_in_generation_mode(folder: Path, restore: str) -> bool:
    """A picture of 0.3 s is drawn when an LLM request is refused."""
    when: dict[str, object] = (
        {"restore": "linger", "linger_s": 0}  # what the setting `when_done` means
        if restore == "when_done"
        else {"restore": "idle", "idle_restore_s": 0.8}
    )
    arbiter = start_arbiter(folder, min_stay_s=0.5, llm_during_generation="refuse", **when)
    is_drawn, is_refused = threading.Event(), threading.Event()

    def draw() -> None:
        with arbiter.lease("generation", job="job", timeout_s=30) as lease:
            is_drawn.set()
            assert is_refused.wait(30)
            time.sleep(0.3)
            lease.record_run(0.3)

    try:
        # A switch back and a picture were measured before.
        arbiter.state_store.update(lambda state: replace(state, took_s={"inference": 0.1}))
        arbiter.state_store.record_use(time.time(), 0.3)
        drawing = threading.Thread(target=draw)
        drawing.start()
        assert is_drawn.wait(30)
        with (
            pytest.raises(GpuInGenerationMode) as refused,
            arbiter.lease("inference", job="chat", timeout_s=5),
        ):
            pass
        is_refused.set()
        drawing.join()
        wait_s = refused.value.details["retry_after_s"]
        assert 1 <= wait_s <= 4
        time.sleep(wait_s)
        return _is_granted(arbiter, "inference")
    finally:
        is_refused.set()
        arbiter.reconciler.stop()


def _draw(arbiter: Arbiter, job: str, seconds: float) -> None:
    with arbiter.lease("generation", job=job, timeout_s=30) as lease:
        time.sleep(seconds)
        lease.record_run(seconds)


def _is_granted(arbiter: Arbiter, mode: Mode) -> bool:
    try:
        with arbiter.lease(mode, job="again", timeout_s=0.25):
            return True
    except (GpuBusy, GpuInGenerationMode):
        return False
