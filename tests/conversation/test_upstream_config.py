"""llm.upstreams and llm.aliases of easel.yaml, and stacks that are upstreams, too."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from conversation import ROUTES, Upstream, read_upstreams
from conversation.upstreams import presets
from errors import SettingsInvalid
from schemas import load_schema
from settings import load_settings
from tests.raw_server import raw_server
from tests.test_http_connections import CERTIFICATE, OK, answering, over_tls

ENVIRONMENT = {"KEY": "sk-1", "BAD": "a b", "EMPTY": ""}
URL, HTTPS = "http://127.0.0.1:8081", "https://127.0.0.1:8081"


def one(**entry: Any) -> Upstream:
    return read_upstreams([entry], (), ENVIRONMENT)[0]


def errors_of(upstreams: list[Any], stacks: tuple[Any, ...] = ()) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        read_upstreams(upstreams, stacks, ENVIRONMENT)
    errors: list[str] = caught.value.details["errors"]
    return errors


def test_an_url_is_enough() -> None:
    upstream = one(url=URL)
    assert (upstream.name, upstream.url, upstream.models, upstream.stack) == (
        "openai-compatible",
        URL,
        None,
        None,
    )
    assert upstream.paths["chat"] == "/v1/chat/completions"
    assert upstream.paths["rerank"] == "/v1/rerank"
    assert not upstream.shares_gpu("any")


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", "/", ""])
def test_the_url_may_end_as_clients_write_it(suffix: str) -> None:
    assert one(url="https://openrouter.ai/api" + suffix).url == "https://openrouter.ai/api"


@pytest.mark.parametrize("suffix", ["/v1", "/api", "/api/v1"])
def test_the_url_of_a_server_with_ollamas_api_may_end_as_its_clients_write_it(suffix: str) -> None:
    assert one(preset="lemonade", url=URL + suffix).url == URL


def test_every_stack_with_an_url_is_an_upstream_unless_switched_off() -> None:
    stacks = (
        {"driver": "ollama", "url": URL, "keep": ["embed"]},
        {"driver": "llama-server", "url": "http://127.0.0.1:8082", "key_env": "KEY"},
        {"driver": "vllm", "url": "http://127.0.0.1:8000", "upstream": False},
        {"driver": "command", "name": "tts", "systemd": ["kokoro"], "upstream": {"url": "http://127.0.0.1:8880", "preset": "kokoro"}},
        {"driver": "command", "name": "none", "systemd": ["x"]},
        {"driver": "http", "name": "own", "like": "lemonade", "url": "http://127.0.0.1:13305"},
    )  # fmt: skip
    found = read_upstreams([{"url": "http://127.0.0.1:9", "name": "cloud"}], stacks, ENVIRONMENT)
    assert [(upstream.name, upstream.preset, upstream.stack) for upstream in found] == [
        ("cloud", "openai-compatible", None),
        ("ollama", "ollama", "ollama"),
        ("llama-server", "llama-server", "llama-server"),
        ("tts", "kokoro", "tts"),
        ("own", "lemonade", "own"),
    ]
    ollama = found[1]
    assert ollama.shares_gpu("chat")
    assert not ollama.shares_gpu("embed")
    assert not ollama.shares_gpu("embed:latest")


def test_an_upstream_may_share_the_gpu_through_a_stack() -> None:
    stacks = ({"driver": "command", "name": "both", "systemd": ["a", "b"]},)
    found = read_upstreams([{"url": URL, "stack": "both"}], stacks, ENVIRONMENT)
    assert found[0].shares_gpu("x")
    assert "there is no such stack" in errors_of([{"url": URL, "stack": "nope"}], stacks)[0]


@pytest.mark.parametrize(
    ("entry", "path", "text"),
    [
        ({}, "0.url", "missing"),
        ({"url": "ftp://x"}, "0.url", "URL"),
        ({"url": "http://user:sk-1@x"}, "0.url", "without user"),
        ({"url": URL, "preset": "gpt"}, "0.preset", "openrouter"),
        ({"url": URL, "key_env": "MISSING"}, "0.key_env", "MISSING is not set"),
        ({"url": URL, "key_env": "EMPTY"}, "0.key_env", "EMPTY is not set"),
        ({"url": URL, "key_env": "BAD"}, "0.key_env", "cannot be sent"),
        ({"url": URL, "auth": "bearer"}, "0.key_env", "missing"),
        ({"url": URL, "auth": "none", "key_env": "KEY"}, "0.auth", "remove key_env"),
        ({"url": URL, "auth": "header", "key_env": "KEY"}, "0.header", "missing"),
        ({"url": URL, "header": "api-key", "key_env": "KEY"}, "0.header", "auth: header"),
        ({"url": URL, "auth": "header", "header": "api-key"}, "0.key_env", "missing"),
        ({"preset": "anthropic", "header": "api-key"}, "0.key_env", "missing"),
        (
            {"url": URL, "key_env": "KEY", "headers": {"authorization": "Basic x"}},
            "0.headers.authorization",
            "key_env",
        ),
        (
            {"preset": "anthropic", "key_env": "KEY", "headers": {"X-API-Key": "x"}},
            "0.headers.X-API-Key",
            "key_env",
        ),
        ({"url": URL, "auth": "basic"}, "0.auth", "bearer"),
        ({"url": URL, "paths": {"chatt": "/x"}}, "0.paths", "chat"),
        ({"url": URL, "paths": {"chat": "x"}}, "0.paths.chat", "slash"),
        ({"url": URL, "headers": {"X": "a\r\nB: c"}}, "0.headers", "ASCII"),
        ({"url": URL, "models": []}, "0.models", ""),
        ({"url": URL, "silence_timeout_s": 0}, "0.silence_timeout_s", ""),
        ({"url": URL, "ca_file": str(CERTIFICATE)}, "0.ca_file", "https"),
        ({"url": HTTPS, "ca_file": "ca.pem"}, "0.ca_file", "absolute"),
        ({"url": HTTPS, "ca_file": "/no/such/file"}, "0.ca_file", "cannot be read"),
        ({"url": HTTPS, "ca_file": __file__}, "0.ca_file", "no certificate"),
        ({"url": URL, "unknown": 1}, "0", "unknown"),
    ],
)
def test_mistakes_are_reported_with_their_path(entry: dict[str, Any], path: str, text: str) -> None:
    errors = errors_of([entry])
    assert errors[0].startswith(f"llm.upstreams.{path}"), errors
    assert text in errors[0]
    assert "sk-1" not in "".join(errors)


def test_two_upstreams_cannot_have_one_name() -> None:
    assert "already named" in errors_of([{"url": URL}, {"url": "http://127.0.0.1:2"}])[0]
    assert (
        "already named" in errors_of([{"url": URL, "name": "Ollama"}], ({"driver": "ollama", "url": URL},))[0]
    )


def test_the_file_and_line_of_a_mistake_are_named(tmp_path: Path) -> None:
    from app import Container

    file = tmp_path / "easel.yaml"
    file.write_text(
        "llm:\n  upstreams:\n    - url: http://127.0.0.1:1\n      key_env: NOT_SET\n  aliases:\n    img: x\n"
    )
    with pytest.raises(SettingsInvalid, match=r"easel\.yaml:4: llm\.upstreams\.0\.key_env"):
        Container(load_settings({"EASEL_CONFIG": str(file)}))
    file.write_text("llm:\n  aliases:\n    img: x\n")
    with pytest.raises(SettingsInvalid, match=r"easel\.yaml:3: llm\.aliases\.img.*images\.default_model"):
        Container(load_settings({"EASEL_CONFIG": str(file)}))


def test_schema_presets_and_routes_agree() -> None:
    schema = load_schema("upstreams")
    assert schema["items"]["properties"]["preset"]["enum"] == list(presets())
    names = list(dict.fromkeys(route.name for route in ROUTES))
    assert schema["$defs"]["paths"]["propertyNames"]["enum"] == names
    assert all(set(preset.paths) <= set(names) for preset in presets().values())
    assert len({route.path for route in ROUTES}) == len(ROUTES)


def test_the_owners_headers_replace_those_of_the_preset() -> None:
    assert one(preset="anthropic", key_env="KEY").default_headers == {"anthropic-version": "2023-06-01"}
    own = one(preset="anthropic", key_env="KEY", headers={"Anthropic-Version": "2026-01-01"})
    assert (own.default_headers, own.own_headers) == ({}, {"anthropic-version", "x-api-key", "authorization"})


def test_the_owner_may_say_how_every_request_sends_the_key() -> None:
    bearer, header = {"Authorization": "Bearer sk-1"}, {"x-api-key": "sk-1"}
    for entry, of_chat, of_messages in [
        ({}, bearer, header),
        ({"auth": "bearer"}, bearer, bearer),
        ({"auth": "header"}, header, header),
        ({"header": "api-key"}, {"api-key": "sk-1"}, {"api-key": "sk-1"}),
    ]:
        own = one(preset="anthropic", key_env="KEY", **entry)
        assert (own.key_headers("chat"), own.key_headers("messages")) == (of_chat, of_messages), entry
        assert own.key_headers() == of_messages  # the list of models


def test_an_upstream_with_a_private_ca_is_trusted_if_its_file_is_named() -> None:
    serve, _ = answering(OK)
    with raw_server(over_tls(serve)) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(ssl.SSLCertVerificationError):
            one(url=url).connections.call("GET", "/", timeout_s=5)
        trusting = one(url=url, ca_file=str(CERTIFICATE))
        assert trusting.connections.call("GET", "/", timeout_s=5).content == b"ok"
        of_stack = {"driver": "llama-server", "url": url, "upstream": {"ca_file": str(CERTIFICATE)}}
        upstream = read_upstreams((), [of_stack], ENVIRONMENT)[0]
        assert upstream.connections.call("GET", "/", timeout_s=5).content == b"ok"


def test_texts_of_an_upstream_lose_every_secret_that_it_gets() -> None:
    headers = {
        "CF-Access-Client-Secret": "cf-123456",
        "Proxy-Authorization": "Basic dXNlcjpwYXNz",
        "X-Title": "Easel one",
    }
    upstream = one(
        url=URL, key_env="KEY", headers={**headers, "X-Auth-Kind": "true", "X-Api-Key": 'a"quoted"key'}
    )
    text = r'{"e": "sk-1 cf-123456 Basic dXNlcjpwYXNz, dXNlcjpwYXNz a\"quoted\"key", "x": true, "by": "Easel one"}'
    assert upstream.without_secrets(text) == '{"e": "*** *** ***, *** ***", "x": true, "by": "Easel one"}'
    assert "cf-123456" not in repr(upstream)
