"""The error for a path that does not exist. If only the client's base URL is wrong, it says which one is right."""

from __future__ import annotations

from flask import Request
from werkzeug.routing import Map, MapAdapter

from errors import RouteNotFound, shorten

_API_ROOT = "/v1"
_A1111_ROOT = "/sdapi/"
_OTHER_SPELLINGS = {
    "image": "images",
    "generation": "generations",
    "edit": "edits",
    "variation": "variations",
}


def unknown_path(request: Request, routes: Map, own_url: str) -> RouteNotFound:
    """The error for `request`. `details.base_url` is there if the client needs another base URL."""
    path, base_url = shorten(request.path, 200), own_url + _API_ROOT
    message = f"The path {path} does not exist."
    right_path = _right_path(request.path, request.method, routes.bind(""))
    if request.path in ("/", _API_ROOT):
        hint = f"The base URL of this API is {base_url}; GET {base_url}/models lists the models."
    elif right_path is not None:
        hint = f"The base URL of this API is {base_url}; with it the path becomes {right_path}."
    elif _A1111_ROOT in request.path:
        hint = f"AUTOMATIC1111's API is not served: use an OpenAI client with the base URL {base_url}."
    else:
        return RouteNotFound(message, path=path)
    return RouteNotFound(f"{message} {hint}", path=path, base_url=base_url)


def _right_path(path: str, method: str, routes: MapAdapter) -> str | None:
    """The path under `/v1` that exists and ends as `path` does, if possible one with this method; None if there is none."""
    segments = [segment.strip() for segment in path.split("/") if segment]
    # The ids of models may have capitals, so the path as it was sent comes first.
    candidates = [
        "/".join([_API_ROOT, *spelling[start:]])
        for spelling in (segments, [_OTHER_SPELLINGS.get(one, one) for one in map(str.lower, segments)])
        for start in range(len(spelling))
    ]
    allowed = {
        candidate: methods for candidate in candidates if (methods := routes.allowed_methods(candidate))
    }
    return next((one for one, methods in allowed.items() if method in methods), next(iter(allowed), None))
