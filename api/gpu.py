"""/api/comfyui: who has the GPU, and the owner's words about it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from api.json_body import json_request
from api.services import Services
from arbiter import Mode
from errors import InvalidCancel, InvalidForce, InvalidMode, InvalidPin, InvalidValue

MODES: tuple[Mode, ...] = ("generation", "inference")


def gpu_blueprint(services: Services) -> Blueprint:
    """The routes over `services`."""
    routes = Blueprint("comfyui", __name__, url_prefix="/api/comfyui")
    routes.add_url_rule("/status", "status", lambda: jsonify(services.system_status.status()))
    routes.add_url_rule("/switchover", "switchover", lambda: _switchover(services), methods=["POST"])
    routes.add_url_rule("/pin", "pin", lambda: _pin(services), methods=["POST"])
    routes.add_url_rule("/render/cancel", "cancel", lambda: _cancel(services), methods=["POST"])
    return routes


def _switchover(services: Services) -> tuple[Response, int]:
    body = _body("mode", "force", "pin")
    mode = body.get("mode")
    if mode not in MODES:
        raise InvalidMode(f"`mode` must be one of {', '.join(MODES)}.", param="mode", allowed=list(MODES))
    force, pin = body.get("force", False), body.get("pin")
    if not isinstance(force, bool):
        raise InvalidForce("`force` must be true or false.", param="force")
    if not isinstance(pin, bool | None):
        raise InvalidPin("`pin` must be true or false.", param="pin")
    if pin and mode == "inference":
        raise InvalidPin("Only generation can be pinned.", param="pin")
    status = services.arbiter.switch(mode, force=force, pin=pin)
    return jsonify({"status": status, "mode": mode}), 202 if status == "switching" else 200


def _pin(services: Services) -> Response:
    pinned = _body("pinned").get("pinned")
    if not isinstance(pinned, bool):
        raise InvalidPin("`pinned` must be true or false.", param="pinned")
    services.arbiter.pin(pinned)
    return jsonify({"pinned": pinned})


def _cancel(services: Services) -> tuple[Response, int]:
    body = _body("id", "all")
    job, everything = body.get("id"), body.get("all", False)
    if not isinstance(everything, bool) or not isinstance(job, str | None) or (job is None) != everything:
        raise InvalidCancel("Name one job by `id`, or all of them by `all: true`.")
    jobs = services.arbiter.cancel(job)
    return jsonify({"status": "cancel_requested", "jobs": list(jobs)}), 202


def _body(*known: str) -> dict[str, Any]:
    """The fields of the body; one that is not known is refused, for a misspelt `force` must not pass for none."""
    body = json_request(request)
    for name in body:
        if name not in known:
            raise InvalidValue(f"There is no field {name!r}; there is {', '.join(known)}.", param=name)
    return body
