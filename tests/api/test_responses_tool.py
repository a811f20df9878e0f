"""POST /v1/responses with the image tool and a language model: the upstream gets a function, and a call of it becomes a
picture."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.openai_responses.tool import MAX_CALLS, EventSplitter
from conversation import RequestBody
from tests.api.openai_types import RESPONSES, SMALL, TOOL, checked_events, respond
from tests.api.sse import events_of
from tests.api.test_edits import data_url, mask, photo
from tests.conftest import MakeApp
from tests.conversation.upstream import Exchange, Upstream, upstream

CALL = "image_generation_call"
MESSAGE = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Here it is.", "annotations": []}],
}
AUTO: dict[str, Any] = {"model": "tiny", "tools": [SMALL]}


def call(prompt: str = "a red cat", name: str = "image_generation", **more: Any) -> dict[str, Any]:
    arguments = json.dumps({"prompt": prompt, **more})
    return {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name, "arguments": arguments, "status": "completed"}  # fmt: skip


def response_of(sent: dict[str, Any], *items: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    """What an upstream answers: it repeats the tools that it got."""
    return {
        "id": "resp_up",
        "object": "response",
        "created_at": 1764000000,
        "status": status,
        "model": "tiny-real",
        "output": list(items),
        "parallel_tool_calls": True,
        "tools": sent.get("tools", []),
        "tool_choice": sent.get("tool_choice", "auto"),
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 12,
        },
    }


def events_for(sent: dict[str, Any], *items: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of such a response."""
    begun = response_of(sent, status="in_progress") | {"usage": None}
    events: list[dict[str, Any]] = [{"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")]  # fmt: skip
    for index, item in enumerate(items):
        place = {"output_index": index}
        if item["type"] == "function_call":
            arguments = {**place, "item_id": item["id"]}
            events += [
                {"type": "response.output_item.added", **place, "item": {**item, "arguments": "", "status": "in_progress"}},
                {"type": "response.function_call_arguments.delta", **arguments, "delta": item["arguments"]},
                {"type": "response.function_call_arguments.done", **arguments, "arguments": item["arguments"], "name": item["name"]},
            ]  # fmt: skip
        else:
            text = item["content"][0]["text"]
            part = {**place, "item_id": item["id"], "content_index": 0}
            events += [
                {"type": "response.output_item.added", **place, "item": {**item, "content": [], "status": "in_progress"}},
                {"type": "response.content_part.added", **part, "part": {**item["content"][0], "text": ""}},
                {"type": "response.output_text.delta", **part, "delta": text, "logprobs": []},
                {"type": "response.output_text.done", **part, "text": text, "logprobs": []},
                {"type": "response.content_part.done", **part, "part": item["content"][0]},
            ]  # fmt: skip
        events.append({"type": "response.output_item.done", **place, "item": item})
    events.append({"type": "response.completed", "response": response_of(sent, *items)})
    return [{"sequence_number": number, **event} for number, event in enumerate(events)]


def encoded(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def answering(*items: dict[str, Any]) -> Callable[[Exchange], None]:
    """An upstream that answers with these items, streamed if it was asked to."""

    def answer(exchange: Exchange) -> None:
        sent = exchange.received.json()
        if not sent.get("stream"):
            exchange.send_json(response_of(sent, *items), X_Upstream="yes")
            return
        exchange.begin()
        data = b"".join(map(encoded, events_for(sent, *items)))
        for start in range(0, len(data), 700):  # in the middle of events
            exchange.chunk(data[start : start + 700])
        exchange.end()

    return answer


@pytest.fixture
def fake() -> Iterator[Upstream]:
    with upstream() as started:
        yield started


@pytest.fixture
def llm(make_app: MakeApp, fake: Upstream) -> FlaskClient:
    return make_app(llm__upstreams=[{"name": "fake", "url": fake.url}]).test_client()


def ask(client: FlaskClient, **fields: Any) -> Any:
    return client.post(RESPONSES, json={"input": "Draw a cat.", **AUTO, **fields})


def stream(client: FlaskClient, **fields: Any) -> list[dict[str, Any]]:
    answer = ask(client, stream=True, **fields)
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text[:500]
    return checked_events(answer.text)


# --- what the upstream gets ------------------------------------------------------------------------


def test_the_upstream_gets_a_function_and_everything_else_as_it_was_sent(
    llm: FlaskClient, fake: Upstream
) -> None:
    fake.answer = answering(MESSAGE)
    body = (
        b'{"big": 123456789012345678901234, "f":1.10,  "tools": [{"type": "image_generation"}, {"type":"function",'
        b'"name":"f","parameters":{}}], "model":"tiny","input":"hi"}'
    )
    answer = llm.post(RESPONSES, data=body, content_type="application/json")
    assert answer.status_code == 200
    sent = fake.posts[0].body
    assert sent.startswith(b'{"big": 123456789012345678901234, "f":1.10,  "tools": [{')
    assert sent.endswith(b', "model":"tiny","input":"hi"}')
    function, other = json.loads(sent)["tools"]
    assert (function["type"], function["name"]) == ("function", "image_generation")
    assert function["parameters"]["required"] == ["prompt"]
    assert other == {"type": "function", "name": "f", "parameters": {}}


def test_a_function_of_the_client_keeps_its_name(llm: FlaskClient, fake: Upstream) -> None:
    own = {"type": "function", "name": "image_generation", "parameters": {}, "strict": False}
    fake.answer = answering(call())
    document, response = respond(llm, model="tiny", tools=[own, SMALL])
    names = [tool["name"] for tool in fake.posts[0].json()["tools"]]
    assert names == ["image_generation", "easel_image_generation"]
    assert response.output[0].type == "function_call"
    assert document["tools"] == [own, SMALL]


def test_parts_that_only_a_language_model_reads_are_left_to_it(llm: FlaskClient, fake: Upstream) -> None:
    file = {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}
    message = {"role": "user", "content": [file, {"type": "input_text", "text": "draw this"}]}
    fake.answer = answering(call())
    answer = ask(llm, input=[message, {"role": "user", "content": {"odd": 1}}])
    assert answer.status_code == 200, answer.text
    assert fake.posts[0].json()["input"][0] == message
    assert answer.get_json()["output"][0]["type"] == "image_generation_call"


def test_odd_tools_beside_the_image_tool_are_left_to_the_upstream(llm: FlaskClient, fake: Upstream) -> None:
    tools = [{"type": "image_generation"}, {"type": "function", "name": ["x"]}, {"name": {}}, "text"]
    assert ask(llm, tools=tools).status_code == 200
    assert fake.posts[0].json()["tools"][1:] == tools[1:]


def test_an_unknown_action_is_refused_before_the_language_model_is_asked(
    llm: FlaskClient, fake: Upstream
) -> None:
    answer = ask(llm, tools=[{"type": "image_generation", "action": "frob"}])
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "action")
    assert fake.posts == []


@pytest.mark.parametrize(
    ("tool", "code", "param"),
    [
        ({"size": "banana"}, "image.size_not_allowed", "size"),
        ({"model": "nope"}, "image.model_not_curated", "model"),
        ({"steps": 100_000}, "request.invalid_value", "steps"),
        ({"prompt": "a dog"}, "request.field_not_supported", "prompt"),
        ({"stream": True}, "request.field_not_supported", "stream"),
        ({"input_image_mask": {"image_url": "data:image/png;base64,AAAA"}}, "image.image_required", "input"),
        ({"action": "edit"}, "image.image_required", "input"),
    ],
)
def test_a_tool_that_cannot_draw_is_refused_before_the_language_model_is_asked(
    llm: FlaskClient, fake: Upstream, tool: dict[str, Any], code: str, param: str
) -> None:
    error = ask(llm, tools=[{**SMALL, **tool}]).get_json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert fake.posts == []


def test_a_mask_that_is_none_is_refused_before_the_language_model_is_asked(
    llm: FlaskClient, fake: Upstream
) -> None:
    image = {"type": "input_image", "detail": "auto", "image_url": data_url(photo())}
    tool = {**TOOL, "model": "sd-1.5", "input_image_mask": {"image_url": "data:image/png;base64,AAAA"}}
    answer = ask(llm, input=[{"role": "user", "content": [image]}], tools=[tool])
    assert answer.get_json()["error"]["code"] == "image.invalid_image"
    assert fake.posts == []


def test_an_engine_that_is_down_fails_only_requests_that_draw(make_app: MakeApp, fake: Upstream) -> None:
    app = make_app(llm__upstreams=[{"name": "fake", "url": fake.url}], engine__url="http://127.0.0.1:9")
    fake.answer = answering(MESSAGE)
    assert ask(app.test_client()).status_code == 200
    fake.answer = answering(call())
    assert ask(app.test_client()).status_code == 503


def test_earlier_pictures_become_calls_that_any_upstream_knows(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE)
    drawn = {
        "type": CALL,
        "id": "ig_1",
        "status": "completed",
        "result": "A" * 1000,
        "revised_prompt": "a cat",
    }
    items = [
        {"role": "user", "content": "a cat"},
        drawn,
        {"type": CALL, "id": "ig_2"},
        {"role": "user", "content": "thanks"},
    ]
    respond(llm, input=items, model="tiny")
    sent = fake.posts[0].json()["input"]
    assert [item.get("type", item.get("role")) for item in sent] == [
        *("user", "function_call", "function_call_output", "function_call", "function_call_output", "user"),
    ]
    assert json.loads(sent[1]["arguments"]) == {"prompt": "a cat"}
    assert sent[1]["call_id"] == sent[2]["call_id"] == "call_ig_1"
    assert b"AAAA" not in fake.posts[0].body
    assert "tools" not in fake.posts[0].json()


@pytest.mark.parametrize(
    "more", [b'"x": 1.10', b'"x":1, "x":2', b'"x": NaN', b'"x": ' + b"[" * 60 + b"]" * 60]
)
def test_a_request_that_only_speaks_of_the_tool_passes_as_it_is(
    llm: FlaskClient, fake: Upstream, more: bytes
) -> None:
    fake.answer = answering(MESSAGE)
    body = b'{"input":"what is image_generation?",  "model":"tiny", %s}' % more
    assert llm.post(RESPONSES, data=body, content_type="application/json").status_code == 200
    assert fake.posts[0].body == body


def test_allowed_tools_name_the_function(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE)
    own = {"type": "function", "name": "f", "parameters": {}, "strict": False}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [TOOL, {"type": "function", "name": "f"}]}
    document, _ = respond(llm, model="tiny", tools=[SMALL, own], tool_choice=choice)
    sent = fake.posts[0].json()["tool_choice"]
    assert sent["tools"] == [
        {"type": "function", "name": "image_generation"},
        {"type": "function", "name": "f"},
    ]
    assert document["tool_choice"] == choice


def test_pictures_that_are_disabled_leave_the_tool_to_the_upstream(make_app: MakeApp, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE)
    app = make_app(llm__upstreams=[{"name": "fake", "url": fake.url}], images__enabled=False)
    assert ask(app.test_client()).status_code == 200
    assert fake.posts[0].json()["tools"] == [SMALL]


# --- the answer ------------------------------------------------------------------------------------


def test_a_call_becomes_a_picture_in_its_place(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE, call())
    answer = ask(llm)
    assert answer.headers["X-Upstream"] == "yes"
    document, response = respond(llm, input="Draw a cat.", **AUTO)
    message, picture = response.output
    assert document["output"][0] == MESSAGE
    assert picture.type == CALL
    assert (picture.status, picture.revised_prompt, picture.size) == ("completed", "a red cat", "256x256")
    assert (response.model, response.id) == ("tiny-real", "resp_up")
    assert response.usage is not None
    assert response.usage.total_tokens == 12
    assert document["tools"] == [SMALL]
    assert message.type == "message"
    body = {"prompt": "a red cat", "size": "256x256", "model": "sd-1.5", "response_format": "b64_json"}
    seed = document["output"][1]["_hal0"]["meta"]["seed"]
    assert picture.result == llm.post("/v1/images/generations", json={**body, "seed": seed}).get_json()["data"][0]["b64_json"]  # fmt: skip


def test_an_answer_without_a_call_passes(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE)
    document, _ = respond(llm, **AUTO)
    assert document["output"] == [MESSAGE]
    types = [event["type"] for event in stream(llm)]
    assert types == [event["type"] for event in events_for({}, MESSAGE)]


def test_a_streamed_call_becomes_the_events_of_a_picture(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(MESSAGE, call())
    events = stream(llm, tools=[{**SMALL, "partial_images": 2, "steps": 6}])
    types = [event["type"] for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[8:] == [
        "response.output_item.added",
        f"response.{CALL}.in_progress",
        f"response.{CALL}.generating",
        *[f"response.{CALL}.partial_image"] * 2,
        f"response.{CALL}.completed",
        "response.output_item.done",
        "response.completed",
    ]
    assert not [name for name in types if "function_call" in name]
    assert {event["output_index"] for event in events[8:-1]} == {1}
    last = events[-1]["response"]
    assert last["output"] == [MESSAGE, events[-2]["item"]]
    assert events[0]["response"]["tools"][0]["type"] == "image_generation"
    assert last["usage"]["total_tokens"] == 12


def as_llama_server(sent: dict[str, Any], *items: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events with the fields that llama-server sends, captured in November 2026: without numbers and places, at first
    without most of the response, and without the id of a call."""
    left_out = ("sequence_number", "output_index", "content_index", "logprobs")
    for event in events_for(sent, *items):
        event = {name: value for name, value in event.items() if name not in left_out}
        if event["type"] in ("response.created", "response.in_progress"):
            event["response"] = {name: event["response"][name] for name in ("id", "object", "status")}
        elif "response" in event:
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                del event["response"][name]
        if event.get("item", {}).get("type") == "function_call":
            event["item"] = {name: value for name, value in event["item"].items() if name != "id"}
        if event["type"].startswith("response.function_call_arguments"):
            event["item_id"] = "call_1"
        yield event


def test_the_events_of_llama_server_are_completed(llm: FlaskClient, fake: Upstream) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for event in as_llama_server(exchange.received.json(), MESSAGE, call()):
            exchange.chunk(encoded(event))
        exchange.end()

    fake.answer = answer
    events = stream(llm)
    assert [event["output_index"] for event in events if "output_index" in event] == [0] * 6 + [1] * 5
    assert not [event for event in events if "function_call" in event["type"]]
    assert events[-1]["response"]["output"] == [MESSAGE, events[-2]["item"]]
    assert events[0]["response"]["tools"] == [SMALL]
    assert events[0]["response"]["model"] == "tiny"


def test_several_calls_and_several_pictures_of_one_call(llm: FlaskClient, fake: Upstream) -> None:
    calls = [{**call(text), "id": f"fc_{text}", "call_id": f"call_{text}"} for text in ("one", "two")]
    fake.answer = answering(calls[0], MESSAGE, calls[1])
    _, response = respond(llm, **{**AUTO, "tools": [{**SMALL, "n": 2}]})
    prompts = [item.revised_prompt if item.type == CALL else item.type for item in response.output]
    assert prompts == ["one", "message", "two", "one", "two"]
    events = stream(llm, tools=[{**SMALL, "n": 2}])
    output = events[-1]["response"]["output"]
    assert [item.get("revised_prompt", item["type"]) for item in output] == prompts
    done = {
        event["output_index"]: event["item"]
        for event in events
        if event["type"] == "response.output_item.done"
    }
    assert [done[index] for index in range(5)] == output


def test_a_call_that_only_the_end_of_the_stream_has_is_drawn(llm: FlaskClient, fake: Upstream) -> None:
    def answer(exchange: Exchange) -> None:
        sent = exchange.received.json()
        exchange.begin()
        for event in (events_for(sent)[0], events_for(sent, call())[-1]):
            exchange.chunk(encoded(event))
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end()

    fake.answer = answer
    events = stream(llm)
    assert events[-1]["response"]["output"][0]["status"] == "completed"
    assert [event["type"] for event in events][1:3] == [
        "response.output_item.added",
        f"response.{CALL}.in_progress",
    ]


def test_a_call_that_was_cut_by_a_limit_draws_nothing(llm: FlaskClient, fake: Upstream) -> None:
    cut = {**call(), "arguments": '{"pro', "status": "incomplete"}

    def answer(exchange: Exchange) -> None:
        sent = exchange.received.json()
        document = response_of(sent, cut, status="incomplete") | {
            "incomplete_details": {"reason": "max_output_tokens"}
        }
        if not sent.get("stream"):
            exchange.send_json(document)
            return
        events = events_for(sent, cut)
        events[-1] = {"type": "response.incomplete", "sequence_number": 6, "response": document}
        exchange.begin()
        exchange.chunk(b"".join(map(encoded, events)))
        exchange.end()

    fake.answer = answer
    document, _ = respond(llm, **AUTO)
    assert document["status"] == "incomplete"
    events = stream(llm)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["type"] == CALL
    assert events[-1]["response"]["output"][0]["status"] == "failed"


def test_the_model_may_change_the_latest_picture(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(call("at night", edit=True))
    image = {"type": "input_image", "detail": "auto", "image_url": data_url(photo(320, 256))}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "my cat"}, image]},
        {"role": "user", "content": "now at night"},
    ]
    document, _ = respond(llm, input=items, **{**AUTO, "tools": [{**TOOL, "model": "sd-1.5"}]})
    assert "edit" in fake.posts[0].json()["tools"][0]["parameters"]["properties"]
    assert (document["output"][0]["action"], document["output"][0]["size"]) == ("edit", "320x256")
    respond(llm, **AUTO)
    assert "edit" not in fake.posts[1].json()["tools"][0]["parameters"]["properties"]


def test_with_a_mask_each_call_is_an_edit(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(call())
    image = {"type": "input_image", "detail": "auto", "image_url": data_url(photo())}
    tool = {**TOOL, "model": "sd-1.5", "input_image_mask": {"image_url": data_url(mask())}}
    items = [{"role": "user", "content": [image]}, {"role": "user", "content": "a hat"}]
    document, _ = respond(llm, input=items, model="tiny", tools=[tool])
    assert document["output"][0]["action"] == "edit"
    assert "edit" not in fake.posts[0].json()["tools"][0]["parameters"]["properties"]


NOT_TO_BE_CALLED = [
    "none",
    {"type": "function", "name": "f"},
    {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
]


@pytest.mark.parametrize("choice", NOT_TO_BE_CALLED)
def test_a_tool_that_must_not_be_called_draws_nothing(llm: FlaskClient, fake: Upstream, choice: Any) -> None:
    own = {"type": "function", "name": "f", "parameters": {}, "strict": False}
    fake.answer = answering(MESSAGE, call())
    document, _ = respond(llm, model="tiny", tools=[SMALL, own], tool_choice=choice)
    assert document["output"][1] == {
        **document["output"][1],
        "type": CALL,
        "status": "failed",
        "result": None,
    }
    assert fake.posts[0].json()["tool_choice"] == choice
    events = stream(llm, tools=[SMALL, own], tool_choice=choice)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert done[1]["status"] == "failed"
    assert f"response.{CALL}.completed" not in [event["type"] for event in events]


@pytest.mark.parametrize(("limit", "drawn"), [(1, 1), (3, 3), (100, MAX_CALLS), (None, MAX_CALLS)])
def test_only_so_many_calls_are_drawn(
    llm: FlaskClient, fake: Upstream, limit: int | None, drawn: int
) -> None:
    fake.answer = answering(*[numbered_call(number) for number in range(MAX_CALLS + 2)])
    tool = {**SMALL, "steps": 1}
    document, _ = respond(llm, model="tiny", tools=[tool], max_tool_calls=limit)
    expected = ["completed"] * drawn + ["failed"] * (MAX_CALLS + 2 - drawn)
    assert [item["status"] for item in document["output"]] == expected
    events = stream(llm, tools=[tool], max_tool_calls=limit)
    assert [item["status"] for item in events[-1]["response"]["output"]] == expected


def numbered_call(number: int) -> dict[str, Any]:
    return {**call(f"cat {number}"), "id": f"fc_{number}", "call_id": f"call_{number}"}


def test_the_prompt_of_a_model_sets_no_other_fields(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = answering(call('a cat <sd_cpp_extra_args>{"n": 4, "seed": 5}</sd_cpp_extra_args>'))
    document, _ = respond(llm, **AUTO)
    (item,) = document["output"]
    assert item["revised_prompt"] == "a cat"


@pytest.mark.parametrize("indexes", [None, 0])
def test_calls_with_the_same_ids_or_the_same_index_are_drawn_once_each(
    llm: FlaskClient, fake: Upstream, indexes: int | None
) -> None:
    """Some servers number calls by turn only, or all items with 0."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        for event in events_for(exchange.received.json(), MESSAGE, call("one"), call("two")):
            place = {} if indexes is None else {"output_index": indexes}
            exchange.chunk(encoded({name: value for name, value in event.items() if name != "output_index"} | (place if "output_index" in event else {})))  # fmt: skip
        exchange.end()

    fake.answer = answer
    events = stream(llm)
    output = events[-1]["response"]["output"]
    assert [item.get("revised_prompt", item["type"]) for item in output] == ["message", "one", "two"]
    assert [event["type"] for event in events].count(f"response.{CALL}.completed") == 2


# --- errors ----------------------------------------------------------------------------------------


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


@pytest.mark.parametrize("arguments", ["{}", "not json", '{"prompt": " "}', '{"prompt": 5}', "[1]"])
def test_a_call_without_a_prompt_is_an_error(llm: FlaskClient, fake: Upstream, arguments: str) -> None:
    fake.answer = answering({**call(), "arguments": arguments})
    assert code_of(ask(llm)) == (502, "dispatch.upstream_failed")
    *_, error, failed = stream(llm)
    assert (error["code"], failed["type"]) == ("dispatch.upstream_failed", "response.failed")
    assert failed["response"]["id"] == "resp_up"


def test_a_picture_that_fails_is_the_envelope_or_the_end_of_the_stream(
    failing: FlaskClient, make_app: MakeApp, fake: Upstream
) -> None:
    fake.answer = answering(MESSAGE, call())
    container = failing.application.extensions["easel"]
    app = make_app(
        engine__url=container.settings["engine.url"],
        catalogue=container.settings["catalogue"],
        templates=container.settings["templates"],
        llm__upstreams=[{"name": "fake", "url": fake.url}],
    )
    assert code_of(ask(app.test_client())) == (500, "engine.node_failed")
    events = stream(app.test_client())
    assert [event["type"] for event in events][-2:] == ["error", "response.failed"]
    assert events[-2]["code"] == "engine.node_failed"
    assert "Here it is." in json.dumps(events)


def test_a_full_queue_of_pictures_fails_only_requests_that_draw(make_app: MakeApp, fake: Upstream) -> None:
    app = make_app(llm__upstreams=[{"name": "fake", "url": fake.url}], max_waiting=1)
    container = app.extensions["easel"]
    with container.generator.admission.of(""):
        fake.answer = answering(MESSAGE)
        assert ask(app.test_client()).status_code == 200
        fake.answer = answering(call())
        assert code_of(ask(app.test_client())) == (429, "queue.full")
        *_, error, failed = stream(app.test_client())
        assert (error["code"], failed["response"]["error"]["code"]) == ("queue.full", "rate_limit_exceeded")
    assert container.forwarder.running == 0


def test_errors_of_the_upstream_pass(llm: FlaskClient, fake: Upstream) -> None:
    fake.answer = lambda exchange: exchange.send_json(
        {"error": {"message": "too long", "code": "context"}}, 400
    )
    answer = ask(llm)
    assert (answer.status_code, answer.get_json()["error"]["message"]) == (400, "too long")
    fake.answer = lambda exchange: exchange.send(200, b"hello")
    assert code_of(ask(llm)) == (502, "dispatch.upstream_failed")
    fake.answer = lambda exchange: exchange.send_json([])
    assert code_of(ask(llm)) == (502, "dispatch.upstream_failed")


def cut_off(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(encoded(events_for(exchange.received.json())[0]))
    exchange.cut()


def ends_early(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(encoded(events_for(exchange.received.json())[0]))
    exchange.end()


def error_in_stream(exchange: Exchange) -> None:
    exchange.begin()
    exchange.chunk(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
    exchange.end()


@pytest.mark.parametrize("answer", [cut_off, ends_early, error_in_stream])
def test_a_stream_that_the_upstream_breaks_ends_with_one_failure(
    llm: FlaskClient, fake: Upstream, answer: Callable[[Exchange], None]
) -> None:
    fake.answer = answer
    types = [event["type"] for event in stream(llm)]
    assert types[-2:] == ["error", "response.failed"]
    assert types.count("response.failed") == 1


def test_an_error_event_of_the_upstream_passes_alone(llm: FlaskClient, fake: Upstream) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        event = {"type": "error", "code": "x", "message": "broken", "param": None, "sequence_number": 0}
        exchange.chunk(encoded(event))
        exchange.end()

    fake.answer = answer
    (only,) = stream(llm)
    assert (only["type"], only["message"]) == ("error", "broken")


def test_background_is_refused_because_the_picture_would_come_too_late(
    llm: FlaskClient, fake: Upstream
) -> None:
    answer = ask(llm, background=True)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "background")
    assert fake.posts == []


def test_comments_and_unknown_events_pass(llm: FlaskClient, fake: Upstream) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.chunk(b": a comment\n\n")
        for event in events_for(exchange.received.json(), MESSAGE):
            exchange.chunk(encoded(event).replace(b"\n", b"\r\n"))
        exchange.end()

    fake.answer = answer
    text = ask(llm, stream=True).text
    assert events_of(text)[0].raw == ": a comment"
    assert len(checked_events(text)) == len(events_for({}, MESSAGE))


def test_a_client_that_hangs_up_while_the_model_answers_ends_its_work(
    llm: FlaskClient, fake: Upstream
) -> None:
    closed = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        try:
            while not exchange.stopped.wait(0.02):
                exchange.chunk(encoded(events_for(exchange.received.json())[0]))
        except OSError:
            closed.set()

    fake.answer = answer
    response = llm.post(RESPONSES, json={"input": "x", "stream": True, **AUTO}, buffered=False)
    next(response.iter_encoded())
    response.close()
    assert closed.wait(90)
    assert llm.application.extensions["easel"].forwarder.running == 0


def test_a_body_is_freed_at_once_when_the_request_is_refused(
    llm: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[RequestBody] = []
    read = RequestBody.read

    def recorded(stream: Any) -> RequestBody:
        bodies.append(read(stream))
        return bodies[-1]

    monkeypatch.setattr(RequestBody, "read", recorded)
    tool = {"type": "image_generation", "size": "7"}
    assert llm.post(RESPONSES, json={"model": "tiny", "input": "x", "tools": [tool]}).status_code == 400
    assert [len(body) for body in bodies] == [0]


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_events_are_divided_however_they_arrive(step: int) -> None:
    data = b"event: a\r\ndata: 1\r\n\r\ndata: 2\ndata: 3\n\n\n\n: x\r\n\r\ndata: 4\n"
    splitter = EventSplitter()
    parts = (data[start : start + step] for start in range(0, len(data), step))
    events = [event for part in parts for event in splitter.feed(part)]
    assert events == [b"event: a\ndata: 1\n\n", b"data: 2\ndata: 3\n\n", b": x\n\n"]
    assert splitter.end() == b"data: 4\n"


def test_the_time_for_an_event_grows_with_its_length_not_with_its_square() -> None:
    part = b"x" * 1024

    def cpu_s(parts: int) -> float:
        splitter = EventSplitter()
        began_at = time.process_time()
        for _ in range(parts):
            assert splitter.feed(part) == []
        assert len(splitter.feed(b"\n\n")[0]) == parts * len(part) + 2
        return time.process_time() - began_at

    short, long = (min(cpu_s(parts) for _ in range(3)) for parts in (2_000, 32_000))
    assert long < 80 * short  # 16 times as long; its square would be 256 times
