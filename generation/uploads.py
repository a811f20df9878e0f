"""The input image and mask of an edit: their file names in the engine, and how they are fitted to the canvas."""

from __future__ import annotations

from dataclasses import replace

from compiler import ImageRequest, Plan, Size, SourceImage
from engine import upload_name
from generation.values import Pictures
from pictures import fit_image, fit_mask


def with_source(request: ImageRequest, pictures: Pictures | None) -> ImageRequest:
    """`request` with what the compiler needs to know about the pictures."""
    return request if pictures is None else replace(request, source=_source_of(request.id, pictures))


def _source_of(request_id: str, pictures: Pictures) -> SourceImage:
    size = Size(pictures.image.width, pictures.image.height)
    mask = None if pictures.mask is None else upload_name(_mask_name(request_id))
    return SourceImage(size, upload_name(_image_name(request_id)), mask)


def uploads_of(request_id: str, pictures: Pictures, plan: Plan) -> dict[str, bytes]:
    """File name -> PNG: the image and its mask, fitted to the canvas. Raises InvalidImage."""
    size, canvas = (plan.size.width, plan.size.height), (plan.canvas.width, plan.canvas.height)
    uploads = {_image_name(request_id): fit_image(pictures.image, size, canvas)}
    if pictures.mask is not None:
        uploads[_mask_name(request_id)] = fit_mask(pictures.mask, pictures.image, size, canvas)
    return uploads


def _image_name(request_id: str) -> str:
    return f"{request_id}-image.png"


def _mask_name(request_id: str) -> str:
    return f"{request_id}-mask.png"
