"""/api/comfyui over HTTP: what is answered at once, by which code, and that nothing is taken for what it is not."""

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
from tests.server.running import until

SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas/comfyui_status.schema.json").read_text()))


@pytest.fixture
def llama() -> Iterator[FakeLlamaServer]:
    with FakeLlamaServer() as fake:
        yield fake


@pytest.fixture
def container(make_app: MakeApp, llama: FakeLlamaServer) -> Iterator[Container]:
    """An application that shares its GPU with an LLM server, and its reconciler."""
    stack = {"driver": "llama-server", "url": llama.url}
    app = make_app(llm__stacks=(stack,), gpu__min_stay_s=0)
    made: Container = app.extensions["easel"]
    made.arbiter.reconciler.start()
    yield made
    made.arbiter.reconciler.stop()


@pytest.fixture
def shared(container: Container, make_app: MakeApp, llama: FakeLlamaServer) -> FlaskClient:
    app = make_app(llm__stacks=({"driver": "llama-server", "url": llama.url},), gpu__min_stay_s=0)
    return app.test_client()


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


def switched(client: FlaskClient, mode: str, **more: Any) -> None:
    assert client.post("/api/comfyui/switchover", json={"mode": mode, **more}).status_code == 202
    until(lambda: not client.get("/api/comfyui/status").get_json()["switchover"]["active"])


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
def test_what_is_no_boolean_or_no_mode_is_422(
    shared: FlaskClient, path: str, body: Any, expected: str
) -> None:
    assert code(shared.post(f"/api/comfyui/{path}", json=body)) == (422, expected)


def test_a_misspelt_field_does_not_pass_for_none(shared: FlaskClient) -> None:
    answer = shared.post("/api/comfyui/switchover", json={"mode": "generation", "forced": True})
    assert (*code(answer), answer.get_json()["error"]["param"]) == (400, "request.invalid_value", "forced")


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [("mode=generation", "application/x-www-form-urlencoded", 415), ("[]", "application/json", 400)],
)
def test_only_a_json_object_is_read(shared: FlaskClient, data: str, kind: str, expected: int) -> None:
    assert shared.post("/api/comfyui/switchover", data=data, content_type=kind).status_code == expected


def test_the_mode_in_force_is_a_noop_that_still_applies_the_pin(shared: FlaskClient) -> None:
    noop = shared.post("/api/comfyui/switchover", json={"mode": "inference"})
    assert (noop.status_code, noop.get_json()) == (200, {"status": "noop", "mode": "inference"})
    switched(shared, "generation")
    pinned = shared.post("/api/comfyui/switchover", json={"mode": "generation", "pin": True})
    assert (pinned.status_code, pinned.get_json()["status"]) == (200, "noop")
    assert shared.get("/api/comfyui/status").get_json()["arbiter"]["pinned"] is True


def test_a_pin_without_image_mode_and_a_switch_against_a_pin_are_409(shared: FlaskClient) -> None:
    assert code(shared.post("/api/comfyui/pin", json={"pinned": True})) == (409, "gpu.not_generating")
    switched(shared, "generation", pin=True)
    refused = shared.post("/api/comfyui/switchover", json={"mode": "inference"})
    assert code(refused) == (409, "gpu.pinned")
    assert refused.headers["x-should-retry"] == "false"
    switched(shared, "inference", force=True)
    assert shared.get("/api/comfyui/status").get_json()["arbiter"]["pinned"] is False


def test_a_second_switch_while_one_is_under_way_is_409_with_a_time_to_come_back(
    shared: FlaskClient, llama: FakeLlamaServer
) -> None:
    llama.unload_takes_s = 0.5
    assert shared.post("/api/comfyui/switchover", json={"mode": "generation"}).status_code == 202
    refused = shared.post("/api/comfyui/switchover", json={"mode": "inference", "force": True})
    assert code(refused) == (409, "comfyui.switch_in_progress")
    assert int(refused.headers["Retry-After"]) >= 1
    until(lambda: not shared.get("/api/comfyui/status").get_json()["switchover"]["active"])


def test_without_llm_stacks_both_writes_are_503_pictures_are_drawn_and_the_status_tells(
    client: FlaskClient,
) -> None:
    for path, body in (("switchover", {"mode": "generation"}), ("pin", {"pinned": True})):
        answer = client.post(f"/api/comfyui/{path}", json=body)
        assert code(answer) == (503, "comfyui.arbiter_unavailable")
        assert (answer.headers["x-should-retry"], answer.headers.get("Retry-After")) == ("false", None)
    drawn = client.post("/v1/images/generations", json={"prompt": "a cat", "size": "256x256"})
    assert drawn.status_code == 200
    status = client.get("/api/comfyui/status").get_json()
    SCHEMA.validate(status)
    assert (status["arbiter"], status["mode"], status["sketch"]) == (None, "generation", True)


def test_an_llm_server_that_cannot_be_read_stops_the_switch_and_is_named(
    shared: FlaskClient, llama: FakeLlamaServer
) -> None:
    llama.garbage = 500
    switched(shared, "generation")
    status = shared.get("/api/comfyui/status").get_json()
    SCHEMA.validate(status)
    assert (status["mode"], status["switchover"]["error_code"]) == ("inference", "llm.refused")
    assert "llama-server" in status["switchover"]["error"]
    drawn = shared.post("/v1/images/generations", json={"prompt": "a cat", "size": "256x256"})
    assert code(drawn) == (503, "gpu.switch_failed")


def test_the_status_wants_a_key_where_there_are_keys(make_app: MakeApp) -> None:
    client = make_app(api_keys=("k",)).test_client()
    assert code(client.get("/api/comfyui/status")) == (401, "auth.invalid_key")
    assert client.get("/api/comfyui/status", headers={"Authorization": "Bearer k"}).status_code == 200


def test_no_route_shows_or_grants_leases(shared: FlaskClient) -> None:
    assert not [rule.rule for rule in shared.application.url_map.iter_rules() if "lease" in rule.rule]
    assert "lease" not in shared.get("/api/comfyui/status").get_data(as_text=True)
