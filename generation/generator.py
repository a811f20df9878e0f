"""The story of one picture request: compile, ask whether the engine can, get the GPU, run each job, finish the pictures.
Knows the rooms and the order of steps; knows no HTTP, no URLs, no YAML. Callable from any process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from arbiter import Arbiter
from compiler import Catalogue, Compiled, ImageRequest, compile_workflow
from engine import Engine
from errors import EngineUnreachable
from generation.admission import Admission
from generation.drawing import Deps, Drawing
from generation.fitting import Fitting
from generation.uploads import uploads_of, with_source
from generation.values import Generation, MetadataPolicy, OutputOptions, Pictures, ProgressCallback
from image_store import ImageStore


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
        self._fitting = Fitting()
        self._deps = Deps(arbiter, store, self._fitting, metadata, clock)
        self._clock = clock
        self._engine_can_start = engine_can_start
        self.waiting = Admission(max_waiting, lambda: arbiter.seconds_until("generation"))

    def generate(
        self,
        request: ImageRequest,
        finish: OutputOptions,
        *,
        timeout_s: float,
        pictures: Pictures | None = None,
        watch: ProgressCallback = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Draw `request`. Raises the errors of the compiler, the arbiter, the engine and the image store.

        Everything that the request itself can be blamed for is found before the GPU is asked for. Callers that
        serve many take a place in `waiting` first.
        """
        drawing = self.prepare(request, timeout_s=timeout_s, pictures=pictures)
        images = tuple(drawing.images(finish, watch=watch, cancelled=cancelled))
        return Generation(drawing.plan, drawing.checkpoint, images, drawing.timings(), drawing.is_sketch)

    def prepare(
        self, request: ImageRequest, *, timeout_s: float, pictures: Pictures | None = None
    ) -> Drawing:
        """All of `request` that needs no GPU. Raises what the request can be blamed for, and what the engine lacks.

        `request.source` is filled in from `pictures`. `timeout_s` counts from now to the end of the last job.
        """
        began = self._clock()
        catalogue = self.catalogue()
        compiled = compile_workflow(with_source(request, pictures), catalogue)
        uploads = {} if pictures is None else uploads_of(request.id, pictures, compiled.plan)
        compiled_at = self._clock()
        engine = self.engine()
        return Drawing(
            self._deps,
            compiled,
            catalogue,
            engine,
            self._fitted_if_up(engine, compiled, catalogue),
            uploads,
            began=began,
            compiled_at=compiled_at,
            deadline=began + timeout_s,
        )

    def _fitted_if_up(self, engine: Engine, compiled: Compiled, catalogue: Catalogue) -> list[dict[str, Any]]:
        """The graphs as `engine` gets them; none yet from an engine that will be started when the GPU is had."""
        try:
            return self._fitting.graphs(compiled, catalogue, engine)
        except EngineUnreachable:
            if not self._engine_can_start:
                raise
            return []

    def check(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """The graphs as `engine` would get them. Raises FilesMissing or NodesMissing for what it lacks."""
        return self._fitting.graphs(compiled, catalogue, engine)
