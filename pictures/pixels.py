"""Small operations on decoded pictures that several modules of this package need."""

from __future__ import annotations

import io

from PIL import Image

Pair = tuple[int, int]
"""width and height in pixels"""


def to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow would clip at 255 instead; other pictures are returned unchanged."""
    if not image.mode.startswith("I"):
        return image
    return image.point(lambda level: level * (1 / 257) + 0.5).convert("L")


def on_white(image: Image.Image) -> Image.Image:
    """`image` on a white background; without an alpha channel it is returned unchanged."""
    if "A" not in image.getbands():
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def has_transparent_pixels(image: Image.Image) -> bool:
    """Whether the alpha channel, if there is one, is less than 255 anywhere."""
    return "A" in image.getbands() and image.getchannel("A").getextrema() != (255, 255)


def pad(image: Image.Image, canvas: Pair) -> Image.Image:
    """`image` in the top left corner of a black canvas."""
    if image.size == canvas:
        return image
    padded = Image.new(image.mode, canvas)
    padded.paste(image)
    return padded


def pad_with_edges(image: Image.Image, canvas: Pair) -> Image.Image:
    """`image` in the top left corner of a canvas, with its last column and its last row repeated."""
    padded = pad(image, canvas)
    width, height = image.size
    if canvas[0] > width:
        edge = image.crop((width - 1, 0, width, height)).resize((canvas[0] - width, height))
        padded.paste(edge, (width, 0))
    if canvas[1] > height:
        edge = padded.crop((0, height - 1, canvas[0], height)).resize((canvas[0], canvas[1] - height))
        padded.paste(edge, (0, height))
    return padded


def to_png(image: Image.Image) -> bytes:
    """A PNG for the engine. It is sent over loopback and read once, so it is encoded for speed and not for size."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
