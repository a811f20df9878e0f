"""What a job would wait for at one GPU."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from arbiter import UNKNOWN_SENDER, Arbiter, Policy
from errors import RequestCancelled


def queueing(folder: Path) -> Arbiter:
    return Arbiter(folder, policy=Policy(depth=2), queues_all=True)


def test_jobs_without_a_key_wait_for_their_turn_where_another_engine_could_draw_them(tmp_path: Path) -> None:
    arbiter, other = queueing(tmp_path / "gpu"), queueing(tmp_path / "gpu")
    granted: list[str] = []

    def draw(job: str) -> None:
        with (
            other.listed(f"request-{job}", model=f"model-{job}", jobs=[job], sender=UNKNOWN_SENDER),
            other.lease("generation", job=job, timeout_s=60),
        ):
            granted.append(job)
            done.wait(60)

    done = threading.Event()
    threads = []
    with contextlib.ExitStack() as leases:
        for job in ("a", "b"):
            leases.enter_context(arbiter.listed(job, model="flux", jobs=[job], sender=UNKNOWN_SENDER))
            leases.enter_context(arbiter.lease("generation", job=job, timeout_s=60))
        for job in ("c", "d"):
            threads.append(threading.Thread(target=draw, args=(job,)))
            threads[-1].start()
            deadline = time.monotonic() + 60
            while len(arbiter.outlook().waiting_before("")) < len(threads):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        outlook = arbiter.outlook()
        assert outlook.running == ("a", "b")
        assert outlook.waiting_before("") == ("c", "d")
        assert outlook.waiting_before("", "d") == ("c",)
        assert outlook.waiting_before("", "c") == ()
        assert outlook.switch_s == 0
        assert dict(outlook.models) == {"a": "flux", "b": "flux", "c": "model-c", "d": "model-d"}
        assert outlook.granted_at is not None
        assert abs(outlook.granted_at - time.time()) < 60
        assert granted == []
    done.set()
    for thread in threads:
        thread.join(60)
    assert sorted(granted) == ["c", "d"]
    empty = arbiter.outlook()
    assert (empty.running, empty.waiting_before(""), empty.granted_at) == ((), (), None)


def test_a_new_job_of_a_key_that_had_no_turn_comes_before_those_of_one_that_had(tmp_path: Path) -> None:
    arbiter = queueing(tmp_path / "gpu")
    stop = threading.Event()

    def wait(job: str) -> None:
        with (
            contextlib.suppress(RequestCancelled),
            arbiter.lease("generation", job=job, timeout_s=60, key="busy", cancelled=stop.is_set),
        ):
            pass

    with contextlib.ExitStack() as leases:
        leases.enter_context(arbiter.lease("generation", job="first", timeout_s=60, key="busy"))
        leases.enter_context(arbiter.lease("generation", job="second", timeout_s=60, key="busy"))
        threads = [threading.Thread(target=wait, args=(f"busy-{index}",)) for index in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(arbiter.outlook().waiting_before("busy")) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(arbiter.outlook().waiting_before("other")) < 3
        stop.set()
        for thread in threads:
            thread.join(60)
