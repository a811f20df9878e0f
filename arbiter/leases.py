"""Claims: a ticket waits for a mode, a lease is a shared hold on it. Each is a file that its process keeps locked, so
that the claim of a killed process is unlocked at once. The file's name holds all its data. Decides nothing."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

from filelock import lock_descriptor

from arbiter.locked_file import LockedFile
from arbiter.values import Mode
from state_files import ensure_folder

_MAX_TEMPORARY_AGE_S = 60.0

Kind = Literal["ticket", "lease"]
_NAME = re.compile(
    r"(?P<kind>ticket|lease)\.(?P<number>\d+)\.(?P<mode>inference|generation)\.(?P<trigger>asks|waits)\."
    r"(?P<need>\d+)\.(?P<pid>\d+)\.(?:(?P<flow>[0-9a-f]+)\.)?(?P<job>[A-Za-z0-9_-]{1,80})"
)


@dataclass(frozen=True)
class Claim:
    """A ticket (waiting for its turn) or a lease (a shared hold on a mode).

    `number` orders them. `triggers_switch`: whether a ticket causes a switch to its mode. `need`: bytes of GPU memory,
    0 for unknown. `job` is the prompt id, so that another process can cancel the job of a dead one. `flow`: hexadecimal;
    requests of different flows take turns (fair_queue.py); empty if there are no keys.
    """

    kind: Kind
    number: int
    mode: Mode
    triggers_switch: bool
    need: int
    pid: int
    job: str
    flow: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        trigger = "asks" if self.triggers_switch else "waits"
        job = f"{self.flow}.{self.job}" if self.flow else self.job
        return f"{self.kind}.{self.number:08d}.{self.mode}.{trigger}.{self.need}.{self.pid}.{job}"

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, name: str) -> Claim | None:
        """The claim of a file name; None if the name is not a claim's. Each new lease looks at all that there are, so the
        parsed names are kept."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(
            kind=cast(Kind, match["kind"]),
            number=int(match["number"]),
            mode=cast(Mode, match["mode"]),
            triggers_switch=match["trigger"] == "asks",
            need=int(match["need"]),
            pid=int(match["pid"]),
            job=match["job"],
            flow=match["flow"] or "",
        )


class OwnClaim:
    """A claim of this process. `change` needs the state store's mutex, `end` does not."""

    def __init__(self, folder: Path, claim: Claim) -> None:
        self.claim = claim
        self.run_s: float | None = None
        """How long the engine worked on the job, once that is known"""
        self.folder = folder
        self._file = LockedFile(str(folder), claim.name)

    def change(self, **changes: object) -> None:
        """Rename the file, which stays locked."""
        changed = replace(self.claim, **changes)  # type: ignore[arg-type]
        self._file.rename(changed.name)
        self.claim = changed

    def end(self) -> None:
        """Remove the file and unlock it; a second call does nothing."""
        self._file.remove()


class ClaimFolder:
    """All tickets and leases of all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> tuple[Claim, ...]:
        """Every claim in the order of their numbers, including those of dead processes."""
        try:
            claims = [Claim.parse(name) for name in os.listdir(self.folder)]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(sorted((claim for claim in claims if claim is not None), key=lambda claim: claim.number))

    def granted_at(self, lease: Claim) -> float | None:
        """When it became a lease (Unix time): its file was created or renamed then. None if it has ended."""
        try:
            return os.stat(self.folder / lease.name).st_ctime
        except OSError:
            return None

    def create(self, claim: Claim) -> OwnClaim:
        """Create and lock a claim of this process. Raises OSError, for instance when the disk is full."""
        try:
            return OwnClaim(self.folder, claim)
        except (FileNotFoundError, NotADirectoryError):
            ensure_folder(self.folder)
            return OwnClaim(self.folder, claim)

    def dead(self) -> tuple[Claim, ...]:
        """Claims whose process has ended."""
        return tuple(claim for claim in self.all() if self._is_dead(claim))

    def remove(self, claim: Claim) -> None:
        """Remove the claim of a dead process."""
        with contextlib.suppress(OSError):
            os.unlink(self.folder / claim.name)

    def remove_temporary_files(self) -> None:
        """Remove files of processes that were killed while they created a claim."""
        for path in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _MAX_TEMPORARY_AGE_S:
                    path.unlink()

    def _is_dead(self, claim: Claim) -> bool:
        with _opened(self.folder / claim.name) as descriptor:
            return descriptor is not None and is_abandoned(descriptor)


def is_abandoned(descriptor: int) -> bool:
    """Whether the process of an open claim file ended without removing it. Locks the file if so."""
    # Not FileLock: it would create the file if it was just removed.
    is_unlocked = lock_descriptor(descriptor, blocking=False)
    # Its process may have removed and unlocked it after this process opened it: then it has no name any more.
    return is_unlocked and os.fstat(descriptor).st_nlink > 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # also unlocks it
