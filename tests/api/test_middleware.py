"""Keys, Host and Origin checks, path cleanup, proxies, and the error envelope."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

import errors
from api import status_of
from errors import EaselError, error_classes
from tests.conftest import ROOT, MakeApp

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256"}
ENVELOPE = Draft202012Validator(json.loads((ROOT / "schemas/error.schema.json").read_text()))


def code_of(response: Any) -> str:
    ENVELOPE.validate(response.get_json())
    return str(response.get_json()["error"]["code"])


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
def test_errors_are_json_envelopes_and_never_html(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.open(path, method=method)
    assert (response.status_code, code_of(response)) == (status, code)
    assert response.headers["x-request-id"]
    if status == 405:
        assert response.headers["Allow"]


def test_an_unexpected_exception_is_500_without_details(make_app: MakeApp) -> None:
    app = make_app()

    @app.get("/break")
    def fail() -> str:
        raise RuntimeError("secret reason")

    app.config["PROPAGATE_EXCEPTIONS"] = False
    response = app.test_client().get("/break")
    assert (response.status_code, code_of(response)) == (500, "server.internal")
    assert "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 503, "server.too_many_files"),
        (OSError(errno.ENOSPC, "No space left on device"), 507, "image.store_full"),
        (MemoryError(), 503, "server.out_of_memory"),
        (RuntimeError("can't start new thread"), 503, "server.out_of_memory"),
        (OSError(errno.EACCES, "Permission denied"), 500, "server.state_unwritable"),
        (OSError(errno.EROFS, "Read-only file system"), 500, "server.state_unwritable"),
        (OSError(errno.EIO, "Input/output error"), 500, "server.internal"),
    ],
)
def test_what_this_machine_lacks_is_named(
    make_app: MakeApp, raised: Exception, status: int, code: str
) -> None:
    app = make_app()

    @app.get("/break")
    def fail() -> str:
        raise raised

    app.config["PROPAGATE_EXCEPTIONS"] = False
    response = app.test_client().get("/break")
    assert (response.status_code, code_of(response)) == (status, code)


@pytest.mark.parametrize("error", list(error_classes()), ids=lambda error: error.code)
def test_every_error_has_a_code_a_cause_a_remedy_and_a_status(error: type[EaselError]) -> None:
    assert error.code.count(".") == 1
    assert error.when.endswith(".")
    assert error.remedy.endswith(".")
    assert 400 <= status_of(error) < 600


def test_error_codes_are_unique() -> None:
    codes = [error.code for error in error_classes()]
    assert len(codes) == len(set(codes))


def test_only_temporary_errors_tell_clients_to_retry() -> None:
    retried = {error for error in error_classes() if error.retry}
    assert {errors.QueueFull, errors.EngineUnreachable, errors.JobLost} <= retried
    assert not retried & {errors.NodeFailed, errors.JobTimedOut, errors.FilesMissing, errors.EngineRejected}


def test_options_responses_have_no_content_type(client: FlaskClient) -> None:
    for path in (PATH, "/v1/models"):
        response = client.options(path)
        assert response.headers["Allow"]
        assert "Content-Type" not in response.headers


def test_a_path_cannot_inject_lines_into_the_log(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
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
def test_path_variants_are_served_without_a_redirect(client: FlaskClient, path: str) -> None:
    path_info, _, query = path.partition("?")
    response = client.post("/", query_string=query, json=SMALL, environ_overrides={"PATH_INFO": path_info})
    assert response.status_code == 200


# --- ids, keys -------------------------------------------------------------------------------------


def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(client: FlaskClient) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    request_id = client.get("/health", headers={"x-request-id": "a b;c"}).headers["x-request-id"]
    assert len(request_id) == 32


@pytest.fixture
def client_with_keys(make_app: MakeApp) -> FlaskClient:
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
def test_requests_without_a_valid_key_are_401(client_with_keys: FlaskClient, headers: dict[str, str]) -> None:
    for response in (
        client_with_keys.post(PATH, json=SMALL, headers=headers),
        client_with_keys.get("/v1/models", headers=headers),
    ):
        assert (response.status_code, code_of(response)) == (401, "auth.invalid_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer one"},
        {"Authorization": "bearer  one"},
        {"api-key": "one"},
        {"x-api-key": "one"},
    ],
)
def test_a_key_is_accepted_in_all_headers(client_with_keys: FlaskClient, headers: dict[str, str]) -> None:
    assert client_with_keys.get("/v1/models", headers=headers).status_code == 200


def test_probes_description_and_stored_images_need_no_key(client_with_keys: FlaskClient) -> None:
    url = client_with_keys.post(PATH, json=SMALL, headers={"api-key": "one"}).get_json()["data"][0]["url"]
    for path in ("/health", "/ready", "/openapi.json", url):
        assert client_with_keys.get(path).status_code == 200
    assert client_with_keys.get("/health/../v1/models").status_code == 401
    assert client_with_keys.get("/api/images/cache/").status_code == 401


# --- paths of clients with a wrong base URL ---------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/images/generations", "/v1/images/generations"),
        ("/v1/v1/images/generations", "/v1/images/generations"),
        ("/api/v1/images/generations", "/v1/images/generations"),
        ("/v1/openai/images/edits", "/v1/images/edits"),
        ("/openai/deployments/gpt-image-1/images/generations", "/v1/images/generations"),
        ("/models", "/v1/models"),
        ("/models/images/generations", "/v1/images/generations"),
        ("/V1/Images/Generations", "/v1/images/generations"),
        ("/v1/image/generation", "/v1/images/generations"),
        ("/v1/images/generations ", "/v1/images/generations"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
    ],
)
def test_a_path_under_a_wrong_base_url_is_told_the_right_one(
    client: FlaskClient, path: str, right: str
) -> None:
    error = client.post(path, json=SMALL, base_url="http://localhost:8080").get_json()["error"]
    assert error["code"] == "route.not_found"
    assert error["details"] == {"path": path, "base_url": "http://localhost:8080/v1"}
    assert error["message"].endswith(f"with it the path becomes {right}.")
    assert client.options(right).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/models/sd-1.5", "/v1/v1/models/Sd-1.5"])
def test_a_model_under_a_wrong_base_url_is_told_the_right_one(client: FlaskClient, path: str) -> None:
    right = path[path.index("/v1/models") :]
    assert client.get(path).get_json()["error"]["message"].endswith(f"with it the path becomes {right}.")
    assert client.get(right).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_client_that_wants_to_chat_is_told_what_this_server_does(client: FlaskClient, path: str) -> None:
    error = client.post(path, json={"model": "gpt-5"}).get_json()["error"]
    assert error["code"] == "dispatch.no_route"
    assert "add one to llm.upstreams" in error["message"]
    assert "POST /v1/images/generations" in error["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/sdapi/v1/txt2img", "/v1/sdapi/v1/txt2img"])
def test_the_root_and_other_apis_are_told_the_base_url(make_app: MakeApp, path: str) -> None:
    app = make_app(public_url="https://art.example/x/")
    error = app.test_client().get(path).get_json()["error"]
    assert error["details"]["base_url"] == "https://art.example/x/v1"
    assert "https://art.example/x/v1" in error["message"]


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1/images", "/generations/x"])
def test_a_path_that_resembles_nothing_gets_no_hint(client: FlaskClient, path: str) -> None:
    assert client.get(path).get_json()["error"]["details"] == {"path": path}


# --- Host and Origin -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "127.0.0.1:1", "127.0.0.2", "[::1]:8080", "LOCALHOST", "my.box"],
)
def test_on_loopback_the_loopback_names_and_allowed_hosts_are_accepted(make_app: MakeApp, host: str) -> None:
    client = make_app(allowed_hosts=("my.box",)).test_client()
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "10.0.0.1", "0.0.0.0"]
)
def test_on_loopback_other_hosts_are_refused(make_app: MakeApp, host: str) -> None:
    response = make_app().test_client().get("/v1/models", headers={"Host": host})
    assert (response.status_code, code_of(response)) == (403, "auth.foreign_host")
    public = make_app(host="0.0.0.0", api_keys=("k",)).test_client()
    assert public.get("/v1/models", headers={"Host": host, "api-key": "k"}).status_code == 200


def test_a_refused_host_is_told_the_setting_and_the_value(make_app: MakeApp) -> None:
    headers = {"Host": "Host.Docker.Internal:8080"}
    error = make_app().test_client().post(PATH, json=SMALL, headers=headers).get_json()["error"]
    assert "EASEL_ALLOWED_HOSTS=host.docker.internal" in error["message"]
    assert (error["details"]["setting"], error["details"]["value"]) == (
        "allowed_hosts",
        "host.docker.internal",
    )
    allowing = make_app(allowed_hosts=(error["details"]["value"],)).test_client()
    assert allowing.post(PATH, json=SMALL, headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["app://obsidian.md", "http://localhost:3000", "null", "file://"])
def test_a_refused_origin_is_told_the_setting_and_the_value(make_app: MakeApp, origin: str) -> None:
    headers = {"Origin": origin}
    error = make_app().test_client().post(PATH, json=SMALL, headers=headers).get_json()["error"]
    assert f"EASEL_ALLOWED_ORIGINS={origin})" in error["message"]
    assert (error["details"]["setting"], error["details"]["value"]) == ("allowed_origins", origin)
    response = make_app(allowed_origins=(origin,)).test_client().post(PATH, json=SMALL, headers=headers)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("origin", ["http://x$(reboot)", "http://x;y", "http://a,b", "http://x`y`", "'"])
def test_no_line_to_copy_has_what_a_shell_would_run(client: FlaskClient, origin: str) -> None:
    error = client.post(PATH, json=SMALL, headers={"Origin": origin}).get_json()["error"]
    assert error["details"]["value"] == origin
    assert "EASEL_ALLOWED_ORIGINS=" not in error["message"]


@pytest.mark.parametrize("host", ["", "a b", "x;y", "me@127.0.0.1"])
def test_a_host_that_is_not_valid_is_not_to_be_allowed(make_app: MakeApp, host: str) -> None:
    response = make_app().test_client().get("/v1/models", headers={"Host": host})
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (403, "auth.foreign_host")
    assert "no valid Host header" in error["message"]
    assert "allowed_hosts" not in error["message"]


def test_a_trusted_proxy_that_forwards_nothing_is_told_what_to_send(make_app: MakeApp) -> None:
    client = make_app(trusted_proxies=("127.0.0.1",)).test_client()
    error = client.get("/v1/models", headers={"Host": "art.example"}).get_json()["error"]
    assert "let the proxy send them, or set public_url" in error["message"]


@pytest.mark.parametrize(
    ("public_url", "origin"),
    [
        ("https://art.example:443/x", "https://art.example"),
        ("https://ART.example", "https://art.example:443"),
        ("http://art.example", "http://art.example:80"),
    ],
)
def test_the_default_port_makes_no_other_origin(make_app: MakeApp, public_url: str, origin: str) -> None:
    client = make_app(public_url=public_url).test_client()
    assert client.post(PATH, json=SMALL, headers={"Origin": origin}).status_code == 200
    other = client.post(PATH, json=SMALL, headers={"Origin": "https://art.example:8443"})
    assert other.status_code == 403


def test_refusals_are_logged_once_without_the_line_breaks_of_a_client(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "easel.access")
    client = make_app().test_client()
    preflight = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    for _ in range(3):
        client.options(PATH, headers=preflight)
        client.post(PATH, json=SMALL, headers={"Origin": "https://chat.example"})
        client.post(PATH, json=SMALL, headers={"Origin": "https://bad\x1b[2J\u2028.example"})
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 2
    assert "EASEL_ALLOWED_ORIGINS=https://chat.example" in messages[0]
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost.evil"]
)
def test_posts_from_web_pages_of_other_origins_are_refused(client: FlaskClient, origin: str) -> None:
    response = client.post(PATH, json=SMALL, headers={"Origin": origin})
    assert (response.status_code, code_of(response)) == (403, "auth.foreign_origin")
    assert "Access-Control-Allow-Origin" not in response.headers


def test_posts_from_web_pages_of_the_same_origin_are_accepted(client: FlaskClient) -> None:
    assert client.post(PATH, json=SMALL, headers={"Origin": "http://localhost"}).status_code == 200


@pytest.mark.parametrize("allowed", ["https://chat.example", "*"])
def test_an_allowed_origin_gets_cors_headers(make_app: MakeApp, allowed: str) -> None:
    client = make_app(allowed_origins=(allowed,)).test_client()
    origin = {"Origin": "https://chat.example"}
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    preflight_response = client.options(PATH, headers={**origin, **preflight})
    assert preflight_response.status_code == 204
    assert (
        preflight_response.headers["Access-Control-Allow-Headers"]
        == preflight["Access-Control-Request-Headers"]
    )
    response = client.post(PATH, json=SMALL, headers=origin)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    assert "x-request-id" in response.headers["Access-Control-Expose-Headers"]


def test_a_preflight_from_another_origin_is_not_allowed(client: FlaskClient) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "Access-Control-Allow-Origin" not in client.options(PATH, headers=headers).headers


# --- proxies ---------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-Host": "pics.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/easel"}


def url_via_proxy(app: Flask, **headers: str) -> str:
    response = app.test_client().post(
        PATH, json=SMALL, headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.9"}
    )
    return str(response.get_json()["data"][0]["url"])


VIA_PROXY = {"Host": "pics.example", "Origin": "https://pics.example", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    "settings",
    [
        {"public_url": "https://pics.example"},
        {"trusted_proxies": ("127.0.0.1",)},
        {"trusted_proxies": ("127.0.0.0/8",)},
    ],
)
def test_a_proxy_on_the_same_machine_needs_one_setting(make_app: MakeApp, settings: dict[str, Any]) -> None:
    """As nginx and Caddy send it: the outer Host and Origin, from 127.0.0.1."""
    response = make_app(**settings).test_client().post(PATH, json=SMALL, headers=VIA_PROXY)
    assert response.status_code == 200
    assert response.get_json()["data"][0]["url"].startswith("https://pics.example/api/images/cache/")


def test_behind_two_proxies_the_scheme_of_a_page_may_be_lost(make_app: MakeApp) -> None:
    client = make_app(trusted_proxies=("127.0.0.1",)).test_client()
    headers = {**VIA_PROXY, "X-Forwarded-Proto": "http"}
    assert client.post(PATH, json=SMALL, headers=headers).status_code == 200
    foreign = {**headers, "Origin": "https://evil.example"}
    assert code_of(client.post(PATH, json=SMALL, headers=foreign)) == "auth.foreign_origin"


def test_a_name_that_no_trusted_proxy_forwarded_is_refused(make_app: MakeApp) -> None:
    client = make_app(trusted_proxies=("127.0.0.1",)).test_client()
    # Nothing says that a proxy sent it: it may come from a page whose name resolves to 127.0.0.1.
    assert code_of(client.post(PATH, json=SMALL, headers={"Host": "pics.example"})) == "auth.foreign_host"
    other = {"REMOTE_ADDR": "127.0.0.2"}
    assert (
        code_of(client.post(PATH, json=SMALL, headers=VIA_PROXY, environ_base=other)) == "auth.foreign_host"
    )
    public = make_app(public_url="https://pics.example").test_client()
    assert code_of(public.get("/v1/models", headers={"Host": "evil.example"})) == "auth.foreign_host"
    assert code_of(public.get("/v1/models", headers={"Host": ""})) == "auth.foreign_host"


@pytest.mark.parametrize(
    ("proxy", "remote", "trusted"),
    [
        ("10.0.0.9", "10.0.0.9", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.9", "::ffff:10.0.0.9", True),
        ("fe80::1", "fe80::1%eth0", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.9", "", False),
    ],
)
def test_a_trusted_proxy_is_an_address_or_a_network(
    make_app: MakeApp, proxy: str, remote: str, trusted: bool
) -> None:
    app = make_app(trusted_proxies=(proxy,), host="0.0.0.0", allow_open=True)
    environ = {"REMOTE_ADDR": remote}
    response = app.test_client().post(PATH, json=SMALL, headers=FORWARDED, environ_base=environ)
    assert response.get_json()["data"][0]["url"].startswith("https://pics.example/easel/") is trusted


def test_image_urls_follow_only_trusted_proxies(make_app: MakeApp) -> None:
    settings = {"host": "0.0.0.0", "allow_open": True}
    trusting = make_app(trusted_proxies=("10.0.0.9",), **settings)
    assert url_via_proxy(trusting, **FORWARDED).startswith("https://pics.example/easel/api/images/cache/")
    assert url_via_proxy(make_app(**settings), **FORWARDED).startswith("http://localhost/api/images/cache/")


def test_the_setting_public_url_overrides_the_origin(make_app: MakeApp) -> None:
    app = make_app(public_url="https://art.example/x/")
    url = app.test_client().post(PATH, json=SMALL).get_json()["data"][0]["url"]
    assert url.startswith("https://art.example/x/api/images/cache/")
