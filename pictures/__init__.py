"""Pictures that clients send: opened without trusting them, turned upright, brought to the canvas that a graph draws on;
masks; and pictures fetched by URL. Pillow is known here, and nothing of where the pictures go."""

from pictures.canvas import draw_onto
from pictures.data_url import decode_text
from pictures.decoding import InputImage, has_transparency, read_image
from pictures.encoding import BrokenPicture, apply_policy, encode, png_size
from pictures.fetch import fetch_image
from pictures.mask import mask_onto

__all__ = [
    "BrokenPicture",
    "InputImage",
    "apply_policy",
    "decode_text",
    "draw_onto",
    "encode",
    "fetch_image",
    "has_transparency",
    "mask_onto",
    "png_size",
    "read_image",
]
