"""The story of one picture request: compile, ask whether the engine can, get the GPU, run each job, finish the pictures.
Knows the rooms and the order of steps; knows no HTTP, no URLs, no YAML. Callable from any process."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from arbiter import Arbiter, Lease
from compiler import (
    Catalogue,
    Compiled,
    Graph,
    ImageRequest,
    Plan,
    Size,
    compile_workflow,
    fit,
    parse_object_info,
)
from compiler.signatures import NodeSignature
from engine import Engine, Outcome, Preview, Progress
from errors import (
    EngineRejected,
    EngineUnreachable,
    FilesMissing,
    JobTimedOut,
    NodesMissing,
    NoPictures,
    QueueFull,
)
from image_store import ImageStore, KeptImage, apply_policy, encode, png_size

log = logging.getLogger("easel.generation")

OutputFormat = Literal["png", "jpeg", "webp"]
MetadataPolicy = Literal["none", "parameters", "workflow"]
MIME: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

Watch = Callable[[Progress | Preview], None]
_RETRY_AFTER_S = 10


@dataclass(frozen=True)
class Finish:
    """How the pictures are to come: their format, and whether they are kept under a name."""

    format: OutputFormat = "png"
    quality: int | None = None
    """0 to 100 for jpeg and webp; None for the library's own default."""
    keep: bool = True


@dataclass(frozen=True)
class Image:
    """A finished picture. The same seed, size and batch draw it again; it was number `index` of its batch."""

    data: bytes
    mime: str
    size: Size
    seed: int
    index: int
    batch: int
    prompt_id: str
    kept: KeptImage | None


@dataclass(frozen=True)
class Timings:
    """Seconds. `gpu_wait_s` to `fetch_s` are sums over the request's jobs; `gpu_wait_s` is until the GPU was had."""

    total_s: float
    compile_s: float
    gpu_wait_s: float
    queued_s: float
    run_s: float
    fetch_s: float
    finish_s: float


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    plan: Plan
    checkpoint: str
    images: tuple[Image, ...]
    timings: Timings
    is_sketch: bool


@dataclass(frozen=True)
class Draft:
    """A compiled request on its way to the engine: what its jobs need besides their graphs."""

    compiled: Compiled
    catalogue: Catalogue
    deadline: float
    watch: Watch
    cancelled: Callable[[], bool]

    @property
    def need_bytes(self) -> int:
        """GPU memory that the model needs, 0 where the catalogue does not say."""
        return int((self.catalogue.models[self.compiled.plan.model].min_vram_gb or 0) * 1e9)


@dataclass(frozen=True)
class Drawn:
    """A job that succeeded, and how long it waited for the GPU."""

    outcome: Outcome
    gpu_wait_s: float


@dataclass
class Waiting:
    """How many requests wait for pictures in this process.

    No more than `limit` wait: each holds a thread, and some must stay free for the cheap requests. `retry_after_s`
    says when those that wait now will be through.
    """

    limit: int
    retry_after_s: Callable[[], int | None] = lambda: None
    count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> None:
        with self._lock:
            if self.count >= self.limit:
                raise QueueFull(
                    f"{self.count} requests are already waiting for pictures.",
                    waiting=self.count,
                    retry_after_s=self.retry_after_s() or _RETRY_AFTER_S,
                )
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1


class Generator:
    """Draws requests. One for each process; safe for threads."""

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        engine: Callable[[], Engine],
        store: ImageStore,
        arbiter: Arbiter,
        *,
        metadata: MetadataPolicy = "none",
        max_waiting: int = 96,
        engine_can_start: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`catalogue` and `engine` give those in force now. `engine_can_start`: an engine that is down is no fault yet,
        for whoever gets the GPU finds it started."""
        self.catalogue, self.engine = catalogue, engine
        self._store, self._arbiter, self._metadata, self._clock = store, arbiter, metadata, clock
        self._engine_can_start = engine_can_start
        self.waiting = Waiting(max_waiting, lambda: arbiter.seconds_until("generation"))
        self._parsed: dict[str, tuple[Any, NodeSignature]] = {}

    def generate(
        self,
        request: ImageRequest,
        finish: Finish,
        *,
        timeout_s: float,
        watch: Watch = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Draw `request`. Raises the errors of the compiler, the arbiter, the engine and the image store.

        Everything that the request itself can be blamed for is found before the GPU is asked for. Callers that
        serve many take a place in `waiting` first.
        """
        began = self._clock()
        catalogue = self.catalogue()
        compiled = compile_workflow(request, catalogue)
        compiled_at = self._clock()
        engine = self.engine()
        jobs = self._drawn(engine, Draft(compiled, catalogue, began + timeout_s, watch, cancelled))
        drawn_at = self._clock()
        images = [
            image
            for graph, job in zip(compiled.graphs, jobs, strict=True)
            for image in self._images(graph, job.outcome, compiled.plan, finish)
        ]
        ended = self._clock()
        timings = Timings(
            total_s=ended - began,
            compile_s=compiled_at - began,
            gpu_wait_s=sum(job.gpu_wait_s for job in jobs),
            queued_s=sum(job.outcome.queued_s for job in jobs),
            run_s=sum(job.outcome.run_s for job in jobs),
            fetch_s=sum(job.outcome.fetch_s for job in jobs),
            finish_s=ended - drawn_at,
        )
        checkpoint = catalogue.models[compiled.plan.model].checkpoint
        return Generation(compiled.plan, checkpoint, tuple(images), timings, engine.is_sketch)

    def _drawn(self, engine: Engine, draft: Draft) -> list[Drawn]:
        graphs = self._fitted_if_up(engine, draft)
        try:
            return [self._job(engine, index, graphs, draft) for index in range(len(draft.compiled.graphs))]
        except EngineRejected:
            # A file that went since we last looked: fresh eyes name it in the model's own terms.
            self._fit(draft.compiled, draft.catalogue, engine, fresh=True)
            raise

    def _fitted_if_up(self, engine: Engine, draft: Draft) -> list[dict[str, Any]]:
        """The graphs as `engine` gets them; none yet from an engine that will be started when the GPU is had."""
        try:
            return self._fitted(draft.compiled, draft.catalogue, engine)
        except EngineUnreachable:
            if not self._engine_can_start:
                raise
            return []

    def check(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """The graphs as `engine` would get them. Raises FilesMissing or NodesMissing for what it lacks."""
        return self._fitted(compiled, catalogue, engine)

    # --- the engine --------------------------------------------------------------------------------

    def _fitted(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        try:
            return self._fit(compiled, catalogue, engine, fresh=False)
        except (FilesMissing, NodesMissing):
            # What we remember of the engine may be old: a file that was put there since needs no restart.
            return self._fit(compiled, catalogue, engine, fresh=True)

    def _fit(
        self, compiled: Compiled, catalogue: Catalogue, engine: Engine, *, fresh: bool
    ) -> list[dict[str, Any]]:
        classes = frozenset().union(*(graph.classes for graph in compiled.graphs))
        live = {
            name: self._signature(name, raw) for name, raw in engine.signatures(classes, fresh=fresh).items()
        }
        files = catalogue.models[compiled.plan.model].files
        return [fit(graph.nodes, live, catalogue.signatures, files) for graph in compiled.graphs]

    def _signature(self, name: str, raw: Any) -> NodeSignature:
        known = self._parsed.get(name)
        if known is None or known[0] is not raw:
            known = self._parsed[name] = (raw, parse_object_info({name: raw})[name])
        return known[1]

    def _job(self, engine: Engine, index: int, graphs: list[dict[str, Any]], draft: Draft) -> Drawn:
        """Run one job while the GPU is ours; the lease names it, so that it is taken back should we die."""
        prompt_id = str(uuid.uuid4())
        lease = self._arbiter.lease(
            "generation",
            job=prompt_id,
            timeout_s=self._remaining_s(draft),
            need_bytes=draft.need_bytes,
            cancelled=draft.cancelled,
        )
        with lease as held:
            fitted = graphs or self._fitted(draft.compiled, draft.catalogue, engine)
            outcome = engine.run(
                fitted[index],
                prompt_id=prompt_id,
                timeout_s=self._remaining_s(draft),
                watch=_shown(held, draft.watch),
                cancelled=lambda: draft.cancelled() or held.is_void(),
            )
            held.ran(outcome.run_s)
        return Drawn(outcome, held.waited_s)

    def _remaining_s(self, draft: Draft) -> float:
        remaining = draft.deadline - self._clock()
        if remaining <= 0:
            raise JobTimedOut("The request's time was over before its last job began.")
        return remaining

    # --- the pictures ------------------------------------------------------------------------------

    def _images(self, graph: Graph, outcome: Outcome, plan: Plan, finish: Finish) -> list[Image]:
        if len(outcome.pictures) != graph.job.batch:
            raise NoPictures(
                f"The job made {len(outcome.pictures)} pictures where {graph.job.batch} were wanted.",
                prompt_id=outcome.prompt_id,
            )
        return [
            self._finished(picture.data, index, graph, outcome.prompt_id, plan, finish)
            for index, picture in enumerate(outcome.pictures)
        ]

    def _finished(
        self, png: bytes, index: int, graph: Graph, prompt_id: str, plan: Plan, finish: Finish
    ) -> Image:
        width, height = png_size(png)
        text = parameters_text(plan, graph.job.seed) if self._metadata == "parameters" else None
        if finish.format == "png":
            data = apply_policy(png, self._metadata, parameters=text)
        else:
            data = encode(png, finish.format, finish.quality, text)
        kept = self._store.keep(data, finish.format) if finish.keep else None
        return Image(
            data=data,
            mime=MIME[finish.format],
            size=Size(width, height),
            seed=graph.job.seed,
            index=index,
            batch=graph.job.batch,
            prompt_id=prompt_id,
            kept=kept,
        )


def _shown(lease: Lease, watch: Watch) -> Watch:
    """`watch`, and everybody who looks at the status page sees the progress too."""

    def show(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            lease.show(event.value, event.maximum)
        watch(event)

    return show


_WORDS = {"steps": "Steps", "sampler": "Sampler", "schedule": "Schedule type", "cfg": "CFG scale"}


def parameters_text(plan: Plan, seed: int) -> str:
    """The plan in the text form that most picture tools read from a picture's `parameters`."""
    values = {name: planned.value for name, planned in plan.values.items()}
    lines = [str(values["prompt"])]
    if values.get("negative_prompt"):
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    parts = [f"{word}: {values[name]}" for name, word in _WORDS.items() if name in values]
    lines.append(", ".join([*parts, f"Seed: {seed}", f"Size: {plan.size}", f"Model: {plan.model}"]))
    return "\n".join(lines)


PRELOAD_PAUSE_S = 5.0
"""Between looks for an engine that is not there yet: a ComfyUI takes 10 to 20 s to start"""


def preload(
    generator: Generator,
    models: tuple[str, ...],
    *,
    timeout_s: float,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Draw one small picture with each of `models`, so that its weights are in ComfyUI's memory. Never raises.

    Waits up to `timeout_s` for an engine that does not answer yet.
    """
    give_up = time.monotonic() + timeout_s
    for name in models:
        while not _preloaded(generator, name, timeout_s) and time.monotonic() < give_up:
            pause(PRELOAD_PAUSE_S)


def _preloaded(generator: Generator, name: str, timeout_s: float) -> bool:
    """Whether there is nothing more to try for this model."""
    try:
        size = generator.catalogue().models[name].size.min
        inputs = {"steps": 1}
        request = ImageRequest(
            prompt="warm up", seed=0, id=str(uuid.uuid4()), model=name, size=size, inputs=inputs
        )
        made = generator.generate(request, Finish(keep=False), timeout_s=timeout_s)
    except EngineUnreachable:
        return False
    except Exception as fault:
        log.warning("could not preload %s: %s", name, fault)
        return True
    log.info("preloaded %s in %.1f s", name, made.timings.total_s)
    return True
