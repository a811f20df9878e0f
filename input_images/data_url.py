"""Pictures that came as text: data: URLs, or base64 alone, as forgiving as clients are careless."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from errors import InvalidImage

_DATA_URL = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)


def decode_text(text: str, *, param: str = "image") -> bytes:
    """The bytes in `data:image/png;base64,…`, or in base64 alone. Raises InvalidImage."""
    head = _DATA_URL.match(text, 0, 1000)
    if head is None:
        return _base64(text, param)
    rest = text[head.end() :]
    if head[1].lower().endswith(";base64"):
        return _base64(rest, param)
    return unquote_to_bytes(rest)


def _base64(text: str, param: str) -> bytes:
    # Line ends inside, the URL's alphabet, no padding: all of that is about.
    letters = "".join(text.split()) if any(map(str.isspace, text)) else text
    if "%" in letters:
        letters = unquote_to_bytes(letters).decode("latin-1")
    letters = letters.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as fault:
        raise InvalidImage(
            "Invalid image: the text is neither a data: URL nor base64.", param=param
        ) from fault
