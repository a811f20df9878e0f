"""/v1/images/jobs: requests for pictures that are answered later."""

from __future__ import annotations

import contextlib

from flask import Blueprint, Response, g, request

from api.audit import recording
from api.connection import disconnect_check
from api.event_streams import EventStreams, ReleasedStream
from api.image_requests import links_of
from api.job_documents import QueueEstimate, job_document, summary
from api.job_events import JobEvents
from api.json_responses import json_response
from api.paths import GPUSTACK_IMAGE_JOBS, IMAGE_JOBS
from api.services import Services
from api.streams import HEADERS, MIME
from errors import ImageJobNotFound, InvalidValue
from image_jobs import JobView

_DEFAULT_LIMIT, _MAX_LIMIT = 20, 100


def image_jobs_blueprint(services: Services, streams: EventStreams) -> Blueprint:
    """The routes of the jobs. `streams`: the places of all event streams of this process."""
    routes = Blueprint("image_jobs", __name__)
    estimate = QueueEstimate(services)
    for base in (IMAGE_JOBS, GPUSTACK_IMAGE_JOBS):
        one = f"{base}/<job_id>"
        routes.add_url_rule(base, f"{base} list", lambda: _list(services, estimate))
        routes.add_url_rule(one, f"{base} get", lambda job_id: _get(services, estimate, job_id))
        routes.add_url_rule(
            one, f"{base} delete", lambda job_id: _cancel(services, estimate, job_id), methods=["DELETE"]
        )
        routes.add_url_rule(
            f"{one}/cancel",
            f"{base} cancel",
            lambda job_id: _cancel(services, estimate, job_id),
            methods=["POST"],
        )
        routes.add_url_rule(
            f"{one}/events", f"{base} events", lambda job_id: _events(services, estimate, streams, job_id)
        )
    return routes


def _own_job(services: Services, job_id: str) -> JobView:
    """Raises ImageJobNotFound, also for a job of another caller."""
    view = services.jobs.get(job_id)
    if view is None or (view.status.owner != g.caller.owner and not g.caller.may("operate")):
        raise ImageJobNotFound(f"There is no image job {job_id[:80]!r}.", id=job_id[:80])
    return view


def _get(services: Services, estimate: QueueEstimate, job_id: str) -> Response:
    view = _own_job(services, job_id)
    return json_response(job_document(view, services, estimate, links_of(services.options)))


def _list(services: Services, estimate: QueueEstimate) -> Response:
    limit = request.args.get("limit", str(_DEFAULT_LIMIT))
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= _MAX_LIMIT:
        raise InvalidValue(f"`limit` must be a number from 1 to {_MAX_LIMIT}.", param="limit")
    of_all = request.args.get("all", "") in ("true", "1") and g.caller.may("operate")
    views, has_more = services.jobs.page(
        None if of_all else g.caller.owner, limit=int(limit), after=request.args.get("after")
    )
    documents = [summary(view, services, estimate) for view in views]
    ids = [document["id"] for document in documents]
    return json_response(
        {
            "object": "list",
            "data": documents,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": has_more,
        }
    )


def _cancel(services: Services, estimate: QueueEstimate, job_id: str) -> Response:
    status = _own_job(services, job_id).status
    with contextlib.ExitStack() as stack:
        if g.caller.may("operate") and not status.has_ended:
            key = services.gate.name_of(status.owner) or None
            stack.enter_context(recording(services, "jobs.cancel", id=job_id, key=key))
        services.jobs.cancel(job_id)
    return json_response(summary(_own_job(services, job_id), services, estimate))


def _events(services: Services, estimate: QueueEstimate, streams: EventStreams, job_id: str) -> Response:
    view = _own_job(services, job_id)
    last = request.headers.get("Last-Event-ID", "")
    seen = int(last) if last.isascii() and last.isdecimal() and len(last) < 10 else 0
    if view.status.has_ended and seen > view.status.events:
        return Response(status=204)  # the client has seen the end: it is not to connect again
    leave = streams.enter(g.caller.owner)
    events = JobEvents(services, estimate, job_id, links_of(services.options), seen, g.caller)
    has_hung_up = disconnect_check(request.environ)
    return Response(ReleasedStream(events.stream(has_hung_up), leave), mimetype=MIME, headers=HEADERS)
