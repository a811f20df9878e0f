"""What the head of a stored picture's file says, without reading its pixels."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from errors import InvalidImage
from pictures import PictureHead, encode, read_head, with_texts

TEXT = "a lighthouse, 灯台\nSteps: 4, Seed: 5, Size: 700x500, Model: m"
SIZE = (700, 500)


class CountedFile(io.BytesIO):
    """Counts what is read through a buffer, as from a disk."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.was_read = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.was_read += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.was_read += len(data)
        return data


def noise(mode: str = "RGB") -> bytes:
    target = io.BytesIO()
    Image.effect_noise(SIZE, 80).convert(mode).save(target, "PNG", compress_level=1)
    return target.getvalue()


def plain_webp(**options: Any) -> bytes:
    target = io.BytesIO()
    Image.effect_noise(SIZE, 80).convert("RGB").save(target, "WEBP", **options)
    return target.getvalue()


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        pytest.param(lambda: with_texts(noise(), {"parameters": TEXT}), TEXT, id="png"),
        pytest.param(lambda: with_texts(noise("RGBA"), {"parameters": "short"}), "short", id="png latin-1"),
        pytest.param(noise, None, id="png without"),
        pytest.param(lambda: encode(noise(), "jpeg", 95, TEXT), TEXT, id="jpeg"),
        pytest.param(lambda: encode(noise(), "jpeg", 95, None), None, id="jpeg without"),
        pytest.param(lambda: encode(noise(), "webp", 95, TEXT), TEXT, id="webp"),
        pytest.param(lambda: encode(noise("RGBA"), "webp", 95, TEXT), TEXT, id="webp with alpha"),
        pytest.param(lambda: plain_webp(quality=95), None, id="webp without"),
        pytest.param(lambda: plain_webp(lossless=True), None, id="webp lossless"),
    ],
)
def test_the_head_is_read_without_the_pixels(picture: Any, text: str | None) -> None:
    data = picture()
    file = CountedFile(data)
    head = read_head(io.BufferedReader(file, 4096))  # type: ignore[type-var]
    assert (head.width, head.height, head.parameters) == (*SIZE, text)
    assert len(data) > 60_000
    assert file.was_read < 20_000


@pytest.mark.parametrize(
    "data", [b"", b"x", b"RIFF\4\0\0\0WEBP", b"RIFF\4\0\0\0WEBPVP8X\n\0\0\0abc", b"\x89PNG\r\n"]
)
def test_a_file_that_is_no_picture_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        read_head(io.BytesIO(data))


def test_a_webp_that_claims_to_be_huge_is_invalid() -> None:
    data = bytearray(encode(noise(), "webp", 95, TEXT))
    at = data.index(b"VP8X") + 8
    data[at + 4 : at + 10] = b"\xff" * 6
    with pytest.raises(InvalidImage, match="pixels"):
        read_head(io.BytesIO(bytes(data)))


def test_exif_of_a_webp_that_is_damaged_is_left_out() -> None:
    data = bytearray(encode(noise(), "webp", 95, TEXT))
    at = data.index(b"EXIF") + 8
    for cut in (data[: at + 20], data[:at] + b"\xff" * (len(data) - at)):
        assert read_head(io.BytesIO(bytes(cut))) == PictureHead(*SIZE, None)
