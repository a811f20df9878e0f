"""The audit log: nothing is lost, nothing can be forged in it, and it never stops an action."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from access import Actor, AuditLog
from errors import GpuPinned
from tests.conftest import ROOT

PHONE = Actor("phone", "192.0.2.7")


def test_an_entry_says_who_when_what_and_with_which_result(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", clock=lambda: 1_795_000_000.25)
    with log.recording(PHONE, "gpu.switch", {"mode": "inference", "force": True}) as set_result:
        set_result("switching")
    with pytest.raises(GpuPinned), log.recording(PHONE, "gpu.switch", {"mode": "inference"}):
        raise GpuPinned("pinned")
    for raised, given in ((ValueError, ""), (KeyboardInterrupt, ""), (ValueError, "cancelled")):
        with pytest.raises(raised):
            _fail_while_recording(log, raised, given)
    assert [entry.result for entry in log.entries()][2:] == ["server.internal", "cancelled", "cancelled"]
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "at": "2026-11-18T11:06:40.250Z",
        "who": "phone",
        "address": "192.0.2.7",
        "action": "gpu.switch",
        "target": {"mode": "inference", "force": True},
        "result": "switching",
    }
    assert lines[1]["result"] == "gpu.pinned"
    assert os.stat(tmp_path / "audit.jsonl").st_mode & 0o777 == 0o600


def _fail_while_recording(log: AuditLog, raised: type[BaseException], result: str) -> None:
    with log.recording(PHONE, "models.pull", {}) as set_result:
        set_result(result)
        raise raised


def test_what_a_client_sends_cannot_forge_an_entry(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.record(PHONE, "render.cancel", {"id": 'x"}\n{"at": "forged"\x1b[31m' + "y" * 10_000}, "done")
    content = (tmp_path / "audit.jsonl").read_bytes()
    assert content.count(b"\n") == 1
    assert b"\x1b" not in content
    assert len(content) < 1000
    assert [entry.who for entry in log.entries()] == ["phone"]


def test_the_log_is_rotated_by_its_size_and_the_oldest_part_is_dropped(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=1000)
    for number in range(60):
        log.record(PHONE, "gpu.pin", {"number": number}, "done")
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("audit.jsonl*")}
    assert set(sizes) == {"audit.jsonl", *(f"audit.jsonl.{number}" for number in range(1, 5))}
    assert max(sizes.values()) <= 1000
    numbers = [entry.target["number"] for entry in log.entries()]
    assert numbers == list(range(numbers[0], 60))
    assert len(numbers) >= 25


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.record(PHONE, "gpu.pin", {}, "first")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"at": "2026-')
    log.record(PHONE, "gpu.pin", {}, "second")
    (tmp_path / "audit.jsonl.1").write_bytes(b'\xff\xfe\n[]\n{"at": 1}\n' + b"[" * 100_000 + b"\n")
    assert [entry.result for entry in log.entries()] == ["first", "second"]


def test_a_full_disk_loses_the_line_and_not_the_action(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.jsonl").mkdir()  # it can be opened by nobody
    AuditLog(tmp_path / "audit.jsonl").record(PHONE, "gpu.pin", {"pinned": True}, "done")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "an entry is missing" in message
    assert '"who": "phone"' in message


def test_processes_that_write_at_once_lose_no_entry(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from access import Actor, AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]), max_bytes=20_000)\n"
        "for number in range(100): log.record(Actor(sys.argv[2], ''), 'gpu.pin', {'n': number}, 'done')"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "audit.jsonl")]
    processes = [subprocess.Popen([*arguments, name], cwd=ROOT) for name in ("a", "b")]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = [(entry.who, entry.target["n"]) for entry in AuditLog(tmp_path / "audit.jsonl").entries()]
    assert sorted(found) == [(name, number) for name in "ab" for number in range(100)]
