"""Fields of other servers that change what the picture shows and that this server cannot honour. Requests with one of
them are refused; listing it as ignored would draw something else than was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errors import FieldNotSupported
from schemas import load_schema

_IN_THE_PROMPT = "describe it in `prompt`"
ONE_IMAGE = "send the image as `image` to redraw it"
_LORA = "use a LoRA of the catalogue (`lora`)"
_SIZE = "request the final size with `size`"
_WHOLE_PROMPT = "write the whole text in `prompt`, or `negative_prompt`"

REFUSED_FIELDS: Mapping[str, str] = {
    # looks
    **dict.fromkeys(
        ("style_preset", "style_type", "style_id", "styles", "color_palette", "colors"), _IN_THE_PROMPT
    ),
    **dict.fromkeys(("tile", "tiling", "seamless"), "this server draws no seamless tiles"),
    **dict.fromkeys(("remove_background", "transparent_background"), "send `background: transparent`"),
    **dict.fromkeys(("embeddings", "textual_inversion", "hypernetwork"), _LORA),
    **dict.fromkeys(("lora_weights", "lora_name", "lora_url", "lora_path", "lora_model", "lora_id"), _LORA),
    **dict.fromkeys(("lora_file", "hf_lora", "extra_lora"), _LORA),
    # more than one text
    **dict.fromkeys(("prompt_2", "prompt_3", "text_prompts", "additional_prompts"), _WHOLE_PROMPT),
    **dict.fromkeys(("negative_prompt_2", "negative_prompt_3"), _WHOLE_PROMPT),
    # images that are not redrawn
    **dict.fromkeys(
        ("control", "control_image", "control_images", "control_net_image", "controlnet"), ONE_IMAGE
    ),
    **dict.fromkeys(("controlnets", "controlnet_units", "controlnet_image", "alwayson_scripts"), ONE_IMAGE),
    **dict.fromkeys(
        ("image_prompt", "image_prompts", "image_guidance", "ip_adapter", "ip_adapters"), ONE_IMAGE
    ),
    **dict.fromkeys(("ip_adapter_image", "style_image", "style_reference", "style_references"), ONE_IMAGE),
    **dict.fromkeys(("character_reference", "character_reference_images", "subject_reference"), ONE_IMAGE),
    **dict.fromkeys(("style_reference_images", "pulid_image", "id_images", "photo_maker"), ONE_IMAGE),
    # other sizes
    "orientation": "send `aspect_ratio` or `size`",
    **dict.fromkeys(("enable_hr", "hires", "hires_fix", "enable_hires", "rotate"), _SIZE),
    "upscaler": "send `upscale`, the factor",
    # other models and programs
    **dict.fromkeys(("override_settings", "sd_model_checkpoint"), "send the model's id as `model`"),
    "script_name": "this server runs no scripts",
    "workflow": "this server draws the workflows of its catalogue; choose one by `model`",
}
"""name -> what to do instead"""

REFUSED_WITH_AN_IMAGE: Mapping[str, str] = {
    **dict.fromkeys(
        ("image_strength", "init_image_strength", "image_prompt_strength"),
        "send `strength`, which is how much is redrawn: 1 minus this value",
    ),
    **dict.fromkeys(("inpainting_mask_invert", "invert_mask", "mask_invert"), "send the inverted mask"),
}
"""The same for fields that have no effect on a picture that is drawn from a prompt only"""
_KNOWN_FIELDS = frozenset(load_schema("image_request")["properties"])
_MIN_IMAGE_LENGTH = 60
"""Characters; the smallest pictures have more, even in base64"""
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")
_NEUTRAL_TEXTS = ("", "none", "null", "false", "off", "no", "0", "auto", "default")
_OPENAI_STYLES = ("vivid", "natural", "standard", "base")
"""DALL·E 3's two; clients of it send one with every request. The others are other servers' names for no style."""


def refuse_unsupported(fields: Mapping[str, Any], inputs: Mapping[str, Any], *, has_image: bool) -> None:
    """Raises FieldNotSupported for a field that changes the meaning, unless it is among `inputs`, those of the model's
    workflows, or its value means that it is off."""
    refused = {**REFUSED_FIELDS, **REFUSED_WITH_AN_IMAGE} if has_image else REFUSED_FIELDS
    for name in fields:
        if name in refused and name not in inputs and not is_off(fields[name]):
            raise not_supported(name, refused[name])
        if name not in inputs and name not in _KNOWN_FIELDS and contains_image(fields[name]):
            raise not_supported(name, ONE_IMAGE)
    if "style" in fields and "style" not in inputs and not is_off(fields["style"], _OPENAI_STYLES):
        raise not_supported("style", _IN_THE_PROMPT)


def contains_image(value: Any) -> bool:
    """Whether `value` is or contains a picture: a data URL, or base64 of PNG, JPEG, WebP or GIF."""
    if isinstance(value, Mapping):
        return any(map(contains_image, value.values()))
    if isinstance(value, list):
        return any(map(contains_image, value))
    if not isinstance(value, str) or len(value) < _MIN_IMAGE_LENGTH:
        return False
    return value[:_MIN_IMAGE_LENGTH].lstrip().lower().startswith("data:image/") or value.startswith(
        _BASE64_STARTS
    )


def is_off(value: Any, neutral: tuple[str, ...] = ()) -> bool:
    """Whether the value says that the feature is not used: 0, false, nothing, or a word for these."""
    if isinstance(value, str):
        return value.strip().casefold() in (*_NEUTRAL_TEXTS, *neutral)
    if isinstance(value, Mapping):
        return not value or value.get("enabled") is False or value.get("enable") is False
    return not value


def not_supported(name: str, remedy: str) -> FieldNotSupported:
    """The error for the field `name`; `remedy` is what to do instead."""
    return FieldNotSupported(
        f"`{name}` changes the picture in a way that this server does not support. Leave it out; {remedy}.",
        param=name,
    )
