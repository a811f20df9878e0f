"""Draws image jobs."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict
from typing import Any

from api.preferences import RESPOND_ASYNC
from api.received_requests import ReceivedRequest, Watch
from api.responses import Links, images_response
from api.services import Services
from api.stored_answers import stored_answer
from arbiter import Waiting
from engine import Preview, Progress
from errors import ImageJobDamaged
from generation import Drawing
from image_jobs import JobRequest, TakenJob

_REPORT_INTERVAL_S = 0.25


def draw_job(services: Services, job: TakenJob, job_request: JobRequest) -> dict[str, Any]:
    """Draw a job; its result, whose pictures are in the image store. Raises EaselError."""
    began_at = time.monotonic()
    try:
        received, sender = ReceivedRequest.from_job(job_request, f"Prefer: {RESPOND_ASYNC}")
    except (KeyError, TypeError, ValueError) as error:
        raise ImageJobDamaged("What was kept of this job is not complete; send the request again.") from error
    reports = _Reports(job)
    watch = Watch(
        job.is_cancel_requested, reports.on_prepared, reports.on_progress, reports.on_wait, reports.on_run
    )
    # The request was counted when it came, its pictures are counted now.
    admitted = services.gate.admit_later(job_request.owner, counted=job.status.use, on_counted=job.set_use)
    try:
        with contextlib.closing(admitted) as use:
            parsed, drawing, images = received.draw(
                services, seed=job_request.seed, sender=sender, watch=watch, use=use
            )
    except BaseException:
        job.set_use(None)  # what was not drawn was given back
        raise
    content = images_response(parsed, drawing, images, Links(""), time.monotonic() - began_at)
    return stored_answer(content, images, parsed.output, services.store)


class _Reports:
    """Writes the events of a job that is drawn, not more than four a second."""

    def __init__(self, job: TakenJob) -> None:
        self._job = job
        self._jobs = 1
        self._prompt_ids: dict[str, None] = {}
        self._began_at = self._reported_at = 0.0
        self._progress = 0.0
        self._waits = False
        """Whether the last event says what the job waits for"""

    def on_prepared(self, drawing: Drawing) -> None:
        drawing.counts_waiting = False  # nobody waits on a connection
        self._jobs = max(1, len(drawing.plan.jobs))

    def on_wait(self, waiting: Waiting) -> None:
        self._waits = True
        self._job.report("waiting", asdict(waiting))

    def on_run(self) -> None:
        """Loading a model may take minutes without progress, in which it waits for nobody."""
        if self._waits:
            self._report_progress(None)

    def on_progress(self, event: Progress | Preview) -> None:
        now = time.monotonic()
        if isinstance(event, Preview) or event.maximum <= 1:
            return
        self._prompt_ids[event.prompt_id] = None
        self._began_at = self._began_at or now
        progress = round((len(self._prompt_ids) - 1 + event.value / event.maximum) / self._jobs, 3)
        if progress <= self._progress or now - self._reported_at < _REPORT_INTERVAL_S:
            return
        self._progress, self._reported_at = progress, now
        left_s = math.ceil((now - self._began_at) * (1 - progress) / progress)
        self._report_progress(left_s)

    def _report_progress(self, left_s: int | None) -> None:
        self._waits = False
        event = {"progress": self._progress, "expected_s": left_s, "waits_for": None, "reason": None}
        self._job.report("progress", event)
