"""Answers that are kept and sent again: their JSON, in which the names of stored images take the place of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.paths import STORED_IMAGES
from api.responses import Links
from api.streamed_json import Base64
from errors import EaselError, ImageNotFound
from generation import Image, OutputOptions
from image_store import ImageStore


def stored_answer(
    document: Mapping[str, Any], images: Sequence[Image], output: OutputOptions, store: ImageStore
) -> dict[str, Any]:
    """`document`, as `images_response` returns it, as JSON. Stores the images that are not stored yet. Raises StoreFull and
    the other errors of `ImageStore.keep`."""
    entries = [
        {"form": _form_of(entry), "image": _name(image, output, store)}
        for entry, image in zip(document["data"], images, strict=True)
    ]
    return {**document, "data": entries}


def _name(image: Image, output: OutputOptions, store: ImageStore) -> str:
    kept = image.kept or (image.in_gallery.result() if image.in_gallery is not None else None)
    return (kept or store.keep(image.data, output.format, image.facts)).name


def _form_of(entry: Mapping[str, Any]) -> str:
    if "b64_json" in entry:
        return "b64_json"
    return "data_url" if isinstance(entry["url"], Base64) else "url"


def answer_from(stored: Mapping[str, Any], store: ImageStore, links: Links) -> dict[str, Any]:
    """The document again, for a client of `links`. Raises ImageNotFound if one of its pictures is not stored any more, and
    StoreUnwritable."""
    return {**stored, "data": [_entry(entry, store, links) for entry in stored["data"]]}


def answer_or_none(stored: Mapping[str, Any], store: ImageStore, links: Links) -> dict[str, Any] | None:
    """The document; None if one of its pictures is not stored any more, or if `stored` was damaged."""
    try:
        return answer_from(stored, store, links)
    except (ImageNotFound, KeyError, TypeError, AttributeError):
        return None


def _entry(entry: Mapping[str, Any], store: ImageStore, links: Links) -> dict[str, Any]:
    image = store.open(entry["image"])
    match entry["form"]:
        case "b64_json":
            return {"b64_json": Base64(image.data)}
        case "data_url":
            return {"url": Base64(image.data, f"data:{image.mime};base64,")}
        case _:
            return {"url": f"{links.prefix}{STORED_IMAGES}{image.name}"}


def try_to_store(
    document: Mapping[str, Any], images: Sequence[Image], output: OutputOptions, store: ImageStore
) -> dict[str, Any] | None:
    """As `stored_answer`; None if the pictures cannot be stored."""
    try:
        return stored_answer(document, images, output, store)
    except EaselError:
        return None
