"""The routes of /api/comfyui: responses, error codes and validation of the fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from app import Container
from tests.conftest import ROOT, MakeApp
from tests.llm.fake_servers import FakeLlamaServer
from tests.waiting import wait_until

SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas/comfyui_status.schema.json").read_text()))


@pytest.fixture
def llama() -> Iterator[FakeLlamaServer]:
    with FakeLlamaServer() as fake:
        yield fake


@pytest.fixture
def container(make_app: MakeApp, llama: FakeLlamaServer) -> Iterator[Container]:
    """The container of an application that shares its GPU with an LLM server; its reconciler runs."""
    stack = {"driver": "llama-server", "url": llama.url}
    app = make_app(llm__stacks=(stack,), gpu__min_stay_s=0)
    container: Container = app.extensions["easel"]
    container.arbiter.reconciler.start()
    yield container
    container.arbiter.reconciler.stop()


@pytest.fixture
def shared(container: Container, make_app: MakeApp, llama: FakeLlamaServer) -> FlaskClient:
    app = make_app(llm__stacks=({"driver": "llama-server", "url": llama.url},), gpu__min_stay_s=0)
    return app.test_client()


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.get_json()["error"]["code"]


def switched(client: FlaskClient, mode: str, **more: Any) -> None:
    assert client.post("/api/comfyui/switchover", json={"mode": mode, **more}).status_code == 202
    wait_until(lambda: not client.get("/api/comfyui/status").get_json()["switchover"]["active"])


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("switchover", {}, "comfyui.invalid_mode"),
        ("switchover", {"mode": "img"}, "comfyui.invalid_mode"),
        ("switchover", {"mode": ["generation"]}, "comfyui.invalid_mode"),
        ("switchover", {"mode": "inference", "force": "no"}, "comfyui.invalid_force"),
        ("switchover", {"mode": "inference", "force": 1}, "comfyui.invalid_force"),
        ("switchover", {"mode": "inference", "force": None}, "comfyui.invalid_force"),
        ("switchover", {"mode": "generation", "pin": "yes"}, "comfyui.invalid_pin"),
        ("switchover", {"mode": "inference", "pin": True}, "comfyui.invalid_pin"),
        ("pin", {}, "comfyui.invalid_pin"),
        ("pin", {"pinned": "true"}, "comfyui.invalid_pin"),
        ("pin", {"pinned": 0}, "comfyui.invalid_pin"),
        ("render/cancel", {}, "comfyui.invalid_cancel"),
        ("render/cancel", {"all": "yes"}, "comfyui.invalid_cancel"),
        ("render/cancel", {"all": True, "id": "x"}, "comfyui.invalid_cancel"),
        ("render/cancel", {"id": 7}, "comfyui.invalid_cancel"),
    ],
)
def test_invalid_modes_booleans_and_ids_are_422(
    shared: FlaskClient, path: str, body: Any, expected: str
) -> None:
    assert code(shared.post(f"/api/comfyui/{path}", json=body)) == (422, expected)


def test_an_unknown_field_is_400(shared: FlaskClient) -> None:
    response = shared.post("/api/comfyui/switchover", json={"mode": "generation", "forced": True})
    assert (*code(response), response.get_json()["error"]["param"]) == (
        400,
        "request.invalid_value",
        "forced",
    )


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [("mode=generation", "application/x-www-form-urlencoded", 415), ("[]", "application/json", 400)],
)
def test_only_json_objects_are_accepted(shared: FlaskClient, data: str, kind: str, expected: int) -> None:
    assert shared.post("/api/comfyui/switchover", data=data, content_type=kind).status_code == expected


def test_a_switchover_to_the_current_mode_is_a_noop_that_still_sets_the_pin(shared: FlaskClient) -> None:
    noop = shared.post("/api/comfyui/switchover", json={"mode": "inference"})
    assert (noop.status_code, noop.get_json()) == (200, {"status": "noop", "mode": "inference"})
    switched(shared, "generation")
    pinned = shared.post("/api/comfyui/switchover", json={"mode": "generation", "pin": True})
    assert (pinned.status_code, pinned.get_json()["status"]) == (200, "noop")
    assert shared.get("/api/comfyui/status").get_json()["arbiter"]["pinned"] is True


def test_a_pin_in_inference_mode_and_a_switchover_against_a_pin_are_409(shared: FlaskClient) -> None:
    assert code(shared.post("/api/comfyui/pin", json={"pinned": True})) == (409, "gpu.not_generating")
    switched(shared, "generation", pin=True)
    refused = shared.post("/api/comfyui/switchover", json={"mode": "inference"})
    assert code(refused) == (409, "gpu.pinned")
    assert refused.headers["x-should-retry"] == "false"
    switched(shared, "inference", force=True)
    assert shared.get("/api/comfyui/status").get_json()["arbiter"]["pinned"] is False


def test_a_second_switchover_at_the_same_time_is_409_with_retry_after(
    shared: FlaskClient, llama: FakeLlamaServer
) -> None:
    llama.unload_delay_s = 0.5
    assert shared.post("/api/comfyui/switchover", json={"mode": "generation"}).status_code == 202
    refused = shared.post("/api/comfyui/switchover", json={"mode": "inference", "force": True})
    assert code(refused) == (409, "comfyui.switch_in_progress")
    assert int(refused.headers["Retry-After"]) >= 1
    wait_until(lambda: not shared.get("/api/comfyui/status").get_json()["switchover"]["active"])


def test_without_llm_stacks_switchover_and_pin_are_503_and_pictures_are_drawn(
    client: FlaskClient,
) -> None:
    for path, body in (("switchover", {"mode": "generation"}), ("pin", {"pinned": True})):
        response = client.post(f"/api/comfyui/{path}", json=body)
        assert code(response) == (503, "comfyui.arbiter_unavailable")
        assert (response.headers["x-should-retry"], response.headers.get("Retry-After")) == ("false", None)
    drawn = client.post("/v1/images/generations", json={"prompt": "a cat", "size": "256x256"})
    assert drawn.status_code == 200
    status = client.get("/api/comfyui/status").get_json()
    SCHEMA.validate(status)
    assert (status["arbiter"], status["mode"], status["sketch"]) == (None, "generation", True)


def test_an_unreadable_llm_server_fails_the_switchover_and_is_named(
    shared: FlaskClient, llama: FakeLlamaServer
) -> None:
    llama.garbage_status = 500
    switched(shared, "generation")
    status = shared.get("/api/comfyui/status").get_json()
    SCHEMA.validate(status)
    assert (status["mode"], status["switchover"]["error_code"]) == ("inference", "llm.refused")
    assert "llama-server" in status["switchover"]["error"]
    drawn = shared.post("/v1/images/generations", json={"prompt": "a cat", "size": "256x256"})
    assert code(drawn) == (503, "gpu.switch_failed")


def test_the_status_requires_a_key_if_keys_are_configured(make_app: MakeApp) -> None:
    client = make_app(api_keys=("k",)).test_client()
    assert code(client.get("/api/comfyui/status")) == (401, "auth.invalid_key")
    assert client.get("/api/comfyui/status", headers={"Authorization": "Bearer k"}).status_code == 200


def test_no_route_exposes_leases(shared: FlaskClient) -> None:
    assert not [rule.rule for rule in shared.application.url_map.iter_rules() if "lease" in rule.rule]
    assert "lease" not in shared.get("/api/comfyui/status").get_data(as_text=True)
