"""Turns reports into changes of counters and histograms. Labels are bounded: after so many models and keys, further ones
count as `other`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache

from metrics.families import (
    BUCKETS_S,
    DRAWING_ERRORS,
    DRAWINGS,
    ENGINE_PICTURES,
    ENGINE_SECONDS,
    ERRORS,
    GPU_SECONDS,
    GPUS_SWITCHOVERS,
    IN_PROGRESS,
    PHASES,
    PICTURES,
    RENDER,
    REQUESTS,
    SWITCHOVERS,
    WAIT,
    Family,
)
from metrics.value_files import Series, ValueFiles
from observer import DrawingReport, Observer, ResponseReport, SwitchReport

MAX_MODELS = 100
MAX_KEYS = 50
MAX_ENGINES = 100
"""Names that get series of their own, in each worker"""
OTHER = "other"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MAX_LABEL_CHARS = 120
_BOUNDS = (*map(str, BUCKETS_S), "+Inf")


class Recorder(Observer):
    """Counts what it is told in `files`. `is_on`: false in a command that is no server."""

    def __init__(self, files: ValueFiles, is_on: Callable[[], bool] = lambda: True) -> None:
        self._files, self._is_on = files, is_on
        self._models, self._keys = BoundedNames(MAX_MODELS), BoundedNames(MAX_KEYS)
        self._engines, self._gpus = BoundedNames(MAX_ENGINES), BoundedNames(MAX_ENGINES)

    def response(self, report: ResponseReport) -> None:
        method = report.method if report.method in _METHODS else OTHER
        changes = {_series(REQUESTS, report.route or "none", method, str(report.status)): 1.0}
        if report.code:
            changes[_series(ERRORS, report.code)] = 1.0
        self._add(changes)

    def requests_in_progress(self, change: int) -> None:
        if self._is_on():
            self._files.add("gauge_livesum", {_series(IN_PROGRESS): change})

    def drawing(self, report: DrawingReport) -> None:
        model, key = self._models.bound(report.model), self._keys.bound(report.key)
        changes = {
            _series(DRAWINGS, model, report.result): 1.0,
            _series(PICTURES, model, key): float(len(report.pictures)),
            _series(GPU_SECONDS, model, key): sum(job.run_s for job in report.jobs if job.uses_gpu),
        }
        for name in {job.engine for job in report.jobs}:
            engine = self._engines.bound(name)
            pictures = sum(picture.engine == name for picture in report.pictures)
            run_s = sum(job.run_s for job in report.jobs if job.engine == name)
            for family, value in ((ENGINE_PICTURES, float(pictures)), (ENGINE_SECONDS, run_s)):
                series = _series(family, engine)
                changes[series] = changes.get(series, 0.0) + value
        if report.code:
            changes[_series(DRAWING_ERRORS, report.code)] = 1.0
        self._add(changes)
        for job in report.jobs:
            self._observe(WAIT, (model,), job.waited_s)
            self._observe(RENDER, (model,), job.run_s)

    def switch(self, report: SwitchReport) -> None:
        changes = {_series(SWITCHOVERS, report.target, report.result): 1.0}
        if report.gpu:
            changes[_series(GPUS_SWITCHOVERS, self._gpus.bound(report.gpu), report.target, report.result)] = (
                1.0
            )
        self._add(changes)
        for phase, seconds in report.phases:
            self._observe(PHASES, (report.target, phase), seconds)

    def _add(self, changes: dict[Series, float]) -> None:
        if self._is_on():
            self._files.add("counter", changes)

    def _observe(self, family: Family, labels: tuple[str, ...], seconds: float) -> None:
        if not self._is_on():
            return
        buckets, total = _histogram(family, labels)
        index = bisect_left(BUCKETS_S, seconds)
        # All buckets: one that nothing was counted in must be there as well.
        changes = {series: float(number == index) for number, series in enumerate(buckets)}
        self._files.add("histogram", changes | {total: seconds})


class BoundedNames:
    """The first `limit` names stay what they are."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def bound(self, name: str) -> str:
        """The name as a label; `other` if there are too many already."""
        label = self._known.get(name)
        if label is None:
            if len(self._known) >= self._limit:
                return OTHER
            label = self._known[name] = label_value(name)
        return label


def label_value(text: str) -> str:
    """The text without what cannot be encoded, and not too long. Quotes and line breaks are escaped in the exposition."""
    return text[:_MAX_LABEL_CHARS].encode("utf-8", "replace").decode()


@lru_cache(maxsize=4096)
def _series(family: Family, *labels: str) -> Series:
    base = family.name.removesuffix("_total")
    return Series(base, family.name, tuple(zip(family.labels, labels, strict=True)), family.help)


@lru_cache(maxsize=1024)
def _histogram(family: Family, labels: tuple[str, ...]) -> tuple[tuple[Series, ...], Series]:
    """The series of all buckets, and that of the sum."""
    named = tuple(zip(family.labels, labels, strict=True))
    name = family.name
    buckets = tuple(Series(name, f"{name}_bucket", (*named, ("le", bound)), family.help) for bound in _BOUNDS)
    return buckets, Series(name, f"{name}_sum", named, family.help)
