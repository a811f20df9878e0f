"""What happened, as values, and the interface of whoever is told. The packages that report know nothing of those that
listen: metrics, logs and traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

ONLY_ENGINE = "engine"
"""What the engine is called where there is no other that had to be named"""

DrawingResult = Literal["done", "failed", "cancelled"]
SwitchResult = Literal["done", "failed", "abandoned"]
"""abandoned: it ended early, because nobody needed it any more"""


@dataclass(frozen=True)
class Stage:
    """A part of the work on a request. Times are Unix seconds. `details`: facts for a trace. `inside`: the name of the stage
    that it is a part of, or empty."""

    name: str
    began: float
    ended: float
    details: Mapping[str, str | int | float] = field(default_factory=dict)
    inside: str = ""


@dataclass(frozen=True)
class ResponseReport:
    """A response to an HTTP request. `route`: the pattern of its path; empty if no route matches. `code`: of the error,
    or empty."""

    route: str
    method: str
    status: int
    code: str = ""


@dataclass(frozen=True)
class PictureReport:
    """A picture that was drawn. `seed` is None if its workflow has none. `image`: its id in the image store, the first
    characters of its name, because whoever knows the name may see it; empty if it is not kept. `waited_s`, `run_s`: of
    its job, waiting for the GPU and in the engine's queue, and running. `engine`: the name of the one that drew it."""

    seed: int | None
    size: str
    image: str
    waited_s: float
    run_s: float
    engine: str = ONLY_ENGINE


@dataclass(frozen=True)
class JobReport:
    """A job that an engine has finished. `run_s` is not GPU time unless `uses_gpu`. `engine`: its name."""

    waited_s: float
    run_s: float
    uses_gpu: bool
    engine: str = ONLY_ENGINE


@dataclass(frozen=True)
class DrawingReport:
    """A request for pictures that has ended. `model` is in the catalogue. `key`: the caller's name. `trace`: the W3C
    `traceparent` that its stages belong to, or empty. `code`, `message`: of the error, or empty."""

    request_id: str
    key: str
    trace: str
    model: str
    prompt: str
    result: DrawingResult
    code: str
    jobs: tuple[JobReport, ...]
    pictures: tuple[PictureReport, ...]
    stages: tuple[Stage, ...]
    message: str = ""


@dataclass(frozen=True)
class SwitchReport:
    """A switchover that has ended. `phases`: names and seconds. `gpu`: as the setting `engines` names it; empty without
    that setting."""

    target: str
    result: SwitchResult
    phases: tuple[tuple[str, float], ...]
    gpu: str = ""


class Observer:
    """Is told what happens; ignores it here. Its methods return at once and never raise. Any thread may call them."""

    def response(self, report: ResponseReport) -> None:
        """A response begins to be sent."""

    def requests_in_progress(self, change: int) -> None:
        """One more (1) or one fewer (-1) HTTP request is being answered."""

    def drawing(self, report: DrawingReport) -> None:
        """A request for pictures has ended."""

    def switch(self, report: SwitchReport) -> None:
        """A switchover has ended."""


class SwitchesOfGpu(Observer):
    """Is told of the switchovers of one GPU, and tells `observer` with its name."""

    def __init__(self, observer: Observer, gpu: str) -> None:
        self._observer, self._gpu = observer, gpu

    def switch(self, report: SwitchReport) -> None:
        self._observer.switch(replace(report, gpu=self._gpu))


class RequestTrace(Protocol):
    """The trace of a request. `parent`: its W3C `traceparent`, for `DrawingReport.trace`."""

    @property
    def parent(self) -> str: ...
    def end(self, facts: Mapping[str, str | int], *, is_error: bool) -> None:
        """The request is answered, or given up. `facts`: OpenTelemetry's attributes."""


BeginTrace = Callable[[Mapping[str, str], str], RequestTrace]
"""(headers of a request, its name) -> its trace. Never raises."""


class Observers(Observer):
    """Tells several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def response(self, report: ResponseReport) -> None:
        for observer in self._observers:
            observer.response(report)

    def requests_in_progress(self, change: int) -> None:
        for observer in self._observers:
            observer.requests_in_progress(change)

    def drawing(self, report: DrawingReport) -> None:
        for observer in self._observers:
            observer.drawing(report)

    def switch(self, report: SwitchReport) -> None:
        for observer in self._observers:
            observer.switch(report)
