"""GET /metrics, for Prometheus."""

from __future__ import annotations

from flask import Blueprint, Response

from api.services import Services
from metrics import CONTENT_TYPE


def metrics_blueprint(services: Services) -> Blueprint:
    """The route of the metrics."""
    routes = Blueprint("metrics", __name__)
    routes.add_url_rule(
        "/metrics", "metrics", lambda: Response(services.exposition.text(), content_type=CONTENT_TYPE)
    )
    return routes
