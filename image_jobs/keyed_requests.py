"""Requests with an idempotency key: the first with a key draws, all others get its answer. A record in a file each; while a
request runs, its process has claimed the lock beside it, so that the requests of a killed process are noticed at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from atomic_file import write_atomic
from errors import IdempotencyKeyReused, JobTimedOut, RequestCancelled
from image_jobs.file_claim import FileClaim
from state_files import ensure_folder, read_state

T = TypeVar("T")

log = logging.getLogger("easel.jobs")

MAX_AGE_S = 86_400.0
MAX_COUNT = 20_000
MAX_BYTES = 100_000_000
_MAX_RECORD_BYTES = 200_000
"""An answer with ten pictures has about 10,000"""
_SWEEP_INTERVAL_S = 60.0
_POLL_INTERVAL_S = 0.03
_CLOCK_TOLERANCE_S = 60.0

DIED = "the server ended while it was drawn before"
FAILED = "it failed before"
REMOVED = "its pictures were removed from the image store"


@dataclass(frozen=True)
class Record:
    """`fingerprint`: of the request. `seed`: written before anything is drawn. `answer`: JSON, once there is one. `job`: the
    id of the job that answers it, if it is answered later. `failed`: whether its last attempt ended with an error."""

    fingerprint: str
    seed: int
    created: float
    answer: Mapping[str, Any] | None = None
    job: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class Replay(Generic[T]):
    """A request that was answered before: its answer as the caller's function has loaded it, or the id of its job."""

    answer: T | None
    job: str | None


class KeyedRequest:
    """A request that is to be drawn now, by this thread. `seed`: the one to draw with. `again`: why it is drawn again, None
    if it is drawn for the first time. `is_recorded`: false if the disk is full: then it is drawn without a record, and a
    retry draws again. Call one of the last four methods."""

    def __init__(self, path: Path, record: Record, claim: FileClaim | None, again: str | None) -> None:
        self._path, self._record, self._claim = path, record, claim
        self.seed, self.again = record.seed, again
        self.is_recorded = claim is not None and self._write(record)

    def choose_job(self, job: str) -> None:
        """Write down which job answers the request, before that is created."""
        self.is_recorded = self.is_recorded and self._write(replace(self._record, job=job))

    def handed_over(self) -> None:
        """The job that was chosen answers it from now on."""
        self._release()

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Keep the answer for all later requests."""
        self.is_recorded = self.is_recorded and self._write(
            replace(self._record, answer=answer, job=None, failed=False)
        )
        self._release()

    def failed(self) -> None:
        """The next request with this key draws with the same seed."""
        if self.is_recorded:
            self._write(replace(self._record, failed=True))
        self._release()

    def forget(self) -> None:
        """The key is free again."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release(remove=True)

    def _write(self, record: Record) -> bool:
        try:
            data = json.dumps(asdict(record)).encode()
            if len(data) > _MAX_RECORD_BYTES:
                return False
            write_atomic(self._path, data, mode=0o600)
        except OSError as error:
            log.warning("a request with an Idempotency-Key is not recorded: %s", error.strerror)
            return False
        self._record = record
        return True


class KeyedRequests:
    """The records in `folder`, of all processes. They are removed after a day; if there are more than `max_count`, or they
    have more than `max_bytes`, the oldest earlier."""

    def __init__(
        self,
        folder: Path,
        *,
        max_count: int = MAX_COUNT,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._clock = folder, clock
        self._max_count, self._max_bytes = max_count, max_bytes
        self._swept_at = -_SWEEP_INTERVAL_S
        self._lock = threading.Lock()

    def enter(
        self,
        owner: str,
        key: str,
        fingerprint: str,
        *,
        seed: int,
        load: Callable[[Mapping[str, Any]], T | None],
        has_job: Callable[[str], bool] = lambda job: True,
        timeout_s: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Replay[T] | KeyedRequest:
        """The answer to this request, or the right to draw it. Waits while another thread or process draws it.

        `owner`: whose key it is. `seed`: for a request that was not there before. `load` turns a stored answer into what is
        sent; None if its pictures are gone: then it is drawn again. `has_job`: whether a job still exists. Raises
        IdempotencyKeyReused for another fingerprint, RequestCancelled once `cancelled` is true, and JobTimedOut.
        """
        self._sweep_sometimes()
        path = self._path(owner, key)
        deadline = time.monotonic() + timeout_s
        while True:
            record = self._read(path, fingerprint)
            replay = self._replay(record, load, has_job)
            if replay is not None:
                return replay
            claim, can_record = self._claim(path)
            if claim is not None or not can_record:
                # The one that had the claim before may have written its answer since.
                record = self._read(path, fingerprint)
                if claim is not None and (replay := self._replay(record, load, has_job)) is not None:
                    claim.release(remove=True)
                    return replay
                new = record or Record(fingerprint, seed, self._clock())
                return KeyedRequest(path, replace(new, answer=None), claim, _again(record))
            if cancelled():
                raise RequestCancelled("The caller cancelled the request.")
            if time.monotonic() > deadline:
                raise JobTimedOut("The request timed out while it waited for another one with its key.")
            time.sleep(_POLL_INTERVAL_S)

    def _path(self, owner: str, key: str) -> Path:
        digest = hashlib.sha256(f"{len(owner)}:{owner}:{key}".encode()).hexdigest()
        return self._folder / f"{digest}.json"

    def _read(self, path: Path, fingerprint: str) -> Record | None:
        record = read_state(path, _record)
        if record is None or self._clock() - record.created > MAX_AGE_S:
            return None
        if record.fingerprint != fingerprint:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was sent with another request within the last day (another body or path). Send a new "
                "key with each new request, and the same body with each retry."
            )
        return record

    @staticmethod
    def _replay(
        record: Record | None,
        load: Callable[[Mapping[str, Any]], T | None],
        has_job: Callable[[str], bool],
    ) -> Replay[T] | None:
        if record is None:
            return None
        if record.job is not None:
            return Replay(None, record.job) if has_job(record.job) else None
        answer = load(record.answer) if record.answer is not None else None
        return Replay(answer, None) if answer is not None else None

    def _claim(self, path: Path) -> tuple[FileClaim | None, bool]:
        """The claim, None if another has it; and whether claims are possible at all."""
        lock = path.with_suffix(".lock")
        for _ in range(2):
            try:
                return FileClaim.take(lock, create=True), True
            except (FileNotFoundError, NotADirectoryError):
                with contextlib.suppress(OSError):
                    ensure_folder(self._folder, 0o700)
            except OSError:
                break
        return None, False

    # --- removal -----------------------------------------------------------------------------------

    def _sweep_sometimes(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._swept_at < _SWEEP_INTERVAL_S:
                return
            self._swept_at = now
        self.sweep()

    def sweep(self) -> None:
        """Remove the records that are too old or too many. Never raises."""
        now = self._clock()
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    about, path = entry.stat(follow_symlinks=False), Path(entry.path)
                    if about.st_mtime > now + _CLOCK_TOLERANCE_S:  # the clock was set back
                        os.utime(path, (now, now), follow_symlinks=False)
                    found.append((min(about.st_mtime, now), about.st_size, path))
        found.sort(key=lambda one: one[0])
        count, size = len(found), sum(one[1] for one in found)
        for modified, length, path in found:
            is_extra = count > self._max_count or size > self._max_bytes
            if now - modified <= MAX_AGE_S and not is_extra:
                break
            if self._remove(path):
                count, size = count - 1, size - length

    def _remove(self, path: Path) -> bool:
        """False if its request runs now."""
        with contextlib.suppress(OSError):
            claim = FileClaim.take(path.with_suffix(".lock"), create=True)
            if claim is None:
                return False
            path.unlink(missing_ok=True)
            claim.release(remove=True)
            return True
        return False


def _again(record: Record | None) -> str | None:
    """Why a request with this record is drawn again."""
    if record is None:
        return None
    if record.answer is not None or record.job is not None:
        return REMOVED
    return FAILED if record.failed else DIED


def _record(document: Any) -> Record:
    """Raises KeyError, TypeError or ValueError for a document of another shape."""
    record = Record(**document)
    texts, numbers = (record.fingerprint,), (record.seed, record.created)
    are_valid = all(isinstance(text, str) for text in texts) and all(
        isinstance(number, int | float) for number in numbers
    )
    if not are_valid or not isinstance(record.answer, dict | None) or not isinstance(record.job, str | None):
        raise ValueError("not a record")
    return record
