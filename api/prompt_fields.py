"""Fields that other servers' clients write into the prompt: stable-diffusion.cpp's extra arguments, and the negative
prompt that LocalAI takes after a `|`."""

from __future__ import annotations

import json
import re
from typing import Any

from api.json_body import MAX_VALUES, has_too_many_values, is_nested_too_deeply
from compiler.values import Note
from errors import InvalidValue
from schemas import load_schema

_START, _END = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
_MAX_PROMPT_LENGTH: int = load_schema("image_request")["properties"]["prompt"]["maxLength"]
_MAX_EXTRA_ARGS = 16
_IN_BRACKETS = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>")
"""Wildcards and prompt syntax such as {red|blue} and [cow|horse], where a `|` has another meaning"""


def extract_extra_args(prompt: str) -> tuple[str, dict[str, Any]]:
    """`prompt` without `<sd_cpp_extra_args>{…}</sd_cpp_extra_args>`, and the fields in its JSON. Raises InvalidValue."""
    first, *parts = prompt.split(_START, _MAX_EXTRA_ARGS + 1)
    if not parts:
        return prompt, {}
    if len(parts) > _MAX_EXTRA_ARGS:
        raise _invalid_args(f"it has more than {_MAX_EXTRA_ARGS} of them")
    fields: dict[str, Any] = {}
    texts = [first.strip()]
    for part in parts:
        content, end, text = part.partition(_END)
        if not end:
            raise _invalid_args(f"{_END} is missing")
        texts.append(text.strip())
        fields |= flat_sample_params(_json_object(content))
    return " ".join(filter(None, texts)), fields


def _json_object(text: str) -> dict[str, Any]:
    if has_too_many_values(text.encode("utf-8", "surrogatepass")):
        raise _invalid_args(f"its content has more than {MAX_VALUES} values")
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise _invalid_args("its content is not valid JSON") from error
    if not isinstance(value, dict) or is_nested_too_deeply(value):
        raise _invalid_args("its content must be a JSON object")
    return value


def _invalid_args(fault: str) -> InvalidValue:
    return InvalidValue(
        f"`prompt` has <sd_cpp_extra_args>, and {fault}; write "
        '<sd_cpp_extra_args>{"seed": 42}</sd_cpp_extra_args>, or send the fields outside the prompt.',
        param="prompt",
    )


def flat_sample_params(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with the content of stable-diffusion.cpp's `sample_params` beside the others, which win."""
    params = fields.get("sample_params")
    if not isinstance(params, dict):
        return fields
    params = dict(params)
    guidance = params.get("guidance")
    if isinstance(guidance, dict):
        del params["guidance"]
        names = {"txt_cfg": "cfg_scale", "distilled_guidance": "guidance"}
        params |= {names.get(name, f"guidance_{name}"): value for name, value in guidance.items()}
    return {**params, **{name: value for name, value in fields.items() if name != "sample_params"}}


def split_prompt(fields: dict[str, Any], *, is_localai: bool) -> Note | None:
    """Move the text after a `|` to `negative_prompt` (in place) if the request is surely LocalAI's. Otherwise it is part
    of the prompt; the note says so.

    A request is LocalAI's if it has its field `step`, which no other server has.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or len(prompt) > _MAX_PROMPT_LENGTH:
        return None  # refused later
    if "|" not in prompt:
        return None
    outside = _IN_BRACKETS.sub("", prompt).count("|")
    # For others than LocalAI, several of them are more likely a table than two prompts.
    if outside == 0 or (outside > 1 and not is_localai):
        return None
    if not is_localai or prompt.count("|") > 1 or "negative_prompt" in fields:
        why = "a `|` is drawn as part of the prompt; send what the picture must not show as `negative_prompt`"
        return Note("prompt", "|", None, why)
    positive, _, negative = (part.strip() for part in prompt.partition("|"))
    fields |= {"prompt": positive, "negative_prompt": negative}
    return Note("prompt", prompt, positive, "with `step`, LocalAI's text after `|` is the negative prompt")
