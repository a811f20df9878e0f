"""Answers POST /v1/responses where pictures are wanted: without a language model, or with the answer of one that calls the
image tool."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Response, g, request

from api.connection import disconnect_check
from api.dialect import Endpoint
from api.errors import status_of
from api.image_requests import ImageFields
from api.json_body import require_few_values
from api.openai_responses.objects import (
    EventWriter,
    Joined,
    PictureEvents,
    ResponseObject,
    new_id,
    picture_item,
)
from api.openai_responses.requests import (
    allows_tool,
    direct_fields,
    has_mask,
    image_tool,
    newest_image,
    picture_fields,
    source_images,
    tool_action,
)
from api.openai_responses.tool import MAX_ANSWER_BYTES, EventSplitter, PictureCall, UpstreamAnswer, data_of
from api.request_fields import ParsedRequest
from api.sender import sender_of
from api.services import Services
from api.stream_events import EncodedEvents
from api.streamed_json import StreamedJson
from api.streams import HEADERS, MIME, ImageStream
from api.user_messages import last_user_message
from conversation import Forwarded
from errors import EaselError, UpstreamFailed
from generation import Drawing

log = logging.getLogger("easel.api")

_EVENTS = "text/event-stream"


def json_response(document: Mapping[str, Any]) -> Response:
    """A response whose pictures are encoded while it is sent."""
    text = StreamedJson(document)
    response = Response(text, mimetype="application/json")
    response.content_length = len(text)
    return response


def draw_response(services: Services, body: Mapping[str, Any], image_model: str) -> Response:
    """The response to a request that is drawn without a language model. `image_model`: see `direct_fields`."""
    with contextlib.ExitStack() as admission:
        admission.enter_context(services.generator.admission.of(g.caller.key))
        fields, notes = direct_fields(body, image_model)
        require_few_values(fields)
        parsed, drawing = ImageFields.read(fields, services, Endpoint(), notes=notes).prepare()
        del fields
        response = ResponseObject(body, str(body.get("model") or drawing.plan.model))
        cancelled, sender = disconnect_check(request.environ), sender_of(request)
        if parsed.stream is not None:
            stream = ImageStream(
                drawing,
                parsed.output,
                _direct_events(response, drawing, parsed),
                sender=sender,
                cancelled=cancelled,
                release=admission.pop_all().close,
            )
            return Response(stream, mimetype=MIME, headers=HEADERS)
        images = tuple(drawing.images(parsed.output, cancelled=cancelled, sender=sender))
    items = [picture_item(new_id("ig"), image, parsed, drawing) for image in images]
    return json_response(response.completed(items))


def _direct_events(response: ResponseObject, drawing: Drawing, parsed: ParsedRequest) -> PictureEvents:
    write = EventWriter()
    places = [(new_id("ig"), index) for index in range(_pictures_of(drawing))]
    # Made now, so that they have the first numbers.
    opening = Joined(
        [
            write("response.created", response=response.begun()),
            write("response.in_progress", response=response.begun()),
            write.item_begun(*places[0]),
        ]
    )
    return PictureEvents(
        drawing,
        parsed,
        write,
        places,
        opening=opening,
        finish=lambda items: write("response.completed", response=response.completed(items)),
        fail=lambda error: write.failure(error, response.begun()),
    )


def check_tool(services: Services, body: Mapping[str, Any]) -> None:
    """Raises what is wrong with the image tool, before a language model is asked. `body`: of a request that has the tool."""
    if not allows_tool(body):
        return
    tool = image_tool(body) or {}
    fields, notes = picture_fields(tool, "a picture", _images_of(body, tool) if _always_edits(tool) else ())
    ImageFields.read(fields, services, Endpoint(), notes=notes).check()


def _always_edits(tool: Mapping[str, Any]) -> bool:
    return tool_action(tool) == "edit" or has_mask(tool)


def _images_of(body: Mapping[str, Any], tool: Mapping[str, Any]) -> tuple[Any, ...]:
    """The images for an edit. Raises ImageRequired."""
    if "image" in tool:
        return ()  # among the tool's fields
    message = last_user_message(body.get("input"), param="input", skips_others=True)
    return source_images(body, tool, message, edit=True)


def _pictures_of(drawing: Drawing) -> int:
    return sum(job.batch for job in drawing.plan.jobs)


class ModelAnswer:
    """The answer of a language model that may call the image tool. The pictures are drawn when the model has answered and
    its lease on the GPU has ended.

    `body`: of the client's request. `forwarded`: the upstream's response. `held`: what the request holds until the upstream
    has answered, with `forwarded`.
    """

    def __init__(
        self, services: Services, body: Mapping[str, Any], forwarded: Forwarded, held: contextlib.ExitStack
    ) -> None:
        self._services, self._body, self._forwarded = services, body, forwarded
        self._held = held.pop_all()
        self._answer = UpstreamAnswer(body)
        self._cancelled, self._sender = disconnect_check(request.environ), sender_of(request)
        self._request_id, self._use = g.request_id, g.use
        self._write = EventWriter()
        self._begun = ResponseObject(body, str(body.get("model") or "")).begun()
        """The response as an event showed it last"""
        self._drawn: dict[int, dict[str, Any]] = {}
        """Output index -> the item of a picture"""
        self._has_failed = False

    def response(self) -> Response:
        """The response for the client. Raises UpstreamFailed, and what drawing raises, before the first byte."""
        headers = {name.title(): value for name, value in self._forwarded.headers}
        kind = headers.pop("Content-Type", "")
        if self._forwarded.body.is_encoded:
            self.close()
            raise UpstreamFailed("The upstream compresses its answer, although that was not asked for.")
        if kind.partition(";")[0].strip().lower() == _EVENTS:
            return Response(self, mimetype=MIME, headers={**headers, **HEADERS})
        with self._held:
            document = self._read_document()
        self._answer.read_output(document)
        for call in self._answer.complete:
            self._draw(call, document)
        response = json_response(self._answer.with_pictures(document, self._drawn))
        response.headers.update(headers)
        return response

    def close(self) -> None:
        """Called by the server in any case; ends what still runs."""
        self._held.close()

    # --- a complete response -----------------------------------------------------------------------

    def _read_document(self) -> dict[str, Any]:
        content = bytearray()
        try:
            for data in self._forwarded.body:
                content += data
                if len(content) > MAX_ANSWER_BYTES:
                    raise UpstreamFailed(f"The upstream's answer is longer than {MAX_ANSWER_BYTES} bytes.")
            document = json.loads(content)
        except ConnectionResetError as error:
            raise UpstreamFailed(f"The upstream's answer was cut off: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UpstreamFailed("The upstream's answer is not valid JSON.") from error
        if not isinstance(document, dict):
            raise UpstreamFailed("The upstream's answer is no JSON object.")
        return document

    def _draw(self, call: PictureCall, document: Mapping[str, Any]) -> None:
        with self._services.generator.admission.of(self._sender.key):
            parsed, drawing = self._prepare(call)
            images = drawing.images(parsed.output, cancelled=self._cancelled, sender=self._sender)
            for (id, index), image in zip(self._places(call, drawing, document), images, strict=True):
                self._drawn[index] = picture_item(id, image, parsed, drawing)

    def _prepare(self, call: PictureCall, **more: Any) -> tuple[ParsedRequest, Drawing]:
        prompt, edit = call.prompt()
        tool = image_tool(self._body) or {}
        images: tuple[Any, ...] = ()
        # A model may say `edit` although it was not offered, because there is nothing to edit.
        if (edit and newest_image(self._body) is not None) or _always_edits(tool):
            images = _images_of(self._body, tool)
        fields, notes = picture_fields(tool, prompt, images)
        values = {**fields, **more}
        read = ImageFields.read(values, self._services, Endpoint(), notes=notes, use=self._use)
        return read.prepare(self._cancelled)

    def _places(
        self, call: PictureCall, drawing: Drawing, document: Mapping[str, Any]
    ) -> list[tuple[str, int]]:
        """The ids and output indexes of a call's pictures: its own, and behind all others if it draws several."""
        output = document.get("output")
        behind = max(
            (len(output) if isinstance(output, list) else 0) - 1, *self._answer.calls, *self._drawn, -1
        )
        extra = [(new_id("ig"), behind + number) for number in range(1, _pictures_of(drawing))]
        return [(call.id, call.index), *extra]

    # --- a stream ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pass_answer()
            self._held.close()
            last = self._answer.last
            if last is None:
                return
            document = last["response"] if isinstance(last.get("response"), dict) else {}
            if last.get("type") != "response.failed":
                self._answer.read_output(document)
                yield from self._announce_late_calls()
                for call in self._answer.complete:
                    yield from self._stream_pictures(call, document)
                    if self._has_failed:
                        return
            yield from self._numbered(
                {**last, "response": self._answer.with_pictures(document, self._drawn)} if document else last
            )
        except Exception as error:
            yield from self._write.failure(self._to_easel_error(error), self._begun)
        finally:
            self._held.close()

    def _pass_answer(self) -> Iterator[bytes]:
        """The upstream's events, with those of pictures in the place of calls."""
        splitter = EventSplitter()
        for data in self._forwarded.body:
            for event in splitter.feed(data):
                yield from self._pass_event(event)
        if splitter.end().strip():
            yield from self._pass_event(splitter.end().rstrip(b"\n") + b"\n\n")
        if self._answer.last is None and not self._has_failed and not self._cancelled():
            raise UpstreamFailed("The upstream's stream ended before its response was complete.")

    def _pass_event(self, event: bytes) -> Iterator[bytes]:
        data = data_of(event)
        if data is None:
            if event.startswith(b"data: [DONE]"):
                return  # of chat completions
            yield event
            return
        if isinstance(data.get("error"), dict) and "type" not in data:
            self._has_failed = True
            yield from self._upstream_error(data["error"])
            return
        if isinstance(data.get("response"), dict) and data.get("type") != "response.failed":
            self._begun = self._answer.restore({**data["response"], "output": []})
        self._has_failed |= data.get("type") == "error"
        for new in self._answer.on_event(data):
            yield from self._numbered(new)

    def _upstream_error(self, error: Mapping[str, Any]) -> EncodedEvents:
        """The events for an error that the upstream sent, or that cut it off."""
        failure = UpstreamFailed(str(error.get("message") or "The upstream reports an error."))
        return self._write.failure(failure, self._begun)

    def _numbered(self, event: dict[str, Any]) -> EncodedEvents:
        rest = {name: value for name, value in event.items() if name not in ("type", "sequence_number")}
        return self._write(str(event.get("type")), **rest)

    def _announce_late_calls(self) -> Iterator[bytes]:
        """Calls that only the complete response has."""
        for call in self._answer.complete:
            if not call.is_announced:
                yield from self._write.item_begun(call.id, call.index)

    def _stream_pictures(self, call: PictureCall, document: Mapping[str, Any]) -> Iterator[bytes]:
        with contextlib.ExitStack() as held:
            held.enter_context(self._services.generator.admission.of(self._sender.key))
            parsed, drawing = self._prepare(call, stream=True)
            places = self._places(call, drawing, document)
            events = PictureEvents(
                drawing,
                parsed,
                self._write,
                places,
                opening=[],
                finish=lambda items: self._keep(places, items),
                fail=self._fail,
            )
            stream = ImageStream(
                drawing,
                parsed.output,
                events,
                sender=self._sender,
                cancelled=self._cancelled,
                release=held.pop_all().close,
            )
            # The server closes only this object.
            self._held.callback(stream.close)
        yield from stream
        self._held.close()

    def _keep(self, places: list[tuple[str, int]], items: list[dict[str, Any]]) -> EncodedEvents:
        self._drawn |= {index: item for (_, index), item in zip(places, items, strict=True)}
        return []

    def _fail(self, error: EaselError) -> EncodedEvents:
        self._has_failed = True
        return self._write.failure(error, self._begun)

    def _to_easel_error(self, error: Exception) -> EaselError:
        if not isinstance(error, EaselError):
            log.error("%s: the stream failed", self._request_id, exc_info=error)
            return EaselError("Internal server error.", request_id=self._request_id)
        if status_of(type(error)) >= 500:
            log.error("%s: the stream failed: %s: %s", self._request_id, error.code, error.message)
        return error
