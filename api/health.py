"""GET /health (the process runs) and GET /ready (the engine is reachable)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from api.services import Services
from compiler import Catalogue
from errors import EaselError


def health_blueprint(services: Services) -> Blueprint:
    """The two probes."""
    routes = Blueprint("health", __name__)
    routes.add_url_rule("/health", "health", lambda: jsonify({"status": "ok"}))
    routes.add_url_rule("/ready", "ready", lambda: _ready(services))
    return routes


def _ready(services: Services) -> Response:
    engine = _engine_state(services)
    # The catalogue before its error: reading the catalogue is what detects an invalid edit.
    catalogue = services.catalogue()
    error = services.catalogue_error()
    body = {
        "status": "ready" if engine["reachable"] else "engine_unreachable",
        "engine": engine,
        "catalogue": {
            "models": len(catalogue.visible_models),
            "not_drawable": _not_drawable(services, catalogue),
            # After an invalid edit the server keeps the last valid catalogue and reports the error here. The route
            # needs no key, so the message, which quotes the file, is shown only if no keys are configured.
            "error": (error.code if services.options.api_keys else error.message) if error else None,
        },
    }
    response = jsonify(body)
    response.status_code = 200 if engine["reachable"] else 503
    return response


def _not_drawable(services: Services, catalogue: Catalogue) -> list[str]:
    """What the check of the catalogue refuses, as `MODEL (TASK): FAULT`. With API keys only `MODEL (TASK)`, because the
    route needs no key and the faults quote the templates."""
    return [
        f"{model.id} ({task})" + ("" if services.options.api_keys else f": {fault}")
        for model in catalogue.visible_models
        for task, faults in catalogue.undrawable.get(model.id, {}).items()
        for fault in (faults[:1] if services.options.api_keys else faults)
    ]


def _engine_state(services: Services) -> dict[str, Any]:
    try:
        stats = services.engine().stats()
    except EaselError as error:
        return {"reachable": False, "kind": None, "version": None, "code": error.code}
    kind = "sketch" if stats.is_sketch else "comfyui"
    return {"reachable": True, "kind": kind, "version": stats.version, "code": None}
