"""The three nodes that deliver pictures, the only ones that the rest knows by name."""

from __future__ import annotations

import io
import json
import random
import string
from collections.abc import Callable
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.values import Images

TEMP_PREFIX = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))


def save_image(given: NodeInputs, stage: NodeContext) -> dict[str, Any]:
    return _saved(given, stage, str(given.plain("filename_prefix", "ComfyUI")), "output", 4)


def preview_image(given: NodeInputs, stage: NodeContext) -> dict[str, Any]:
    return _saved(given, stage, TEMP_PREFIX, "temp", 1)


def send_image(given: NodeInputs, stage: NodeContext) -> dict[str, Any]:
    images: Images = given.one(Images, "IMAGE")
    for index, picture in enumerate(images.pictures):
        stage.progress(index, len(images.pictures), ("image/png", encoded(picture, "PNG", compress_level=1)))
    return {}


def _saved(given: NodeInputs, stage: NodeContext, prefix: str, kind: str, level: int) -> dict[str, Any]:
    images: Images = given.one(Images, "IMAGE")
    place, name, subfolder, number = stage.folders.next_picture(prefix, kind, *images.size)
    told = PngInfo()
    told.add_text("prompt", json.dumps(stage.prompt))
    pnginfo = stage.extra_data.get("extra_pnginfo") or {}
    for key in pnginfo:
        told.add_text(key, json.dumps(pnginfo[key]))
    files = []
    for index, picture in enumerate(images.pictures):
        file = f"{name.replace('%batch_num%', str(index))}_{number + index:05}_.png"
        picture.save(place / file, pnginfo=told, compress_level=level)
        stage.folders.remember(place / file)
        files.append({"filename": file, "subfolder": subfolder, "type": kind})
    return {"images": files}


def encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


DELIVER: dict[str, Callable[[NodeInputs, NodeContext], dict[str, Any]]] = {
    "SaveImage": save_image,
    "PreviewImage": preview_image,
    "SaveImageWebsocket": send_image,
}
