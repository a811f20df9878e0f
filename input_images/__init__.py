"""Pictures that clients send: opened without trusting them, turned upright, brought to the canvas that a graph draws on;
masks; and pictures fetched by URL. Pillow is known here, and nothing of where the pictures go."""

from input_images.canvas import draw_onto
from input_images.data_url import decode_text
from input_images.fetch import fetch_image
from input_images.mask import mask_onto
from input_images.reading import InputImage, has_transparency, read_image

__all__ = [
    "InputImage",
    "decode_text",
    "draw_onto",
    "fetch_image",
    "has_transparency",
    "mask_onto",
    "read_image",
]
