"""Who may come in, clean paths, and that every fault is the one envelope."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

import errors
from api import status_of
from errors import EaselError, every_error
from tests.conftest import ROOT, MakeApp

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256"}
ENVELOPE = Draft202012Validator(json.loads((ROOT / "schemas/error.schema.json").read_text()))


def code_of(answer: Any) -> str:
    ENVELOPE.validate(answer.get_json())
    return str(answer.get_json()["error"]["code"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route.not_found"),
        ("GET", "/v1/nope", 404, "route.not_found"),
        ("POST", "/nope", 404, "route.not_found"),
        ("GET", PATH, 405, "route.method_not_allowed"),
        ("DELETE", "/v1/models", 405, "route.method_not_allowed"),
        ("PUT", "/health", 405, "route.method_not_allowed"),
        ("GET", "/v1/models/nope", 404, "image.model_not_curated"),
        ("GET", "/api/images/cache/nope.png", 404, "image.not_found"),
        ("GET", "/static/x", 404, "route.not_found"),
    ],
)
def test_every_error_is_the_envelope_and_never_html(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.open(path, method=method)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert answer.headers["x-request-id"]
    if status == 405:
        assert answer.headers["Allow"]


def test_what_nobody_foresaw_is_500_without_its_reasons(make_app: MakeApp) -> None:
    app = make_app()

    @app.get("/break")
    def broken() -> str:
        raise RuntimeError("secret reason")

    app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = app.test_client().get("/break")
    assert (answer.status_code, code_of(answer)) == (500, "server.internal")
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.code)
def test_every_error_has_code_words_and_status(kind: type[EaselError]) -> None:
    assert kind.code.count(".") == 1
    assert kind.when.endswith(".")
    assert kind.remedy.endswith(".")
    assert 400 <= status_of(kind) < 600


def test_codes_are_told_apart() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(codes) == len(set(codes))


def test_only_errors_that_may_pass_tell_clients_to_try_again() -> None:
    again = {kind for kind in every_error() if kind.retry}
    assert {errors.QueueFull, errors.EngineUnreachable, errors.JobLost} <= again
    assert not again & {errors.NodeFailed, errors.JobTimedOut, errors.FilesMissing, errors.EngineRejected}


def test_options_answers_are_no_html(client: FlaskClient) -> None:
    for path in (PATH, "/v1/models"):
        answer = client.options(path)
        assert answer.headers["Allow"]
        assert "Content-Type" not in answer.headers


def test_a_path_cannot_forge_a_line_of_the_log(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "easel")
    client.get("/v1/x%0aFORGED%1b[31m")
    assert caplog.records
    assert all(
        "\n" not in record.getMessage() and "\x1b" not in record.getMessage() for record in caplog.records
    )


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/generations/",
        "//v1//images/generations",
        "/v1/images/generations?t=1&api-version=2",
        "/v1-openai/images/generations",
        "/v1-openai/image/generate",
    ],
)
def test_careless_and_other_spellings_of_the_path_are_served_without_a_redirect(
    client: FlaskClient, path: str
) -> None:
    path_info, _, query = path.partition("?")
    answer = client.post("/", query_string=query, json=SMALL, environ_overrides={"PATH_INFO": path_info})
    assert answer.status_code == 200


# --- ids, keys -------------------------------------------------------------------------------------


def test_a_request_id_is_kept_when_sane_and_made_otherwise(client: FlaskClient) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/health", headers={"x-request-id": "a b;c"}).headers["x-request-id"]
    assert len(made) == 32


@pytest.fixture
def locked(make_app: MakeApp) -> FlaskClient:
    return make_app(api_keys=("one", "zwei-ü")).test_client()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer nope"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic one"},
        {"api-key": "on"},
        {"Authorization": "one"},
    ],
)
def test_without_a_key_nothing_is_drawn_or_told(locked: FlaskClient, headers: dict[str, str]) -> None:
    for answer in (locked.post(PATH, json=SMALL, headers=headers), locked.get("/v1/models", headers=headers)):
        assert (answer.status_code, code_of(answer)) == (401, "auth.invalid_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer one"},
        {"Authorization": "bearer  one"},
        {"api-key": "one"},
        {"x-api-key": "one"},
    ],
)
def test_any_of_the_keys_opens(locked: FlaskClient, headers: dict[str, str]) -> None:
    assert locked.get("/v1/models", headers=headers).status_code == 200


def test_probes_description_and_kept_images_need_no_key(locked: FlaskClient) -> None:
    url = locked.post(PATH, json=SMALL, headers={"api-key": "one"}).get_json()["data"][0]["url"]
    for path in ("/health", "/ready", "/openapi.json", url):
        assert locked.get(path).status_code == 200
    assert locked.get("/health/../v1/models").status_code == 401
    assert locked.get("/api/images/cache/").status_code == 401


# --- Host and Origin -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST", "my.box"]
)
def test_on_loopback_its_names_and_the_allowed_ones_are_answered(make_app: MakeApp, host: str) -> None:
    client = make_app(allowed_hosts=("my.box",)).test_client()
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "10.0.0.1"]
)
def test_on_loopback_a_foreign_host_is_refused(make_app: MakeApp, host: str) -> None:
    answer = make_app().test_client().get("/v1/models", headers={"Host": host})
    assert (answer.status_code, code_of(answer)) == (403, "auth.foreign_host")
    public = make_app(host="0.0.0.0", api_keys=("k",)).test_client()
    assert public.get("/v1/models", headers={"Host": host, "api-key": "k"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost.evil"]
)
def test_a_page_of_a_foreign_origin_may_change_nothing(client: FlaskClient, origin: str) -> None:
    answer = client.post(PATH, json=SMALL, headers={"Origin": origin})
    assert (answer.status_code, code_of(answer)) == (403, "auth.foreign_origin")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_page_of_our_own_origin_may(client: FlaskClient) -> None:
    assert client.post(PATH, json=SMALL, headers={"Origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize("allowed", ["https://chat.example", "*"])
def test_an_allowed_origin_gets_cors(make_app: MakeApp, allowed: str) -> None:
    client = make_app(allowed_origins=(allowed,)).test_client()
    origin = {"Origin": "https://chat.example"}
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    before = client.options(PATH, headers={**origin, **wanted})
    assert before.status_code == 204
    assert before.headers["Access-Control-Allow-Headers"] == wanted["Access-Control-Request-Headers"]
    answer = client.post(PATH, json=SMALL, headers=origin)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]


def test_a_preflight_of_a_foreign_origin_gets_no_leave(client: FlaskClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "Access-Control-Allow-Origin" not in client.options(PATH, headers=headers).headers


# --- proxies ---------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-Host": "pics.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/easel"}


def url_through(app: Flask, **headers: str) -> str:
    answer = app.test_client().post(
        PATH, json=SMALL, headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"}
    )
    return str(answer.get_json()["data"][0]["url"])


def test_the_url_follows_a_trusted_proxy_only(make_app: MakeApp) -> None:
    settings = {"host": "0.0.0.0", "allow_open": True}
    trusting = make_app(trusted_proxies=("10.0.0.9",), **settings)
    assert url_through(trusting, **FORWARDED).startswith("https://pics.example/easel/api/images/cache/")
    assert url_through(make_app(**settings), **FORWARDED).startswith("http://localhost/api/images/cache/")


def test_a_public_url_wins(make_app: MakeApp) -> None:
    app = make_app(public_url="https://art.example/x/")
    url = app.test_client().post(PATH, json=SMALL).get_json()["data"][0]["url"]
    assert url.startswith("https://art.example/x/api/images/cache/")
