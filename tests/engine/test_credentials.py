"""An engine behind a proxy that wants credentials: they reach every call and are shown nowhere."""

from __future__ import annotations

import logging
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from freezing_proxy import FreezingProxy

from engine import NO_CREDENTIALS, Credentials, Engine
from errors import EngineAccessDenied, EngineUnreachable, EngineWithoutWebSocket, UploadRefused
from tests.conftest import MakeApp
from tests.waiting import wait_until

PASSWORD, TOKEN = "s3cret-päss", "t0ken+/=&x"
BASIC = "Basic " + b64encode(f"me:{PASSWORD}".encode()).decode()


def has_header(value: str) -> Callable[[web.Request], bool]:
    return lambda request: request.headers.get("Authorization") == value


KINDS: dict[str, tuple[dict[str, str], Callable[[web.Request], bool]]] = {
    "basic": ({"user": "me", "password": PASSWORD}, has_header(BASIC)),
    "bearer": ({"token": "t0ken"}, has_header("Bearer t0ken")),
    "query": ({"query_token": TOKEN}, lambda request: request.query.get("token") == TOKEN),
    "query with another name": (
        {"query_token": TOKEN, "query_token_name": "key"},
        lambda request: request.query.get("key") == TOKEN,
    ),
}


@pytest.fixture
def proxy(sketch_url: str) -> Iterator[FreezingProxy]:
    with FreezingProxy(sketch_url) as proxy:
        yield proxy


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_reach_every_call_and_are_shown_nowhere(
    make_app: MakeApp, proxy: FreezingProxy, kind: str, caplog: Any
) -> None:
    values, proxy.is_allowed = KINDS[kind]
    proxy.has_socket_output = False
    caplog.set_level(logging.DEBUG)
    app = make_app(engine__url=proxy.url, **{f"engine__{name}": value for name, value in values.items()})
    client = app.test_client()
    assert (
        client.post("/v1/images/generations", json={"prompt": "a fox", "size": "256x256"}).status_code == 200
    )
    wait_until(lambda: client.get("/ready").status_code == 200)
    shown = [client.get(path).get_data(as_text=True) for path in ("/ready", "/api/comfyui/status")]
    runner = app.test_cli_runner()
    for command in (["check-catalogue", "--check", proxy.url], ["snapshot-nodes", proxy.url]):
        result = runner.invoke(args=command)
        assert result.exit_code == 0, result.output
        shown.append(result.output)
    assert {"/system_stats", "/ws", "/prompt", "/view"} <= set(proxy.paths)
    logged = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    for secret in (PASSWORD, TOKEN, "t0ken", BASIC.split()[1]):
        assert not [text for text in (*shown, *logged) if secret in text]


@pytest.mark.parametrize(
    ("challenge", "variables"),
    [
        ("Basic realm=x", ["EASEL_ENGINE_USER", "EASEL_ENGINE_PASSWORD"]),
        ("Bearer", ["EASEL_ENGINE_TOKEN"]),
        ("", ["EASEL_ENGINE_USER", "EASEL_ENGINE_TOKEN", "EASEL_ENGINE_QUERY_TOKEN"]),
    ],
)
def test_an_engine_that_wants_credentials_is_a_named_error_with_the_variable_to_set(
    make_app: MakeApp, proxy: FreezingProxy, challenge: str, variables: list[str]
) -> None:
    proxy.is_allowed, proxy.challenge = (lambda request: False), challenge
    client = make_app(engine__url=proxy.url).test_client()
    response = client.post("/v1/images/generations", json={"prompt": "a fox"})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (503, "engine.access_denied")
    assert response.headers["x-should-retry"] == "false"
    assert [name for name in variables if name not in error["message"]] == []
    ready = client.get("/ready")
    assert (ready.status_code, ready.get_json()["engine"]["code"]) == (503, "engine.access_denied")


def test_wrong_credentials_are_named_and_not_shown(proxy: FreezingProxy) -> None:
    proxy.is_allowed = lambda request: False
    engine = Engine(proxy.url, credentials=Credentials(user="me", password=PASSWORD))
    for call in (engine.stats, engine.connect, lambda: engine.upload(b"", "x.png")):
        with pytest.raises(
            EngineAccessDenied, match="does not accept the credentials in EASEL_ENGINE_USER"
        ) as caught:
            call()
        text = "".join(traceback.format_exception(caught.value)) + repr(engine._credentials)
        assert PASSWORD not in text
        assert BASIC.split()[1] not in text
    engine.close()


def test_a_query_token_is_in_no_traceback(proxy: FreezingProxy) -> None:
    credentials = Credentials(query_token="s3cret")
    proxy.passes_websockets = False
    proxy.frozen = {"/system_stats": "half body"}
    engine = Engine(proxy.url, credentials=credentials)
    nobody = Engine("http://127.0.0.1:9", credentials=credentials)
    for call in (lambda: engine.stats_and_queue(0.2), engine.connect, nobody.stats, nobody.connect):
        with pytest.raises(EngineUnreachable) as caught:
            call()
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    engine.close()


def test_credentials_do_not_follow_a_redirect(proxy: FreezingProxy, sketch_url: str) -> None:
    with FreezingProxy(sketch_url) as elsewhere:
        proxy.redirects_to = f"{elsewhere.url}/login"
        engine = Engine(proxy.url, credentials=Credentials(token="t0ken"))
        with pytest.raises(EngineUnreachable, match=r"redirects to http://127\.0\.0\.1.*login page"):
            engine.stats()
        with pytest.raises(EngineWithoutWebSocket):
            engine.connect()
        assert elsewhere.requests == []
        engine.close()


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("https://me:s3cret@sso.example:8443/login?token=s3cret", "https://sso.example:8443"),
        ("/login?token=s3cret", "another path"),
        ("http://[s3cret", "another path"),
        ("http://sso.example:s3cret/", "another path"),
    ],
)
def test_a_redirect_is_named_by_its_host_however_malformed_it_is(
    proxy: FreezingProxy, location: str, place: str
) -> None:
    proxy.redirects_to = location
    engine = Engine(proxy.url)
    with pytest.raises(EngineUnreachable, match="redirects to") as caught:
        engine.stats()
    assert f"redirects to {place}, which" in caught.value.message
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    engine.close()


def test_the_engine_that_easel_found_by_itself_gets_no_credentials(make_app: MakeApp, caplog: Any) -> None:
    container = make_app(engine__url="", engine__token="t0ken").extensions["easel"]
    assert container._make_engine("http://127.0.0.1:8188")._credentials.headers == {}
    assert container.engine_selector
    assert "they are sent nowhere" in caplog.text
    assert container.credentials.headers == {"Authorization": "Bearer t0ken"}


@pytest.mark.parametrize("url", ["http://me:s3cret@127.0.0.1:9", "http://127.0.0.1:9/?token=s3cret"])
def test_a_url_with_credentials_on_the_command_line_is_refused_with_the_remedy(
    make_app: MakeApp, url: str
) -> None:
    result = make_app().test_cli_runner().invoke(args=["check-catalogue", "--check", url])
    assert result.exit_code == 2
    assert "EASEL_ENGINE_USER" in result.output
    assert "s3cret" not in result.output


def test_a_proxy_that_passes_no_websockets_is_named_with_what_to_set_in_it(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    proxy.passes_websockets = False
    app = make_app(engine__url=proxy.url)
    client = app.test_client()
    response = client.post("/v1/images/generations", json={"prompt": "a fox"})
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "engine.no_websocket")
    ready = client.get("/ready")
    assert (ready.status_code, ready.get_json()["status"]) == (503, "engine_not_usable")
    assert "proxy_set_header Upgrade" in ready.get_json()["engine"]["message"]
    status = client.get("/api/comfyui/status").get_json()
    assert (status["reachable"], status["problem"]["code"]) == (True, "engine.no_websocket")
    result = app.test_cli_runner().invoke(args=["check-catalogue", "--check", proxy.url])
    assert result.exit_code == 3
    assert "proxy_set_header Upgrade" in result.output


def test_a_proxy_that_refuses_large_uploads_is_named_with_what_to_set_in_it(proxy: FreezingProxy) -> None:
    proxy.frozen = {"/upload/image": "413"}
    engine = Engine(proxy.url)
    with pytest.raises(UploadRefused, match=r"bodies of 2 MB and more; in nginx: `client_max_body_size"):
        engine.upload(b"x" * 1_500_000, "photo.png")
    engine.close()


# --- credentials of an entry of `engines` -------------------------------------------------------------


def test_an_entry_without_credentials_is_told_the_keys_of_its_entry(proxy: FreezingProxy) -> None:
    credentials = Credentials(entry="small")
    assert credentials == NO_CREDENTIALS
    assert credentials.remedy('Basic realm="x"') == (
        "Set `user_env` and `password_env` for the engine small in `engines`."
    )
    assert credentials.remedy("Bearer") == "Set `token_env` for the engine small in `engines`."
    proxy.is_allowed = lambda request: False
    engine = Engine(proxy.url, credentials=credentials)
    for call in (engine.stats, engine.connect):
        with pytest.raises(EngineAccessDenied, match=r"_env.* for the engine small in `engines`") as caught:
            call()
        assert "EASEL_ENGINE" not in caught.value.message
    engine.close()


def test_wrong_credentials_of_an_entry_are_named_by_their_key(proxy: FreezingProxy) -> None:
    proxy.is_allowed = lambda request: False
    engine = Engine(proxy.url, credentials=Credentials(token="s3cret", entry="small"))
    expected = "does not accept the credentials in `token_env` of the engine small; correct them"
    with pytest.raises(EngineAccessDenied, match=expected):
        engine.stats()
    engine.close()


def test_a_redirect_of_an_entry_names_its_url(proxy: FreezingProxy) -> None:
    proxy.redirects_to = "https://sso.example/login"
    engine = Engine(proxy.url, credentials=Credentials(entry="small"))
    with pytest.raises(
        EngineUnreachable, match="into `url` of the engine small; if it is a login page"
    ) as caught:
        engine.stats()
    assert "`token_env` (a bearer token)" in caught.value.message
    engine.close()
