"""The routes that are forwarded to LLM servers: chat, completions, embeddings, reranking, audio, and Ollama's own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial

from flask import Blueprint, Response, g, jsonify, request

from access import Use
from api.connection import body_timeouts, disconnect_check
from api.errors import envelope
from api.form_body import FORM
from api.json_body import require_json
from api.key_limits import check_llm, may_use_llm
from api.llm_pictures import answer_with_pictures
from api.paths import TAGS_PATH, VERSION_PATH
from api.sender import sender_of
from api.services import HttpOptions, Services
from conversation import (
    ROUTES,
    Client,
    Forwarded,
    LlmRequest,
    RequestBody,
    Route,
    read_request,
)
from errors import WrongContentType

_VERSION = "0.12.0"
"""Of Ollama's API; its clients compare it"""
_TAG_FIELDS = ("modified_at", "size", "digest", "details")
_STREAMED = ("text/event-stream", "application/x-ndjson")
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def llm_blueprint(services: Services) -> Blueprint:
    """The routes of `conversation.ROUTES`, and what Ollama's clients read."""
    routes = Blueprint("llm", __name__)
    # Before the routes, because the server asks for the limit when it has only the head of a request.
    routes.before_request(lambda: _accept_large_bodies(services.options))
    for route in ROUTES:
        routes.add_url_rule(
            route.path, route.path, lambda route=route: _forward(services, route), methods=["POST"]
        )
    routes.add_url_rule(TAGS_PATH, TAGS_PATH, lambda: _tags(services))
    routes.add_url_rule(VERSION_PATH, VERSION_PATH, lambda: jsonify({"version": _VERSION}))
    return routes


def _accept_large_bodies(options: HttpOptions) -> None:
    request.max_content_length = options.max_request_bytes
    if found := next((route for route in ROUTES if route.path == request.path), None):
        g.error_dialect = found.dialect


def _forward(services: Services, route: Route) -> Response:
    with contextlib.ExitStack() as held:
        held.enter_context(services.forwarder.admission(g.caller.key))
        llm_request = _read(route)
        held.callback(llm_request.body.close)
        open_upstream = partial(_open, services)
        drawn = answer_with_pictures(services, llm_request, held, open_upstream, _response)
        if drawn is not None:
            return drawn
        forwarded = open_upstream(llm_request)
        held.callback(forwarded.body.close)
        return _response(forwarded, held.pop_all())


def _open(services: Services, llm_request: LlmRequest) -> Forwarded:
    use: Use = g.use
    try:
        if name := llm_request.model or llm_request.route.slot:
            check_llm(use, name, services.models_of_llms)
        return services.forwarder.forward(llm_request, _client(), envelope)
    finally:
        llm_request.body.close()  # a stream may last long


def _read(route: Route) -> LlmRequest:
    if route.is_form:
        if request.mimetype != FORM:
            raise WrongContentType(
                f"This route accepts {FORM}, not {request.mimetype or 'a body without Content-Type'}."
            )
    else:
        require_json(request)
    with body_timeouts(request):
        body = RequestBody.read(request.stream)
    try:
        return read_request(
            route, body, request.headers.get("Content-Type", ""), request.query_string.decode("latin-1")
        )
    except BaseException:
        body.close()
        raise


def _client() -> Client:
    connection = request.environ.get("gunicorn.socket")
    return Client(
        headers=list(request.headers.items()),
        socket=connection if isinstance(connection, socket.socket) else None,
        has_gone=disconnect_check(request.environ),
        sender=sender_of(request),
        ended=g.use.ended,
    )


class _Body:
    """The parts of a response; `close`, which the server calls in any case, frees what the request holds."""

    def __init__(self, forwarded: Forwarded, held: contextlib.ExitStack) -> None:
        self._forwarded, self._held = forwarded, held

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._forwarded.body)

    def close(self) -> None:
        self._held.close()


def _response(forwarded: Forwarded, held: contextlib.ExitStack) -> Response:
    # Passed through: every part is bytes, and werkzeug would look at each token.
    response = Response(_Body(forwarded, held), status=forwarded.status, direct_passthrough=True)
    response.headers.clear()
    for name, value in forwarded.headers:
        response.headers.add(name, value)
    if response.mimetype in _STREAMED:
        response.headers.update(_UNBUFFERED)
    if forwarded.length is not None:
        response.content_length = forwarded.length
    return response


def _tags(services: Services) -> Response:
    """The models of the upstreams that speak Ollama's API, as they list them."""
    directory = services.models_of_llms
    names = {upstream.name for upstream in directory.upstreams if "ollama_chat" in upstream.paths}
    models = [
        {"name": name, "model": name, **{key: model.entry[key] for key in _TAG_FIELDS if key in model.entry}}
        for name, model in directory.listed().items()
        if model.upstream in names and may_use_llm(g.caller, name, directory)
    ]
    return jsonify({"models": models})
