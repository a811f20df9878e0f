"""Counters that processes share: who dies, what is damaged, what cannot be written."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metrics import ValueFiles
from metrics.value_files import Series
from tests.conftest import ROOT
from tests.waiting import wait_until

COUNTER = Series("c", "c_total", (("label", "a"),), "A counter.")
GAUGE = Series("g", "g", (), "A gauge.")
WORKER = """
import sys, pathlib
from metrics import ValueFiles
from metrics.value_files import Series
files = ValueFiles(pathlib.Path(sys.argv[1]))
files.add("counter", {Series("c", "c_total", (("label", "a"),), "A counter."): 5.0})
files.add("gauge_livesum", {Series("g", "g", (), "A gauge."): 2.0})
print("ready", flush=True)
sys.stdin.read()
"""


def values(files: ValueFiles) -> dict[str, float]:
    return {
        f"{sample.name}{sample.labels or ''}": sample.value
        for metric in files.metrics()
        for sample in metric.samples
    }


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 100.0  # each look is due
        return self.now


def worker(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = worker(tmp_path)
    yield process
    process.communicate()


def test_values_of_all_processes_are_added(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    files = ValueFiles(tmp_path)
    files.add("counter", {COUNTER: 1.0})
    files.add("counter", {COUNTER: 1.0})
    files.add("gauge_livesum", {GAUGE: 1.0})
    assert values(files) == {"c_total{'label': 'a'}": 7.0, "g": 3.0}


def test_a_killed_process_leaves_its_counters_and_takes_its_gauges(tmp_path: Path) -> None:
    files, process = ValueFiles(tmp_path), worker(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert values(files) == {"c_total{'label': 'a'}": 5.0}


def test_a_new_process_goes_on_with_the_files_of_one_that_has_ended(tmp_path: Path) -> None:
    for _ in range(3):
        worker(tmp_path).communicate()
    files = ValueFiles(tmp_path)
    files.add("counter", {COUNTER: 1.0})
    assert values(files) == {"c_total{'label': 'a'}": 16.0}
    assert len(list(tmp_path.glob("counter_*.db"))) == 1


def test_a_forked_child_counts_in_files_of_its_own(tmp_path: Path) -> None:
    files = ValueFiles(tmp_path)
    files.add("counter", {COUNTER: 1.0})
    pid = os.fork()
    if pid == 0:
        files.add("counter", {COUNTER: 10.0})
        os._exit(0)
    os.waitpid(pid, 0)
    files.add("counter", {COUNTER: 100.0})
    assert values(files) == {"c_total{'label': 'a'}": 111.0}


@pytest.mark.parametrize("damage", ["folder", "files", "locks", "truncated", "cut", "noise"])
def test_damaged_and_removed_files_are_written_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "metrics"
    files = ValueFiles(folder, clock=Clock())
    files.add("counter", {COUNTER: 1.0})
    databases = list(folder.glob("counter_*.db"))
    if damage == "folder":
        shutil.rmtree(folder)
    for path in databases if damage == "files" else folder.glob("*.lock") if damage == "locks" else ():
        path.unlink()
    for path in databases:
        if damage == "truncated":
            os.truncate(path, 0)
        elif damage == "cut":
            os.truncate(path, 20)
        elif damage == "noise":
            path.write_bytes(os.urandom(path.stat().st_size))
    values(files)
    files.add("counter", {COUNTER: 1.0})
    assert values(files) == {"c_total{'label': 'a'}": 2.0}


def test_a_damaged_file_of_another_process_hides_only_its_own_values(tmp_path: Path) -> None:
    files = ValueFiles(tmp_path)
    files.add("counter", {COUNTER: 1.0})
    (tmp_path / "counter_77.db").write_bytes(b"\xff" * 100)
    assert values(files) == {"c_total{'label': 'a'}": 1.0}


def test_a_folder_that_cannot_be_made_is_named_once_and_the_values_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "metrics"
    folder.write_text("a file")
    files = ValueFiles(folder, clock=Clock())
    for _ in range(5):
        files.add("counter", {COUNTER: 1.0})
        files.add("gauge_livesum", {GAUGE: 1.0})
    assert values(files) == {"c_total{'label': 'a'}": 5.0, "g": 5.0}
    assert files.problem is not None
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    folder.unlink()
    files.add("counter", {COUNTER: 1.0})
    assert files.problem is None
    assert values(ValueFiles(folder)) == {"c_total{'label': 'a'}": 6.0, "g": 5.0}


def test_a_full_disk_loses_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own limit of a file's size stands in for the disk: writes beyond it fail."""
    program = """
import pathlib, resource, signal, sys
from metrics import ValueFiles
from metrics.value_files import Series
now = [0.0]
files = ValueFiles(pathlib.Path(sys.argv[1]), clock=lambda: now[0])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
def count():
    for number in range(100):
        files.add("counter", {Series("c", "c_total", (("label", str(number)),), "A counter."): 1.0})
count()
assert files.problem, "the limit had no effect"
assert len(files.metrics()[0].samples) == 100, len(files.metrics()[0].samples)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
now[0] += 10
count()
assert files.problem is None
assert [sample.value for sample in files.metrics()[0].samples] == [2.0] * 100
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, timeout=180)
    assert errno.EFBIG  # what such a write raises


def open_in(folder: Path) -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return [
        name
        for link in links
        if os.path.lexists(link) and (name := os.readlink(link)).startswith(f"{folder}/")
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_closed_or_dropped_files_leave_no_descriptor_and_their_slot_to_the_next(
    tmp_path: Path, way: str
) -> None:
    files = ValueFiles(tmp_path)
    files.add("counter", {COUNTER: 1.0})
    assert len(open_in(tmp_path)) == 4
    if way == "closed":
        files.close()
        files.add("counter", {COUNTER: 2.0})
        assert values(files) == {"c_total{'label': 'a'}": 3.0}
        files.close()
    del files
    gc.collect()
    assert open_in(tmp_path) == []
    following = ValueFiles(tmp_path)
    following.add("counter", {COUNTER: 5.0})
    assert values(following) == {"c_total{'label': 'a'}": 8.0 if way == "closed" else 6.0}
    assert [path.name for path in tmp_path.glob("*.lock")] == ["0.lock"]


def test_clear_removes_what_an_earlier_server_has_counted(tmp_path: Path) -> None:
    worker(tmp_path).communicate()
    files = ValueFiles(tmp_path)
    files.clear()
    assert values(files) == {}


def test_readers_never_see_half_of_an_entry(tmp_path: Path) -> None:
    program = """
import pathlib, sys
from metrics import ValueFiles
from metrics.value_files import Series
files = ValueFiles(pathlib.Path(sys.argv[1]))
for number in range(3000):
    files.add("counter", {Series("c", "c_total", (("label", str(number)),), "A counter."): 1.0})
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    files, seen = ValueFiles(tmp_path), 0

    def read() -> bool:
        nonlocal seen
        found = values(files)
        assert set(found.values()) <= {1.0, 0.0}
        assert len(found) >= seen
        seen = len(found)
        return process.poll() is not None

    wait_until(read)
    assert process.returncode == 0
    assert len(values(files)) == 3000
