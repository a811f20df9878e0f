"""JSON responses that may contain pictures."""

from __future__ import annotations

from typing import Any

from flask import Response

from api.streamed_json import StreamedJson


def json_response(content: dict[str, Any]) -> Response:
    """`content` as JSON. Its values may be `Base64`, which are encoded while they are sent."""
    document = StreamedJson(content)
    response = Response(document, mimetype="application/json")
    response.content_length = len(document)
    return response
