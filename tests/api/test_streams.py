"""Streamed pictures in each dialect, compared byte by byte where clients require it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from api.dialect import Endpoint, StreamFormat
from api.request_fields import read_image_request
from api.responses import Links
from api.stream_events import StreamEvents
from api.streams import ImageStream, KeptThreads
from arbiter import Sender, Waiting
from compiler import ImageRequest, compile_workflow
from engine import Preview
from errors import EaselError, EngineUnreachable
from generation import OutputOptions
from sketch import SketchProcess
from tests.api.sse import Event, events_of, stream
from tests.compiler.catalogues import CATALOGUE, image_request
from tests.conftest import NODES, SMALL_CATALOGUE, MakeApp
from tests.waiting import wait_until

OPENAI = "/v1/images/generations"
GPUSTACK = "/v1-openai/image/generate"
SD15 = {"model": "sd-1.5", "steps": 6}
USAGE = {"input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "generation_per_second"}


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def names(events: list[Event]) -> list[str | None]:
    return [event.name for event in events if event.data is not None]


# --- OpenAI ----------------------------------------------------------------------------------------


def test_a_plain_stream_is_one_completed_event_that_gpustack_clients_can_also_read(
    client: FlaskClient,
) -> None:
    opening, completed, done = stream(client, OPENAI)
    assert (opening.raw, done.data) == (": drawing", "[DONE]")
    assert completed.name == completed.data["type"] == "image_generation.completed"
    assert picture(completed.data["b64_json"]).size == (256, 256)
    assert completed.data["usage"].keys() >= USAGE
    assert completed.data["data"] == [{"index": 0, "object": "image.chunk", "progress": 100.0}]
    assert completed.data["_hal0"]["engine"] == "sketch"
    expected = {"size": "256x256", "background": "opaque", "output_format": "png", "quality": "auto"}
    assert completed.data.items() >= expected.items()


@pytest.mark.parametrize("partials", [1, 2, 3])
def test_partial_images_are_previews_distributed_evenly_over_the_steps(
    client: FlaskClient, partials: int
) -> None:
    _, *events = stream(client, OPENAI, **SD15, partial_images=partials)
    assert names(events) == [*["image_generation.partial_image"] * partials, "image_generation.completed"]
    for index, event in enumerate(events[:-1]):
        assert (event.data["partial_image_index"], event.data["output_format"]) == (index, "jpeg")
        assert picture(event.data["b64_json"]).format == "JPEG"
        assert isinstance(event.data["created_at"], int)
    previews = {event.data["b64_json"] for event in events[:-1]}
    assert len(previews) == partials


@pytest.mark.parametrize(
    ("steps", "partials", "sent_at"),
    [
        (12, 1, [6]),
        (12, 2, [4, 8]),
        (12, 3, [3, 6, 9]),
        (20, 3, [5, 10, 15]),
        (7, 2, [3, 5]),
        (4, 3, [1, 2, 3]),
        (2, 3, [1, 2]),
    ],
)
def test_partial_images_are_sent_at_steps_that_are_equally_far_apart(
    steps: int, partials: int, sent_at: list[int]
) -> None:
    fields = {"prompt": "a", "model": "sd-1.5", "stream": True, "partial_images": partials}
    parsed = read_image_request(fields, endpoint=Endpoint(), request_id="x", random_seed=lambda: 1)
    drawing: Any = SilentDrawing(image_request(model="sd-1.5", inputs={"steps": steps}))
    assert parsed.stream is not None
    events = StreamEvents(drawing, parsed, parsed.stream, Links(""), arrived_at=0.0)
    previews = [Preview("job", "sampler", "image/jpeg", b"") for _ in range(steps)]
    assert [step for step, preview in enumerate(previews, 1) if list(events.on_progress(preview))] == sent_at


def test_partial_images_0_selects_openais_format_without_gpustacks_fields(client: FlaskClient) -> None:
    _, completed = stream(client, OPENAI, partial_images=0)
    assert completed.name == "image_generation.completed"
    assert "data" not in completed.data


def test_fewer_steps_than_partial_images_give_fewer_previews(client: FlaskClient) -> None:
    events = stream(client, OPENAI, partial_images=3, steps=1)
    assert names(events) == ["image_generation.partial_image", "image_generation.completed"]


def test_pictures_of_several_jobs_are_sent_in_order_with_their_seeds(client: FlaskClient) -> None:
    _, *events = stream(client, OPENAI, n=6, seed=10, partial_images=0)
    completed = [event.data for event in events if event.name]
    images = [event["_hal0"]["images"][0] for event in completed]
    assert [(image["seed"], image["index"]) for image in images] == [(10, i) for i in range(4)] + [
        (14, 0),
        (14, 1),
    ]
    plain = client.post(
        OPENAI, json={"prompt": "a cat", "size": "256x256", "n": 6, "seed": 10, "response_format": "b64_json"}
    )
    assert [event["b64_json"] for event in completed] == [
        entry["b64_json"] for entry in plain.get_json()["data"]
    ]


def test_streamed_pictures_have_the_requested_format(client: FlaskClient) -> None:
    _, completed, _ = stream(client, OPENAI, output_format="webp", output_compression=50, quality="high")
    assert picture(completed.data["b64_json"]).format == "WEBP"
    assert (completed.data["output_format"], completed.data["quality"]) == ("webp", "high")


def test_response_format_url_is_listed_as_ignored_in_openais_events(client: FlaskClient) -> None:
    _, completed, _ = stream(client, OPENAI, response_format="url")
    assert "b64_json" in completed.data
    assert [note["field"] for note in completed.data["_hal0"]["ignored"]] == ["response_format"]


# --- GPUStack --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (GPUSTACK, {}),
        ("/v1-openai/images/generations", {}),
        (OPENAI, {"stream_options": {"include_usage": True}}),
        (OPENAI, {"stream_options": {}}),
        (OPENAI, {"stream_options_include_usage": True}),
        (OPENAI, {"extra_body": {"stream_options": {"include_usage": True}}}),
    ],
)
def test_gpustack_streams_have_only_data_lines_with_progress_up_to_100(
    client: FlaskClient, path: str, more: dict[str, Any]
) -> None:
    events = stream(client, path, **SD15, **more)
    assert all(event.raw.startswith("data: ") and "\n" not in event.raw for event in events)
    *chunks, done = events
    assert done.data == "[DONE]"
    entries = [chunk.data["data"][0] for chunk in chunks]
    progress = [entry["progress"] for entry in entries]
    assert progress == sorted(progress) == [0.0, 16.7, 33.3, 50.0, 66.7, 83.3, 99.0, 100.0]
    assert {entry["object"] for entry in entries} == {"image.chunk"}
    assert [("b64_json" in entry) for entry in entries] == [False] * 7 + [True]
    assert picture(entries[-1]["b64_json"]).size == (256, 256)
    assert chunks[-1].data["usage"].keys() >= USAGE
    assert all(isinstance(chunk.data["created"], int) for chunk in chunks)
    assert all("usage" not in chunk.data for chunk in chunks[:-1])


def test_gpustack_streams_can_omit_usage_and_return_a_url(client: FlaskClient) -> None:
    events = stream(client, GPUSTACK, response_format="url", stream_options={"include_usage": False})
    last = events[-2].data
    assert "usage" not in last
    assert "b64_json" not in last["data"][0]
    assert client.get(last["data"][0]["url"]).mimetype == "image/png"


@pytest.mark.parametrize("model", ["sd-1.5", "flux-schnell"])
def test_each_picture_has_its_own_progress_up_to_100(client: FlaskClient, model: str) -> None:
    *chunks, _ = stream(client, GPUSTACK, model=model, steps=6, n=3)
    for index in range(3):
        entries = [chunk.data["data"][0] for chunk in chunks if chunk.data["data"][0]["index"] == index]
        progress = [entry["progress"] for entry in entries]
        assert progress == sorted(progress)
        assert progress[-1] == 100.0
        assert "b64_json" in entries[-1]
    assert ["usage" in chunk.data for chunk in chunks][-3:] == [False, False, True]


def test_pictures_of_combined_dialects_are_urls_if_requested(client: FlaskClient) -> None:
    fields = {**SD15, "partial_images": 1, "stream_options": {}, "response_format": "url"}
    *_, last, _ = stream(client, OPENAI, **fields)
    assert last.data["type"] == "image_generation.completed"
    assert "b64_json" not in last.data
    assert "b64_json" not in last.data["data"][0]
    path = last.data["data"][0]["url"].removeprefix("http://localhost")
    assert client.get(path).content_type == "image/png"


def test_combined_dialects_have_only_data_lines_with_the_fields_of_both(client: FlaskClient) -> None:
    *events, done = stream(client, OPENAI, **SD15, partial_images=1, stream_options={"include_usage": True})
    assert done.data == "[DONE]"
    assert all(event.raw.startswith("data: ") for event in events)
    types = [event.data.get("type") for event in events if "type" in event.data]
    assert types == ["image_generation.partial_image", "image_generation.completed"]
    last = events[-1].data
    assert last["b64_json"] == last["data"][0]["b64_json"]
    assert last["data"][0]["progress"] == 100.0


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [OPENAI, GPUSTACK])
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"prompt": ""}, 422, "image.prompt_required"),
        ({"model": "nope"}, 404, "image.model_not_curated"),
        ({"size": "9x9"}, 400, "image.size_not_allowed"),
        ({"partial_images": 7}, 400, "request.invalid_value"),
        ({"stream_options": "yes"}, 400, "request.invalid_value"),
    ],
)
def test_request_errors_are_plain_json_responses_instead_of_a_stream(
    client: FlaskClient, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    response = client.post(path, json={"prompt": "a", "stream": True, **fields})
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)


def test_an_unreachable_engine_is_a_plain_503(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    response = client.post(OPENAI, json={"prompt": "a", "stream": True})
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "engine.unreachable")


def test_a_failure_during_the_job_is_an_error_event_that_openais_sdks_raise(failing: FlaskClient) -> None:
    _, failed = stream(failing, OPENAI, **SD15)
    assert failed.name == "error"
    assert failed.data["type"] == "error"
    assert failed.data["error"]["code"] == "engine.node_failed"
    assert set(failed.data["error"]) == {"message", "type", "param", "code", "details"}


def test_a_failure_during_the_job_is_sent_in_both_gpustack_formats_before_done(
    failing: FlaskClient,
) -> None:
    *chunks, as_data, as_error, done = stream(failing, GPUSTACK, **SD15)
    assert all("data" in chunk.data for chunk in chunks)
    assert as_data.raw.startswith('data: {"error":')
    assert as_data.data["error"]["code"] == "engine.node_failed"
    assert as_error.raw.startswith('error: {"code":500,')
    assert as_error.data.keys() == {"code", "message", "type"}
    assert done.data == "[DONE]"


# --- timing ----------------------------------------------------------------------------------------


@pytest.fixture
def slow(make_app: MakeApp, catalogue_files: dict[str, list[str]]) -> Iterator[Callable[..., FlaskClient]]:
    """Creates clients of applications whose sketch engine takes five seconds per picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=5000) as sketch:
        small = {
            "catalogue": str(SMALL_CATALOGUE / "catalogue.yaml"),
            "templates": str(SMALL_CATALOGUE / "templates_wf"),
        }
        yield lambda **settings: make_app(engine__url=sketch.url, **small, **settings).test_client()


def start_stream(client: FlaskClient, path: str = OPENAI, **fields: Any) -> Iterator[bytes]:
    response = client.post(
        path, json={"prompt": "a", "size": "256x256", "stream": True, **SD15, **fields}, buffered=False
    )
    chunks = response.iter_encoded()
    assert next(iter(chunks))
    return chunks


def test_headers_and_first_event_are_sent_at_once_and_progress_without_delay(
    make_app: MakeApp, catalogue_files: dict[str, list[str]]
) -> None:
    render_s = 15.0
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=int(1000 * render_s)) as sketch:
        client, started_at = make_app(engine__url=sketch.url).test_client(), time.monotonic()
        chunks = start_stream(client, GPUSTACK)
        assert time.monotonic() - started_at < 0.2 * render_s
        assert b'"progress":16.7' in next(chunks)
        assert time.monotonic() - started_at < 0.5 * render_s


def test_closing_a_stream_cancels_its_job_within_a_second(slow: Any) -> None:
    client = slow()
    response = client.post(OPENAI, json={"prompt": "a", "stream": True, **SD15}, buffered=False)
    next(response.iter_encoded())
    engine = client.application.extensions["easel"].engine_selector.current()
    wait_until(lambda: engine.queue().running, 5)
    response.close()
    wait_until(lambda: not engine.queue().running, 1.0)
    generator = client.application.extensions["easel"].generator
    wait_until(lambda: generator.admission.count == 0, 1.0)


def test_a_stream_counts_towards_max_waiting_until_it_ends(slow: Any) -> None:
    client = slow(max_waiting=1)
    response = client.post(OPENAI, json={"prompt": "a", "stream": True, **SD15}, buffered=False)
    refused = client.post(OPENAI, json={"prompt": "a"})
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (429, "queue.full")
    response.close()
    generator = client.application.extensions["easel"].generator
    wait_until(lambda: generator.admission.count == 0, 3)


class SilentDrawing:
    """A drawing without events: it ends after half a second without a picture."""

    def __init__(self, request: ImageRequest | None = None) -> None:
        self.plan = compile_workflow(request or image_request(), CATALOGUE).plan
        self.ended = threading.Event()

    def images(
        self, finish: OutputOptions, *, cancelled: Callable[[], bool], **_: Any
    ) -> Iterator[Image.Image]:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not cancelled():
            time.sleep(0.01)
        self.ended.set()
        yield from ()


def silent_stream(
    stream_format: StreamFormat, release: Callable[[], None] = lambda: None
) -> tuple[SilentDrawing, ImageStream]:
    drawing = SilentDrawing()
    return drawing, stream_of(drawing, stream_format, release)


def stream_of(
    drawing: Any, stream_format: StreamFormat, release: Callable[[], None] = lambda: None, **options: Any
) -> ImageStream:
    request = read_image_request({"prompt": "a"}, endpoint=Endpoint(), request_id="x", random_seed=lambda: 1)
    events = StreamEvents(drawing, request, stream_format, Links(""), arrived_at=0.0)
    return ImageStream(
        drawing,
        request.output,
        events,
        sender=Sender("x"),
        cancelled=lambda: False,
        release=release,
        **{"keep_alive_interval_s": 0.1, **options},
    )


@pytest.mark.parametrize(
    ("stream_format", "keep_alive"),
    [
        (StreamFormat(True, False, None, True), b": still drawing\n\n"),
        (StreamFormat(False, True, None, True), b'data: {"created":'),
    ],
)
def test_keep_alives_are_sent_while_the_engine_is_silent(
    stream_format: StreamFormat, keep_alive: bytes
) -> None:
    _, body = silent_stream(stream_format)
    _, *keep_alives, end = body
    assert end == b"data: [DONE]\n\n"
    assert len(keep_alives) >= 2
    assert all(chunk.startswith(keep_alive) for chunk in keep_alives)


def test_a_stream_closed_before_its_first_chunk_is_read_is_cancelled_and_released() -> None:
    released = threading.Event()
    drawing, body = silent_stream(StreamFormat(True, False, None, True), released.set)
    body.close()
    assert drawing.ended.wait(0.3)
    assert released.wait(1)


class HeldDrawing(SilentDrawing):
    """A drawing whose job is submitted when `may_submit` is set, and runs until it is cancelled; or that fails instead."""

    def __init__(self, error: EaselError | None = None) -> None:
        super().__init__()
        self.may_submit, self.was_submitted = threading.Event(), threading.Event()
        self._error = error

    def images(
        self, finish: OutputOptions, *, cancelled: Callable[[], bool], **callbacks: Any
    ) -> Iterator[Image.Image]:
        self.may_submit.wait(60)
        if self._error is not None:
            raise self._error
        self.was_submitted.set()
        callbacks["on_submitted"]()
        wait_until(cancelled, 60)
        self.ended.set()
        yield from ()


def test_a_stream_is_made_while_the_engine_works_and_not_before() -> None:
    drawing = HeldDrawing()
    threading.Timer(0.2, drawing.may_submit.set).start()
    body = stream_of(drawing, StreamFormat(True, False, None, True), head_start_s=60.0)
    assert drawing.was_submitted.is_set()
    assert not drawing.ended.is_set()
    body.close()
    assert drawing.ended.wait(90)


def test_a_stream_waits_for_its_job_only_for_a_moment() -> None:
    drawing = HeldDrawing()
    body = stream_of(drawing, StreamFormat(True, False, None, True), head_start_s=0.01)
    assert not drawing.was_submitted.is_set()
    body.close()
    drawing.may_submit.set()
    assert drawing.ended.wait(90)


def test_a_stream_whose_job_is_not_submitted_waits_no_longer_than_its_failure() -> None:
    drawing = HeldDrawing(EngineUnreachable("gone"))
    threading.Timer(0.2, drawing.may_submit.set).start()
    started_at = time.monotonic()
    body = stream_of(drawing, StreamFormat(True, False, None, True), head_start_s=60.0)
    assert time.monotonic() - started_at < 40
    assert b"engine.unreachable" in b"".join(body)


class WaitingDrawing(SilentDrawing):
    """Runs a job at once, and one after it has waited; neither has a step."""

    def images(self, finish: OutputOptions, **callbacks: Any) -> Iterator[Image.Image]:
        callbacks["on_run"]()
        callbacks["on_wait"](Waiting("the GPU", {"code": "gpu"}, 0.0, None, 0))
        callbacks["on_run"]()
        callbacks["on_run"]()
        yield from ()


@pytest.mark.parametrize(
    ("stream_format", "begin", "end"),
    [
        (StreamFormat(True, False, None, True), b": waiting {", b": running\n\n"),
        (StreamFormat(False, True, None, True), b'"waiting": {', b'"waiting": null'),
    ],
)
def test_a_stream_says_when_it_waits_no_longer_even_before_the_first_step(
    stream_format: StreamFormat, begin: bytes, end: bytes
) -> None:
    body = b"".join(stream_of(WaitingDrawing(), stream_format, keep_alive_interval_s=60.0))
    body = body.replace(b'":{', b'": {').replace(b'":null', b'": null')
    assert (body.count(begin), body.count(end)) == (1, 1)
    assert body.index(begin) < body.index(end)


def test_threads_are_kept_for_the_next_function_and_hold_nothing_meanwhile() -> None:
    threads, idents = KeptThreads(), []

    class Function:
        def __call__(self) -> None:
            idents.append(threading.get_ident())

    for _ in range(3):
        function = Function()
        is_gone = weakref.ref(function)
        threads.run(function)
        del function
        wait_until(lambda is_gone=is_gone: is_gone() is None and threads.idle == 1, 5)
    assert len(idents) == 3
    assert len(set(idents)) == 1


def test_every_function_runs_at_once_however_many_there_are() -> None:
    threads, all_run = KeptThreads(), threading.Barrier(21)
    for _ in range(20):
        threads.run(lambda: (all_run.wait(20), None)[1])
    all_run.wait(20)


def test_functions_that_come_when_idle_threads_end_run_nevertheless() -> None:
    threads, run = KeptThreads(idle_timeout_s=0.001), list[int]()
    for number in range(300):
        threads.run(lambda number=number: run.append(number))  # type: ignore[misc]
        time.sleep(0.001 if number % 2 else 0)
    wait_until(lambda: len(run) == 300, 10)
    wait_until(lambda: threads.idle == 0, 10)


def test_sixty_four_concurrent_streams_lose_no_event(client: FlaskClient) -> None:
    texts: list[str] = []

    def draw(index: int) -> None:
        response = client.application.test_client().post(
            GPUSTACK, json={"prompt": "a", "size": "256x256", "stream": True, "seed": index, **SD15}
        )
        texts.append(response.text)

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 64
    for text in texts:
        events = [event.data for event in events_of(text)[:-1]]
        # Those with `waiting` repeat the progress.
        progress = [event["data"][0]["progress"] for event in events if "waiting" not in event]
        assert progress == [0.0, 16.7, 33.3, 50.0, 66.7, 83.3, 99.0, 100.0]


def test_text_from_the_client_cannot_end_an_event(client: FlaskClient) -> None:
    evil = "a\n\ndata: [DONE]\n\nevent: error"
    _, completed, done = stream(client, OPENAI, prompt=evil, user=evil)
    assert json.loads(completed.raw.partition("data: ")[2])["type"] == "image_generation.completed"
    assert done.data == "[DONE]"
