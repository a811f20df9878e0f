"""Generations, edits and variations under OpenAI's and GPUStack's paths, and GET /api/images/cache/<name>."""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, request

from api.connection import disconnect_check
from api.dialect import Endpoint, StreamFormat, expects_gpustack_events
from api.field_names import canonical_fields
from api.form_body import FORM, is_form, read_form
from api.host_rules import own_url
from api.json_body import json_request
from api.paths import STORED_IMAGES
from api.request_fields import ParsedRequest, has_prompt, read_image_request
from api.request_images import RequestImages, extract_images, refuse_image_url, remove_empty_images
from api.responses import Links, images_response
from api.sender import sender_of
from api.services import HttpOptions, Services
from api.stream_events import StreamEvents, error_events
from api.streamed_json import StreamedJson
from api.streams import HEADERS, MIME, ImageStream
from compiler import Catalogue, Model, Size, Task
from compiler.values import TASK_SOURCES, Note
from deadline import time_limit
from errors import (
    MAX_NAMED,
    ImageNotSupported,
    ImagesDisabled,
    InvalidImage,
    InvalidValue,
    ModelNotCurated,
    NotJson,
    list_names,
)
from generation import Drawing, OutputOptions

GENERATION_PATHS = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
)
EDIT_PATHS = ("/v1/images/edits", "/v1-openai/images/edits", "/v1-openai/image/edit")
VARIATION_PATHS = ("/v1/images/variations", "/v1-openai/images/variations")
"""OpenAI's path, then GPUStack's"""

_PATHS: Mapping[Task, tuple[str, ...]] = {
    "generate": GENERATION_PATHS,
    "edit": EDIT_PATHS,
    "vary": VARIATION_PATHS,
}
_GPUSTACK_PREFIX = "/v1-openai/"


def images_blueprint(services: Services) -> Blueprint:
    """The image routes."""
    routes = Blueprint("images", __name__)
    # Before the routes, because the server asks for the limit when it has only the head of a request.
    routes.before_request(lambda: _accept_images(services.options))
    for task, paths in _PATHS.items():
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
    if not services.options.images_enabled:
        raise ImagesDisabled("Image generation is disabled on this server (`images.enabled` is false).")
    arrived_at = time.monotonic()
    links = _links(services.options)
    with contextlib.ExitStack() as admission:
        # Before the body is read: clients that send slowly count too, so that some threads stay free for other routes.
        admission.enter_context(services.generator.admission)
        body, files, is_text = _read_body(endpoint)
        deadline = time.monotonic() + services.options.request_timeout_s
        catalogue = services.generator.catalogue()
        inputs = _workflow_inputs(body, catalogue)
        fields, notes = canonical_fields(body, inputs, is_form=is_text)
        if endpoint.task == "generate" and remove_empty_images(fields, inputs):
            endpoint = replace(endpoint, task="edit", path_task="generate")
        try:
            parsed, drawing = _prepare(fields, files, notes, inputs, endpoint, services, catalogue, deadline)
        except InvalidImage as error:
            return _invalid_image_response(error, fields, endpoint)
        del body, fields, files  # up to a hundred megabytes, not needed while the request waits for the GPU
        if parsed.stream is not None:
            events = StreamEvents(drawing, parsed, parsed.stream, links, arrived_at)
            # The stream releases the admission when it ends.
            return _stream_response(drawing, parsed.output, events, admission.pop_all())
        cancelled = disconnect_check(request.environ)
        images = tuple(drawing.images(parsed.output, cancelled=cancelled, sender=sender_of(request)))
    document = StreamedJson(images_response(parsed, drawing, images, links, time.monotonic() - arrived_at))
    response = Response(document, mimetype="application/json")
    response.content_length = len(document)
    return response


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


def _workflow_inputs(body: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """The inputs of the workflows of the model that the request names (name -> JSON Schema); of the default model if it
    names an unknown one, which is refused later."""
    extra = body.get("extra_body")
    name = body.get("model") or (extra.get("model") if isinstance(extra, Mapping) else None)
    try:
        model = catalogue.find(name if isinstance(name, str) else None)
    except ModelNotCurated:
        model = catalogue.find(None)
    workflows = [catalogue.workflows[workflow] for workflow in model.workflows.values()]
    return {name: rule.schema for workflow in workflows for name, rule in workflow.inputs.items()}


def _prepare(
    fields: dict[str, Any],
    files: tuple[tuple[str, bytes], ...],
    notes: list[Note],
    inputs: Mapping[str, Any],
    endpoint: Endpoint,
    services: Services,
    catalogue: Catalogue,
    deadline: float,
) -> tuple[ParsedRequest, Drawing]:
    """`deadline`: the end of the request's time, of `time.monotonic`. An image that is fetched from a URL takes part of
    it."""
    options = services.options
    images: RequestImages | None = None
    if endpoint.task != "generate":
        # Before the images are read: a model that cannot use them is the first thing to say.
        if endpoint.path_task == "generate":
            _check_edits(fields, catalogue)
        with time_limit(deadline - time.monotonic()):
            images = extract_images(
                fields, files, services.fetch_image or refuse_image_url, path_task=endpoint.response_task
            )
        if images.pictures.mask is not None:
            endpoint = replace(endpoint, task="inpaint")
    endpoint = _with_supported_task(endpoint, fields, catalogue)
    parsed = read_image_request(
        fields,
        endpoint=endpoint,
        request_id=str(uuid.uuid4()),
        # Below 2^53, so that clients that store numbers as doubles keep the exact seed.
        random_seed=lambda: secrets.randbelow(2**53),
        default_response_format=options.default_response_format,
        url_needs_file=options.url_style != "data",
        inputs=inputs,
        image_size=None
        if images is None
        else Size(images.pictures.image.width, images.pictures.image.height),
        notes=(*notes, *(images.notes if images else ())),
    )
    drawing = services.generator.prepare(
        parsed.request,
        timeout_s=deadline - time.monotonic(),
        pictures=images.pictures if images else None,
        catalogue=catalogue,
    )
    return parsed, drawing


def _check_edits(fields: Mapping[str, Any], catalogue: Catalogue) -> None:
    """Raises ImageNotSupported for a request to generations that has an image if its model draws from a prompt only."""
    model = _find_model(fields, catalogue)
    if model is None or set(model.workflows) - {"generate"}:
        return
    others = [other.id for other in catalogue.visible_models if "edit" in catalogue.drawable_tasks(other)]
    names = f" with a model that edits images: {list_names(others)}" if others else ""
    raise ImageNotSupported(
        f"The model {model.id!r} only draws from a prompt and cannot use the image. Leave it out, or send the request to "
        f"{EDIT_PATHS[0]}{names or '; no model here edits images yet'}.",
        param="image",
        model=model.id,
        models=others[:MAX_NAMED],
    )


def _with_supported_task(endpoint: Endpoint, fields: Mapping[str, Any], catalogue: Catalogue) -> Endpoint:
    """The endpoint with a task that the requested model supports: an edit without a prompt is a variation if the model
    makes these but no edits. Raises InvalidValue, which names the paths that the model supports."""
    model = _find_model(fields, catalogue)
    if model is None or endpoint.task in model.workflows:
        return endpoint
    if endpoint.task == "edit" and "vary" in model.workflows and not has_prompt(fields):
        return replace(endpoint, task="vary", path_task=endpoint.response_task)
    index = 1 if endpoint.is_gpustack else 0
    paths = {**_PATHS, "inpaint": EDIT_PATHS}
    supported = "; or ".join(
        f"{task}: send {TASK_SOURCES[task]} to {paths[task][index]}" for task in model.workflows
    )
    raise InvalidValue(
        f"The model {model.id!r} does not support the task {endpoint.task!r}, only {supported}.",
        param="model",
    )


def _find_model(fields: Mapping[str, Any], catalogue: Catalogue) -> Model | None:
    """The requested model; None if there is no such model, which is reported after the other fields."""
    name = fields.get("model", "")
    try:
        return catalogue.find(name) if isinstance(name, str) else None
    except ModelNotCurated:
        return None


def _links(options: HttpOptions) -> Links:
    if options.url_style == "relative":
        return Links("")
    return Links(own_url(request, options))


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
    image = services.store.open(name)
    response = Response(image.data, mimetype=image.mime)
    response.set_etag(image.etag)
    # Each name is generated for one image, so its content never changes. Only who knows the name may see the image, so
    # no shared cache keeps it.
    response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    # Multiple ranges are not supported; HTTP allows to send the complete image instead.
    one_range = "," not in request.headers.get("Range", "")
    response.make_conditional(request, accept_ranges=one_range, complete_length=image.length)
    return response
