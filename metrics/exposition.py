"""The text that Prometheus reads, made at most once a second in each worker, however many ask. A large one is made less
often, so that a worker spends at most a tenth of its time on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from metrics.families import FAMILIES, Family
from metrics.gauges import Build, Gauge, ServerState, gauges
from metrics.value_files import ValueFiles

log = logging.getLogger("easel.metrics")

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_MAX_AGE_S = 1.0
_MAX_SHARE = 0.1
"""Of a thread's time: with 100 models and 50 keys a text takes half a second"""


class Exposition:
    """`state` may take a moment, never much longer than the probes of the status; it is called by one thread at a time."""

    def __init__(
        self,
        files: ValueFiles,
        state: Callable[[], ServerState],
        build: Build,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._state, self._build, self._clock = files, state, build, clock
        self._lock = threading.Lock()
        self._made: tuple[float, bytes] | None = None
        """Until when it is new enough, and the text"""

    def text(self) -> bytes:
        """The metrics of all workers. While one request makes a new text, others get the last one."""
        made = self._made
        if made is not None and self._clock() < made[0]:
            return made[1]
        if not self._lock.acquire(blocking=made is None):
            assert made is not None
            return made[1]
        try:
            made = self._made
            if made is None or self._clock() >= made[0]:
                began = time.thread_time()
                text = self._make()
                age_s = max(_MAX_AGE_S, (time.thread_time() - began) / _MAX_SHARE)
                made = self._made = self._clock() + age_s, text
            return made[1]
        finally:
            self._lock.release()

    def _make(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def collect(self) -> Iterator[Metric]:
        """For the registry: counters and histograms first, then the gauges, in the order of the table."""
        found = {metric.name: metric for metric in self._files.metrics()}
        found |= {metric.name: metric for metric in _gauge_metrics(self._read_gauges())}
        for family in FAMILIES:
            name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
            # One that nothing was counted in yet is announced all the same.
            yield found.get(name) or _empty(family, name)

    def _read_gauges(self) -> Iterable[Gauge]:
        try:
            state = self._state()
            return list(gauges(state, self._build, is_writable=self._files.problem is None))
        except Exception:
            # The counters are there all the same.
            log.exception("the state of the server could not be read for the metrics")
            return []


def _empty(family: Family, name: str) -> Metric:
    metric = Metric(name, family.help, family.kind)
    if not family.labels and family.kind == "counter":
        metric.add_sample(family.name, {}, 0)
    return metric


def _gauge_metrics(values: Iterable[Gauge]) -> Iterator[GaugeMetricFamily]:
    metrics: dict[str, GaugeMetricFamily] = {}
    for gauge in values:
        family = gauge.family
        metric = metrics.setdefault(
            family.name, GaugeMetricFamily(family.name, family.help, labels=family.labels)
        )
        metric.add_metric(gauge.labels, float(gauge.value))
    yield from metrics.values()
