"""GET /openapi.json: `schemas/openapi.yaml`, filled with the schemas that requests and responses are checked against."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import Blueprint, jsonify

from api.errors import CLIENT_CLOSED_REQUEST, status_of
from errors import error_classes
from schemas import load_schema, load_yaml


def openapi_blueprint() -> Blueprint:
    """The route of the document."""
    routes = Blueprint("openapi", __name__)
    routes.add_url_rule("/openapi.json", "description", lambda: jsonify(description()))
    return routes


@cache
def description() -> dict[str, Any]:
    """The whole API as an OpenAPI 3.1 document."""
    document: dict[str, Any] = load_yaml("openapi")
    for path in document["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict):
                _add_errors(operation)
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        schemas[name] = _filled(schema)
        _relocate(schemas[name], f"#/components/schemas/{name}")
    return document


def _add_errors(operation: dict[str, Any]) -> None:
    statuses = operation.pop("x-errors", [])
    if statuses == "all":
        statuses = {status_of(kind) for kind in error_classes()} - {CLIENT_CLOSED_REQUEST}
    errors = {str(status): {"$ref": "#/components/responses/Error"} for status in sorted(statuses)}
    operation["responses"] = {**operation["responses"], **errors}


def _filled(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.pop("x-from", None)
    if name is None:
        return schema
    base = load_schema(name)
    del base["$schema"]
    properties = {**schema.get("properties", {}), **base.get("properties", {})}
    return {**base, **schema, "properties": properties}


def _relocate(value: Any, place: str) -> None:
    """Make a schema's references to its own `$defs` point to its place in the document."""
    if isinstance(value, dict):
        reference = value.get("$ref", "")
        if reference.startswith("#/$defs/"):
            value["$ref"] = place + reference.removeprefix("#")
        for inner in value.values():
            _relocate(inner, place)
    elif isinstance(value, list):
        for inner in value:
            _relocate(inner, place)
