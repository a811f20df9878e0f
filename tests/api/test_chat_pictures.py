"""POST /v1/chat/completions for an image model: the picture comes in the message."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.api.openai_types import CHAT, chat, chat_body, stream_chat
from tests.api.sse import events_of
from tests.api.test_edits import data_url, photo
from tests.conftest import MakeApp
from tests.conversation.upstream import upstream

LINK = re.compile(r"!\[image\]\((http://localhost/api/images/cache/[0-9a-f-]{36}\.png)\)")
DATA = re.compile(r"!\[image\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)")


def picture(url: str) -> Image.Image:
    prefix = "data:image/png;base64,"
    assert url.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix(prefix), validate=True)))


def refused(client: FlaskClient, content: Any = "a cat", **fields: Any) -> tuple[int, str, str | None]:
    answer = client.post(CHAT, json=chat_body(content, **fields))
    error = answer.get_json()["error"]
    return answer.status_code, error["code"], error["param"]


def listed(document: dict[str, Any], kind: str = "ignored") -> list[str]:
    return sorted(note["field"] for note in document["_hal0"][kind])


# --- the form of the message -----------------------------------------------------------------------


def test_without_a_stream_a_client_of_either_form_finds_the_picture(client: FlaskClient) -> None:
    document, completion = chat(client)
    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    link = LINK.fullmatch(choice.message.content or "")
    assert link, choice.message.content
    (entry,) = document["choices"][0]["message"]["images"]
    assert (entry["type"], entry["index"]) == ("image_url", 0)
    assert picture(entry["image_url"]["url"]).size == (256, 256)
    stored = client.get(link[1].removeprefix("http://localhost"))
    assert base64.b64encode(stored.data).decode() == entry["image_url"]["url"].partition(",")[2]
    assert completion.usage is not None
    assert completion.usage.total_tokens == 0
    assert (document["model"], document["object"]) == ("sd-1.5-pruned-emaonly", "chat.completion")


def test_clients_that_ask_for_images_get_only_these(client: FlaskClient) -> None:
    document, _ = chat(client, modalities=["image", "text"])
    message = document["choices"][0]["message"]
    assert message["content"] == ""
    assert picture(message["images"][0]["image_url"]["url"]).size == (256, 256)
    chunks = stream_chat(client, modalities=["image", "text"])
    (delta,) = [delta for delta in deltas(chunks) if delta.get("images")]
    assert delta["content"] == ""
    assert picture(delta["images"][0]["image_url"]["url"]).size == (256, 256)


def test_clients_that_ask_for_text_only_get_only_markdown(client: FlaskClient) -> None:
    document, _ = chat(client, modalities=["text"])
    message = document["choices"][0]["message"]
    assert LINK.fullmatch(message["content"])
    assert "images" not in message


def test_a_stream_without_modalities_shows_the_picture_once_as_markdown(client: FlaskClient) -> None:
    chunks = stream_chat(client, stream_options={"include_usage": True})
    assert deltas(chunks)[0] == {"role": "assistant", "content": ""}
    text = "".join(delta.get("content", "") for delta in deltas(chunks))
    assert LINK.fullmatch(text), text
    assert not any("images" in delta for delta in deltas(chunks))
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [
        None,
        None,
        "stop",
    ]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 0
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-2]["_hal0"]["engine"] == "sketch"


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def test_usage_is_streamed_only_if_it_was_asked_for(client: FlaskClient) -> None:
    assert all("usage" not in chunk for chunk in stream_chat(client))


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"response_format": "b64_json"}),
        ({"default_response_format": "b64_json"}, {}),
        ({"url_style": "data"}, {}),
    ],
)
def test_markdown_contains_the_picture_where_urls_are_not_wanted(
    make_app: MakeApp, settings: dict[str, Any], fields: dict[str, Any]
) -> None:
    client = make_app(image_store__keep="urls", **settings).test_client()
    document, _ = chat(client, **fields)
    message = document["choices"][0]["message"]
    match = DATA.fullmatch(message["content"])
    assert match, message["content"][:100]
    assert match[1] == message["images"][0]["image_url"]["url"].partition(",")[2]
    container = client.application.extensions["easel"]
    assert list((container.state_dir / "images").rglob("*.png")) == []


def test_with_response_format_url_both_forms_are_links(client: FlaskClient) -> None:
    document, _ = chat(client, response_format="url")
    message = document["choices"][0]["message"]
    match = LINK.fullmatch(message["content"])
    assert match
    assert message["images"][0]["image_url"]["url"] == match[1]


def test_n_pictures_are_n_choices(client: FlaskClient) -> None:
    document, _ = chat(client, n=2, seed=3)
    assert [choice["index"] for choice in document["choices"]] == [0, 1]
    first, second = (choice["message"]["images"][0]["image_url"]["url"] for choice in document["choices"])
    assert first != second
    chunks = stream_chat(client, n=2)
    finished = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert finished == [0, 1]


# --- what is drawn ---------------------------------------------------------------------------------


def test_it_is_the_picture_of_the_image_api(client: FlaskClient) -> None:
    document, _ = chat(client, seed=5, image_config={"steps": 4}, output_format="webp")
    body = {
        "prompt": "a cat",
        "size": "256x256",
        "model": "sd-1.5",
        "seed": 5,
        "steps": 4,
        "output_format": "webp",
    }
    drawn = client.post("/v1/images/generations", json=body).get_json()
    url = document["choices"][0]["message"]["images"][0]["image_url"]["url"]
    assert url == f"data:image/webp;base64,{drawn['data'][0]['b64_json']}"


def test_the_last_user_message_is_drawn_and_its_image_redrawn(client: FlaskClient) -> None:
    parts = [
        {"type": "text", "text": "a hat"},
        {"type": "image_url", "image_url": {"url": data_url(photo(320, 256))}},
    ]
    messages = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": "![image](http://x/y.png)"},
        {"role": "user", "content": parts},
    ]
    document, _ = chat(client, messages=messages, size="auto")
    url = document["choices"][0]["message"]["images"][0]["image_url"]["url"]
    assert picture(url).size == (320, 256)
    assert listed(document) == ["messages"]


def test_fields_for_language_models_are_listed(client: FlaskClient) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    document, _ = chat(
        client, temperature=0.2, max_tokens=5, tools=tools, stop=[], user="me", store=True, partial_images=1
    )
    assert listed(document) == ["max_tokens", "partial_images", "store", "temperature", "tools", "user"]


def test_options_of_a_stream_without_effect_are_listed(client: FlaskClient) -> None:
    document, _ = chat(client, stream_options={"include_usage": True})
    assert listed(document) == ["stream_options"]
    chunks = stream_chat(client, stream_options={"include_usage": False, "include_obfuscation": True})
    assert listed(chunks[-1]) == ["stream_options.include_obfuscation"]


def test_an_llm_or_an_alias_of_that_name_wins(make_app: MakeApp) -> None:
    with upstream() as fake:
        entry = {"name": "fake", "url": fake.url}
        app = make_app(llm__upstreams=[entry], llm__aliases={"sd-1.5": "tiny"})
        answer = app.test_client().post(CHAT, json=chat_body())
        assert answer.get_json()["choices"][0]["message"]["content"] == "hello"
        assert [received.json()["model"] for received in fake.posts] == ["tiny"]
        document, _ = chat(app.test_client(), model="sdxl-turbo", size="512x512")
        assert document["model"] == "sdxl-turbo"
        assert len(fake.posts) == 1


def test_an_llm_that_has_the_name_of_an_image_model_is_asked_even_if_it_was_not_listed_yet(
    make_app: MakeApp,
) -> None:
    listing = {"object": "list", "data": [{"id": "sdxl-turbo", "object": "model"}]}
    with upstream(listing=lambda exchange: exchange.send_json(listing)) as fake:
        client = make_app(llm__upstreams=[{"name": "fake", "url": fake.url}]).test_client()
        answer = client.post(CHAT, json=chat_body(model="sdxl-turbo"))
        assert answer.get_json()["choices"][0]["message"]["content"] == "hello"


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"content": ""}, (422, "image.prompt_required", "messages")),
        ({"messages": None}, (422, "image.prompt_required", "messages")),
        ({"prompt": "a dog"}, (400, "request.field_not_supported", "prompt")),
        ({"image": "data:", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, (400, "request.invalid_value", "image")),
        ({"stream_options": "x"}, (400, "request.invalid_value", "stream_options")),
        ({"stream_options": [], "stream": True}, (400, "request.invalid_value", "stream_options")),
        ({"stream_options": {"include_usage": "yes"}}, (400, "request.invalid_value", "stream_options")),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, (400, "request.field_not_supported", "tool_choice")),
        ({"function_call": {"name": "f"}}, (400, "request.field_not_supported", "function_call")),
        ({"messages": []}, (422, "image.prompt_required", "messages")),
        ({"messages": "a cat"}, (400, "request.invalid_value", "messages")),
        ({"content": [{"type": "input_audio"}]}, (400, "request.invalid_value", "messages")),
        ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, {"type": "text", "text": "a"}]}, (400, "image.invalid_image", "image")),
        ({"size": "banana"}, (400, "image.size_not_allowed", "size")),
        ({"n": 0}, (400, "request.invalid_value", "n")),
        ({"stream": "yes"}, (400, "request.invalid_value", "stream")),
        ({"modalities": ["audio"]}, (400, "request.invalid_value", "modalities")),
        ({"modalities": "image"}, (400, "request.invalid_value", "modalities")),
        ({"tool_choice": "required"}, (400, "request.field_not_supported", "tool_choice")),
        ({"response_format": {"type": "json_object"}}, (400, "request.field_not_supported", "response_format")),
        ({"stream": True, "output_format": "gif"}, (400, "request.invalid_value", "output_format")),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_the_first_byte(
    client: FlaskClient, fields: dict[str, Any], error: tuple[int, str, str]
) -> None:
    assert refused(client, **fields) == error


def test_a_name_of_neither_an_llm_nor_an_image_model_is_no_route(client: FlaskClient) -> None:
    assert refused(client, model="nope") == (404, "dispatch.no_route", "model")


def test_a_stream_that_fails_ends_with_an_error(failing: FlaskClient) -> None:
    answer = failing.post(CHAT, json=chat_body(stream=True, seed=1, steps=6))
    last = events_of(answer.text)[-1]
    assert last.name is None
    assert last.data["error"]["code"] == "engine.node_failed"
    assert "[DONE]" not in answer.text
