"""Sends traces by OTLP over HTTP: a span for each request, and within it the stages of its drawing. OpenTelemetry is an
extra; this package is imported only where traces are wanted."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from errors import SettingsInvalid
from observer import DrawingReport, Observer, Stage

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise SettingsInvalid(
        "Traces are wanted (traces.url or OTEL_EXPORTER_OTLP_ENDPOINT is set), but OpenTelemetry is not installed. Run "
        "`.venv/bin/pip install -r requirements-otel.txt`, or unset it."
    ) from error

log = logging.getLogger("easel.traces")

_CLOSE_TIMEOUT_S = 2.0
"""How long a worker that ends waits until its last spans are sent"""
_PATH = "/v1/traces"
_PROPAGATOR = TraceContextTextMapPropagator()


class Tracer(Observer):
    """`url`: the base URL of the collector; empty: what OpenTelemetry's own variables say. Safe for threads; a process makes
    its exporter when it traces its first request, so make the Tracer before the fork. Never raises, and never waits for the
    collector: spans that cannot be sent are dropped, which the log says once."""

    def __init__(self, url: str, version: str) -> None:
        self._url, self._version = url, version
        self._lock = threading.Lock()
        self._process: tuple[int, TracerProvider, Any] | None = None

    def begin(self, headers: Mapping[str, str], name: str) -> RequestTrace:
        """The span of a request. `headers`: the client's `traceparent` and `tracestate`, whose trace is continued."""
        context = _PROPAGATOR.extract(dict(headers))
        return RequestTrace(self._tracer().start_span(name, context, kind=trace.SpanKind.SERVER))

    def drawing(self, report: DrawingReport) -> None:
        """Send the stages of a drawing, if its request is traced."""
        if not report.trace or not report.stages:
            return
        whole = Stage(
            "draw",
            min(stage.began for stage in report.stages),
            max(stage.ended for stage in report.stages),
            {
                "easel.model": report.model,
                "easel.key": report.key,
                "easel.result": report.result,
                "easel.pictures": len(report.pictures),
                **({"error.type": report.code} if report.code else {}),
            },
        )
        request = _PROPAGATOR.extract({"traceparent": report.trace})
        drawn = self._send(whole, request, is_error=report.result == "failed")
        outer = [(stage, self._send(stage, drawn)) for stage in report.stages if not stage.inside]
        for stage in report.stages:
            if stage.inside:
                self._send(stage, _context_of(stage, outer, drawn))

    def _send(self, stage: Stage, parent: Any, *, is_error: bool = False) -> Any:
        """Send a stage that has ended; returns the context for those within it."""
        span = self._tracer().start_span(stage.name, parent, start_time=_ns(stage.began))
        for name, value in stage.details.items():
            span.set_attribute(name if "." in name else f"easel.{name}", value)
        if is_error:
            span.set_status(trace.StatusCode.ERROR)
        span.end(_ns(stage.ended))
        return trace.set_span_in_context(span)

    def _tracer(self) -> Any:
        process = self._process
        if process is None or process[0] != os.getpid():
            with self._lock:
                process = self._process
                if process is None or process[0] != os.getpid():
                    provider = self._new_provider()
                    process = self._process = (
                        os.getpid(),
                        provider,
                        provider.get_tracer("easel", self._version),
                    )
        return process[2]

    def _new_provider(self) -> TracerProvider:
        _silence_opentelemetry()
        resource = Resource.create({"service.version": self._version, **_service_name()})
        # At the end of the process it would wait 30 s for a collector that does not answer.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{self._url.rstrip('/')}{_PATH}" if self._url else None)
        with contextlib.suppress(RuntimeError):  # no more threads: nothing is sent
            provider.add_span_processor(BatchSpanProcessor(LoggedExporter(exporter, self._url)))
        return provider

    def close(self) -> None:
        """Send what is left, for two seconds at most."""
        process, self._process = self._process, None
        if process is not None and process[0] == os.getpid():
            closing = threading.Thread(target=process[1].shutdown, daemon=True)
            with contextlib.suppress(RuntimeError):
                closing.start()
                closing.join(_CLOSE_TIMEOUT_S)


class RequestTrace:
    """The span of one request. `parent`: its W3C `traceparent`, for what happens within it."""

    def __init__(self, span: Any) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        self.parent = carrier.get("traceparent", "")

    def end(self, facts: Mapping[str, str | int], *, is_error: bool) -> None:
        """End the span. `facts`: its attributes."""
        self._span.set_attributes(dict(facts))
        if is_error:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class LoggedExporter(SpanExporter):
    """Says in the log once that spans cannot be sent, and once that they can again."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter, self._has_failed = exporter, False
        self._place = urlsplit(url).hostname or "the collector"

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(list(spans))
        except Exception as error:
            log.debug("spans could not be sent", exc_info=error)
            result = SpanExportResult.FAILURE
        if (has_failed := result is not SpanExportResult.SUCCESS) != self._has_failed:
            self._has_failed = has_failed
            if has_failed:
                log.error(
                    "traces cannot be sent to %s and are dropped; nothing else is affected", self._place
                )
            else:
                log.warning("traces are sent again")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _context_of(stage: Stage, outer: Iterable[tuple[Stage, Any]], drawn: Any) -> Any:
    """The context of the stage that another one is a part of: of several jobs, the nearest."""
    middle = (stage.began + stage.ended) / 2
    found = [
        (abs((near.began + near.ended) / 2 - middle), number, context)
        for number, (near, context) in enumerate(outer)
        if near.name == stage.inside
    ]
    return min(found, default=(0.0, 0, drawn))[2]


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _service_name() -> dict[str, str]:
    return {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "easel"}


def _silence_opentelemetry() -> None:
    """It logs each attempt; LoggedExporter says it once."""
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
