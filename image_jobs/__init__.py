"""Requests for pictures that outlive their connection: those with an idempotency key, and those that are answered later.
Knows files in the state directory, locks and turns; knows no HTTP and not what a request or an answer contains."""

from __future__ import annotations

from image_jobs.job_folder import JobRequest, JobStatus
from image_jobs.job_names import new_job_id
from image_jobs.job_queue import JobQueue, JobView, TakenJob
from image_jobs.keyed_requests import KeyedRequest, KeyedRequests, Replay
from image_jobs.workers import JobWorkers, error_of

__all__ = [
    "JobQueue",
    "JobRequest",
    "JobStatus",
    "JobView",
    "JobWorkers",
    "KeyedRequest",
    "KeyedRequests",
    "Replay",
    "TakenJob",
    "error_of",
    "new_job_id",
]
