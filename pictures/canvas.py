"""Fits a client's picture to the canvas that a graph draws on."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from errors import InvalidImage
from pictures.decoding import InputImage, pixels_of
from pictures.pixels import Pair, has_transparent_pixels, on_white, pad_with_edges, to_png

MAX_PNG_BYTES = 100 * 1024 * 1024 - 4096
"""What ComfyUI takes in one upload, without the form around the picture"""


@dataclass(frozen=True)
class Placement:
    """How a picture of `source_size` becomes one of `size`: it is scaled to cover `size`, and its centre is cropped."""

    source_size: Pair
    size: Pair

    @property
    def scale(self) -> float:
        return max(self.size[0] / self.source_size[0], self.size[1] / self.source_size[1])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the picture that is kept: left, top, right and bottom in its own pixels."""
        source_width, source_height = self.source_size
        width, height = self.size[0] / self.scale, self.size[1] / self.scale
        left, top = (source_width - width) / 2, (source_height - height) / 2
        return (
            max(0.0, left),
            max(0.0, top),
            min(source_width, left + width),
            min(source_height, top + height),
        )

    def place(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        """`image` at `size`. It must show the whole picture, at any resolution."""
        if image.size == self.size and self.source_size == self.size:
            return image
        across, down = image.width / self.source_size[0], image.height / self.source_size[1]
        left, top, right, bottom = self.box
        box = (left * across, top * down, min(image.width, right * across), min(image.height, bottom * down))
        return image.resize(self.size, method, box=box, reducing_gap=3.0)


def fit_image(image: InputImage, size: Pair, canvas: Pair, markup: InputImage | None = None) -> bytes:
    """A PNG, 8-bit RGB, of `canvas` pixels: the picture at `size`, with its right and bottom edges repeated beyond it.

    A picture that has `size` keeps its pixels; any other is scaled to cover `size` and cropped. Transparent pixels are
    blended with white. `markup` is laid over it, and scaled and cropped like it. Raises InvalidImage, also for a markup
    without transparent pixels, which would hide the picture.
    """
    placement = Placement(image.size, size)
    # The whole picture at the scale of the result: decoding it any smaller would lose detail.
    scaled_width, scaled_height = (max(1, round(side * placement.scale)) for side in image.size)
    with pixels_of(image, at_least=(scaled_width, scaled_height)) as pixels:
        placed = placement.place(on_white(pixels), Image.Resampling.LANCZOS).convert("RGB")
    if markup is not None:  # not inside the block above: each may wait for the other's end
        placed = _with_markup(placed, markup, placement)
    # Edges are repeated, because the model would draw a border if it saw one.
    return to_png(pad_with_edges(placed, canvas))


def _with_markup(picture: Image.Image, markup: InputImage, placement: Placement) -> Image.Image:
    """`picture`, which is placed already, with the markup over it."""
    with pixels_of(markup) as pixels:
        if not has_transparent_pixels(pixels):
            raise InvalidImage(
                "Invalid image: the markup has no transparent pixels and would hide the whole image. Send only what is "
                "drawn over it, on a transparent background.",
                param=markup.param,
            )
        layer = placement.place(pixels, Image.Resampling.BICUBIC)
    marked = picture.copy()
    marked.paste(layer, mask=layer)
    return marked


def convert_image(image: InputImage, max_bytes: int = MAX_PNG_BYTES) -> bytes:
    """A PNG, 8-bit RGB, of the whole picture in its own size. Transparent pixels are blended with white. Raises
    InvalidImage, also if the PNG has more than `max_bytes`, which the engine takes."""
    with pixels_of(image) as pixels:
        png = to_png(on_white(pixels).convert("RGB"))
    if len(png) > max_bytes:
        raise InvalidImage(
            f"Invalid image: its {image.width}x{image.height} pixels are a PNG of {len(png)} bytes; ComfyUI takes at most "
            f"{max_bytes}. Send a smaller one.",
            param=image.param,
        )
    return png
