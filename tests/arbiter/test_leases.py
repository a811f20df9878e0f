"""Tickets and leases are files that their processes keep locked."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from arbiter.leases import Claim, ClaimFolder, is_abandoned
from arbiter.values import MODES, Mode
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CLAIM_SCRIPT = """
import sys
from pathlib import Path
from arbiter.leases import Claim, ClaimFolder
claims = ClaimFolder(Path(sys.argv[1]))
own_claims = [claims.create(Claim.parse(name)) for name in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.read()
"""


def claim(number: int = 1, kind: Any = "lease", mode: Mode = "generation", job: str = "a-job") -> Claim:
    return Claim(kind, number, mode, True, 0, os.getpid(), job)


def start_claiming_process(folder: Path, *claims: Claim) -> subprocess.Popen[str]:
    """A process that has these claims until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM_SCRIPT, str(folder), *(claim.name for claim in claims)],
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
@pytest.mark.parametrize("triggers", [True, False])
@pytest.mark.parametrize("job", ["a", "prompt-id_7", "x" * 80, "3f2c0a4e-1b2c-4d5e-8f90-a1b2c3d4e5f6"])
def test_a_claim_is_the_same_after_it_was_parsed_from_its_name(
    kind: Any, mode: Mode, triggers: bool, job: str
) -> None:
    for number, need in ((1, 0), (123_456_789, 24 * 10**9)):
        original = Claim(kind, number, mode, triggers, need, 4711, job)
        assert Claim.parse(original.name) == original


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
def test_a_file_with_another_name_is_not_a_claim(tmp_path: Path, name: str) -> None:
    assert Claim.parse(name) is None


def test_leases_are_listed_by_number(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    own_claims = [
        claims.create(claim(number, kind))
        for number, kind in ((10, "lease"), (9, "ticket"), (100_000_000, "lease"))
    ]
    (tmp_path / "lost+found").touch()
    assert [listed.number for listed in claims.all()] == [9, 10, 100_000_000]
    for own_claim in own_claims:
        own_claim.end()
    assert claims.all() == ()


def test_the_claims_of_a_killed_process_are_dead_at_once(tmp_path: Path) -> None:
    mine, theirs = claim(1), [claim(2, "ticket"), claim(3, "lease")]
    claims = ClaimFolder(tmp_path)
    own_claim = claims.create(mine)
    process = start_claiming_process(tmp_path, *theirs)
    assert claims.dead() == ()
    kill(process)
    assert claims.dead() == tuple(theirs)
    assert claims.all() == (mine, *theirs), "dead claims are listed until they are removed"
    for dead in claims.dead():
        claims.remove(dead)
    assert claims.all() == (mine,)
    own_claim.end()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_the_claims_of_a_killed_forked_worker_are_dead(tmp_path: Path) -> None:
    """gunicorn forks its workers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own_claim = ClaimFolder(tmp_path).create(claim(7))
            os.write(writer, b"x")
            threading.Event().wait(60)
            own_claim.end()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"x"
    claims = ClaimFolder(tmp_path)
    assert claims.dead() == ()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [dead.number for dead in claims.dead()] == [7]
    os.close(reader)
    os.close(writer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_a_forked_child_that_ends_the_claims_of_its_parent_removes_nothing_and_closes_no_file_of_its_own(
    tmp_path: Path,
) -> None:
    claims = ClaimFolder(tmp_path)
    own_claim = claims.create(claim(1))
    child = os.fork()
    if child == 0:
        result = 1
        try:
            its_own = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            own_claim.end()
            for descriptor in its_own:
                os.fstat(descriptor)
            result = 0
        finally:
            os._exit(result)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert claims.all() == (claim(1),)
    assert claims.dead() == ()
    own_claim.end()


def test_a_claim_that_its_process_lost_without_ending_it_is_dead(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    claims.create(claim(1))
    gc.collect()
    assert claims.dead() == (claim(1),)


def test_the_claims_of_a_stopped_process_are_not_dead(tmp_path: Path) -> None:
    process = start_claiming_process(tmp_path, claim(1))
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert ClaimFolder(tmp_path).dead() == ()
    kill(process)


def test_an_ended_claim_leaves_no_file(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    own_claim = claims.create(claim(1))
    own_claim.end()
    assert list(tmp_path.iterdir()) == []
    own_claim.end()  # a second call does nothing
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_ends_while_another_process_looks_at_it_is_not_dead(tmp_path: Path) -> None:
    own_claim = ClaimFolder(tmp_path).create(claim(1))
    with open(tmp_path / own_claim.claim.name, "r+b") as seen:
        assert not is_abandoned(seen.fileno())
        own_claim.end()
        assert not is_abandoned(seen.fileno())


def test_a_ticket_that_becomes_a_lease_stays_locked_all_the_time(tmp_path: Path) -> None:
    claims, dead, stopping = ClaimFolder(tmp_path), list[Claim](), threading.Event()

    def watch() -> None:
        while not stopping.is_set():
            dead.extend(ClaimFolder(tmp_path).dead())

    own_claim = claims.create(claim(1, "ticket"))
    watcher = threading.Thread(target=watch)
    watcher.start()
    for kind in ("lease", "ticket") * 200:
        own_claim.change(kind=kind)
    own_claim.change(kind="lease")
    assert [listed.kind for listed in claims.all()] == ["lease"]
    stopping.set()
    watcher.join()
    assert dead == []
    assert claims.dead() == ()
    own_claim.end()
    assert list(tmp_path.iterdir()) == []


def test_reading_the_dead_claims_changes_no_file(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path)
    kill(start_claiming_process(tmp_path, claim(1), claim(2)))
    before = sorted(os.listdir(tmp_path))
    assert len(claims.dead()) == 2
    assert sorted(os.listdir(tmp_path)) == before
    claims.remove(claim(99))  # another process has removed it
    assert sorted(os.listdir(tmp_path)) == before


def test_a_missing_folder_has_no_claims_and_is_created_with_the_first(tmp_path: Path) -> None:
    claims = ClaimFolder(tmp_path / "not" / "yet")
    assert claims.all() == claims.dead() == ()
    own_claim = claims.create(claim(1))
    assert claims.all() == (claim(1),)
    own_claim.end()
