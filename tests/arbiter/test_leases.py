"""Tickets and leases are files that their holders keep locked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from arbiter.leases import Claim, ClaimFolder
from arbiter.values import MODES, Mode
from tests.arbiter.fakes import until

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from arbiter.leases import Claim, ClaimFolder
holds = ClaimFolder(Path(sys.argv[1]))
kept = [holds.take(Claim.parse(name)) for name in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.read()
"""


def claim(number: int = 1, kind: Any = "lease", mode: Mode = "generation", job: str = "a-job") -> Claim:
    return Claim(kind, number, mode, True, 0, os.getpid(), job)


def holder(folder: Path, *claims: Claim) -> subprocess.Popen[str]:
    """A process that has these holds until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *(claim.name for claim in claims)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


@pytest.mark.parametrize("kind", ["ticket", "lease"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("job", ["a", "prompt-id_7", "x" * 80, "3f2c0a4e-1b2c-4d5e-8f90-a1b2c3d4e5f6"])
def test_a_hold_is_read_from_its_name_as_it_was(kind: Any, mode: Mode, asks: bool, job: str) -> None:
    for number, need in ((1, 0), (123_456_789, 24 * 10**9)):
        one = Claim(kind, number, mode, asks, need, 4711, job)
        assert Claim.parse(one.name) == one


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".lease.00000001.generation.asks.0.1.job",
        "lease.00000001.img.asks.0.1.job",
        "lease.-1.generation.asks.0.1.job",
        "lease.00000001.generation.asks.0.1.",
        "lease.00000001.generation.asks.0.1.../../etc",
        "lease.00000001.generation.asks.0.1.job.part",
        "lease.00000001.generation.asks.0.1." + "x" * 81,
        "something else",
    ],
)
def test_a_file_of_another_name_is_no_hold(tmp_path: Path, name: str) -> None:
    assert Claim.parse(name) is None


def test_holds_are_listed_by_number_and_never_by_name_or_time(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    kept = [
        claims.take(claim(number, kind))
        for number, kind in ((10, "lease"), (9, "ticket"), (100_000_000, "lease"))
    ]
    (tmp_path / "lost+found").touch()
    assert [found.number for found in claims.all()] == [9, 10, 100_000_000]
    for one in kept:
        one.end()
    assert claims.all() == ()


def test_the_holds_of_a_killed_process_are_dead_at_once_and_a_living_ones_are_not(tmp_path: Path) -> None:
    mine, theirs = claim(1), [claim(2, "ticket"), claim(3, "lease")]
    claims = ClaimFolder(tmp_path)
    kept = claims.take(mine)
    process = holder(tmp_path, *theirs)
    assert claims.dead() == ()
    kill(process)
    assert claims.dead() == tuple(theirs)
    assert claims.all() == (mine, *theirs), "the dead are listed until somebody took their jobs back"
    for one in claims.dead():
        claims.remove(one)
    assert claims.all() == (mine,)
    kept.end()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_a_forked_worker_that_is_killed_keeps_nothing(tmp_path: Path) -> None:
    """The way gunicorn's workers live and die."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = ClaimFolder(tmp_path).take(claim(7))
            os.write(there, b"x")
            threading.Event().wait(60)
            kept.end()
        finally:
            os._exit(1)
    assert os.read(here, 1) == b"x"
    claims = ClaimFolder(tmp_path)
    assert claims.dead() == ()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [one.number for one in claims.dead()] == [7]
    os.close(here)
    os.close(there)


def test_a_stopped_process_is_not_a_dead_one(tmp_path: Path) -> None:
    process = holder(tmp_path, claim(1))
    process.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert ClaimFolder(tmp_path).dead() == ()
    kill(process)


def test_the_name_of_a_process_that_ended_in_peace_is_gone(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    kept = claims.take(claim(1))
    kept.end()
    assert list(tmp_path.iterdir()) == []
    kept.end()  # twice does no harm
    assert list(tmp_path.iterdir()) == []


def test_a_ticket_that_becomes_a_lease_stays_locked_all_the_time(tmp_path: Path) -> None:
    claims, dead, stopping = ClaimFolder(tmp_path), list[Claim](), threading.Event()

    def look() -> None:
        others = ClaimFolder(tmp_path)
        while not stopping.is_set():
            dead.extend(others.dead())

    kept = claims.take(claim(1, "ticket"))
    looker = threading.Thread(target=look)
    looker.start()
    for kind in ("lease", "ticket") * 200:
        kept.change(kind=kind)
    kept.change(kind="lease")
    assert [one.kind for one in claims.all()] == ["lease"]
    stopping.set()
    looker.join()
    assert dead == []
    assert claims.dead() == ()
    kept.end()
    assert list(tmp_path.iterdir()) == []


def test_looking_for_the_dead_makes_no_file_and_buries_nobody(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    kill(holder(tmp_path, claim(1), claim(2)))
    before = sorted(os.listdir(tmp_path))
    assert len(claims.dead()) == 2
    assert sorted(os.listdir(tmp_path)) == before
    claims.remove(claim(99))  # one that another process buried
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_is_not_there_has_no_holds_until_one_is_taken(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path / "not" / "yet")
    assert claims.all() == claims.dead() == ()
    kept = claims.take(claim(1))
    assert claims.all() == (claim(1),)
    kept.end()
