"""Recognises the name of a stored image in what a client sends."""

from __future__ import annotations

import re

from api.paths import STORED_IMAGES
from image_store import is_image

_REFERENCE = re.compile(rf"\s*(?:https?://[^\s?#]*|/[^\s?#:]*)?{STORED_IMAGES}([^/\s?#]+)\s*", re.IGNORECASE)


def stored_name(text: str) -> str | None:
    """The name in a reference to a stored image; None if `text` is something else."""
    match = _REFERENCE.fullmatch(text) if len(text) < 4096 else None
    name = match[1] if match is not None else text.strip() if len(text) < 100 else ""
    return name if is_image(name) else None
