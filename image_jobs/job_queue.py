"""The jobs of this installation, of all processes: those that wait or are drawn, in the order of their turns, and those that
have ended. A job is in the queue from the moment its entry is created until that is moved to the ended ones; both are one
step, so that a process may be killed at any time. Whoever draws a job has claimed its entry."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from errors import ImageJobNotFound, ImageJobsFull
from image_jobs.file_claim import FileClaim, is_claimed
from image_jobs.job_folder import JobFolder, JobRequest, JobState, JobStatus
from image_jobs.job_names import EndedName, QueuedName, is_job_id, new_job_id, owner_digest
from image_jobs.turns import TurnFile, Turns, next_turn
from state_files import ensure_folder
from system_errors import write_error

log = logging.getLogger("easel.jobs")

MAX_AGE_S = 86_400.0
MAX_ENDED = 20_000
_RETRY_AFTER_S = 30
_SHARE_OF_ONE_OWNER = 0.75
"""Of the places, while there are several owners: the others then always find one"""
_VIEW_AGE_S = 0.25
"""How old the list may be from which a client is told its place: many may ask a hundred times a second"""
_LIST_AGE_S = 5.0
"""How long the names of the queue are used again while its folder seems unchanged"""
_TICK_S = 0.1
"""Two changes of a folder within this time may have the same time"""
_CANCEL_CHECK_INTERVAL_S = 0.2
_ORPHAN_AGE_S = 3600.0
_CLOCK_TOLERANCE_S = 60.0
_END_RETRY_S = 1.0
_CLAIM_TRIES, _CLAIM_INTERVAL_S = 5, 0.01


@dataclass(frozen=True)
class JobView:
    """A job for display. `place`: how many come before it, None if it does not wait. `waiting_before`: how many of these are
    not drawn yet. `progress`: the last event of the process that draws it, or why it was put back, if any."""

    status: JobStatus
    place: int | None = None
    waiting_before: int = 0
    progress: tuple[str, Mapping[str, Any]] | None = None
    cancel_requested: bool = False


class TakenJob:
    """A job that this thread draws. Call `end` or `put_back`, in this process or not at all."""

    def __init__(
        self, folder: JobFolder, name: QueuedName, claim: FileClaim, ended: Path, clock: Callable[[], float]
    ) -> None:
        self.folder, self.name = folder, name
        self._claim, self._ended, self._clock = claim, ended, clock
        self._cancel_checked_at, self._is_cancelled = 0.0, False
        self.status = folder.status() or self._lost_status()

    def _lost_status(self) -> JobStatus:
        request = self.folder.read_request() or JobRequest(0, {})
        return JobStatus(self.name.id, request.owner, request.model, self._clock())

    def begin(self) -> None:
        """Count the attempt. A full disk only loses the count."""
        started = self.status.started or self._clock()
        self.status = replace(
            self.status, state="running", started=started, attempts=self.status.attempts + 1
        )
        with contextlib.suppress(OSError):
            self.folder.write_status(self.status)

    def set_use(self, use: Mapping[str, Any] | None) -> None:
        """Write down what this attempt uses, for the one after it if this process is killed. A full disk only loses that."""
        if use != self.status.use:
            self.status = replace(self.status, use=use)
            with contextlib.suppress(OSError):
                self.folder.write_status(self.status)

    def is_older_than(self, seconds: float) -> bool:
        """Since it was added."""
        return self._clock() - self.status.created > seconds

    def report(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell those who watch the job."""
        self.folder.add_event(event, data)

    def is_cancel_requested(self) -> bool:
        """May be called often."""
        now = time.monotonic()
        if not self._is_cancelled and now - self._cancel_checked_at >= _CANCEL_CHECK_INTERVAL_S:
            self._cancel_checked_at = now
            self._is_cancelled = self.folder.is_cancel_requested()
        return self._is_cancelled

    def end(
        self,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        give_up: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Write down how it ended. While the disk is full it tries again, until `give_up`; false then: the job is drawn
        again later."""
        events = self.folder.events()
        status = replace(
            self.status,
            state=state,
            ended=self._clock(),
            result=result,
            error=error,
            events=events[-1][0] if events else 0,
            use=None,
        )
        while True:
            try:
                self.folder.write_status(status)
                self.status = status
                self._move()
                return True
            except OSError as problem:
                if give_up():
                    log.error("the end of job %s cannot be written: %s", status.id, problem.strerror)
                    self._claim.release()
                    return False
                time.sleep(_END_RETRY_S)

    def finish(self) -> None:
        """For a job whose end was written, by a process that was killed before it could move the entry. Raises OSError."""
        try:
            self._move()
        except OSError:
            self._claim.release()
            raise

    def _move(self) -> None:
        self.folder.remove_request()
        ended = EndedName(
            int(self.status.ended or self._clock()), self.name.number, self.name.owner, self.name.id
        )
        try:
            self._claim.rename(self._ended / ended.text)
        except FileNotFoundError:
            ensure_folder(self._ended, 0o700)
            if self._claim.path.exists():
                self._claim.rename(self._ended / ended.text)
        self._claim.release()

    def put_back(self) -> None:
        """Another process, or this one when it has started again, draws it; this attempt does not count."""
        status = replace(self.status, state="queued", attempts=max(0, self.status.attempts - 1))
        with contextlib.suppress(OSError):
            self.folder.write_status(status)
        self._claim.release()


class JobQueue:
    """The jobs in `folder`. `max_count` and `max_bytes`: of those that have not ended. `has_several_owners`: whether each
    must leave places to others."""

    def __init__(
        self,
        folder: Path,
        *,
        max_count: int = 20_000,
        max_bytes: int = 2_000_000_000,
        max_ended: int = MAX_ENDED,
        has_several_owners: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._clock = folder, clock
        self._max_count, self._max_bytes, self._max_ended = max_count, max_bytes, max_ended
        self._has_several_owners = has_several_owners
        self._queue, self._ended, self._work = folder / "queue", folder / "ended", folder / "work"
        self._turns = TurnFile(folder / "turns.json")
        self._listed: _Listed | None = None
        self._view_lock = threading.Lock()
        self._viewed_at, self._viewed = -1.0, _Viewed([], {}, 0)
        self._added = threading.Condition()

    # --- adding ------------------------------------------------------------------------------------

    def check_room(self, owner: str) -> None:
        """Raises ImageJobsFull."""
        self._check_room(self._names(), owner_digest(owner))

    def add(self, request: JobRequest, job_id: str | None = None) -> JobStatus:
        """Add a job at the end of its owner's. `job_id`: None for a new one. Raises ImageJobsFull, StoreFull and
        StateUnwritable."""
        job_id = job_id or new_job_id()
        folder = self._job_folder(job_id)
        try:
            ensure_folder(self._queue, 0o700)
            ensure_folder(self._work, 0o700)
            status = JobStatus(job_id, request.owner, request.model, self._clock())
            try:
                size = folder.create(status, request)
                with self._mutex():
                    self._enqueue(status, size)
            except BaseException:
                shutil.rmtree(folder.path, ignore_errors=True)
                raise
        except OSError as error:
            raise write_error(error, "the queue of image jobs") from error
        self._viewed_at = -1.0
        with self._added:
            self._added.notify()
        return status

    def wait_for_job(self, timeout_s: float) -> None:
        """Returns early if a job is added in this process."""
        with self._added:
            self._added.wait(timeout_s)

    def wake(self) -> None:
        """End all calls of `wait_for_job`."""
        with self._added:
            self._added.notify_all()

    def _enqueue(self, status: JobStatus, size: int) -> None:
        self._listed = None
        names, owner = self._names(), owner_digest(status.owner)
        self._check_room(names, owner)
        turns = self._turns.turns()
        if owner in turns.delays and all(name.owner != owner for name in names):
            turns = turns.of_owners(name.owner for name in names)
            self._turns.write(turns)
        # Later than all others, also after the clock was set back.
        number = max([int(self._clock() * 1e6), *(name.number + 1 for name in names)])
        name = QueuedName(next_turn(names, owner, turns), number, owner, size, status.id)
        os.close(os.open(self._queue / name.text, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def _check_room(self, names: list[QueuedName], owner: str) -> None:
        if self._is_full(names, 1.0):
            whose = "image jobs"
        elif self._has_several_owners() and self._is_full(
            [name for name in names if name.owner == owner], _SHARE_OF_ONE_OWNER
        ):
            names = [name for name in names if name.owner == owner]
            whose = "image jobs of this key"
        else:
            return
        size = sum(name.size for name in names)
        rest = "; the other places are for other keys" if whose != "image jobs" else ""
        raise ImageJobsFull(
            f"{len(names)} {whose} with {size / 1e6:.0f} MB wait already; at most {self._max_count} jobs and "
            f"{self._max_bytes / 1e6:.0f} MB may wait{rest}.",
            waiting=len(names),
            retry_after_s=_RETRY_AFTER_S,
        )

    def _is_full(self, names: list[QueuedName], share: float) -> bool:
        size = sum(name.size for name in names)
        return len(names) >= self._max_count * share or size >= self._max_bytes * share

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        """For milliseconds."""
        descriptor = os.open(self._folder / "mutex.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # --- drawing -----------------------------------------------------------------------------------

    def take(self, is_held_back: Callable[[str], bool] = lambda owner: False) -> TakenJob | None:
        """The first job that nobody draws, for this thread; None if there is none. `is_held_back`: whether the jobs of an
        owner (as in `QueuedName`) are left where they are."""
        listed = self._list()
        held_back = {owner for owner in listed.owners if is_held_back(owner)}
        if held_back == listed.owners:
            return None
        for name in listed.names:
            if name.owner in held_back:
                continue
            with contextlib.suppress(OSError):
                claim = FileClaim.take(self._queue / name.text)
                if claim is not None and (job := self._taken(name, claim)) is not None:
                    self._begin_turn(name)
                    return job
        return None

    def _begin_turn(self, name: QueuedName) -> None:
        if self._turns.turns().after_begin(name) is not self._turns.turns():
            with contextlib.suppress(OSError), self._mutex():
                self._turns.write(self._turns.turns().after_begin(name))

    def catch_up(self, owner: str) -> None:
        """After a job of this owner (as in `QueuedName`) was put back, or has ended: those that wait have missed the turns
        that have passed meanwhile. Never raises."""
        with contextlib.suppress(OSError), self._mutex():
            names, turns = self._names(), self._turns.turns()
            own = (name for name in names if name.owner == owner)
            first = next(
                (name for name in islice(own, _MAX_DRAWN) if not is_claimed(self._queue / name.text)), None
            )
            if first is not None and turns.of(first) < turns.now:
                self._turns.write(turns.caught_up(first).of_owners(name.owner for name in names))

    def has_missed_turns(self, name: QueuedName) -> bool:
        """Whether jobs with a later turn were begun."""
        turns = self._turns.turns()
        return turns.of(name) < turns.now

    def _taken(self, name: QueuedName, claim: FileClaim) -> TakenJob | None:
        """None for a job that had ended. Raises OSError."""
        job = TakenJob(self._job_folder(name.id), name, claim, self._ended, self._clock)
        if job.status.has_ended:
            job.finish()
            return None
        return job

    # --- looking -----------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobView | None:
        """The job; None if there is none. Its place may be a quarter of a second old, if other processes changed it."""
        status = self._job_folder(job_id).status() if is_job_id(job_id) else None
        if status is None or status.has_ended:
            return JobView(status) if status is not None else None
        return self._view(status)

    def has(self, job_id: str) -> bool:
        """Whether there is this job. Its folder alone does not make it one: a process may be killed before it can enter the
        job in the queue, or find that the queue is full."""
        if not is_job_id(job_id):
            return False
        is_queued = any(name.id == job_id for name in self._names())
        status = self._job_folder(job_id).status()
        return status is not None and (is_queued or status.has_ended)

    def _view(self, status: JobStatus) -> JobView:
        folder = self._job_folder(status.id)
        viewed = self._current_view()
        place = viewed.places.get(status.id)
        if status.state == "running" and place is not None:
            if is_claimed(self._queue / viewed.names[place].text):
                return JobView(
                    status, progress=folder.last_event(), cancel_requested=folder.is_cancel_requested()
                )
            # Its process was killed, or it has just ended.
            status = folder.status() or status
            if not status.has_ended:
                status = replace(status, state="queued")
        place = len(viewed.names) if place is None else place
        return JobView(
            status,
            place,
            max(0, place - viewed.drawn),
            _reason_to_wait(folder) if status.started is not None else None,
            folder.is_cancel_requested(),
        )

    def _current_view(self) -> _Viewed:
        with self._view_lock:
            if time.monotonic() - self._viewed_at > _VIEW_AGE_S:
                self._viewed_at = time.monotonic()
                names = self._names()
                places = {name.id: index for index, name in enumerate(names)}
                drawn = sum(is_claimed(self._queue / name.text) for name in names[:_MAX_DRAWN])
                self._viewed = _Viewed(names, places, drawn)
            return self._viewed

    def page(self, owner: str | None, *, limit: int, after: str | None = None) -> tuple[list[JobView], bool]:
        """The jobs of an owner (None: of all), the latest first, and whether there are more. `after`: begin after this
        one. Raises ImageJobNotFound if there is no such job."""
        digest = None if owner is None else owner_digest(owner)
        names: list[QueuedName | EndedName] = [*self._names(), *self._ended_names()]
        own = {name.id: name for name in names if digest in (None, name.owner)}
        ordered = sorted(own.values(), key=lambda name: name.number, reverse=True)
        if after is not None:
            if after not in own:
                raise ImageJobNotFound(f"There is no job {after[:80]!r}.", param="after")
            ordered = ordered[[name.id for name in ordered].index(after) + 1 :]
        views = (self.get(name.id) for name in ordered[:limit])
        return [view for view in views if view is not None], len(ordered) > limit

    def waiting(self, limit: int) -> list[JobView]:
        """The first jobs that wait, in the order of their turns."""
        views = (self.get(name.id) for name in self._names()[:limit])
        return [view for view in views if view is not None and view.status.state == "queued"]

    def events(self, job_id: str) -> list[tuple[int, str, Mapping[str, Any]]]:
        """Those of a job that has not ended."""
        return self._job_folder(job_id).events()

    def _names(self) -> list[QueuedName]:
        return self._list().names

    def _list(self) -> _Listed:
        """The names in their order. They are read again only after the folder or the turns have changed: threads without a
        job look several times a second, and there may be many jobs that nobody may draw now."""
        turns, stamp, now = self._turns.turns(), _stamp(self._queue), time.monotonic()
        listed = self._listed
        if listed is None or listed.stamp != stamp or stamp is None or now - listed.at > _LIST_AGE_S:
            found = [
                name for text in _sorted_names(self._queue) if (name := QueuedName.parse(text)) is not None
            ]
            listed = _Listed(found, turns, stamp if _is_settled(stamp) else None, now)
            self._listed = listed
        elif listed.turns is not turns:
            listed = self._listed = _Listed(listed.sorted, turns, stamp, listed.at)
        return listed

    def _ended_names(self) -> list[EndedName]:
        return [name for text in _sorted_names(self._ended) if (name := EndedName.parse(text)) is not None]

    def _job_folder(self, job_id: str) -> JobFolder:
        return JobFolder(self._work / job_id)

    # --- cancelling and removing -------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """A job that waits ends at once, one that is drawn as soon as its process sees it, one that has ended stays as it
        is. Raises StoreFull and StateUnwritable."""
        name = next((name for name in self._names() if name.id == job_id), None)
        if name is None:
            return
        try:
            claim = self._claim_patiently(self._queue / name.text)
            job = self._taken(name, claim) if claim is not None else None
            if claim is None or (job is not None and not job.end("cancelled")):
                with contextlib.suppress(FileNotFoundError):  # it has ended
                    self._job_folder(job_id).request_cancel()
        except OSError as error:
            raise write_error(error, "the queue of image jobs") from error
        self._viewed_at = -1.0

    @staticmethod
    def _claim_patiently(path: Path) -> FileClaim | None:
        """Who only looks whether a job is drawn has its file locked for a moment."""
        for _ in range(_CLAIM_TRIES):
            claim = FileClaim.take(path)
            if claim is not None or not path.exists():
                return claim
            time.sleep(_CLAIM_INTERVAL_S)
        return None

    def sweep(self) -> None:
        """Remove the jobs that ended a day ago, the oldest of too many, and what killed processes left. Never raises."""
        with contextlib.suppress(OSError):
            self._remove_ended()
            self._remove_orphans()

    def _remove_ended(self) -> None:
        now, names = self._clock(), self._ended_names()
        extra = len(names) - self._max_ended
        for index, name in enumerate(names):
            if name.ended > now + _CLOCK_TOLERANCE_S:  # the clock was set back
                with contextlib.suppress(OSError):
                    os.rename(self._ended / name.text, self._ended / replace(name, ended=int(now)).text)
            elif index < extra or now - name.ended > MAX_AGE_S:
                shutil.rmtree(self._work / name.id, ignore_errors=True)
                with contextlib.suppress(OSError):
                    os.unlink(self._ended / name.text)

    def _remove_orphans(self) -> None:
        """Folders of jobs that are in no list: their process was killed before the client had an answer."""
        now = self._clock()
        old = []
        with os.scandir(self._work) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    if age > _ORPHAN_AGE_S:
                        old.append(entry.name)
        if old:
            # In this order: a job goes from the first list to the second.
            listed = {name.id for name in self._names()} | {name.id for name in self._ended_names()}
            for name in old:
                if name not in listed:
                    shutil.rmtree(self._work / name, ignore_errors=True)


_MAX_DRAWN = 64
"""Jobs at the beginning of the queue among which those are looked for that are drawn"""


class _Listed:
    """`names`: the queue in its order; `sorted`: in the order of the names. `stamp`: of the folder then, None if it may have
    changed since without another one."""

    def __init__(self, found: list[QueuedName], turns: Turns, stamp: _Stamp | None, at: float) -> None:
        self.sorted, self.names, self.turns = found, turns.in_order(found), turns
        self.stamp, self.at = stamp, at
        self.owners = {name.owner for name in found}


_Stamp = tuple[int, int]


def _stamp(folder: Path) -> _Stamp | None:
    try:
        entry = folder.stat()
    except OSError:
        return None
    return entry.st_ino, entry.st_mtime_ns


def _is_settled(stamp: _Stamp | None) -> bool:
    return stamp is not None and time.time() - stamp[1] / 1e9 > _TICK_S


@dataclass(frozen=True)
class _Viewed:
    """The queue at some moment, the place of each job in it by id, and how many are drawn."""

    names: list[QueuedName]
    places: Mapping[str, int]
    drawn: int


def _reason_to_wait(folder: JobFolder) -> tuple[str, Mapping[str, Any]] | None:
    """Why a job that was begun was put back, if that is known."""
    event = folder.last_event()
    return event if event is not None and event[0] == "waiting" and "code" in event[1] else None


def _sorted_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
