"""Reads a request to POST /v1/responses as far as pictures are concerned: the tool `image_generation`, whether it is forced,
and the fields of the picture. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.request_images import is_image_name, is_markup_name, is_mask_name
from api.unsupported_fields import contains_image
from api.user_messages import UserMessage, last_user_message, user_messages
from compiler.values import Note
from errors import FieldNotSupported, ImageRequired, InvalidValue
from schemas.explain import given_value

TOOL = "image_generation"
CALL = "image_generation_call"

_STATEFUL: Mapping[str, str] = {
    "previous_response_id": "Responses are not stored here; send the earlier items in `input`.",
    "conversation": "Conversations are not stored here; send the earlier items in `input`.",
    "background": "Nothing is drawn in the background here; leave it out, or send `stream`.",
    "prompt": "Prompts are not stored here; send the text in `input`.",
}
"""Fields that need what this server does not keep"""
_WITHOUT_EFFECT: Mapping[str, str] = {
    "instructions": "they are for a language model, and are no part of the picture's prompt",
    **dict.fromkeys(
        (
            *("context_management", "include", "max_output_tokens", "max_tool_calls", "parallel_tool_calls"),
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning"),
            *("service_tier", "stream_options", "temperature", "text", "top_logprobs", "top_p", "truncation"),
        ),
        "no language model runs",
    ),
}
_HANDLED = ("input", "metadata", "model", "store", "stream", "tools", "tool_choice")
_OF_THE_TOOL = ("type", "action", "input_image_mask")
_NOT_IN_THE_TOOL: Mapping[str, str] = {
    "prompt": "the prompt is the text of the last user message, or what the language model writes; leave it out",
    "stream": "send it beside `tools`",
}
_OVERRIDDEN: Mapping[str, str] = {
    "image": "the image in `input` is redrawn",
    "mask": "the `input_image_mask` of the tool wins",
    "response_format": "a `result` is base64",
}
"""Why a field of the image API beside the tools is not used although the tool lacks it"""
_ACTIONS = ("auto", "generate", "edit")


def image_tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tool `image_generation` among the tools, None if it is not. Raises InvalidValue if it is there twice."""
    tools = [tool for tool in _tools(body) if tool.get("type") == TOOL]
    if len(tools) > 1:
        raise InvalidValue(f"`tools` has {TOOL} {len(tools)} times; send it once.", param="tools")
    return tools[0] if tools else None


def refuse_background(body: Mapping[str, Any]) -> None:
    """Raises FieldNotSupported: a response that the upstream finishes later cannot get a picture."""
    if body.get("background"):
        raise FieldNotSupported(
            f"`background` is not supported with the tool {TOOL}: nothing is drawn in the background here; leave it out, "
            "or send `stream`.",
            param="background",
        )


def _tools(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tools = body.get("tools")
    return [tool for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []


def is_forced(body: Mapping[str, Any]) -> bool:
    """Whether the request wants a picture whatever a language model would say: `tool_choice` names the tool, or requires a
    tool and there is no other."""
    if image_tool(body) is None:
        return False
    choice = body.get("tool_choice")
    if choice == "required":
        return len(_tools(body)) == 1
    if not isinstance(choice, Mapping):
        return False
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        return choice.get("mode") == "required" and isinstance(allowed, list) and _is_only_tool(allowed)
    return choice.get("type") == TOOL


def allows_tool(body: Mapping[str, Any]) -> bool:
    """Whether a language model may call the tool: `tool_choice` is not none, and names no other tools only."""
    choice = body.get("tool_choice")
    if not isinstance(choice, Mapping):
        return choice != "none"
    allowed = choice.get("tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, list):
        return any(isinstance(tool, Mapping) and tool.get("type") == TOOL for tool in allowed)
    return choice.get("type") in (None, TOOL, "allowed_tools")


def _is_only_tool(tools: Sequence[Any]) -> bool:
    return bool(tools) and all(isinstance(tool, Mapping) and tool.get("type") == TOOL for tool in tools)


def direct_fields(body: Mapping[str, Any], image_model: str) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The fields of the picture for a request that is drawn without a language model, as the image API knows them, and notes
    on what is ignored. `image_model`: the model of the request if it draws pictures, else empty.

    Fields that the Responses API does not have, such as `seed`, are those of the image API. Raises InvalidValue,
    FieldNotSupported, PromptRequired, ImageRequired.
    """
    for name, why in _STATEFUL.items():
        if body.get(name) not in (None, False, ""):
            raise FieldNotSupported(f"`{name}` is not supported: {why}", param=name)
    _check_tools(body)
    _check_tool_choice(body)
    tool = image_tool(body) or {}
    message = last_user_message(body.get("input"), param="input")
    known = {*_STATEFUL, *_WITHOUT_EFFECT, *_HANDLED}
    own = {name: value for name, value in body.items() if name not in known and value is not None}
    fields, notes = picture_fields(tool, message.text, source_images(body, tool, message))
    overridden = [
        Note(
            name, own[name], None, f"`{name}` of the tool wins" if name in tool else _OVERRIDDEN.get(name, "")
        )
        for name in own
        if name in fields and fields[name] != own[name]
    ]
    fields = {**own, **fields}
    if image_model and fields.setdefault("model", image_model) != image_model:
        overridden.append(Note("model", image_model, None, "the `model` of the tool draws"))
    if body.get("stream") is not None:
        fields["stream"] = body["stream"]
    return fields, (*notes, *overridden, *_ignored(body, message))


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise InvalidValue(f"`tools` is {given_value(tools)}; it must be a list of tools.", param="tools")
    for tool in tools or ():
        if not isinstance(tool, Mapping):
            raise InvalidValue(
                f"`tools` has {given_value(tool)}; each tool must be an object with a `type`.", param="tools"
            )


def _check_tool_choice(body: Mapping[str, Any]) -> None:
    """Refuses a choice that a picture is no answer to."""
    choice = body.get("tool_choice")
    if choice == "none":
        raise InvalidValue(
            "`tool_choice` is none, and the model only draws pictures; leave it out.", param="tool_choice"
        )
    if not (isinstance(choice, Mapping) or choice in (None, "auto", "required")):
        raise InvalidValue(
            f"`tool_choice` is {given_value(choice)}; it must be auto, required, or an object with a `type`.",
            param="tool_choice",
        )
    wants_others = choice == "required" and bool(body.get("tools")) and image_tool(body) is None
    if wants_others or not allows_tool(body):
        raise FieldNotSupported(
            "`tool_choice` requires another tool, and this request is answered without a language model: it only draws. "
            f"Leave it out, or choose {TOOL}.",
            param="tool_choice",
        )


def picture_fields(
    tool: Mapping[str, Any], prompt: str, images: Sequence[Any]
) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The tool's fields, the prompt and the images to redraw, as the image API knows them, and notes. Raises InvalidValue,
    FieldNotSupported."""
    fields = {name: value for name, value in tool.items() if name not in _OF_THE_TOOL and value is not None}
    for name, why in _NOT_IN_THE_TOOL.items():
        if name in fields:
            raise FieldNotSupported(f"`{name}` is not supported in the tool {TOOL}: {why}.", param=name)
    for name, other in (("image", images), ("mask", tool.get("input_image_mask"))):
        if name in fields and other:
            where = (
                "an image of the conversation is redrawn"
                if name == "image"
                else "it has an `input_image_mask`"
            )
            raise InvalidValue(f"The tool {TOOL} has `{name}`, and {where}; send one of them.", param=name)
    if tool_action(tool) == "generate" and (has_mask(tool) or "image" in fields):
        raise InvalidValue(
            "`action` is generate, and the tool has an image, a mask or a markup; leave one of them out.",
            param="action",
        )
    notes = []
    if fields.get("response_format", "b64_json") != "b64_json":
        notes.append(Note("response_format", fields["response_format"], None, "a `result` is base64"))
    fields |= {"prompt": prompt, "response_format": "b64_json"}
    if images:
        fields["image"] = list(images)
    if tool.get("input_image_mask"):
        fields["mask"] = tool["input_image_mask"]
    return fields, tuple(notes)


def has_mask(tool: Mapping[str, Any]) -> bool:
    """Whether the tool has a mask or a markup: then each call of it is an edit."""
    return bool(tool.get("input_image_mask") or tool.get("mask") or tool.get("markup"))


def shown_tool(tool: Any) -> Any:
    """A tool as the response repeats it: the image tool without images and masks, which may have megabytes."""
    if not (isinstance(tool, Mapping) and tool.get("type") == TOOL):
        return tool
    return _without_images(tool)


def _without_images(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_images(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if not (
            name == "input_image_mask"
            or is_image_name(name)
            or is_mask_name(name)
            or is_markup_name(name)
            or (not isinstance(value, Mapping) and contains_image(value))
        )
    }


def tool_action(tool: Mapping[str, Any]) -> str:
    """The tool's `action`. Raises InvalidValue."""
    action = tool.get("action")
    if action is None:
        return "auto"
    if action not in _ACTIONS:
        raise InvalidValue(
            f"`action` is {given_value(action)}; it must be {', '.join(_ACTIONS)}.", param="action"
        )
    return str(action)


def source_images(
    body: Mapping[str, Any], tool: Mapping[str, Any], message: UserMessage, *, edit: bool = False
) -> tuple[Any, ...]:
    """The images to redraw: those of the last user message. An earlier one, sent or drawn, is redrawn only if `action` of
    the tool is `edit`, or with `edit`. Raises InvalidValue, ImageRequired."""
    action = tool_action(tool)
    if action == "generate":
        if message.images:
            raise InvalidValue(
                "`action` is generate, and the last message has an image; leave one of them out.",
                param="action",
            )
        return ()
    if message.images or not (edit or action == "edit"):
        return message.images
    if earlier := newest_image(body):
        return (earlier,)
    raise ImageRequired(
        "There is no image to redraw: send one as `input_image` in the last user message, or an earlier "
        f"{CALL} with its `result`.",
        param="input",
    )


def newest_image(body: Mapping[str, Any]) -> Any:
    """The last image in `input`, sent or drawn; None if there is none."""
    items = body.get("input")
    if not isinstance(items, list):
        return None
    drawn = [
        (position, {"b64_json": item["result"]})
        for position, item in enumerate(items)
        if isinstance(item, Mapping) and item.get("type") == CALL and isinstance(item.get("result"), str)
    ]
    sent = [
        (message.position, message.images[-1])
        for message in user_messages(items, param="input", skips_others=True)
        if message.images
    ]
    return max([*drawn, *sent], key=lambda pair: pair[0], default=(0, None))[1]


def _ignored(body: Mapping[str, Any], message: UserMessage) -> list[Note]:
    notes = [
        Note(name, body[name], None, why)
        for name, why in _WITHOUT_EFFECT.items()
        if body.get(name) is not None
    ]
    notes += [
        Note("tools", tool.get("type"), None, "the picture is drawn without a language model")
        for tool in _tools(body)
        if tool.get("type") != TOOL
    ]
    if body.get("store") is True:
        notes.append(Note("store", True, None, "responses are not stored"))
    items = body.get("input")
    if isinstance(items, list) and len(items) > 1:
        notes.append(Note("input", f"{len(items)} items", None, "only the last user message is drawn"))
    return notes
