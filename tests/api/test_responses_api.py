"""Pictures in POST /v1/responses without a language model."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.api.openai_types import FORCED, RESPONSES, SMALL, TOOL, respond, stream_response
from tests.api.test_edits import data_url, mask, photo
from tests.conftest import MakeApp

BEGIN = ["response.created", "response.in_progress"]
ITEM_BEGINS = ["response.output_item.added", "response.image_generation_call.in_progress"]
GENERATING, PARTIAL, COMPLETED = (
    f"response.image_generation_call.{name}" for name in ("generating", "partial_image", "completed")
)
ITEM = [*ITEM_BEGINS, GENERATING, COMPLETED, "response.output_item.done"]


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def refused(client: FlaskClient, **fields: Any) -> tuple[int, str, str | None]:
    answer = client.post(RESPONSES, json={"input": "a cat", **FORCED, **fields})
    error = answer.get_json()["error"]
    return answer.status_code, error["code"], error["param"]


def listed(item: dict[str, Any], kind: str = "ignored") -> list[str]:
    return [note["field"] for note in item["_hal0"][kind]]


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(value: str) -> dict[str, Any]:
    return {"type": "input_text", "text": value}


def image(url: str) -> dict[str, Any]:
    return {"type": "input_image", "detail": "auto", "image_url": url}


# --- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        TOOL,
        "required",
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
    ],
)
def test_a_forced_tool_draws_without_a_language_model(client: FlaskClient, choice: Any) -> None:
    document, response = respond(client, model="gpt-5", tools=[SMALL], tool_choice=choice)
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert (item.status, item.action, item.output_format) == ("completed", "generate", "png")
    assert (item.size, item.quality, item.background, item.revised_prompt) == (
        "256x256",
        "auto",
        "opaque",
        "a cat",
    )
    assert item.id.startswith("ig_")
    assert item.result is not None
    assert picture(item.result).size == (256, 256)
    assert (response.status, response.model, response.error) == ("completed", "gpt-5", None)
    assert (response.id[:5], response.tool_choice) == ("resp_", response.tool_choice)
    assert document["tools"] == [SMALL]
    assert document["output"][0]["_hal0"]["model"].startswith("sd-1.5")


@pytest.mark.parametrize("name", ["control_image", "controlnet_image"])
def test_the_tool_is_repeated_without_its_control_image(client: FlaskClient, name: str) -> None:
    tool = {**SMALL, "model": "sd-1.5-canny", name: data_url(photo())}
    document, _ = respond(client, model="gpt-5", tools=[tool], tool_choice="required")
    assert document["tools"] == [{**SMALL, "model": "sd-1.5-canny"}]
    assert document["output"][0]["_hal0"]["model"] == "sd-1.5-canny"


@pytest.mark.parametrize("model", ["sd-1.5", "img", "gpt-image-1", "SD-1.5"])
def test_an_image_model_draws_without_the_tool(client: FlaskClient, model: str) -> None:
    _, response = respond(client, model=model, size="256x256")
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert response.model == model


def test_fields_of_the_image_api_are_honoured_in_the_tool_and_beside_it(client: FlaskClient) -> None:
    tool = {**SMALL, "output_format": "webp", "output_compression": 50, "quality": "high", "n": 2}
    document, response = respond(client, tools=[tool], tool_choice="required", seed=7, negative_prompt="dogs")
    first, second = response.output
    assert first.type == second.type == "image_generation_call"
    assert first.id != second.id
    assert first.result is not None
    assert picture(first.result).format == "WEBP"
    assert (first.output_format, first.quality) == ("webp", "high")
    meta = document["output"][0]["_hal0"]["meta"]
    assert (meta["seed"], meta["negative_prompt"]) == (7, "dogs")


def test_the_same_request_draws_the_same_picture_as_the_image_api(client: FlaskClient) -> None:
    _, response = respond(client, **FORCED, seed=5)
    (item,) = response.output
    body = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5", "seed": 5, "response_format": "b64_json"}
    drawn = client.post("/v1/images/generations", json=body).get_json()
    assert item.type == "image_generation_call"
    assert item.result == drawn["data"][0]["b64_json"]


def test_the_prompt_is_the_text_of_the_last_user_message(client: FlaskClient) -> None:
    messages = [
        user(text("a dog")),
        {"role": "assistant", "content": "Here is a dog."},
        user(text("a cat"), text("on a roof")),
        {"role": "developer", "content": "be brief"},
    ]
    document, response = respond(client, input=messages, instructions="You are a painter.", **FORCED)
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert item.revised_prompt == "a cat\non a roof"
    assert sorted(listed(document["output"][0])) == ["input", "instructions"]
    assert response.instructions == "You are a painter."


# --- images ----------------------------------------------------------------------------------------


def test_an_image_in_the_last_message_is_redrawn(client: FlaskClient) -> None:
    url = data_url(photo(320, 256))
    _, response = respond(
        client, input=[user(text("a cat"), image(url))], tools=[TOOL], tool_choice="required", model="img"
    )
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert (item.action, item.size) == ("edit", "320x256")


def test_a_mask_is_used_as_in_the_image_api(client: FlaskClient) -> None:
    tool = {**TOOL, "model": "sd-1.5", "input_image_mask": {"image_url": data_url(mask())}, "seed": 1}
    document, response = respond(
        client, input=[user(text("a cat"), image(data_url(photo())))], tools=[tool], tool_choice="required"
    )
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert item.action == "edit"
    body = {
        "model": "sd-1.5",
        "prompt": "a cat",
        "seed": 1,
        "image": data_url(photo()),
        "mask": data_url(mask()),
    }
    redrawn = client.post("/v1/images/edits", json=body).get_json()
    assert item.result == redrawn["data"][0]["b64_json"]
    assert "input_image_mask" not in document["tools"][0]


def test_an_image_in_the_tool_is_redrawn_and_not_repeated(client: FlaskClient) -> None:
    tool = {
        **TOOL,
        "model": "sd-1.5",
        "image": data_url(photo(320, 256)),
        "extra_body": {"mask": data_url(mask())},
    }
    document, response = respond(client, tools=[tool], tool_choice="required")
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert (item.action, item.size) == ("edit", "320x256")
    assert document["tools"] == [{**TOOL, "model": "sd-1.5", "extra_body": {}}]
    events = stream_response(client, tools=[tool], tool_choice="required")
    assert not [event for event in events if "base64" in str(event)]


def test_a_field_beside_the_tool_that_is_not_used_is_listed(client: FlaskClient) -> None:
    url = data_url(photo(320, 256))
    document, _ = respond(
        client, input=[user(text("a cat"), image(url))], **FORCED, image="data:x", size="512x512"
    )
    notes = {note["field"]: note["why"] for note in document["output"][0]["_hal0"]["ignored"]}
    assert notes["image"] == "the image in `input` is redrawn"
    assert notes["size"] == "`size` of the tool wins"


def test_an_earlier_picture_is_redrawn_if_action_is_edit(client: FlaskClient) -> None:
    first, _ = respond(client, **FORCED)
    conversation = [user(text("a cat")), first["output"][0], user(text("at night"))]
    document, _ = respond(client, input=conversation, tools=[{**SMALL, "action": "edit"}], tool_choice=TOOL)
    assert document["output"][0]["action"] == "edit"
    document, _ = respond(client, input=conversation, **FORCED)
    assert document["output"][0]["action"] == "generate"
    assert listed(document["output"][0]) == ["input"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"tools": [{**SMALL, "action": "edit"}]}, (400, "image.image_required", "input")),
        ({"tools": [{**SMALL, "action": "draw"}]}, (400, "request.invalid_value", "action")),
        (
            {
                "tools": [{**SMALL, "action": "generate"}],
                "input": [user(text("a"), image("data:image/png;base64,AAAA"))],
            },
            (400, "request.invalid_value", "action"),
        ),
        (
            {"input": [user(text("a"), image("data:image/png;base64,AAAA"))]},
            (400, "image.invalid_image", "image"),
        ),
        (
            {"input": [user(text("a"), image("http://127.0.0.1:1/x.png"))]},
            (400, "image.url_refused", "image"),
        ),
        (
            {"input": [user(text("a"), {"type": "input_image", "file_id": "file-1", "detail": "auto"})]},
            (400, "request.invalid_value", "image"),
        ),
        (
            {"input": [user({"type": "input_file", "file_id": "file-1"})]},
            (400, "request.invalid_value", "input"),
        ),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    client: FlaskClient, fields: dict[str, Any], error: tuple[int, str, str]
) -> None:
    assert refused(client, **fields) == error


# --- what is refused or listed ---------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "c"}, {"prompt": {"id": "p"}}])  # fmt: skip
def test_what_needs_stored_responses_is_refused(client: FlaskClient, fields: dict[str, Any]) -> None:
    assert refused(client, **fields) == (400, "request.field_not_supported", next(iter(fields)))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"input": ""}, (422, "image.prompt_required", "input")),
        ({"input": None}, (422, "image.prompt_required", "input")),
        ({"input": []}, (422, "image.prompt_required", "input")),
        ({"input": " "}, (422, "image.prompt_required", "input")),
        ({"input": [user(text(" "))]}, (422, "image.prompt_required", "input")),
        ({"input": 5}, (400, "request.invalid_value", "input")),
        ({"tools": [{**SMALL, "prompt": "a dog"}]}, (400, "request.field_not_supported", "prompt")),
        ({"tools": [{**SMALL, "stream": True}]}, (400, "request.field_not_supported", "stream")),
        ({"tools": [SMALL, "text"]}, (400, "request.invalid_value", "tools")),
        ({"tools": [SMALL, None]}, (400, "request.invalid_value", "tools")),
        ({"model": "img", "tool_choice": "banana"}, (400, "request.invalid_value", "tool_choice")),
        ({"model": "img", "tool_choice": 5}, (400, "request.invalid_value", "tool_choice")),
        (
            {"model": "img", "tool_choice": {"type": "function", "name": "f"}},
            (400, "request.field_not_supported", "tool_choice"),
        ),
        (
            {"model": "img", "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"},
            (400, "request.field_not_supported", "tool_choice"),
        ),
        (
            {
                "model": "img",
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]},
            },
            (400, "request.field_not_supported", "tool_choice"),
        ),
        (
            {"tools": [{**SMALL, "action": "generate", "mask": "data:"}]},
            (400, "request.invalid_value", "action"),
        ),
        (
            {"tools": [{**SMALL, "mask": "data:", "input_image_mask": {"image_url": "data:"}}]},
            (400, "request.invalid_value", "mask"),
        ),
        (
            {
                "tools": [{**SMALL, "image": "data:"}],
                "input": [user(text("a"), image("data:image/png;base64,AAAA"))],
            },
            (400, "request.invalid_value", "image"),
        ),
        ({"input": [{"role": "assistant", "content": "x"}]}, (422, "image.prompt_required", "input")),
        ({"input": [user(5)]}, (400, "request.invalid_value", "input")),
        ({"tools": [{**SMALL, "model": "nope"}]}, (404, "image.model_not_curated", "model")),
        ({"tools": [{**SMALL, "size": "banana"}]}, (400, "image.size_not_allowed", "size")),
        ({"tools": [{**SMALL, "output_format": "gif"}]}, (400, "request.invalid_value", "output_format")),
        (
            {"tools": [{**SMALL, "partial_images": 4}], "stream": True},
            (400, "request.invalid_value", "partial_images"),
        ),
        ({"tools": [{**SMALL, "n": 0}]}, (400, "request.invalid_value", "n")),
        ({"tools": [SMALL, SMALL]}, (400, "request.invalid_value", "tools")),
        (
            {"tools": [SMALL], "tool_choice": "none", "model": "img"},
            (400, "request.invalid_value", "tool_choice"),
        ),
        ({"model": "img", "tools": "x"}, (400, "request.invalid_value", "tools")),
        ({"stream": "maybe"}, (400, "request.invalid_value", "stream")),
        ({"style_preset": "anime"}, (400, "request.field_not_supported", "style_preset")),
    ],
)
def test_values_that_are_not_allowed_are_refused_before_the_first_byte(
    client: FlaskClient, fields: dict[str, Any], error: tuple[int, str, str]
) -> None:
    assert refused(client, **fields) == error


def test_fields_without_effect_are_listed(client: FlaskClient) -> None:
    tools = [{**SMALL, "background": "opaque", "moderation": "low"}, {"type": "function", "name": "f"}]
    document, response = respond(
        client, tools=tools, tool_choice=TOOL, temperature=0.5, store=True, user="me", model="img"
    )
    assert sorted(listed(document["output"][0])) == [
        *("model", "moderation", "store", "temperature", "tools", "user"),
    ]
    assert (response.temperature, document["store"], response.user) == (0.5, False, "me")


def test_a_long_conversation_is_no_reason_to_refuse_its_last_message(client: FlaskClient) -> None:
    history = [user(text("a dog"))] * 5000
    _, response = respond(client, input=[*history, user(text("a cat"))], **FORCED)
    (item,) = response.output
    assert item.type == "image_generation_call"
    assert item.revised_prompt == "a cat"
    fields = {f"x{number}": number for number in range(11_000)}
    assert refused(client, **fields) == (400, "request.malformed", None)
    assert refused(client, x=[0] * 11_000) == (400, "request.malformed", None)


def test_a_picture_needs_no_llm_and_a_chat_without_one_is_told_so(client: FlaskClient) -> None:
    answer = client.post(RESPONSES, json={"input": "a cat", "model": "gpt-5", "tools": [TOOL]})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "dispatch.no_route")


def test_pictures_that_are_disabled_leave_the_request_to_the_llm(make_app: MakeApp) -> None:
    client = make_app(images__enabled=False).test_client()
    answer = client.post(RESPONSES, json={"input": "a cat", "model": "gpt-5", **FORCED})
    assert answer.get_json()["error"]["code"] == "dispatch.no_route"


# --- streams ---------------------------------------------------------------------------------------


def test_a_stream_has_openais_events(client: FlaskClient) -> None:
    events = stream_response(client, **FORCED)
    assert [event["type"] for event in events] == [*BEGIN, *ITEM, "response.completed"]
    added, done, completed = events[2], events[6], events[7]
    assert added["item"] == {"id": added["item"]["id"], "type": "image_generation_call", "status": "in_progress", "result": None}  # fmt: skip
    assert {event["item_id"] for event in events[3:6]} == {added["item"]["id"]} == {done["item"]["id"]}
    assert completed["response"]["output"] == [done["item"]]
    assert picture(done["item"]["result"]).size == (256, 256)
    assert {event["response"]["id"] for event in (events[0], events[1], completed)} == {
        completed["response"]["id"]
    }
    assert [events[0]["response"]["status"], completed["response"]["status"]] == ["in_progress", "completed"]


@pytest.mark.parametrize("partials", [1, 3])
def test_partial_images_are_real_previews(client: FlaskClient, partials: int) -> None:
    tool = {**SMALL, "partial_images": partials, "steps": 6}
    events = stream_response(client, tools=[tool], tool_choice=TOOL)
    found = [event for event in events if event["type"] == PARTIAL]
    assert [event["partial_image_index"] for event in found] == list(range(partials))
    assert {picture(event["partial_image_b64"]).format for event in found} == {"JPEG"}
    assert [event["type"] for event in events].count(GENERATING) == 1
    assert len({event["partial_image_b64"] for event in found}) == partials


def test_several_pictures_are_several_items(client: FlaskClient) -> None:
    events = stream_response(client, tools=[{**SMALL, "n": 2}], tool_choice=TOOL)
    assert [event["type"] for event in events] == [*BEGIN, *ITEM, *ITEM, "response.completed"]
    assert [event["output_index"] for event in events if "output_index" in event] == [0] * 5 + [1] * 5
    assert len(events[-1]["response"]["output"]) == 2


def test_a_stream_that_fails_ends_with_error_and_failed(failing: FlaskClient) -> None:
    *_, error, failed = stream_response(failing, **FORCED)
    assert (error["type"], error["code"]) == ("error", "engine.node_failed")
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}


def test_a_failure_without_a_stream_is_the_envelope(failing: FlaskClient) -> None:
    assert refused(failing) == (500, "engine.node_failed", None)


def test_a_picture_counts_as_an_image_request_not_as_one_to_an_llm(make_app: MakeApp) -> None:
    client = make_app(max_waiting=1).test_client()
    container = client.application.extensions["easel"]
    with container.generator.admission.of(""):
        assert refused(client) == (429, "queue.full", None)
    assert container.forwarder.running == 0
