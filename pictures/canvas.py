"""A picture brought to the canvas that a graph draws on."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from pictures.decoding import InputImage, pixels_of

Pair = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """How a picture of `own` size comes to `size`: scaled to cover it, and its middle cut out."""

    own: Pair
    size: Pair

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the picture that is seen, in its own pixels."""
        scale = max(self.size[0] / self.own[0], self.size[1] / self.own[1])
        wide, high = self.size[0] / scale, self.size[1] / scale
        left, top = (self.own[0] - wide) / 2, (self.own[1] - high) / 2
        return max(0.0, left), max(0.0, top), min(self.own[0], left + wide), min(self.own[1], top + high)

    def place(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        """`image`, which shows the whole of a picture of `own` size at any resolution, at `size`."""
        if image.size == self.size and self.own == self.size:
            return image
        across, down = image.width / self.own[0], image.height / self.own[1]
        left, top, right, bottom = self.box
        box = (left * across, top * down, min(image.width, right * across), min(image.height, bottom * down))
        return image.resize(self.size, method, box=box, reducing_gap=3.0)


def draw_onto(image: InputImage, size: Pair, canvas: Pair) -> bytes:
    """A PNG, 8-bit RGB, of `canvas` pixels: the picture at `size`, its right and bottom edges repeated from there on.

    Pixels of a picture that has `size` already are untouched; any other is scaled to cover it and cut. What is
    transparent is laid on white. Raises InvalidImage.
    """
    placing = Placement(image.size, size)
    smallest = _needed(placing)
    with pixels_of(image, at_least=smallest) as pixels:
        placed = placing.place(_on_white(pixels), Image.Resampling.LANCZOS)
        return png_of(_padded(placed.convert("RGB"), canvas))


def _needed(placing: Placement) -> Pair:
    """The size below which decoding would lose what scaling needs: the whole picture at the scale of the result."""
    scale = max(placing.size[0] / placing.own[0], placing.size[1] / placing.own[1])
    return max(1, round(placing.own[0] * scale)), max(1, round(placing.own[1] * scale))


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands():
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _padded(image: Image.Image, canvas: Pair) -> Image.Image:
    """The model sees no border where there is none: it would draw one."""
    if image.size == canvas:
        return image
    width, height = image.size
    padded = Image.new(image.mode, canvas)
    padded.paste(image)
    if canvas[0] > width:
        edge = image.crop((width - 1, 0, width, height)).resize((canvas[0] - width, height))
        padded.paste(edge, (width, 0))
    if canvas[1] > height:
        edge = padded.crop((0, height - 1, canvas[0], height)).resize((canvas[0], canvas[1] - height))
        padded.paste(edge, (0, height))
    return padded


def png_of(image: Image.Image) -> bytes:
    """It goes over loopback and is read once: speed counts, not size."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
