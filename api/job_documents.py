"""What clients are told about image jobs."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from flask import Response

from api.errors import envelope
from api.json_responses import json_response
from api.paths import IMAGE_JOBS
from api.preferences import APPLIED, RESPOND_ASYNC
from api.responses import Links
from api.services import Services
from api.stored_answers import answer_or_none
from arbiter import because
from errors import EaselError, JobPicturesRemoved
from image_jobs import JobView, error_of


class QueueEstimate:
    """How long the jobs of the queue will take, measured at most once a second: many clients may ask."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._measured_at, self._each_s = -1.0, 0.0
        self._until_free_s: int | None = None

    def seconds_until_done(self, waiting_before: int) -> int | None:
        """For a job that so many others come before that are not drawn yet; None if unknown."""
        with self._lock:
            if time.monotonic() - self._measured_at > 1:
                fleet = self._services.fleet
                self._each_s = fleet.seconds_per_job() or 0.0
                self._until_free_s = fleet.seconds_until_free() if self._each_s else None
                self._measured_at = time.monotonic()
            if self._until_free_s is None:
                return None
            return math.ceil(self._until_free_s + (waiting_before + 1) * self._each_s)


def waits_for(jobs_before: int) -> dict[str, Any]:
    """What a job waits for that no thread has taken, as a text and as a code with values."""
    if jobs_before:
        text, reason = because("other jobs", "jobs_before", count=jobs_before)
    else:
        text, reason = because("the GPU", "gpu")
    return {"waits_for": text, "reason": reason}


def summary(view: JobView, services: Services, estimate: QueueEstimate) -> dict[str, Any]:
    """A job without its result."""
    status = view.status
    document: dict[str, Any] = {
        "id": status.id,
        "object": "image.job",
        "state": status.state,
        "model": status.model,
        "key": services.gate.name_of(status.owner) or None,
        "created": int(status.created),
        "started": _whole(status.started),
        "ended": _whole(status.ended),
        "attempts": status.attempts,
        "cancel_requested": view.cancel_requested,
        "place": None,
        "progress": 1.0 if status.state == "done" else 0.0,
        "waits_for": None,
        "reason": None,
        "expected_s": 0 if status.has_ended else None,
        "error": envelope(error_of(status.error))["error"] if status.error else None,
    }
    if status.state == "queued":
        document["place"] = view.waiting_before
        document |= waits_for(view.waiting_before)
        document["expected_s"] = estimate.seconds_until_done(view.waiting_before)
    if view.progress is not None:
        data = view.progress[1]
        known = ("progress", "waits_for", "reason", "expected_s")
        document |= {key: data[key] for key in known if key in data}
    return document


def job_document(view: JobView, services: Services, estimate: QueueEstimate, links: Links) -> dict[str, Any]:
    """A job with its result: the body that the ordinary answer would have had."""
    document, status = summary(view, services, estimate), view.status
    result = None
    if status.state == "done" and status.result is not None:
        result = answer_or_none(status.result, services.store, links)
        if result is None:
            document["error"] = envelope(_pictures_removed())["error"]
    return {**document, "result": result}


def _pictures_removed() -> JobPicturesRemoved:
    return JobPicturesRemoved("The pictures of this job were removed from the image store.")


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def accepted(view: JobView, services: Services, links: Links) -> Response:
    """The answer to a request that has become a job."""
    response = json_response(job_document(view, services, QueueEstimate(services), links))
    response.status_code = 202
    response.headers["Location"] = f"{links.prefix}{IMAGE_JOBS}/{view.status.id}"
    response.headers[APPLIED] = RESPOND_ASYNC
    return response


def error_of_job(view: JobView) -> EaselError | None:
    """Why a job has no result."""
    return error_of(view.status.error) if view.status.error else None
