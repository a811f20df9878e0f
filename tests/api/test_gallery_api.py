"""/api/images: what clients drew, as they find it again."""

from __future__ import annotations

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from tests.conftest import MakeApp
from tests.waiting import wait_until

SMALL: dict[str, Any] = {"model": "sd-1.5", "size": "256x256", "steps": 2}


def draw(client: FlaskClient, prompt: str = "a cat", *, headers: Any = None, **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt, **SMALL, "response_format": "url", **fields}
    response = client.post("/v1/images/generations", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.get_json()


def name_of(answer: dict[str, Any]) -> str:
    return str(answer["data"][0]["url"].rpartition("/")[2])


def listed(client: FlaskClient, query: str = "", *, headers: Any = None) -> list[dict[str, Any]]:
    response = client.get(f"/api/images?{query}", headers=headers)
    assert response.status_code == 200, response.text
    images: list[dict[str, Any]] = response.get_json()["images"]
    return images


def png(color: str = "red") -> str:
    target = io.BytesIO()
    Image.new("RGB", (256, 256), color).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def test_a_drawn_picture_is_listed_with_what_made_it(client: FlaskClient) -> None:
    answer = draw(client, "a lighthouse", seed=7, negative_prompt="fog", nonsense=1)
    (image,) = listed(client)
    assert image["name"] == name_of(answer)
    assert image["url"] == answer["data"][0]["url"]
    assert client.get(image["url"]).data[:4] == b"\x89PNG"
    assert image["thumbnail"] == f"http://localhost/api/images/{image['name']}/thumbnail"
    assert (image["width"], image["height"], image["mime"], image["seed"]) == (256, 256, "image/png", 7)
    assert (image["prompt"], image["negative_prompt"], image["task"], image["index"]) == (
        "a lighthouse",
        "fog",
        "generate",
        0,
    )
    assert image["size_bytes"] == len(client.get(image["url"]).data)
    assert abs(image["created"] - time.time()) < 60
    assert image["ignored"] == answer["_hal0"]["ignored"] != []
    assert (image["favourite"], image["sources"], image["engine"]) == (False, [], None)
    assert client.get(f"/api/images/{image['name']}").get_json() == image


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 5},
        {"quality": "high", "guidance_scale": 4, "sampler": "dpmpp_2m karras"},
        {"n": 3, "seed": 11},
        {"output_format": "webp", "output_compression": 60},
        {"model": "sdxl-turbo", "size": "512x256"},
    ],
)
def test_the_settings_of_an_image_draw_it_again(client: FlaskClient, fields: dict[str, Any]) -> None:
    draw(client, **fields)
    image = listed(client)[0]
    again = client.post(
        "/v1/images/generations", json={**image["settings"], "response_format": "b64_json"}
    ).get_json()
    assert again["_hal0"]["ignored"] == []
    assert base64.b64decode(again["data"][image["index"]]["b64_json"]) == client.get(image["url"]).data


def test_pictures_that_are_answered_as_base64_are_listed_too(client: FlaskClient) -> None:
    answer = draw(client, response_format="b64_json", n=2)
    wait_until(lambda: len(listed(client)) == 2)
    kept = {client.get(image["url"]).data for image in listed(client)}
    assert kept == {base64.b64decode(entry["b64_json"]) for entry in answer["data"]}


def test_with_keep_urls_only_pictures_with_a_url_are_kept(make_app: MakeApp) -> None:
    client = make_app(image_store__keep="urls").test_client()
    draw(client, response_format="b64_json")
    kept = name_of(draw(client))
    time.sleep(0.3)
    assert [image["name"] for image in listed(client)] == [kept]


def test_without_keep_prompts_the_list_has_none(make_app: MakeApp) -> None:
    client = make_app(images__keep_prompts=False).test_client()
    draw(client, "nobody may read this")
    response = client.get("/api/images")
    assert "nobody" not in response.text
    (image,) = response.get_json()["images"]
    assert (image["prompt"], image["model"]) == (None, "sd-1.5-pruned-emaonly")


def test_pages_filters_and_search(client: FlaskClient) -> None:
    for number in range(5):
        draw(client, f"cat number {number}")
    edit = client.post(
        "/v1/images/edits", json={"image": png(), "prompt": "猫", "response_format": "url", **SMALL}
    )
    first = client.get("/api/images?limit=4").get_json()
    assert first["total"] == 6
    rest = client.get(f"/api/images?limit=4&cursor={first['next']}").get_json()
    prompts = [image["prompt"] for image in first["images"] + rest["images"]]
    assert prompts == ["猫", *(f"cat number {number}" for number in range(4, -1, -1))]
    assert rest["next"] is None
    assert [image["name"] for image in listed(client, "task=edit")] == [name_of(edit.get_json())]
    assert len(listed(client, "q=cat&model=sd-1.5-pruned-emaonly")) == 5
    assert [image["prompt"] for image in listed(client, "q=CAT%203")] == ["cat number 3"]
    assert len(listed(client, "q=%E7%8C%AB")) == 1
    assert listed(client, "from=4000000000") == []
    assert len(listed(client, f"to={time.time() + 60}&favourite=false&model=&q=")) == 6


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "request.invalid_value"),
        ("limit=201", "limit", "request.invalid_value"),
        ("limit=x", "limit", "request.invalid_value"),
        ("limit=0000001999", "limit", "request.invalid_value"),
        ("limit=000000001" + "9" * 30, "limit", "request.invalid_value"),
        ("cursor=abc", "cursor", "image.invalid_cursor"),
        ("favourite=maybe", "favourite", "request.invalid_value"),
        ("from=yesterday", "from", "request.invalid_value"),
        ("to=nan", "to", "request.invalid_value"),
        ("task=paint", "task", "request.invalid_value"),
        ("favorite=true", "favorite", "request.invalid_value"),
        ("q=" + "a" * 1001, "q", "request.invalid_value"),
    ],
)
def test_a_wrong_filter_is_refused(client: FlaskClient, query: str, param: str, code: str) -> None:
    response = client.get(f"/api/images?{query}")
    error = response.get_json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


def test_a_favourite_is_set_and_unset(client: FlaskClient) -> None:
    name = name_of(draw(client))
    for wanted in (True, True, False):
        response = client.patch(f"/api/images/{name}", json={"favourite": wanted})
        assert (response.status_code, response.get_json()["favourite"]) == (200, wanted)
        assert len(listed(client, "favourite=true")) == wanted
    for body in ({}, {"favourite": 1}, {"favourite": True, "prompt": "x"}):
        assert client.patch(f"/api/images/{name}", json=body).status_code == 400


def test_a_deleted_image_is_gone(client: FlaskClient, tmp_path: Path) -> None:
    name = name_of(draw(client, "quetzalcoatl"))
    assert client.get(f"/api/images/{name}/thumbnail").status_code == 200
    assert client.delete(f"/api/images/{name}").status_code == 204
    for path in (f"/api/images/{name}", f"/api/images/{name}/thumbnail", f"/api/images/cache/{name}"):
        response = client.get(path)
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "image.not_found")
    assert client.delete(f"/api/images/{name}").status_code == 404
    folder = tmp_path / "state/images"
    assert not [path for path in folder.rglob("*") if path.name.startswith(name)]
    assert not any(b"quetzal" in path.read_bytes() for path in folder.glob("index*"))


def test_a_thumbnail_is_a_small_webp_that_never_changes(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(api_keys=("a-key",))
    client = app.test_client()
    name = name_of(draw(client, size="768x512", headers={"Authorization": "Bearer a-key"}))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: app.test_client().get(f"/api/images/{name}/thumbnail"), range(50)))
    assert {answer.status_code for answer in answers} == {200}  # without a key
    assert len({answer.data for answer in answers}) == 1
    with Image.open(io.BytesIO(answers[0].data)) as image:
        assert (image.format, image.size) == ("WEBP", (320, 213))
    assert "immutable" in answers[0].headers["Cache-Control"]
    etag = answers[0].headers["ETag"]
    assert client.get(f"/api/images/{name}/thumbnail", headers={"If-None-Match": etag}).status_code == 304
    (tmp_path / "state/images" / name).write_bytes(b"damaged")
    (tmp_path / "state/images/thumbnails" / f"{name}.webp").unlink()
    response = client.get(f"/api/images/{name}/thumbnail")
    assert (response.status_code, response.get_json()["error"]["code"]) == (404, "image.no_thumbnail")


@pytest.mark.parametrize("form", ["url", "path", "name", "object", "bytes"])
def test_an_edit_records_the_stored_image_that_it_was_made_from(client: FlaskClient, form: str) -> None:
    answer = draw(client)
    url, name = answer["data"][0]["url"], name_of(answer)
    image: Any = {
        "url": url,
        "path": f"/prefix/api/images/cache/{name}",
        "name": name,
        "object": {"image_url": {"url": url}},
        "bytes": base64.b64encode(client.get(url).data).decode(),
    }[form]
    edited = client.post(
        "/v1/images/edits", json={"image": image, "prompt": "a dog", "response_format": "url", **SMALL}
    )
    assert edited.status_code == 200, edited.text
    assert client.get(f"/api/images/{name_of(edited.get_json())}").get_json()["sources"] == [name]


def test_an_edit_of_a_stored_image_that_is_gone_says_so(client: FlaskClient) -> None:
    name = name_of(draw(client))
    client.delete(f"/api/images/{name}")
    for image in (name, f"http://localhost/api/images/cache/{name}"):
        response = client.post("/v1/images/edits", json={"image": image, "prompt": "a dog", **SMALL})
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "image.not_found")


# --- keys --------------------------------------------------------------------------------------------------------------


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_sees_and_changes_only_its_own_images_and_operate_all(make_app: MakeApp) -> None:
    app = make_app()
    gate, client = app.extensions["easel"].gate, app.test_client()
    before = name_of(draw(client))
    keys = {
        name: bearer(gate.add_key(name, scopes, {})[1])
        for name, scopes in (
            ("ann", ["draw"]),
            ("bob", ["draw"]),
            ("viewer", ["view"]),
            ("boss", ["operate"]),
        )
    }
    of_ann = name_of(draw(client, headers=keys["ann"]))
    of_bob = name_of(draw(client, headers=keys["bob"]))

    def seen(key: str) -> set[str]:
        return {image["name"] for image in listed(client, headers=keys[key])}

    assert seen("ann") == {of_ann}
    assert seen("bob") == {of_bob}
    assert seen("viewer") == set()
    assert seen("boss") == {before, of_ann, of_bob}
    assert client.get("/api/images").status_code == 401
    for method, arguments in (("get", {}), ("delete", {}), ("patch", {"json": {"favourite": True}})):
        call = getattr(client, method)
        assert call(f"/api/images/{of_ann}", headers=keys["bob"], **arguments).status_code == 404
        assert call(f"/api/images/{of_ann}", **arguments).status_code == 401
    assert client.delete(f"/api/images/{of_ann}", headers=keys["viewer"]).status_code == 403
    assert (
        client.patch(f"/api/images/{of_ann}", headers=keys["ann"], json={"favourite": True}).status_code
        == 200
    )
    assert client.delete(f"/api/images/{of_bob}", headers=keys["boss"]).status_code == 204
    assert client.delete(f"/api/images/{of_ann}", headers=keys["ann"]).status_code == 204
    assert seen("boss") == {before}
    audit = (app.extensions["easel"].state_dir / "audit.jsonl").read_text()
    assert audit.count("images.delete") == 1
    assert of_bob not in audit


def test_favourites_of_a_key_leave_room_for_the_pictures_of_others(make_app: MakeApp) -> None:
    app = make_app(image_store__max_count=4)
    gate, client = app.extensions["easel"].gate, app.test_client()
    ann, bob = (bearer(gate.add_key(name, ["draw"], {})[1]) for name in ("ann", "bob"))
    boss = bearer(gate.add_key("boss", ["operate"], {})[1])
    *three, fourth = [name_of(draw(client, headers=ann)) for _ in range(4)]

    def mark(name: str, key: dict[str, str]) -> Any:
        return client.patch(f"/api/images/{name}", headers=key, json={"favourite": True})

    assert [mark(name, ann).status_code for name in three] == [200] * 3
    refused = mark(fourth, ann)
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (507, "image.favourites_full")
    assert name_of(draw(client, headers=bob))
    assert mark(fourth, boss).status_code == 200


def test_a_later_key_of_the_same_name_does_not_see_the_images_of_the_first(make_app: MakeApp) -> None:
    app = make_app()
    gate, client = app.extensions["easel"].gate, app.test_client()
    gate.add_key("boss", ["operate"], {})
    first = bearer(gate.add_key("ann", ["draw"], {})[1])
    draw(client, headers=first)
    gate.revoke_key("ann")
    second = bearer(gate.add_key("ann", ["draw"], {})[1])
    assert listed(client, headers=second) == []


def test_names_of_keys_are_not_in_the_index(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(api_keys=("a-secret-key",))
    draw(app.test_client(), headers=bearer("a-secret-key"))
    key = app.extensions["easel"].gate.add_key("annabelle", ["draw"], {})
    draw(app.test_client(), headers=bearer(key[1]))
    for path in (tmp_path / "state/images").glob("index*"):
        for secret in (b"a-secret-key", b"annabelle", key[0].id.encode(), b"api_keys"):
            assert secret not in path.read_bytes()


def test_pictures_of_jobs_and_keyed_requests_are_listed_once(make_app: MakeApp) -> None:
    app = make_app()
    container, client = app.extensions["easel"], app.test_client()
    key = bearer(container.gate.add_key("ann", ["draw"], {})[1])
    body = {"prompt": "a keyed cat", **SMALL, "response_format": "b64_json"}
    for _ in range(2):
        response = client.post("/v1/images/generations", json=body, headers={**key, "Idempotency-Key": "one"})
        assert response.status_code == 200
    container.job_workers.start()
    response = client.post(
        "/v1/images/generations",
        json={**body, "prompt": "a later cat"},
        headers={**key, "Prefer": "respond-async"},
    )
    job = response.get_json()["id"]
    wait_until(lambda: client.get(f"/v1/images/jobs/{job}", headers=key).get_json()["state"] == "done")
    assert sorted(image["prompt"] for image in listed(client, headers=key)) == ["a keyed cat", "a later cat"]
    container.job_workers.stop(1)


# --- damage ------------------------------------------------------------------------------------------------------------


def test_with_metadata_a_lost_index_gets_prompt_model_and_seed_back_from_the_pictures(
    make_app: MakeApp, tmp_path: Path
) -> None:
    drawn = make_app(images__metadata="parameters").test_client()
    for output in ("png", "jpeg", "webp"):
        draw(
            drawn,
            "line one\nline two 猫, Size: 1x1",
            seed=77,
            negative_prompt="fog, rain",
            output_format=output,
        )
    for path in (tmp_path / "state/images").glob("index*"):
        path.unlink()
    app = make_app()
    store = app.extensions["easel"].store
    store._retention._sweep_if_due()
    images = listed(app.test_client())
    assert {image["mime"] for image in images} == {"image/png", "image/jpeg", "image/webp"}
    for image in images:
        assert (image["prompt"], image["negative_prompt"]) == (
            "line one\nline two 猫, Size: 1x1",
            "fog, rain",
        )
        assert (image["model"], image["seed"], image["width"]) == ("sd-1.5-pruned-emaonly", 77, 256)
        assert (image["settings"], image["task"], image["adjusted"], image["request_id"]) == (
            None,
            None,
            None,
            None,
        )


def test_an_image_that_is_evicted_while_listed_is_404(client: FlaskClient, tmp_path: Path) -> None:
    name = name_of(draw(client))
    (tmp_path / "state/images" / name).unlink()
    assert [image["name"] for image in listed(client)] == [name]
    for path in (f"/api/images/{name}/thumbnail", f"/api/images/cache/{name}"):
        assert client.get(path).status_code == 404
    assert listed(client) == []
    assert client.patch(f"/api/images/{name}", json={"favourite": True}).status_code == 404


def test_an_index_that_cannot_be_used_stops_no_drawing(make_app: MakeApp, tmp_path: Path) -> None:
    import sqlite3

    client = make_app().test_client()
    draw(client)
    with sqlite3.connect(tmp_path / "state/images/index.sqlite3") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    client = make_app().test_client()
    answer = draw(client)
    assert client.get(answer["data"][0]["url"]).status_code == 200
    response = client.get("/api/images")
    error = response.get_json()["error"]
    assert (response.status_code, error["code"]) == (503, "image.index_unavailable")
    assert "newer Easel" in error["message"]


def test_drawing_does_not_wait_for_the_gallery(make_app: MakeApp) -> None:
    app = make_app()
    store = app.extensions["easel"].store
    may_write, keep = threading.Event(), store.keep

    def slow_keep(*arguments: Any) -> Any:
        assert may_write.wait(60)
        return keep(*arguments)

    store.keep = slow_keep
    client = app.test_client()
    draw(client, response_format="b64_json")
    assert listed(client) == []
    may_write.set()
    wait_until(lambda: len(listed(client)) == 1)
