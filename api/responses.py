"""Builds the JSON responses: the pictures as URL or base64, their size, usage, and in `_hal0` how they were made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.paths import STORED_IMAGES
from api.request_fields import ParsedRequest
from api.streamed_json import Base64
from compiler import Plan
from generation import Drawing, Image, Timings, note_entries

SKETCH_NOTICE = (
    "These are sketches from Easel's built-in engine; no model ran. Set EASEL_ENGINE_URL to use ComfyUI."
)
_OPENAI_QUALITY: Mapping[str, str] = {"standard": "medium", "hd": "high"}


@dataclass(frozen=True)
class Links:
    """Builds the URLs of stored images for one client; `prefix` is the part before the path."""

    prefix: str

    def picture_field(self, image: Image, as_url: bool) -> dict[str, Any]:
        """Either `url` or `b64_json` of an image. The url of an image that is not stored is a data: URL."""
        if not as_url:
            return {"b64_json": Base64(image.data)}
        if image.kept is None:
            return {"url": Base64(image.data, f"data:{image.mime};base64,")}
        return {"url": f"{self.prefix}{STORED_IMAGES}{image.kept.name}"}


def images_response(
    parsed: ParsedRequest, drawing: Drawing, images: Sequence[Image], links: Links, elapsed_s: float
) -> dict[str, Any]:
    """OpenAI's ImagesResponse, with `_hal0`. `elapsed_s`: time since the request arrived."""
    body = {
        "created": int(time.time()),
        "data": [links.picture_field(image, parsed.as_url) for image in images],
        "background": background_of(images),
        "output_format": parsed.output.format,
        "size": str(images[0].size),
        "usage": usage(drawing.timings(), len(images), elapsed_s),
        "_hal0": debug_info(parsed, drawing, images),
    }
    if quality := quality_of(drawing.plan):
        body["quality"] = quality
    return body


def background_of(images: Sequence[Image]) -> str:
    """OpenAI's name of it: transparent if each of them has transparent pixels."""
    return "transparent" if all(image.is_transparent for image in images) else "opaque"


def quality_of(plan: Plan) -> str | None:
    """OpenAI's name of the preset that was applied, or None."""
    preset = plan.presets.get("quality")
    return _OPENAI_QUALITY.get(preset, preset) if preset else None


def usage(timings: Timings, pictures: int, elapsed_s: float) -> dict[str, Any]:
    """OpenAI's token counts, which the SDKs require, and GPUStack's measurements. `elapsed_s`: time since the request
    arrived."""
    run_s = max(timings.run_s, 1e-6)
    before_s = max(0.0, elapsed_s - timings.run_s - timings.fetch_s - timings.finish_s)
    no_tokens = {"text_tokens": 0, "image_tokens": 0}
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": no_tokens,
        "output_tokens_details": no_tokens,
        "generation_per_second": round(pictures / run_s, 3),
        "time_per_generation_ms": round(run_s / max(1, pictures) * 1000, 3),
        "time_to_process_ms": round(before_s * 1000, 3),
    }


_HIDDEN_VALUES = ("prompt", "files", "image", "mask", "crop", "loras")


def debug_info(parsed: ParsedRequest, drawing: Drawing, images: Sequence[Image]) -> dict[str, Any]:
    """The content of `_hal0`: how `images` were made, and which fields were adjusted or ignored."""
    plan, first = drawing.plan, images[0]
    prompt_ids = {image.prompt_id for image in images}
    hidden = {*_HIDDEN_VALUES, *plan.input_images}
    values = {
        name: planned.value
        for name, planned in plan.values.items()
        if name not in hidden and planned.value is not None
    }
    if loras := plan.values["loras"].value:
        values["loras"] = [{"name": lora["id"], "strength": lora["strength"]} for lora in loras]
    info: dict[str, Any] = {
        "model": plan.model,
        "workflow": plan.workflow,
        "checkpoint": drawing.checkpoint,
        "meta": {
            "template": plan.template,
            **values,
            **plan.stages,
            **({"outpaint": parsed.outpaint} if parsed.outpaint else {}),
            "size": str(first.size),
            "batch_size": first.batch,
            "seed": first.seed,
        },
        "prompt_id": first.prompt_id,
        "images": [
            {
                "seed": image.seed,
                "index": image.index,
                "batch": image.batch,
                "prompt_id": image.prompt_id,
                **({"engine": image.engine} if image.engine else {}),
            }
            for image in images
        ],
        "timings": {name: round(value, 6) for name, value in vars(drawing.timings()).items()},
        "adjusted": note_entries((*parsed.adjusted, *plan.adjusted, *drawing.adjusted)),
        "ignored": note_entries((*parsed.ignored, *plan.ignored)),
        "engine": "sketch" if drawing.is_sketch else "comfyui",
    }
    if redrawn := [each for each in drawing.redrawn if each.prompt_id in prompt_ids]:
        info["redrawn"] = [vars(each) for each in redrawn]
    if drawing.is_sketch:
        info["notice"] = SKETCH_NOTICE
    return info
