"""Writes small safetensors files with the tensors that tell families apart."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]

CHECKPOINT_PARTS = ("first_stage_model.", "cond_stage_model.")


def UNET(width: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        "input_blocks.0.0.weight": (320, channels, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
    }


def FLUX(channels: int = 64) -> dict[str, tuple[int, ...]]:
    return {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "img_in.weight": (3072, channels),
        "txt_in.weight": (3072, 4096),
    }


def FLUX2(width: int) -> dict[str, tuple[int, ...]]:
    return {
        **FLUX(128),
        "double_stream_modulation_img.lin.weight": (1, 1),
        "txt_in.weight": (3072, width),
    }


QWEN: Shapes = {"txt_norm.weight": (3584,), "transformer_blocks.0.attn.to_q.weight": (1, 1)}


def write_weights(path: Path, shapes: Shapes, *, size: int = 0) -> None:
    """A file with these tensors, one byte each; sparse up to `size` bytes."""
    head = {
        name: {"dtype": "U8", "shape": list(shape), "data_offsets": [index, index + 1]}
        for index, (name, shape) in enumerate(shapes.items())
    }
    content = json.dumps(head).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content + bytes(len(shapes)))
        file.truncate(max(size, file.tell()))
