"""Requests for pictures that are drawn without the connection that they arrived on, perhaps later and by another process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from access import Use
from api.dialect import Endpoint
from api.image_requests import ImageFields
from api.request_fields import ParsedRequest
from api.request_images import FetchImage
from api.services import Services
from api.stored_references import reads_stored_images
from arbiter import Sender, Waiting
from compiler.values import Note
from engine import Preview, Progress
from errors import EngineUnreachable, FieldNotSupported
from generation import Drawing, Image
from image_jobs import JobRequest


@dataclass(frozen=True)
class Watch:
    """What a drawing is told, and tells. `on_prepared`: called before it waits for the GPU. `on_run`: when the engine
    begins to run one of its jobs."""

    cancelled: Callable[[], bool]
    on_prepared: Callable[[Drawing], None] = lambda drawing: None
    on_progress: Callable[[Progress | Preview], None] = lambda event: None
    on_wait: Callable[[Waiting], None] = lambda waiting: None
    on_run: Callable[[], None] = lambda: None


@dataclass
class ReceivedRequest:
    """A request as it arrived: the path's meaning, the fields and the files. `is_form`: everything is text. `fetched`: the
    images at the URLs in it, by URL, once they were fetched. `header`: the one because of which it cannot be streamed."""

    endpoint: Endpoint
    body: dict[str, Any]
    files: tuple[tuple[str, bytes], ...]
    is_form: bool
    header: str
    fetched: dict[str, bytes] = field(default_factory=dict)

    def check(self, services: Services) -> str:
        """The model that draws it. Fetches the images at its URLs, which may be gone later.

        Raises what is wrong with it, and FilesMissing, NodesMissing or EngineTooOld for what the engine lacks. An engine
        that is down may be there later.
        """
        fields = self._fields(services, seed=0, fetch=self._recording(reads_stored_images(services)))
        parsed, compiled = fields.compile()
        self._refuse_stream(parsed)
        with contextlib.suppress(EngineUnreachable):
            services.generator.check_drawable(compiled, fields.catalogue, fields.deadline - time.monotonic())
        return compiled.plan.model

    def _recording(self, fetch: FetchImage) -> FetchImage:
        def fetch_and_keep(url: str, param: str) -> bytes:
            self.fetched[url] = fetch(url, param)
            return self.fetched[url]

        return fetch_and_keep

    def draw(
        self,
        services: Services,
        *,
        seed: int,
        sender: Sender,
        watch: Watch,
        deadline: float | None = None,
        notes: tuple[Note, ...] = (),
        use: Use | None = None,
    ) -> tuple[ParsedRequest, Drawing, tuple[Image, ...]]:
        """Draw it, once. `seed`: for a request that has none. `deadline`: as in `ImageFields`, None for one that begins
        now. `use`: as in `ImageFields.read`. Raises FieldNotSupported for a stream, and what `ImageFields.prepare` and
        `Drawing.images` raise."""
        parsed, drawing = self._prepare(services, seed, notes, watch.cancelled, deadline, use)
        self._refuse_stream(parsed)
        # Up to a hundred megabytes, not needed while the request waits for the GPU.
        self.body, self.files, self.fetched = {}, (), {}
        watch.on_prepared(drawing)
        images = drawing.images(
            parsed.output,
            on_progress=watch.on_progress,
            on_wait=watch.on_wait,
            on_run=watch.on_run,
            cancelled=watch.cancelled,
            sender=sender,
        )
        return parsed, drawing, tuple(images)

    def _prepare(
        self,
        services: Services,
        seed: int,
        notes: tuple[Note, ...],
        cancelled: Callable[[], bool],
        deadline: float | None,
        use: Use | None,
    ) -> tuple[ParsedRequest, Drawing]:
        fields = self._fields(services, seed, self._from_fetched(services), notes, use)
        fields.deadline = fields.deadline if deadline is None else deadline
        return fields.prepare(cancelled)

    def _from_fetched(self, services: Services) -> FetchImage:
        fetch = reads_stored_images(services)
        return lambda url, param: self.fetched[url] if url in self.fetched else fetch(url, param)

    def _fields(
        self,
        services: Services,
        seed: int,
        fetch: FetchImage,
        notes: tuple[Note, ...] = (),
        use: Use | None = None,
    ) -> ImageFields:
        return ImageFields.read(
            self.body,
            services,
            self.endpoint,
            files=self.files,
            is_form=self.is_form,
            seed=seed,
            fetch=fetch,
            notes=notes,
            use=use,
        )

    def _refuse_stream(self, parsed: ParsedRequest) -> None:
        if parsed.stream is not None:
            raise FieldNotSupported(
                f"A request with `{self.header}` cannot be streamed. Leave out `stream` or the header.",
                param="stream",
            )

    # --- as a job ----------------------------------------------------------------------------------

    def as_job(self, *, seed: int, sender: Sender, owner: str, model: str) -> JobRequest:
        """What `from_job` turns into this request again."""
        content = {
            "endpoint": asdict(self.endpoint),
            "body": self.body,
            "is_form": self.is_form,
            "files": [name for name, _ in self.files],
            "fetched": list(self.fetched),
            "sender": asdict(sender),
        }
        files = (*(data for _, data in self.files), *self.fetched.values())
        return JobRequest(seed, content, files, owner, model)

    @classmethod
    def from_job(cls, job: JobRequest, header: str) -> tuple[ReceivedRequest, Sender]:
        """The request and who sent it. Raises KeyError, TypeError or ValueError if it has another shape."""
        content: Mapping[str, Any] = job.content
        names, urls = content["files"], content["fetched"]
        received = cls(
            Endpoint(**content["endpoint"]),
            content["body"],
            tuple(zip(names, job.files[: len(names)], strict=True)),
            content["is_form"],
            header,
            dict(zip(urls, job.files[len(names) :], strict=True)),
        )
        return received, Sender(**content["sender"])
