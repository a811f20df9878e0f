"""Draws a prepared request: has its jobs run, and encodes and stores the pictures of each."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from arbiter import UNKNOWN_SENDER, Sender, Waiting
from compiler import Compiled, Graph, Note, Plan, Size
from engine import ProgressCallback
from errors import EaselError, NoPictures, RequestCancelled
from generation.engine_session import JobCallbacks
from generation.gallery import Gallery
from generation.image_facts import RequestOrigin, facts_of
from generation.record import DrawingRecord
from generation.runs import JobResult, Redrawn, Runs, Session, TimeLeft
from generation.uploads import Uploads
from generation.values import MIME, Image, MetadataPolicy, OutputOptions, Timings
from image_store import ImageStore
from observer import Observer
from pictures import (
    as_png,
    crop,
    encode,
    is_transparent,
    opaque,
    png_size,
    size_in_canvas,
    with_texts,
)


@dataclass(frozen=True)
class Deps:
    """What all drawings of a process share."""

    store: ImageStore
    metadata: MetadataPolicy
    clock: Callable[[], float]
    observer: Observer
    lists_prompts: bool = True
    """Whether the status has the prompts of requests that are drawn"""
    gallery: Gallery | None = None
    """None: only pictures that are answered as URLs are kept"""


class Watcher(Protocol):
    """Is told of a drawing, and may end it."""

    def begin(self) -> None:
        """It begins. `end` is called in any case."""

    def ended(self) -> EaselError | None:
        """Why it must end; None as long as it may go on. Called several times a second."""

    def end(self, drawn: int, gpu_s: float) -> None:
        """It has ended. `drawn`: how many pictures were drawn. `gpu_s`: how many seconds the engine worked on them, 0 for
        sketches."""


class Drawing:
    """A request that is ready to be drawn: compiled, and fitted to an engine."""

    def __init__(
        self,
        deps: Deps,
        compiled: Compiled,
        runs: Runs,
        first: Session,
        uploads: Uploads,
        *,
        id: str,
        checkpoint: str,
        started_at: float,
        compiled_at: float,
        fitted_at: float,
        time_left: TimeLeft,
    ) -> None:
        """`first`: the engine that would draw the first job. `id`: that of the request. The times are those of
        `deps.clock`."""
        self.plan, self.checkpoint = compiled.plan, checkpoint
        self._deps, self._compiled, self._runs, self._uploads = deps, compiled, runs, uploads
        self._sessions, self._id = [first], id
        """The engines that draw it; until one has drawn, the one that would"""
        self.adjusted: tuple[Note, ...] = ()
        """What became known only when the pictures were there, in addition to the plan's notes."""
        self.redrawn: tuple[Redrawn, ...] = ()
        """The jobs whose first engine failed"""
        self.watcher: Watcher | None = None
        self.origin: RequestOrigin | None = None
        """Of a request of a client, whose pictures are listed; None: of the server itself"""
        self._drawn = 0
        self._started_at, self._compiled_at, self._time_left = started_at, compiled_at, time_left
        self._fitted_at = fitted_at
        self._times = dict.fromkeys(("gpu_wait_s", "queued_s", "run_s", "fetch_s", "finish_s"), 0.0)

    @property
    def counts_waiting(self) -> bool:
        """Whether the time in which it waits for the GPU is a part of its own"""
        return self._runs.counts_waiting

    @counts_waiting.setter
    def counts_waiting(self, counts: bool) -> None:
        self._runs.counts_waiting = counts

    @property
    def is_sketch(self) -> bool:
        """Whether the sketch engine draws it, so that no model runs."""
        with self._time_left.limit():
            return any(session.is_sketch for session in self._sessions)

    def timings(self) -> Timings:
        """Of the jobs that have ended."""
        total_s = self._deps.clock() - self._started_at
        return Timings(total_s=total_s, compile_s=self._compiled_at - self._started_at, **self._times)

    def images(
        self,
        output: OutputOptions,
        *,
        on_progress: ProgressCallback = lambda event: None,
        on_wait: Callable[[Waiting], None] = lambda waiting: None,
        on_submitted: Callable[[], None] = lambda: None,
        on_run: Callable[[], None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
        previews: bool = False,
        sender: Sender = UNKNOWN_SENDER,
    ) -> Iterator[Image]:
        """Run the jobs; yields the images of each as it ends, in the order of the jobs. Iterate it only once. Its end,
        whatever it is, is reported to the observer.

        `on_wait`: called while a job waits for the GPU, or for other jobs in the engine; `on_submitted`: when the engine
        has a job; `on_run`: when it begins to run one, unless all of that is cached. `previews`: ask the engine for
        previews, which it sends if it can. `sender`: who sent the request, for the status of all processes. Raises what
        `Generator.generate` raises once the GPU is needed.
        """
        record = DrawingRecord(self._deps.observer, self._deps.clock, sender, self.plan)
        record.add("compile", self._started_at, self._compiled_at, model=self.plan.model)
        record.add("fit to the engine", self._compiled_at, self._fitted_at)
        callbacks = JobCallbacks(
            on_progress, on_wait, on_submitted, on_run, lambda: cancelled() or bool(self._ended())
        )
        try:
            yield from self._images(output, callbacks, record, previews, sender)
        except BaseException as error:
            record.ended(error)
            raise
        record.ended(None)

    def _images(
        self,
        output: OutputOptions,
        callbacks: JobCallbacks,
        record: DrawingRecord,
        previews: bool,
        sender: Sender,
    ) -> Iterator[Image]:
        jobs = [str(uuid.uuid4()) for _ in self._compiled.graphs]
        uses_gpu = False
        results = self._runs.results(
            jobs, callbacks, record, previews=previews, sender=sender, prompt=self._shown_prompt()
        )
        if self.watcher is not None:
            self.watcher.begin()
        try:
            with contextlib.closing(results):
                for index, result in enumerate(results):
                    with self._time_left.limit():
                        uses_gpu = uses_gpu or result.session.uses_gpu
                    self._add_result(result, is_first=index == 0)
                    yield from self._finish_pictures(index, result, output, record, sender)
        except RequestCancelled:
            if (reason := self._ended()) is not None:
                raise reason from None
            raise
        finally:
            if self.watcher is not None:
                self.watcher.end(self._drawn, self._times["run_s"] if uses_gpu else 0.0)
            self._uploads.close()
            for session in self._runs.sessions:
                with self._time_left.limit():
                    session.erase_uploads()

    def _add_result(self, result: JobResult, *, is_first: bool) -> None:
        if is_first:
            self._sessions = []
        if result.session not in self._sessions:
            self._sessions.append(result.session)
        if result.redrawn is not None:
            self.redrawn = (*self.redrawn, result.redrawn)
        outcome = result.outcome
        self._add_times(gpu_wait_s=result.queued_s, queued_s=outcome.queued_s)
        self._add_times(run_s=outcome.run_s, fetch_s=outcome.fetch_s)

    def _shown_prompt(self) -> str:
        """For the status of all processes; only its own key and operators see it."""
        planned = self.plan.values.get("prompt")
        return str(planned.value) if planned is not None and self._deps.lists_prompts else ""

    def _ended(self) -> EaselError | None:
        return self.watcher.ended() if self.watcher is not None else None

    def _add_times(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self._times[name] += value

    # --- the pictures ------------------------------------------------------------------------------

    def _finish_pictures(
        self, job: int, result: JobResult, output: OutputOptions, record: DrawingRecord, sender: Sender
    ) -> Iterator[Image]:
        """`job`: its index"""
        outcome, graph = result.outcome, self._compiled.graphs[job]
        made, wanted = len(outcome.pictures), graph.job.batch
        if made < wanted:
            raise NoPictures(
                f"Node {graph.output!r} made {made} pictures; {wanted} were expected.",
                prompt_id=outcome.prompt_id,
            )
        if made > wanted:
            why = f"node {graph.output!r} of the workflow makes more pictures than its job has; the first are sent"
            self._note(Note("n", made, wanted, why))
        texts = self._texts(job, result.session)
        engine = result.session.name if self._runs.names_engines else ""
        for index, picture in enumerate(outcome.pictures[:wanted]):
            started_at = self._deps.clock()
            png = as_png(picture.data)
            image = self._finish_picture(
                png, index, graph, texts, outcome.prompt_id, output, record, sender.request_id, engine
            )
            self._add_times(finish_s=self._deps.clock() - started_at)
            self._drawn += 1
            record.drew(image)
            yield image

    def _note(self, note: Note) -> None:
        """List a note once, although several jobs or pictures lead to it."""
        if note not in self.adjusted:
            self.adjusted = (*self.adjusted, note)

    def _finish_picture(
        self,
        png: bytes,
        index: int,
        graph: Graph,
        texts: Mapping[str, str],
        prompt_id: str,
        output: OutputOptions,
        record: DrawingRecord,
        request_id: str,
        engine: str,
    ) -> Image:
        size = self._shown_size(png, graph)
        if size != self.plan.final_size:
            why = f"node {graph.output!r} of the workflow makes pictures of another size"
            self._note(Note("size", str(self.plan.final_size), str(size), why))
        pixels = (size.width, size.height)
        has_background = not is_transparent(png, pixels)
        if not has_background and output.is_opaque:
            png, has_background = opaque(png), True
        self._note_background(has_background, output)
        with record.stage("encode"):
            if output.format == "png":
                data = with_texts(crop(png, pixels), texts)
            else:
                data = encode(png, output.format, output.quality, texts.get("parameters"), size=pixels)
        seed = graph.job.seed if self.plan.has_seed else None
        facts = facts_of(
            self.plan,
            self.origin or RequestOrigin(),
            output,
            size=size,
            seed=seed,
            index=index,
            batch=graph.job.batch,
            request_id=request_id,
            adjusted=self.adjusted,
            engine=engine,
        )
        kept, in_gallery, name = None, None, ""
        if output.keep:
            with record.stage("store"):
                kept = self._deps.store.keep(data, output.format, facts)
                name = kept.name
        elif self._deps.gallery is not None and self.origin is not None:
            name, in_gallery = self._deps.gallery.keep(data, output.format, facts)
        return Image(
            data=data,
            mime=MIME[output.format],
            size=size,
            seed=seed,
            index=index,
            batch=graph.job.batch,
            prompt_id=prompt_id,
            kept=kept,
            is_transparent=not has_background and output.format != "jpeg",
            facts=facts,
            in_gallery=in_gallery,
            name=name,
            engine=engine,
        )

    def _note_background(self, has_background: bool, output: OutputOptions) -> None:
        if has_background and self.plan.is_transparent:
            self._note(
                Note("background", "transparent", "opaque", "no pixel of the picture became transparent")
            )
        elif not has_background and output.format == "jpeg":
            why = "jpeg has no transparency; `output_format` png or webp keeps it"
            self._note(Note("background", "transparent", "white", why))

    def _shown_size(self, png: bytes, graph: Graph) -> Size:
        """The size of the picture once the canvas around it is cut off, unless the graph does that itself."""
        if graph.crops:
            return Size(*png_size(png))
        wanted, canvas = self.plan.size, self.plan.canvas
        shown = size_in_canvas(png, (wanted.width, wanted.height), (canvas.width, canvas.height))
        return Size(*shown)

    def _texts(self, job: int, session: Session) -> dict[str, str]:
        """The texts that the setting allows in the pictures of a job, by keyword. Of a graph whose pictures came over the
        WebSocket, the one that saves them: that is what people load into ComfyUI."""
        if self._deps.metadata == "none":
            return {}
        seed = self._compiled.graphs[job].job.seed if self.plan.has_seed else None
        texts = {"parameters": parameters_text(self.plan, seed)}
        if self._deps.metadata == "workflow":
            texts["prompt"] = json.dumps(session.saving_nodes(job))
        return texts


_PARAMETER_LABELS: Mapping[str, str] = {
    "steps": "Steps",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "cfg": "CFG scale",
    "strength": "Denoising strength",
}


def parameters_text(plan: Plan, seed: int | None) -> str:
    """The plan in the text form that most picture tools read from a picture's `parameters`. `seed`: None if the picture
    does not depend on one."""
    values = {name: planned.value for name, planned in plan.values.items()}
    lines = [str(values["prompt"])]
    if values.get("negative_prompt"):
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    parts = [f"{label}: {values[name]}" for name, label in _PARAMETER_LABELS.items() if name in values]
    parts += [] if seed is None else [f"Seed: {seed}"]
    if loras := values["loras"]:
        texts = [f"{lora['id']}: {lora['strength']:g}" for lora in loras]
        parts.append(f'Loras: "{", ".join(texts)}"')
    lines.append(", ".join([*parts, f"Size: {plan.size}", f"Model: {plan.model}"]))
    return "\n".join(lines)
