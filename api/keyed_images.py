"""Requests for pictures with an `Idempotency-Key`, or with `Prefer: respond-async`, or with both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Request, Response, g, request

from api.connection import disconnect_check
from api.errors import is_mistake_of_client
from api.idempotency import HEADER, REPLAYED, STORED, fingerprint, idempotency_key
from api.image_requests import links_of, random_seed
from api.job_documents import accepted, error_of_job
from api.json_responses import json_response
from api.preferences import RESPOND_ASYNC, prefers_async
from api.received_requests import ReceivedRequest, Watch
from api.responses import Links, images_response
from api.sender import sender_of
from api.services import Services
from api.stored_answers import answer_from, answer_or_none, try_to_store
from compiler.values import Note
from errors import EaselError, ImageJobNotFound, JobTimedOut, RenderCancelled
from image_jobs import JobView, KeyedRequest, Replay, new_job_id

_POLL_INTERVAL_S = 0.1


class OutlivingRequest:
    """How the client of the present request wants it to outlive its connection. Raises IdempotencyKeyInvalid."""

    def __init__(self, services: Services, request: Request) -> None:
        self._services = services
        self._key = idempotency_key(request)
        self._is_async = prefers_async(request) and services.options.answers_later
        self._deadline = time.monotonic() + services.options.request_timeout_s
        self._links = links_of(services.options)

    @property
    def is_wanted(self) -> bool:
        return self._key is not None or self._is_async

    @property
    def header(self) -> str:
        """The one because of which it is not answered in the ordinary way."""
        return f"Prefer: {RESPOND_ASYNC}" if self._is_async else HEADER

    def answer(self, received: ReceivedRequest, arrived_at: float) -> Response:
        """Draw it, add it to the queue, or answer it as before. Raises the errors of all of these."""
        if self._key is None:
            return self._add_job(received, random_seed())
        keyed = self._enter(received, self._key)
        if isinstance(keyed, Replay):
            return self._replay(keyed)
        if self._is_async:
            return self._add_keyed_job(received, keyed)
        return self._draw(received, keyed, arrived_at)

    def _enter(self, received: ReceivedRequest, key: str) -> Replay[dict[str, Any]] | KeyedRequest:
        return self._services.keyed_requests.enter(
            g.caller.owner,
            key,
            fingerprint(received.endpoint, received.body, received.files),
            seed=random_seed(),
            load=lambda answer: answer_or_none(answer, self._services.store, self._links),
            has_job=self._is_answered_by,
            timeout_s=self._services.options.request_timeout_s,
            cancelled=disconnect_check(request.environ),
        )

    def _is_answered_by(self, job_id: str) -> bool:
        """False for a job that failed, and for one that was never added: a retry draws again."""
        view = self._services.jobs.get(job_id)
        has_failed = view is None or view.status.state in ("failed", "cancelled")
        return not has_failed and self._services.jobs.has(job_id)

    # --- drawing now -------------------------------------------------------------------------------

    def _draw(self, received: ReceivedRequest, keyed: KeyedRequest, arrived_at: float) -> Response:
        services, again = self._services, keyed.again
        notes = () if again is None else (Note(HEADER, "sent before", "drawn again", again),)
        try:
            g.use.take_place()  # one that joins another request, or gets its answer, needs none
            # A client that sends a key comes back for its answer, so the drawing is not cancelled when it hangs up.
            parsed, drawing, images = received.draw(
                services,
                seed=keyed.seed,
                notes=notes,
                sender=sender_of(request),
                watch=Watch(cancelled=lambda: False),
                deadline=self._deadline,
            )
        except BaseException as error:
            self._give_up(keyed, error)
            raise
        content = images_response(parsed, drawing, images, self._links, time.monotonic() - arrived_at)
        answer = try_to_store(content, images, parsed.output, services.store) if keyed.is_recorded else None
        if answer is None:
            keyed.failed()
        else:
            keyed.answered(answer)
        response = json_response(content)
        if answer is None or not keyed.is_recorded:
            response.headers[STORED] = "false"
        return response

    @staticmethod
    def _give_up(keyed: KeyedRequest, error: BaseException) -> None:
        if isinstance(error, EaselError) and is_mistake_of_client(error):
            keyed.forget()
        else:
            keyed.failed()

    # --- drawing later -----------------------------------------------------------------------------

    def _add_keyed_job(self, received: ReceivedRequest, keyed: KeyedRequest) -> Response:
        job_id = new_job_id()
        try:
            # Written first: a process that is killed in between leaves no job that its client does not find again.
            keyed.choose_job(job_id)
            response = self._add_job(received, keyed.seed, job_id)
        except BaseException as error:
            self._give_up(keyed, error)
            raise
        keyed.handed_over()
        if not keyed.is_recorded:
            response.headers[STORED] = "false"
        return response

    def _add_job(self, received: ReceivedRequest, seed: int, job_id: str | None = None) -> Response:
        services = self._services
        services.jobs.check_room(g.caller.owner)
        model = received.check(services)
        status = services.jobs.add(
            received.as_job(seed=seed, sender=sender_of(request), owner=g.caller.owner, model=model), job_id
        )
        return accepted(services.jobs.get(status.id) or JobView(status), services, self._links)

    # --- answering as before -----------------------------------------------------------------------

    def _replay(self, replay: Replay[dict[str, Any]]) -> Response:
        if replay.job is None:
            assert replay.answer is not None
            response = json_response(replay.answer)
        elif self._is_async:
            response = accepted(self._job(replay.job), self._services, self._links)
        else:
            response = json_response(self._result_of(replay.job, self._links))
        response.headers[REPLAYED] = "true"
        return response

    def _job(self, job_id: str) -> JobView:
        view = self._services.jobs.get(job_id)
        if view is None:
            raise ImageJobNotFound(f"There is no image job {job_id!r} any more.", id=job_id)
        return view

    def _result_of(self, job_id: str, links: Links) -> dict[str, Any]:
        """The answer of a request that was sent before with `Prefer: respond-async`, once its job has ended."""
        has_hung_up, use = disconnect_check(request.environ), g.use
        view = _ended_job(
            self._services, job_id, self._deadline, lambda: has_hung_up() or use.ended() is not None
        )
        if (ended := use.ended()) is not None:
            raise ended
        if view is None:
            self._job(job_id)
            raise JobTimedOut(
                f"The request was sent before as the image job {job_id}, which has not ended yet.", id=job_id
            )
        if error := error_of_job(view):
            raise error
        if view.status.result is None:
            raise RenderCancelled("The job of this request was cancelled.", id=job_id)
        return answer_from(view.status.result, self._services.store, links)


def _ended_job(
    services: Services, job_id: str, deadline: float, has_hung_up: Callable[[], bool]
) -> JobView | None:
    """The job once it has ended; None if it does not in time, if the client hangs up, or if there is none."""
    while time.monotonic() < deadline and not has_hung_up():
        view = services.jobs.get(job_id)
        if view is None or view.status.has_ended:
            return view
        time.sleep(_POLL_INTERVAL_S)
    return None
