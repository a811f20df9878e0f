"""`Prefer: respond-async` and /v1/images/jobs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import g, request
from flask.testing import FlaskClient
from openai.types import ImagesResponse
from werkzeug.test import TestResponse

from access import Caller, Scope
from api.openapi import description
from app import Container
from errors import ServerStopping
from sketch import SketchProcess
from tests.conftest import NODES, MakeApp
from tests.pictures.pictures import encoded, pattern
from tests.waiting import wait_until

PATH, JOBS = "/v1/images/generations", "/v1/images/jobs"
SMALL = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5"}
LATER = {"Prefer": "respond-async"}


def container(client: FlaskClient) -> Container:
    found = client.application.extensions["easel"]
    assert isinstance(found, Container)
    return found


@pytest.fixture
def working(client: FlaskClient) -> Iterator[FlaskClient]:
    """A client of an application whose jobs are drawn."""
    workers = container(client).job_workers
    workers.start()
    yield client
    workers.stop(60)


def post(client: FlaskClient, headers: dict[str, str] | None = None, **fields: Any) -> TestResponse:
    return client.post(PATH, json={**SMALL, **fields}, headers={**LATER, **(headers or {})})


def queued(client: FlaskClient, **fields: Any) -> str:
    response = post(client, **fields)
    assert response.status_code == 202, response.text
    return str(response.get_json()["id"])


def job(client: FlaskClient, job_id: str, **options: Any) -> dict[str, Any]:
    response = client.get(f"{JOBS}/{job_id}", **options)
    assert response.status_code == 200, response.text
    return dict(response.get_json())


def ended(client: FlaskClient, job_id: str) -> dict[str, Any]:
    return wait_until(lambda: (found := job(client, job_id))["state"] not in ("queued", "running") and found)  # type: ignore[return-value]


# --- the answer ------------------------------------------------------------------------------------


def test_the_answer_is_202_with_the_place_of_the_job(client: FlaskClient) -> None:
    response = post(client)
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "respond-async"
    body = response.get_json()
    assert response.headers["Location"] == f"http://localhost{JOBS}/{body['id']}"
    assert (body["object"], body["state"], body["place"], body["result"]) == ("image.job", "queued", 0, None)
    assert body["model"] == "sd-1.5-pruned-emaonly"
    assert job(client, body["id"]) == body
    assert job(client, queued(client))["place"] == 1


def test_jobs_have_the_documented_shape(working: FlaskClient) -> None:
    components = description()["components"]["schemas"]
    schema = {**components["ImageJob"], "components": {"schemas": components}}
    done = ended(working, queued(working))
    text = json.dumps(schema).replace('{"$ref": "#/components/schemas/ImagesResponse"}', "true")
    shape = json.loads(text)
    for document in (done, *working.get(JOBS).get_json()["data"]):
        assert set(document) - {"result"} == set(shape["required"])
        assert set(document) <= set(shape["properties"])


@pytest.mark.parametrize(
    ("prefer", "is_applied"),
    [
        ("respond-async", True),
        ("Respond-Async", True),
        ("wait=10, respond-async", True),
        ("respond-async;foo=bar", True),
        ('foo="a, respond-async", handling=lenient', False),
        ("return=minimal", False),
        ("respond-async=no", False),
        ("wait=10", False),
        ("", False),
        ('";;,,=', False),
        ("a " * 4000 + '"', False),
    ],
)
def test_only_respond_async_is_applied(client: FlaskClient, prefer: str, is_applied: bool) -> None:
    response = client.post(PATH, json=SMALL, headers={"Prefer": prefer})
    assert response.status_code == (202 if is_applied else 200)
    assert response.headers.get("Preference-Applied") == ("respond-async" if is_applied else None)


def test_without_threads_for_jobs_the_preference_is_not_applied(make_app: MakeApp) -> None:
    response = post(make_app(jobs__threads=0).test_client())
    assert (response.status_code, "Preference-Applied" in response.headers) == (200, False)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"prompt": ""}, 422, "image.prompt_required"),
        ({"size": "nonsense"}, 400, "image.size_not_allowed"),
        ({"model": "unknown"}, 404, "image.model_not_curated"),
        ({"steps": "many"}, 400, "request.invalid_value"),
        ({"stream": True}, 400, "request.field_not_supported"),
        ({"image": "data:image/png;base64,AAAA"}, 400, "image.invalid_image"),
    ],
)
def test_a_request_with_a_mistake_becomes_no_job(
    client: FlaskClient, fields: dict[str, Any], status: int, code: str
) -> None:
    response = post(client, **fields)
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)
    assert client.get(JOBS).get_json()["data"] == []


def test_a_model_without_its_files_becomes_no_job(
    make_app: MakeApp, catalogue_files: dict[str, list[str]]
) -> None:
    with SketchProcess(nodes=NODES, files={}) as sketch:
        response = post(make_app(engine__url=sketch.url).test_client())
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "model.files_missing")


def test_a_full_queue_is_429(make_app: MakeApp) -> None:
    client = make_app(jobs__max_count=1).test_client()
    queued(client)
    response = post(client)
    assert (response.status_code, response.get_json()["error"]["code"]) == (429, "jobs.full")
    assert response.headers["Retry-After"]


# --- the result ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_the_result_is_the_body_of_the_ordinary_answer(working: FlaskClient, form: str) -> None:
    fields = {"seed": 5, "n": 2, "response_format": form}
    result = ended(working, queued(working, **fields))["result"]
    ordinary = working.post(PATH, json={**SMALL, **fields}).get_json()
    ImagesResponse.model_validate(result, strict=True)
    assert result.keys() == ordinary.keys()
    assert [list(entry) for entry in result["data"]] == [[form], [form]]
    assert result["_hal0"]["meta"] == ordinary["_hal0"]["meta"]
    if form == "b64_json":
        assert result["data"] == ordinary["data"]
    else:
        assert working.get(result["data"][0]["url"]).data == working.get(ordinary["data"][0]["url"]).data


def test_an_edit_keeps_its_uploads_until_it_is_drawn(client: FlaskClient, tmp_path: Path) -> None:
    def form() -> dict[str, Any]:
        picture = encoded(pattern(256, 256))
        return {
            "prompt": "a dog",
            "model": "sd-1.5",
            "seed": "3",
            "strength": "0.5",
            "image": (io.BytesIO(picture), "a.png"),
        }

    response = client.post("/v1/images/edits", data=form(), headers=LATER)
    job_id = response.get_json()["id"]
    folder = tmp_path / "state/image-jobs/work" / job_id
    assert (folder / "file-0").read_bytes() == encoded(pattern(256, 256))
    workers = container(client).job_workers
    workers.start()
    result = ended(client, job_id)["result"]
    workers.stop(60)
    ordinary = client.post("/v1/images/edits", data=form()).get_json()
    assert result["data"] == ordinary["data"]
    assert not (folder / "file-0").exists()


def test_gpustacks_path_and_variations_become_jobs(working: FlaskClient) -> None:
    response = working.post("/v1-openai/images/generations", json=SMALL, headers=LATER)
    assert ended(working, response.get_json()["id"])["state"] == "done"
    files = {"image": (io.BytesIO(encoded(pattern(256, 256))), "a.png"), "model": "sd-1.5"}
    response = working.post("/v1/images/variations", data=files, headers=LATER)
    assert ended(working, response.get_json()["id"])["state"] == "done"


def test_pictures_that_were_removed_are_reported(working: FlaskClient, tmp_path: Path) -> None:
    job_id = queued(working, response_format="b64_json")
    assert ended(working, job_id)["result"]
    for path in (tmp_path / "state/images").glob("*.png"):
        path.unlink()
    found = job(working, job_id)
    assert (found["state"], found["result"], found["error"]["code"]) == (
        *("done", None, "jobs.pictures_removed"),
    )


def test_a_job_that_failed_has_the_error_of_the_ordinary_answer(failing: FlaskClient) -> None:
    workers = container(failing).job_workers
    workers.start()
    found = ended(failing, queued(failing))
    workers.stop(60)
    ordinary = failing.post(PATH, json=SMALL).get_json()["error"]
    assert found["state"] == "failed"
    assert found["error"].keys() == ordinary.keys()
    assert found["error"]["code"] == ordinary["code"]


@pytest.mark.parametrize(("name", "model"), [("image", "sd-1.5"), ("control_image", "sd-1.5-canny")])
def test_a_url_to_an_image_is_fetched_when_the_job_is_added(make_app: MakeApp, name: str, model: str) -> None:
    app = make_app()
    services = app.extensions["easel"].services
    fetched = []

    def fetch(url: str, param: str) -> bytes:
        fetched.append(url)
        return encoded(pattern(256, 256))

    object.__setattr__(services, "fetch_image", fetch)
    client = app.test_client()
    job_id = queued(client, **{name: "https://example.com/a.png", "model": model})
    assert fetched == ["https://example.com/a.png"]
    workers = container(client).job_workers
    workers.start()
    assert ended(client, job_id)["state"] == "done"
    workers.stop(60)
    assert len(fetched) == 1


# --- whose job it is -------------------------------------------------------------------------------


@pytest.fixture
def shared(make_app: MakeApp) -> FlaskClient:
    """A client that says in a header who it is, and which scopes it has."""
    app = make_app()

    @app.before_request
    def caller() -> None:
        name, _, scope = request.headers.get("x-caller", "").partition(":")
        scopes: dict[str, frozenset[Scope]] = {
            "": frozenset({"draw"}),
            "operate": frozenset({"draw", "operate"}),
        }
        g.caller = Caller(name, scopes[scope], key=name)

    return app.test_client()


def test_the_job_of_another_caller_is_404_on_every_route(shared: FlaskClient) -> None:
    ann, bob = {"x-caller": "ann"}, {"x-caller": "bob"}
    job_id = post(shared, ann).get_json()["id"]
    assert job(shared, job_id, headers=ann)["key"] == "ann"
    unknown = f"{JOBS}/imgjob_{'0' * 32}"
    for method, end in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events")):
        response = shared.open(f"{JOBS}/{job_id}{end}", method=method, headers=bob)
        other = shared.open(f"{unknown}{end}", method=method, headers=bob)
        assert (response.status_code, response.get_json()["error"]["code"]) == (404, "jobs.not_found")
        assert response.text.replace(job_id, "") == other.text.replace(unknown.rpartition("/")[2], "")
    assert job(shared, job_id, headers=ann)["state"] == "queued"
    assert shared.get(JOBS, headers=bob).get_json()["data"] == []
    assert shared.get(f"{JOBS}?all=true", headers=bob).get_json()["data"] == []
    assert shared.get(f"{JOBS}?after={job_id}", headers=bob).status_code == 404


def test_who_may_operate_sees_and_cancels_all_jobs(shared: FlaskClient) -> None:
    root = {"x-caller": "root:operate"}
    ids = [post(shared, {"x-caller": name}).get_json()["id"] for name in ("ann", "bob")]
    assert shared.get(JOBS, headers=root).get_json()["data"] == []
    listed = shared.get(f"{JOBS}?all=true", headers=root).get_json()["data"]
    assert [one["id"] for one in listed] == ids[::-1]
    assert shared.delete(f"{JOBS}/{ids[0]}", headers=root).get_json()["state"] == "cancelled"


def test_callers_take_turns(shared: FlaskClient) -> None:
    for _ in range(5):
        post(shared, {"x-caller": "flood"})
    assert post(shared, {"x-caller": "ann"}).get_json()["place"] == 1


# --- listing and cancelling ------------------------------------------------------------------------


def test_jobs_are_listed_in_pages(client: FlaskClient) -> None:
    ids = [queued(client) for _ in range(5)][::-1]
    first = client.get(f"{JOBS}?limit=3").get_json()
    assert [one["id"] for one in first["data"]] == ids[:3]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[0], ids[2])
    rest = client.get(f"{JOBS}?limit=3&after={ids[2]}").get_json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[3:], False)
    assert "result" not in rest["data"][0]


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "9" * 5000, "²"])
def test_a_limit_that_is_none_is_refused(client: FlaskClient, limit: str) -> None:
    response = client.get(JOBS, query_string={"limit": limit})
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize(("method", "end"), [("DELETE", ""), ("POST", "/cancel")])
def test_a_job_that_waits_is_cancelled_at_once(client: FlaskClient, method: str, end: str) -> None:
    job_id, other = queued(client), queued(client)
    response = client.open(f"{JOBS}/{job_id}{end}", method=method)
    assert (response.status_code, response.get_json()["state"]) == (200, "cancelled")
    assert job(client, job_id)["state"] == "cancelled"
    assert job(client, other)["place"] == 0


@pytest.fixture
def slow(make_app: MakeApp, catalogue_files: dict[str, list[str]]) -> Iterator[FlaskClient]:
    """A client of an application whose jobs are drawn, for 20 s each."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=20_000) as sketch:
        client = make_app(engine__url=sketch.url).test_client()
        workers = container(client).job_workers
        workers.start()
        yield client
        workers.stop()
        container(client).stop_jobs(ServerStopping("The test has ended."))
        workers.stop(60)


def test_a_job_that_is_drawn_is_cancelled_in_the_engine(slow: FlaskClient) -> None:
    job_id = queued(slow)
    engine = container(slow).engine_selector.current()
    wait_until(lambda: engine.queue().running)
    assert job(slow, job_id)["state"] == "running"
    slow.delete(f"{JOBS}/{job_id}")
    assert ended(slow, job_id)["state"] == "cancelled"
    wait_until(lambda: not engine.queue().running)


def test_the_owner_of_the_gpu_cancels_jobs_too(slow: FlaskClient) -> None:
    job_id = queued(slow)
    engine = container(slow).engine_selector.current()
    wait_until(lambda: engine.queue().running)
    assert slow.post("/api/comfyui/render/cancel", json={"all": True}).status_code < 300
    assert ended(slow, job_id)["state"] == "cancelled"


# --- events ----------------------------------------------------------------------------------------


def events(text: str) -> list[tuple[str | None, str, dict[str, Any]]]:
    """Id, name and data of each."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_the_events_end_with_the_whole_job(working: FlaskClient) -> None:
    job_id = queued(working)
    response = working.get(f"{JOBS}/{job_id}/events")
    assert response.mimetype == "text/event-stream"
    last_id, name, data = events(response.text)[-1]
    assert name == "done"
    assert {**data, "type": None} == {**job(working, job_id), "type": None}
    again = working.get(f"{JOBS}/{job_id}/events", headers={"Last-Event-ID": str(last_id)})
    assert (again.status_code, again.data) == (204, b"")


def test_a_job_that_the_engine_runs_waits_for_nothing_even_without_progress(
    make_app: MakeApp, catalogue_files: dict[str, list[str]]
) -> None:
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=1500) as sketch:
        client = make_app(engine__url=sketch.url).test_client()
        workers = container(client).job_workers
        workers.start()
        _, second = queued(client, steps=1), queued(client, steps=1)
        kinds = [
            (name, data.get("waits_for"))
            for _, name, data in events(client.get(f"{JOBS}/{second}/events").text)
        ]
        workers.stop(60)
    waits = [index for index, (name, _) in enumerate(kinds) if name == "waiting"]
    assert waits, kinds
    assert kinds[waits[-1] + 1] == ("progress", None)


def test_events_go_on_after_the_last_one_that_the_client_saw(client: FlaskClient) -> None:
    job_id = queued(client)
    taken = container(client).image_jobs.take()
    assert taken is not None
    taken.begin()
    for number in range(1, 4):
        taken.report("progress", {"progress": number / 4})
    response = client.get(f"{JOBS}/{job_id}/events", headers={"Last-Event-ID": "2"}, buffered=False)
    stream = response.response
    seen = "".join(chunk.decode() for _, chunk in zip(range(2), stream, strict=False))
    assert [(number, data["progress"]) for number, _, data in events(seen)] == [("3", 0.75)]
    taken.end("failed", error={"code": "engine.job_lost", "message": "lost", "param": None, "details": {}})
    ((number, name, data),) = events("".join(chunk.decode() for chunk in stream))
    assert (number, name, data["error"]["code"]) == ("4", "failed", "engine.job_lost")
    response.close()


@pytest.mark.parametrize("last", ["", "x", "-1", "1.5", "9" * 400])
def test_a_last_event_id_that_is_none_begins_at_the_first(working: FlaskClient, last: str) -> None:
    job_id = queued(working)
    ended(working, job_id)
    response = working.get(f"{JOBS}/{job_id}/events", headers={"Last-Event-ID": last})
    assert events(response.text)[-1][1] == "done"


def test_there_is_a_limit_of_event_streams_and_their_places_become_free_again(client: FlaskClient) -> None:
    job_id = queued(client)
    url = f"{JOBS}/{job_id}/events"
    streams = [client.get(url, buffered=False) for _ in range(64)]
    refused = client.get(url)
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "events.too_many_streams")
    for stream in streams:
        stream.close()
    again = client.get(url, buffered=False)
    assert again.status_code == 200
    again.close()


def test_followers_of_jobs_leave_threads_to_others(make_app: MakeApp) -> None:
    """Of the four that pictures cannot take."""
    client = make_app(threads=100, max_waiting=96).test_client()
    url = f"{JOBS}/{queued(client)}/events"
    streams = [client.get(url, buffered=False) for _ in range(2)]
    assert client.get(url).status_code == 503
    for stream in streams:
        stream.close()


# --- with an idempotency key -----------------------------------------------------------------------

KEY = {"Idempotency-Key": "one"}


def test_a_retry_with_the_same_key_gets_the_same_job(client: FlaskClient) -> None:
    first, again = post(client, KEY), post(client, KEY)
    assert first.get_json()["id"] == again.get_json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert len(client.get(JOBS).get_json()["data"]) == 1
    assert post(client, KEY, prompt="a dog").status_code == 422


def test_a_retry_without_the_preference_waits_for_the_job(working: FlaskClient) -> None:
    job_id = post(working, KEY).get_json()["id"]
    response = working.post(PATH, json=SMALL, headers=KEY)
    assert (response.status_code, response.headers["idempotency-replayed"]) == (200, "true")
    assert response.get_json() == job(working, job_id)["result"]


def test_a_request_that_was_answered_is_not_made_a_job(client: FlaskClient) -> None:
    first = client.post(PATH, json=SMALL, headers=KEY)
    again = post(client, KEY)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert "Preference-Applied" not in again.headers
    assert first.get_json() == again.get_json()


def test_a_mistake_leaves_the_key_free(client: FlaskClient) -> None:
    assert post(client, KEY, size="nonsense").status_code == 400
    assert post(client, KEY).status_code == 202


def test_a_job_that_was_cancelled_is_replaced_by_a_retry_with_the_same_seed(
    client: FlaskClient, tmp_path: Path
) -> None:
    first = post(client, KEY).get_json()["id"]
    seed = _seed(tmp_path, first)
    client.delete(f"{JOBS}/{first}")
    second = post(client, KEY).get_json()["id"]
    assert second != first
    assert _seed(tmp_path, second) == seed


def _seed(tmp_path: Path, job_id: str) -> int:
    return int(json.loads((tmp_path / "state/image-jobs/work" / job_id / "request.json").read_text())["seed"])


def test_a_job_whose_process_was_killed_before_it_was_in_the_queue_is_replaced_by_a_retry(
    client: FlaskClient, tmp_path: Path
) -> None:
    first = post(client, KEY).get_json()["id"]
    seed = _seed(tmp_path, first)
    for entry in (tmp_path / "state/image-jobs/queue").iterdir():
        entry.unlink()
    second = post(client, KEY).get_json()["id"]
    assert [one["id"] for one in client.get(JOBS).get_json()["data"]] == [second]
    assert _seed(tmp_path, second) == seed


NONSENSE: list[dict[str, Any]] = [
    {"state": "done", "ended": "yesterday"},
    {"state": "running", "started": "yesterday"},
    {"created": float("inf")},
    {"state": "failed", "error": {}},
    {"state": "failed", "error": {"code": 1, "message": "x", "details": {}, "param": None}},
    {"attempts": 0.5},
    {"use": []},
    {"id": f"imgjob_{'0' * 32}"},
]


@pytest.mark.parametrize("change", NONSENSE)
def test_a_record_that_was_edited_into_nonsense_concerns_its_job_only(
    client: FlaskClient, tmp_path: Path, change: dict[str, Any]
) -> None:
    first, second = queued(client), queued(client)
    path = tmp_path / "state/image-jobs/work" / first / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert client.get(JOBS).status_code == 200
    workers = container(client).job_workers
    workers.start()
    assert ended(client, second)["state"] == "done"
    assert ended(client, first)["state"] == "done"
    workers.stop(60)


def test_a_result_that_was_edited_into_nonsense_counts_as_removed(
    working: FlaskClient, tmp_path: Path
) -> None:
    job_id = queued(working)
    ended(working, job_id)
    path = tmp_path / "state/image-jobs/work" / job_id / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": {"data": [5]}}))
    found = job(working, job_id)
    assert (found["result"], found["error"]["code"]) == (None, "jobs.pictures_removed")


def test_the_ids_cannot_be_guessed(client: FlaskClient) -> None:
    assert re.fullmatch(r"imgjob_[0-9a-f]{32}", queued(client))
