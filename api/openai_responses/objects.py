"""Builds the response object of the Responses API, its items for pictures, and its events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from api.errors import envelope, status_of
from api.openai_responses.requests import CALL, shown_tool
from api.request_fields import ParsedRequest
from api.responses import background_of, debug_info, quality_of
from api.stream_events import RUNNING, EncodedEvents, PreviewSchedule, encode_event, waiting_comment
from api.streamed_json import Base64
from arbiter import Waiting
from engine import Preview, Progress
from errors import EaselError, InvalidImage, QueueFull
from generation import Drawing, Image

_EVENT = f"response.{CALL}."
_ECHOED: Mapping[str, type | tuple[type, ...]] = {
    "instructions": str,
    "max_output_tokens": int,
    "metadata": dict,
    "temperature": (int, float),
    "top_p": (int, float),
    "user": str,
}
"""Fields of the request that its response repeats, with their types"""
_ERROR_CODES: tuple[tuple[type[EaselError], str], ...] = (
    (InvalidImage, "invalid_image"),
    (QueueFull, "rate_limit_exceeded"),
)
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def new_id(prefix: str) -> str:
    """An id of OpenAI's form."""
    return f"{prefix}_{secrets.token_hex(24)}"


class ResponseObject:
    """The response to `body`, at any time between its creation and its end."""

    def __init__(self, body: Mapping[str, Any], model: str) -> None:
        echoed = {name: body.get(name) for name in _ECHOED if isinstance(body.get(name), _ECHOED[name])}
        tools = body.get("tools")
        self._fields = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            **dict.fromkeys(_ECHOED),
            "metadata": {},
            **echoed,
            "model": model,
            "output": [],
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [shown_tool(tool) for tool in tools] if isinstance(tools, list) else [],
            "truncation": "disabled",
            "usage": None,
        }

    def begun(self) -> dict[str, Any]:
        """Without output."""
        return dict(self._fields)

    def completed(self, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """With its items."""
        return {
            **self._fields,
            "status": "completed",
            "completed_at": int(time.time()),
            "output": list(output),
            "usage": _NO_TOKENS,
        }


def failed_response(response: Mapping[str, Any], error: EaselError) -> dict[str, Any]:
    """`response` with the status `failed`. OpenAI's clients know few codes, so its `error` has one of these; the event
    `error` has the stable one."""
    code = next((code for kind, code in _ERROR_CODES if isinstance(error, kind)), "server_error")
    failure = {"code": code, "message": error.message}
    return {**response, "status": "failed", "error": failure, "output": response.get("output") or []}


def picture_item(id: str, image: Image, parsed: ParsedRequest, drawing: Drawing) -> dict[str, Any]:
    """The output item for a picture."""
    return {
        "id": id,
        "type": CALL,
        "status": "completed",
        "action": "generate" if drawing.plan.task == "generate" else "edit",
        "background": background_of([image]),
        "output_format": parsed.output.format,
        "quality": quality_of(drawing.plan) or "auto",
        "revised_prompt": parsed.request.prompt,
        "size": str(image.size),
        "result": Base64(image.data),
        "_hal0": debug_info(parsed, drawing, [image]),
    }


def begun_item(id: str) -> dict[str, Any]:
    """The output item for a picture that is not there yet."""
    return {"id": id, "type": CALL, "status": "in_progress", "result": None}


def failed_item(id: str) -> dict[str, Any]:
    """The output item for a picture that is not drawn."""
    return {**begun_item(id), "status": "failed"}


# --- events ----------------------------------------------------------------------------------------


class Joined:
    """Several events, encoded one after another while they are sent."""

    def __init__(self, events: Iterable[EncodedEvents]) -> None:
        self._events = list(events)

    def __iter__(self) -> Iterator[bytes]:
        for event in self._events:
            yield from event


class EventWriter:
    """Numbers the events of one response."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, type: str, **fields: Any) -> EncodedEvents:
        number, self._next = self._next, self._next + 1
        return encode_event({"type": type, "sequence_number": number, **fields}, named=True)

    def item_begun(self, id: str, output_index: int) -> EncodedEvents:
        """The events at the beginning of a picture."""
        place = {"item_id": id, "output_index": output_index}
        return Joined(
            [
                self("response.output_item.added", output_index=output_index, item=begun_item(id)),
                self(f"{_EVENT}in_progress", **place),
            ]
        )

    def failure(self, error: EaselError, response: Mapping[str, Any]) -> EncodedEvents:
        """The last events of a response that failed."""
        body = envelope(error)["error"]
        fields = {name: body[name] for name in ("code", "message", "param")}
        return Joined(
            [
                self("error", **fields, details={**body["details"], "status": status_of(type(error))}),
                self("response.failed", response=failed_response(response, error)),
            ]
        )


class PictureEvents:
    """The events of the pictures of one drawing, see `api.streams.Events`.

    `places`: the id and output index of each picture's item. `opening`: sent first. `finish`: gets the finished items and
    returns the last events. `fail`: returns those of a failure.
    """

    def __init__(
        self,
        drawing: Drawing,
        parsed: ParsedRequest,
        write: EventWriter,
        places: Sequence[tuple[str, int]],
        *,
        opening: EncodedEvents,
        finish: Callable[[list[dict[str, Any]]], EncodedEvents],
        fail: Callable[[EaselError], EncodedEvents],
    ) -> None:
        self._drawing, self._parsed, self._write, self._places = drawing, parsed, write, places
        self._opening, self._finish, self._fail = opening, finish, fail
        requested = (parsed.stream.partial_images or 0) if parsed.stream else 0
        self._previews = PreviewSchedule(drawing, requested)
        self.wants_previews = requested > 0
        self._items: list[dict[str, Any]] = []
        self._is_generating = False

    def opening(self) -> EncodedEvents:
        return self._opening

    def keep_alive(self) -> EncodedEvents:
        return [b": still drawing\n\n"]

    def on_wait(self, waiting: Waiting) -> EncodedEvents:
        return waiting_comment(waiting)

    def on_run(self) -> EncodedEvents:
        return RUNNING

    def on_progress(self, event: Progress | Preview) -> EncodedEvents:
        events = self._generating()
        if isinstance(event, Preview) and (index := self._previews.index_of(event)) is not None:
            partial = self._write(
                f"{_EVENT}partial_image",
                **self._place(),
                partial_image_b64=Base64(event.data),
                partial_image_index=index,
                size=str(self._drawing.plan.size),
                quality=quality_of(self._drawing.plan) or "auto",
                background="opaque",
                # Previews are sent in the format that the engine made.
                output_format=event.mime.removeprefix("image/"),
            )
            events = Joined([events, partial])
        return events

    def on_image(self, image: Image) -> EncodedEvents:
        events = [self._generating()]
        id, index = self._places[len(self._items)]
        item = picture_item(id, image, self._parsed, self._drawing)
        events.append(self._write(f"{_EVENT}completed", **self._place()))
        events.append(self._write("response.output_item.done", output_index=index, item=item))
        self._items.append(item)
        self._is_generating = False
        if len(self._items) < len(self._places):
            events.append(self._write.item_begun(*self._places[len(self._items)]))
        return Joined(events)

    def ending(self) -> EncodedEvents:
        return self._finish(self._items)

    def on_error(self, error: EaselError) -> EncodedEvents:
        return self._fail(error)

    def _generating(self) -> EncodedEvents:
        """The event that tells that the present picture is being drawn, once."""
        if self._is_generating:
            return []
        self._is_generating = True
        return self._write(f"{_EVENT}generating", **self._place())

    def _place(self) -> dict[str, Any]:
        id, index = self._places[len(self._items)]
        return {"item_id": id, "output_index": index}
