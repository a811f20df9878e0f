"""GET /health (the process runs) and GET /ready (pictures can be drawn now)."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Response, jsonify

from api.services import Services
from compiler import Catalogue, OwnFileNote
from status import EngineState, ModelState, ModelStates

_TIMEOUT_S = 1.5
"""For all that /ready waits for: those who ask often give up after 2 s"""
_MAX_OWN_NOTES = 100
"""`easel check-catalogue` lists all"""


def health_blueprint(services: Services) -> Blueprint:
    """The two probes."""
    routes = Blueprint("health", __name__)
    routes.add_url_rule("/health", "health", lambda: jsonify({"status": "ok"}))
    routes.add_url_rule("/ready", "ready", lambda: _ready(services))
    return routes


def _ready(services: Services) -> Response:
    began_at = time.monotonic()
    # The catalogue before its error: where the files are not watched, reading it detects an invalid edit.
    catalogue = services.catalogue()
    error = services.catalogue_error()
    engine = services.readiness.engine(_TIMEOUT_S)
    models = None
    if engine.error is None:
        models = services.readiness.models(max(0.0, began_at + _TIMEOUT_S - time.monotonic()))
    can_draw = models is not None and services.readiness.can_draw(models)
    status, states = _status(engine, models, can_draw), models.states if models else ()
    keys_problem = services.gate.problem
    shows_messages = not services.gate.needs_key  # the route needs no key
    body = {
        "status": status,
        "engine": _engine(engine, shows_messages),
        "catalogue": {
            "models": len(catalogue.visible_models),
            "not_drawable": _not_drawable(catalogue, shows_messages),
            "own_faults": _own_notes(catalogue.own_faults, shows_messages),
            "own_overrides": _own_notes(catalogue.own_overrides, shows_messages),
            # After an invalid edit the server keeps the last valid catalogue and reports the error here; the message
            # quotes the file.
            "error": (error.message if shows_messages else error.code) if error else None,
        },
        # The text names only files of the state directory.
        "keys": {"error": keys_problem.message if keys_problem else None},
        "models_not_ready": [_problem(model, shows_messages) for model in states if not model.is_ready],
        "warnings": [
            _problem(model, shows_messages)
            for model in states
            if model.id == catalogue.default_model and not model.is_ready
        ],
    }
    response = jsonify(body)
    response.status_code = 200 if status == "ready" else 503
    return response


def _status(engine: EngineState, models: ModelStates | None, can_draw: bool) -> str:
    if not engine.reachable:
        return "engine_unreachable"
    if engine.error is not None:
        return "engine_not_usable"
    if can_draw:
        return "ready"
    return "no_model" if models is not None and models.is_complete else "checking_models"


def _engine(state: EngineState, shows_message: bool) -> dict[str, Any]:
    return {
        "reachable": state.reachable,
        "kind": ("sketch" if state.is_sketch else "comfyui") if state.reachable else None,
        "version": state.version,
        "code": state.error.code if state.error else None,
        "message": state.error.message if state.error and shows_message else None,
    }


def _problem(model: ModelState, shows_message: bool) -> dict[str, Any]:
    """Why a model cannot be drawn, or not for all of its tasks."""
    return {
        "model": model.id,
        "code": model.error.code if model.error else None,
        "missing": list(model.missing) if shows_message else [],
        "message": model.error.message if model.error and shows_message else None,
    }


def _own_notes(notes: tuple[OwnFileNote, ...], shows_messages: bool) -> list[str]:
    """What the check says about the owner's folder; with API keys only the names of the files."""
    texts = [str(note) if shows_messages else note.file for note in notes]
    texts = list(dict.fromkeys(texts))
    further = len(texts) - _MAX_OWN_NOTES
    return texts if further <= 0 else [*texts[:_MAX_OWN_NOTES], f"and {further} more"]


def _not_drawable(catalogue: Catalogue, shows_messages: bool) -> list[str]:
    """What the check of the catalogue refuses, as `MODEL (TASK): FAULT`. With API keys only `MODEL (TASK)`, because the
    route needs no key and the faults quote the templates."""
    return [
        f"{model.id} ({task})" + (f": {fault}" if shows_messages else "")
        for model in catalogue.visible_models
        for task, faults in catalogue.undrawable.get(model.id, {}).items()
        for fault in (faults if shows_messages else faults[:1])
    ]
