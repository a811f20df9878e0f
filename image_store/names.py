"""The file names of the image store. The store ignores files with any other name."""

from __future__ import annotations

import re
from typing import Literal
from uuid import uuid4

Extension = Literal["png", "jpeg", "webp"]

_SUFFIX: dict[Extension, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
_UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_IMAGE = re.compile(rf"({_UUID4})(\.png|\.jpg|\.webp)")
_TEMPORARY = re.compile(rf"\.{_UUID4}\.part")


def image_name(extension: Extension) -> str:
    """A new name that cannot be guessed, such as `9b2e….png`."""
    return f"{uuid4()}{_SUFFIX[extension]}"


def temporary_name() -> str:
    """A new name for a file that is still being written. It begins with a dot, and `ImageStore.open` never opens it."""
    return f".{uuid4()}.part"


def is_image(name: str) -> bool:
    """Whether `name` is exactly `<uuid4>.<known extension>`, in lower case."""
    return _IMAGE.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` could have returned `name`."""
    return _TEMPORARY.fullmatch(name) is not None


def mime_and_etag(name: str) -> tuple[str, str] | None:
    """The MIME type and the ETag (without quotes) of an image of this name, or None if it is not an image name.

    The ETag is the uuid, because the file of a name never changes.
    """
    match = _IMAGE.fullmatch(name)
    return (_MIME[match[2]], match[1]) if match else None
