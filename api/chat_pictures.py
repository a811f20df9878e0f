"""Answers POST /v1/chat/completions for an image model: the last user message is drawn, and the picture comes in the
message, in the forms that clients read: as Markdown in `content`, and as OpenRouter's `images`."""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flask import Response, g, request

from api.connection import disconnect_check
from api.dialect import Endpoint
from api.errors import envelope
from api.image_requests import ImageFields, links_of
from api.json_body import require_few_values
from api.openai_responses.answers import json_response
from api.request_fields import ParsedRequest
from api.responses import Links, debug_info
from api.sender import sender_of
from api.services import Services
from api.stream_events import RUNNING, EncodedEvents, encode_event, waiting_comment
from api.streamed_json import Base64
from api.streams import HEADERS, MIME, ImageStream
from api.user_messages import last_user_message
from arbiter import Waiting
from compiler.values import Note
from engine import Preview, Progress
from errors import EaselError, FieldNotSupported, InvalidValue
from generation import Drawing, Image
from schemas.explain import given_value

_HANDLED = (
    *("messages", "model", "modalities", "response_format", "stream", "stream_options", "tool_choice"),
    *("metadata", "store"),
)
_WITHOUT_EFFECT = (
    *("audio", "chat_template_kwargs", "frequency_penalty", "function_call", "functions", "logit_bias"),
    *("logprobs", "max_completion_tokens", "max_tokens", "min_p", "parallel_tool_calls", "plugins"),
    *("prediction", "presence_penalty", "prompt_cache_key", "provider", "reasoning", "reasoning_effort"),
    *("repetition_penalty", "service_tier", "stop", "temperature", "tools", "top_a", "top_k", "top_logprobs"),
    *("top_p", "transforms", "usage", "verbosity", "web_search_options"),
)
"""Fields for language models, of OpenAI's and of other servers"""
_NO_TOKENS = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


@dataclass(frozen=True)
class ChatForm:
    """The form of the message. `in_content`: as Markdown; `as_images`: in `images`. `as_url`: the Markdown links to a stored
    image; `images` link too if the client has asked for URLs."""

    is_streamed: bool
    includes_usage: bool
    in_content: bool
    as_images: bool
    as_url: bool
    images_link: bool

    def message(self, image: Image, links: Links) -> dict[str, Any]:
        """`content` and `images` of a message or delta with one picture."""
        message: dict[str, Any] = {"content": self._markdown(image, links) if self.in_content else ""}
        if self.as_images:
            url: Any = Base64(image.data, f"data:{image.mime};base64,")
            if self.images_link:
                url = links.picture_field(image, True)["url"]
            message["images"] = [{"type": "image_url", "image_url": {"url": url}, "index": 0}]
        return message

    def _markdown(self, image: Image, links: Links) -> str:
        url = links.picture_field(image, True)["url"] if self.as_url else None
        if not isinstance(url, str):
            url = f"data:{image.mime};base64,{base64.b64encode(image.data).decode('ascii')}"
        return f"![image]({url})"


def read_chat(
    body: Mapping[str, Any], default_response_format: str
) -> tuple[dict[str, Any], ChatForm, list[Note]]:
    """The fields of the picture as the image API knows them, the form of the response, and notes on what is ignored. Pure.

    Raises InvalidValue, FieldNotSupported, PromptRequired.
    """
    messages = body.get("messages")
    message = last_user_message(messages, param="messages")
    form = _form(body, default_response_format)
    if body.get("prompt") is not None:
        raise FieldNotSupported(
            "`prompt` is not supported in a chat: the text of the last user message is drawn. Leave it out.",
            param="prompt",
        )
    if message.images and body.get("image"):
        raise InvalidValue(
            "The request has `image`, and the last user message has an image; send one of them.",
            param="image",
        )
    own = {
        name: value
        for name, value in body.items()
        if name not in (*_HANDLED, *_WITHOUT_EFFECT) and value is not None
    }
    notes = [
        Note(name, body[name], None, "no language model runs")
        for name in _WITHOUT_EFFECT
        if body.get(name) not in (None, [], {})
    ]
    if isinstance(messages, list) and len(messages) > 1:
        notes.append(
            Note("messages", f"{len(messages)} messages", None, "only the last user message is drawn")
        )
    notes += [
        Note(name, body[name], None, "completions are not stored")
        for name in ("metadata", "store")
        if body.get(name)
    ]
    notes += _stream_notes(body)
    if own.pop("partial_images", None):
        notes.append(
            Note("partial_images", body["partial_images"], None, "a chat completion has no previews")
        )
    # Which of them is in the response is the form's part.
    fields = {**own, "prompt": message.text, "response_format": "url" if form.as_url else "b64_json"}
    fields["model"] = body["model"]
    if message.images:
        fields["image"] = list(message.images)
    return fields, form, notes


def _stream_notes(body: Mapping[str, Any]) -> list[Note]:
    options = body.get("stream_options") or {}
    if options and not body.get("stream"):
        return [Note("stream_options", options, None, "the response is not streamed")]
    return [
        Note(f"stream_options.{name}", value, None, "no such option here")
        for name, value in options.items()
        if name != "include_usage" and value
    ]


def _includes_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise InvalidValue(
            f"`stream_options` is {given_value(options)}; it must be an object.", param="stream_options"
        )
    value = options.get("include_usage")
    if not isinstance(value, bool | None):
        raise InvalidValue(
            f"`include_usage` of `stream_options` is {given_value(value)}; it must be true or false.",
            param="stream_options",
        )
    return bool(value)


def _form(body: Mapping[str, Any], default_response_format: str) -> ChatForm:
    for name in ("tool_choice", "function_call"):
        if body.get(name) not in (None, "auto", "none"):
            raise FieldNotSupported(
                f"`{name}` requires a tool, and this model only draws pictures. Leave it out.", param=name
            )
    streamed = body.get("stream")
    if streamed is not None and not isinstance(streamed, bool):
        raise InvalidValue(f"`stream` is {given_value(streamed)}; it must be true or false.", param="stream")
    response_format = _response_format(body.get("response_format"))
    wants_images = _wants_images(body.get("modalities"))
    as_url = (response_format or default_response_format) != "b64_json"
    return ChatForm(
        is_streamed=bool(streamed),
        includes_usage=_includes_usage(body.get("stream_options")),
        in_content=not wants_images,
        # A chat program that streams and reads `images` reads Markdown too, and would show the picture twice.
        as_images=wants_images or (wants_images is None and not streamed),
        as_url=as_url and (wants_images is not True or response_format == "url"),
        images_link=response_format == "url",
    )


def _wants_images(modalities: Any) -> bool | None:
    """Whether the client asks for `images`; None if it does not say. Clients of OpenRouter send `modalities`."""
    if modalities is None:
        return None
    if not isinstance(modalities, list) or not set(map(str, modalities)) <= {"text", "image"}:
        raise InvalidValue(
            f"`modalities` is {given_value(modalities)}; this model has image, and text for Markdown.",
            param="modalities",
        )
    return "image" in modalities


def _response_format(value: Any) -> str:
    """The image API's `url` or `b64_json`; empty for the form that chat completions have without one."""
    kind = value.get("type") if isinstance(value, Mapping) else value
    if kind in (None, "", "text"):
        return ""
    if kind in ("url", "b64_json") and isinstance(value, str):
        return value
    raise FieldNotSupported(
        f"`response_format` is {given_value(kind)}; this model only draws pictures. Leave it out, or send url or b64_json.",
        param="response_format",
    )


def draw_chat(services: Services, body: Mapping[str, Any]) -> Response:
    """The chat completion with the pictures, one in each choice."""
    links = links_of(services.options)
    with contextlib.ExitStack() as admission:
        admission.enter_context(services.generator.admission.of(g.caller.key))
        fields, form, notes = read_chat(body, services.options.default_response_format)
        require_few_values(fields)
        if services.options.url_style == "data":
            form = replace(form, images_link=False)
        parsed, drawing = ImageFields.read(fields, services, Endpoint(), notes=tuple(notes)).prepare()
        del fields
        cancelled, sender = disconnect_check(request.environ), sender_of(request)
        completion = _Completion(drawing.plan.model)
        if form.is_streamed:
            stream = ImageStream(
                drawing,
                parsed.output,
                ChatEvents(drawing, parsed, form, links, completion),
                sender=sender,
                cancelled=cancelled,
                release=admission.pop_all().close,
            )
            return Response(stream, mimetype=MIME, headers=HEADERS)
        images = tuple(drawing.images(parsed.output, cancelled=cancelled, sender=sender))
    return json_response(completion.document(parsed, drawing, images, form, links))


class _Completion:
    """Builds a completion, whole or in chunks."""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,  # OpenRouter's SDK requires it
        }

    def document(
        self, parsed: ParsedRequest, drawing: Drawing, images: Sequence[Image], form: ChatForm, links: Links
    ) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", **form.message(image, links), "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for index, image in enumerate(images)
        ]
        debug = debug_info(parsed, drawing, images)
        return {**self._head, "choices": choices, "usage": _NO_TOKENS, "_hal0": debug}

    def chunk(
        self, index: int, delta: Mapping[str, Any], finish: str | None = None, **more: Any
    ) -> EncodedEvents:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event({"choices": [choice], **more})

    def usage(self) -> EncodedEvents:
        """The last chunk, for clients that have asked for it."""
        return self._event({"choices": [], "usage": _NO_TOKENS})

    def _event(self, fields: Mapping[str, Any]) -> EncodedEvents:
        return encode_event({**self._head, "object": "chat.completion.chunk", **fields}, named=False)


class ChatEvents:
    """The chunks of a completion, see `api.streams.Events`."""

    wants_previews = False

    def __init__(
        self, drawing: Drawing, parsed: ParsedRequest, form: ChatForm, links: Links, completion: _Completion
    ) -> None:
        self._drawing, self._parsed, self._form, self._links = drawing, parsed, form, links
        self._completion = completion
        self._sent = 0

    def opening(self) -> EncodedEvents:
        return self._completion.chunk(0, {"role": "assistant", "content": ""})

    def keep_alive(self) -> EncodedEvents:
        return [b": still drawing\n\n"]

    def on_wait(self, waiting: Waiting) -> EncodedEvents:
        return waiting_comment(waiting)

    def on_run(self) -> EncodedEvents:
        return RUNNING

    def on_progress(self, event: Progress | Preview) -> EncodedEvents:
        return []

    def on_image(self, image: Image) -> EncodedEvents:
        index, self._sent = self._sent, self._sent + 1
        role = {} if index == 0 else {"role": "assistant"}
        delta = {**role, **self._form.message(image, self._links)}
        debug = debug_info(self._parsed, self._drawing, [image])
        return [
            *self._completion.chunk(index, delta),
            *self._completion.chunk(index, {}, "stop", _hal0=debug),
        ]

    def ending(self) -> EncodedEvents:
        usage = self._completion.usage() if self._form.includes_usage else ()
        return [*usage, b"data: [DONE]\n\n"]

    def on_error(self, error: EaselError) -> EncodedEvents:
        return encode_event(envelope(error), named=False)
