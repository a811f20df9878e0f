"""Converts a client's mask to what the graph needs: where to draw, and where to keep every pixel of the image."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageFilter, ImageOps

from errors import InvalidImage
from pictures.canvas import Placement
from pictures.decoding import InputImage, match_orientation, pixels_of
from pictures.pixels import Pair, has_transparent_pixels, pad, to_png

_RIM_DIVISOR = 128
"""The drawing fades in over a rim whose width in pixels is the picture's shorter side divided by this."""


def fit_mask(mask: InputImage, image: InputImage, size: Pair, canvas: Pair) -> bytes:
    """A PNG of `canvas` pixels, with the geometry that `fit_image` gives `image`.

    Red: where the model may draw. White in the masked area, fading out around it, so that the drawing matches its
    surroundings. Green: where the image's own pixels are kept. White outside the masked area and at its edge, black
    from a rim's width inside: nothing outside the client's mask ever changes. Blue is empty.

    The masked area is the transparent part of `mask`; if nothing is transparent, it is the white part. Raises
    InvalidImage, also if the masked area is empty.
    """
    mask = match_orientation(mask, image)
    with pixels_of(mask) as pixels:
        area = Placement(image.size, size).place(masked_area(pixels), Image.Resampling.BILINEAR)
    if not area.getbbox():
        raise InvalidImage(
            "Invalid image: the mask is empty. The transparent part of a mask is redrawn; in a mask without "
            "transparency, the white part.",
            param=mask.param,
        )
    rim = rim_of(size)
    # Padded after the blur, so that nothing fades at the edge of the picture.
    channels = [
        pad(_draw_channel(area, rim), canvas),
        pad(_keep_channel(area, rim), canvas),
        Image.new("L", canvas),
    ]
    return to_png(Image.merge("RGB", channels))


def rim_of(size: Pair) -> int:
    """The width in pixels of the rim in which the drawing fades in, for a picture of `size`."""
    return max(1, round(min(size) / _RIM_DIVISOR))


def masked_area(mask: Image.Image) -> Image.Image:
    """One channel, white where to draw."""
    return ImageOps.invert(mask.getchannel("A")) if has_transparent_pixels(mask) else mask.convert("L")


def _draw_channel(area: Image.Image, rim: int) -> Image.Image:
    # Of the pixels that the blur averages, a quarter are white at the area's corners and half along its edges; fewer
    # along a stroke. Hence the factor 4.
    blurred = _blur(area, max(8, 4 * rim)).point([min(255, 4 * level) for level in range(256)])
    return ImageChops.lighter(blurred, area)


def _keep_channel(area: Image.Image, rim: int) -> Image.Image:
    faded = _blur(area, rim).point([max(0, 2 * level - 255) for level in range(256)])
    faded = ImageChops.darker(faded, area)
    # Strokes so thin that they would vanish are not faded. Levels below 128 are noise, not strokes.
    strokes = area.point([level if level >= 128 else 0 for level in range(256)])
    vanished = _blur(faded.point([255 * (level > 0) for level in range(256)]), rim).point(
        [255 * (level == 0) for level in range(256)]
    )
    return ImageOps.invert(ImageChops.lighter(faded, ImageChops.darker(vanished, strokes)))


def _blur(channel: Image.Image, radius: int) -> Image.Image:
    return channel.filter(ImageFilter.BoxBlur(radius))
