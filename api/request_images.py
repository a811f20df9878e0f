"""Extracts the images, the mask and the markup of an edit from the request, in all the forms that clients use: single,
repeated or numbered files, texts with data URLs or base64, and JSON objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.field_values import parse_json_field
from api.stored_names import stored_name
from api.unsupported_fields import ONE_IMAGE, REFUSED_FIELDS, not_supported
from compiler import MAX_IMAGES
from compiler.values import Note, Task
from errors import FieldNotSupported, ImageRequired, ImageUrlRefused, InvalidImage, InvalidValue
from generation import Pictures
from pictures import InputImage, decode_text, errors_of_image, has_transparency, read_image

MAX_PIXELS = 1 << 27
"""Of all images of a request together"""
MAX_FETCHED_BYTES = 128_000_000
"""Of all images of a request that are fetched from URLs; those that are sent are limited with the body"""
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
_MARKUP_NAMES = re.compile(r"markup(?:\[\d{0,4}\])?")
"""OpenAI's name for a transparent picture that is laid over the first image"""
_ALPHA_IS_MASK_MODEL = "dall-e-2"
"""The only model whose clients expect the transparent area of an image to be its mask if the request has no mask"""

_FORMS = "a file in the field `image`, or in JSON `image` with a data: URL or base64"

FetchImage = Callable[[str, str], bytes]
"""(URL, param) -> the bytes at that URL; raises ImageUrlRefused or ImageUrlFailed"""


@dataclass(frozen=True)
class RequestImages:
    """The images, the mask and the markup of a request, and notes on what is ignored or adjusted."""

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
    names = [
        name
        for name in fields
        if name not in inputs and (is_image_name(name) or is_mask_name(name) or is_markup_name(name))
    ]
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


def is_markup_name(name: str) -> bool:
    """Whether a field of this name is laid over the first image."""
    return _MARKUP_NAMES.fullmatch(name) is not None


def extract_images(
    fields: dict[str, Any],
    files: tuple[tuple[str, bytes], ...],
    fetch: FetchImage,
    *,
    path_task: Task = "edit",
    check_count: Callable[[int], None] = lambda number: None,
) -> RequestImages:
    """Read the images from `fields` and `files`, and remove them from `fields` (in place). `path_task`: the task that
    the path stands for. `check_count` raises an error for a number of images that the model does not take, before any is
    fetched or decoded.

    Raises ImageRequired, InvalidImage, InvalidValue for more than 16 images or for a markup with a mask, FieldNotSupported
    for a mask or a markup in a variation and for a file in any other field, and what `check_count` and `fetch` raise.
    """
    image_names = _IMAGE_NAMES if path_task == "generate" else _EDIT_IMAGE_NAMES
    images = _extract(image_names, "image", fields, files)
    masks = _extract(_MASK_NAMES, "mask", fields, files)
    markups = _extract(_MARKUP_NAMES, "markup", fields, files)
    for name, data in files:
        if data and not (image_names.fullmatch(name) or is_mask_name(name) or is_markup_name(name)):
            raise not_supported(name, REFUSED_FIELDS.get(name, ONE_IMAGE))
    if not images:
        found = [name for name, values in (("mask", masks), ("markup", markups)) if values]
        reason = f"The request has a `{found[0]}` and no image. " if found else ""
        raise ImageRequired(f"{reason}An image is required: send {_FORMS}.", param="image")
    if len(images) > MAX_IMAGES:
        raise InvalidValue(
            f"The request has {len(images)} images; at most {MAX_IMAGES} are allowed.", param="image"
        )
    check_count(len(images))
    _check_layers(masks, markups, path_task)
    notes: list[Note] = []
    if len(masks) > 1:
        notes.append(Note("mask", f"{len(masks)} masks", None, "an image has one mask; the first is used"))
    fetch = _Fetch(fetch)
    image, *more = _read_all(images, fetch)
    mask = read_image(_bytes(masks[0], "mask", fetch), param="mask") if masks else None
    markup = read_image(_bytes(markups[0], "markup", fetch), param="markup") if markups else None
    _check_pixels((image, *more))
    if (
        mask is None
        and markup is None
        and path_task != "vary"
        and str(fields.get("model", "")).strip().lower() == _ALPHA_IS_MASK_MODEL
        and has_transparency(image)
    ):
        mask = read_image(image.data, param="mask")
    if mask is not None and mask.size not in (image.size, image.size[::-1]):
        notes.append(Note("mask", _size(mask), _size(image), "a mask is scaled to the size of its image"))
    return RequestImages(Pictures(image, mask, tuple(more), markup), tuple(notes))


def extract_input_images(
    names: Collection[str],
    fields: dict[str, Any],
    files: tuple[tuple[str, bytes], ...],
    fetch: FetchImage,
) -> tuple[dict[str, InputImage], tuple[tuple[str, bytes], ...]]:
    """Read the pictures of the workflow's inputs `names`, and remove them from `fields` (in place); and the other files.

    Raises InvalidImage, InvalidValue for several pictures of one input, and what `fetch` raises.
    """
    found: dict[str, InputImage] = {}
    for name in names:
        values = [data for field, data in files if field in (name, f"{name}[]") and data]
        values += _as_list(fields.pop(name, None), name)
        if len(values) > 1:
            raise InvalidValue(f"`{name}` has {len(values)} images; send one.", param=name)
        for value in values:
            found[name] = read_image(_bytes(value, name, fetch), param=name)
    return found, tuple(file for file in files if file[0].removesuffix("[]") not in names)


def _read_all(values: list[Any], fetch: FetchImage) -> Iterator[InputImage]:
    for number, value in enumerate(values, 1):
        with errors_of_image(number, len(values)):
            yield read_image(_bytes(value, "image", fetch), param="image")


def _check_layers(masks: list[Any], markups: list[Any], path_task: Task) -> None:
    for name, values in (("mask", masks), ("markup", markups)):
        if values and path_task == "vary":
            raise FieldNotSupported(
                f"A variation redraws the whole image and has no `{name}`. Send it to /v1/images/edits with a prompt.",
                param=name,
            )
    if len(markups) > 1:
        raise InvalidValue(
            f"The request has {len(markups)} markups; an image has one. Send them as one picture.",
            param="markup",
        )


def _check_pixels(images: tuple[InputImage, ...]) -> None:
    pixels = sum(image.width * image.height for image in images)
    if pixels > MAX_PIXELS:
        raise InvalidImage(
            f"Invalid image: the {len(images)} images have {pixels} pixels together; the maximum is {MAX_PIXELS}. Send "
            "smaller ones.",
            param="image",
        )


class _Fetch:
    """A FetchImage that limits what all images of a request have together."""

    def __init__(self, fetch: FetchImage) -> None:
        self._fetch = fetch
        self._bytes = 0

    def __call__(self, url: str, param: str) -> bytes:
        data = self._fetch(url, param)
        self._bytes += len(data)
        if self._bytes > MAX_FETCHED_BYTES:
            raise InvalidImage(
                f"Invalid image: the images at the URLs have more than {MAX_FETCHED_BYTES} bytes together. "
                "Send smaller ones.",
                param=param,
            )
        return data


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
    if re.match(r"\s*https?:", text, re.IGNORECASE) or stored_name(text) is not None:
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
