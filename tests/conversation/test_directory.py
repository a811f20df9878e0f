"""Which upstream gets a request, and which models are listed."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

from conversation import ROUTES, ModelDirectory, read_aliases, read_upstreams
from errors import EaselError, ModelMissing, NoRoute, UpstreamUnavailable
from tests.conversation.upstream import Exchange, upstream

CHAT = next(route for route in ROUTES if route.name == "chat")
SPEECH = next(route for route in ROUTES if route.name == "speech")


def directory(
    *entries: dict[str, Any], stacks: tuple[dict[str, Any], ...] = (), **aliases: Any
) -> ModelDirectory:
    upstreams = read_upstreams(entries, stacks, {"KEY": "sk-1"})
    return ModelDirectory(upstreams, read_aliases(aliases, upstreams))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def error_of(models: ModelDirectory, name: str) -> EaselError:
    with pytest.raises(EaselError) as caught:
        models.find(name, CHAT)
    return caught.value


def test_a_request_goes_to_the_upstream_that_lists_its_model() -> None:
    with upstream() as fake:
        models = directory(
            {"name": "a", "url": "http://127.0.0.1:1", "models": ["x"]}, {"name": "b", "url": fake.url}
        )
        target = models.find("tiny", CHAT)
        assert (target.upstream.name, target.model, target.path) == ("b", "tiny", "/v1/chat/completions")
        assert models.find("x", CHAT).upstream.name == "a"


def test_the_first_upstream_that_has_a_model_gets_it_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    entries = [{"name": name, "url": "http://127.0.0.1:1", "models": ["x"]} for name in ("a", "b")]
    models = directory(*entries, other={"model": "x", "upstream": "b"})
    assert models.find("x", CHAT).upstream.name == "a"
    assert models.find("other", CHAT).upstream.name == "b"
    assert [model.upstream for model in models.current()] == ["a"]
    models.current()
    assert caplog.text.count("requests go to a") == 1


def test_an_upstream_that_lacks_the_path_is_passed_over() -> None:
    entry = {"url": "http://127.0.0.1:1", "models": ["x"]}
    models = directory({**entry, "name": "a", "paths": {"chat": False}}, {**entry, "name": "b"})
    assert models.find("x", CHAT).upstream.name == "b"
    models = directory({**entry, "name": "a", "paths": {"chat": False}})
    error = error_of(models, "x")
    assert isinstance(error, NoRoute)
    assert "is at a, which does not offer /v1/chat/completions" in error.message


def test_an_alias_stands_for_its_model_and_for_requests_without_one() -> None:
    models = directory({"url": "http://127.0.0.1:1", "models": ["x"]}, primary="x", mine="x")
    assert [models.find(name, CHAT).model for name in ("primary", "mine", "")] == ["x", "x", "x"]
    with pytest.raises(ModelMissing, match="'tts'"):
        models.find("", SPEECH)


def test_an_alias_hides_the_model_of_its_name_from_requests_and_from_the_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    entries = [
        {"name": "a", "url": "http://127.0.0.1:1", "models": ["embed", "x"]},
        {"name": "b", "url": "http://127.0.0.1:1", "models": ["x", "y"]},
    ]
    models = directory(*entries, embed="y", x={"model": "x", "upstream": "b"})
    for name, found in (("embed", ("b", "y")), ("x", ("b", "x")), ("y", ("b", "y"))):
        target = models.find(name, CHAT)
        listed = models.listed()[name]
        assert (target.upstream.name, target.model) == (listed.upstream, listed.id) == found
    assert list(models.listed()) == ["embed", "x", "y"]
    assert error_of(models, "nope").details["models"] == ["embed", "x", "y"]
    models.listed()
    assert caplog.text.count("embed is an alias of y and a model of a; requests go to y") == 1
    assert "x is an alias" not in caplog.text
    # Requests for the alias of a model that is gone fail, so it is not listed either.
    models = directory(*entries, embed="gone")
    assert "embed" not in models.listed()
    assert isinstance(error_of(models, "embed"), NoRoute)


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    error = error_of(directory({"url": "http://127.0.0.1:1", "models": ["x"]}, primary="x"), "nope")
    assert isinstance(error, NoRoute)
    assert error.details["models"] == ["primary", "x"]
    assert "No LLM server is configured" in error_of(directory(), "nope").message


def test_an_alias_of_a_model_that_is_gone_says_so() -> None:
    error = error_of(directory({"url": "http://127.0.0.1:1", "models": ["x"]}, primary="gone"), "primary")
    assert isinstance(error, NoRoute)
    assert "'primary' (an alias of 'gone')" in error.message


def test_a_new_model_is_found_without_a_restart() -> None:
    ids = ["x"]
    now = [0.0]

    def listing(exchange: Exchange) -> None:
        exchange.send_json({"data": [{"id": id} for id in ids]})

    with upstream(listing=listing) as fake:
        upstreams = read_upstreams([{"url": fake.url}], (), {})
        models = ModelDirectory(upstreams, {}, clock=lambda: now[0])
        assert [model.id for model in models.current()] == ["x"]
        ids.append("y")
        now[0] = 2.0
        assert models.find("y", CHAT).model == "y"
        assert len(fake.requests) == 2
        for _ in range(10):
            models.find("y", CHAT)
            models.current()
        assert len(fake.requests) == 2  # cached


def test_ollamas_default_tag_may_be_omitted() -> None:
    def listing(exchange: Exchange) -> None:
        assert exchange.received.path == "/api/tags"
        exchange.send_json({"models": [{"name": "llama3:latest", "size": 5}]})

    with upstream(listing=listing) as fake:
        assert directory({"preset": "ollama", "url": fake.url}).find("llama3", CHAT).model == "llama3:latest"


def test_a_dead_upstream_costs_only_its_own_models_and_is_named() -> None:
    with upstream() as fake:
        models = directory(
            {"name": "dead", "url": f"http://127.0.0.1:{closed_port()}"}, {"name": "b", "url": fake.url}
        )
        assert [model.id for model in models.current()] == ["tiny", "other"]
        assert models.find("tiny", CHAT).upstream.name == "b"
        error = error_of(models, "nope")
        assert isinstance(error, UpstreamUnavailable)
        assert "dead at http://127.0.0.1" in error.message
        assert "refuses connections" in error.message
        status = {entry.name: entry.problem for entry in models.status()}
        assert status["b"] == ""
        assert "refuses connections" in status["dead"]


def test_the_models_of_an_upstream_that_died_are_not_listed_but_still_go_to_it() -> None:
    now = [0.0]
    with upstream() as fake:
        upstreams = read_upstreams([{"url": fake.url}], (), {})
        models = ModelDirectory(upstreams, {}, clock=lambda: now[0])
        assert len(models.current()) == 2
    now[0] = 100.0
    assert models.current() == ()
    assert models.find("tiny", CHAT).model == "tiny"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<html>", "not JSON"),
        (b"[]", "without a list `data`"),
        (b'{"data": 1}', "without a list `data`"),
        (b'{"data": [1, {}, {"id": 5}, {"id": ""}]}', ""),
    ],
)
def test_a_nonsense_list_is_a_problem_of_its_upstream(body: bytes, problem: str) -> None:
    with upstream(listing=lambda exchange: exchange.send(200, body)) as fake:
        models = directory({"url": fake.url})
        assert models.current() == ()
        assert problem in models.status()[0].problem


def test_a_rejected_key_is_named_by_its_variable_and_never_shown() -> None:
    def listing(exchange: Exchange) -> None:
        exchange.send_json({"error": exchange.received.headers["Authorization"]}, status=401)

    with upstream(listing=listing) as fake:
        models = directory({"url": fake.url, "key_env": "KEY"})
        models.current()
        assert "rejects the key in KEY" in models.status()[0].problem
        assert "sk-1" not in repr(models.status()) + repr(models.upstreams)
        assert fake.requests[0].headers["Authorization"] == "Bearer sk-1"


def test_a_list_of_command_lines_is_not_passed_on() -> None:
    def listing(exchange: Exchange) -> None:
        exchange.send_json(
            {"data": [{"id": "x", "created": 7, "max_model_len": 512, "status": {"args": ["--key"]}}]}
        )

    with upstream(listing=listing) as fake:
        model = directory({"url": fake.url}).current()[0]
        assert (model.id, model.created, model.context_length) == ("x", 7, 512)
        assert "--key" not in repr(model)
