"""The routes of the page: the document at `/`, and its files below a path that changes with them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from flask import Blueprint, Response, abort, request

from page.document import document
from page.files import read_files

FILES_PATH = "/page/<version>/<path:name>"

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "worker-src 'self'",
        "manifest-src 'self'",
        "font-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Mapping[str, str] = {
    # Workers have the policy of their own file, so each file has it.
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_IMMUTABLE = "public, max-age=31536000, immutable"


def page_blueprint(version: str) -> Blueprint:
    """The page of Easel `version`. Its files are read when a browser first asks for one."""
    blueprint = Blueprint("page", "page")
    files = cache(read_files)

    @blueprint.get("/")
    def show_page() -> Response:
        if not _wants_html():
            abort(404)  # the API's error, which names the right base URL
        language = request.accept_languages.best_match(files().languages) or "en"
        encodings = request.accept_encodings
        body, headers = document(files(), version, request.script_root, language).sent(encodings)
        response = _conditional(Response(body, mimetype="text/html"), headers)
        response.vary.update(("Accept", "Accept-Language"))
        response.headers["Cache-Control"] = "no-cache"
        return response

    @blueprint.get(FILES_PATH)
    def show_file(version: str, name: str) -> Response:
        file = files().get(name) if version == files().version else None
        if file is None:
            abort(404)
        body, headers = file.sent(request.accept_encodings)
        response = _conditional(Response(body, mimetype=file.mime), headers)
        response.headers["Cache-Control"] = _IMMUTABLE
        return response

    return blueprint


def _wants_html() -> bool:
    """Whether a browser asks: programs that accept anything get JSON."""
    accepted = request.accept_mimetypes
    return accepted["text/html"] > accepted["application/json"]


def _conditional(response: Response, headers: Mapping[str, str]) -> Response:
    """`response` with the headers of the page, or 304 if the browser has it."""
    response.headers.update(headers)
    response.headers.update(_HEADERS)
    response.vary.add("Accept-Encoding")
    response.make_conditional(request)
    return response
