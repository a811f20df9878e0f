"""How the status reports the memory that an engine reports."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import status.system_status
from app import Container
from arbiter import Claim
from arbiter.fair_queue import flow_of
from status.engine_entry import memory
from status.engine_readiness import EngineState, ModelStates
from status.host_readiness import HostReadiness
from tests.conftest import MakeApp
from tests.waiting import wait_until

STATS: dict[str, Any] = {
    "device": "cuda:0", "tells_gpu_memory": True, "vram_total": 24_000_000_000, "vram_free": 20_000_000_000,
    "torch_vram_free": 3_000_000_000, "ram_total": 64_000_000_000, "ram_free": 60_000_000_000,
}  # fmt: skip


def test_memory_that_comfyuis_allocator_keeps_counts_as_used() -> None:
    """ComfyUI reports it as free, the driver's own tool does not; no other process can use it."""
    shown = memory(STATS)
    assert shown is not None
    assert (shown["vram_used_gb"], shown["vram_ceil_gb"], shown["pressure"]) == (7.0, 24.0, False)


def test_unknown_gpu_memory_is_reported_as_none() -> None:
    shown = memory({**STATS, "tells_gpu_memory": False})
    assert shown is not None
    assert (shown["vram_used_gb"], shown["vram_used_share"], shown["pressure"]) == (None, None, None)
    assert shown["ram_used_gb"] == 4.0


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Nothing that the status writes can be stored."""

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(status.system_status, "write_atomic", fail)
        yield


def replace_by_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


@pytest.mark.parametrize("can_lock", [True, False])
def test_on_a_full_disk_the_status_tells_the_truth_and_one_line_is_logged(
    make_app: MakeApp, can_lock: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("status.system_status._PROBE_INTERVAL_S", 0.0)
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    app = make_app()
    container: Container = app.extensions["easel"]
    report = container.system_status.report
    if not can_lock:
        replace_by_folder(container.system_status._lock_file)
    files = container.system_status._file, container.system_status._models._path

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "easel.gpu"]

    with full_disk():
        wait_until(lambda: report()["reachable"] and report()["models"] and "No space" in caplog.text)
        statuses = [report() for _ in range(20)]
    assert all(one["reachable"] and one["models"] for one in statuses)
    assert all("cannot be stored" in line.message and line.exc_info is None for line in lines())
    assert len(lines()) == (1 if can_lock else 2)
    wait_until(lambda: report()["reachable"] and all(path.exists() for path in files))
    wait_until(
        lambda: not container.system_status._is_probing.locked()
    )  # nothing of it runs into the next test


def test_waiting_requests_are_listed_in_the_order_of_their_turns(make_app: MakeApp) -> None:
    container: Container = make_app().extensions["easel"]
    arbiter = container.arbiter
    claims = [
        arbiter.claims.create(Claim(kind, number, "generation", True, 0, os.getpid(), job, flow_of(job[0])))
        for number, (kind, job) in enumerate(
            [("lease", "a-1"), ("ticket", "a-2"), ("ticket", "a-3"), ("ticket", "b-1")], 1
        )
    ]
    tickets = container.system_status.report()["tickets"]
    assert [(ticket["place"], ticket["id"]) for ticket in tickets] == [(0, "b-1"), (1, "a-2"), (2, "a-3")]
    assert [ticket["waits_for"] for ticket in tickets] == [
        "the picture before it",
        "2 pictures before it",
        "3 pictures before it",
    ]
    assert [ticket["reason"] for ticket in tickets] == [
        {"code": "pictures_before", "count": count} for count in (1, 2, 3)
    ]
    for claim in claims:
        claim.end()


@pytest.mark.parametrize(
    ("is_sketch", "drawn_by"),
    [(False, "ComfyUI 0.3.60"), (True, "the sketch engine, which runs no model")],
)
def test_the_log_of_a_start_says_what_draws_on_other_hosts(
    is_sketch: bool, drawn_by: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    class Ready(HostReadiness):
        def engine(self, timeout_s: float) -> EngineState:
            return EngineState(True, None, "0.3.60", is_sketch)

        def models(self, timeout_s: float) -> ModelStates:
            return ModelStates((), is_complete=True)

    container: Container = make_app().extensions["easel"]
    with caplog.at_level(logging.INFO, "easel"):
        status.log_start(Ready(container.generator, hosts=cast("Any", None)))
    assert f"engine: other hosts draw; one that is ready has {drawn_by}" in caplog.messages
