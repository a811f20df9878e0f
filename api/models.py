"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.services import Services
from compiler import Catalogue, Model
from compiler.openai_names import SLOT_NAME
from errors import ModelNotCurated

MODEL_PATHS = ("/v1/models", "/v1-openai/models")
"""OpenAI's path and GPUStack's"""


def models_blueprint(services: Services) -> Blueprint:
    """The model routes."""
    routes = Blueprint("models", __name__)
    for path in MODEL_PATHS:
        routes.add_url_rule(path, path, lambda: _list_models(services))
        # Ids may contain slashes, such as stabilityai/sdxl-turbo.
        routes.add_url_rule(f"{path}/<path:name>", f"{path}/one", lambda name: _get_model(services, name))
    return routes


def _list_models(services: Services) -> Response:
    # Clients filter by kind with one of these two parameters.
    filters = (request.args.get("type", "image"), request.args.get("categories", "image"))
    entries = _entries(services) if all("image" in text.split(",") for text in filters) else []
    return jsonify({"object": "list", "data": entries})


def _entries(services: Services) -> list[dict[str, Any]]:
    catalogue, loaded_at = services.catalogue(), services.catalogue_loaded_at()
    entries = [model_entry(model, catalogue, loaded_at) for model in catalogue.visible_models]
    if any(entry["id"] == SLOT_NAME for entry in entries):
        return entries
    default = catalogue.models[catalogue.default_model]
    return [*entries, {**model_entry(default, catalogue, loaded_at), "id": SLOT_NAME, "slot_of": default.id}]


def _get_model(services: Services, name: str) -> Response:
    for entry in _entries(services):
        if entry["id"].casefold() == name.casefold():
            return jsonify(entry)
    if name.strip():
        catalogue = services.catalogue()
        return jsonify(model_entry(catalogue.find(name), catalogue, services.catalogue_loaded_at()))
    raise ModelNotCurated("The model name is empty.", param="model")


def model_entry(model: Model, catalogue: Catalogue, loaded_at: int) -> dict[str, Any]:
    """A model in OpenAI's format, with the additional data that a model picker shows. `loaded_at`: Unix time at which
    the catalogue was loaded."""
    size, licence = model.size, model.licence
    workflows = [catalogue.workflows[name] for name in model.workflows.values()]
    presets = [workflow.presets for workflow in workflows] + [model.presets]
    return {
        "id": model.id,
        "object": "model",
        "created": loaded_at,
        "owned_by": "easel",
        "type": "image",
        "name": model.title,
        "capabilities": ["image"],
        "tasks": sorted(catalogue.drawable_tasks(model)),
        "not_drawable": {
            task: list(faults) for task, faults in catalogue.undrawable.get(model.id, {}).items()
        },
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
            "default": str(size.default),
            "min": str(size.min),
            "max": str(size.max),
            "multiple_of": size.multiple_of,
            "max_pixels": size.max_pixels,
            "suggested": [str(suggested) for suggested in size.suggested],
        },
        "loras": list(catalogue.loras_for(model)),
        "qualities": list(dict.fromkeys(name for preset in presets for name in preset.get("quality", {}))),
        "limits": {"n": model.limit_n, "batch": model.limit_batch},
        "disk_gb": model.disk_gb,
        "min_vram_gb": model.min_vram_gb,
    }
