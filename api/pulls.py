"""/api/models: pulling the files of models."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.audit import recording
from api.json_body import json_request
from api.services import Services
from errors import InvalidValue
from model_files import plan_pull

_MAX_MODELS = 100


def pulls_blueprint(services: Services) -> Blueprint:
    """The routes of /api/models."""
    routes = Blueprint("pulls", __name__, url_prefix="/api/models")
    routes.add_url_rule("/pull", "pull", lambda: _pull(services), methods=["POST"])
    routes.add_url_rule("/pulls", "pulls", lambda: _list(services))
    routes.add_url_rule(
        "/pulls/<pull_id>", "one_pull", lambda pull_id: jsonify(services.pulls.report(pull_id))
    )
    routes.add_url_rule(
        "/pulls/<pull_id>", "cancel", lambda pull_id: _cancel(services, pull_id), methods=["DELETE"]
    )
    return routes


def _pull(services: Services) -> tuple[Response, int]:
    names = _names(json_request(request))
    with recording(services, "models.pull", models=names) as set_result:
        report, status = _start(services, names)
        set_result(str(report["id"] or report["state"]))
    return jsonify(report), status


def _start(services: Services, names: list[str]) -> tuple[dict[str, Any], int]:
    """The report on the pull, and the status of the response."""
    catalogue = services.catalogue()
    models = [catalogue.find_with_files(name) for name in names]
    for model in models:
        catalogue.licences.check(model, "pull")
    folders = services.model_folders()
    plan = plan_pull(models, folders)
    plan.check_space()
    if not plan.files:
        nothing = {"id": None, "object": "model.pull", "models": list(plan.models), "state": "done"}
        sizes = {"received": 0, "size": 0, "bytes_per_s": 0}
        return {**nothing, **sizes, "by": "server", "files": [], "error": None, "created": None}, 200
    return services.pulls.start(plan, folders), 202


def _names(body: dict[str, Any]) -> list[str]:
    """Raises InvalidValue."""
    for name in body:
        if name != "models":
            raise InvalidValue(f"Unknown field {name!r}; the only field is `models`.", param=name)
    names = body.get("models")
    is_valid = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not is_valid or not names or len(names) > _MAX_MODELS:
        raise InvalidValue(
            f"`models` must be a list of 1 to {_MAX_MODELS} ids of models, LoRAs or stages.", param="models"
        )
    return list(names)


def _list(services: Services) -> Response:
    return jsonify({"object": "list", "pulls": services.pulls.reports()})


def _cancel(services: Services, pull_id: str) -> tuple[Response, int]:
    with recording(services, "models.cancel_pull", id=pull_id):
        report = services.pulls.cancel(pull_id)
    return jsonify(report), 202
