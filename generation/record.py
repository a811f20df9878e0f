"""What one drawing did and when, for metrics, logs and traces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arbiter import Lease, Sender
from compiler import Plan
from engine import Outcome
from errors import EaselError, GpuPreempted, RenderCancelled, RequestCancelled
from generation.values import Image
from observer import DrawingReport, DrawingResult, JobReport, Observer, PictureReport, Stage

_IMAGE_ID_CHARS = 8
_WAIT, _RUN = "wait for the GPU", "run"
_CANCELLED = (RequestCancelled, RenderCancelled, GpuPreempted)


class DrawingRecord:
    """Collects the stages of one drawing; `ended` tells `observer`. Times that go in are those of `clock`."""

    def __init__(self, observer: Observer, clock: Callable[[], float], sender: Sender, plan: Plan) -> None:
        self._observer, self._clock, self._sender, self._plan = observer, clock, sender, plan
        self._unix_offset = time.time() - clock()
        self._stages: list[Stage] = []
        self._jobs: dict[str, JobReport] = {}
        """By prompt id, in the order in which they ended"""
        self._pictures: list[PictureReport] = []

    def add(
        self, name: str, began: float, ended: float, *, inside: str = "", **details: str | int | float
    ) -> None:
        offset = self._unix_offset
        self._stages.append(Stage(name, began + offset, max(began, ended) + offset, details, inside))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self.add(name, began, self._clock())

    def waited(self, lease: Lease, began: float) -> None:
        """The wait for a lease has ended: it, and the phases of the switch that it waited for."""
        self.add(_WAIT, began, self._clock())
        switch = lease.switch_before(began + self._unix_offset)
        if switch is None:
            return
        at = switch.began
        for phase, seconds in switch.phases:
            details = {"target": switch.target}
            self._stages.append(Stage(f"switch: {phase}", at, at + seconds, details, inside=_WAIT))
            at += seconds

    def ran(
        self, outcome: Outcome, submitting_at: float, waited_s: float, *, uses_gpu: bool, engine: str
    ) -> None:
        """A job has ended on `engine`: from `submitting_at` on it was submitted, waited in the engine's queue, ran and was
        fetched."""
        now = self._clock()
        fetching_at = now - outcome.fetch_s
        running_at = fetching_at - outcome.run_s
        queued_at = max(submitting_at, running_at - outcome.queued_s)
        self.add("submit", submitting_at, queued_at, prompt_id=outcome.prompt_id)
        self.add("queue", queued_at, running_at)
        self.add(_RUN, running_at, fetching_at, cached_nodes=len(outcome.cached_nodes))
        self.add("fetch", fetching_at, now, pictures=len(outcome.pictures))
        self._jobs[outcome.prompt_id] = JobReport(
            waited_s + outcome.queued_s, outcome.run_s, uses_gpu, engine
        )

    def drew(self, image: Image) -> None:
        """A picture of a job that has ended is finished."""
        job, name = self._jobs[image.prompt_id], image.name[:_IMAGE_ID_CHARS]
        self._pictures.append(
            PictureReport(image.seed, str(image.size), name, job.waited_s, job.run_s, job.engine)
        )

    def ended(self, error: BaseException | None) -> None:
        """Tell the observer. `error`: what ended the drawing early."""
        self._observer.drawing(
            DrawingReport(
                request_id=self._sender.request_id,
                key=self._sender.key,
                trace=self._sender.trace,
                model=self._plan.model,
                prompt=str(self._plan.values["prompt"].value) if "prompt" in self._plan.values else "",
                result=_result(error),
                code=_code(error),
                jobs=tuple(self._jobs.values()),
                pictures=tuple(self._pictures),
                stages=tuple(self._stages),
                message=error.message if isinstance(error, EaselError) else "",
            )
        )


class NodeTimes:
    """When each node of a job ran, from the events in which ComfyUI says that one starts. `on_first`: called at the first
    of them."""

    def __init__(
        self,
        record: DrawingRecord,
        nodes: Mapping[str, Any],
        clock: Callable[[], float],
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        self._record, self._nodes, self._clock, self._on_first = record, nodes, clock, on_first
        self._has_begun = False
        self._running: tuple[str, float] | None = None

    def __call__(self, node: str | None) -> None:
        now = self._clock()
        self.end(now)
        if node is None:
            return
        self._running = node, now
        if not self._has_begun:
            self._has_begun = True
            self._on_first()

    def end(self, at: float) -> None:
        """The node that runs has ended. ComfyUI reports the success of a job without an end of its last node."""
        if self._running is None:
            return
        name, began = self._running
        self._running = None
        entry = self._nodes.get(name)
        kind = str(entry["class_type"]) if entry else "unknown"
        self._record.add(f"node: {kind}", began, at, inside=_RUN, node=name)


def _result(error: BaseException | None) -> DrawingResult:
    if error is None:
        return "done"
    # A generator that is closed: the client has hung up between two pictures.
    return "cancelled" if isinstance(error, (*_CANCELLED, GeneratorExit)) else "failed"


def _code(error: BaseException | None) -> str:
    if error is None or isinstance(error, GeneratorExit):
        return ""
    return error.code if isinstance(error, EaselError) else EaselError.code
