"""The images and the mask of an edit, in every way in which clients send them: files, repeated or numbered, texts with
data URLs or base64, JSON objects. They are taken out of the fields; what is left are plain values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.form_body import json_value
from compiler.values import Note
from errors import ImageRequired, ImageUrlRefused, InvalidValue
from generation import Pictures
from pictures import InputImage, decode_text, has_transparency, read_image

MOST_IMAGES = 16
_IMAGE = re.compile(r"(?:images?|input_image|image_url)(?:\[(\d{0,4})\])?")
_MASK = re.compile(r"(?:mask|mask_image|mask_url)(?:\[\d{0,4}\])?")
_ALPHA_IS_MASK = "dall-e-2"
"""The only model whose clients expect a transparent image without a mask to be filled where it is transparent"""

Fetch = Callable[[str, str], bytes]
"""(URL, param) -> the bytes there; raises ImageUrlRefused or ImageUrlFailed"""


@dataclass(frozen=True)
class RequestImages:
    """What is to be redrawn, and what of the images counts for nothing."""

    pictures: Pictures
    notes: tuple[Note, ...]


def refuse_urls(url: str, param: str) -> bytes:
    """The Fetch of an installation that fetches nothing."""
    raise ImageUrlRefused(
        "This server fetches no images by URL (`images.fetch_urls`); send the image itself, or a data: URL.",
        param=param,
    )


def take_images(fields: dict[str, Any], files: tuple[tuple[str, bytes], ...], fetch: Fetch) -> RequestImages:
    """Take the images out of `fields` (in place) and `files`.

    Raises ImageRequired, InvalidImage, InvalidValue for more than 16, and what `fetch` raises.
    """
    images = list(_named(_IMAGE, "image", fields, files))
    masks = list(_named(_MASK, "mask", fields, files))
    notes = [Note(name, "(a file)", None, "this server has no such field") for name, _ in _others(files)]
    if not images:
        raise ImageRequired("An image is required: send a file in the field `image`.", param="image")
    if len(images) > MOST_IMAGES:
        raise InvalidValue(
            f"There are {len(images)} images; at most {MOST_IMAGES} are allowed.", param="image"
        )
    if len(images) > 1:
        why = "no workflow here takes more than one image; the first is redrawn"
        notes.append(Note("image", f"{len(images)} images", None, why))
    if len(masks) > 1:
        notes.append(Note("mask", f"{len(masks)} masks", None, "one image has one mask: the first"))
    image = read_image(_bytes(images[0], "image", fetch), param="image")
    mask = read_image(_bytes(masks[0], "mask", fetch), param="mask") if masks else None
    if (
        mask is None
        and str(fields.get("model", "")).strip().lower() == _ALPHA_IS_MASK
        and has_transparency(image)
    ):
        mask = read_image(image.data, param="mask")
    if mask is not None and mask.size not in (image.size, image.size[::-1]):
        notes.append(Note("mask", _sized(mask), _sized(image), "a mask is brought to the size of its image"))
    return RequestImages(Pictures(image, mask), tuple(notes))


def _sized(image: InputImage) -> str:
    return f"{image.width}x{image.height}"


def _named(
    names: re.Pattern[str], param: str, fields: dict[str, Any], files: tuple[tuple[str, bytes], ...]
) -> Iterator[Any]:
    """What came under these names, numbered ones in their order, else as they came."""
    found: list[tuple[int, Any]] = []
    for name, data in files:
        if match := names.fullmatch(name):
            found.append((_number(match), data))
    for name in [name for name in fields if names.fullmatch(name)]:
        match = names.fullmatch(name)
        found += [(_number(match), value) for value in _listed(fields.pop(name), param)]
    return (value for _, value in sorted(found, key=lambda pair: pair[0]))


def _number(match: re.Match[str] | None) -> int:
    return int(match[1]) if match is not None and match.re.groups and match[1] else 0


def _others(files: tuple[tuple[str, bytes], ...]) -> Iterator[tuple[str, bytes]]:
    return ((name, data) for name, data in files if not (_IMAGE.fullmatch(name) or _MASK.fullmatch(name)))


def _listed(value: Any, param: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = json_value(param, value)
    if value is None or value == "":
        return []
    return [item for item in value if item not in (None, "")] if isinstance(value, list) else [value]


def _bytes(value: Any, param: str, fetch: Fetch) -> bytes:
    if isinstance(value, bytes):
        return value
    text = _reference(value, param)
    if re.match(r"\s*https?:", text, re.IGNORECASE):
        return fetch(text.strip(), param)
    return decode_text(text, param=param)


def _reference(value: Any, param: str) -> str:
    """The text in "…", {"image_url": "…"}, {"image_url": {"url": "…"}}, {"url": "…"} and {"b64_json": "…"}."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if "file_id" in value:
            raise InvalidValue("This server keeps no files, so `file_id` names nothing here.", param=param)
        for key in ("image_url", "url", "b64_json", "data"):
            if isinstance(value.get(key), str | Mapping):
                return _reference(value[key], param)
    raise InvalidValue(
        f"`{param}` must be a file, a data: URL, base64, or an object with `image_url`.", param=param
    )
