"""Generations, edits and variations under OpenAI's and GPUStack's paths, and GET /api/images/cache/<name>."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from flask import Blueprint, Response, g, request

from api.connection import disconnect_check
from api.dialect import Endpoint, StreamFormat, expects_gpustack_events
from api.form_body import FORM, is_form, read_form
from api.image_requests import EDIT_PATHS, PATHS, ImageFields, links_of, require_images
from api.json_body import json_request
from api.json_responses import json_response
from api.keyed_images import OutlivingRequest
from api.paths import STORED_IMAGES
from api.received_requests import ReceivedRequest
from api.responses import images_response
from api.sender import sender_of
from api.services import HttpOptions, Services
from api.stream_events import StreamEvents, error_events
from api.streams import HEADERS, MIME, ImageStream
from errors import InvalidImage, NotJson
from generation import Drawing, OutputOptions
from image_store import StoredImage

_GPUSTACK_PREFIX = "/v1-openai/"


def images_blueprint(services: Services) -> Blueprint:
    """The image routes."""
    routes = Blueprint("images", __name__)
    # Before the routes, because the server asks for the limit when it has only the head of a request.
    routes.before_request(lambda: _accept_images(services.options))
    for task, paths in PATHS.items():
        for path in paths:
            endpoint = Endpoint(task, path.startswith(_GPUSTACK_PREFIX))
            routes.add_url_rule(
                path, path, lambda endpoint=endpoint: _draw(services, endpoint), methods=["POST"]
            )
    routes.add_url_rule(f"{STORED_IMAGES}<name>", "stored", lambda name: _stored_image(services, name))
    return routes


def _accept_images(options: HttpOptions) -> None:
    request.max_content_length = options.max_request_bytes


def _draw(services: Services, endpoint: Endpoint) -> Response:
    require_images(services.options)
    arrived_at = time.monotonic()
    outliving = OutlivingRequest(services, request)
    if not outliving.is_wanted:
        g.use.take_place()
    links = links_of(services.options)
    with contextlib.ExitStack() as admission:
        # Before the body is read: clients that send slowly count too, so that some threads stay free for other routes.
        admission.enter_context(services.generator.admission.of(g.caller.key))
        body, files, is_text = _read_body(endpoint)
        if outliving.is_wanted:
            received = ReceivedRequest(endpoint, body, files, is_text, outliving.header)
            del body, files
            return outliving.answer(received, arrived_at)
        fields = ImageFields.read(body, services, endpoint, files=files, is_form=is_text)
        try:
            parsed, drawing = fields.prepare()
        except InvalidImage as error:
            return _invalid_image_response(error, fields.values, fields.endpoint)
        del body, fields, files  # up to a hundred megabytes, not needed while the request waits for the GPU
        if parsed.stream is not None:
            events = StreamEvents(drawing, parsed, parsed.stream, links, arrived_at)
            # The stream releases the admission when it ends.
            return _stream_response(drawing, parsed.output, events, admission.pop_all())
        cancelled = disconnect_check(request.environ)
        images = tuple(drawing.images(parsed.output, cancelled=cancelled, sender=sender_of(request)))
    return json_response(images_response(parsed, drawing, images, links, time.monotonic() - arrived_at))


def _read_body(endpoint: Endpoint) -> tuple[dict[str, Any], tuple[tuple[str, bytes], ...], bool]:
    """The fields, the files, and whether the body is a form, in which everything is text."""
    if endpoint.task == "generate" and request.mimetype == FORM:
        raise NotJson(
            f"This route accepts JSON, not {FORM}; send images to {EDIT_PATHS[endpoint.is_gpustack]}."
        )
    if endpoint.task == "generate" or not is_form(request):
        return json_request(request), (), False
    form = read_form(request)
    return form.fields, form.files, True


# --- streams ---------------------------------------------------------------------------------------


def _stream_response(
    drawing: Drawing, output: OutputOptions, events: StreamEvents, admission: contextlib.ExitStack
) -> Response:
    stream = ImageStream(
        drawing,
        output,
        events,
        sender=sender_of(request),
        cancelled=disconnect_check(request.environ),
        release=admission.close,
    )
    return Response(stream, mimetype=MIME, headers=HEADERS)


def _invalid_image_response(error: InvalidImage, fields: dict[str, Any], endpoint: Endpoint) -> Response:
    """GPUStack reports an invalid image inside the stream; all other clients get a plain 400."""
    is_streamed = fields.get("stream") is True and endpoint.response_task != "vary"
    if not (is_streamed and expects_gpustack_events(fields, endpoint)):
        raise error
    stream = StreamFormat(openai=False, gpustack=True, partial_images=None, include_usage=False)
    return Response(error_events(error, stream), mimetype=MIME, headers=HEADERS)


# --- stored images ---------------------------------------------------------------------------------


def _stored_image(services: Services, name: str) -> Response:
    return image_response(services.store.open(name))


def image_response(image: StoredImage) -> Response:
    """An image for a request that may ask for a range of it, or whether it has changed."""
    response = Response(image.data, mimetype=image.mime)
    response.set_etag(image.etag)
    # Each name is generated for one image, so its content never changes. Only who knows the name may see the image, so
    # no shared cache keeps it.
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    # Multiple ranges are not supported; HTTP allows to send the complete image instead.
    one_range = "," not in request.headers.get("Range", "")
    response.make_conditional(request, accept_ranges=one_range, complete_length=image.length)
    return response
