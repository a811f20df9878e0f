"""Requests for pictures that outlive their connection: those with an idempotency key, and those that are answered later.
Knows files in the state directory, locks and turns; knows no HTTP and not what a request or an answer contains."""

from __future__ import annotations

from image_jobs.keyed_requests import KeyedRequest, KeyedRequests, Replay

__all__ = ["KeyedRequest", "KeyedRequests", "Replay"]
