"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.services import Services
from compiler import Catalogue, Model
from compiler.catalogue import SLOT_NAME
from errors import ModelNotCurated

MODEL_PATHS = ("/v1/models", "/v1-openai/models")
"""OpenAI's path, and GPUStack's."""


def models_blueprint(services: Services) -> Blueprint:
    """The model routes over `services`."""
    routes = Blueprint("models", __name__)
    for path in MODEL_PATHS:
        routes.add_url_rule(path, path, lambda: _all(services))
        # Ids may hold slashes, as stabilityai/sdxl-turbo does.
        routes.add_url_rule(f"{path}/<path:name>", f"{path}/one", lambda name: _one(services, name))
    return routes


def _all(services: Services) -> Response:
    # Clients that know several kinds of model ask for one of them in one of two ways.
    kinds = (request.args.get("type", "image"), request.args.get("categories", "image"))
    entries = _entries(services) if all("image" in kind.split(",") for kind in kinds) else []
    return jsonify({"object": "list", "data": entries})


def _entries(services: Services) -> list[dict[str, Any]]:
    catalogue, since = services.catalogue(), services.catalogue_since()
    entries = [model_entry(model, catalogue, since) for model in catalogue.visible_models]
    if any(entry["id"] == SLOT_NAME for entry in entries):
        return entries
    default = catalogue.models[catalogue.default_model]
    return [*entries, {**model_entry(default, catalogue, since), "id": SLOT_NAME, "slot_of": default.id}]


def _one(services: Services, name: str) -> Response:
    for entry in _entries(services):
        if entry["id"].casefold() == name.casefold():
            return jsonify(entry)
    if name.strip():
        catalogue = services.catalogue()
        return jsonify(model_entry(catalogue.find(name), catalogue, services.catalogue_since()))
    raise ModelNotCurated("There is no model without a name.", param="model")


def model_entry(model: Model, catalogue: Catalogue, since: int) -> dict[str, Any]:
    """A model in OpenAI's shape, with what a picker needs to show. `since`: Unix time of the catalogue."""
    rule, licence = model.size, model.licence
    workflows = [catalogue.workflows[name] for name in model.workflows.values()]
    presets = [workflow.presets for workflow in workflows] + [model.presets]
    return {
        "id": model.id,
        "object": "model",
        "created": since,
        "owned_by": "easel",
        "type": "image",
        "name": model.title,
        "capabilities": ["image"],
        "tasks": sorted(model.workflows),
        "family": model.family,
        "aliases": list(model.aliases),
        "licence": {
            "id": licence.id,
            "name": licence.name,
            "url": licence.url,
            "commercial": licence.commercial,
            "note": licence.note,
        },
        "size": {
            "default": str(rule.default),
            "min": str(rule.min),
            "max": str(rule.max),
            "multiple_of": rule.multiple_of,
            "max_pixels": rule.max_pixels,
            "suggested": [str(size) for size in rule.suggested],
        },
        "loras": list(catalogue.loras_for(model)),
        "qualities": list(dict.fromkeys(name for preset in presets for name in preset.get("quality", {}))),
        "limits": {"n": model.limit_n, "batch": model.limit_batch},
        "disk_gb": model.disk_gb,
        "min_vram_gb": model.min_vram_gb,
    }
