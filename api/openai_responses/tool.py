"""Lets a language model draw: the tool `image_generation` of the Responses API becomes a function that any server knows, and
the model's calls of it become pictures. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from api.openai_responses.objects import ResponseObject, begun_item, failed_item, new_id
from api.openai_responses.requests import (
    CALL,
    TOOL,
    allows_tool,
    has_mask,
    image_tool,
    newest_image,
    shown_tool,
    tool_action,
)
from api.prompt_fields import extract_extra_args
from errors import UpstreamFailed

MAX_CALLS = 16
"""Calls of one response that are drawn, at most; `max_tool_calls` may say less"""
MAX_ANSWER_BYTES = 64_000_000
"""Of a response that is read before it is sent on, and of one event"""
_FUNCTION_CALL = "function_call"
_DRAWN = "The picture was drawn, and the user sees it."
_FAILED = "The picture could not be drawn."
_REQUIRED = ("object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice", "tools")
"""Fields of a response that llama-server leaves out, at least at first"""
_OF_A_PART: Mapping[str, Any] = {"content_index": 0}
_OF_A_TEXT: Mapping[str, Any] = {"logprobs": []}
"""Fields of events that it leaves out"""
_TERMINAL = ("response.completed", "response.incomplete", "response.failed")


def function_name(body: Mapping[str, Any]) -> str:
    """The name of the function: one that no other function of the request has."""
    tools = body.get("tools")
    entries = [tool for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    names = [tool.get("name") for tool in entries]
    name = TOOL
    while name in names:
        name = f"easel_{name}"
    return name


def upstream_values(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the upstream gets with other values: `tools` and `tool_choice` with a function in the place of the
    image tool, and `input` with calls of it in the place of earlier pictures. Raises InvalidValue."""
    name = function_name(body)
    values: dict[str, Any] = {}
    if (tool := image_tool(body)) is not None:
        is_open = tool_action(tool) == "auto" and not (has_mask(tool) or "image" in tool)
        function = _function(name, may_edit=is_open and newest_image(body) is not None)
        values["tools"] = [function if _is_tool(entry) else entry for entry in body["tools"]]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping) and isinstance(choice.get("tools"), list):
        named = {"type": "function", "name": name}
        allowed = [named if _is_tool(entry) else entry for entry in choice["tools"]]
        values["tool_choice"] = {**choice, "tools": allowed}
    items = body.get("input")
    if isinstance(items, list) and any(map(_is_call, items)):
        values["input"] = [new for item in items for new in _history(item, name)]
    return values


def _is_tool(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("type") == TOOL


def _is_call(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") == CALL


def _function(name: str, *, may_edit: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "prompt": {"type": "string", "description": "What the picture shows, in detail and in English."}
    }
    if may_edit:
        properties["edit"] = {
            "type": "boolean",
            "description": "True to change the latest picture of this conversation, false to draw a new one.",
        }
    return {
        "type": "function",
        "name": name,
        "description": "Draws a picture and shows it to the user. Call it if the user asks for a picture or for a change "
        "of one.",
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": ["prompt"],
            "additionalProperties": False,
        },
        "strict": False,
    }


def _history(item: Any, name: str) -> Iterator[Any]:
    """An earlier item, as the upstream gets it. Of a picture it learns only what was drawn: many language models take no
    images."""
    if not _is_call(item):
        yield item
        return
    call_id = f"call_{item.get('id') or new_id('ig')}"
    prompt = item.get("revised_prompt")
    arguments = json.dumps({"prompt": prompt if isinstance(prompt, str) else ""})
    yield {"type": _FUNCTION_CALL, "call_id": call_id, "name": name, "arguments": arguments}
    output = _FAILED if item.get("status") == "failed" else _DRAWN
    yield {"type": f"{_FUNCTION_CALL}_output", "call_id": call_id, "output": output}


# --- the answer ------------------------------------------------------------------------------------


@dataclass
class PictureCall:
    """A call of the function. `index`: of its output item. `is_announced`: whether an event for the client has shown it."""

    index: int
    id: str = field(default_factory=lambda: new_id("ig"))
    arguments: str = ""
    is_announced: bool = False

    def prompt(self) -> tuple[str, bool]:
        """The prompt, and whether the latest picture is to be changed. Fields of the image API that the prompt contains are
        removed: the model may follow a page that it has read, and the client has chosen how many pictures there are.

        Raises UpstreamFailed, and InvalidValue for such fields that cannot be read.
        """
        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            arguments = None
        prompt = arguments.get("prompt") if isinstance(arguments, Mapping) else None
        if isinstance(prompt, str):
            prompt, _ = extract_extra_args(prompt)
        if not isinstance(prompt, str) or not prompt.strip():
            raise UpstreamFailed(
                "The language model called the image tool without a prompt. Ask again, or force the tool with "
                "`tool_choice` to draw your own text."
            )
        return prompt, arguments.get("edit") is True


class UpstreamAnswer:
    """Finds the calls in the output of an upstream. `body`: of the client's request."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._name, self._body = function_name(body), body
        begun = ResponseObject(body, str(body.get("model") or "")).begun()
        self._required = {name: begun[name] for name in _REQUIRED}
        limit = body.get("max_tool_calls")
        self._max_calls = min(limit, MAX_CALLS) if type(limit) is int and limit > 0 else MAX_CALLS
        if not allows_tool(body):
            self._max_calls = 0
        self._indexes: dict[str, int] = {}
        """Id or call id of an item -> its output index; of several with the same id, the last one's"""
        self._begun: set[int] = set()
        self._done: set[int] = set()
        """Output indexes of the items that events have begun and completed"""
        self._next_index = 0
        self.calls: dict[int, PictureCall] = {}
        """By output index, complete or not"""
        self.complete: list[PictureCall] = []
        """Those whose arguments are complete, and which are to be drawn"""
        self.last: dict[str, Any] | None = None
        """The event that ends the response, held until the pictures are there"""

    def restore(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """`response` with the tools that the client sent, which it repeats, and with the fields that OpenAI's clients
        require."""
        shown: dict[str, Any] = {}
        if isinstance(self._body.get("tools"), list):
            shown["tools"] = [shown_tool(tool) for tool in self._body["tools"]]
        if self._body.get("tool_choice") is not None:
            shown["tool_choice"] = self._body["tool_choice"]
        return {**self._required, **response, **shown}

    def read_output(self, response: Mapping[str, Any]) -> None:
        """Find the calls in a complete response that no event has announced. Their order tells which are the announced ones:
        there are servers whose events have other output indexes or ids than the response."""
        output = response.get("output")
        items = [
            (index, item)
            for index, item in enumerate(output if isinstance(output, list) else ())
            if self._is_picture(item)
        ]
        known = [self.calls[index] for index in sorted(self.calls)]
        if items:
            self.calls = {}
        for (index, item), call in zip_longest(items, known[: len(items)]):
            self.calls[index] = call or PictureCall(index)
            self.calls[index].index = index
            if item.get("status", "completed") == "completed":
                self._complete(index, item)

    def _is_picture(self, item: Any) -> bool:
        return (
            isinstance(item, Mapping)
            and item.get("type") == _FUNCTION_CALL
            and item.get("name") == self._name
        )

    def _complete(self, index: int, item: Mapping[str, Any]) -> None:
        call = self.calls.setdefault(index, PictureCall(index))
        if call not in self.complete and len(self.complete) < self._max_calls:
            call.arguments = str(item.get("arguments") or "")
            self.complete.append(call)

    def with_pictures(
        self, response: Mapping[str, Any], items: Mapping[int, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """`response` with the items of the pictures. `items`: by output index; those behind the end are added. A call that
        was not drawn is an item without a picture."""
        output = response.get("output")
        present = dict(enumerate(output if isinstance(output, list) else ()))
        failed = {index: failed_item(call.id) for index, call in self.calls.items() if index in present}
        merged = {**present, **failed, **items}
        return {**self.restore(response), "output": [merged[index] for index in sorted(merged)]}

    def on_event(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The events for the client in the place of one of the upstream's, which may be none. Their `sequence_number` is
        not set, and what llama-server leaves out is."""
        kind = str(event.get("type"))
        if kind in _TERMINAL:
            self.last = event
            return []
        item = event.get("item")
        if kind == "response.output_item.added" and isinstance(item, Mapping):
            index = self._place(event, item)
            return self._announce(index) if self._is_picture(item) else [{**event, "output_index": index}]
        if kind == "response.output_item.done" and isinstance(item, Mapping):
            index = self._place(event, item)
            self._done.add(index)
            if not self._is_picture(item):
                return [{**event, "output_index": index}]
            announced = [] if index in self.calls else self._announce(index)
            if item.get("status", "completed") == "completed":
                self._complete(index, item)
            call = self.calls[index]
            if call in self.complete:
                return announced
            failed = failed_item(call.id)
            return [
                *announced,
                {"type": "response.output_item.done", "output_index": index, "item": failed},
            ]
        if isinstance(event.get("response"), Mapping):
            return [{**event, "response": self.restore(event["response"])}]
        known = event.get("output_index")
        if not isinstance(known, int) or known in self._done:
            known = self._indexes.get(str(event.get("item_id")), known)
        if known in self.calls and kind.startswith("response.function_call_arguments."):
            return []
        if known is None:
            return [event]
        return [
            {
                **(_OF_A_TEXT if kind.startswith("response.output_text.") else {}),
                **(_OF_A_PART if "content_part" in kind or "output_text" in kind else {}),
                **event,
                "output_index": known,
            }
        ]

    def _place(self, event: Mapping[str, Any], item: Mapping[str, Any]) -> int:
        """The output index of an item that begins or ends. llama-server does not send it, and other servers send
        one twice, or use ids again: an item that begins gets a place of its own."""
        names = [str(item[name]) for name in ("id", "call_id") if item.get(name)]
        begins = event["type"] == "response.output_item.added"
        known = [self._indexes[name] for name in names if name in self._indexes]
        index = event.get("output_index")
        taken = self._begun if begins else self._done
        if not isinstance(index, int) or index in taken:
            is_new = begins or not known or known[0] in self._done
            index = self._next_index if is_new else known[0]
        self._begun.add(index)
        self._next_index = max(self._next_index, index + 1)
        self._indexes |= dict.fromkeys(names, index)
        return index

    def _announce(self, index: int) -> list[dict[str, Any]]:
        call = self.calls[index] = PictureCall(index, is_announced=True)
        return [
            {"type": "response.output_item.added", "output_index": index, "item": begun_item(call.id)},
            {"type": f"response.{CALL}.in_progress", "output_index": index, "item_id": call.id},
        ]


# --- events as bytes -------------------------------------------------------------------------------


class EventSplitter:
    """Divides a stream into its events. Raises UpstreamFailed for one that is too long."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._is_after_return = False
        """The last byte was a carriage return, whose line break may follow; it is not in `_held` yet"""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete, each with its empty line."""
        if self._is_after_return:
            data = b"\r" + data
        self._is_after_return = data.endswith(b"\r")
        # Only what is new is looked at: an event with a picture in it comes in hundreds of parts.
        begin = max(0, len(self._held) - 1)
        self._held += data.removesuffix(b"\r").replace(b"\r\n", b"\n")
        events: list[bytes] = []
        position = 0
        while (end := self._held.find(b"\n\n", max(begin, position))) >= 0:
            events.append(bytes(self._held[position : end + 2]))
            position = end + 2
        del self._held[:position]
        if len(self._held) > MAX_ANSWER_BYTES:
            raise UpstreamFailed(f"The upstream sent an event of more than {MAX_ANSWER_BYTES} bytes.")
        return [event for event in events if event.strip()]

    def end(self) -> bytes:
        """What is left."""
        return bytes(self._held)


def data_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object in an event, None if it has none."""
    lines: Sequence[bytes] = event.split(b"\n")
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
