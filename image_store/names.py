"""What the files of the image store are called. A name that is not made here is nobody's business of the store."""

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
    """A new name that nobody can guess, as `9b2e….png`."""
    return f"{uuid4()}{_SUFFIX[extension]}"


def temporary_name() -> str:
    """A new name for a file that is still being written; it begins with a dot and can never be opened."""
    return f".{uuid4()}.part"


def is_image(name: str) -> bool:
    """Whether this is exactly `<uuid4>.<known extension>`, in lower case."""
    return _IMAGE.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` could have made this."""
    return _TEMPORARY.fullmatch(name) is not None


def mime_and_etag(name: str) -> tuple[str, str] | None:
    """The MIME type and the entity tag (without quotes) of an image of this name, or None if no image can have it.

    The tag is the uuid: what lies under a name never changes.
    """
    match = _IMAGE.fullmatch(name)
    return (_MIME[match[2]], match[1]) if match else None
