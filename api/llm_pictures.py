"""Pictures inside LLM APIs: decides which LLM requests are about pictures. All others are forwarded as they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from flask import Response

from api.chat_pictures import draw_chat
from api.json_body import json_object
from api.openai_responses.answers import ModelAnswer, check_tool, draw_response
from api.openai_responses.requests import TOOL, image_tool, is_forced, refuse_background
from api.openai_responses.tool import upstream_values
from api.services import Services
from conversation import Forwarded, LlmRequest, RequestBody, read_request, with_values
from errors import InvalidRequest, ModelNotCurated

Open = Callable[[LlmRequest], Forwarded]
"""Sends a request to its upstream"""
Respond = Callable[[Forwarded, contextlib.ExitStack], Response]
"""The response to the client, which closes the stack at its end"""


def answer_with_pictures(
    services: Services, request: LlmRequest, held: contextlib.ExitStack, open: Open, respond: Respond
) -> Response | None:
    """The response to a request that is about pictures, None for all others. `held`: what the request holds as an LLM
    request; closed as soon as a picture is drawn, which counts as an image request instead."""
    if request.route.name not in ("chat", "responses") or not services.options.images_enabled:
        return None
    image_model = request.model if is_image_model(services, request.model) else ""
    if request.route.name == "chat":
        if not image_model:
            return None
        body = _take(request)
        held.close()
        return draw_chat(services, json_object(body, has_history=True))
    if not image_model and not request.body.contains(TOOL.encode()):
        return None
    return _responses(services, request, image_model, held, open, respond)


def is_image_model(services: Services, name: str) -> bool:
    """Whether a request for `name` is one for a picture: it is a name of the image API, and of no LLM."""
    llms = services.models_of_llms
    if not name or llms.knows(name):  # nearly all requests
        return False
    try:
        services.generator.catalogue().find(name)
    except ModelNotCurated:
        return False
    return not llms.has(name)


def _responses(
    services: Services,
    request: LlmRequest,
    image_model: str,
    held: contextlib.ExitStack,
    open: Open,
    respond: Respond,
) -> Response | None:
    content = request.body.bytes()
    try:
        body = json_object(content, has_history=True)
    except InvalidRequest:
        if image_model or _has_image_tool(content):
            raise
        return None  # the upstream reads it in its own way
    if image_model or is_forced(body):
        request.body.close()
        held.close()
        return draw_response(services, body, image_model)
    values = upstream_values(body)
    if not values:
        return None  # the word is elsewhere in it
    if image_tool(body) is not None:
        refuse_background(body)
        check_tool(services, body)
    request.body.close()
    new = read_request(
        request.route, RequestBody(with_values(content, values)), request.content_type, request.query
    )
    del content
    forwarded = open(new)
    held.callback(forwarded.body.close)
    if image_tool(body) is None or forwarded.status >= 400:
        return respond(forwarded, held.pop_all())
    return ModelAnswer(services, body, forwarded, held).response()


def _has_image_tool(content: bytes) -> bool:
    """Whether a body has the tool that is not strict JSON: it may have a key twice, or be nested deeply."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    tools = body.get("tools") if isinstance(body, dict) else None
    return isinstance(tools, list) and any(
        isinstance(tool, dict) and tool.get("type") == TOOL for tool in tools
    )


def _take(request: LlmRequest) -> bytes:
    content = request.body.bytes()
    request.body.close()
    return content
