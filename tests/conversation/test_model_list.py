"""LLMs in GET /v1/models: found by the names that requests find them by."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from schemas import load_schema
from tests.conftest import MakeApp

SCHEMA = Draft202012Validator(load_schema("comfyui_status"))
IDS = ("Qwen/Q3", "qwen/q3", "llama3:latest", "third")


def test_ids_that_differ_only_in_case_are_two_models(make_app: MakeApp) -> None:
    upstream = {"url": "http://127.0.0.1:1", "models": list(IDS)}
    client = make_app(llm__upstreams=(upstream,)).test_client()
    for name in IDS:
        assert client.get(f"/v1/models/{name}").get_json()["id"] == name
    page = client.get("/v1/models?type=llm&limit=1&after=Qwen/Q3").get_json()
    assert [model["id"] for model in page["data"]] == ["qwen/q3"]
    ids, after = [], ""
    while True:
        page = client.get(f"/v1/models?type=llm&limit=1{after}").get_json()
        ids += [model["id"] for model in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert ids == list(IDS)


def test_a_model_is_found_exactly_where_a_chat_finds_it(make_app: MakeApp) -> None:
    upstream = {"url": "http://127.0.0.1:1", "models": list(IDS)}
    client = make_app(llm__upstreams=(upstream,)).test_client()
    assert client.get("/v1/models/llama3").get_json()["id"] == "llama3:latest"
    for name in ("THIRD", "Llama3"):
        assert client.get(f"/v1/models/{name}").status_code == 404
        assert client.post("/v1/chat/completions", json={"model": name}).status_code == 404
    assert client.get("/v1/models/IMG").get_json()["id"] == "img"


def test_the_status_says_which_upstream_cannot_be_asked(make_app: MakeApp) -> None:
    upstreams = (
        {"name": "listed", "url": "http://127.0.0.1:1", "models": list(IDS)},
        {"name": "dead", "url": "http://127.0.0.1:2"},
    )
    client = make_app(llm__upstreams=upstreams).test_client()
    client.get("/v1/models")
    status = client.get("/api/comfyui/status").get_json()
    SCHEMA.validate(status)
    assert [(entry["name"], entry["models"]) for entry in status["upstreams"]] == [("listed", 4), ("dead", 0)]
    assert status["upstreams"][0]["problem"] == ""
    assert "refuses connections" in status["upstreams"][1]["problem"]
