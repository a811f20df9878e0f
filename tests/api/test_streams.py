"""Pictures as server-sent events, in each dialect, to the byte where clients care."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from api.dialect import Endpoint, StreamFormat
from api.request_fields import read_image_request
from api.responses import Links
from api.stream_events import StreamEvents
from api.streams import ImageStream
from compiler import compile_workflow
from generation import OutputOptions
from sketch import SketchProcess
from tests.api.sse import Event, events_of, stream
from tests.compiler.worlds import CATALOGUE, asked
from tests.conftest import NODES, MakeApp

OPENAI = "/v1/images/generations"
GPUSTACK = "/v1-openai/image/generate"
SD15 = {"model": "sd-1.5", "steps": 6}
USAGE = {"input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "generation_per_second"}


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def named(events: list[Event]) -> list[str | None]:
    return [event.name for event in events if event.data is not None]


# --- OpenAI's --------------------------------------------------------------------------------------


def test_a_plain_stream_is_one_completed_event_that_gpustacks_clients_can_read_too(
    client: FlaskClient,
) -> None:
    opening, completed, done = stream(client, OPENAI)
    assert (opening.raw, done.data) == (": drawing", "[DONE]")
    assert completed.name == completed.data["type"] == "image_generation.completed"
    assert picture(completed.data["b64_json"]).size == (256, 256)
    assert completed.data["usage"].keys() >= USAGE
    assert completed.data["data"] == [{"index": 0, "object": "image.chunk", "progress": 100.0}]
    assert completed.data["_hal0"]["engine"] == "sketch"
    told = {"size": "256x256", "background": "opaque", "output_format": "png", "quality": "auto"}
    assert completed.data.items() >= told.items()


@pytest.mark.parametrize("partials", [1, 2, 3])
def test_partial_images_are_real_previews_evenly_over_the_steps(client: FlaskClient, partials: int) -> None:
    _, *events = stream(client, OPENAI, **SD15, partial_images=partials)
    assert named(events) == [*["image_generation.partial_image"] * partials, "image_generation.completed"]
    for index, event in enumerate(events[:-1]):
        assert (event.data["partial_image_index"], event.data["output_format"]) == (index, "jpeg")
        assert picture(event.data["b64_json"]).format == "JPEG"
        assert isinstance(event.data["created_at"], int)
    shown = [event.data["b64_json"] for event in events[:-1]]
    assert len(set(shown)) == partials


def test_partial_images_of_none_is_a_wish_too_and_leaves_gpustacks_parts_out(client: FlaskClient) -> None:
    _, completed = stream(client, OPENAI, partial_images=0)
    assert completed.name == "image_generation.completed"
    assert "data" not in completed.data


def test_fewer_steps_than_partials_give_fewer_partials(client: FlaskClient) -> None:
    events = stream(client, OPENAI, partial_images=3, steps=1)
    assert named(events) == ["image_generation.partial_image", "image_generation.completed"]


def test_every_picture_of_several_jobs_is_completed_in_order_with_its_seed(client: FlaskClient) -> None:
    _, *events = stream(client, OPENAI, n=6, seed=10, partial_images=0)
    completed = [event.data for event in events if event.name]
    told = [event["_hal0"]["images"][0] for event in completed]
    assert [(image["seed"], image["index"]) for image in told] == [(10, i) for i in range(4)] + [
        (14, 0),
        (14, 1),
    ]
    plain = client.post(
        OPENAI, json={"prompt": "a cat", "size": "256x256", "n": 6, "seed": 10, "response_format": "b64_json"}
    )
    assert [event["b64_json"] for event in completed] == [d["b64_json"] for d in plain.get_json()["data"]]


def test_an_events_picture_has_the_asked_format(client: FlaskClient) -> None:
    _, completed, _ = stream(client, OPENAI, output_format="webp", output_compression=50, quality="high")
    assert picture(completed.data["b64_json"]).format == "WEBP"
    assert (completed.data["output_format"], completed.data["quality"]) == ("webp", "high")


def test_a_url_cannot_be_had_from_openais_events_and_that_is_told(client: FlaskClient) -> None:
    _, completed, _ = stream(client, OPENAI, response_format="url")
    assert "b64_json" in completed.data
    assert [note["field"] for note in completed.data["_hal0"]["ignored"]] == ["response_format"]


# --- GPUStack's ------------------------------------------------------------------------------------


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
def test_gpustacks_clients_get_nothing_but_data_lines_that_rise_to_100(
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


def test_usage_may_be_left_out_and_a_url_may_take_the_pictures_place(client: FlaskClient) -> None:
    events = stream(client, GPUSTACK, response_format="url", stream_options={"include_usage": False})
    last = events[-2].data
    assert "usage" not in last
    assert "b64_json" not in last["data"][0]
    assert client.get(last["data"][0]["url"]).mimetype == "image/png"


@pytest.mark.parametrize("model", ["sd-1.5", "flux-schnell"])
def test_each_picture_of_one_job_or_several_rises_to_100_by_itself(client: FlaskClient, model: str) -> None:
    *chunks, _ = stream(client, GPUSTACK, model=model, steps=6, n=3)
    for index in range(3):
        entries = [c.data["data"][0] for c in chunks if c.data["data"][0]["index"] == index]
        progress = [entry["progress"] for entry in entries]
        assert progress == sorted(progress)
        assert progress[-1] == 100.0
        assert "b64_json" in entries[-1]
    assert ["usage" in chunk.data for chunk in chunks][-3:] == [False, False, True]


def test_both_dialects_at_once_are_data_only_and_carry_both(client: FlaskClient) -> None:
    *events, done = stream(client, OPENAI, **SD15, partial_images=1, stream_options={"include_usage": True})
    assert done.data == "[DONE]"
    assert all(event.raw.startswith("data: ") for event in events)
    types = [event.data.get("type") for event in events if "type" in event.data]
    assert types == ["image_generation.partial_image", "image_generation.completed"]
    last = events[-1].data
    assert last["b64_json"] == last["data"][0]["b64_json"]
    assert last["data"][0]["progress"] == 100.0


# --- faults ----------------------------------------------------------------------------------------


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
def test_an_error_of_the_request_is_plain_json_before_the_first_event(
    client: FlaskClient, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post(path, json={"prompt": "a", "stream": True, **fields})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code)


def test_a_dead_engine_is_a_plain_503(make_app: MakeApp) -> None:
    client = make_app(engine__url="http://127.0.0.1:9").test_client()
    answer = client.post(OPENAI, json={"prompt": "a", "stream": True})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "engine.unreachable")


@pytest.fixture
def failing(make_app: MakeApp, tmp_path: Any) -> FlaskClient:
    """An application whose SD 1.5 fails when its picture is to be saved."""
    templates = {path.name: path.read_text() for path in (NODES.parents[1] / "templates_wf").iterdir()}
    templates["part_picture.json.j2"] = templates["part_picture.json.j2"].replace(
        "{{ prefix }}", '"../../outside"'
    )
    (tmp_path / "templates").mkdir()
    for name, text in templates.items():
        (tmp_path / "templates" / name).write_text(text)
    return make_app(templates=str(tmp_path / "templates")).test_client()


def test_a_failure_half_way_is_an_error_event_that_openais_sdks_raise(failing: FlaskClient) -> None:
    _, failed = stream(failing, OPENAI, **SD15)
    assert failed.name == "error"
    assert failed.data["type"] == "error"
    assert failed.data["error"]["code"] == "engine.node_failed"
    assert set(failed.data["error"]) == {"message", "type", "param", "code", "details"}


def test_a_failure_half_way_is_told_twice_to_gpustacks_clients_and_then_all_is_done(
    failing: FlaskClient,
) -> None:
    *chunks, raised, told, done = stream(failing, GPUSTACK, **SD15)
    assert all("data" in chunk.data for chunk in chunks)
    assert raised.raw.startswith('data: {"error":')
    assert raised.data["error"]["code"] == "engine.node_failed"
    assert told.raw.startswith('error: {"code":500,')
    assert told.data.keys() == {"code", "message", "type"}
    assert done.data == "[DONE]"


# --- time ------------------------------------------------------------------------------------------


@pytest.fixture
def slow(make_app: MakeApp, catalogue_files: dict[str, list[str]]) -> Iterator[Callable[..., FlaskClient]]:
    """Applications over a sketch engine that takes five seconds a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=5000) as sketch:
        yield lambda **settings: make_app(engine__url=sketch.url, **settings).test_client()


def begin(client: FlaskClient, path: str = OPENAI, **fields: Any) -> Iterator[bytes]:
    answer = client.post(
        path, json={"prompt": "a", "size": "256x256", "stream": True, **SD15, **fields}, buffered=False
    )
    pieces = answer.iter_encoded()
    assert next(iter(pieces))
    return pieces


def test_headers_and_a_first_sign_come_at_once_and_progress_as_it_happens(slow: Any) -> None:
    client, began = slow(), time.monotonic()
    pieces = begin(client, GPUSTACK)
    assert time.monotonic() - began < 1.0
    assert b'"progress":16.7' in next(pieces)
    assert time.monotonic() - began < 2.5


def test_closing_a_stream_frees_the_engine_within_a_second(slow: Any) -> None:
    client = slow()
    answer = client.post(OPENAI, json={"prompt": "a", "stream": True, **SD15}, buffered=False)
    next(answer.iter_encoded())
    engine = client.application.extensions["easel"].engine_selector.current()
    wait_until(lambda: engine.queue().running, 5)
    answer.close()
    wait_until(lambda: not engine.queue().running, 1.0)
    generator = client.application.extensions["easel"].generator
    wait_until(lambda: generator.waiting.count == 0, 1.0)


def test_a_stream_holds_a_place_until_it_ends(slow: Any) -> None:
    client = slow(max_waiting=1)
    answer = client.post(OPENAI, json={"prompt": "a", "stream": True, **SD15}, buffered=False)
    again = client.post(OPENAI, json={"prompt": "a"})
    assert (again.status_code, again.get_json()["error"]["code"]) == (429, "queue.full")
    answer.close()
    generator = client.application.extensions["easel"].generator
    wait_until(lambda: generator.waiting.count == 0, 3)


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


class SilentDrawing:
    """A drawing whose engine says nothing for half a second and then makes no picture."""

    def __init__(self) -> None:
        self.plan = compile_workflow(asked(), CATALOGUE).plan
        self.gave_up = threading.Event()

    def images(
        self, finish: OutputOptions, *, cancelled: Callable[[], bool], **_: Any
    ) -> Iterator[Image.Image]:
        until = time.monotonic() + 0.5
        while time.monotonic() < until and not cancelled():
            time.sleep(0.01)
        self.gave_up.set()
        yield from ()


def silent(
    stream_format: StreamFormat, release: Callable[[], None] = lambda: None
) -> tuple[SilentDrawing, ImageStream]:
    drawing: Any = SilentDrawing()
    request = read_image_request({"prompt": "a"}, endpoint=Endpoint(), request_id="x", draw_seed=lambda: 1)
    frames = StreamEvents(drawing, request, stream_format, Links(""), arrived=0.0)
    body = ImageStream(
        drawing,
        request.finish,
        frames,
        request_id="x",
        cancelled=lambda: False,
        release=release,
        keep_alive_s=0.1,
    )
    return drawing, body


@pytest.mark.parametrize(
    ("form", "sign"),
    [
        (StreamFormat(True, False, None, True), b": still drawing\n\n"),
        (StreamFormat(False, True, None, True), b'data: {"created":'),
    ],
)
def test_a_silent_engine_does_not_make_a_silent_stream(form: StreamFormat, sign: bytes) -> None:
    _, body = silent(form)
    _, *signs, end = body
    assert end == b"data: [DONE]\n\n"
    assert len(signs) >= 2
    assert all(piece.startswith(sign) for piece in signs)


def test_a_stream_that_is_closed_before_its_first_piece_was_read_ends_and_gives_its_place_back() -> None:
    released = threading.Event()
    drawing, body = silent(StreamFormat(True, False, None, True), released.set)
    body.close()
    assert drawing.gave_up.wait(0.3)
    assert released.wait(1)


def test_sixty_four_streams_miss_no_event(client: FlaskClient) -> None:
    texts: list[str] = []

    def one(index: int) -> None:
        answer = client.application.test_client().post(
            GPUSTACK, json={"prompt": "a", "size": "256x256", "stream": True, "seed": index, **SD15}
        )
        texts.append(answer.text)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 64
    for text in texts:
        progress = [event.data["data"][0]["progress"] for event in events_of(text)[:-1]]
        assert progress == [0.0, 16.7, 33.3, 50.0, 66.7, 83.3, 99.0, 100.0]


def test_a_text_of_the_client_cannot_end_an_event(client: FlaskClient) -> None:
    evil = "a\n\ndata: [DONE]\n\nevent: error"
    _, completed, done = stream(client, OPENAI, prompt=evil, user=evil)
    assert json.loads(completed.raw.partition("data: ")[2])["type"] == "image_generation.completed"
    assert done.data == "[DONE]"
