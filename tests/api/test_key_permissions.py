"""Named keys over HTTP: scopes, limits, what they see of others, and the audit log."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from api.key_limits import duration
from api.openapi import description
from api.permissions import PERMISSIONS, permission_of
from app import Container
from arbiter import Sender
from compiler import Catalogue
from tests.conftest import MakeApp
from tests.conversation.upstream import upstream

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256", "response_format": "b64_json"}
SWITCH = ("POST", "/api/comfyui/switchover", {"mode": "generation"})


class Installation:
    """An application and its keys by name."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.container: Container = app.extensions["easel"]
        self.keys: dict[str, str] = {}

    def add(self, name: str, scopes: list[str] | None = None, **limits: Any) -> None:
        _, self.keys[name] = self.container.gate.add_key(name, scopes or ["draw", "view"], limits)

    def call(self, name: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        client = self.app.test_client()
        headers = {"Authorization": f"Bearer {self.keys[name]}", **headers} if name else headers
        return client.open(path, method=method, json=body, headers=headers, buffered=True)

    def draw(self, name: str, **fields: Any) -> Any:
        return self.call(name, "POST", PATH, {**SMALL, **fields})


@pytest.fixture
def easel(make_app: MakeApp) -> Installation:
    return Installation(make_app())


def error_of(response: Any) -> dict[str, Any]:
    error: dict[str, Any] = response.get_json()["error"]
    return error


def schema_of(name: str) -> Draft202012Validator:
    document = description()
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


# --- scopes ----------------------------------------------------------------------------------------


def test_every_route_declares_its_scope(easel: Installation) -> None:
    routes = {
        (method, rule.rule)
        for rule in easel.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == set(PERMISSIONS)


def test_a_route_without_a_declared_scope_needs_operate() -> None:
    assert permission_of("POST", "/api/new").scopes == ("operate",)
    assert permission_of("PUT", "/health").scopes == ("operate",)


@pytest.mark.parametrize(
    ("method", "path", "body", "scopes"),
    [
        ("POST", PATH, SMALL, {"draw"}),
        ("POST", "/v1/chat/completions", {"model": "img", "messages": []}, {"draw"}),
        ("GET", "/v1/models", None, {"draw", "view", "operate"}),
        ("HEAD", "/v1/models", None, {"draw", "view", "operate"}),
        ("GET", "/api/comfyui/status", None, {"view", "operate"}),
        ("GET", "/api/models/pulls", None, {"view", "operate"}),
        (*SWITCH, {"operate"}),
        ("POST", "/api/comfyui/pin", {"pinned": True}, {"operate"}),
        ("POST", "/api/comfyui/render/cancel", {"all": True}, {"operate"}),
        ("POST", "/api/comfyui/render/cancel", {"id": "x"}, {"draw", "operate"}),
        ("POST", "/api/models/pull", {"models": ["img"]}, {"operate"}),
        ("DELETE", "/api/models/pulls/x", None, {"operate"}),
        ("GET", "/api/keys", None, {"operate"}),
        ("GET", "/api/keys/me", None, {"draw", "view", "metrics", "operate"}),
    ],
)
def test_a_key_may_do_what_its_scope_allows_and_nothing_else(
    easel: Installation, method: str, path: str, body: Any, scopes: set[str]
) -> None:
    for scope in ("draw", "view", "metrics", "operate"):
        easel.add(scope, [scope])
        response = easel.call(scope, method, path, body)
        assert response.status_code != 401
        if scope in scopes:
            assert "auth." not in response.text
        else:
            assert response.status_code == 403
            if method == "HEAD":  # no body
                continue
            assert error_of(response)["code"] == "auth.scope_missing"
            assert error_of(response)["type"] == "permission_error"
            assert (
                f"lacks the scope {error_of(response)['details']['scope']}" in error_of(response)["message"]
            )
            assert easel.keys[scope] not in response.text
    assert easel.call("", method, path, body).status_code == 401


def test_only_metrics_and_operate_read_the_metrics_because_they_name_all_keys(easel: Installation) -> None:
    for name, scopes in (
        ("phone", None),
        ("secret-project", None),
        ("prometheus", ["metrics"]),
        ("owner", ["operate"]),
    ):
        easel.add(name, scopes)
    assert easel.draw("secret-project").status_code == 200
    refused = easel.call("phone", "GET", "/metrics")
    assert refused.status_code == easel.call("phone", "HEAD", "/metrics").status_code == 403
    assert error_of(refused)["details"]["scope"] == "metrics"
    assert "secret-project" not in refused.text + easel.call("phone", "GET", "/api/comfyui/status").text
    for name in ("prometheus", "owner"):
        assert 'key="secret-project"' in easel.call(name, "GET", "/metrics").text
    assert easel.call("", "GET", "/metrics").status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/api/images/cache/x.png"])
def test_the_open_routes_need_no_key_and_no_scope(easel: Installation, path: str) -> None:
    easel.add("phone", ["draw"])
    for name in ("", "phone"):
        assert easel.call(name, "GET", path).status_code not in (401, 403)
    assert easel.app.test_client().get(path, headers={"Authorization": "Bearer x"}).status_code not in (
        401,
        403,
    )


def test_unknown_paths_are_told_only_to_callers_with_a_key(easel: Installation) -> None:
    easel.add("phone", ["draw"])
    assert easel.call("", "GET", "/v1/nope").status_code == 401
    assert easel.call("phone", "GET", "/v1/nope").status_code == 404
    assert easel.call("phone", "DELETE", PATH).status_code == 405
    assert easel.call("", "OPTIONS", PATH).status_code == 401


def test_keys_of_the_settings_keep_all_scopes_beside_named_keys(make_app: MakeApp) -> None:
    easel = Installation(make_app(api_keys=("one", "two")))
    easel.add("phone", ["draw"])
    easel.keys["owner"] = "two"
    assert easel.call("owner", "GET", "/api/keys").status_code == 200
    assert easel.call("owner", "GET", "/api/keys/me").get_json()["name"] == "api_keys:2"
    assert easel.draw("phone").status_code == 200


# --- how a key is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer KEY"}, 200),
        ({"Authorization": "bearer   KEY  "}, 200),
        ({"api-key": "KEY"}, 200),
        ({"x-api-key": "KEY"}, 200),
        ({"Authorization": "Bearer", "x-api-key": "KEY"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "KEY"}, 401),
        ({"Authorization": "Basic BASIC"}, 401),
        ({"Authorization": "Digest KEY"}, 401),
        ({"Authorization": "Bearer KEY,KEY"}, 401),
        ({"Authorization": "Bearer KEYx"}, 401),
        ({"Authorization": "Bearer " + "x" * 60_000}, 401),
        ({"Authorization": "Bearer \xff\xfe"}, 401),
        ({"x-api-key": ""}, 401),
        ({}, 401),
    ],
)
def test_only_a_whole_key_in_a_header_counts(
    easel: Installation, headers: dict[str, str], status: int
) -> None:
    easel.add("phone")
    key = easel.keys["phone"]
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    sent = {name: value.replace("KEY", key).replace("BASIC", basic) for name, value in headers.items()}
    response = easel.call("", "GET", "/v1/models", **sent)
    assert response.status_code == status
    if status == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert key not in response.text


def test_a_key_in_the_query_does_not_count_and_is_not_logged(
    easel: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "easel")
    easel.add("phone")
    key = easel.keys["phone"]
    for name in ("api_key", "key", "api-key", "access_token", "authorization"):
        assert easel.call("", "GET", f"/v1/models?{name}={key}").status_code == 401
    easel.draw("phone")
    easel.call("phone", *SWITCH)
    assert caplog.records
    assert all(key not in record.getMessage() for record in caplog.records)


def test_a_revoked_key_is_401_and_says_so(easel: Installation) -> None:
    easel.add("phone")
    assert easel.draw("phone").status_code == 200
    easel.container.gate.revoke_key("phone")
    response = easel.draw("phone")
    assert (response.status_code, error_of(response)["code"]) == (401, "auth.key_ended")


def test_a_damaged_key_file_is_named_by_ready_and_status_and_opens_nothing(easel: Installation) -> None:
    easel.add("phone")
    easel.call("phone", "GET", "/v1/models")
    (easel.container.state_dir / "keys.json").write_text("{")
    assert easel.draw("phone").status_code == 200
    assert easel.draw("").status_code == 401
    ready = easel.call("", "GET", "/ready").get_json()
    schema_of("Ready").validate(ready)
    assert "keys.json" in ready["keys"]["error"]
    assert "keys.json" in easel.call("phone", "GET", "/api/comfyui/status").get_json()["keys"]["error"]


# --- limits ----------------------------------------------------------------------------------------


def test_what_a_key_may_use_is_in_the_headers_that_openai_sends(easel: Installation) -> None:
    easel.add(
        "phone", requests_per_minute=3, requests_per_day=100, pictures_per_minute=10, pictures_per_day=4
    )
    response = easel.draw("phone", n=3)
    assert response.status_code == 200
    limits = {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}
    assert {name: value for name, value in limits.items() if "reset" not in name} == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-limit-images": "4",
        "x-ratelimit-remaining-images": "1",
    }
    assert re.fullmatch(r"1m0s|\d+s", limits["x-ratelimit-reset-requests"])
    assert re.fullmatch(r"24h0m0s|23h59m\d+s", limits["x-ratelimit-reset-images"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.2, "1s"),
        (59, "59s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86_399, "23h59m59s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_request_over_the_limit_is_429_and_says_how_long(easel: Installation) -> None:
    easel.add("phone", requests_per_minute=1)
    assert easel.draw("phone").status_code == 200
    response = easel.draw("phone")
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (
        429,
        "auth.limit_reached",
        "rate_limit_error",
    )
    assert (error["details"]["name"], error["details"]["limit"], error["details"]["used"]) == (
        "requests_per_minute",
        1,
        1,
    )
    assert 0 < error["details"]["reset"] <= 60
    assert int(response.headers["Retry-After"]) == error["details"]["reset"]
    assert response.headers["x-should-retry"] == "true"
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


def test_clients_do_not_retry_at_once_what_must_wait_for_hours(easel: Installation) -> None:
    easel.add("phone", pictures_per_day=1)
    assert easel.draw("phone").status_code == 200
    response = easel.draw("phone")
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 80_000
    assert response.headers["x-should-retry"] == "false"


def test_each_picture_counts_and_only_those_that_are_drawn(easel: Installation) -> None:
    easel.add("phone", pictures_per_minute=3)
    assert easel.draw("phone", n=4).status_code == 403
    assert easel.draw("phone", size="1x1").status_code == 400
    assert easel.draw("phone", n=2).status_code == 200
    refused = easel.draw("phone", n=2)
    assert (refused.status_code, error_of(refused)["details"]["used"]) == (429, 2)
    assert easel.draw("phone", stream=True).status_code == 200
    usage = easel.call("phone", "GET", "/api/keys/me").get_json()["usage"]
    assert usage["total"]["pictures"] == 3
    assert usage["total"]["refused"] == 2


def test_pictures_of_a_drawing_that_failed_are_given_back(
    failing: FlaskClient,
) -> None:
    container = failing.application.extensions["easel"]
    _, key = container.gate.add_key("phone", ["draw"], {"pictures_per_minute": 2})
    body, headers = {**SMALL, "model": "sd15"}, {"Authorization": f"Bearer {key}"}
    for _ in range(3):
        response = failing.post(PATH, json=body, headers=headers, buffered=True)
        assert response.status_code == 500
    usage = failing.get("/api/keys/me", headers=headers).get_json()["usage"]
    assert (usage["windows"][0]["used"], usage["total"]["requests"], usage["total"]["pictures"]) == (0, 3, 0)


def test_routes_that_draw_nothing_do_not_count(easel: Installation) -> None:
    easel.add("phone", ["draw", "view", "operate"], requests_per_minute=1)
    for path in ("/v1/models", "/api/comfyui/status", "/api/keys/me", "/api/keys", "/health"):
        assert easel.call("phone", "GET", path).status_code == 200
    easel.call("phone", "POST", "/api/comfyui/render/cancel", {"id": "x"})
    assert easel.draw("phone").status_code == 200


@pytest.mark.parametrize(
    ("limits", "fields", "code", "param"),
    [
        ({"max_size": "256x256"}, {"size": "512x512"}, "auth.size_not_allowed", "size"),
        ({"max_size": "512x256"}, {"size": "256x512"}, "", ""),
        ({"max_size": "512x256"}, {"size": "512x320"}, "auth.size_not_allowed", "size"),
        ({"max_steps": 5}, {"steps": 6}, "auth.steps_not_allowed", "steps"),
        ({"max_steps": 5}, {"steps": 5}, "", ""),
        ({"max_steps": 1}, {"model": "sd15"}, "auth.steps_not_allowed", "steps"),
        ({"models": ["sd15"]}, {"model": "sdxl"}, "auth.model_not_allowed", "model"),
        ({"models": ["sd15"]}, {"model": "SD15"}, "", ""),
        ({"models": ["unknown"]}, {}, "auth.model_not_allowed", "model"),
        ({"models": ["img"]}, {"model": "dall-e-3"}, "", ""),
    ],
)
def test_sizes_steps_and_models_are_limited_as_they_are_drawn(
    easel: Installation, limits: dict[str, Any], fields: dict[str, Any], code: str, param: str
) -> None:
    easel.add("phone", **limits)
    response = easel.draw("phone", **fields)
    if not code:
        assert response.status_code == 200
        return
    assert (response.status_code, error_of(response)["code"], error_of(response)["param"]) == (
        403,
        code,
        param,
    )
    assert "limit" in error_of(response)["details"]


def test_an_upscaled_picture_is_measured_when_it_is_finished(easel: Installation) -> None:
    catalogue: Catalogue = easel.container.catalogue()
    if not any("upscale" in name for name in catalogue.stages):
        pytest.skip("the catalogue has no upscaling")
    easel.add("phone", max_size="512x512")
    assert easel.draw("phone", upscale=4).status_code == 403


def test_a_model_that_a_key_may_not_use_is_not_listed_for_it(make_app: MakeApp) -> None:
    easel = Installation(make_app(images__list="all"))
    easel.add("all")
    easel.add("phone", models=["sd15", "sdxl"])
    listed = [model["id"] for model in easel.call("phone", "GET", "/v1/models").get_json()["data"]]
    everything = [model["id"] for model in easel.call("all", "GET", "/v1/models").get_json()["data"]]
    assert set(listed) - {"img"} == {"sd-1.5-pruned-emaonly", "sdxl-base-1.0"}
    assert len(everything) > 4
    page = easel.call("phone", "GET", f"/v1/models?limit=1&after={listed[0]}").get_json()
    assert [model["id"] for model in page["data"]] == listed[1:2]
    other = next(name for name in everything if name not in (*listed, "img"))
    assert easel.call("phone", "GET", f"/v1/models/{other}").status_code == 404
    assert easel.call("phone", "GET", "/v1/models/sd15").status_code == 200
    for response in (
        easel.call("phone", "GET", "/v1/models/nothing"),
        easel.draw("phone", model="nothing"),
        easel.call("phone", "POST", "/v1/chat/completions", {"messages": []}),
    ):
        assert response.status_code in (400, 403, 404)
        assert other not in response.text
        assert other not in easel.draw("phone", model="nothing").text
    assert other in easel.draw("all", model="nothing").text


def test_a_chat_that_draws_counts_as_one_request_and_its_pictures(easel: Installation) -> None:
    easel.add("phone", requests_per_minute=1, pictures_per_minute=1, models=["sd15"])
    chat = {"messages": [{"role": "user", "content": "a cat"}], "size": "256x256"}
    refused = easel.call("phone", "POST", "/v1/chat/completions", {**chat, "model": "sdxl"})
    assert (refused.status_code, error_of(refused)["code"]) == (403, "auth.model_not_allowed")
    easel.add("tablet", requests_per_minute=1, pictures_per_minute=1, models=["sd15"])
    assert easel.call("tablet", "POST", "/v1/chat/completions", {**chat, "model": "sd15"}).status_code == 200
    windows = easel.call("tablet", "GET", "/api/keys/me").get_json()["usage"]["windows"]
    assert [window["used"] for window in windows] == [1, 1]


def test_llms_are_limited_by_id_and_by_alias(make_app: MakeApp) -> None:
    with upstream() as llm:
        easel = Installation(
            make_app(
                llm__upstreams=({"name": "chat", "url": llm.url},),
                llm__aliases={"primary": "tiny", "big": "other"},
            )
        )
        easel.add("phone", models=["sd15", "primary"], requests_per_day=100)

        def chat(**fields: Any) -> Any:
            return easel.call("phone", "POST", "/v1/chat/completions", {"messages": [], **fields})

        for fields in ({}, {"model": "tiny"}, {"model": "primary"}):
            assert chat(**fields).status_code == 200
        for model in ("other", "big", "unknown"):
            response = chat(model=model)
            assert (response.status_code, error_of(response)["code"]) == (403, "auth.model_not_allowed")
        assert len(llm.posts) == 3
        llms = easel.call("phone", "GET", "/v1/models?type=llm").get_json()["data"]
        assert {model["id"] for model in llms} == {"tiny", "primary"}
        usage = easel.call("phone", "GET", "/api/keys/me").get_json()["usage"]["total"]
        assert (usage["requests"], usage["refused"], usage["pictures"]) == (6, 3, 0)


# --- what others see -------------------------------------------------------------------------------


@pytest.fixture
def two_requests(easel: Installation) -> Iterator[tuple[Installation, str, str]]:
    """A request of `mine` and one of `yours`, both with the same id of their clients."""
    arbiter = easel.container.arbiter
    for name in ("mine", "yours"):
        easel.add(name)
    easel.add("owner", ["operate"])
    with (
        arbiter.listed("r-mine", model="sd15", jobs=["j-mine"], sender=Sender("same", "192.0.2.1 a", "mine")),
        arbiter.listed(
            "r-yours", model="sdxl", jobs=["j-yours"], sender=Sender("same", "192.0.2.2 b", "yours")
        ),
        arbiter.lease("generation", job="j-mine", timeout_s=5),
        arbiter.lease("generation", job="j-yours", timeout_s=5),
    ):
        yield easel, "j-mine", "j-yours"


def test_a_key_cancels_its_own_requests_only(two_requests: tuple[Installation, str, str]) -> None:
    easel, mine, yours = two_requests
    progress = easel.container.arbiter.job_progress
    other = easel.call("mine", "POST", "/api/comfyui/render/cancel", {"id": yours})
    assert (other.status_code, error_of(other)["details"]["scope"]) == (403, "operate")
    everything = easel.call("mine", "POST", "/api/comfyui/render/cancel", {"all": True})
    assert everything.status_code == 403
    own = easel.call("mine", "POST", "/api/comfyui/render/cancel", {"id": "same"})
    assert (own.status_code, own.get_json()["jobs"]) == (202, [mine])
    assert (progress.is_cancelled(mine), progress.is_cancelled(yours)) == (True, False)
    unknown = easel.call("mine", "POST", "/api/comfyui/render/cancel", {"id": "nothing"})
    assert error_of(unknown)["code"] == "comfyui.job_not_found"
    assert easel.call("owner", "POST", "/api/comfyui/render/cancel", {"id": yours}).status_code == 202
    assert progress.is_cancelled(yours)


def test_the_status_hides_who_the_others_are(two_requests: tuple[Installation, str, str]) -> None:
    easel, mine, yours = two_requests

    def jobs(name: str) -> dict[str, Any]:
        document = easel.call(name, "GET", "/api/comfyui/status").get_json()
        schema_of("ComfyuiStatus").validate(document)
        return {job["id"]: job for job in document["jobs"]}

    seen = jobs("mine")
    assert (seen[mine]["client"], seen[mine]["key"], seen[mine]["request_id"]) == (
        "192.0.2.1 a",
        "mine",
        "same",
    )
    assert (seen[yours]["client"], seen[yours]["key"], seen[yours]["request_id"]) == (None, None, None)
    assert seen[yours]["model"] == "sdxl"
    assert jobs("owner")[yours]["client"] == "192.0.2.2 b"


def test_a_key_sees_its_own_use_and_only_operators_see_that_of_all(easel: Installation) -> None:
    easel.add("phone", pictures_per_minute=5)
    easel.add("owner", ["operate"])
    easel.draw("phone")
    own = easel.call("phone", "GET", "/api/keys/me")
    schema_of("Key").validate(own.get_json())
    assert own.get_json()["name"] == "phone"
    everything = easel.call("owner", "GET", "/api/keys")
    schema_of("Keys").validate(everything.get_json())
    assert [key["name"] for key in everything.get_json()["keys"]] == ["phone", "owner"]
    for response in (own, everything):
        assert "sha256" not in response.text
        assert not any(key in response.text for key in easel.keys.values())


def test_without_keys_the_caller_is_anonymous(easel: Installation) -> None:
    me = easel.call("", "GET", "/api/keys/me").get_json()
    schema_of("Key").validate(me)
    assert (me["name"], me["scopes"]) == ("anonymous", ["draw", "metrics", "operate", "view"])


# --- the audit log ---------------------------------------------------------------------------------


def test_what_operators_do_is_in_the_audit_log(easel: Installation) -> None:
    easel.add("owner", ["operate"])
    easel.add("phone")
    easel.call("phone", *SWITCH)  # has no right to, and may not flood the log
    easel.call("owner", *SWITCH)
    easel.call("owner", "POST", "/api/comfyui/pin", {"pinned": True})
    easel.call("owner", "POST", "/api/comfyui/render/cancel", {"all": True})
    easel.call("owner", "POST", "/api/comfyui/render/cancel", {"id": "nothing"})
    easel.call("owner", "POST", "/api/models/pull", {"models": ["nothing"]})
    easel.call("owner", "DELETE", "/api/models/pulls/nothing")
    entries = list(easel.container.audit.entries())
    assert [(entry.who, entry.action, entry.result) for entry in entries] == [
        ("owner", "gpu.switch", "comfyui.arbiter_unavailable"),
        ("owner", "gpu.pin", "comfyui.arbiter_unavailable"),
        ("owner", "render.cancel", "done"),
        ("owner", "render.cancel", "comfyui.job_not_found"),
        ("owner", "models.pull", "image.model_not_curated"),
        ("owner", "models.cancel_pull", "model.pull_not_found"),
    ]
    assert {entry.address for entry in entries} == {"127.0.0.1"}
    assert entries[0].target == {"mode": "generation", "force": False, "pin": None}
    text = (easel.container.state_dir / "audit.jsonl").read_text()
    assert not any(key in text for key in easel.keys.values())
    assert json.loads(text.splitlines()[0])["who"] == "owner"


def test_accepted_licences_and_keys_are_in_the_audit_log(easel: Installation) -> None:
    runner = easel.app.test_cli_runner()
    assert runner.invoke(args=["accept-licence", "flux-dev", "--yes"]).exit_code == 0
    added = runner.invoke(args=["keys", "add", "phone", "--models", "img"])
    assert added.exit_code == 0
    assert runner.invoke(args=["keys", "revoke", "phone"]).exit_code == 0
    entries = list(easel.container.audit.entries())
    assert [(entry.who, entry.action, entry.result) for entry in entries] == [
        ("command", "licences.accept", "done"),
        ("command", "keys.add", "done"),
        ("command", "keys.revoke", "done"),
    ]
    assert entries[0].target["for"]
    assert entries[1].target["limits"] == {"models": ["img"]}
    assert all(entry.address.startswith("user ") for entry in entries)
    assert added.stdout.strip() not in runner.invoke(args=["audit"]).output
