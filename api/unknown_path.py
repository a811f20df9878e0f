"""The error for a path that does not exist. If only the client's base URL is wrong, it says which one is right."""

from __future__ import annotations

from flask import Request
from werkzeug.routing import Map, MapAdapter

from errors import RouteNotFound, shorten

_API_ROOT = "/v1"
_A1111_ROOT = "/sdapi/"


def unknown_path(request: Request, routes: Map, own_url: str) -> RouteNotFound:
    """The error for `request`. `details.base_url` is there if the client needs another base URL."""
    path, base_url = shorten(request.path, 200), own_url + _API_ROOT
    message = f"The path {path} does not exist."
    right_path = _right_path(request.path, routes.bind(""))
    if request.path in ("/", _API_ROOT):
        hint = f"The base URL of this API is {base_url}; GET {base_url}/models lists the models."
    elif right_path is not None:
        hint = f"The base URL of this API is {base_url}; with it the path becomes {right_path}."
    elif request.path.startswith(_A1111_ROOT):
        hint = f"AUTOMATIC1111's API is not served: use an OpenAI client with the base URL {base_url}."
    else:
        return RouteNotFound(message, path=path)
    return RouteNotFound(f"{message} {hint}", path=path, base_url=base_url)


def _right_path(path: str, routes: MapAdapter) -> str | None:
    """The path under `/v1` that exists and ends as `path` does; None if there is none."""
    segments = [segment for segment in path.split("/") if segment]
    candidates = ("/".join([_API_ROOT, *segments[start:]]) for start in range(len(segments)))
    return next((candidate for candidate in candidates if routes.allowed_methods(candidate)), None)
