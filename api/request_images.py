"""Extracts the images and the mask of an edit from the request, in all the forms that clients use: single, repeated or
numbered files, texts with data URLs or base64, and JSON objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from api.field_values import parse_json_field
from api.unsupported_fields import ONE_IMAGE, REFUSED_FIELDS, not_supported
from compiler.values import Note, Task
from errors import FieldNotSupported, ImageRequired, ImageUrlRefused, InvalidValue
from generation import Pictures
from pictures import InputImage, decode_text, has_transparency, read_image

MAX_IMAGES = 16
_NUMBER = r"(?:\[(\d{0,4})\]|_?(\d{1,2}))?"
_IMAGE_NAMES = re.compile(
    r"(?:(?:(?:input|init|initial|source|base|base64|original|user|ref|reference|conditioning|first_frame)_)?"
    r"(?:image|img|picture|photo)s?(?:_(?:url|uri|base64|b64|b64_json|data|file|input|ref|reference|list)s?)?"
    rf"|input_references?|file){_NUMBER}"
)
_EDIT_IMAGE_NAMES = re.compile(rf"(?:{_IMAGE_NAMES.pattern.removesuffix(_NUMBER)}|urls?){_NUMBER}")
"""In edits also SGLang's `url`, which is not an image in every request to generations"""
_MASK_NAMES = re.compile(
    r"(?:mask|(?:mask|inpaint)_(?:image|mask|url|uri|base64|b64|b64_json|data|file)(?:_url)?)(?:\[\d{0,4}\])?"
)
_ALPHA_IS_MASK_MODEL = "dall-e-2"
"""The only model whose clients expect the transparent area of an image to be its mask if the request has no mask"""

_FORMS = "a file in the field `image`, or in JSON `image` with a data: URL or base64"

FetchImage = Callable[[str, str], bytes]
"""(URL, param) -> the bytes at that URL; raises ImageUrlRefused or ImageUrlFailed"""


@dataclass(frozen=True)
class RequestImages:
    """The image and mask of a request, and notes on images that are ignored or adjusted."""

    pictures: Pictures
    notes: tuple[Note, ...]


def refuse_image_url(url: str, param: str) -> bytes:
    """The FetchImage of installations that do not fetch image URLs."""
    raise ImageUrlRefused(
        "This server does not fetch image URLs (`images.fetch_urls` is off); send the image as a file or a data: URL.",
        param=param,
    )


def remove_empty_images(fields: dict[str, Any], inputs: Mapping[str, Any]) -> bool:
    """Remove fields for images that contain none from `fields` (in place), and return whether one is left.

    `fields` are those of a request to generations; `inputs` are the inputs of the model's workflows, which are no images.
    """
    names = [name for name in fields if name not in inputs and (is_image_name(name) or is_mask_name(name))]
    for name in names:
        if not _as_list(fields[name], name):
            del fields[name]
    return any(name in fields for name in names)


def is_image_name(name: str) -> bool:
    """Whether a field of this name is an image to redraw, on every path."""
    return _IMAGE_NAMES.fullmatch(name) is not None


def is_mask_name(name: str) -> bool:
    """Whether a field of this name is a mask."""
    return _MASK_NAMES.fullmatch(name) is not None


def extract_images(
    fields: dict[str, Any],
    files: tuple[tuple[str, bytes], ...],
    fetch: FetchImage,
    *,
    path_task: Task = "edit",
) -> RequestImages:
    """Read the images from `fields` and `files`, and remove them from `fields` (in place). `path_task`: the task that
    the path stands for.

    Raises ImageRequired, InvalidImage, InvalidValue for more than 16 images, FieldNotSupported for a mask in a variation
    and for a file in any other field, and what `fetch` raises.
    """
    image_names = _IMAGE_NAMES if path_task == "generate" else _EDIT_IMAGE_NAMES
    images = _extract(image_names, "image", fields, files)
    masks = _extract(_MASK_NAMES, "mask", fields, files)
    for name, data in files:
        if data and not (image_names.fullmatch(name) or is_mask_name(name)):
            raise not_supported(name, REFUSED_FIELDS.get(name, ONE_IMAGE))
    notes: list[Note] = []
    if not images:
        reason = "The request has a `mask` and no image. " if masks else ""
        raise ImageRequired(f"{reason}An image is required: send {_FORMS}.", param="image")
    if len(images) > MAX_IMAGES:
        raise InvalidValue(
            f"The request has {len(images)} images; at most {MAX_IMAGES} are allowed.", param="image"
        )
    if len(images) > 1:
        why = "workflows accept one image; the first is redrawn"
        notes.append(Note("image", f"{len(images)} images", None, why))
    if masks and path_task == "vary":
        raise FieldNotSupported(
            "A variation redraws the whole image and has no `mask`. Send it to /v1/images/edits with a prompt.",
            param="mask",
        )
    if len(masks) > 1:
        notes.append(Note("mask", f"{len(masks)} masks", None, "an image has one mask; the first is used"))
    image = read_image(_bytes(images[0], "image", fetch), param="image")
    mask = read_image(_bytes(masks[0], "mask", fetch), param="mask") if masks else None
    if (
        mask is None
        and path_task != "vary"
        and str(fields.get("model", "")).strip().lower() == _ALPHA_IS_MASK_MODEL
        and has_transparency(image)
    ):
        mask = read_image(image.data, param="mask")
    if mask is not None and mask.size not in (image.size, image.size[::-1]):
        notes.append(Note("mask", _size(mask), _size(image), "a mask is scaled to the size of its image"))
    return RequestImages(Pictures(image, mask), tuple(notes))


def _size(image: InputImage) -> str:
    return f"{image.width}x{image.height}"


def _extract(
    names: re.Pattern[str], param: str, fields: dict[str, Any], files: tuple[tuple[str, bytes], ...]
) -> list[Any]:
    """The files and fields with these names: those that are called a reference last, the others by number, then in the
    order they were sent."""
    numbered: list[tuple[tuple[bool, int], Any]] = []
    for name, data in files:
        if match := names.fullmatch(name):
            numbered.append((_rank(match), data))
    for name in [name for name in fields if names.fullmatch(name)]:
        if match := names.fullmatch(name):
            numbered += [(_rank(match), value) for value in _as_list(fields.pop(name), param)]
    return [value for _, value in sorted(numbered, key=lambda pair: pair[0])]


def _rank(match: re.Match[str]) -> tuple[bool, int]:
    number = next(filter(None, match.groups()), None)
    return match[0].startswith("ref"), int(number) if number else 0


def _as_list(value: Any, param: str) -> list[Any]:
    """The images in a field's value, which may be one image, a list, or either of them as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = parse_json_field(param, value)
    if not value:
        return []
    return [item for item in value if item] if isinstance(value, list) else [value]


def _bytes(value: Any, param: str, fetch: FetchImage) -> bytes:
    if isinstance(value, bytes):
        return value
    text = _reference(value, param)
    if re.match(r"\s*https?:", text, re.IGNORECASE):
        return fetch(text.strip(), param)
    return decode_text(text, param=param)


def _reference(value: Any, param: str) -> str:
    """The text in "…", {"image_url": "…"}, {"image_url": {"url": "…"}}, {"url": "…"} or {"b64_json": "…"}."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if "file_id" in value:
            raise InvalidValue(
                "This server does not store files, so `file_id` is not supported.", param=param
            )
        for key in ("image_url", "url", "b64_json", "data"):
            if isinstance(value.get(key), str | Mapping):
                return _reference(value[key], param)
    raise InvalidValue(
        f"`{param}` must be a file, a data: URL, base64, or an object with `image_url`.", param=param
    )
