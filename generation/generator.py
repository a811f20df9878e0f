"""Runs one picture request: compiles it, fits it to the engine, leases the GPU, runs each job, finishes the pictures.
Knows the packages and the order of steps; knows no HTTP, URLs or YAML. Can be used from any process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from arbiter import UNKNOWN_SENDER, Sender
from compiler import Catalogue, Compiled, ImageRequest, Plan, Stage, compile_workflow
from compiler.signatures import NodeSignature
from engine import Engine, ProgressCallback
from engines import Fleet
from errors import JobTimedOut, RequestCancelled
from generation.admission import Admission
from generation.drawing import Deps, Drawing
from generation.editor_files import EditorFile, write_for_engine
from generation.fitted_graphs import FittedGraph, FittedGraphs
from generation.gallery import Gallery
from generation.job_runs import JobRuns
from generation.lacks import Lacks
from generation.runs import Hosts, RequestedJobs, Runs, TimeLeft
from generation.uploads import Uploads, uploads_of, with_source
from generation.values import Generation, MetadataPolicy, OutputOptions, Pictures
from image_store import ImageStore
from observer import Observer
from pictures import InputImage


class Generator:
    """Draws requests. One per process; thread-safe."""

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        fleet: Fleet,
        store: ImageStore,
        *,
        metadata: MetadataPolicy = "none",
        max_waiting: int = 96,
        has_several_keys: Callable[[], bool] = lambda: False,
        observer: Observer | None = None,
        keeps_all: bool = False,
        lists_prompts: bool = True,
        hosts: Hosts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`catalogue` returns the current one. `has_several_keys`: whether a key must leave places to others. `observer` is
        told of each drawing that ends. `keeps_all`: pictures that are not answered as URLs are kept too.
        `lists_prompts`: the status has the prompts of requests that are drawn. `hosts`: draw all jobs, instead of the
        engines of `fleet`."""
        self.catalogue, self.fleet, self._hosts = catalogue, fleet, hosts
        self._fitted_graphs, self._lacks = FittedGraphs(), Lacks()
        self._deps = Deps(
            *(store, metadata, clock, observer or Observer()),
            lists_prompts=lists_prompts,
            gallery=Gallery(store) if keeps_all else None,
        )
        self._clock = clock
        self.admission = Admission(max_waiting, (hosts or fleet).seconds_until_free, has_several_keys)

    def engine(self) -> Engine:
        """The first of the engines. Raises EngineUnreachable."""
        return self.fleet.first.engine()

    def generate(
        self,
        request: ImageRequest,
        output: OutputOptions,
        *,
        timeout_s: float,
        pictures: Pictures | None = None,
        on_progress: ProgressCallback = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
        sender: Sender = UNKNOWN_SENDER,
    ) -> Generation:
        """Draw `request`. Raises the errors of the compiler, the arbiter, the engine and the image store.

        Every error of the request itself is raised before the GPU is requested. Callers that serve many clients enter
        `admission` first.
        """
        drawing = self.prepare(request, timeout_s=timeout_s, pictures=pictures)
        images = tuple(drawing.images(output, on_progress=on_progress, cancelled=cancelled, sender=sender))
        return Generation(
            drawing.plan,
            drawing.checkpoint,
            images,
            drawing.timings(),
            drawing.is_sketch,
            drawing.adjusted,
        )

    def prepare(
        self,
        request: ImageRequest,
        *,
        timeout_s: float,
        pictures: Pictures | None = None,
        inputs: Mapping[str, InputImage] = MappingProxyType({}),
        catalogue: Catalogue | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        check_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> Drawing:
        """Do everything that needs no GPU. Raises the errors of the request itself, and FilesMissing, NodesMissing
        or EngineTooOld for what the engine lacks.

        `request.source` is filled in from `pictures`, `request.input_images` from `inputs`. `timeout_s` is counted from now
        to the end of the last job. `catalogue`: the one that the request was read with; None: the current one. Also raises
        RequestCancelled once `cancelled` is true, and JobTimedOut: sixteen photos take seconds. `check_plan` is
        called as soon as there is a plan, and may raise what it likes.
        """
        started_at = self._clock()
        catalogue = catalogue or self.catalogue()
        compiled = compile_workflow(with_source(request, pictures, inputs), catalogue)
        check_plan(compiled.plan)
        deadline = started_at + timeout_s

        def check() -> None:
            if cancelled():
                raise RequestCancelled("The caller cancelled the request.")
            if self._clock() > deadline:
                raise JobTimedOut("The request timed out while its images were read.")

        uploads = uploads_of(request.id, pictures, compiled.plan, check, inputs)
        compiled_at, time_left = self._clock(), TimeLeft(deadline, self._clock)
        runs = self._runs(RequestedJobs(request.id, compiled, catalogue, uploads, time_left))
        return Drawing(
            *(self._deps, compiled, runs, runs.prepare(request.id), uploads),
            id=request.id,
            checkpoint=catalogue.models[compiled.plan.model].checkpoint,
            started_at=started_at,
            compiled_at=compiled_at,
            fitted_at=self._clock(),
            time_left=time_left,
        )

    def _runs(self, requested: RequestedJobs) -> Runs:
        return self.local_runs(requested) if self._hosts is None else self._hosts.runs(requested)

    def local_runs(self, requested: RequestedJobs) -> JobRuns:
        """The running of jobs that were compiled already, on the engines of this host."""
        return JobRuns(self.fleet, self._fitted_graphs, self._lacks, requested, self._clock)

    def check_drawable(self, compiled: Compiled, catalogue: Catalogue, timeout_s: float) -> None:
        """Raises FilesMissing, NodesMissing or EngineTooOld if no engine has what the graphs need, and the errors of
        `Fleet.place`."""
        time_left = TimeLeft(self._clock() + timeout_s, self._clock)
        with contextlib.closing(Uploads()) as uploads:
            self._runs(RequestedJobs("", compiled, catalogue, uploads, time_left)).prepare("check")

    def fitted_graphs(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[FittedGraph]:
        """The graphs as `engine` would get them. Raises FilesMissing, NodesMissing or EngineTooOld for what it lacks."""
        return self._fitted_graphs.get(compiled, catalogue, engine)

    def editor_file(self, compiled: Compiled, catalogue: Catalogue) -> EditorFile:
        """The first graph as a file of ComfyUI's editor, as the current engine would run it. What is not known of the
        engine, or what it lacks, is a note."""
        return write_for_engine(compiled, catalogue, self.engine, self._fitted_graphs)

    def check_graphs(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> None:
        """As `fitted_graphs`, with the nodes and files that the engine had when `describe_node` was called last."""
        self._fitted_graphs.get_cached(compiled, catalogue, engine)

    def check_stage(
        self, stage: Stage, nodes: Mapping[str, Any], catalogue: Catalogue, engine: Engine
    ) -> None:
        """As `check_graphs`, for a graph that has only this stage."""
        self._fitted_graphs.check_stage(stage, nodes, catalogue, engine)

    def describe_node(self, name: str, catalogue: Catalogue, engine: Engine) -> Any:
        """What the engine says about a node class; None if it does not have it. It is asked again for a node that loads
        files, and once for any other. Raises EngineUnreachable."""
        node = catalogue.signatures.get(name)
        fresh = node is not None and _loads_files(node)
        return engine.signatures([name], fresh=fresh).get(name)


def _loads_files(node: NodeSignature) -> bool:
    return any(spec.is_model_file for spec in node.inputs.values())
