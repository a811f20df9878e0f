"""Reads pictures that clients send, as files, texts or URLs, without trusting them; fits them and their masks to the
canvas that a graph draws on; encodes drawn pictures. The only package besides the sketch engine that uses Pillow.

`pictures.fetch` is imported by itself, where it is used: urllib3 takes 1.5 MB in each worker."""

from pictures.canvas import convert_image, fit_image
from pictures.data_url import decode_text
from pictures.decoding import InputImage, errors_of_image, has_transparency, read_image
from pictures.encoding import (
    BrokenPicture,
    as_png,
    crop,
    encode,
    is_transparent,
    opaque,
    png_size,
    size_in_canvas,
    with_texts,
)
from pictures.heads import PictureHead, read_head
from pictures.mask import fit_mask
from pictures.outpaint import Sides, extend, masks_frame, transparent_frame, without_frame
from pictures.thumbnails import thumbnail

__all__ = [
    "BrokenPicture",
    "InputImage",
    "PictureHead",
    "Sides",
    "as_png",
    "convert_image",
    "crop",
    "decode_text",
    "encode",
    "errors_of_image",
    "extend",
    "fit_image",
    "fit_mask",
    "has_transparency",
    "is_transparent",
    "masks_frame",
    "opaque",
    "png_size",
    "read_head",
    "read_image",
    "size_in_canvas",
    "thumbnail",
    "transparent_frame",
    "with_texts",
    "without_frame",
]
