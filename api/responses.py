"""What an answer says of its pictures: url or base64, size, usage, and in `_hal0` everything about how they were made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.request_fields import ParsedRequest
from api.streamed_json import Base64
from compiler import Plan
from compiler.values import Note
from errors import shorten
from generation import Drawing, Image, Timings

SKETCH_NOTICE = (
    "These are sketches by Easel's built-in engine: no model ran. Set EASEL_ENGINE_URL to a ComfyUI."
)
_LONGEST_ECHO = 200
_MOST_NOTES = 100
_OPENAI_QUALITY: Mapping[str, str] = {"standard": "medium", "hd": "high"}


@dataclass(frozen=True)
class Links:
    """Where kept images are for this client: the prefix of their names."""

    prefix: str

    def datum(self, image: Image, as_url: bool) -> dict[str, Any]:
        """`url` or `b64_json` of an image, never both; the url of one that is not kept is a data: URL."""
        if not as_url:
            return {"b64_json": Base64(image.data)}
        if image.kept is None:
            return {"url": Base64(image.data, f"data:{image.mime};base64,")}
        return {"url": f"{self.prefix}/api/images/cache/{image.kept.name}"}


def images_response(
    asked: ParsedRequest, drawing: Drawing, images: Sequence[Image], links: Links, elapsed_s: float
) -> dict[str, Any]:
    """OpenAI's ImagesResponse, with `_hal0`."""
    answer = {
        "created": int(time.time()),
        "data": [links.datum(image, asked.as_url) for image in images],
        "background": "opaque",
        "output_format": asked.finish.format,
        "size": str(images[0].size),
        "usage": usage(drawing.timings(), len(images), elapsed_s),
        "_hal0": debug(asked, drawing, images),
    }
    if quality := quality_of(drawing.plan):
        answer["quality"] = quality
    return answer


def quality_of(plan: Plan) -> str | None:
    """OpenAI's word for the preset that was applied, if one was."""
    preset = plan.presets.get("quality")
    return _OPENAI_QUALITY.get(preset, preset) if preset else None


def usage(timings: Timings, pictures: int, elapsed_s: float) -> dict[str, Any]:
    """OpenAI's counts, which SDKs insist on, and GPUStack's measurements. `elapsed_s`: since the request arrived."""
    run_s = max(timings.run_s, 1e-6)
    before_s = max(0.0, elapsed_s - timings.run_s - timings.fetch_s - timings.finish_s)
    none = {"text_tokens": 0, "image_tokens": 0}
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": none,
        "output_tokens_details": none,
        "generation_per_second": round(pictures / run_s, 3),
        "time_per_generation_ms": round(run_s / max(1, pictures) * 1000, 3),
        "time_to_process_ms": round(before_s * 1000, 3),
    }


_NOT_SHOWN = ("prompt", "files", "image", "mask", "crop", "loras")


def debug(asked: ParsedRequest, drawing: Drawing, images: Sequence[Image]) -> dict[str, Any]:
    """`_hal0`: how `images` were made, and what was not done as asked."""
    plan, first = drawing.plan, images[0]
    values = {name: planned.value for name, planned in plan.values.items() if name not in _NOT_SHOWN}
    if loras := plan.values["loras"].value:
        values["loras"] = [{"name": lora["id"], "strength": lora["strength"]} for lora in loras]
    told: dict[str, Any] = {
        "model": plan.model,
        "workflow": plan.workflow,
        "checkpoint": drawing.checkpoint,
        "meta": {"template": plan.template, **values, "batch_size": first.batch, "seed": first.seed},
        "prompt_id": first.prompt_id,
        "images": [
            {"seed": image.seed, "index": image.index, "batch": image.batch, "prompt_id": image.prompt_id}
            for image in images
        ],
        "timings": {name: round(value, 6) for name, value in vars(drawing.timings()).items()},
        "adjusted": _notes((*asked.adjusted, *plan.adjusted)),
        "ignored": _notes((*asked.ignored, *plan.ignored)),
        "engine": "sketch" if drawing.is_sketch else "comfyui",
    }
    if drawing.is_sketch:
        told["notice"] = SKETCH_NOTICE
    return told


def _notes(notes: Iterable[Note]) -> list[dict[str, Any]]:
    every = list(notes)
    listed = []
    for note in every[:_MOST_NOTES]:
        entry = {"field": _echo(note.field), "asked": _echo(note.asked), "why": note.why}
        listed.append(entry if note.done is None else {**entry, "done": note.done})
    if len(every) > _MOST_NOTES:
        listed.append({"field": "…", "asked": len(every) - _MOST_NOTES, "why": "as many more are not shown"})
    return listed


def _echo(value: Any) -> Any:
    """What a client sent, small enough to send back and certain to be JSON."""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    if isinstance(value, Mapping):
        return "(an object)"
    text = value if isinstance(value, str) else repr(value)
    return shorten(text, _LONGEST_ECHO)
