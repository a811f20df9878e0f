"""Drawing, editing and varying pictures in every spelling of their paths, and GET /api/images/cache/<name>."""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, g, request

from api.connection import hang_up_of
from api.dialect import Endpoint, StreamFormat, asks_gpustack
from api.form_body import is_form, read_form, typed
from api.json_body import json_request
from api.request_fields import SCHEMA, ParsedRequest, canonical, read_image_request
from api.request_images import RequestImages, refuse_urls, take_images
from api.responses import Links, images_response
from api.services import HttpOptions, Services
from api.stream_events import StreamEvents, failure
from api.streamed_json import StreamedJson
from api.streams import HEADERS, MIME, ImageStream
from compiler import Task
from compiler.values import Note
from errors import ImagesDisabled, InvalidImage
from generation import Drawing, OutputOptions

GENERATION_PATHS = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
)
EDIT_PATHS = ("/v1/images/edits", "/v1-openai/images/edits", "/v1-openai/image/edit")
VARIATION_PATHS = ("/v1/images/variations", "/v1-openai/images/variations")
"""OpenAI's path, and GPUStack's."""

_PATHS: Mapping[Task, tuple[str, ...]] = {
    "generate": GENERATION_PATHS,
    "edit": EDIT_PATHS,
    "vary": VARIATION_PATHS,
}
_GPUSTACK = "/v1-openai/"


def images_blueprint(services: Services) -> Blueprint:
    """The image routes over `services`."""
    routes = Blueprint("images", __name__)
    for task, paths in _PATHS.items():
        for path in paths:
            endpoint = Endpoint(task, path.startswith(_GPUSTACK))
            routes.add_url_rule(
                path, path, lambda endpoint=endpoint: _draw(services, endpoint), methods=["POST"]
            )
    routes.add_url_rule("/api/images/cache/<name>", "kept", lambda name: _kept(services, name))
    return routes


def _draw(services: Services, endpoint: Endpoint) -> Response:
    if not services.options.images_enabled:
        raise ImagesDisabled("Image generation is switched off on this server.")
    arrived = time.monotonic()
    with contextlib.ExitStack() as place:
        # Also a body that is slow to come takes one of the places, so that some threads stay free for all else.
        place.enter_context(services.generator.waiting)
        body, files = _body(endpoint)
        fields, notes = canonical(body)
        try:
            asked, drawing = _prepared(fields, files, notes, endpoint, services)
        except InvalidImage as error:
            return _refused_in_a_stream(error, fields, endpoint)
        del body, fields, files  # a hundred megabytes, perhaps, while the GPU is waited for
        if asked.stream is not None:
            frames = StreamEvents(drawing, asked, asked.stream, _links(services.options), arrived)
            # The place is given back by the stream, when it ends.
            return _streamed(drawing, asked.finish, frames, place.pop_all())
        images = tuple(drawing.images(asked.finish, cancelled=hang_up_of(request.environ)))
    answer = StreamedJson(
        images_response(asked, drawing, images, _links(services.options), time.monotonic() - arrived)
    )
    return _in_pieces(answer)


def _body(endpoint: Endpoint) -> tuple[dict[str, Any], tuple[tuple[str, bytes], ...]]:
    if endpoint.task == "generate" or not is_form(request):
        return json_request(request), ()
    form = read_form(request)
    return typed(form.fields, SCHEMA["properties"]), form.files


def _prepared(
    fields: dict[str, Any],
    files: tuple[tuple[str, bytes], ...],
    notes: list[Note],
    endpoint: Endpoint,
    services: Services,
) -> tuple[ParsedRequest, Drawing]:
    options = services.options
    sent: RequestImages | None = None
    if endpoint.task != "generate":
        sent = take_images(fields, files, services.fetch_image or refuse_urls)
        if sent.pictures.mask is not None:
            endpoint, sent = _masked(endpoint, sent)
    asked = read_image_request(
        fields,
        endpoint=endpoint,
        request_id=str(uuid.uuid4()),
        # Below 2^53, so that the answer's seed survives a client that holds numbers as doubles.
        draw_seed=lambda: secrets.randbelow(2**53),
        default_response_format=options.default_response_format,
        url_needs_file=options.url_style != "data",
        notes=(*notes, *(sent.notes if sent else ())),
    )
    drawing = services.generator.prepare(
        asked.request, timeout_s=options.request_timeout_s, pictures=sent.pictures if sent else None
    )
    return asked, drawing


def _masked(endpoint: Endpoint, sent: RequestImages) -> tuple[Endpoint, RequestImages]:
    if endpoint.task == "edit":
        return replace(endpoint, task="inpaint"), sent
    note = Note("mask", "(a file)", None, "a variation redraws the whole image")
    return endpoint, RequestImages(replace(sent.pictures, mask=None), (*sent.notes, note))


def _links(options: HttpOptions) -> Links:
    if options.url_style == "relative":
        return Links("")
    return Links((options.public_url or request.host_url.rstrip("/") + request.script_root).rstrip("/"))


def _in_pieces(answer: StreamedJson) -> Response:
    response = Response(answer, mimetype="application/json")
    response.content_length = len(answer)
    return response


# --- streams ---------------------------------------------------------------------------------------


def _streamed(
    drawing: Drawing, finish: OutputOptions, frames: StreamEvents, place: contextlib.ExitStack
) -> Response:
    stream = ImageStream(
        drawing,
        finish,
        frames,
        request_id=g.request_id,
        cancelled=hang_up_of(request.environ),
        release=place.close,
    )
    return Response(stream, mimetype=MIME, headers=HEADERS)


def _refused_in_a_stream(error: InvalidImage, fields: dict[str, Any], endpoint: Endpoint) -> Response:
    """GPUStack tells of an illegal image inside the stream; everybody else gets a plain 400."""
    if fields.get("stream") is not True or not asks_gpustack(fields, endpoint) or endpoint.task == "vary":
        raise error
    form = StreamFormat(openai=False, gpustack=True, partial_images=None, include_usage=False)
    return Response(failure(error, form), mimetype=MIME, headers=HEADERS)


# --- kept images -----------------------------------------------------------------------------------


def _kept(services: Services, name: str) -> Response:
    image = services.store.open(name)
    response = Response(image.data, mimetype=image.mime)
    response.set_etag(image.etag)
    # The name is drawn for these very bytes, so they never change under it.
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    # Several ranges in one answer are more than pictures need; the whole image is a right answer to them.
    one_range = "," not in request.headers.get("Range", "")
    response.make_conditional(request, accept_ranges=one_range, complete_length=image.length)
    return response
