"""Extends a picture beyond its edges: the frame around it is to be drawn, and the picture itself is kept."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFilter

from pictures.canvas import Placement
from pictures.decoding import InputImage, match_orientation, pixels_of
from pictures.mask import masked_area, rim_of
from pictures.opening import open_image
from pictures.pixels import Pair, has_transparent_pixels, on_white, to_png

_GREY = (127, 127, 127)
"""What fill models expect where nothing is"""
_FADE_RIMS = 8
"""The repeated edges fade to grey over so many widths of the rim in which the drawing fades in."""


@dataclass(frozen=True)
class Sides:
    """How many pixels a picture is extended by on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def around(self, size: Pair) -> Pair:
        """The size of the extended picture."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom


def extend(image: InputImage, sides: Sides, mask: InputImage | None = None) -> tuple[InputImage, InputImage]:
    """`image` with a frame of `sides` around it, and the mask that has the frame drawn, and what `mask` has drawn.

    Next to the picture, the frame has the colours of its edges, because the drawing fades in there; further out it is grey.
    Raises InvalidImage.
    """
    with pixels_of(image) as pixels:
        picture = on_white(pixels).convert("RGB")
    inside = Image.new("L", image.size)
    if mask is not None:
        matched = match_orientation(mask, image)
        with pixels_of(matched) as pixels:
            placement = Placement(image.size, image.size)
            inside = placement.place(masked_area(pixels), Image.Resampling.BILINEAR)
    area = Image.new("L", sides.around(image.size), 255)
    area.paste(inside, (sides.left, sides.top))
    param = "mask" if mask is not None else image.param
    return _as_input(_framed(picture, sides), image.param), _as_input(area, param)


def transparent_frame(image: InputImage) -> Sides | None:
    """The frame around the opaque part of `image`, if that part is one rectangle and all else is wholly transparent: what
    clients of OpenAI's send in order to extend a picture. Raises InvalidImage."""
    with open_image(image.data, image.param) as header:
        if not header.has_transparency_data:
            return None
    with pixels_of(image) as pixels:
        if not has_transparent_pixels(pixels):
            return None
        alpha = pixels.getchannel("A")
        box = alpha.getbbox()
        if box is None or alpha.crop(box).getextrema() != (255, 255):
            return None
    left, top, right, bottom = box
    return Sides(left, top, image.width - right, image.height - bottom)


def without_frame(image: InputImage, sides: Sides) -> InputImage:
    """The part of `image` inside the frame. Raises InvalidImage."""
    box = (sides.left, sides.top, image.width - sides.right, image.height - sides.bottom)
    with pixels_of(image) as pixels:
        return _as_input(pixels.crop(box).convert("RGB"), image.param)


def masks_frame(mask: InputImage, image: InputImage, sides: Sides) -> bool:
    """Whether all of the frame of `image` is to be drawn. Raises InvalidImage."""
    matched = match_orientation(mask, image)
    with pixels_of(matched) as pixels:
        area = Placement(image.size, image.size).place(masked_area(pixels), Image.Resampling.BILINEAR)
    area = area.copy()
    area.paste(255, (sides.left, sides.top, image.width - sides.right, image.height - sides.bottom))
    return area.getextrema() == (255, 255)


def _as_input(pixels: Image.Image, param: str) -> InputImage:
    return InputImage(to_png(pixels), pixels.width, pixels.height, param)


def _framed(picture: Image.Image, sides: Sides) -> Image.Image:
    size, place = sides.around(picture.size), (sides.left, sides.top)
    near = Image.new("L", size)
    near.paste(255, (*place, sides.left + picture.width, sides.top + picture.height))
    # At the edge of the picture half of the pixels that the blur averages are white.
    blurred = near.filter(ImageFilter.BoxBlur(_FADE_RIMS * rim_of(size)))
    framed = Image.composite(
        _with_edges(picture, sides),
        Image.new("RGB", size, _GREY),
        blurred.point([min(255, 2 * level) for level in range(256)]),
    )
    framed.paste(picture, place)
    return framed


def _with_edges(picture: Image.Image, sides: Sides) -> Image.Image:
    """The picture with its outermost rows and columns repeated in the frame."""
    (width, height), (full_width, full_height) = picture.size, sides.around(picture.size)
    wide = Image.new("RGB", (full_width, height))
    wide.paste(picture.crop((0, 0, 1, height)).resize((full_width, height)))
    wide.paste(
        picture.crop((width - 1, 0, width, height)).resize((full_width - sides.left, height)), (sides.left, 0)
    )
    wide.paste(picture, (sides.left, 0))
    framed = Image.new("RGB", (full_width, full_height))
    framed.paste(wide.crop((0, 0, full_width, 1)).resize((full_width, full_height)))
    last_row = wide.crop((0, height - 1, full_width, height))
    framed.paste(last_row.resize((full_width, full_height - sides.top)), (0, sides.top))
    framed.paste(wide, (0, sides.top))
    return framed
