"""Pictures that came as text: data: URLs, or base64 alone, as forgiving as clients are careless."""

from __future__ import annotations

import base64
import binascii
import re

from errors import InvalidImage

_DATA_URL = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_SPACE = b" \t\r\n\f\v"
_FROM_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


def decode_text(text: str, *, param: str = "image") -> bytes:
    """The bytes in `data:image/png;base64,…`, in a data: URL without base64, or in base64 alone. Raises InvalidImage."""
    head = _DATA_URL.match(text, 0, 1000)
    content = text[head.end() :] if head else text
    try:
        plain = head is not None and head[1].rpartition(";")[2].strip().lower() != "base64"
        return _unescaped(content) if plain else _from_base64(content)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage(
            "Invalid image: the text is neither a data: URL nor base64.", param=param
        ) from error


def _from_base64(text: str) -> bytes:
    # Line ends inside, the URL's alphabet, no padding: all of that is about.
    escaped = _unescaped(text) if "%" in text else text.encode("ascii")
    letters = escaped.translate(_FROM_URL_ALPHABET, _SPACE).rstrip(b"=")
    return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)


def _unescaped(text: str) -> bytes:
    """Without its %41 and the like, by way of quoted-printable: urllib takes two gigabytes for a text of 30 MB."""
    return binascii.a2b_qp(text.encode().replace(b"=", b"=3D").replace(b"%", b"="))
