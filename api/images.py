"""POST /v1/images/generations and its other spellings, and GET /api/images/cache/<name>."""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.connection import hang_up_of, read_body
from api.image_request import Asked, read_image_request
from api.json_body import require_json
from api.options import HttpOptions, Services
from compiler.values import Note
from errors import ImagesDisabled
from generation import Generation, Image

GENERATION_PATHS = (
    "/v1/images/generations",
    "/v1-openai/images/generations",
    "/v1-openai/image/generate",
)
"""OpenAI's path, and GPUStack's two."""

SKETCH_NOTICE = (
    "These are sketches by Easel's built-in engine: no model ran. Set EASEL_ENGINE_URL to a ComfyUI."
)
_LONGEST_ECHO = 200
_MOST_NOTES = 100


def images_blueprint(services: Services) -> Blueprint:
    """The image routes over `services`."""
    routes = Blueprint("images", __name__)
    for index, path in enumerate(GENERATION_PATHS):
        routes.add_url_rule(
            path, f"generate_{index}", lambda: _generate(services), methods=["POST"], strict_slashes=False
        )
    routes.add_url_rule("/api/images/cache/<name>", "kept", lambda name: _kept(services, name))
    return routes


def _generate(services: Services) -> Response:
    options = services.options
    if not options.images_enabled:
        raise ImagesDisabled("Image generation is switched off on this server.")
    require_json(request)
    # Also a body that is slow to come takes one of the places, so that some threads stay free for all else.
    with services.generator.waiting:
        return jsonify(_drawn(services, options))


def _drawn(services: Services, options: HttpOptions) -> dict[str, Any]:
    arrived = time.monotonic()
    asked = read_image_request(
        read_body(request),
        request_id=str(uuid.uuid4()),
        # Below 2^53, so that the answer's seed survives a client that holds numbers as doubles.
        draw_seed=lambda: secrets.randbelow(2**53),
        default_response_format=options.default_response_format,
        url_needs_file=options.url_style != "data",
    )
    made = services.generator.generate(
        asked.request,
        asked.finish,
        timeout_s=options.request_timeout_s,
        cancelled=hang_up_of(request.environ),
    )
    return _answer(asked, made, options, time.monotonic() - arrived)


# --- the answer ------------------------------------------------------------------------------------


def _answer(asked: Asked, made: Generation, options: HttpOptions, elapsed_s: float) -> dict[str, Any]:
    return {
        "created": int(time.time()),
        "data": [_datum(image, asked.as_url, options) for image in made.images],
        "background": "opaque",
        "output_format": asked.finish.format,
        "size": str(made.images[0].size),
        "usage": _usage(made, elapsed_s),
        "_hal0": _debug(asked, made),
    }


def _datum(image: Image, as_url: bool, options: HttpOptions) -> dict[str, str]:
    if not as_url:
        return {"b64_json": base64.b64encode(image.data).decode("ascii")}
    if image.kept is None:
        return {"url": f"data:{image.mime};base64,{base64.b64encode(image.data).decode('ascii')}"}
    path = f"/api/images/cache/{image.kept.name}"
    if options.url_style == "relative":
        return {"url": path}
    base = options.public_url or request.host_url.rstrip("/") + request.script_root
    return {"url": base.rstrip("/") + path}


def _usage(made: Generation, elapsed_s: float) -> dict[str, Any]:
    pictures, run_s = len(made.images), max(made.timings.run_s, 1e-6)
    before_s = max(0.0, elapsed_s - made.timings.run_s - made.timings.fetch_s - made.timings.finish_s)
    none = {"text_tokens": 0, "image_tokens": 0}
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": none,
        "output_tokens_details": none,
        "generation_per_second": round(pictures / run_s, 3),
        "time_per_generation_ms": round(run_s / pictures * 1000, 3),
        "time_to_process_ms": round(before_s * 1000, 3),
    }


def _debug(asked: Asked, made: Generation) -> dict[str, Any]:
    plan, first = made.plan, made.images[0]
    values = {name: planned.value for name, planned in plan.values.items() if name not in ("prompt", "files")}
    debug: dict[str, Any] = {
        "model": plan.model,
        "workflow": plan.workflow,
        "checkpoint": made.checkpoint,
        "meta": {"template": plan.template, **values, "batch_size": first.batch, "seed": first.seed},
        "prompt_id": first.prompt_id,
        "images": [
            {"seed": image.seed, "index": image.index, "batch": image.batch, "prompt_id": image.prompt_id}
            for image in made.images
        ],
        "timings": {name: round(value, 6) for name, value in vars(made.timings).items()},
        "adjusted": _notes((*asked.adjusted, *plan.adjusted)),
        "ignored": _notes((*asked.ignored, *plan.ignored)),
        "engine": "sketch" if made.is_sketch else "comfyui",
    }
    if made.is_sketch:
        debug["notice"] = SKETCH_NOTICE
    return debug


def _notes(notes: Iterable[Note]) -> list[dict[str, Any]]:
    every = list(notes)
    listed = []
    for note in every[:_MOST_NOTES]:
        entry = {"field": _echo(note.field), "asked": _echo(note.asked), "why": note.why}
        listed.append(entry if note.done is None else {**entry, "done": note.done})
    if len(every) > _MOST_NOTES:
        listed.append({"field": "…", "asked": len(every) - _MOST_NOTES, "why": "as many more are not shown"})
    return listed


def _echo(value: Any) -> Any:
    """What a client sent, small enough to send back and certain to be JSON."""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    if isinstance(value, Mapping):
        return "(an object)"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST_ECHO else text[: _LONGEST_ECHO - 1] + "…"


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
