"""OpenAI's own Python SDK. The same tests run with every major version of it."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from openai import (
    APIError,
    APIStatusError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    UnprocessableEntityError,
)
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
)
from row_support import (
    SLOW_MODEL,
    TIMEOUT_S,
    Servers,
    assert_complete_usage,
    assert_only_masked_box_changed,
    assert_red_beside_blue,
    decode_picture,
    fetch_picture,
    wait_until,
)

SMALL: dict[str, Any] = {"prompt": "a cat in a hat", "size": "256x256"}
"""A request that is drawn quickly"""
IN_STEPS: dict[str, Any] = {**SMALL, "model": SLOW_MODEL}
SIX_STEPS = {"steps": 6}
PARTIAL_KEYS = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}
Connect = Callable[..., OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Creates clients of a server; closes them after the test."""
    clients: list[OpenAI] = []

    def make(url: str, **options: Any) -> OpenAI:
        clients.append(OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=TIMEOUT_S, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect, servers: Servers) -> OpenAI:
    """A client with default options."""
    return connect(servers.normal)


def sent_fields(response: Any) -> dict[str, Any]:
    """The fields that the server sent, without the SDK's defaults."""
    fields: dict[str, Any] = response.model_dump(exclude_unset=True)
    return fields


# --- generations -----------------------------------------------------------------------------------


def test_01_a_minimal_request_gets_an_absolute_url_on_the_origin_it_called(
    client: OpenAI, servers: Servers
) -> None:
    response = client.images.generate(model="sdxl-turbo", prompt="a cat in a hat")
    assert response.data
    url = response.data[0].url or ""
    assert url.startswith(f"{servers.normal}/")
    assert fetch_picture(url).format == "PNG"
    assert "b64_json" not in sent_fields(response.data[0])
    assert type(response.created) is int
    assert_complete_usage(sent_fields(response)["usage"])
    assert "_hal0" in (response.model_extra or {})


def test_02_b64_json_is_a_picture_and_there_is_no_url(client: OpenAI) -> None:
    response = client.images.generate(**SMALL, model="sdxl-turbo", response_format="b64_json")
    assert response.data
    assert decode_picture(response.data[0].b64_json).format == "PNG"
    assert "url" not in sent_fields(response.data[0])


def test_03_n_pictures_have_the_requested_size(client: OpenAI) -> None:
    response = client.images.generate(prompt="a cat", size="512x512", n=2)
    assert response.data
    assert [fetch_picture(item.url).size for item in response.data] == [(512, 512), (512, 512)]
    assert response.size == "512x512"


def test_04_the_fields_that_only_gpt_image_has_are_accepted_and_select_base64(client: OpenAI) -> None:
    response = client.images.generate(
        model="sdxl-turbo",
        prompt="a cat",
        size="auto",
        quality="auto",
        background="auto",
        moderation="low",
        output_format="jpeg",
        output_compression=80,
        style="vivid",
        user="x",
    )
    assert response.data
    assert decode_picture(response.data[0].b64_json).format == "JPEG"
    assert response.output_format == "jpeg"


SPELLINGS = {
    "easel": {"steps": 3, "cfg": 2.0, "sampler": "euler", "schedule": "normal"},
    "diffusers": {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "euler", "scheduler": "normal"},
    "gpustack": {"sample_steps": 3, "cfg_scale": 2.0, "sampler": "euler", "schedule": "default"},
    "llama-box": {
        "sampling_steps": 3,
        "cfg_scale": 2.0,
        "sample_method": "euler",
        "schedule_method": "default",
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_05_every_spelling_gives_the_same_values_and_the_same_picture(client: OpenAI, spelling: str) -> None:
    def draw(name: str) -> Any:
        fields = {"seed": 7, "negative_prompt": "a dog", **SPELLINGS[name]}
        return client.images.generate(**IN_STEPS, response_format="b64_json", extra_body=fields)

    reference, response = draw("easel"), draw(spelling)
    meta = response.model_extra["_hal0"]["meta"]
    assert meta == reference.model_extra["_hal0"]["meta"]
    assert (meta["seed"], meta["steps"], meta["cfg"], meta["negative_prompt"]) == (7, 3, 2.0, "a dog")
    assert response.data[0].b64_json == reference.data[0].b64_json


@pytest.mark.parametrize(
    ("model", "response_format"),
    [
        ({"model": ""}, "url"),
        ({}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "gpt-image-1"}, "b64_json"),
    ],
)
def test_07_openais_model_names_and_no_name_select_the_default_model(
    client: OpenAI, model: Any, response_format: str
) -> None:
    response = client.images.generate(**SMALL, **model)
    assert response.data
    assert list(sent_fields(response.data[0])) == [response_format]
    assert (response.model_extra or {})["_hal0"]["model"] == "sdxl-turbo"


# --- errors ----------------------------------------------------------------------------------------


def test_08_an_unknown_model_is_a_404_that_is_not_retried(client: OpenAI, servers: Servers) -> None:
    request_id = uuid.uuid4().hex
    with pytest.raises(NotFoundError) as caught:
        client.images.generate(prompt="a cat", model="nope", extra_headers={"x-request-id": request_id})
    assert (caught.value.code, caught.value.param) == ("image.model_not_curated", "model")
    assert caught.value.request_id == request_id
    assert servers.received_requests("normal", request_id) == ["POST /v1/images/generations 404"]


def test_09_an_empty_prompt_is_an_error_with_type_and_details(client: OpenAI) -> None:
    with pytest.raises(UnprocessableEntityError) as caught:
        client.images.generate(prompt="")
    assert (caught.value.code, caught.value.type) == ("image.prompt_required", "invalid_request_error")
    assert isinstance(caught.value.body, dict)
    assert isinstance(caught.value.body["details"], dict)


@pytest.mark.parametrize(
    ("field", "value"), [("size", "banana"), ("n", 0), ("n", "x"), ("output_format", "gif")]
)
def test_10_an_error_about_a_value_names_its_field(client: OpenAI, field: str, value: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(prompt="a cat", **{field: value})
    assert caught.value.param == field


def test_11_an_engine_that_is_down_is_a_503_with_retry_after(connect: Connect, servers: Servers) -> None:
    with pytest.raises(InternalServerError) as caught:
        connect(servers.down, max_retries=0).images.generate(**SMALL)
    assert (caught.value.status_code, caught.value.code) == (503, "engine.unreachable")
    assert float(caught.value.response.headers["Retry-After"]) > 0


def test_11_a_failed_job_is_a_500_that_is_not_retried(connect: Connect, servers: Servers) -> None:
    request_id = uuid.uuid4().hex
    with pytest.raises(InternalServerError) as caught:
        connect(servers.failing).images.generate(
            **SMALL, model="fails", extra_body=SIX_STEPS, extra_headers={"x-request-id": request_id}
        )
    assert (caught.value.status_code, caught.value.code) == (500, "engine.node_failed")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert servers.received_requests("failing", request_id) == ["POST /v1/images/generations 500"]


# --- streams ---------------------------------------------------------------------------------------


def test_12_a_stream_has_the_partial_pictures_and_then_the_picture(client: OpenAI, servers: Servers) -> None:
    stream = client.images.generate(**IN_STEPS, stream=True, partial_images=2, extra_body=SIX_STEPS)
    events = list(stream)
    *partial, completed = events
    assert all(isinstance(event, ImageGenPartialImageEvent) for event in partial)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(
        sent_fields(event).keys() >= PARTIAL_KEYS and decode_picture(event.b64_json) for event in partial
    )
    # A real ComfyUI sends previews only if it was started with them.
    assert len(partial) == 2 if servers.is_sketch else len(partial) <= 2
    assert isinstance(completed, ImageGenCompletedEvent)
    assert completed.type == "image_generation.completed"
    assert sent_fields(completed).keys() >= PARTIAL_KEYS
    assert decode_picture(completed.b64_json).size == (256, 256)
    assert_complete_usage(sent_fields(completed)["usage"])


def test_12_a_stream_of_two_pictures_has_two_completed_events(client: OpenAI) -> None:
    events = list(
        client.images.generate(**IN_STEPS, n=2, stream=True, partial_images=1, extra_body=SIX_STEPS)
    )
    allowed = ("image_generation.partial_image", "image_generation.completed")
    assert {event.type for event in events} <= set(allowed)
    assert [event.type for event in events].count(allowed[1]) == 2


def test_13_a_stream_without_partial_pictures_has_the_picture_and_ends(client: OpenAI) -> None:
    events = list(client.images.generate(**SMALL, stream=True))
    assert events[-1].type == "image_generation.completed"
    assert decode_picture(events[-1].b64_json).size == (256, 256)


def test_14_a_streamed_edit_has_events_named_after_edits(client: OpenAI, servers: Servers) -> None:
    stream = client.images.edit(
        image=servers.picture("photo.png"),
        prompt="a cat",
        model=SLOW_MODEL,
        stream=True,
        partial_images=1,
        extra_body=SIX_STEPS,
    )
    *partial, completed = list(stream)
    assert all(isinstance(event, ImageEditPartialImageEvent) for event in partial)
    assert [event.type for event in partial] == ["image_edit.partial_image"] * len(partial)
    assert len(partial) <= 1
    assert isinstance(completed, ImageEditCompletedEvent)
    assert completed.type == "image_edit.completed"
    assert decode_picture(completed.b64_json).size == (256, 256)
    assert_complete_usage(sent_fields(completed)["usage"])


def test_15_gpustacks_progress_can_be_read_with_the_sdk(client: OpenAI) -> None:
    extra = {**SIX_STEPS, "stream_options": {"include_usage": True}}
    events = [
        sent_fields(event) for event in client.images.generate(**IN_STEPS, stream=True, extra_body=extra)
    ]
    progress = [event["data"][0]["progress"] for event in events]
    assert progress == sorted(progress)
    assert (len(progress) > 2, progress[-1]) == (True, 100.0)
    assert decode_picture(events[-1]["data"][0]["b64_json"]).size == (256, 256)
    usage = events[-1]["usage"]
    assert_complete_usage(usage)
    assert usage.keys() >= {"generation_per_second", "time_per_generation_ms", "time_to_process_ms"}


def test_15_a_stream_can_have_progress_and_partial_pictures(client: OpenAI, servers: Servers) -> None:
    extra = {**SIX_STEPS, "stream_options": {"include_usage": True}}
    stream = client.images.generate(**IN_STEPS, stream=True, partial_images=2, extra_body=extra)
    events = [sent_fields(event) for event in stream]
    partial = [event for event in events if event.get("type") == "image_generation.partial_image"]
    assert all(decode_picture(event["b64_json"]) for event in partial)
    assert len(partial) == 2 if servers.is_sketch else len(partial) <= 2
    assert events[-1]["type"] == "image_generation.completed"
    assert decode_picture(events[-1]["b64_json"]).size == (256, 256)
    assert events[-1]["data"][0]["progress"] == 100.0


def test_18_an_invalid_image_in_a_gpustack_stream_raises(client: OpenAI, servers: Servers) -> None:
    with pytest.raises(APIError, match=r"^Invalid image"):
        list(
            client.images.edit(
                image=servers.picture("no_picture.png"),
                prompt="a cat",
                stream=True,
                extra_body={"stream_options": {"include_usage": True}},
            )
        )


@pytest.mark.parametrize(
    "extra", [{}, {"stream_options": {"include_usage": True}}], ids=["openai", "gpustack"]
)
def test_19_a_failure_during_a_stream_raises_its_code(connect: Connect, servers: Servers, extra: Any) -> None:
    stream = connect(servers.failing).images.generate(
        **SMALL, model="fails", stream=True, extra_body={**SIX_STEPS, **extra}
    )
    with pytest.raises(APIError) as caught:
        list(stream)
    assert not isinstance(caught.value, APIStatusError)
    assert caught.value.code == "engine.node_failed"


# --- edits and variations --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [{}, {"size": "auto"}, {"size": "256x256"}], ids=["absent", "auto", "own"])
def test_20_only_the_transparent_part_of_the_mask_is_redrawn(
    client: OpenAI, servers: Servers, size: Any
) -> None:
    with (
        open(servers.pictures / "photo.png", "rb") as image,
        open(servers.pictures / "mask_alpha.png", "rb") as mask,
    ):
        response = client.images.edit(image=image, mask=mask, prompt="a red ball", **size)
    assert response.data
    assert_only_masked_box_changed(servers.picture("photo.png"), decode_picture(response.data[0].b64_json))


IMAGES: dict[str, Callable[[Servers], Any]] = {
    "a file": lambda servers: io.BufferedReader(io.FileIO(servers.pictures / "photo.png")),
    "a list of one": lambda servers: [io.BufferedReader(io.FileIO(servers.pictures / "photo.png"))],
    "bytes": lambda servers: servers.picture("photo.png"),
    "a named jpeg": lambda servers: ("x.jpg", servers.picture("photo.jpg"), "image/jpeg"),
}


@pytest.mark.parametrize("image", IMAGES)
def test_22_an_edit_accepts_every_way_to_send_an_image(client: OpenAI, servers: Servers, image: str) -> None:
    response = client.images.edit(image=IMAGES[image](servers), prompt="a cat", size="256x256")
    assert response.data
    assert list(sent_fields(response.data[0])) == ["b64_json"]
    assert decode_picture(response.data[0].b64_json).size == (256, 256)


def test_22_several_images_arrive_in_order_at_a_model_that_takes_them(
    connect: Connect, servers: Servers
) -> None:
    images = [servers.picture("red.png"), servers.picture("blue.png")]
    response = connect(servers.failing).images.edit(image=images, prompt="", model="stitch")
    assert response.data
    assert_red_beside_blue(decode_picture(response.data[0].b64_json))


def test_22_several_images_are_refused_by_a_model_that_takes_one(client: OpenAI, servers: Servers) -> None:
    images = [servers.picture("photo.png"), servers.picture("large.png")]
    with pytest.raises(BadRequestError) as caught:
        client.images.edit(image=images, prompt="a cat", size="256x256")
    assert (caught.value.code, caught.value.param) == ("image.image_count_not_allowed", "image")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_23_extra_body_extends_an_image(client: OpenAI, servers: Servers) -> None:
    response = client.images.edit(
        image=servers.picture("photo.png"),
        prompt="a cat",
        model=SLOW_MODEL,
        extra_body={"outpaint": {"left": 64, "bottom": 32}, "steps": 1},
    )
    assert response.data
    assert decode_picture(response.data[0].b64_json).size == (320, 288)
    assert (response.model_extra or {})["_hal0"]["meta"]["outpaint"]["left"] == 64


def test_23_extra_body_has_a_control_image_and_a_lora(client: OpenAI, servers: Servers) -> None:
    url = "data:image/png;base64," + base64.b64encode(servers.picture("photo.png")).decode()
    response = client.images.generate(
        prompt="a cat",
        model="sd-1.5-canny",
        size="256x256",
        extra_body={"control_image": url, "control_strength": 0.8, "lora": "lcm-sd-1.5", "steps": 2},
    )
    meta = (response.model_extra or {})["_hal0"]["meta"]
    assert (meta["control_strength"], meta["steps"], meta["sampler"]) == (0.8, 2, "lcm")


def test_25_an_image_has_variations(client: OpenAI, servers: Servers) -> None:
    response = client.images.create_variation(image=servers.picture("photo.png"), n=2, size="256x256")
    assert response.data
    assert [fetch_picture(item.url).size for item in response.data] == [(256, 256), (256, 256)]


# --- models, disconnects, usage --------------------------------------------------------------------


def test_34_models_are_listed_and_can_be_retrieved_by_their_publishers_names(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert "sdxl-turbo" in [model.id for model in listed]
    assert {(model.object, type(model.created)) for model in listed} == {("model", int)}
    assert client.models.retrieve("stabilityai/sdxl-turbo").id == "sdxl-turbo"
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nobody/nothing")
    assert caught.value.code == "image.model_not_curated"


def test_36_a_client_that_disconnects_during_a_stream_frees_the_engine(
    connect: Connect, servers: Servers
) -> None:
    client = connect(servers.slow, max_retries=0)
    extra = {"steps": servers.slow_steps, "stream_options": {"include_usage": True}}
    with closing(client.images.generate(**IN_STEPS, stream=True, extra_body=extra)) as stream:
        # The first event may be sent before the engine has the job.
        next(event for event in stream if sent_fields(event)["data"][0]["progress"] > 0)
        assert servers.jobs() == 1
    assert_engine_is_free(client, servers)


def test_36_a_client_that_disconnects_before_the_first_event_frees_the_engine(
    connect: Connect, servers: Servers
) -> None:
    client = connect(servers.slow, max_retries=0)
    extra = {"steps": servers.slow_steps}
    with closing(client.images.generate(**IN_STEPS, stream=True, extra_body=extra)):
        wait_until(lambda: servers.jobs() == 1)
    assert_engine_is_free(client, servers)


def assert_engine_is_free(client: OpenAI, servers: Servers) -> None:
    """The engine has no job, sooner than the job would have ended by itself, and the next request succeeds."""
    wait_until(lambda: servers.jobs() == 0, 4 if servers.is_sketch else 10)
    assert client.images.generate(**SMALL).data


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_38_token_counts_are_always_present(client: OpenAI, response_format: Any) -> None:
    usage = client.images.generate(**SMALL, response_format=response_format).usage
    assert usage
    assert type(usage.input_tokens_details.text_tokens) is int
    assert type(usage.input_tokens_details.image_tokens) is int
    assert type(usage.total_tokens) is int
