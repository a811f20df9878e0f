"""One request on one engine: its graphs as that engine needs them, its uploads, and the running of its jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from arbiter import Lease, WaitReport
from compiler import Catalogue, Compiled
from compiler.values import Nodes
from engine import Engine, Outcome, Preview, Progress, ProgressCallback
from engines import EngineUnit
from errors import JobInterrupted, JobLost, RequestCancelled
from generation.fitted_graphs import FittedGraph, FittedGraphs
from generation.interrupted_jobs import is_ending
from generation.record import DrawingRecord, NodeTimes
from generation.uploads import Uploads


@dataclass(frozen=True)
class JobCallbacks:
    """What the caller of a job is told, and how it ends one; see `Drawing.images`."""

    on_progress: ProgressCallback
    on_wait: Callable[..., None]
    on_submitted: Callable[[], None]
    on_run: Callable[[], None]
    cancelled: Callable[[], bool]


class EngineSession:
    """`graphs` may be empty: they are then fitted once the GPU is leased, because the engine is started then. Several jobs
    of the request may run at the same time."""

    def __init__(
        self,
        unit: EngineUnit,
        engine: Engine,
        compiled: Compiled,
        catalogue: Catalogue,
        graphs: list[FittedGraph],
        uploads: Uploads,
        fitted_graphs: FittedGraphs,
        clock: Callable[[], float],
    ) -> None:
        self.unit, self.engine = unit, engine
        self._compiled, self._catalogue, self._graphs = compiled, catalogue, graphs
        self._uploads, self._fitted_graphs, self._clock = uploads, fitted_graphs, clock
        self._uploaded = set[str]()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """That of the engine."""
        return self.unit.name

    @property
    def uses_gpu(self) -> bool:
        """False for sketches."""
        return self.unit.uses_gpu(self.engine)

    @property
    def is_sketch(self) -> bool:
        """Whether the sketch engine draws. Raises EngineUnreachable."""
        return self.engine.is_sketch

    def saving_nodes(self, job: int) -> Nodes:
        """The graph of a job that saves its pictures, as the engine got it. `job`: its index"""
        return self.graph(job).nodes

    def graph(self, job: int) -> FittedGraph:
        """The graph of a job, once the engine has answered. `job`: its index"""
        with self._lock:
            if not self._graphs:
                self._graphs = self._fitted_graphs.get(self._compiled, self._catalogue, self.engine)
            return self._graphs[job]

    def fit_again(self) -> None:
        """After the engine has rejected a graph: a file may have been deleted since. Raises FilesMissing, which names the
        file in the model's own terms, NodesMissing or EngineTooOld if so."""
        self._fitted_graphs.get_uncached(self._compiled, self._catalogue, self.engine)

    def run(
        self,
        job: int,
        prompt_id: str,
        lease: Lease,
        callbacks: JobCallbacks,
        record: DrawingRecord,
        *,
        timeout_s: Callable[[], float],
        previews: bool,
        uses_gpu: bool,
    ) -> Outcome:
        """Run a job under `lease`. `timeout_s` gives the remaining time. Raises what `Engine.run` raises, and what the
        engine lacks; JobLost for a job that was interrupted because its engine is ending, if another one may draw it."""

        def cancelled() -> bool:
            return callbacks.cancelled() or lease.is_void()

        report = WaitReport(callbacks.on_wait)
        fitted = self.graph(job)
        self._upload(cancelled)
        nodes, submitting_at = fitted.socket_nodes or fitted.nodes, self._clock()
        node_times = NodeTimes(record, nodes, self._clock, callbacks.on_run)
        try:
            outcome = self.engine.run(
                nodes,
                prompt_id=prompt_id,
                timeout_s=timeout_s(),
                output=self._compiled.graphs[job].output,
                saving_graph=fitted.nodes if fitted.socket_nodes else None,
                on_progress=_report_to_lease(lease, callbacks.on_progress),
                on_queued=lambda before: report(lease.waiting_in_engine(before)),
                cancelled=cancelled,
                previews=previews,
                on_submitted=callbacks.on_submitted,
                keep_lease=lease.keep,
                on_node=node_times,
            )
        except JobInterrupted as error:
            # An engine without costs is the only one: nobody else could draw the job, so its client need not wait.
            if self.unit.costs is None or not is_ending(self.engine, cancelled):
                raise
            raise JobLost(
                f"The engine {self.unit.name} ended while it ran the job.", prompt_id=prompt_id
            ) from error
        node_times.end(self._clock() - outcome.fetch_s)
        lease.record_run(outcome.run_s)
        record.ran(outcome, submitting_at, lease.queued_s, uses_gpu=uses_gpu, engine=self.unit.name)
        return outcome

    def _upload(self, cancelled: Callable[[], bool]) -> None:
        """Once for all jobs; again if the engine has restarted since the previous one, which empties its temp folder."""
        names = list(self._uploads.names())
        if not names:
            return
        with self._lock:
            if self._uploaded.issuperset(names) and self.engine.has_upload(names[-1]):
                return
            for name in names:
                if cancelled():
                    raise RequestCancelled("The caller cancelled the request.")
                self._uploaded.add(name)
                self.engine.upload(self._uploads.data(name), name)

    def erase_uploads(self) -> None:
        """Overwrite the files that the engine got."""
        self.engine.erase_uploads(tuple(self._uploaded))


def _report_to_lease(lease: Lease, on_progress: ProgressCallback) -> ProgressCallback:
    """A callback that stores the progress in the lease, for the status page, and calls `on_progress`."""

    def report(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            lease.report_progress(event.value, event.maximum)
        on_progress(event)

    return report
