"""The HTTP API: OpenAI's, and the dialects close to it. One file per resource; `errors.py` maps errors to HTTP."""

from __future__ import annotations

from flask import Flask

from api.body_limit import HeadCheck, body_limit
from api.errors import envelope, register_errors, retry_headers, status_of
from api.event_streams import EventStreams
from api.events import events_blueprint
from api.gallery import gallery_blueprint
from api.gallery_feed import GalleryFeed
from api.gpu import gpu_blueprint
from api.graphs import graphs_blueprint
from api.health import health_blueprint
from api.host_rules import TrustedProxies, in_networks
from api.image_jobs import image_jobs_blueprint
from api.images import images_blueprint
from api.job_drawing import draw_job
from api.keys import keys_blueprint
from api.llm import llm_blueprint
from api.metrics import metrics_blueprint
from api.middleware import InProgress, PathNormalizer, register_middleware
from api.models import models_blueprint
from api.openapi import openapi_blueprint
from api.pulls import pulls_blueprint
from api.services import HttpOptions, Services

MAX_BYTES_WITHOUT_IMAGES = 1_000_000
"""Limit of the body of a route that takes no image"""

__all__ = [
    "GalleryFeed",
    "HttpOptions",
    "Services",
    "body_limit",
    "draw_job",
    "envelope",
    "in_networks",
    "register_api",
    "retry_headers",
    "status_of",
]


def register_api(app: Flask, services: Services) -> None:
    """Register the routes, the middleware and the error handlers in `app`."""
    # The routes that take images raise it.
    app.config["MAX_CONTENT_LENGTH"] = min(MAX_BYTES_WITHOUT_IMAGES, services.options.max_request_bytes)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # PathNormalizer merges them, without a redirect
    register_middleware(app, services.options, services.gate, services.observer, services.begin_trace)
    register_errors(app, services.options)
    event_streams = EventStreams(services.options.max_event_streams, services.gate.has_several_keys)
    for blueprint in (
        images_blueprint(services),
        gallery_blueprint(services),
        image_jobs_blueprint(services, event_streams),
        events_blueprint(services, event_streams),
        models_blueprint(services),
        llm_blueprint(services),
        gpu_blueprint(services),
        graphs_blueprint(services),
        pulls_blueprint(services),
        keys_blueprint(services),
        health_blueprint(services),
        metrics_blueprint(services),
        openapi_blueprint(),
    ):
        app.register_blueprint(blueprint)
    app.wsgi_app = InProgress(app.wsgi_app, services.observer)  # type: ignore[method-assign]
    normalizer = PathNormalizer(HeadCheck(app))
    app.wsgi_app = TrustedProxies(normalizer, services.options.trusted_proxies)  # type: ignore[method-assign]
