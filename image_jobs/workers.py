"""The threads of a process that draw jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from errors import (
    EaselError,
    EngineUnreachable,
    GpuBusy,
    GpuInGenerationMode,
    GpuPreempted,
    ImageJobDamaged,
    ImageJobInterrupted,
    KeyLimitReached,
    KeysUnreadable,
    QueueFull,
    RenderCancelled,
    RequestCancelled,
    ServerStopping,
    ServerUnreachable,
    StateUnwritable,
    StoreFull,
    SwitchFailed,
    error_from_code,
)
from image_jobs.job_folder import JobRequest
from image_jobs.job_queue import JobQueue, TakenJob

log = logging.getLogger("easel.jobs")

MAX_STARTS = 5
"""A job that ends the server each time is not begun again for ever. Those that are drawn beside it count a start, too."""
MAX_FAILURES = 3
WAITED_OUT = (
    EngineUnreachable,
    GpuBusy,
    GpuPreempted,
    GpuInGenerationMode,
    ServerUnreachable,
    QueueFull,
    SwitchFailed,
)
"""Errors that say nothing about the job: it waits until the engine and the GPU are there again"""
UNWRITABLE = (StoreFull, StateUnwritable)
"""The same, for a disk. Each attempt draws, so there are fewer of them"""
OF_OWNER = (KeyLimitReached, KeysUnreadable)
"""Errors of all jobs of an owner: they wait in the queue, and those of others are drawn"""
MAX_WAIT_S = 86_400.0
_POLL_INTERVAL_S = 0.2
_SWEEP_INTERVAL_S = 60.0
_MAX_PAUSE_S = 60.0
_DEFAULT_PAUSE_S = 5.0

Draw = Callable[[TakenJob, JobRequest], Mapping[str, Any]]
"""Draws a job and returns its result as JSON. Raises EaselError."""


class JobWorkers:
    """`count` threads, each of which takes the next job whenever it has ended one. `max_pause_s`: between two attempts.
    `has_several_owners`: whether one owner's jobs must leave a thread to those of others."""

    def __init__(
        self,
        queue: JobQueue,
        draw: Draw,
        *,
        count: int,
        max_pause_s: float = _MAX_PAUSE_S,
        has_several_owners: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue, self._draw, self._count, self._max_pause_s = queue, draw, count, max_pause_s
        self._has_several_owners = has_several_owners
        self._take_lock = threading.Lock()
        self._drawing: Counter[str] = Counter()
        """How many jobs of each owner are drawn here"""
        self._stopping = threading.Event()
        self._held_back: dict[str, float] = {}
        """Owner -> until when none of its jobs is taken, of `time.monotonic`"""
        self._threads: list[threading.Thread] = []
        self._swept_at = -_SWEEP_INTERVAL_S
        self._sweep_lock = threading.Lock()

    def start(self) -> None:
        """Start those threads that do not run. Raises RuntimeError if the system gives no more threads."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name="easel-image-job", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_s: float = 0.0) -> None:
        """Take no more jobs. Waits for those that are drawn, at most `timeout_s`."""
        self._stopping.set()
        self._queue.wake()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sweep_sometimes()
                job = self._take()
                if job is not None:
                    try:
                        self._process(job)
                    finally:
                        with self._take_lock:
                            self._drawing[job.name.owner] -= 1
                        if self._queue.has_missed_turns(job.name):
                            self._queue.catch_up(job.name.owner)
                    continue
            except Exception:
                log.exception("an image job could not be taken")
            self._queue.wait_for_job(_POLL_INTERVAL_S)

    def _take(self) -> TakenJob | None:
        """The next job. While there are several owners, one of them does not have all threads: the next job of another is
        then drawn at once."""
        with self._take_lock:
            most = max(1, self._count - 1) if self._has_several_owners() else self._count
            self._drawing = +self._drawing
            job = self._queue.take(lambda owner: self._drawing[owner] >= most or self._is_held_back(owner))
            if job is not None:
                self._drawing[job.name.owner] += 1
            return job

    def _sweep_sometimes(self) -> None:
        with self._sweep_lock:
            if time.monotonic() - self._swept_at < _SWEEP_INTERVAL_S:
                return
            self._swept_at = time.monotonic()
        self._queue.sweep()

    def _process(self, job: TakenJob) -> None:
        """Draw it, again as long as it may succeed then, and write down how it ended."""
        failures = 0
        try:
            request = self._begun(job)
            while True:
                try:
                    result = self._draw(job, request)
                    break
                except OF_OWNER as error:
                    if job.is_older_than(MAX_WAIT_S):
                        raise
                    self._hold_back(job, error)
                    return
                except EaselError as error:
                    is_waited_out = isinstance(error, WAITED_OUT + UNWRITABLE)
                    failures += not is_waited_out
                    may_pass = error.retry or is_waited_out
                    if not may_pass or failures >= MAX_FAILURES or job.is_older_than(MAX_WAIT_S):
                        raise
                    self._pause(job, error)
        except ServerStopping:
            self._stopping.set()
            job.put_back()
        except (RequestCancelled, RenderCancelled) as error:
            self._end(job, "cancelled", error)
        except EaselError as error:
            self._end(job, "failed", error)
        except Exception:
            log.exception("image job %s failed", job.status.id)
            self._end(job, "failed", EaselError("Internal server error.", job=job.status.id))
        else:
            job.end("done", result=result, give_up=self._stopping.is_set)
            self._held_back.pop(job.name.owner, None)  # it has left a place, perhaps the only one

    def _begun(self, job: TakenJob) -> JobRequest:
        """Raises RequestCancelled, ImageJobInterrupted and ImageJobDamaged."""
        if job.is_cancel_requested():
            raise RequestCancelled("The job was cancelled.")
        if job.status.attempts >= MAX_STARTS:
            raise ImageJobInterrupted(f"The server ended {job.status.attempts} times while it drew this job.")
        request = job.folder.read_request()
        if request is None:
            raise ImageJobDamaged("What was kept of this job was damaged or deleted; send the request again.")
        job.begin()
        job.report("running", {"attempt": job.status.attempts})
        return request

    def _end(self, job: TakenJob, state: Any, error: EaselError) -> None:
        # What is wrong with a field is said with its value, which may be the prompt.
        reason = f": {error.message}" if error.param is None else ""
        log.warning("image job %s %s: %s%s", job.status.id, state, error.code, reason)
        shown = None if state == "cancelled" else error_as_json(error)
        job.end(state, error=shown, give_up=self._stopping.is_set)

    def _is_held_back(self, owner: str) -> bool:
        return time.monotonic() < self._held_back.get(owner, 0.0)

    def _hold_back(self, job: TakenJob, error: EaselError) -> None:
        """Put it back. A thread that waited with it could not draw the jobs of others meanwhile."""
        now = time.monotonic()
        kept = {owner: until for owner, until in list(self._held_back.items()) if until > now}
        self._held_back = {**kept, job.name.owner: now + self._pause_s(error)}
        _report_wait(job, error)
        job.put_back()

    def _pause_s(self, error: EaselError) -> float:
        usual_s = _MAX_PAUSE_S if isinstance(error, UNWRITABLE) else _DEFAULT_PAUSE_S
        return min(self._max_pause_s, float(error.details.get("retry_after_s") or usual_s))

    def _pause(self, job: TakenJob, error: EaselError) -> None:
        """Wait until it may succeed. Raises RequestCancelled and ServerStopping."""
        _report_wait(job, error)
        deadline = time.monotonic() + self._pause_s(error)
        while time.monotonic() < deadline:
            if job.is_cancel_requested():
                raise RequestCancelled("The job was cancelled.")
            if self._stopping.wait(_POLL_INTERVAL_S):
                raise ServerStopping("The server is stopping.")


def _report_wait(job: TakenJob, error: EaselError) -> None:
    reason = {"code": error.code}
    event = {"waits_for": error.message, "reason": reason, "code": error.code, "expected_s": None}
    job.report("waiting", event)


def error_as_json(error: EaselError) -> dict[str, Any]:
    """What `error_of` turns into the error again."""
    return {"code": error.code, "message": error.message, "param": error.param, "details": error.details}


def error_of(document: Mapping[str, Any]) -> EaselError:
    """The error of a job that failed."""
    error = error_from_code(document["code"], document["message"], **document["details"])
    error.param = document["param"]
    return error
