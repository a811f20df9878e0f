"""Tickets and leases: a file each, which its holder keeps locked, so that a dead holder's is free at once and nothing
is left that could be believed. What a hold is stands in its file's name. Decides nothing."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from filelock import FileLock, lock_descriptor

from arbiter.values import Mode

_ABANDONED_S = 60.0

Kind = Literal["ticket", "lease"]
_NAME = re.compile(
    r"(?P<kind>ticket|lease)\.(?P<number>\d+)\.(?P<mode>inference|generation)\.(?P<asks>asks|waits)\."
    r"(?P<need>\d+)\.(?P<pid>\d+)\.(?P<job>[A-Za-z0-9_-]{1,80})"
)


@dataclass(frozen=True)
class Claim:
    """A ticket (waiting for its turn) or a lease (a shared hold on a mode).

    `number` orders them. `asks`: whether it makes the GPU change hands. `need`: bytes of GPU memory, 0 for unknown.
    `job` is the prompt id, so that whoever finds the holder dead can take its job back.
    """

    kind: Kind
    number: int
    mode: Mode
    asks: bool
    need: int
    pid: int
    job: str

    @property
    def name(self) -> str:
        """The name of its file."""
        asks = "asks" if self.asks else "waits"
        return f"{self.kind}.{self.number:08d}.{self.mode}.{asks}.{self.need}.{self.pid}.{self.job}"

    @classmethod
    def parse(cls, name: str) -> Claim | None:
        """The hold of a file name; None if it is no hold's."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(
            kind=cast(Kind, match["kind"]),
            number=int(match["number"]),
            mode=cast(Mode, match["mode"]),
            asks=match["asks"] == "asks",
            need=int(match["need"]),
            pid=int(match["pid"]),
            job=match["job"],
        )


class OwnClaim:
    """A hold of this process. Change and end it under the mutex, except `end`, which needs none."""

    def __init__(self, folder: Path, claim: Claim) -> None:
        self._folder = folder
        self.claim = claim
        self.ran_s: float | None = None
        """How long the engine worked for it, once that is known"""
        # Locked before it has its name: nobody ever sees a hold that looks as if its holder had died.
        making = folder / f".{claim.name}"
        self._lock = FileLock(making, is_singleton=False, thread_local=False)
        self._lock.acquire(timeout=1, poll_interval=0.001)
        os.rename(making, folder / claim.name)

    def change(self, **changes: object) -> None:
        """Rename the file; the lock is the file's, so it is held all the time."""
        after = replace(self.claim, **changes)  # type: ignore[arg-type]
        os.rename(self._folder / self.claim.name, self._folder / after.name)
        self.claim = after

    def end(self) -> None:
        # The name first: were the lock first, it would look for a moment as if its holder had died.
        with contextlib.suppress(OSError):
            os.unlink(self._folder / self.claim.name)
        self._lock.release()


class ClaimFolder:
    """All tickets and leases of all processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> tuple[Claim, ...]:
        """Every hold in the order of their numbers, those of dead holders included."""
        try:
            found = [Claim.parse(name) for name in os.listdir(self.folder)]
        except FileNotFoundError:
            return ()
        return tuple(sorted((claim for claim in found if claim is not None), key=lambda claim: claim.number))

    def take(self, claim: Claim) -> OwnClaim:
        """Make a hold of this process. Raises OSError, for instance when the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return OwnClaim(self.folder, claim)

    def dead(self) -> tuple[Claim, ...]:
        """Holds whose holder is gone."""
        return tuple(claim for claim in self.all() if self._is_free(claim))

    def sweep(self) -> None:
        """Remove what was only being made when its process was killed."""
        for path in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()

    def remove(self, claim: Claim) -> None:
        """Remove a dead hold."""
        with contextlib.suppress(OSError):
            os.unlink(self.folder / claim.name)

    def _is_free(self, claim: Claim) -> bool:
        with _opened(self.folder / claim.name) as descriptor:
            # Not FileLock, which makes the file when it is just gone.
            return descriptor is not None and lock_descriptor(descriptor, blocking=False)


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
        os.close(descriptor)  # which lets go of the lock too
