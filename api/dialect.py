"""Detects the dialect of a request (OpenAI's or GPUStack's) from its path and fields, and chooses the response format.
All fields have their canonical names, see `api/request_fields.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler import Task
from compiler.openai_names import model_key

_B64_NAMES = ("gpt-image", "chatgpt-image")
_B64_FIELDS = (
    "background",
    "moderation",
    "output_format",
    "output_compression",
    "partial_images",
    "input_fidelity",
)
"""Fields that only OpenAI's gpt-image models have; clients of these models cannot use a url."""
_B64_QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max")
"""Qualities of OpenAI's gpt-image models; DALL·E 3, whose clients need a url, has `standard` and `hd`."""


@dataclass(frozen=True)
class Endpoint:
    """What the path determines: the task, and whether it is a GPUStack path."""

    task: Task = "generate"
    is_gpustack: bool = False
    path_task: Task | None = None
    """The task that the path stands for, if the request turned out to be another one: a generation with an image is an
    edit, an edit without a prompt is a variation if the model only makes these."""

    @property
    def response_task(self) -> Task:
        """The task whose form the response has: clients expect that of the path."""
        return self.path_task or self.task


@dataclass(frozen=True)
class StreamFormat:
    """Format of a stream's events: OpenAI's, GPUStack's, or both combined."""

    openai: bool
    gpustack: bool
    partial_images: int | None
    include_usage: bool


def expects_gpustack_events(fields: Mapping[str, Any], endpoint: Endpoint) -> bool:
    """Whether the client expects GPUStack's events if it streams."""
    return endpoint.is_gpustack or any(name.startswith("stream_options") for name in fields)


def stream_format(fields: Mapping[str, Any], endpoint: Endpoint) -> StreamFormat | None:
    """The format of the stream, or None if the response is not streamed.

    GPUStack's clients always send `stream_options`, which OpenAI's image API does not have.
    """
    if not fields.get("stream") or endpoint.response_task == "vary":
        return None
    gpustack = expects_gpustack_events(fields, endpoint)
    return StreamFormat(
        openai=not gpustack or "partial_images" in fields,
        gpustack=gpustack,
        partial_images=int(fields["partial_images"]) if "partial_images" in fields else None,
        include_usage=fields.get("stream_options", {}).get("include_usage", True),
    )


def wants_url(fields: Mapping[str, Any], default: str, task: Task, stream: StreamFormat | None) -> bool:
    """Whether pictures are returned as URLs. `default` is the setting `default_response_format`."""
    if stream is not None:
        return stream.gpustack and fields.get("response_format") == "url"
    if "response_format" in fields:
        return bool(fields["response_format"] == "url")
    if default != "auto":
        return default == "url"
    if task in ("edit", "inpaint"):
        return False
    quality = fields.get("quality")
    return not (
        model_key(fields.get("model")).startswith(_B64_NAMES)
        or any(name in fields for name in _B64_FIELDS)
        or (isinstance(quality, str) and quality.strip().lower() in _B64_QUALITIES)
    )
