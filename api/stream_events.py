"""Events of a drawing as server-sent events: in OpenAI's form, GPUStack's, or both at once; `docs/api.md` shows each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from api.dialect import StreamFormat
from api.errors import envelope, status_of
from api.request_fields import ParsedRequest
from api.responses import Links, debug, quality_of, usage
from api.streamed_json import Base64, StreamedJson
from engine import Preview, Progress
from errors import EaselError
from generation import Drawing, Image

Frame = Iterable[bytes]
"""One or more events, in pieces"""

_DONE = b"data: [DONE]\n\n"


class StreamEvents:
    """What becomes of each event of a drawing. Used by one drawing, in its thread; `opening` and `keep_alive` in that
    of the server."""

    def __init__(
        self, drawing: Drawing, asked: ParsedRequest, form: StreamFormat, links: Links, arrived: float
    ) -> None:
        self._drawing, self._asked, self._form, self._links = drawing, asked, form, links
        self._arrived = arrived
        self._kind = "image_generation" if asked.request.task == "generate" else "image_edit"
        self._batches = [job.batch for job in drawing.plan.jobs]
        self._total = sum(self._batches)
        self._sent = 0
        """Pictures that were sent: the next is number `_sent`"""
        self._progress = 0.0
        self._shown_job: str | None = None
        self._steps = int(drawing.plan.values["steps"].value) if "steps" in drawing.plan.values else 1
        self._previews = self._partials = 0
        """Previews of the running job that came, and that were sent"""

    @property
    def wants_previews(self) -> bool:
        """Whether previews are of any use here."""
        return self._form.openai and bool(self._form.partial_images)

    def opening(self) -> Frame:
        """At once, so that everybody between here and the client knows that something comes."""
        return self._event(self._chunk(0, 0.0)) if self._form.gpustack else [b": drawing\n\n"]

    def keep_alive(self) -> Frame:
        """GPUStack's clients lose everything behind a comment; an event without data breaks OpenAI's."""
        if self._form.gpustack:
            return self._event(self._chunk(min(self._sent, self._total - 1), self._progress))
        return [b": still drawing\n\n"]

    def shown(self, event: Progress | Preview) -> Frame:
        """A step or a preview."""
        if event.prompt_id != self._shown_job:
            self._shown_job, self._previews, self._partials, self._progress = event.prompt_id, 0, 0, 0.0
        if isinstance(event, Preview):
            return self._partial(event)
        if not self._form.gpustack:
            return []
        # 100 is kept for the picture itself.
        self._progress = max(self._progress, min(99.0, round(100 * event.value / max(1, event.maximum), 1)))
        return self._joined(self._chunk(index, self._progress) for index in self._indexes())

    def _indexes(self) -> range:
        """The numbers of the pictures that the running job draws."""
        job, first = 0, 0
        while job + 1 < len(self._batches) and first + self._batches[job] <= self._sent:
            first += self._batches[job]
            job += 1
        return range(first, first + self._batches[job])

    def _partial(self, preview: Preview) -> Frame:
        """As many previews as were asked for, evenly over the job's steps."""
        # ComfyUI makes one of each step, and sends it before it says that the step is done.
        self._previews += 1
        wanted = (self._form.partial_images or 0) if self._form.openai else 0
        if self._partials >= wanted or self._previews * (wanted + 1) < self._steps * (self._partials + 1):
            return []
        self._partials += 1
        event = {
            "type": f"{self._kind}.partial_image",
            "b64_json": Base64(preview.data),
            "created_at": int(time.time()),
            "size": str(self._drawing.plan.size),
            "quality": quality_of(self._drawing.plan) or "auto",
            "background": "opaque",
            # A preview is sent as the engine made it.
            "output_format": preview.mime.removeprefix("image/"),
            "partial_image_index": self._partials - 1,
        }
        if self._form.gpustack:
            event |= self._chunk(self._indexes()[0], self._progress)
        return self._event(event)

    def finished(self, image: Image) -> Frame:
        """A picture."""
        index, self._sent = self._sent, self._sent + 1
        if self._sent == self._indexes().start:
            self._progress = 0.0  # the next job has not begun
        event: dict[str, Any] = {}
        if self._form.openai:
            event = {
                "type": f"{self._kind}.completed",
                "b64_json": Base64(image.data),
                "created_at": int(time.time()),
                "size": str(image.size),
                "quality": quality_of(self._drawing.plan) or "auto",
                "background": "opaque",
                "output_format": self._asked.finish.format,
                "usage": self._usage(),
            }
        if self._form.gpustack:
            event |= self._chunk(index, 100.0, **self._links.datum(image, self._asked.as_url))
            event |= {"size": str(image.size), "output_format": self._asked.finish.format}
            if self._form.include_usage and self._sent == self._total:
                event["usage"] = self._usage()
        elif self._is_plain:
            event |= {"created": int(time.time()), "data": [_datum(index, 100.0)]}
        event["_hal0"] = debug(self._asked, self._drawing, [image])
        return self._event(event)

    @property
    def _is_plain(self) -> bool:
        """Neither dialect's own options were given: what the one needs is no harm to the other."""
        return not self._form.gpustack and self._form.partial_images is None

    def ending(self) -> Frame:
        """What comes after the last picture."""
        return [_DONE] if self._form.gpustack or self._is_plain else []

    def failed(self, error: EaselError) -> Frame:
        """The end of a drawing that failed."""
        return failure(error, self._form)

    def _usage(self) -> dict[str, Any]:
        return usage(self._drawing.timings(), self._sent, time.monotonic() - self._arrived)

    def _chunk(self, index: int, progress: float, **more: Any) -> dict[str, Any]:
        return {
            "created": int(time.time()),
            "model": self._drawing.plan.model,
            "data": [{**_datum(index, progress), **more}],
        }

    def _event(self, payload: dict[str, Any]) -> Frame:
        return event_of(payload, named=not self._form.gpustack)

    def _joined(self, payloads: Iterable[dict[str, Any]]) -> Frame:
        return [b"".join(piece for payload in payloads for piece in self._event(payload))]


def _datum(index: int, progress: float) -> dict[str, Any]:
    return {"index": index, "object": "image.chunk", "progress": progress}


class _Event:
    """One event, in pieces, made as they are sent."""

    def __init__(self, head: bytes, payload: StreamedJson) -> None:
        self._head, self._payload = head, payload

    def __iter__(self) -> Iterator[bytes]:
        if len(self._payload) < 16_384:
            yield b"".join((self._head, *self._payload, b"\n\n"))
            return
        yield self._head
        yield from self._payload
        yield b"\n\n"


def event_of(payload: dict[str, Any], *, named: bool) -> Frame:
    """`payload` as one event. GPUStack's clients lose an event that does not begin with `data:`."""
    name = f"event: {payload['type']}\n" if named else ""
    return _Event(f"{name}data: ".encode("ascii"), StreamedJson(payload))


def failure(error: EaselError, form: StreamFormat) -> Frame:
    """The end of a stream that failed: in the form that SDKs raise, and in GPUStack's."""
    body = envelope(error)["error"]
    if not form.gpustack:
        return event_of({"type": "error", "error": body}, named=True)
    flat = {"code": status_of(type(error)), "message": error.message, "type": body["type"]}
    return [
        *event_of({"error": body}, named=False),
        b"error: " + b"".join(StreamedJson(flat)) + b"\n\n",
        _DONE,
    ]
