"""Requests for pictures that are drawn without the connection that they arrived on, perhaps by another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.dialect import Endpoint
from api.image_requests import ImageFields
from api.request_fields import ParsedRequest
from api.services import Services
from arbiter import Sender
from compiler.values import Note
from errors import FieldNotSupported
from generation import Drawing, Image


@dataclass
class ReceivedRequest:
    """A request as it arrived: the path's meaning, the fields and the files. `is_form`: everything is text."""

    endpoint: Endpoint
    body: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]
    is_form: bool

    def draw(
        self,
        services: Services,
        *,
        seed: int,
        sender: Sender,
        cancelled: Callable[[], bool],
        because_of: str,
        deadline: float | None = None,
        notes: tuple[Note, ...] = (),
    ) -> tuple[ParsedRequest, Drawing, tuple[Image, ...]]:
        """Draw it, once. `seed`: for a request that has none. `deadline`: as in `ImageFields`, None for one that begins
        now. Raises FieldNotSupported for a stream, `because_of` a header, and
        what `ImageFields.prepare` and `Drawing.images` raise."""
        parsed, drawing = self._prepare(services, seed, notes, cancelled, deadline)
        if parsed.stream is not None:
            raise FieldNotSupported(
                f"A request with `{because_of}` cannot be streamed. Leave out `stream` or the header.",
                param="stream",
            )
        # Up to a hundred megabytes, not needed while the request waits for the GPU.
        self.body, self.files = {}, ()
        return parsed, drawing, tuple(drawing.images(parsed.output, cancelled=cancelled, sender=sender))

    def _prepare(
        self,
        services: Services,
        seed: int,
        notes: tuple[Note, ...],
        cancelled: Callable[[], bool],
        deadline: float | None,
    ) -> tuple[ParsedRequest, Drawing]:
        fields = ImageFields.read(
            self.body,
            services,
            self.endpoint,
            files=self.files,
            is_form=self.is_form,
            seed=seed,
            notes=notes,
        )
        fields.deadline = fields.deadline if deadline is None else deadline
        return fields.prepare(cancelled)
