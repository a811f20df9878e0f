"""Traces as a collector gets them: OTLP over HTTP, one trace from the client's span to ComfyUI's nodes."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sketch import SketchProcess
from tests.conftest import NODES, MakeApp
from tests.llm.fake_servers import FakeLlamaServer
from tests.processes import free_port
from tests.server.running import running

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"prompt": "a very secret cat", "size": "256x256"}


class Collector:
    """Takes spans at /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                content = self.rfile.read(int(self.headers["Content-Length"]))
                collector.add(ExportTraceServiceRequest.FromString(content))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, message: Any) -> None:
        for resource in message.resource_spans:
            values = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(values["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def facts(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def tree(spans: list[Any]) -> dict[str, list[str]]:
    """name -> names of the spans within it"""
    names = {span.span_id: span.name for span in spans}
    found: dict[str, list[str]] = {}
    for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
        found.setdefault(names.get(span.parent_span_id, "client"), []).append(span.name)
    return found


def test_one_trace_leads_from_the_client_to_the_nodes(make_app: MakeApp, collector: Collector) -> None:
    app = make_app(traces__url=collector.url)
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
    with app.test_client().post("/v1/images/generations", json=BODY, headers=headers) as response:
        assert response.status_code == 200
    app.extensions["easel"].close_traces()
    spans = collector.spans
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    root = next(span for span in spans if span.name == "POST /v1/images/generations")
    assert root.parent_span_id.hex() == SPAN_ID
    assert collector.services == {"easel"}
    found = tree(spans)
    assert found["client"] == ["POST /v1/images/generations"]
    assert found["POST /v1/images/generations"] == ["draw"]
    assert found["draw"] == [
        *("compile", "fit to the engine", "wait for the GPU", "submit", "queue"),
        *("run", "fetch", "encode", "store"),
    ]
    assert found["run"][-2:] == ["node: VAEDecode", "node: SaveImageWebsocket"]
    assert all(name.startswith("node: ") for name in found["run"])
    by_name = {span.name: span for span in spans}
    assert facts(root)["http.response.status_code"] == 200
    assert facts(by_name["draw"])["easel.pictures"] == 1
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert root.start_time_unix_nano <= span.start_time_unix_nano + 5_000_000
        assert span.end_time_unix_nano <= root.end_time_unix_nano + 5_000_000
    assert "secret" not in str(spans)


def test_an_error_is_in_the_trace(make_app: MakeApp, collector: Collector) -> None:
    app = make_app(traces__url=collector.url)
    with app.test_client().post("/v1/images/generations", json={**BODY, "model": "none"}) as response:
        assert response.status_code == 404
    app.extensions["easel"].close_traces()
    (span,) = collector.spans
    assert facts(span)["error.type"] == "image.model_not_curated"
    assert facts(span)["http.response.status_code"] == 404
    assert span.parent_span_id == b""


def test_a_client_that_does_not_want_its_trace_recorded_gets_none(
    make_app: MakeApp, collector: Collector
) -> None:
    app = make_app(traces__url=collector.url)
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
    with app.test_client().post("/v1/images/generations", json=BODY, headers=headers) as response:
        assert response.status_code == 200
    app.extensions["easel"].close_traces()
    assert collector.spans == []


@pytest.mark.parametrize(
    "value", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", "00-" + "é" * 40, "x" * 10_000]
)
def test_a_wrong_traceparent_begins_a_new_trace(make_app: MakeApp, collector: Collector, value: str) -> None:
    app = make_app(traces__url=collector.url)
    headers = {"traceparent": value.encode().decode("latin-1")}
    with app.test_client().get("/health", headers=headers) as response:
        assert response.status_code == 200
    app.extensions["easel"].close_traces()
    (span,) = collector.spans
    assert span.parent_span_id == b""


def test_a_stream_ends_its_span_with_its_last_byte(make_app: MakeApp, collector: Collector) -> None:
    app = make_app(traces__url=collector.url)
    with app.test_client().post("/v1/images/generations", json={**BODY, "stream": True}) as response:
        assert b"completed" in response.data
    app.extensions["easel"].close_traces()
    by_name = {span.name: span for span in collector.spans}
    root, run = by_name["POST /v1/images/generations"], by_name["run"]
    assert root.end_time_unix_nano >= run.end_time_unix_nano
    assert root.trace_id == run.trace_id


def test_the_phases_of_a_switch_are_within_the_wait(
    tmp_path: Path, collector: Collector, catalogue_files: dict[str, list[str]]
) -> None:
    with (
        FakeLlamaServer() as llama,
        SketchProcess(nodes=NODES, files=catalogue_files) as sketch,
        running(
            tmp_path / "state",
            EASEL_ENGINE_URL=sketch.url,
            EASEL_LLM_STACKS=json.dumps([{"name": "chat", "driver": "llama-server", "url": llama.url}]),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        ) as server,
    ):
        assert server.draw().status_code == 200
    # A worker that ends sends what it has.
    found = tree(collector.spans)
    assert [name for name in found["wait for the GPU"] if name.startswith("switch: ")][:3] == [
        *("switch: closing", "switch: draining", "switch: releasing"),
    ]


def test_a_collector_that_cannot_be_reached_is_named_once_and_costs_nothing(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with running(tmp_path / "state", EASEL_TRACES_URL=url, EASEL_WORKERS="1") as server:
        for _ in range(3):
            assert server.draw().status_code == 200
        server.wait_for("traces cannot be sent to 127.0.0.1")
        with requests.Session() as session:
            for _ in range(300):
                assert session.get(f"{server.url}/health", timeout=60).status_code == 200
    assert len(re.findall("traces cannot be sent", server.log)) == 1
    assert "Traceback" not in server.log
    assert "opentelemetry" not in server.log


def test_without_a_collector_opentelemetry_is_not_imported(make_app: MakeApp) -> None:
    assert make_app().extensions["easel"].tracer is None


def test_a_collector_that_comes_back_gets_spans_again(
    make_app: MakeApp, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from tracing import LoggedExporter

    results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2

    class Flaky(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return results.pop(0)

    exporter = LoggedExporter(Flaky(), "http://user:secret@host:1")
    caplog.set_level(logging.WARNING, "easel.traces")
    for _ in range(5):
        exporter.export([])
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "secret" not in caplog.text


def test_settings_refuse_what_is_no_url(tmp_path: Path) -> None:
    from errors import SettingsInvalid
    from settings import load_settings

    with pytest.raises(SettingsInvalid, match=r"traces\.url|EASEL_TRACES_URL"):
        load_settings({"EASEL_TRACES_URL": "collector:4318"}, root=tmp_path)
