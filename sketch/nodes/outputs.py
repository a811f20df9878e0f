"""Nodes that save or send pictures, some of them known by name."""

from __future__ import annotations

import io
import json
import random
import string
from collections.abc import Callable
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sketch.folders import OutsideFolder
from sketch.nodes.inputs import GraphFault, NodeContext, NodeInputs
from sketch.nodes.values import Images

TEMP_PREFIX = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))


def save_image(inputs: NodeInputs, context: NodeContext) -> dict[str, Any]:
    return _save(inputs, context, str(inputs.plain("filename_prefix", "ComfyUI")), "output", 4)


def preview_image(inputs: NodeInputs, context: NodeContext) -> dict[str, Any]:
    return _save(inputs, context, TEMP_PREFIX, "temp", 1)


def send_image(inputs: NodeInputs, context: NodeContext) -> dict[str, Any]:
    images: Images = inputs.first_linked(Images, "IMAGE")
    for index, picture in enumerate(images.pictures):
        png = encode(picture, "PNG", compress_level=1)
        context.progress(index, len(images.pictures), ("image/png", png))
    return {}


def _save(
    inputs: NodeInputs, context: NodeContext, prefix: str, kind: str, compress_level: int
) -> dict[str, Any]:
    images: Images = inputs.first_linked(Images, "IMAGE")
    try:
        directory, name, subfolder, number = context.folders.next_file(prefix, kind, *images.size)
    except OutsideFolder as error:
        raise GraphFault from Exception(str(error))  # ComfyUI raises a plain one
    metadata = PngInfo()
    metadata.add_text("prompt", json.dumps(context.prompt))
    extra = context.extra_data.get("extra_pnginfo") or {}
    for key in extra:
        metadata.add_text(key, json.dumps(extra[key]))
    files = []
    for index, picture in enumerate(images.pictures):
        file = f"{name.replace('%batch_num%', str(index))}_{number + index:05}_.png"
        picture.save(directory / file, pnginfo=metadata, compress_level=compress_level)
        context.folders.register(directory / file)
        files.append({"filename": file, "subfolder": subfolder, "type": kind})
    return {"images": files}


def encode(picture: Image.Image, file_format: str, **options: int) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


OUTPUT_NODES: dict[str, Callable[[NodeInputs, NodeContext], dict[str, Any]]] = {
    "SaveImage": save_image,
    "PreviewImage": preview_image,
    "SaveImageWebsocket": send_image,
}


def output_action(inputs: NodeInputs) -> Callable[[NodeInputs, NodeContext], dict[str, Any]] | None:
    """What an output node does with its pictures; None for other nodes. An unknown one that has pictures and a prefix
    for file names saves them as PNG, whatever format it is asked for; others only show something in ComfyUI's page."""
    if inputs.class_type in OUTPUT_NODES or not inputs.node.output_node:
        return OUTPUT_NODES.get(inputs.class_type)
    saves = inputs.has("filename_prefix") and inputs.first_linked(Images, "IMAGE") is not None
    return save_image if saves else _show_nothing


def _show_nothing(inputs: NodeInputs, context: NodeContext) -> dict[str, Any]:
    return {}
