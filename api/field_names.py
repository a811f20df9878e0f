"""Brings the fields of a request, in any dialect, under their canonical names and to the types of their schemas. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from api.field_values import convert_fields
from api.outpaint import FLAT_FIELDS
from api.prompt_fields import extract_extra_args, flat_sample_params, split_prompt
from api.request_images import is_image_name, is_markup_name, is_mask_name
from api.unsupported_fields import REFUSED_FIELDS, REFUSED_WITH_AN_IMAGE
from compiler.values import Note
from errors import InvalidValue
from schemas import load_schema
from schemas.explain import given_value

SCHEMA = load_schema("image_request")

_LOCALAI_STEPS = "step"
ALIASES: Mapping[str, tuple[str, ...]] = {
    "n": (
        "num_images",
        "num_images_per_prompt",
        "num_outputs",
        "number_of_images",
        "batch_size",
        "n_iter",
        "batch_count",
    ),
    "steps": ("num_inference_steps", "sample_steps", "sampling_steps", _LOCALAI_STEPS),
    "cfg": ("guidance_scale", "cfg_scale"),
    "sampler": ("sample_method", "sampler_name", "sampler_index", "sampling_method"),
    "schedule": ("scheduler", "schedule_method"),
    "strength": ("denoise", "denoising_strength", "prompt_strength"),
    "seed": ("random_seed",),
    "negative_prompt": ("neg_prompt",),
    "aspect_ratio": ("ratio", "aspect", "aspectratio", "image_aspect_ratio", "image_ratio"),
    "image_size": (
        "resolution",
        "image_resolution",
        "output_resolution",
        "output_size",
        "target_size",
        "dimensions",
        "image_dimensions",
    ),
    "width": ("image_width", "output_width", "target_width", "w"),
    "height": ("image_height", "output_height", "target_height", "h"),
    "lora": ("loras",),
    "control_image": ("controlnet_image", "control_net_image"),
    "control_strength": ("controlnet_conditioning_scale", "control_scale"),
    "control_start": ("control_guidance_start",),
    "control_end": ("control_guidance_end",),
    "upscale": ("upscale_factor", "upscale_by"),
}
"""Canonical name -> names that other servers use. The first one present in the request wins."""
_ALIAS_NAMES = frozenset(alias for aliases in ALIASES.values() for alias in aliases)
_CONTAINERS = ("image_config", "parameters", "params", "input", "options")
"""Objects in which clients of other servers send some or all fields"""
_MAX_COUNT = 1000
_WHOLE_NUMBER: Mapping[str, Any] = {"type": "integer"}
_BATCH_SIZE, _BATCH_COUNTS = "batch_size", ("n_iter", "batch_count")

_EXTRA_ARGS = "<sd_cpp_extra_args>"
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|-")
_MAX_NAME_LENGTH = 100


def canonical_fields(
    body: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, *, is_form: bool = False
) -> tuple[dict[str, Any], list[Note]]:
    """The fields that are present, without nesting, under their canonical names and with the types of their schemas; and
    notes on fields that were ignored because another field with the same meaning wins.

    `inputs`: the inputs of the model's workflows (name -> JSON Schema), which keep their names. Fields in
    <sd_cpp_extra_args> of the prompt win over the others, and those in `extra_body` lose. Raises InvalidValue.
    """
    inputs = inputs or {}
    schemas = _schemas(inputs)
    outer = _in_snake_case(body, inputs)
    extra = outer.pop("extra_body", None)
    notes: list[Note] = []
    outer = _present(convert_fields(_flat(outer, inputs, notes), schemas, is_form=is_form))
    inner = _present(_extra_body(extra, schemas, inputs, notes, is_form=is_form))
    in_prompt = _fields_in_prompt(outer if "prompt" in outer else inner, schemas, inputs, notes)
    if nested := inner.pop("extra_body", None):
        notes.append(Note("extra_body.extra_body", nested, None, "nested extra_body is ignored"))
    sources = [_with_flat_params(source, schemas) for source in (in_prompt, outer, inner)]
    is_localai = any(_LOCALAI_STEPS in source for source in sources) and _LOCALAI_STEPS not in inputs
    for canonical, aliases in ALIASES.items():
        names = tuple(name for name in (canonical, *aliases) if name == canonical or name not in inputs)
        _merge_aliases(canonical, names, sources, notes)
    in_prompt, outer, inner = sources
    notes += _overridden(inner, outer, "extra_body.", "`{}` outside extra_body wins")
    notes += _overridden({**inner, **outer}, in_prompt, "", f"`{{}}` in {_EXTRA_ARGS} wins")
    fields = {**inner, **outer, **in_prompt}
    if note := split_prompt(fields, is_localai=is_localai):
        notes.append(note)
    return fields, notes


def canonical_name(name: str, inputs: Mapping[str, Any]) -> str:
    """The name of the field that `name` is an alias of, in any spelling; `name` itself if it is none. `inputs`: as above."""
    (name,) = _in_snake_case({name: None}, inputs)
    names = (canonical for canonical, aliases in ALIASES.items() if name in aliases and name not in inputs)
    return next(names, name)


def _flat(fields: Mapping[str, Any], inputs: Mapping[str, Any], notes: list[Note]) -> dict[str, Any]:
    """`fields` with the known names in snake_case, and with the content of the containers beside the others, which win;
    `notes` gets those that lose."""
    named = _in_snake_case(fields, inputs)
    containers = [name for name in _CONTAINERS if name not in inputs and isinstance(named.get(name), Mapping)]
    contents = {name: _in_snake_case(named.pop(name), inputs) for name in containers}
    flat = {name: value for name, value in named.items() if value is not None}
    for container, content in contents.items():
        notes += _overridden(content, flat, f"{container}.", f"`{{}}` outside {container} wins")
        flat = {**content, **flat}
    return flat


def _in_snake_case(fields: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `aspectRatio`, `AspectRatio` and `aspect-ratio` under `aspect_ratio`, if that is a known name and not
    in `fields` too."""
    result = {}
    for name, value in fields.items():
        known = None if name in inputs or _is_known(name) else _known_name(name)
        result[name if known is None or known in fields else known] = value
    return result


def _known_name(name: str) -> str | None:
    """`name` in snake_case if that is a known name, or without any underscores: `LoRAs` is `loras`."""
    if len(name) > _MAX_NAME_LENGTH:
        return None
    snake = _WORD_START.sub("_", name).lower()
    return next((known for known in (snake, snake.replace("_", "")) if _is_known(known)), None)


def _is_known(name: str) -> bool:
    return (
        name in SCHEMA["properties"]
        or name in _ALIAS_NAMES
        or name in _CONTAINERS
        or name in REFUSED_FIELDS
        or name in REFUSED_WITH_AN_IMAGE
        or name in FLAT_FIELDS
        or is_image_name(name)
        or is_mask_name(name)
        or is_markup_name(name)
    )


def _extra_body(
    value: Any, schemas: Mapping[str, Any], inputs: Mapping[str, Any], notes: list[Note], *, is_form: bool
) -> dict[str, Any]:
    if isinstance(value, dict):
        return convert_fields(_flat(value, inputs, notes), schemas, is_form=is_form)
    # As text it is JSON, whose strings are no numbers.
    fields = convert_fields({"extra_body": value}, schemas, is_form=is_form)["extra_body"]
    if fields in (None, ""):
        return {}
    if not isinstance(fields, dict):
        raise InvalidValue("`extra_body` must be an object.", param="extra_body")
    return convert_fields(_flat(fields, inputs, notes), schemas)


def _schemas(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of each field, under each of its names."""
    properties = SCHEMA["properties"]
    aliases = {alias: properties[name] for name, names in ALIASES.items() for alias in names}
    return {**aliases, **dict.fromkeys(FLAT_FIELDS, _WHOLE_NUMBER), **inputs, **properties}


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in fields.items()
        if value is not None and (value != "" or name == "prompt")
    }


def _fields_in_prompt(
    source: dict[str, Any], schemas: Mapping[str, Any], inputs: Mapping[str, Any], notes: list[Note]
) -> dict[str, Any]:
    """The fields in the <sd_cpp_extra_args> of the prompt, which is replaced in `source` by the prompt without them."""
    prompt = source.get("prompt")
    if not isinstance(prompt, str):
        return {}
    source["prompt"], fields = extract_extra_args(prompt)
    if source["prompt"] == prompt:
        return {}
    if "prompt" in fields:
        notes.append(
            Note("prompt", fields.pop("prompt"), None, f"the text around {_EXTRA_ARGS} is the prompt")
        )
    why = f"{_EXTRA_ARGS} was removed from the prompt, and its fields are used"
    notes.append(Note("prompt", _EXTRA_ARGS, ", ".join(map(str, fields)) or "no fields", why))
    return _present(convert_fields(_flat(fields, inputs, notes), schemas))


def _with_flat_params(fields: dict[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without the nesting of stable-diffusion.cpp's `sample_params`, and with one number of pictures."""
    fields = _present(convert_fields(flat_sample_params(fields), schemas))
    size = fields.get(_BATCH_SIZE)
    for name in _BATCH_COUNTS:
        # The number of pictures is the product of these two.
        if _is_count(size) and _is_count(fields.get(name)):
            size = fields[_BATCH_SIZE] = size * fields.pop(name)
    return fields


def _merge_aliases(
    canonical: str, names: tuple[str, ...], sources: list[dict[str, Any]], notes: list[Note]
) -> None:
    """Replace `names` in `sources` by the first value present, stored under `canonical` in the source that has it."""
    present = [(source, name) for source in sources for name in names if name in source]
    if not present:
        return
    target, winner = present[0]
    chosen = target.pop(winner)
    for source, name in present[1:]:
        value = source.pop(name)
        if value == chosen:
            continue
        if canonical == "n":
            if value == 1 and not isinstance(value, bool):
                continue  # what programs send that do not use this one of the names
            raise InvalidValue(
                f"`{winner}` is {given_value(chosen)} and `{name}` is {given_value(value)}; both are the number of "
                "pictures: send one of them.",
                param=name,
            )
        notes.append(Note(name, value, None, f"`{winner}` has the same meaning and wins"))
    # A guidance scale up to 1 has no effect in diffusers; in ComfyUI, cfg below 1 would steer away from the prompt.
    if winner == "guidance_scale" and _is_number(chosen) and 0 <= chosen < 1:
        notes.append(Note(winner, chosen, 1.0, "a guidance scale up to 1 means no guidance, which is cfg 1"))
        chosen = 1.0
    target[canonical] = chosen


def _overridden(losing: Mapping[str, Any], winning: Mapping[str, Any], prefix: str, why: str) -> list[Note]:
    return [
        Note(f"{prefix}{name}", value, None, why.format(name))
        for name, value in losing.items()
        if name in winning and winning[name] != value
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 1 <= value <= _MAX_COUNT
