"""Speaks OpenAI (and the dialects near it) over HTTP: a file for each resource, errors -> HTTP in one."""

from __future__ import annotations

from flask import Flask

from api.errors import answer, envelope, register_errors, status_of
from api.gpu import gpu_blueprint
from api.health import health_blueprint
from api.images import images_blueprint
from api.middleware import PathNormalizer, TrustedProxies, register_middleware
from api.models import models_blueprint
from api.openapi import openapi_blueprint
from api.services import HttpOptions, Services

__all__ = ["HttpOptions", "Services", "answer", "envelope", "register_api", "status_of"]


def register_api(app: Flask, services: Services) -> None:
    """Put every route of the API, the gate before them and the errors after them into `app`."""
    app.config["MAX_CONTENT_LENGTH"] = services.options.max_request_bytes
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # CleanPath does it, without a redirect
    register_middleware(app, services.options)
    register_errors(app)
    for blueprint in (
        images_blueprint(services),
        models_blueprint(services),
        gpu_blueprint(services),
        health_blueprint(services),
        openapi_blueprint(),
    ):
        app.register_blueprint(blueprint)
    inside = PathNormalizer(app.wsgi_app)
    app.wsgi_app = TrustedProxies(inside, services.options.trusted_proxies)  # type: ignore[method-assign]
