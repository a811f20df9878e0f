"""Fields that other servers' clients write into the prompt: stable-diffusion.cpp's extra arguments, and the negative
prompt that LocalAI takes after a `|`."""

from __future__ import annotations

import json
import re
from typing import Any

from api.json_body import is_nested_too_deeply
from compiler.values import Note
from errors import InvalidValue

_START, _END = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
_IN_BRACKETS = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>")
"""Wildcards and prompt syntax such as {red|blue} and [cow|horse], where a `|` has another meaning"""


def extract_extra_args(prompt: str) -> tuple[str, dict[str, Any]]:
    """`prompt` without `<sd_cpp_extra_args>{…}</sd_cpp_extra_args>`, and the fields in its JSON. Raises InvalidValue."""
    fields: dict[str, Any] = {}
    texts, rest = [], prompt
    while _START in rest:
        before, _, rest = rest.partition(_START)
        content, end, rest = rest.partition(_END)
        if not end:
            raise _invalid_args(f"{_END} is missing")
        texts.append(before.strip())
        fields |= flat_sample_params(_json_object(content))
    if not texts:
        return prompt, {}
    fields.pop("prompt", None)  # this text is the prompt
    return " ".join(filter(None, (*texts, rest.strip()))), fields


def _json_object(text: str) -> dict[str, Any]:
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
    # Several of them are more likely a table than two prompts.
    if not isinstance(prompt, str) or prompt.count("|") != 1 or "|" not in _IN_BRACKETS.sub("", prompt):
        return None
    if not is_localai or "negative_prompt" in fields:
        why = "a `|` is drawn as part of the prompt; send what the picture must not show as `negative_prompt`"
        return Note("prompt", "|", None, why)
    positive, _, negative = (part.strip() for part in prompt.partition("|"))
    fields |= {"prompt": positive, "negative_prompt": negative}
    return Note("prompt", prompt, positive, "with `step`, LocalAI's text after `|` is the negative prompt")
