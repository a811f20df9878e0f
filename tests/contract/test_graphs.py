"""Every graph that the project's own catalogue can produce gives the expected pictures: always on the sketch engine,
and on a real ComfyUI for the models whose files it has."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image, ImageChops, ImageDraw
from raw_comfyui import REAL

from tests.api.sse import events_of
from tests.conftest import MakeApp
from tests.pictures.pictures import encoded, pattern

MODELS = ["sdxl-turbo", "sd-1.5-pruned-emaonly", "sdxl-base-1.0", "flux-schnell", "flux-schnell-fp8"]
FEW_STEPS = {
    "sdxl-turbo": "1",
    "sd-1.5-pruned-emaonly": "2",
    "sdxl-base-1.0": "2",
    "flux-schnell": "1",
    "flux-schnell-fp8": "1",
}


@pytest.fixture(params=["sketch", *(["comfyui"] if os.environ.get(REAL) else [])])
def client(request: pytest.FixtureRequest, make_app: MakeApp, sketch_url: str) -> FlaskClient:
    url = os.environ[REAL] if request.param == "comfyui" else sketch_url
    return make_app(engine__url=url, request_timeout_s=900).test_client()


def skip_unless_available(client: FlaskClient, **fields: str) -> None:
    """Skip the test if this engine lacks the files; any other error is left to the test."""
    response = client.post(
        "/v1/images/generations", json={"prompt": "x", "size": "256x256", "steps": 1, **fields}
    )
    if response.status_code == 503 and response.get_json()["error"]["code"] == "model.files_missing":
        pytest.skip(f"this engine does not have the files of {fields}")


def mask_of_the_middle(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).rectangle((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=255)
    return mask


def png(image: Image.Image) -> tuple[io.BytesIO, str]:
    return io.BytesIO(encoded(image)), "a.png"


def pictures_from(client: FlaskClient, path: str, **fields: Any) -> list[Image.Image]:
    response = client.post(
        path,
        data={"prompt": "a hat", "response_format": "b64_json", **fields},
        content_type="multipart/form-data",
    )
    assert response.status_code == 200, response.text[:2000]
    return [
        Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).convert("RGB")
        for image in response.get_json()["data"]
    ]


@pytest.mark.parametrize("model", MODELS)
def test_an_edit_has_the_size_of_its_image_even_if_the_model_needs_a_multiple(
    client: FlaskClient, model: str
) -> None:
    skip_unless_available(client, model=model)
    image = pattern(300, 260)
    (picture,) = pictures_from(
        client, "/v1/images/edits", image=png(image), model=model, steps=FEW_STEPS[model]
    )
    assert picture.size == (300, 260)
    assert picture.tobytes() != image.tobytes()


@pytest.mark.parametrize("model", MODELS)
def test_inpainting_keeps_every_pixel_outside_the_mask_in_every_picture_of_a_batch(
    client: FlaskClient, model: str
) -> None:
    skip_unless_available(client, model=model)
    image, mask = pattern(300, 260), mask_of_the_middle(300, 260)
    fields = {"image": png(image), "mask": png(mask), "model": model, "n": "2", "steps": FEW_STEPS[model]}
    pictures = pictures_from(client, "/v1/images/edits", **fields)
    assert len({picture.tobytes() for picture in pictures}) == 2
    for picture in pictures:
        changed = ImageChops.difference(picture, image).convert("L").point(lambda level: 255 * (level > 0))
        assert changed.getbbox() is not None
        assert ImageChops.subtract(changed, mask).getbbox() is None


@pytest.mark.parametrize("model", MODELS)
def test_strength_changes_the_picture_and_a_weaker_sketch_stays_closer_to_the_image(
    client: FlaskClient, model: str
) -> None:
    skip_unless_available(client, model=model)
    image = Image.new("RGB", (256, 256), (200, 60, 60))
    ImageDraw.Draw(image).ellipse((60, 60, 190, 190), fill=(40, 90, 200))
    distances = []
    for strength in ("0.4", "1.0"):
        fields = {"image": png(image), "model": model, "strength": strength, "seed": "5", "steps": "4"}
        (picture,) = pictures_from(client, "/v1/images/edits", **fields)
        histogram = ImageChops.difference(picture, image).convert("L").histogram()
        distances.append(sum(level * count for level, count in enumerate(histogram)))
    assert distances[0] != distances[1]
    if client.application.extensions["easel"].engine_selector.current().is_sketch:
        assert distances[0] < distances[1]  # with random weights this need not hold


@pytest.mark.parametrize("schedule", ["ays", "gits", "karras", "discrete", "exponential", "default"])
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
@pytest.mark.parametrize("model", ["sd-1.5", "sdxl-base"])
def test_every_schedule_of_gpustacks_runs(client: FlaskClient, model: str, schedule: str, path: str) -> None:
    skip_unless_available(client, model=model)
    fields = {"model": model, "schedule": schedule, "steps": "3", "strength": "0.5"}
    assert pictures_from(client, path, image=png(pattern(256, 256)), **fields)


@pytest.mark.parametrize(
    "sampler",
    [
        "euler_a",
        "euler",
        "heun",
        "dpm2",
        "dpm++2s_a",
        "dpm++2m",
        "dpm++2mv2",
        "ipndm",
        "ipndm_v",
        "lcm",
        "ddim_trailing",
    ],
)
def test_every_sampler_of_gpustacks_runs(client: FlaskClient, sampler: str) -> None:
    skip_unless_available(client, model="sd-1.5")
    body = {
        "prompt": "x",
        "model": "sd-1.5",
        "size": "256x256",
        "sampler": sampler,
        "steps": 2,
        "schedule": "ays",
    }
    response = client.post("/v1-openai/image/generate", json=body)
    assert response.status_code == 200, response.text


def test_a_lora_runs_and_changes_the_picture(client: FlaskClient) -> None:
    skip_unless_available(client, model="sd-1.5", lora="lcm-sd-1.5")
    fields = {"image": png(pattern(256, 256)), "model": "sd-1.5", "steps": "2", "seed": "3"}
    (plain,) = pictures_from(client, "/v1/images/edits", **fields)
    fields["image"] = png(pattern(256, 256))
    (changed,) = pictures_from(
        client, "/v1/images/edits", **fields, lora='[{"name": "lcm-sd-1.5", "strength": 2}]'
    )
    assert plain.tobytes() != changed.tobytes()


def test_a_stream_reports_every_step_and_sends_previews_if_the_engine_makes_them(client: FlaskClient) -> None:
    skip_unless_available(client, model="sd-1.5")
    body = {
        "prompt": "x",
        "model": "sd-1.5",
        "size": "256x256",
        "steps": 4,
        "stream": True,
        "partial_images": 2,
    }
    events = [
        event for event in events_of(client.post("/v1/images/generations", json=body).text) if event.name
    ]
    *partials, completed = events
    assert completed.name == "image_generation.completed"
    assert [event.data["partial_image_index"] for event in partials] == list(range(len(partials)))
    version = client.application.extensions["easel"].engine_selector.current().stats().version
    if tuple(map(int, version.split(".")[:2])) >= (0, 8):
        assert len(partials) == 2, "this ComfyUI makes previews when a job asks for them"
    body |= {"stream_options": {}, "partial_images": None}
    *chunks, _ = events_of(client.post("/v1/images/generations", json=body).text)
    assert [chunk.data["data"][0]["progress"] for chunk in chunks] == [0.0, 25.0, 50.0, 75.0, 99.0, 100.0]
