"""The progress of jobs is written a few times a second, for the processes that show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiter.job_progress import JobProgressStore


@pytest.mark.parametrize(("jump_s", "is_written"), [(0.1, False), (0.3, True), (-3600, True)])
def test_progress_is_not_written_too_often_but_also_after_the_clock_was_set_back(
    tmp_path: Path, jump_s: float, is_written: bool
) -> None:
    now = [1_000_000.0]
    store = JobProgressStore(tmp_path, lambda: now[0])
    store.report("a-job", 1, 20)
    now[0] += jump_s
    store.report("a-job", 2, 20)
    progress = store.get("a-job")
    assert progress is not None
    assert progress.step == (2 if is_written else 1)
