"""Which dialect a request speaks, OpenAI's or GPUStack's, by its path and its fields; and so in which form its answer is to
be. Fields are canonical ones, see `api/request_fields.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler import Task

_B64_NAMES = ("gpt-image", "chatgpt-image")
_B64_FIELDS = (
    "background",
    "moderation",
    "output_format",
    "output_compression",
    "partial_images",
    "input_fidelity",
)
"""Only requests to OpenAI's gpt-image models have these; such clients cannot use a url."""


@dataclass(frozen=True)
class Endpoint:
    """What the path already says: the task, and whether it is one of GPUStack's own."""

    task: Task = "generate"
    is_gpustack: bool = False


@dataclass(frozen=True)
class StreamFormat:
    """How a stream's events are to look: OpenAI's, GPUStack's, or both at once."""

    openai: bool
    gpustack: bool
    partial_images: int | None
    include_usage: bool


def asks_gpustack(fields: Mapping[str, Any], endpoint: Endpoint) -> bool:
    """Whether events are to be GPUStack's, should there be any."""
    return endpoint.is_gpustack or any(name.startswith("stream_options") for name in fields)


def stream_format(fields: Mapping[str, Any], endpoint: Endpoint) -> StreamFormat | None:
    """Real clients of GPUStack always send `stream_options`, which OpenAI's image API does not have."""
    if not fields.get("stream") or endpoint.task == "vary":
        return None
    gpustack = asks_gpustack(fields, endpoint)
    return StreamFormat(
        openai=not gpustack or "partial_images" in fields,
        gpustack=gpustack,
        partial_images=int(fields["partial_images"]) if "partial_images" in fields else None,
        include_usage=fields.get("stream_options", {}).get("include_usage", True),
    )


def wants_url(fields: Mapping[str, Any], default: str, task: Task, stream: StreamFormat | None) -> bool:
    """Whether pictures are to come as URLs. `default`: what the owner wants where the request does not say."""
    if stream is not None:
        return stream.gpustack and not stream.openai and fields.get("response_format") == "url"
    if "response_format" in fields:
        return bool(fields["response_format"] == "url")
    if default != "auto":
        return default == "url"
    if task in ("edit", "inpaint"):
        return False
    model = fields.get("model", "").strip().casefold()
    return not (model.startswith(_B64_NAMES) or any(name in fields for name in _B64_FIELDS))
