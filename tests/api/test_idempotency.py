"""`Idempotency-Key`: the same key and body give the same answer, which is drawn once."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import g, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from access import Caller
from sketch import SketchProcess
from tests.conftest import NODES, ROOT, MakeApp
from tests.pictures.pictures import encoded, pattern
from tests.waiting import wait_until

PATH = "/v1/images/generations"
SMALL = {"prompt": "a cat", "size": "256x256"}


def send(client: FlaskClient, key: str = "k-1", path: str = PATH, **fields: Any) -> TestResponse:
    return client.post(path, json={**SMALL, **fields}, headers={"Idempotency-Key": key})


def is_replay(response: TestResponse) -> bool:
    assert response.status_code == 200, response.text
    return response.headers.get("idempotency-replayed") == "true"


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (tmp_path / "state/idempotency").glob("*.json")]


def stored_images(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "state/images").glob("*.png"))


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_the_same_key_and_body_give_the_same_answer_without_drawing_again(
    client: FlaskClient, tmp_path: Path, form: str
) -> None:
    first = send(client, response_format=form, n=2)
    again = send(client, response_format=form, n=2)
    assert (is_replay(first), is_replay(again)) == (False, True)
    assert first.get_json() == again.get_json()
    assert len(stored_images(tmp_path)) == 2


def test_a_data_url_is_replayed(make_app: MakeApp) -> None:
    client = make_app(url_style="data").test_client()
    first, again = send(client, response_format="url"), send(client, response_format="url")
    assert is_replay(again)
    assert first.get_json()["data"] == again.get_json()["data"]
    assert first.get_json()["data"][0]["url"].startswith("data:image/png;base64,")


def test_a_replayed_url_is_on_the_origin_of_the_retry(client: FlaskClient) -> None:
    send(client)
    headers = {"Idempotency-Key": "k-1"}
    again = client.post(PATH, json=SMALL, headers=headers, base_url="http://localhost:8080")
    assert again.get_json()["data"][0]["url"].startswith("http://localhost:8080/api/images/cache/")


def test_requests_without_a_key_and_with_other_keys_are_drawn_each(client: FlaskClient) -> None:
    answers = [send(client, "a"), send(client, "b"), client.post(PATH, json=SMALL)]
    assert len({answer.get_json()["_hal0"]["prompt_id"] for answer in answers}) == 3


@pytest.mark.parametrize("change", [{"prompt": "a dog"}, {"seed": 1}, {"n": 2}])
def test_another_body_is_422(client: FlaskClient, change: dict[str, Any]) -> None:
    send(client)
    response = send(client, **change)
    assert (response.status_code, response.get_json()["error"]["code"]) == (422, "idempotency.key_reused")
    assert response.headers.get("x-should-retry") != "true"


def test_another_path_is_422(client: FlaskClient) -> None:
    send(client)
    assert send(client, path="/v1-openai/images/generations").status_code == 422


def test_the_order_of_the_fields_does_not_matter(client: FlaskClient) -> None:
    send(client)
    text = json.dumps(dict(reversed(SMALL.items())))
    headers = {"Idempotency-Key": "k-1", "Content-Type": "application/json"}
    assert is_replay(client.post(PATH, data=text, headers=headers))


def edit(client: FlaskClient, picture: bytes) -> TestResponse:
    files = {"image": (io.BytesIO(picture), "a.png"), "prompt": "a dog", "model": "sd-1.5"}
    return client.post("/v1/images/edits", data=files, headers={"Idempotency-Key": "e"})


def test_an_edit_is_replayed_although_the_form_has_another_boundary(client: FlaskClient) -> None:
    first, again = edit(client, encoded(pattern(256, 256))), edit(client, encoded(pattern(256, 256)))
    assert is_replay(again)
    assert first.get_json() == again.get_json()
    assert edit(client, encoded(pattern(256, 320))).status_code == 422


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "schlüssel", "a\tb"])
def test_a_key_that_is_no_key_is_refused(client: FlaskClient, key: str) -> None:
    response = send(client, key)
    assert (response.status_code, response.get_json()["error"]["code"]) == (400, "idempotency.key_invalid")


def test_a_stream_with_a_key_is_refused_and_leaves_the_key_free(client: FlaskClient) -> None:
    response = send(client, stream=True)
    error = response.get_json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        *(400, "request.field_not_supported", "stream"),
    )
    assert not is_replay(send(client))


def test_a_mistake_in_the_request_leaves_the_key_free(client: FlaskClient, tmp_path: Path) -> None:
    assert send(client, size="nonsense").status_code == 400
    assert send(client, size="nonsense").status_code == 400
    assert records(tmp_path) == []
    assert not is_replay(send(client))


def test_keys_of_two_callers_are_two_keys(make_app: MakeApp) -> None:
    app = make_app()

    @app.before_request
    def caller() -> None:
        name = request.headers.get("x-caller", "")
        g.caller = Caller(name or "anonymous", frozenset({"draw"}), key=name)

    def send_as(name: str) -> TestResponse:
        headers = {"Idempotency-Key": "same", "x-caller": name}
        return app.test_client().post(PATH, json=SMALL, headers=headers)

    assert [is_replay(send_as(name)) for name in ("ann", "bob", "ann", "bob")] == [False, False, True, True]


# --- what is drawn again ---------------------------------------------------------------------------


def test_a_picture_that_was_removed_is_drawn_again_with_the_same_seed_and_the_answer_says_so(
    client: FlaskClient, tmp_path: Path
) -> None:
    first = send(client, response_format="b64_json")
    for path in stored_images(tmp_path):
        path.unlink()
    again = send(client, response_format="b64_json")
    assert not is_replay(again)
    assert first.get_json()["data"] == again.get_json()["data"]
    note = again.get_json()["_hal0"]["adjusted"][0]
    assert (note["field"], note["done"]) == ("Idempotency-Key", "drawn again")
    assert "removed" in note["why"]
    assert is_replay(send(client, response_format="b64_json"))


def test_a_request_that_failed_is_drawn_with_the_seed_of_its_first_attempt(
    failing: FlaskClient, tmp_path: Path
) -> None:
    assert send(failing, model="sd-1.5").status_code >= 500
    (record,) = records(tmp_path)
    assert send(failing, model="sd-1.5").status_code >= 500
    assert records(tmp_path) == [record]
    assert send(failing, model="sd-1.5", prompt="another").status_code == 422


def test_a_damaged_record_is_moved_aside_and_the_request_is_drawn(
    client: FlaskClient, tmp_path: Path
) -> None:
    send(client)
    (path,) = (tmp_path / "state/idempotency").glob("*.json")
    path.write_text('{"fingerprint": 5')
    assert not is_replay(send(client))
    assert is_replay(send(client))
    assert list(path.parent.glob("*.corrupt"))


def test_an_answer_that_was_edited_into_nonsense_is_drawn_again(client: FlaskClient, tmp_path: Path) -> None:
    send(client)
    (path,) = (tmp_path / "state/idempotency").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "answer": {}}))
    assert not is_replay(send(client))
    assert is_replay(send(client))


def test_the_records_are_private(client: FlaskClient, tmp_path: Path) -> None:
    send(client)
    (path,) = (tmp_path / "state/idempotency").glob("*.json")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "a cat" not in path.read_text()


def test_a_folder_that_cannot_be_written_fails_no_request_and_the_answer_says_so(
    client: FlaskClient, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    os.symlink("/sys/kernel", tmp_path / "state/idempotency")  # where nobody can create files
    response = send(client)
    assert (response.status_code, response.headers["idempotency-stored"]) == (200, "false")
    assert not is_replay(send(client))


# Files in this process are limited to 1,000 bytes, which causes the same errors as a full disk.
FULL_DISK = """
import json, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from app import create_app
client = create_app().test_client()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
body = {"prompt": "a", "size": "256x256", "response_format": "b64_json"}
for _ in range(2):
    response = client.post("/v1/images/generations", json=body, headers={"Idempotency-Key": "k"})
    print(json.dumps([response.status_code, response.headers.get("idempotency-stored"), response.get_json()["data"]]))
"""


def test_a_picture_that_a_full_disk_cannot_keep_is_sent_and_drawn_again_with_the_same_seed(
    tmp_path: Path, sketch_url: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment = {**inherited, "EASEL_ENGINE_URL": sketch_url, "EASEL_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    first, again = (json.loads(line) for line in done.stdout.splitlines())
    assert first[:2] == [200, "false"]
    assert first == again


# --- two at the same time --------------------------------------------------------------------------


@pytest.fixture
def slow(make_app: MakeApp, catalogue_files: dict[str, list[str]]) -> Iterator[FlaskClient]:
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=700) as sketch:
        yield make_app(engine__url=sketch.url).test_client()


def test_a_request_that_still_runs_is_joined(slow: FlaskClient, tmp_path: Path) -> None:
    app = slow.application
    barrier = threading.Barrier(5)

    def one(_: int) -> TestResponse:
        barrier.wait()
        return send(app.test_client(), response_format="b64_json")

    with ThreadPoolExecutor(5) as pool:
        responses = list(pool.map(one, range(5)))
    assert sorted(is_replay(response) for response in responses) == [False, True, True, True, True]
    assert len({response.text for response in responses}) == 1
    assert len(stored_images(tmp_path)) == 1
    assert base64.b64decode(responses[0].get_json()["data"][0]["b64_json"])


def test_another_body_is_422_while_the_first_still_runs(slow: FlaskClient, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: send(slow.application.test_client()))
        wait_until(lambda: records(tmp_path))
        assert send(slow, prompt="a dog").status_code == 422
        assert first.result().status_code == 200
