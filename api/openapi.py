"""GET /openapi.json: made from the very schemas that requests are checked and answers are tested against."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import Blueprint, Response, jsonify

from api.errors import status_of
from api.gpu import MODES
from api.images import EDIT_PATHS, GENERATION_PATHS, VARIATION_PATHS
from api.models import MODEL_PATHS
from api.request_images import MOST_IMAGES
from errors import every_error
from schemas import load_schema

VERSION = "0.1.0"


def openapi_blueprint() -> Blueprint:
    """The route of the description."""
    routes = Blueprint("openapi", __name__)
    routes.add_url_rule("/openapi.json", "description", _description)
    return routes


def _description() -> Response:
    return jsonify(description())


@cache
def description() -> dict[str, Any]:
    """The whole API as an OpenAPI 3.1 document."""
    generation = _drawing("Draw pictures", {"application/json": "ImageRequest"})
    edit = _drawing(
        "Redraw an image by a prompt, or what a mask leaves open",
        {"multipart/form-data": "EditForm", "application/json": "EditRequest"},
    )
    variation = _drawing(
        "Redraw an image without a prompt",
        {"multipart/form-data": "EditForm", "application/json": "EditRequest"},
    )
    model_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Easel",
            "version": VERSION,
            "description": "An OpenAI-compatible image API in front of ComfyUI.",
        },
        "security": [{}, {"key": []}],
        "paths": {
            **{path: {"post": generation} for path in GENERATION_PATHS},
            **{path: {"post": edit} for path in EDIT_PATHS},
            **{path: {"post": variation} for path in VARIATION_PATHS},
            **{
                path: {"get": _operation("List the models", "ModelList", failures=[401])}
                for path in MODEL_PATHS
            },
            **{
                f"{path}/{{id}}": {
                    "parameters": [model_id],
                    "get": _operation("One model, by id or alias", "Model", failures=[401, 404]),
                }
                for path in MODEL_PATHS
            },
            "/api/images/cache/{name}": {"parameters": [name], "get": _image()},
            **_gpu_paths(),
            "/health": {"get": _operation("Does the process live?", "Health")},
            "/ready": {"get": _operation("Could a picture be drawn now?", "Ready", also=503)},
            "/openapi.json": {"get": _operation("This document", "Anything")},
        },
        "components": {
            "schemas": _components(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _drawing(summary: str, bodies: dict[str, str]) -> dict[str, Any]:
    """An operation that answers with pictures, at once or as events."""
    every_status = sorted({status_of(kind) for kind in every_error()} - {499})
    operation = _operation(summary, "ImagesResponse", failures=every_status)
    events = {
        "schema": {"type": "string", "description": "With `stream`: server-sent events, see docs/api.md"}
    }
    operation["responses"]["200"]["content"]["text/event-stream"] = events
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in bodies.items()}
    operation["requestBody"] = {"required": True, "content": content}
    return operation


def _gpu_paths() -> dict[str, Any]:
    switchover = _operation("Pass the GPU on", "Switching", body="Switchover", failures=[401, 409, 422, 503])
    switchover["responses"]["202"] = _json("Under way; poll the status", "Switching")
    cancel = _operation("Cancel one render, or all", "Cancelled", body="Cancel", failures=[401, 404, 422])
    cancel["responses"]["202"] = cancel["responses"].pop("200")
    status = _operation("Who has the GPU, and how everything is", "ComfyuiStatus", failures=[401])
    pin = _operation("Hold image mode, or let it go", "Pin", body="Pin", failures=[401, 409, 422, 503])
    return {
        "/api/comfyui/status": {"get": status},
        "/api/comfyui/switchover": {"post": switchover},
        "/api/comfyui/pin": {"post": pin},
        "/api/comfyui/render/cancel": {"post": cancel},
    }


def _gpu_schemas() -> dict[str, Any]:
    mode, flag = {"enum": list(MODES)}, {"type": "boolean"}
    jobs = {"type": "array", "items": {"type": "string"}}
    return {
        "Switchover": _object({"mode": mode, "force": flag, "pin": flag}, required=["mode"]),
        "Switching": _object({"status": {"enum": ["switching", "noop"]}, "mode": mode}),
        "Pin": _object({"pinned": flag}),
        "Cancel": _object({"id": {"type": "string"}, "all": flag}, required=[]),
        "Cancelled": _object({"status": {"const": "cancel_requested"}, "jobs": jobs}),
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    named = list(properties) if required is None else required
    return {"type": "object", "additionalProperties": False, "required": named, "properties": properties}


def _operation(
    summary: str,
    answer: str,
    *,
    body: str | None = None,
    failures: list[int] | None = None,
    also: int | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": _json("As asked", answer)}}
    if also is not None:
        operation["responses"][str(also)] = _json("Not now", answer)
    for status in failures or []:
        operation["responses"][str(status)] = _json("See the table of codes", "Error")
    if body is not None:
        operation["requestBody"] = {"required": True, **_json("", body)}
        del operation["requestBody"]["description"]
    return operation


def _json(words: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": words, "content": {"application/json": {"schema": reference}}}


def _image() -> dict[str, Any]:
    kinds = ("image/png", "image/jpeg", "image/webp")
    bytes_of = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    return {
        "summary": "A kept image",
        "security": [{}],
        "responses": {
            "200": {"description": "The image", "content": dict.fromkeys(kinds, bytes_of)},
            "304": {"description": "Still the same"},
            "404": _json("No such image", "Error"),
        },
    }


def _components() -> dict[str, Any]:
    model_list = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    }
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    schemas = {
        "ImageRequest": _schema("image_request") | {"required": ["prompt"]},
        "EditForm": _with(
            {
                "image": {"type": "array", "items": file, "minItems": 1, "maxItems": MOST_IMAGES},
                "mask": file | {"description": "Where it is transparent, or white, is drawn anew"},
            }
        ),
        "EditRequest": _with(
            {
                "images": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_IMAGES,
                    "items": {"$ref": "#/components/schemas/ImageReference"},
                },
                "mask": {"$ref": "#/components/schemas/ImageReference"},
            }
        ),
        "ImageReference": _object({"image_url": {"type": "string", "description": "A data: URL"}}),
        "ImagesResponse": _schema("image_response"),
        "Model": _schema("models"),
        "Error": _schema("error"),
        "ModelList": model_list,
        "ComfyuiStatus": _schema("comfyui_status"),
        **_gpu_schemas(),
        "Health": {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
        "Ready": {"type": "object", "required": ["status", "engine", "catalogue"]},
        "Anything": {"type": "object"},
    }
    for name, schema in schemas.items():
        _point_inside(schema, f"#/components/schemas/{name}")
    return schemas


def _with(more: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request for pictures, and `more`, of which the first is required."""
    schema = _schema("image_request")
    return {
        "type": "object",
        "required": list(more)[:1],
        "properties": {**more, **schema["properties"]},
    }


def _schema(name: str) -> dict[str, Any]:
    schema = load_schema(name)
    del schema["$schema"]
    return schema


def _point_inside(value: Any, home: str) -> None:
    """A schema's references to its own parts, as seen from the whole document; in place."""
    if isinstance(value, dict):
        reference = value.get("$ref", "")
        if reference.startswith("#/$defs/"):
            value["$ref"] = home + reference.removeprefix("#")
        for inner in value.values():
            _point_inside(inner, home)
    elif isinstance(value, list):
        for inner in value:
            _point_inside(inner, home)
