"""Formats server-sent events in OpenAI's format, GPUStack's, or both combined; `docs/api.md` shows examples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from api.dialect import StreamFormat
from api.errors import envelope, status_of
from api.request_fields import ParsedRequest
from api.responses import Links, background_of, debug_info, quality_of, usage
from api.streamed_json import Base64, StreamedJson
from arbiter import Waiting
from engine import Preview, Progress
from errors import EaselError
from generation import Drawing, Image

EncodedEvents = Iterable[bytes]
"""Zero or more events as chunks of bytes"""
RUNNING: EncodedEvents = [b": running\n\n"]
"""A comment: the engine runs the job"""

_DONE = b"data: [DONE]\n\n"


class PreviewSchedule:
    """Chooses the previews that are sent: of each job the requested number, distributed evenly over its steps."""

    def __init__(self, drawing: Drawing, requested: int) -> None:
        values = drawing.plan.values
        self._steps = int(values["steps"].value) if "steps" in values else 1
        self._requested = requested
        self._job: str | None = None
        self._received = self._sent = 0

    def index_of(self, preview: Preview) -> int | None:
        """The number of a preview among those of its job that are sent, from 0; None if it is not sent."""
        if preview.prompt_id != self._job:
            self._job, self._received, self._sent = preview.prompt_id, 0, 0
        # ComfyUI makes one preview per step, and sends it before it reports the step as done.
        self._received += 1
        is_early = self._received * (self._requested + 1) < self._steps * (self._sent + 1)
        if is_early or self._sent >= self._requested:
            return None
        self._sent += 1
        return self._sent - 1


class StreamEvents:
    """Formats the events of one drawing. `opening` and `keep_alive` are called in the server's thread, all other methods
    in the thread that draws. `arrived_at` is the monotonic time at which the request arrived."""

    def __init__(
        self, drawing: Drawing, parsed: ParsedRequest, stream: StreamFormat, links: Links, arrived_at: float
    ) -> None:
        self._drawing, self._parsed, self._format, self._links = drawing, parsed, stream, links
        self._arrived_at = arrived_at
        self._type = "image_generation" if parsed.response_task == "generate" else "image_edit"
        self._batches = [job.batch for job in drawing.plan.jobs]
        self._total = sum(self._batches)
        self._sent = 0
        """Number of pictures sent, and so the index of the next one"""
        self._progress = 0.0
        self._current_job: str | None = None
        requested = (stream.partial_images or 0) if stream.openai else 0
        self._previews = PreviewSchedule(drawing, requested)

    @property
    def wants_previews(self) -> bool:
        """Whether the stream contains previews."""
        return self._format.openai and bool(self._format.partial_images)

    def opening(self) -> EncodedEvents:
        """The first event, sent at once so that the client and all proxies receive the headers and first bytes."""
        return self._event(self._chunk(0, 0.0)) if self._format.gpustack else [b": drawing\n\n"]

    def keep_alive(self) -> EncodedEvents:
        """An event that repeats the current progress, or a comment. GPUStack's clients lose everything after a comment;
        OpenAI's fail on an event without data."""
        if self._format.gpustack:
            return self._event(self._chunk(min(self._sent, self._total - 1), self._progress))
        return [b": still drawing\n\n"]

    def on_wait(self, waiting: Waiting) -> EncodedEvents:
        """What the request waits for: a field of GPUStack's chunks, else a comment, which OpenAI's SDKs skip."""
        if self._format.gpustack:
            chunk = self._chunk(min(self._sent, self._total - 1), self._progress)
            return self._event({**chunk, "waiting": asdict(waiting)})
        return waiting_comment(waiting)

    def on_run(self) -> EncodedEvents:
        """That it waits for nothing any more, where `on_wait` said for what."""
        if self._format.gpustack:
            chunk = self._chunk(min(self._sent, self._total - 1), self._progress)
            return self._event({**chunk, "waiting": None})
        return RUNNING

    def on_progress(self, event: Progress | Preview) -> EncodedEvents:
        """The events for a sampler step or a preview."""
        if event.prompt_id != self._current_job:
            self._current_job, self._progress = event.prompt_id, 0.0
        if isinstance(event, Preview):
            return self._partial(event)
        if not self._format.gpustack:
            return []
        # 100 is reserved for the picture itself.
        self._progress = max(self._progress, min(99.0, round(100 * event.value / max(1, event.maximum), 1)))
        events = [self._event(self._chunk(index, self._progress)) for index in self._indexes()]
        return [b"".join(chunk for event in events for chunk in event)]

    def _indexes(self) -> range:
        """The indexes of the pictures of the current job."""
        job, first = 0, 0
        while job + 1 < len(self._batches) and first + self._batches[job] <= self._sent:
            first += self._batches[job]
            job += 1
        return range(first, first + self._batches[job])

    def _partial(self, preview: Preview) -> EncodedEvents:
        index = self._previews.index_of(preview)
        if index is None:
            return []
        event = {
            "type": f"{self._type}.partial_image",
            "b64_json": Base64(preview.data),
            "created_at": int(time.time()),
            "size": str(self._drawing.plan.size),
            "quality": quality_of(self._drawing.plan) or "auto",
            "background": "opaque",
            # Previews are sent in the format that the engine made.
            "output_format": preview.mime.removeprefix("image/"),
            "partial_image_index": index,
        }
        if self._format.gpustack:
            event |= self._chunk(self._indexes()[0], self._progress)
        return self._event(event)

    def on_image(self, image: Image) -> EncodedEvents:
        """The event for a finished picture."""
        index, self._sent = self._sent, self._sent + 1
        if self._sent == self._indexes().start:
            self._progress = 0.0  # the next job has not started
        event: dict[str, Any] = {}
        if self._format.openai:
            event = {
                "type": f"{self._type}.completed",
                # In both dialects at once the picture may be asked for as a URL, which then is in `data`.
                **({} if self._parsed.as_url else {"b64_json": Base64(image.data)}),
                "created_at": int(time.time()),
                "size": str(image.size),
                "quality": quality_of(self._drawing.plan) or "auto",
                "background": background_of([image]),
                "output_format": self._parsed.output.format,
                "usage": self._usage(),
            }
        if self._format.gpustack:
            event |= self._chunk(index, 100.0, **self._links.picture_field(image, self._parsed.as_url))
            event |= {"size": str(image.size), "output_format": self._parsed.output.format}
            if self._format.include_usage and self._sent == self._total:
                event["usage"] = self._usage()
        elif self._is_plain:
            event |= {"created": int(time.time()), "data": [_chunk_entry(index, 100.0)]}
        event["_hal0"] = debug_info(self._parsed, self._drawing, [image])
        return self._event(event)

    @property
    def _is_plain(self) -> bool:
        """Whether no options of either dialect were given: then the events contain what clients of both need."""
        return not self._format.gpustack and self._format.partial_images is None

    def ending(self) -> EncodedEvents:
        """What is sent after the last picture."""
        return [_DONE] if self._format.gpustack or self._is_plain else []

    def on_error(self, error: EaselError) -> EncodedEvents:
        """The last events of a stream that failed."""
        return error_events(error, self._format)

    def _usage(self) -> dict[str, Any]:
        return usage(self._drawing.timings(), self._sent, time.monotonic() - self._arrived_at)

    def _chunk(self, index: int, progress: float, **more: Any) -> dict[str, Any]:
        return {
            "created": int(time.time()),
            "model": self._drawing.plan.model,
            "data": [{**_chunk_entry(index, progress), **more}],
        }

    def _event(self, payload: dict[str, Any]) -> EncodedEvents:
        return encode_event(payload, named=not self._format.gpustack)


def _chunk_entry(index: int, progress: float) -> dict[str, Any]:
    return {"index": index, "object": "image.chunk", "progress": progress}


class _Event:
    """One event in chunks, encoded while it is sent."""

    def __init__(self, head: bytes, payload: StreamedJson) -> None:
        self._head, self._payload = head, payload

    def __iter__(self) -> Iterator[bytes]:
        if len(self._payload) < 16_384:
            yield b"".join((self._head, *self._payload, b"\n\n"))
            return
        yield self._head
        yield from self._payload
        yield b"\n\n"


def waiting_comment(waiting: Waiting) -> EncodedEvents:
    """What a drawing waits for, as a comment, which OpenAI's SDKs skip."""
    return [f": waiting {json.dumps(asdict(waiting))}\n\n".encode()]


def encode_event(payload: dict[str, Any], *, named: bool) -> EncodedEvents:
    """`payload` as one event. Use `named=False` for GPUStack's clients: they lose events that do not start with `data:`."""
    name = f"event: {payload['type']}\n" if named else ""
    return _Event(f"{name}data: ".encode("ascii"), StreamedJson(payload))


def error_events(error: EaselError, stream: StreamFormat) -> EncodedEvents:
    """The last events of a stream that failed: one that OpenAI's SDKs raise as an error, or GPUStack's."""
    body = envelope(error)["error"]
    if not stream.gpustack:
        return encode_event({"type": "error", "error": body}, named=True)
    flat = {"code": status_of(type(error)), "message": error.message, "type": body["type"]}
    return [
        *encode_event({"error": body}, named=False),
        b"error: " + b"".join(StreamedJson(flat)) + b"\n\n",
        _DONE,
    ]
