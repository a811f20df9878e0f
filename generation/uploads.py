"""The image of an edit on its way to the engine: what it will be called there, and how it is brought to the canvas."""

from __future__ import annotations

from dataclasses import replace

from compiler import ImageRequest, Plan, Size, Source
from engine import upload_name
from generation.values import Pictures
from pictures import draw_onto, mask_onto


def with_source(request: ImageRequest, pictures: Pictures | None) -> ImageRequest:
    """`request` with what the compiler needs to know of the pictures."""
    return request if pictures is None else replace(request, source=_source_of(request.id, pictures))


def _source_of(request_id: str, pictures: Pictures) -> Source:
    size = Size(pictures.image.width, pictures.image.height)
    mask = None if pictures.mask is None else upload_name(_mask_name(request_id))
    return Source(size, upload_name(_image_name(request_id)), mask)


def uploads_of(request_id: str, pictures: Pictures, plan: Plan) -> dict[str, bytes]:
    """File name -> PNG: the image and its mask brought to the canvas. Raises InvalidImage."""
    size, canvas = (plan.size.width, plan.size.height), (plan.canvas.width, plan.canvas.height)
    uploads = {_image_name(request_id): draw_onto(pictures.image, size, canvas)}
    if pictures.mask is not None:
        uploads[_mask_name(request_id)] = mask_onto(pictures.mask, pictures.image, size, canvas)
    return uploads


def _image_name(request_id: str) -> str:
    return f"{request_id}-image.png"


def _mask_name(request_id: str) -> str:
    return f"{request_id}-mask.png"
