"""OpenAI's own Python SDK. The same promises for every major version of it."""

from __future__ import annotations

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
from served import (
    GIVE_UP_S,
    SLOW_MODEL,
    Served,
    assert_complete_usage,
    assert_only_the_hole_changed,
    fetched,
    opened,
    wait_until,
)

SMALL: dict[str, Any] = {"prompt": "a cat in a hat", "size": "256x256"}
"""A request that is quick to draw"""
IN_STEPS: dict[str, Any] = {**SMALL, "model": SLOW_MODEL}
SIX_STEPS = {"steps": 6}
PARTIAL_KEYS = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}
Connect = Callable[..., OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients of a server; closes them."""
    clients: list[OpenAI] = []

    def make(url: str, **options: Any) -> OpenAI:
        clients.append(OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=GIVE_UP_S, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect, served: Served) -> OpenAI:
    """A client as anybody makes it."""
    return connect(served.normal)


def given(answer: Any) -> dict[str, Any]:
    """The keys that really were in the answer."""
    found: dict[str, Any] = answer.model_dump(exclude_unset=True)
    return found


# --- generations -----------------------------------------------------------------------------------


def test_01_a_bare_request_gets_an_absolute_url_of_the_origin_it_called(
    client: OpenAI, served: Served
) -> None:
    answer = client.images.generate(model="sdxl-turbo", prompt="a cat in a hat")
    assert answer.data
    url = answer.data[0].url or ""
    assert url.startswith(f"{served.normal}/")
    assert fetched(url).format == "PNG"
    assert "b64_json" not in given(answer.data[0])
    assert type(answer.created) is int
    assert_complete_usage(given(answer)["usage"])
    assert "_hal0" in (answer.model_extra or {})


def test_02_b64_json_is_a_picture_and_comes_without_a_url(client: OpenAI) -> None:
    answer = client.images.generate(**SMALL, model="sdxl-turbo", response_format="b64_json")
    assert answer.data
    assert opened(answer.data[0].b64_json).format == "PNG"
    assert "url" not in given(answer.data[0])


def test_03_n_pictures_of_the_size_that_was_asked_for(client: OpenAI) -> None:
    answer = client.images.generate(prompt="a cat", size="512x512", n=2)
    assert answer.data
    assert [fetched(item.url).size for item in answer.data] == [(512, 512), (512, 512)]
    assert answer.size == "512x512"


def test_04_what_only_gpt_image_has_is_parsed_and_means_base64(client: OpenAI) -> None:
    answer = client.images.generate(
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
    assert answer.data
    assert opened(answer.data[0].b64_json).format == "JPEG"
    assert answer.output_format == "jpeg"


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
def test_05_every_spelling_means_the_same_values_and_the_same_picture(client: OpenAI, spelling: str) -> None:
    def draw(name: str) -> Any:
        fields = {"seed": 7, "negative_prompt": "a dog", **SPELLINGS[name]}
        return client.images.generate(**IN_STEPS, response_format="b64_json", extra_body=fields)

    reference, answer = draw("easel"), draw(spelling)
    meta = answer.model_extra["_hal0"]["meta"]
    assert meta == reference.model_extra["_hal0"]["meta"]
    assert (meta["seed"], meta["steps"], meta["cfg"], meta["negative_prompt"]) == (7, 3, 2.0, "a dog")
    assert answer.data[0].b64_json == reference.data[0].b64_json


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ({"model": ""}, "url"),
        ({}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "gpt-image-1"}, "b64_json"),
    ],
)
def test_07_openais_names_and_none_are_the_default_model(client: OpenAI, model: Any, form: str) -> None:
    answer = client.images.generate(**SMALL, **model)
    assert answer.data
    assert list(given(answer.data[0])) == [form]
    assert (answer.model_extra or {})["_hal0"]["model"] == "sdxl-turbo"


# --- errors ----------------------------------------------------------------------------------------


def test_08_an_unknown_model_is_not_found_at_the_first_try(client: OpenAI, served: Served) -> None:
    name = uuid.uuid4().hex
    with pytest.raises(NotFoundError) as caught:
        client.images.generate(prompt="a cat", model="nope", extra_headers={"x-request-id": name})
    assert (caught.value.code, caught.value.param) == ("image.model_not_curated", "model")
    assert caught.value.request_id == name
    assert served.seen("normal", name) == ["POST /v1/images/generations 404"]


def test_09_an_empty_prompt_is_named_with_type_and_details(client: OpenAI) -> None:
    with pytest.raises(UnprocessableEntityError) as caught:
        client.images.generate(prompt="")
    assert (caught.value.code, caught.value.type) == ("image.prompt_required", "invalid_request_error")
    assert isinstance(caught.value.body, dict)
    assert isinstance(caught.value.body["details"], dict)


@pytest.mark.parametrize(
    ("field", "value"), [("size", "banana"), ("n", 0), ("n", "x"), ("output_format", "gif")]
)
def test_10_a_wrong_value_is_told_by_the_name_of_its_field(client: OpenAI, field: str, value: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(prompt="a cat", **{field: value})
    assert caught.value.param == field


def test_11_an_engine_that_is_down_is_a_503_that_says_when_to_come_back(
    connect: Connect, served: Served
) -> None:
    with pytest.raises(InternalServerError) as caught:
        connect(served.down, max_retries=0).images.generate(**SMALL)
    assert (caught.value.status_code, caught.value.code) == (503, "engine.unreachable")
    assert float(caught.value.response.headers["Retry-After"]) > 0


def test_11_a_job_that_failed_is_a_500_that_nobody_repeats(connect: Connect, served: Served) -> None:
    name = uuid.uuid4().hex
    with pytest.raises(InternalServerError) as caught:
        connect(served.failing).images.generate(
            **SMALL, model="fails", extra_body=SIX_STEPS, extra_headers={"x-request-id": name}
        )
    assert (caught.value.status_code, caught.value.code) == (500, "engine.node_failed")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert served.seen("failing", name) == ["POST /v1/images/generations 500"]


# --- streams ---------------------------------------------------------------------------------------


def test_12_a_stream_has_its_partial_pictures_and_then_the_picture(client: OpenAI, served: Served) -> None:
    stream = client.images.generate(**IN_STEPS, stream=True, partial_images=2, extra_body=SIX_STEPS)
    events = list(stream)
    *partial, completed = events
    assert all(isinstance(event, ImageGenPartialImageEvent) for event in partial)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(given(event).keys() >= PARTIAL_KEYS and opened(event.b64_json) for event in partial)
    # A real ComfyUI has previews only if it was started with them.
    assert len(partial) == 2 if served.is_sketch else len(partial) <= 2
    assert isinstance(completed, ImageGenCompletedEvent)
    assert completed.type == "image_generation.completed"
    assert given(completed).keys() >= PARTIAL_KEYS
    assert opened(completed.b64_json).size == (256, 256)
    assert_complete_usage(given(completed)["usage"])


def test_12_a_stream_completes_each_of_its_pictures(client: OpenAI) -> None:
    events = list(
        client.images.generate(**IN_STEPS, n=2, stream=True, partial_images=1, extra_body=SIX_STEPS)
    )
    allowed = ("image_generation.partial_image", "image_generation.completed")
    assert {event.type for event in events} <= set(allowed)
    assert [event.type for event in events].count(allowed[1]) == 2


def test_13_a_plain_stream_gives_the_picture_and_ends(client: OpenAI) -> None:
    events = list(client.images.generate(**SMALL, stream=True))
    assert events[-1].type == "image_generation.completed"
    assert opened(events[-1].b64_json).size == (256, 256)


def test_14_a_streamed_edit_speaks_of_edits(client: OpenAI, served: Served) -> None:
    stream = client.images.edit(
        image=served.picture("photo.png"),
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
    assert opened(completed.b64_json).size == (256, 256)
    assert_complete_usage(given(completed)["usage"])


def test_15_gpustacks_progress_comes_through_the_sdk(client: OpenAI) -> None:
    extra = {**SIX_STEPS, "stream_options": {"include_usage": True}}
    events = [given(event) for event in client.images.generate(**IN_STEPS, stream=True, extra_body=extra)]
    progress = [event["data"][0]["progress"] for event in events]
    assert progress == sorted(progress)
    assert (len(progress) > 2, progress[-1]) == (True, 100.0)
    assert opened(events[-1]["data"][0]["b64_json"]).size == (256, 256)
    usage = events[-1]["usage"]
    assert_complete_usage(usage)
    assert usage.keys() >= {"generation_per_second", "time_per_generation_ms", "time_to_process_ms"}


def test_15_progress_and_partial_pictures_share_a_stream(client: OpenAI, served: Served) -> None:
    extra = {**SIX_STEPS, "stream_options": {"include_usage": True}}
    stream = client.images.generate(**IN_STEPS, stream=True, partial_images=2, extra_body=extra)
    events = [given(event) for event in stream]
    partial = [event for event in events if event.get("type") == "image_generation.partial_image"]
    assert all(opened(event["b64_json"]) for event in partial)
    assert len(partial) == 2 if served.is_sketch else len(partial) <= 2
    assert events[-1]["type"] == "image_generation.completed"
    assert opened(events[-1]["b64_json"]).size == (256, 256)
    assert events[-1]["data"][0]["progress"] == 100.0


def test_18_an_illegal_image_inside_a_gpustack_stream_raises(client: OpenAI, served: Served) -> None:
    with pytest.raises(APIError, match=r"^Invalid image"):
        list(
            client.images.edit(
                image=served.picture("no_picture.png"),
                prompt="a cat",
                stream=True,
                extra_body={"stream_options": {"include_usage": True}},
            )
        )


@pytest.mark.parametrize(
    "extra", [{}, {"stream_options": {"include_usage": True}}], ids=["openai", "gpustack"]
)
def test_19_a_failure_in_mid_stream_raises_with_its_code(
    connect: Connect, served: Served, extra: Any
) -> None:
    stream = connect(served.failing).images.generate(
        **SMALL, model="fails", stream=True, extra_body={**SIX_STEPS, **extra}
    )
    with pytest.raises(APIError) as caught:
        list(stream)
    assert not isinstance(caught.value, APIStatusError)
    assert caught.value.code == "engine.node_failed"


# --- edits and variations --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [{}, {"size": "auto"}, {"size": "256x256"}], ids=["absent", "auto", "own"])
def test_20_only_what_the_mask_leaves_transparent_is_drawn(client: OpenAI, served: Served, size: Any) -> None:
    with (
        open(served.pictures / "photo.png", "rb") as image,
        open(served.pictures / "mask_alpha.png", "rb") as mask,
    ):
        answer = client.images.edit(image=image, mask=mask, prompt="a red ball", **size)
    assert answer.data
    assert_only_the_hole_changed(served.picture("photo.png"), opened(answer.data[0].b64_json))


IMAGES: dict[str, Callable[[Served], Any]] = {
    "a file": lambda served: io.BufferedReader(io.FileIO(served.pictures / "photo.png")),
    "a list of one": lambda served: [io.BufferedReader(io.FileIO(served.pictures / "photo.png"))],
    "a list of two": lambda served: [served.picture("photo.png"), served.picture("large.png")],
    "bytes": lambda served: served.picture("photo.png"),
    "a named jpeg": lambda served: ("x.jpg", served.picture("photo.jpg"), "image/jpeg"),
}


@pytest.mark.parametrize("image", IMAGES)
def test_22_an_edit_takes_an_image_however_it_is_sent(client: OpenAI, served: Served, image: str) -> None:
    answer = client.images.edit(image=IMAGES[image](served), prompt="a cat", size="256x256")
    assert answer.data
    assert list(given(answer.data[0])) == ["b64_json"]
    assert opened(answer.data[0].b64_json).size == (256, 256)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_25_variations_of_an_image(client: OpenAI, served: Served) -> None:
    answer = client.images.create_variation(image=served.picture("photo.png"), n=2, size="256x256")
    assert answer.data
    assert [fetched(item.url).size for item in answer.data] == [(256, 256), (256, 256)]


# --- models, hang-ups, usage -----------------------------------------------------------------------


def test_34_models_are_listed_and_found_by_their_publishers_names(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert "sdxl-turbo" in [model.id for model in listed]
    assert {(model.object, type(model.created)) for model in listed} == {("model", int)}
    assert client.models.retrieve("stabilityai/sdxl-turbo").id == "sdxl-turbo"
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nobody/nothing")
    assert caught.value.code == "image.model_not_curated"


def test_36_who_leaves_in_mid_stream_frees_the_engine_for_the_next(connect: Connect, served: Served) -> None:
    client = connect(served.slow, max_retries=0)
    extra = {"steps": served.slow_steps, "stream_options": {"include_usage": True}}
    with closing(client.images.generate(**IN_STEPS, stream=True, extra_body=extra)) as stream:
        # The first frame may come before the engine has the job at all.
        next(event for event in stream if given(event)["data"][0]["progress"] > 0)
        assert served.jobs() == 1
    assert_is_free(client, served)


def test_36_who_leaves_before_there_is_anything_to_read_frees_it_too(
    connect: Connect, served: Served
) -> None:
    client = connect(served.slow, max_retries=0)
    extra = {"steps": served.slow_steps}
    with closing(client.images.generate(**IN_STEPS, stream=True, extra_body=extra)):
        wait_until(lambda: served.jobs() == 1)
    assert_is_free(client, served)


def assert_is_free(client: OpenAI, served: Served) -> None:
    """Sooner than the job would have ended by itself, and nothing of it holds the next request back."""
    wait_until(lambda: served.jobs() == 0, 4 if served.is_sketch else 10)
    assert client.images.generate(**SMALL).data


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_38_token_counts_may_be_read_without_looking(client: OpenAI, form: Any) -> None:
    usage = client.images.generate(**SMALL, response_format=form).usage
    assert usage
    assert type(usage.input_tokens_details.text_tokens) is int
    assert type(usage.input_tokens_details.image_tokens) is int
    assert type(usage.total_tokens) is int
