"""/api/comfyui: GPU status, switchover, pin and cancel."""

from __future__ import annotations

import contextlib
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from api.audit import recording
from api.json_body import json_request
from api.permissions import require
from api.services import Services
from api.status_document import is_own, status_for
from arbiter import Arbiter, Mode
from errors import InvalidCancel, InvalidForce, InvalidMode, InvalidPin, InvalidValue, JobNotFound

MODES: tuple[Mode, ...] = ("generation", "inference")


def gpu_blueprint(services: Services) -> Blueprint:
    """The routes of /api/comfyui."""
    routes = Blueprint("comfyui", __name__, url_prefix="/api/comfyui")
    routes.add_url_rule("/status", "status", lambda: jsonify(status_for(g.caller, services)))
    routes.add_url_rule("/switchover", "switchover", lambda: _switchover(services), methods=["POST"])
    routes.add_url_rule("/pin", "pin", lambda: _pin(services), methods=["POST"])
    routes.add_url_rule("/render/cancel", "cancel", lambda: _cancel(services), methods=["POST"])
    return routes


def _switchover(services: Services) -> tuple[Response, int]:
    body = _read_fields("mode", "force", "pin", "gpu")
    arbiter = _arbiter(services, body.get("gpu"))
    mode = body.get("mode")
    if mode not in MODES:
        raise InvalidMode(f"`mode` must be one of {', '.join(MODES)}.", param="mode", allowed=list(MODES))
    force, pin = body.get("force", False), body.get("pin")
    if not isinstance(force, bool):
        raise InvalidForce("`force` must be true or false.", param="force")
    if not isinstance(pin, bool | None):
        raise InvalidPin("`pin` must be true or false.", param="pin")
    if pin and mode == "inference":
        raise InvalidPin("Only generation mode can be pinned.", param="pin")
    target = {"mode": mode, "force": force, "pin": pin, **_named_gpu(body)}
    with recording(services, "gpu.switch", **target) as set_result:
        status = arbiter.switch(mode, force=force, pin=pin)
        set_result(status)
    return jsonify({"status": status, "mode": mode}), 202 if status == "switching" else 200


def _pin(services: Services) -> Response:
    body = _read_fields("pinned", "gpu")
    pinned, arbiter = body.get("pinned"), _arbiter(services, body.get("gpu"))
    if not isinstance(pinned, bool):
        raise InvalidPin("`pinned` must be true or false.", param="pinned")
    with recording(services, "gpu.pin", pinned=pinned, **_named_gpu(body)):
        arbiter.pin(pinned)
    return jsonify({"pinned": pinned})


def _named_gpu(body: dict[str, Any]) -> dict[str, Any]:
    """The field `gpu`, if it was sent."""
    return {"gpu": body["gpu"]} if body.get("gpu") is not None else {}


def _arbiter(services: Services, gpu: Any) -> Arbiter:
    """That of the GPU of this name; None: of the first one. Raises InvalidValue."""
    if gpu is None:
        return services.arbiter
    known = services.fleet.gpus
    if not isinstance(gpu, str) or gpu not in known:
        names = ", ".join(known) or "none, because the setting `engines` is not used"
        raise InvalidValue(f"`gpu` must be the name of a GPU; there are: {names}.", param="gpu")
    return known[gpu].arbiter


def _cancel(services: Services) -> tuple[Response, int]:
    body = _read_fields("id", "all")
    job_id, cancel_all = body.get("id"), body.get("all", False)
    if (
        not isinstance(cancel_all, bool)
        or not isinstance(job_id, str | None)
        or (job_id is None) != cancel_all
    ):
        raise InvalidCancel("Send either the `id` of a job or `all: true`.")
    if job_id is None:
        require(g.caller, "operate", to="cancel all requests")
    jobs = _cancel_jobs(services, job_id)
    return jsonify({"status": "cancel_requested", "jobs": list(jobs)}), 202


def _cancel_jobs(services: Services, name: str | None) -> list[str]:
    """Without the scope `operate` only requests of the caller's own key: clients choose their ids, so that another key's
    request may have the same."""
    if name is not None and _cancel_queued(services, name):
        return [name]
    if g.caller.may("operate"):
        with recording(services, "render.cancel", id=name, all=name is None):
            return list(services.fleet.cancel(name))
    found = [request for request in services.fleet.requests() if request.has_name(name or "")]
    own = [request for request in found if is_own(request.owner, request.key, g.caller.owner, g.caller.key)]
    if found and not own:
        require(g.caller, "operate", to="cancel the requests of other keys")
    jobs: list[str] = []
    for each in own:
        with contextlib.suppress(JobNotFound):  # it has just ended
            jobs += services.fleet.cancel(each.id)
    if not jobs:
        raise JobNotFound(f"No request or job {name!r} waits or runs.", id=name)
    return jobs


def _cancel_queued(services: Services, job_id: str) -> bool:
    """Cancel an image job of the queue that waits; false if there is none of this id."""
    view = services.jobs.get(job_id)
    if view is None or view.status.state != "queued":
        return False
    if view.status.owner != g.caller.owner:
        require(g.caller, "operate", to="cancel the requests of other keys")
        with recording(services, "render.cancel", id=job_id, all=False):
            services.jobs.cancel(job_id)
    else:
        services.jobs.cancel(job_id)
    return True


def _read_fields(*known: str) -> dict[str, Any]:
    """The fields of the body. Raises InvalidValue for unknown fields, so that a misspelt `force` is not ignored."""
    body = json_request(request)
    for name in body:
        if name not in known:
            raise InvalidValue(f"Unknown field {name!r}; known fields are {', '.join(known)}.", param=name)
    return body
