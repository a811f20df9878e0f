"""The pictures that the benchmark draws on a real engine."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageStat

from bench.photo import MARGIN, photo, photo_jpeg


@pytest.mark.parametrize("size", [64, 512, 1024])
def test_a_photo_compresses_as_photographs_do(size: int) -> None:
    picture = Image.open(io.BytesIO(photo_jpeg(size)))
    assert picture.size == (size + MARGIN, size + MARGIN)
    part = picture.crop((0, 0, size, size))
    encoded = io.BytesIO()
    part.save(encoded, "PNG", compress_level=4)
    bytes_per_pixel = len(encoded.getvalue()) / size**2
    assert 1.0 < bytes_per_pixel < 2.0  # a flat picture has less than 0.1, noise has 3
    assert min(ImageStat.Stat(part).stddev) > 20


def test_a_photo_is_the_same_each_time_and_another_for_another_size() -> None:
    assert photo(96).tobytes() == photo(96).tobytes()
    assert photo(96).tobytes() != photo(97).crop((0, 0, 96, 96)).tobytes()
