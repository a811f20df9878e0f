"""Stored images, models, probes and the API description."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from errors import CatalogueInvalid
from schemas import read_yaml
from sketch import SketchProcess
from tests.compiler.catalogues import OWN_MODEL
from tests.conftest import NODES, ROOT, SMALL_CATALOGUE, MakeApp
from tests.waiting import wait_until

PATH = "/v1/images/generations"


IDS = list(read_yaml((ROOT / "catalogue.yaml").read_text("utf-8"), repeated_sections=True)["models"])


@pytest.fixture
def url(client: FlaskClient) -> str:
    response = client.post(PATH, json={"prompt": "a cat", "size": "256x256"})
    return str(response.get_json()["data"][0]["url"])


# --- stored images ---------------------------------------------------------------------------------


def test_a_stored_image_has_a_content_type_an_etag_and_is_immutable(client: FlaskClient, url: str) -> None:
    response = client.get(url)
    assert response.data.startswith(b"\x89PNG")
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(url, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_head_returns_the_same_headers_without_the_bytes(client: FlaskClient, url: str) -> None:
    whole, head = client.get(url), client.head(url)
    assert (head.status_code, head.data) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert head.headers[name] == whole.headers[name]


def test_a_range_of_an_image_can_be_requested(client: FlaskClient, url: str) -> None:
    response = client.get(url, headers={"Range": "bytes=0-7"})
    assert (response.status_code, response.data) == (206, b"\x89PNG\r\n\x1a\n")


def test_the_name_of_a_stored_image_is_not_in_the_log(
    client: FlaskClient, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    name = url.rpartition("/")[2]
    assert client.get(url).status_code == 200
    assert client.post(url).status_code == 405
    assert client.get(f"/api/images/cache/{name}x").status_code == 404
    assert "GET /api/images/cache/… 200" in caplog.text
    assert name not in caplog.text


@pytest.mark.parametrize(
    "name",
    ["x.png", "..%2f..%2fetc%2fpasswd", "%2e%2e", "..\\x.png", "a" * 300 + ".png", "00000000-0000-4000-8000-000000000000.png",
     "00000000-0000-4000-8000-000000000000.PNG", "00000000-0000-4000-8000-000000000000.png%00.jpg"],
)  # fmt: skip
def test_names_cannot_escape_the_image_folder(client: FlaskClient, name: str) -> None:
    response = client.get(f"/api/images/cache/{name}")
    assert response.status_code == 404
    assert response.get_json()["error"]["code"] in ("image.not_found", "route.not_found")


def test_a_range_outside_the_image_is_416_and_multiple_ranges_return_the_whole_image(
    client: FlaskClient, url: str
) -> None:
    length = len(client.get(url).data)
    response = client.get(url, headers={"Range": "bytes=99999999-"})
    assert (response.status_code, response.get_json()["error"]["code"]) == (
        416,
        "request.range_not_satisfiable",
    )
    assert response.headers["Content-Range"] == f"bytes */{length}"
    assert len(client.get(url, headers={"Range": "bytes=0-1,3-4"}).data) == length


def test_a_b64_json_picture_is_not_stored(client: FlaskClient, tmp_path: Any) -> None:
    client.post(PATH, json={"prompt": "a", "size": "256x256", "response_format": "b64_json"})
    assert not list(tmp_path.glob("state/images/*.png"))


# --- models ----------------------------------------------------------------------------------------


def test_the_list_of_models_matches_its_schema_and_the_catalogue(client: FlaskClient) -> None:
    body = client.get("/v1/models").get_json()
    validator = Draft202012Validator(json.loads((ROOT / "schemas/models.schema.json").read_text()))
    assert body["object"] == "list"
    for entry in body["data"]:
        validator.validate(entry)
    entries = {entry["id"]: entry for entry in body["data"]}
    assert list(entries) == [*IDS, "img"]
    assert IDS[0] == "sdxl-turbo"
    assert entries["img"]["slot_of"] == "sdxl-turbo"
    flux = entries["flux-schnell"]
    assert (flux["licence"]["id"], flux["min_vram_gb"]) == ("Apache-2.0", 24)


def test_models_that_the_engine_cannot_draw_are_listed_only_on_request(make_app: MakeApp) -> None:
    files = {"checkpoints": ["sd_xl_turbo_1.0_fp16.safetensors", "v1-5-pruned-emaonly.safetensors"]}
    with SketchProcess(nodes=NODES, files=files) as engine:
        client = make_app(engine__url=engine.url, images__default_model="flux-schnell").test_client()
        drawable = ["sdxl-turbo", "sd-1.5-pruned-emaonly"]

        def ids() -> list[str]:
            return [entry["id"] for entry in client.get("/v1/models").get_json()["data"]]

        wait_until(lambda: len(ids()) < len(IDS))
        assert ids() == [drawable[0], drawable[1], "flux-schnell", "img"]
        assert client.get("/v1/models/flux-dev").get_json()["engine"]["ready"] is False
        everything = make_app(engine__url=engine.url, images__list="all").test_client()
        wait_until(lambda: everything.get("/v1/models/flux-dev").get_json()["engine"] is not None)
        assert len(everything.get("/v1/models").get_json()["data"]) == len(IDS) + 1


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("type=image", len(IDS) + 1),
        ("type=text", 0),
        ("categories=image", len(IDS) + 1),
        ("categories=llm", 0),
    ],
)
def test_models_can_be_filtered_by_type(client: FlaskClient, query: str, count: int) -> None:
    assert len(client.get(f"/v1/models?{query}").get_json()["data"]) == count


def test_the_models_can_be_listed_in_pages(client: FlaskClient) -> None:
    full = client.get("/v1/models").get_json()
    ids = [entry["id"] for entry in full["data"]]
    assert (full["first_id"], full["last_id"], full["has_more"]) == (ids[0], "img", False)
    pages, query = [], "limit=7"
    while not pages or pages[-1]["has_more"]:
        pages.append(client.get(f"/v1/models?{query}").get_json())
        query = f"limit=7&after={pages[-1]['last_id'].upper()}"
    assert [entry for page in pages for entry in page["data"]] == full["data"]
    assert {len(page["data"]) for page in pages[:-1]} == {7}
    rest = client.get(f"/v1/models?after={ids[2]}").get_json()
    assert [entry["id"] for entry in rest["data"]] == ids[3:]
    empty = client.get("/v1/models?after=img").get_json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *((f"limit={text}", "limit") for text in ("0", "-1", "1.5", "many", "%C2%B2", "9" * 5000)),
        ("after=gone", "after"),
        ("after=" + "x" * 5000, "after"),
    ],
)
def test_a_page_that_does_not_exist_is_refused(client: FlaskClient, query: str, param: str) -> None:
    response = client.get(f"/v1/models?{query}")
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "request.invalid_value", param)
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("name", "alias", "listed", "drawn"),
    [
        ("IMG", "other", ["IMG"], "IMG"),
        ("mine", "img", ["mine", "img"], "mine"),
        ("mine", "other", ["mine", "img"], "sdxl-turbo"),
    ],
)
def test_the_image_slot_is_what_a_request_for_it_draws(
    make_app: MakeApp, tmp_path: Any, name: str, alias: str, listed: list[str], drawn: str
) -> None:
    path = tmp_path / "catalogue.yaml"
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    path.write_text(
        text.replace("  flux-schnell-fp8:\n", f"  {name}:\n").replace("flux-schnell-checkpoint", alias)
    )
    app = make_app(catalogue=str(path))
    client = app.test_client()
    ids = [entry["id"] for entry in client.get("/v1/models").get_json()["data"]]
    assert [model_id for model_id in ids if model_id in (name, "img")] == listed
    rest = client.get(f"/v1/models?after={name}").get_json()["data"]
    assert [entry["id"] for entry in rest] == ids[ids.index(name) + 1 :]
    entry = client.get("/v1/models/img").get_json()
    assert entry.get("slot_of", entry["id"]) == drawn
    body = {"prompt": "a", "model": "img", "size": "256x256"}
    answer = client.post("/v1/images/generations", json=body).get_json()
    assert answer["_hal0"]["model"] == drawn


def test_a_page_follows_an_edit_of_the_catalogue(make_app: MakeApp, tmp_path: Any) -> None:
    path = tmp_path / "catalogue.yaml"
    text = (SMALL_CATALOGUE / "catalogue.yaml").read_text()
    path.write_text(text)
    client = make_app(catalogue=str(path)).test_client()
    assert "flux-schnell-fp8" in client.get("/v1/models").text
    path.write_text(text.replace("  flux-schnell-fp8:\n", "  mine:\n"))
    os.utime(path, (1e9, 1e9))
    # Without a watching thread, a check of the models that runs may be the one that reads the edit.
    wait_until(lambda: '"mine"' in client.get("/v1/models").text)
    assert client.get("/v1/models/mine").status_code == 200
    assert client.get("/v1/models?after=flux-schnell-fp8").status_code == 400


@pytest.mark.parametrize("name", ["sdxl-turbo", "stabilityai/sdxl-turbo", "SDXL_TURBO", "gpt-image-1"])
def test_a_model_is_found_by_id_or_alias(client: FlaskClient, name: str) -> None:
    assert client.get(f"/v1/models/{name}").get_json()["id"] == "sdxl-turbo"


def test_hidden_models_are_neither_listed_nor_usable(make_app: MakeApp) -> None:
    client = make_app(images__visible=("flux-schnell",), images__default_model="flux-schnell").test_client()
    assert [entry["id"] for entry in client.get("/v1/models").get_json()["data"]] == ["flux-schnell", "img"]
    response = client.post(PATH, json={"prompt": "a", "model": "sdxl-turbo"})
    assert response.get_json()["error"]["details"]["models"] == ["flux-schnell"]
    assert client.get("/v1/models/sdxl_turbo").status_code == 404


# --- probes and description ------------------------------------------------------------------------


def test_ready_reports_the_kind_of_engine(client: FlaskClient, make_app: MakeApp) -> None:
    wait_until(lambda: client.get("/ready").status_code == 200)
    body = client.get("/ready").get_json()
    assert (body["status"], body["engine"]["kind"]) == ("ready", "sketch")
    assert body["catalogue"]["models"] == len(IDS)
    unreachable = make_app(engine__url="http://127.0.0.1:9").test_client()
    assert unreachable.get("/health").status_code == 200
    response = unreachable.get("/ready")
    assert (response.status_code, response.get_json()["engine"]["code"]) == (503, "engine.unreachable")


def test_ready_reports_an_invalid_catalogue_edit_on_the_first_request(
    make_app: MakeApp, tmp_path: Any
) -> None:
    path = tmp_path / "catalogue.yaml"
    path.write_text((SMALL_CATALOGUE / "catalogue.yaml").read_text())
    client = make_app(catalogue=str(path)).test_client()
    assert client.get("/ready").get_json()["catalogue"]["error"] is None
    path.write_text("models: none")
    os.utime(path, (1e9, 1e9))
    assert "it must be" in client.get("/ready").get_json()["catalogue"]["error"]


def test_ready_hides_the_catalogue_error_message_if_keys_are_configured(make_app: MakeApp) -> None:
    for keys, expected in (((), "line 7"), (("k",), "catalogue.invalid")):
        app = make_app(api_keys=keys)
        app.extensions["easel"].live_catalogue.error = CatalogueInvalid("line 7")
        assert app.test_client().get("/ready").get_json()["catalogue"]["error"] == expected


def test_ready_lists_the_faults_of_the_own_folder_but_only_its_files_if_keys_are_configured(
    make_app: MakeApp, tmp_path: Any
) -> None:
    (tmp_path / "a.yaml").write_text("models:\n  secret: {}\n")
    (tmp_path / "b.yaml").write_text(json.dumps({"models": {"sdxl-turbo": OWN_MODEL}}))
    folder = tmp_path.name
    for keys, faults, replaced in (
        ((), "a.yaml:2: models.secret: `title` is missing", "b.yaml:1: models.sdxl-turbo: replaces"),
        (("k",), "a.yaml", "b.yaml"),
    ):
        client = make_app(api_keys=keys, catalogue_dir=str(tmp_path)).test_client()
        found = client.get("/ready").get_json()["catalogue"]
        assert found["own_faults"][0].startswith(f"{folder}/{faults}")
        assert found["own_overrides"][0].startswith(f"{folder}/{replaced}")
        if keys:
            assert (found["own_faults"], found["own_overrides"]) == (
                [f"{folder}/a.yaml"],
                [f"{folder}/b.yaml"],
            )


def test_ready_lists_a_hundred_faults_and_counts_the_others(make_app: MakeApp, tmp_path: Any) -> None:
    for index in range(103):
        (tmp_path / f"{index:03}.yaml").write_text("[")
    found = make_app(catalogue_dir=str(tmp_path)).test_client().get("/ready").get_json()["catalogue"]
    assert (len(found["own_faults"]), found["own_faults"][-1]) == (101, "and 3 more")


def test_the_api_description_covers_every_route_and_all_references_resolve(client: FlaskClient) -> None:
    document = client.get("/openapi.json").get_json()
    served = {
        re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule.replace("/models/<path:name>", "/models/{id}"))
        for rule in client.application.url_map.iter_rules()
    }
    assert set(document["paths"]) == served
    for reference in _references(document):
        part: Any = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
    request = document["components"]["schemas"]["ImageRequest"]
    assert request["properties"]["prompt"]["maxLength"] == 32000


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [reference for child in value.values() for reference in _references(child)]
    if isinstance(value, list):
        return [reference for child in value for reference in _references(child)]
    return []
