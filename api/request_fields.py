"""Converts the fields of a request, in any dialect, to an ImageRequest and the response options. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema.exceptions import ValidationError

from api.dialect import Endpoint, StreamFormat, stream_format, wants_url
from api.field_names import SCHEMA
from api.size_fields import read_size
from api.unsupported_fields import is_off, refuse_unsupported
from compiler import ImageRequest, LoraChoice, Size, Task
from compiler.values import Note
from errors import InvalidValue, PromptRequired, SizeNotAllowed
from generation import OutputOptions
from schemas import first_error, validator_of
from schemas.explain import given_value, rule_of

_VALIDATOR = validator_of("image_request")

PRESETS = ("quality", "input_fidelity")

FIELDS_WITHOUT_EFFECT: Mapping[str, str] = {
    "style": "this server has no styles; describe the style in the prompt",
    "complexity": "this server has no complexity presets",
    "moderation": "this server does not moderate",
    "user": "this server does not distinguish users",
    "safety_identifier": "this server does not distinguish users",
}
"""Known fields of other servers without a function here, with the reason. Other unknown fields may be workflow inputs."""

API_FIELDS = frozenset(SCHEMA["properties"]) - {
    *("steps", "cfg", "guidance", "strength", "negative_prompt", "sampler", "schedule"),
    *(
        "control_image",
        "control_type",
        "control_preprocess",
        "control_strength",
        "control_start",
        "control_end",
    ),
}
_SHAPE_FIELDS = frozenset(("aspect_ratio", "image_size", "megapixels"))
"""A workflow may have inputs of these names, which then win."""


@dataclass(frozen=True)
class ParsedRequest:
    """A request, the options for its pictures and its response, and the notes on what differs from the request."""

    request: ImageRequest
    output: OutputOptions
    as_url: bool
    response_task: Task
    """The task whose form the response has"""
    stream: StreamFormat | None
    adjusted: tuple[Note, ...]
    ignored: tuple[Note, ...]
    outpaint: Mapping[str, int] | None = None
    """The pixels on each side by which the image is extended"""


def read_image_request(
    fields: Mapping[str, Any],
    *,
    endpoint: Endpoint,
    request_id: str,
    random_seed: Callable[[], int],
    default_response_format: str = "auto",
    url_needs_file: bool = True,
    inputs: Mapping[str, Any] | None = None,
    image_size: Size | None = None,
    notes: tuple[Note, ...] = (),
) -> ParsedRequest:
    """Convert the fields, as `canonical_fields` returns them and without images, to a ParsedRequest.

    `random_seed` returns a random seed and is called if the request has none; `inputs` are the inputs of the model's
    workflows (name -> JSON Schema); `image_size` is that of the image to redraw; `notes` are the notes of the earlier
    steps. Raises PromptRequired, InvalidValue, SizeNotAllowed, FieldNotSupported.
    """
    inputs = inputs or {}
    fields = dict(fields)
    of_workflow = {name: fields.pop(name) for name in _SHAPE_FIELDS if name in fields and name in inputs}
    _normalise(fields)
    _check(fields, endpoint.task)
    refuse_unsupported(fields, inputs, has_image=endpoint.task != "generate")
    size, shape = read_size(fields, image_size)
    seed = fields.get("seed", -1)
    stream = stream_format(fields, endpoint)
    as_url = wants_url(fields, default_response_format, endpoint.response_task, stream)
    request = ImageRequest(
        prompt="" if endpoint.task == "vary" else fields["prompt"],
        model=fields.get("model", ""),
        task=endpoint.task,
        n=int(fields.get("n", 1)),
        size=size,
        shape=shape,
        seed=random_seed() if seed == -1 else int(seed),
        seed_origin="random" if seed == -1 else "request",
        id=request_id,
        inputs=of_workflow | _inputs(fields, inputs),
        presets=_presets(fields, endpoint.task),
        stages=_stages(fields, inputs),
        loras=tuple(LoraChoice(lora["name"], lora.get("strength")) for lora in fields.get("lora", ())),
    )
    output = OutputOptions(
        format=fields.get("output_format", "png"),
        quality=fields.get("output_compression"),
        keep=as_url and url_needs_file,
        is_opaque=fields.get("background") == "opaque" and "background" not in inputs,
    )
    unsupported = {
        name: why for name, why in FIELDS_WITHOUT_EFFECT.items() if name in fields and name not in inputs
    }
    all_notes = (*notes, *_ignored(fields, endpoint.task, stream, unsupported))
    adjusted = tuple(note for note in all_notes if note.done is not None)
    ignored = tuple(note for note in all_notes if note.done is None)
    return ParsedRequest(request, output, as_url, endpoint.response_task, stream, adjusted, ignored)


def _stages(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is done with the pictures. Raises InvalidValue for a transparent background in a format that has none."""
    stages: dict[str, Any] = {}
    if fields.get("upscale", 1) != 1 and "upscale" not in inputs:
        stages["upscale"] = int(fields["upscale"])
    if fields.get("background") == "transparent" and "background" not in inputs:
        if fields.get("output_format") == "jpeg":
            raise InvalidValue(
                "`background` is transparent, which `output_format` jpeg does not have; send png or webp.",
                param="background",
            )
        stages["background"] = "transparent"
    return stages


def _inputs(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The values for the workflow: its own inputs, and fields that nobody knows, which it will list as ignored."""
    return {
        name: value
        for name, value in fields.items()
        if name not in API_FIELDS and (name in inputs or name not in FIELDS_WITHOUT_EFFECT)
    }


# --- values ----------------------------------------------------------------------------------------


def _normalise(fields: dict[str, Any]) -> None:
    """Replace other spellings of allowed values, in place."""
    for name in ("output_format", "response_format", "background"):
        if isinstance(fields.get(name), str):
            fields[name] = fields[name].strip().lower()
    if fields.get("output_format") == "jpg":
        fields["output_format"] = "jpeg"
    if "upscale" in fields and is_off(fields["upscale"]):
        del fields["upscale"]
    if "lora" in fields:
        loras = fields["lora"] if isinstance(fields["lora"], list) else [fields["lora"]]
        fields["lora"] = [{"name": lora} if isinstance(lora, str) else lora for lora in loras]
    if "stream_options_include_usage" in fields:
        options = fields.setdefault("stream_options", {})
        if isinstance(options, dict):
            options.setdefault("include_usage", fields["stream_options_include_usage"])
        del fields["stream_options_include_usage"]


def has_prompt(fields: Mapping[str, Any]) -> bool:
    """Whether the request has a prompt that is not blank, be it of the wrong type."""
    prompt = fields.get("prompt", "")
    return not isinstance(prompt, str) or bool(prompt.strip())


_PROMPT_REQUIRED: Mapping[Task, str] = {
    "generate": "A prompt is required.",
    "edit": "A prompt is required; to redraw an image without one, send it to /v1/images/variations.",
    "inpaint": "A prompt is required for an edit with a mask.",
}


def _check(fields: Mapping[str, Any], task: Task) -> None:
    if task != "vary" and not has_prompt(fields):
        raise PromptRequired(_PROMPT_REQUIRED[task], param="prompt")
    error = first_error(_VALIDATOR, fields)
    if error is not None:
        raise _invalid(error)


def _invalid(error: ValidationError) -> InvalidValue:
    param = str(error.absolute_path[0]) if error.absolute_path else None
    kind = SizeNotAllowed if param == "size" else InvalidValue
    return kind(f"`{param}` is {given_value(error.instance)}; {rule_of(error)}.", param=param)


def _presets(fields: Mapping[str, Any], task: Task) -> dict[str, str]:
    names = PRESETS if task != "generate" else ("quality",)
    return {name: fields[name].strip().lower() for name in names if isinstance(fields.get(name), str)}


# --- ignored fields --------------------------------------------------------------------------------


def _ignored(
    fields: Mapping[str, Any], task: Task, stream: StreamFormat | None, unsupported: Mapping[str, str]
) -> list[Note]:
    notes = [Note(name, fields[name], None, why) for name, why in unsupported.items()]
    if stream is None:
        why = "variations cannot be streamed" if fields.get("stream") else "the response is not streamed"
        notes += [
            Note(name, fields[name], None, why)
            for name in ("stream", "partial_images", "stream_options")
            if fields.get(name)
        ]
    elif not stream.gpustack and fields.get("response_format") == "url":
        notes.append(Note("response_format", "url", None, "stream events contain b64_json"))
    if task == "vary" and has_prompt(fields):
        notes.append(Note("prompt", fields["prompt"], None, "variations have no prompt; use an edit"))
    if task == "generate" and "input_fidelity" in fields:
        notes.append(Note("input_fidelity", fields["input_fidelity"], None, "the request has no input image"))
    notes += [
        Note(name, fields[name], None, "the value is not a preset name")
        for name in PRESETS
        if name in fields and not isinstance(fields[name], str)
    ]
    if "output_compression" in fields and fields.get("output_format", "png") == "png":
        notes.append(Note("output_compression", fields["output_compression"], None, "png is lossless"))
    return notes
