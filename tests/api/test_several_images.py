"""Edits with several images over HTTP: their order, their number, the markup, and what stays in the engine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from PIL import Image, ImageDraw
from werkzeug.datastructures import MultiDict

from api.request_images import MAX_PIXELS
from compiler import ImageRequest
from errors import RequestCancelled
from generation import OutputOptions, Pictures
from pictures import read_image
from sketch import SketchProcess
from tests.api.openai_types import respond
from tests.api.test_edits import EDITS, VARIATIONS, data_url, file, mask, pictures
from tests.compiler.catalogues import ENCODED, IMAGES, STITCHED, with_workflow, write_sources
from tests.conftest import NODES, ROOT, MakeApp
from tests.pictures.pictures import encoded, pattern
from tests.waiting import wait_until

GENERATIONS = "/v1/images/generations"
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 60), (40, 60, 190)


@pytest.fixture
def make_client(make_app: MakeApp, tmp_path: Path) -> Callable[..., FlaskClient]:
    """Makes a client of an application with a model `mine`, whose workflow takes several images."""

    def make(
        template: str = STITCHED, images: Any = IMAGES, settings: dict[str, Any] | None = None, **fields: Any
    ) -> FlaskClient:
        tasks = fields.pop("tasks", ["edit"])
        sources = with_workflow(template, tasks=tasks, images=images, **fields)
        return make_app(**write_sources(sources, tmp_path), **(settings or {})).test_client()

    return make


@pytest.fixture
def client(make_client: Callable[..., FlaskClient]) -> FlaskClient:
    return make_client()


def flat(
    colour: tuple[int, int, int], width: int = 256, height: int = 256, form: str = "PNG", **more: Any
) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), form, **more)


THREE = (flat(RED), flat(GREEN, 64, 40), flat(BLUE, 24, 90))
WIDTHS = (256, 64, 24)


def parts_of(body: dict[str, Any]) -> list[tuple[int, int, int]]:
    """The colours of the pictures that a stitched picture consists of: the drawn one, of which most of the image is left, and
    the others as they were sent."""
    (picture,) = pictures(body)
    found, left = [], 0
    for width in WIDTHS:
        if left < picture.width:
            found.append(picture.getpixel((left + width // 2, picture.height // 2)))
            left += width
    return found  # type: ignore[return-value]


def is_near(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 30 for a, b in zip(one, other, strict=True))


def assert_in_order(body: dict[str, Any], *colours: tuple[int, int, int]) -> None:
    first, *others = parts_of(body)
    assert is_near(first, colours[0])
    assert tuple(others) == colours[1:]
    assert body["_hal0"]["ignored"] == []


def post_form(client: FlaskClient, *parts: tuple[str, Any], path: str = EDITS) -> Any:
    fields = MultiDict([("model", "mine"), ("prompt", "a hat"), *parts])
    return client.post(path, data=fields, content_type="multipart/form-data")


def ok(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text[:500]
    body = dict(response.get_json())
    schema = json.loads((ROOT / "schemas/image_response.schema.json").read_text())
    Draft202012Validator(schema).validate(body)
    return body


def refused(response: Any) -> tuple[int, str, str]:
    error = response.get_json()["error"]
    return response.status_code, error["code"], error["param"]


WRONG_NUMBER = (400, "image.image_count_not_allowed", "image")


# --- the order -------------------------------------------------------------------------------------


NAMES = {
    "image[]": ("image[]", "image[]", "image[]"),
    "repeated image": ("image", "image", "image"),
    "images": ("images", "images", "images"),
    "numbered": ("image[0]", "image[1]", "image[2]"),
    "one and references": ("image", "reference_images[]", "reference_images[]"),
    "counted": ("image_1", "image_2", "image_3"),
}


@pytest.mark.parametrize("form", NAMES)
def test_images_of_a_form_are_used_in_order(client: FlaskClient, form: str) -> None:
    body = ok(post_form(client, *zip(NAMES[form], map(file, THREE), strict=True)))
    assert_in_order(body, RED, GREEN, BLUE)
    two = zip(NAMES[form], map(file, (THREE[0], THREE[2])), strict=False)
    (picture,) = pictures(ok(post_form(client, *two)))
    assert picture.width == 256 + 24


def test_numbers_decide_the_order_and_not_the_position_in_the_form(client: FlaskClient) -> None:
    parts = [(f"image[{index}]", file(THREE[index])) for index in (2, 0, 1)]
    assert_in_order(ok(post_form(client, *parts)), RED, GREEN, BLUE)


URLS = [data_url(data) for data in THREE]
JSON_FORMS: dict[str, dict[str, Any]] = {
    "images": {"images": [{"image_url": url} for url in URLS]},
    "nested": {"images": [{"image_url": {"url": url}} for url in URLS]},
    "texts": {"image": URLS},
    "b64_json": {"images": [{"b64_json": url.partition(",")[2]} for url in URLS]},
    "references": {"reference_images": URLS[1:], "image": URLS[0]},
}


@pytest.mark.parametrize("path", [EDITS, GENERATIONS])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_images_in_json_are_used_in_order(client: FlaskClient, form: str, path: str) -> None:
    fields = {"model": "mine", "prompt": "a hat", "response_format": "b64_json", **JSON_FORMS[form]}
    assert_in_order(ok(client.post(path, json=fields)), RED, GREEN, BLUE)


def test_images_in_a_chat_are_used_in_order(client: FlaskClient) -> None:
    content = [
        {"type": "text", "text": "a hat"},
        *({"type": "image_url", "image_url": {"url": url}} for url in URLS),
    ]
    fields = {"model": "mine", "messages": [{"role": "user", "content": content}], "modalities": ["image"]}
    response = client.post("/v1/chat/completions", json=fields)
    assert response.status_code == 200, response.text[:500]
    message = response.get_json()["choices"][0]["message"]
    url = message["images"][0]["image_url"]["url"]
    body = {"data": [{"b64_json": url.partition(",")[2]}], "_hal0": {"ignored": []}}
    assert_in_order(body, RED, GREEN, BLUE)
    content.append({"type": "image_url", "image_url": {"url": URLS[0]}})
    assert refused(client.post("/v1/chat/completions", json=fields)) == WRONG_NUMBER


def test_images_of_the_responses_api_are_used_in_order(client: FlaskClient) -> None:
    content = [
        {"type": "input_text", "text": "a hat"},
        *({"type": "input_image", "image_url": url} for url in URLS),
    ]
    fields = {
        "model": "mine",
        "input": [{"role": "user", "content": content}],
        "tools": [{"type": "image_generation"}],
    }
    _, response = respond(client, **fields)
    (item,) = response.output
    body = {"data": [{"b64_json": getattr(item, "result", "")}], "_hal0": {"ignored": []}}
    assert_in_order(body, RED, GREEN, BLUE)
    content.append({"type": "input_image", "image_url": URLS[0]})
    assert refused(client.post("/v1/responses", json=fields)) == WRONG_NUMBER


def test_other_images_keep_their_size_and_are_turned_upright(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (90, 24), BLUE)
    sideways.paste(GREEN, (0, 0, 45, 24))
    data = encoded(sideways, "PNG", exif=exif)
    body = ok(post_form(client, ("image", file(THREE[0])), ("image", file(THREE[1])), ("image", file(data))))
    (picture,) = pictures(body)
    assert picture.size == (256 + 64 + 24, 256)
    assert body["size"] == "344x256"
    upper, lower = ((256 + 64 + 12, 128 + shift) for shift in (-20, 20))
    assert (picture.getpixel(upper), picture.getpixel(lower)) == (GREEN, BLUE)


def test_only_the_first_image_decides_the_size(make_client: Any) -> None:
    client = make_client(ENCODED)
    body = ok(post_form(client, ("image", file(flat(RED, 320, 256))), ("image", file(flat(RED, 4000, 100)))))
    assert body["size"] == "320x256"
    assert body["_hal0"]["adjusted"] == []


def test_every_image_changes_what_is_drawn_from_all(make_client: Any) -> None:
    client = make_client(ENCODED)

    def drawn(*images: bytes) -> bytes:
        (picture,) = pictures(
            ok(post_form(client, ("seed", "1"), *(("image[]", file(data)) for data in images)))
        )
        return picture.tobytes()

    other = flat((1, 2, 3))
    same_sizes = [THREE[0], other, THREE[2]], [THREE[0], THREE[1], other], [other, THREE[1], THREE[2]]
    results = [drawn(*THREE), *(drawn(*images) for images in same_sizes), drawn(*THREE[:2]), drawn(THREE[0])]
    assert len(set(results)) == 6
    assert drawn(*THREE) == results[0]


def test_a_mask_belongs_to_the_first_image(make_client: Any) -> None:
    client = make_client(MASKED, tasks=["inpaint"], images={"max": 2})
    body = ok(post_form(client, ("image", file(THREE[0])), ("image", file(THREE[1])), ("mask", file(mask()))))
    (picture,) = pictures(body)
    assert body["_hal0"]["meta"]["task"] == "inpaint"
    assert picture.crop((0, 0, 256, 40)).getcolors() == [(256 * 40, RED)]


MASKED = STITCHED.replace(
    '"latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["image1", 0], "vae": ["model", 2]}}',
    """"mask": {"class_type": "LoadImageMask", "inputs": {"image": {{ mask }}, "channel": "red"}},
  "encoded": {"class_type": "VAEEncode", "inputs": {"pixels": ["image1", 0], "vae": ["model", 2]}},
  "latent": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["encoded", 0], "mask": ["mask", 0]}}""",
)


# --- how many --------------------------------------------------------------------------------------


def test_more_images_than_the_workflow_takes_are_refused(client: FlaskClient) -> None:
    response = post_form(client, *(("image[]", file(THREE[0])) for _ in range(4)))
    assert refused(response) == WRONG_NUMBER
    error = response.get_json()["error"]
    assert "mine takes 1 to 3 images" in error["message"]
    assert error["details"].items() >= {"images": 4, "min": 1, "max": 3, "models": []}.items()


def test_fewer_images_than_the_workflow_takes_are_refused(make_client: Any) -> None:
    client = make_client(images={"min": 2, "max": 3})
    assert refused(post_form(client, ("image", file(THREE[0])))) == WRONG_NUMBER
    assert ok(post_form(client, ("image", file(THREE[0])), ("image", file(THREE[1]))))


def test_a_model_that_takes_one_image_refuses_a_second_and_names_the_others(client: FlaskClient) -> None:
    fields = {"prompt": "x", "image[]": [file(THREE[0]), file(THREE[1])], "model": "sd-1.5"}
    response = client.post(EDITS, data=fields, content_type="multipart/form-data")
    assert refused(response) == WRONG_NUMBER
    assert response.get_json()["error"]["details"]["models"] == ["mine"]
    fields = {"image": [file(THREE[0]), file(THREE[1])], "model": "sd-1.5"}
    response = client.post(VARIATIONS, data=fields, content_type="multipart/form-data")
    assert refused(response) == WRONG_NUMBER
    # `mine` takes two images for edits, not for variations.
    assert response.get_json()["error"]["details"]["models"] == []


def test_a_wrong_number_is_refused_before_an_image_is_read(client: FlaskClient) -> None:
    images = [
        {"image_url": "https://example.com/x.png"},
        *({"image_url": "data:,no image"} for _ in range(3)),
    ]
    response = client.post(EDITS, json={"model": "mine", "prompt": "x", "images": images})
    assert refused(response) == WRONG_NUMBER


def test_an_image_in_json_that_cannot_be_read_is_named_by_its_number(client: FlaskClient) -> None:
    images = [data_url(THREE[0]), {"file_id": "file-1"}, data_url(THREE[2])]
    response = client.post(EDITS, json={"model": "mine", "prompt": "x", "images": images})
    assert refused(response) == (400, "request.invalid_value", "image")
    assert response.get_json()["error"]["message"].startswith(
        "Image 2 of 3: This server does not store files"
    )


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_image_that_is_damaged_is_refused_before_anything_is_drawn(
    client: FlaskClient, index: int
) -> None:
    images = [*THREE]
    for broken in (images[index][:60], b"no picture"):
        images[index] = broken
        response = post_form(client, *(("image[]", file(data)) for data in images))
        assert refused(response) == (400, "image.invalid_image", "image")
        message = response.get_json()["error"]["message"]
        assert message.startswith(f"Invalid image {index + 1} of 3: ")
    response = post_form(client, ("image[]", file(images[index])))
    assert response.get_json()["error"]["message"].startswith("Invalid image: ")


def test_seventeen_images_are_refused_for_every_model(make_client: Any) -> None:
    client = make_client(images={"max": 16}, template=STITCHED)
    parts = [("image[]", file(THREE[1])) for _ in range(16)]
    (picture,) = pictures(ok(post_form(client, ("image[]", file(THREE[0])), *parts[:15])))
    assert picture.width == 256 + 15 * 64
    response = post_form(client, *parts, ("image[]", file(THREE[1])))
    assert refused(response) == (400, "request.invalid_value", "image")


def test_the_pixels_of_all_images_together_are_limited(client: FlaskClient) -> None:
    large = encoded(Image.new("1", (8192, 8192)))
    assert MAX_PIXELS == 2 * 8192**2
    response = post_form(client, ("image", file(THREE[0])), ("image", file(large)), ("image", file(large)))
    assert refused(response) == (400, "image.invalid_image", "image")
    assert "together" in response.get_json()["error"]["message"]


def test_models_tell_how_many_images_they_take(client: FlaskClient) -> None:
    def images_of(model: str) -> Any:
        return client.get(f"/v1/models/{model}").get_json()["limits"]["images"]

    assert images_of("mine") == {"edit": {"min": 1, "max": 3}}
    one = {"min": 1, "max": 1}
    assert images_of("sd-1.5") == {"edit": one, "inpaint": one, "vary": one}
    schema = json.loads((ROOT / "schemas/models.schema.json").read_text())
    Draft202012Validator(schema).validate(client.get("/v1/models/mine").get_json())


# --- markup ----------------------------------------------------------------------------------------


def markup(width: int = 256, height: int = 256, **options: Any) -> bytes:
    """Opaque blue in the left half, half-transparent blue at the top of the right half."""
    layer = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle((0, 0, width // 2 - 1, height - 1), fill=(*BLUE, 255))
    ImageDraw.Draw(layer).rectangle((width // 2, 0, width - 1, height // 4), fill=(*BLUE, 128))
    return encoded(layer, **options)


def test_the_markup_is_laid_over_the_first_image(client: FlaskClient) -> None:
    body = ok(
        post_form(client, ("image", file(THREE[0])), ("image", file(THREE[1])), ("markup", file(markup())))
    )
    (picture,) = pictures(body)
    left, right, half, second = (
        picture.getpixel(at) for at in ((60, 100), (200, 100), (200, 20), (256 + 30, 128))
    )
    assert is_near(left, BLUE)  # type: ignore[arg-type]
    assert is_near(right, RED)  # type: ignore[arg-type]
    assert is_near(half, tuple((a + b) // 2 for a, b in zip(RED, BLUE, strict=True)))  # type: ignore[arg-type]
    assert second == GREEN
    assert (body["_hal0"]["ignored"], body["_hal0"]["meta"]["task"]) == ([], "edit")


def test_a_markup_is_scaled_and_cropped_like_its_image(make_client: Any) -> None:
    client = make_client()
    parts = [("image", file(flat(RED, 1024, 512))), ("markup", file(markup(1024, 512))), ("size", "512x512")]
    (picture,) = pictures(ok(post_form(client, *parts)))
    assert picture.size == (512, 512)
    assert is_near(picture.getpixel((250, 400)), BLUE)  # type: ignore[arg-type]
    assert is_near(picture.getpixel((262, 400)), RED)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [EDITS, GENERATIONS])
def test_a_markup_may_be_json_and_belongs_to_every_model_that_edits(client: FlaskClient, path: str) -> None:
    fields = {"prompt": "x", "model": "sd-1.5", "seed": 1, "strength": 0.3, "image": URLS[0]}
    plain, marked = (
        ok(client.post(path, json={**fields, "response_format": "b64_json", **more}))["data"][0]["b64_json"]
        for more in ({}, {"markup": {"image_url": data_url(markup())}})
    )
    assert plain != marked


def test_a_markup_must_fit_the_image_as_it_is_shown(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(pattern(320, 256), "JPEG", exif=exif)
    assert (
        ok(post_form(client, ("image", file(photo)), ("markup", file(markup(256, 320)))))["size"] == "256x320"
    )
    response = post_form(client, ("image", file(photo)), ("markup", file(markup(320, 256))))
    assert refused(response) == (400, "image.invalid_image", "markup")
    assert "320x256" in response.get_json()["error"]["message"]


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([("markup", markup())], (400, "image.image_required", "image")),
        ([("image", THREE[0]), ("markup", flat(BLUE))], (400, "image.invalid_image", "markup")),
        ([("image", THREE[0]), ("markup", b"<svg/>")], (400, "image.invalid_image", "markup")),
        (
            [("image", THREE[0]), ("markup", markup()), ("markup", markup())],
            (400, "request.invalid_value", "markup"),
        ),
        (
            [("image", THREE[0]), ("mask", mask()), ("markup", markup())],
            (400, "request.invalid_value", "markup"),
        ),
    ],
)
def test_a_markup_that_cannot_be_used_is_refused(
    client: FlaskClient, parts: list[tuple[str, bytes]], error: tuple[int, str, str]
) -> None:
    form = MultiDict([("prompt", "x"), ("model", "sd-1.5"), *((name, file(data)) for name, data in parts)])
    assert refused(client.post(EDITS, data=form, content_type="multipart/form-data")) == error


def test_a_markup_needs_an_image_in_generations_and_an_edit(client: FlaskClient) -> None:
    response = client.post(GENERATIONS, json={"prompt": "x", "model": "sd-1.5", "markup": data_url(markup())})
    assert refused(response) == (400, "image.image_required", "image")
    form = {"image": file(THREE[0]), "markup": file(markup())}
    response = client.post(VARIATIONS, data=form, content_type="multipart/form-data")
    assert refused(response) == (400, "request.field_not_supported", "markup")
    for nothing in ("", None, []):
        assert (
            client.post(GENERATIONS, json={"prompt": "x", "size": "256x256", "markup": nothing}).status_code
            == 200
        )


# --- what stays in the engine ----------------------------------------------------------------------


Upload = tuple[str, int]


@contextlib.contextmanager
def recorded_uploads(
    client: FlaskClient, before: Callable[[int], None] = lambda number: None
) -> Iterator[list[Upload]]:
    """The name and the size of each upload. `before`: called with how many there were."""
    engine = client.application.extensions["easel"].engine_selector.current()
    recorded: list[Upload] = []
    upload = engine._http.upload

    def record(data: bytes, name: str, subfolder: str, **more: Any) -> None:
        before(len(recorded))
        recorded.append((name, len(data)))
        upload(data, name, subfolder, **more)

    engine._http.upload = record
    try:
        yield recorded
    finally:
        del engine._http.upload


def sizes_by_name(recorded: list[Upload]) -> dict[str, list[int]]:
    sizes: dict[str, list[int]] = {}
    for name, size in recorded:
        sizes.setdefault(name, []).append(size)
    return sizes


def test_all_images_are_overwritten_afterwards_and_have_no_metadata(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home " * 50
    secret = encoded(Image.new("RGB", (64, 40), GREEN), "JPEG", exif=exif)
    with recorded_uploads(client) as recorded:
        ok(post_form(client, ("image", file(THREE[0])), ("image", file(secret)), ("image", file(THREE[2]))))
    sizes = sizes_by_name(recorded)
    assert len(sizes) == 3
    assert all(first > 100 > last for first, last in sizes.values())
    assert (
        max(first for first, _ in list(sizes.values())[1:]) < 400
    )  # flat pixels, without the text of 400 bytes


def test_all_images_are_overwritten_if_an_upload_fails(client: FlaskClient) -> None:
    failures = [OSError("the engine is gone")]

    def fail(number: int) -> None:
        if number == 2 and failures:
            raise failures.pop()

    with recorded_uploads(client, fail) as recorded:
        assert post_form(client, *(("image[]", file(data)) for data in THREE)).status_code == 500
        wait_until(lambda: len(recorded) == 5, 5)
    assert [sizes[-1] < 100 for sizes in sizes_by_name(recorded).values()] == [True, True, True]


def test_a_client_that_hangs_up_during_the_uploads_gets_no_more_of_them(make_client: Any) -> None:
    client = make_client()
    generator = client.application.extensions["easel"].generator
    has_gone, uploads_of_the_request = threading.Event(), []

    def hang_up(number: int) -> None:
        has_gone.set()

    image, *more = map(read_image, THREE)
    request = ImageRequest(prompt="x", seed=1, id="hung-up", model="mine", task="edit")
    with recorded_uploads(client, hang_up) as recorded:
        drawing = generator.prepare(request, timeout_s=60, pictures=Pictures(image, more=tuple(more)))
        with pytest.raises(RequestCancelled):
            list(drawing.images(OutputOptions(keep=False), cancelled=has_gone.is_set))
        uploads_of_the_request += recorded
    assert [size > 100 for _, size in uploads_of_the_request] == [True, False]
    assert {name for name, _ in uploads_of_the_request} == {"hung-up-image.png"}


def test_all_jobs_of_a_request_load_the_same_uploads(client: FlaskClient) -> None:
    form = [("image[]", file(data)) for data in THREE]
    with recorded_uploads(client) as recorded:
        body = ok(post_form(client, *form, ("n", "3")))
    assert len(pictures(body)) == 3
    for sizes in sizes_by_name(recorded).values():
        first, *others = sizes
        assert first > 100
        assert [size < 100 for size in others] == [True]


def test_an_engine_that_lost_the_uploads_between_two_jobs_gets_them_again(
    make_client: Any, catalogue_files: dict[str, list[str]], tmp_path: Path
) -> None:
    image, *more = map(read_image, THREE)
    request = ImageRequest(prompt="x", seed=1, id="lost", model="mine", task="edit", n=3)
    with SketchProcess(nodes=NODES, files=catalogue_files, folder=tmp_path) as sketch:
        client = make_client(settings={"engine__url": sketch.url})
        generator = client.application.extensions["easel"].generator
        with recorded_uploads(client) as recorded:
            drawing = generator.prepare(request, timeout_s=60, pictures=Pictures(image, more=tuple(more)))
            images = drawing.images(OutputOptions(keep=False))
            next(images)
            stored = list(tmp_path.glob("easel-sketch-*/temp/easel/lost-*"))
            assert len(stored) == 3
            for path in stored:
                path.unlink()
            assert len(list(images)) == 2
    sent = [sum(size > 100 for size in sizes) for sizes in sizes_by_name(recorded).values()]
    assert sent == [2, 2, 2]
