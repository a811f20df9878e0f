"""/api/keys: the named keys and what they used. They are added and revoked by commands only, not over the network."""

from __future__ import annotations

from flask import Blueprint, Response, g, jsonify

from api.services import Services


def keys_blueprint(services: Services) -> Blueprint:
    """The routes of /api/keys."""
    routes = Blueprint("keys", __name__, url_prefix="/api/keys")
    routes.add_url_rule("", "list", lambda: _list(services))
    routes.add_url_rule("/me", "me", lambda: _me(services))
    return routes


def _list(services: Services) -> Response:
    problem = services.gate.problem
    return jsonify(
        {
            "object": "list",
            "keys": services.gate.reports(),
            "error": problem.message if problem else None,
        }
    )


def _me(services: Services) -> Response:
    return jsonify(services.gate.report_of(g.caller))
