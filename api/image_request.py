"""A JSON body in any of the dialects -> an ImageRequest and how its answer is to look. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from api.json_body import json_object
from compiler import ImageRequest, Size
from compiler.values import Note
from errors import InvalidValue, PromptRequired, SizeNotAllowed, StreamUnsupported
from generation import Finish

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "schemas/image_request.schema.json").read_text("utf-8")
)
_VALIDATOR = Draft202012Validator(SCHEMA)

ALIASES: Mapping[str, tuple[str, ...]] = {
    "steps": ("num_inference_steps", "sample_steps", "sampling_steps"),
    "cfg": ("guidance_scale", "cfg_scale"),
    "sampler": ("sample_method",),
    "schedule": ("scheduler", "schedule_method"),
}
"""Canonical name -> what other servers call it. The first that is present wins."""

WORKFLOW_INPUTS = ("steps", "cfg", "negative_prompt", "sampler", "schedule")
"""Fields whose meaning and limits are the workflow's."""

_NO_PRESETS = "no model here has such presets; `steps` and `prompt` do that"
_WHY_NOT: Mapping[str, str] = {
    "quality": _NO_PRESETS,
    "style": _NO_PRESETS,
    "complexity": _NO_PRESETS,
    "moderation": "nothing is moderated here",
    "user": "nothing is told apart by user here",
    "safety_identifier": "nothing is told apart by user here",
    "input_fidelity": "there is no input image",
    "stream_options": "there is no stream",
}

_OWN_FIELDS = frozenset(SCHEMA["properties"])
_B64_NAMES = ("gpt-image", "chatgpt-image")
_B64_FIELDS = (
    "background",
    "moderation",
    "output_format",
    "output_compression",
    "partial_images",
    "input_fidelity",
)
"""Only requests to OpenAI's gpt-image models have these; such clients cannot use a url."""


@dataclass(frozen=True)
class Asked:
    """A request, how its pictures are to be finished and answered, and what is not done as asked."""

    request: ImageRequest
    finish: Finish
    as_url: bool
    adjusted: tuple[Note, ...]
    ignored: tuple[Note, ...]


def read_image_request(
    text: bytes,
    *,
    request_id: str,
    draw_seed: Callable[[], int],
    default_response_format: str = "auto",
    url_needs_file: bool = True,
) -> Asked:
    """The body of POST /v1/images/generations. `draw_seed` gives a seed where the request has none.

    Raises InvalidRequest, PromptRequired, InvalidValue, SizeNotAllowed, StreamUnsupported.
    """
    fields, shadowed = _canonical(json_object(text))
    _normalise(fields)
    _check(fields)
    seed = fields.get("seed", -1)
    as_url = _wants_url(fields, default_response_format)
    request = ImageRequest(
        prompt=fields["prompt"],
        model=fields.get("model", ""),
        n=int(fields.get("n", 1)),
        size=_size(fields.get("size")),
        seed=draw_seed() if seed == -1 else int(seed),
        seed_origin="drawn" if seed == -1 else "request",
        id=request_id,
        inputs={name: fields[name] for name in WORKFLOW_INPUTS if name in fields},
    )
    finish = Finish(
        format=fields.get("output_format", "png"),
        quality=fields.get("output_compression"),
        keep=as_url and url_needs_file,
    )
    notes = (*shadowed, *_ignored(fields))
    adjusted = tuple(note for note in notes if note.done is not None)
    ignored = tuple(note for note in notes if note.done is None)
    return Asked(request, finish, as_url, adjusted, ignored)


# --- names -----------------------------------------------------------------------------------------


def _canonical(body: dict[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """The fields that are given, flat and in canonical names, and those that lost to another of the same meaning."""
    extra = body.get("extra_body")
    if extra is not None and not isinstance(extra, dict):
        raise InvalidValue("`extra_body` must be an object.", param="extra_body")
    outer = {name: value for name, value in body.items() if name != "extra_body" and _is_given(name, value)}
    inner = {name: value for name, value in (extra or {}).items() if _is_given(name, value)}
    notes: list[Note] = []
    if deeper := inner.pop("extra_body", None):
        notes.append(Note("extra_body.extra_body", deeper, None, "one inside another counts for nothing"))
    for canonical, others in ALIASES.items():
        _take_first(canonical, (canonical, *others), (outer, inner), notes)
    notes += [
        Note(f"extra_body.{name}", value, None, f"`{name}` beside it wins")
        for name, value in inner.items()
        if name in outer and outer[name] != value
    ]
    return {**inner, **outer}, notes


def _is_given(name: str, value: Any) -> bool:
    return value is not None and (value != "" or name == "prompt")


def _take_first(
    canonical: str, names: tuple[str, ...], places: tuple[dict[str, Any], ...], notes: list[Note]
) -> None:
    given = [(place, name) for place in places for name in names if name in place]
    for index, (place, name) in enumerate(given):
        value = place.pop(name)
        if index == 0:
            winner, chosen = name, value
        elif value != chosen:
            notes.append(Note(name, value, None, f"`{winner}` has the same meaning and wins"))
    if given:
        # diffusers' guidance has no effect up to 1; ComfyUI's cfg below 1 would turn away from the prompt.
        if winner == "guidance_scale" and _is_number(chosen) and 0 <= chosen < 1:
            notes.append(Note(winner, chosen, 1.0, "a guidance scale up to 1 means none, which is cfg 1"))
            chosen = 1.0
        places[0][canonical] = chosen


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- values ----------------------------------------------------------------------------------------


def _normalise(fields: dict[str, Any]) -> None:
    """Other spellings of an allowed value become that value, in place."""
    n = fields.get("n")
    if isinstance(n, str) and n.strip().isascii() and n.strip().isdigit() and len(n) < 10:
        fields["n"] = int(n)
    if fields.get("output_format") == "jpg":
        fields["output_format"] = "jpeg"


def _check(fields: Mapping[str, Any]) -> None:
    prompt = fields.get("prompt", "")
    if isinstance(prompt, str) and not prompt.strip():
        raise PromptRequired("A prompt is required: say what the picture shows.", param="prompt")
    fault = best_match(_VALIDATOR.iter_errors(fields))
    if fault is not None:
        raise _invalid(fault)
    if fields.get("stream"):
        raise StreamUnsupported("Streaming is not supported yet; leave `stream` out.", param="stream")


def _invalid(fault: ValidationError) -> InvalidValue:
    param = str(fault.absolute_path[0]) if fault.absolute_path else None
    shown = json.dumps(fault.instance, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else shown[:77] + "…"
    kind = SizeNotAllowed if param == "size" else InvalidValue
    return kind(f"`{param}` is {shown}; {_allowed(fault)}.", param=param)


def _allowed(fault: ValidationError) -> str:
    wanted = fault.validator_value
    words = {
        "type": f"it must be of type {wanted}",
        "enum": f"allowed is {', '.join(map(str, wanted)) if isinstance(wanted, list) else wanted}",
        "minimum": f"it must be at least {wanted}",
        "maximum": f"it must be at most {wanted}",
        "maxLength": f"it may have at most {wanted} characters",
    }
    return words.get(str(fault.validator), fault.message)


def _size(text: str | None) -> Size | None:
    if text is None or text.strip().lower() == "auto":
        return None
    try:
        return Size.parse(text)
    except ValueError as fault:
        raise SizeNotAllowed(f"`size`: {fault}, or auto.", param="size") from fault


def _wants_url(fields: Mapping[str, Any], default: str) -> bool:
    if "response_format" in fields:
        return bool(fields["response_format"] == "url")
    if default != "auto":
        return default == "url"
    model = fields.get("model", "").strip().casefold()
    return not (model.startswith(_B64_NAMES) or any(name in fields for name in _B64_FIELDS))


# --- what is not honoured --------------------------------------------------------------------------


def _ignored(fields: Mapping[str, Any]) -> list[Note]:
    notes = [
        Note(name, value, None, _WHY_NOT.get(name, "this server has no such field"))
        for name, value in fields.items()
        if name not in _OWN_FIELDS
    ]
    if "partial_images" in fields:
        notes.append(Note("partial_images", fields["partial_images"], None, "there is no stream"))
    if fields.get("background", "auto") not in ("auto", "opaque"):
        notes.append(Note("background", fields["background"], None, "every model draws opaque pictures"))
    if "output_compression" in fields and fields.get("output_format", "png") == "png":
        notes.append(Note("output_compression", fields["output_compression"], None, "png is lossless"))
    return notes
