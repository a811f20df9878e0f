"""A client's mask -> what the graph needs to draw inside of it and to keep every pixel outside."""

from __future__ import annotations

from PIL import Image, ImageChops, ImageFilter, ImageOps

from errors import InvalidImage
from pictures.canvas import Pair, Placement, png_of
from pictures.decoding import InputImage, darkest, pixels_of, turned_like

_RIM = 128
"""The rim within which a drawing fades in is the picture's shorter side divided by this, in pixels."""


def mask_onto(mask: InputImage, image: InputImage, size: Pair, canvas: Pair) -> bytes:
    """A PNG of `canvas` pixels, with the geometry that `draw_onto` gives `image`.

    Red: where the model may draw. White on the mask, fading out beside it, so that what is drawn there fits its
    surroundings. Green: where the image's own pixels are kept. White outside of the mask and on its very edge, black from a
    rim's width inside: nothing outside of the client's mask ever changes. Blue is empty.

    The mask is what is transparent in it, if anything is, else what is white. Raises InvalidImage, also for a mask that
    leaves nothing to draw.
    """
    mask = turned_like(mask, image)
    with pixels_of(mask) as pixels:
        open_ = Placement(image.size, size).place(_open_part(pixels), Image.Resampling.BILINEAR)
    if not open_.getbbox():
        raise InvalidImage(
            "Invalid image: the mask leaves nothing to draw. What is transparent in it is drawn anew; in a mask without "
            "transparency, what is white.",
            param=mask.param,
        )
    rim = max(1, round(min(size) / _RIM))
    channels = [
        _padded(_drawn(open_, rim), canvas),
        _padded(_kept(open_, rim), canvas),
        Image.new("L", canvas),
    ]
    return png_of(Image.merge("RGB", channels))


def _open_part(mask: Image.Image) -> Image.Image:
    """One channel, white where is to be drawn."""
    if "A" in mask.getbands():
        alpha = mask.getchannel("A")
        if darkest(alpha) < 255:
            return ImageOps.invert(alpha)
    return mask.convert("L")


def _drawn(open_: Image.Image, rim: int) -> Image.Image:
    # A quarter of what a blur sees is white at the mask's corners, half along its edges; of a stroke, less.
    blurred = _blurred(open_, max(8, 4 * rim)).point([min(255, 4 * level) for level in range(256)])
    return ImageChops.lighter(blurred, open_)


def _kept(open_: Image.Image, rim: int) -> Image.Image:
    faded = _blurred(open_, rim).point([max(0, 2 * level - 255) for level in range(256)])
    faded = ImageChops.darker(faded, open_)
    # Strokes so thin that nothing near them would be left do not fade; what is fainter than a stroke is dirt.
    strokes = open_.point([level if level >= 128 else 0 for level in range(256)])
    lost = _blurred(faded.point([255 * (level > 0) for level in range(256)]), rim).point(
        [255 * (level == 0) for level in range(256)]
    )
    return ImageOps.invert(ImageChops.lighter(faded, ImageChops.darker(lost, strokes)))


def _blurred(mask: Image.Image, radius: int) -> Image.Image:
    return mask.filter(ImageFilter.BoxBlur(radius))


def _padded(channel: Image.Image, canvas: Pair) -> Image.Image:
    """After the blur, so that nothing fades at the picture's own edge."""
    if channel.size == canvas:
        return channel
    padded = Image.new("L", canvas)
    padded.paste(channel)
    return padded
