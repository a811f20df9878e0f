"""Image jobs of named keys: limits count when a job is drawn, and a job belongs to its key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from access import Use
from app import Container
from tests.conftest import MakeApp
from tests.waiting import wait_until

PATH, JOBS = "/v1/images/generations", "/v1/images/jobs"
BODY = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5", "response_format": "b64_json"}


class Keys:
    """An application with named keys."""

    def __init__(self, make_app: MakeApp, **settings: Any) -> None:
        app = make_app(**settings)
        self.client: FlaskClient = app.test_client()
        self.container: Container = app.extensions["easel"]
        self._texts: dict[str, str] = {}

    def add(self, name: str, *scopes: str, **limits: Any) -> None:
        _, self._texts[name] = self.container.gate.add_key(name, scopes or ("draw", "view"), limits)

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._texts[name]}"}

    def take_place(self, name: str) -> Use:
        """One of the places of a key, until it is closed."""
        key = self.container.gate.keys.current().named(name)
        assert key is not None
        use = Use(self.container.gate, key.caller)
        use.take_place()
        return use

    def post(self, name: str, **fields: Any) -> str:
        headers = {**self.headers(name), "Prefer": "respond-async"}
        response = self.client.post(PATH, json={**BODY, **fields}, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.get_json()["id"])

    def get(self, name: str, job_id: str) -> dict[str, Any]:
        response = self.client.get(f"{JOBS}/{job_id}", headers=self.headers(name))
        assert response.status_code == 200, response.text
        return dict(response.get_json())

    def usage(self, name: str) -> dict[str, Any]:
        response = self.client.get("/api/keys/me", headers=self.headers(name))
        return dict(response.get_json()["usage"]["total"])

    def wait_for(self, name: str, job_id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.get(name, job_id)["state"] == state)
        return self.get(name, job_id)


@pytest.fixture
def keys(make_app: MakeApp) -> Iterator[Keys]:
    keys = Keys(make_app)
    yield keys
    keys.container.job_workers.stop(60)


def start(keys: Keys) -> None:
    keys.container.job_workers.start()


def test_the_pictures_of_a_job_count_for_its_key(keys: Keys) -> None:
    keys.add("phone", pictures_per_day=10)
    job = keys.post("phone", n=2)
    assert (keys.usage("phone")["requests"], keys.usage("phone")["pictures"]) == (1, 0)
    start(keys)
    keys.wait_for("phone", job, "done")
    wait_until(lambda: keys.usage("phone")["gpu_s"] > 0)
    assert (keys.usage("phone")["requests"], keys.usage("phone")["pictures"]) == (1, 2)


def test_a_job_waits_until_its_key_may_draw_again(keys: Keys) -> None:
    keys.add("phone", pictures_per_minute=1)
    start(keys)
    keys.wait_for("phone", keys.post("phone"), "done")
    second = keys.post("phone")
    wait_until(lambda: "may use 1 pictures per minute" in (keys.get("phone", second)["waits_for"] or ""))
    wait_until(lambda: keys.get("phone", second)["state"] == "queued")


def test_a_job_that_is_larger_than_its_key_allows_fails(keys: Keys) -> None:
    keys.add("phone", max_size="128x128")
    job = keys.post("phone", size="256x256")
    start(keys)
    assert keys.wait_for("phone", job, "failed")["error"]["code"] == "auth.size_not_allowed"


def test_a_model_that_the_key_does_not_allow_is_refused_at_once(keys: Keys) -> None:
    keys.add("phone", models=["sdxl-turbo"])
    headers = {**keys.headers("phone"), "Prefer": "respond-async"}
    response = keys.client.post(PATH, json=BODY, headers=headers)
    assert (response.status_code, response.get_json()["error"]["code"]) == (403, "auth.model_not_allowed")


def test_the_queued_job_of_a_revoked_key_is_not_drawn(keys: Keys) -> None:
    keys.add("phone")
    keys.add("owner", "operate")
    job = keys.post("phone")
    keys.container.gate.revoke_key("phone")
    start(keys)
    assert keys.wait_for("owner", job, "failed")["error"]["code"] == "auth.key_ended"


def test_a_job_belongs_to_its_key_not_to_its_name(keys: Keys) -> None:
    keys.add("phone")
    keys.add("other")
    keys.add("owner", "operate")
    job = keys.post("phone")
    assert keys.client.get(f"{JOBS}/{job}", headers=keys.headers("other")).status_code == 404
    assert keys.client.delete(f"{JOBS}/{job}", headers=keys.headers("other")).status_code == 404
    assert keys.get("owner", job)["state"] == "queued"
    assert keys.get("owner", job)["key"] == "phone"
    assert keys.client.get(f"{JOBS}/{job}").status_code == 401
    cancelled = keys.client.post(f"{JOBS}/{job}/cancel", headers=keys.headers("owner"))
    assert cancelled.get_json()["state"] == "cancelled"
    keys.client.delete(f"{JOBS}/{job}", headers=keys.headers("owner"))  # has ended
    own = keys.post("phone")
    keys.client.delete(f"{JOBS}/{own}", headers=keys.headers("phone"))
    entries = [(entry.who, entry.action, entry.target) for entry in keys.container.audit.entries()]
    assert entries == [("owner", "jobs.cancel", {"id": job, "key": "phone"})]


def test_the_jobs_of_other_keys_are_drawn_while_a_key_waits_for_its_next_day(keys: Keys) -> None:
    keys.add("phone", pictures_per_day=1)
    keys.add("tablet")
    many = [keys.post("phone") for _ in range(10)]
    jobs = [keys.post("tablet") for _ in range(4)]
    start(keys)
    keys.wait_for("phone", many[0], "done")
    for job in jobs:
        keys.wait_for("tablet", job, "done")
    assert {keys.get("phone", job)["state"] for job in many[1:]} <= {"queued", "running"}


def test_the_jobs_of_a_damaged_key_file_wait_until_it_is_corrected(keys: Keys) -> None:
    keys.add("phone")
    job, gate = keys.post("phone"), keys.container.gate
    whole = gate.keys.path.read_bytes()
    gate.keys.path.write_text("nonsense")
    gate.keys.begin()  # a server starts
    queue = keys.container.image_jobs

    def reason() -> str:
        view = queue.get(job)
        return str((view.progress or ("", {}))[1].get("code", "")) if view is not None else ""

    start(keys)
    wait_until(lambda: reason() == "auth.keys_unreadable")
    gate.keys.path.write_bytes(whole)
    keys.wait_for("phone", job, "done")


def test_the_pictures_of_a_job_whose_process_was_killed_count_once(keys: Keys) -> None:
    keys.add("phone", pictures_per_day=1)
    job = keys.post("phone")
    kill_while_drawing(keys, job)
    assert keys.usage("phone")["pictures"] == 1
    start(keys)
    keys.wait_for("phone", job, "done")
    assert keys.usage("phone")["pictures"] == 1


def kill_while_drawing(keys: Keys, job: str) -> None:
    """Leave everything as a process does that is killed when it has counted the pictures of a job."""
    taken = keys.container.image_jobs.take()
    assert taken is not None
    assert taken.status.id == job
    taken.begin()
    admitted = keys.container.gate.admit_later(taken.status.owner, on_counted=taken.set_use)
    admitted.take_pictures(1).begin()
    taken._claim.release()


def test_pictures_that_a_killed_process_has_counted_are_given_back_if_they_are_not_drawn(keys: Keys) -> None:
    keys.add("phone", pictures_per_day=3, max_size="256x256")
    job = keys.post("phone", size="512x512")  # is refused before its pictures would be counted
    kill_while_drawing(keys, job)
    start(keys)
    assert keys.wait_for("phone", job, "failed")["error"]["code"] == "auth.size_not_allowed"
    assert keys.usage("phone")["pictures"] == 0


@pytest.mark.parametrize("use", [{}, {"number": "1"}, {"number": 1, "began": {"x": 0}}, {"number": -4}])
def test_a_damaged_count_is_none(keys: Keys, use: dict[str, Any]) -> None:
    keys.add("phone", pictures_per_day=3)
    job = keys.post("phone")
    taken = keys.container.image_jobs.take()
    assert taken is not None
    taken.set_use(use)
    taken.put_back()
    start(keys)
    keys.wait_for("phone", job, "done")
    assert keys.usage("phone")["pictures"] == 1


def test_a_retry_that_waits_for_its_job_leaves_it_the_only_place_of_the_key(make_app: MakeApp) -> None:
    keys = Keys(make_app, request_timeout_s=20)
    keys.add("phone", concurrent=1)
    once = {**keys.headers("phone"), "Idempotency-Key": "one"}
    later = {**once, "Prefer": "respond-async"}
    assert keys.client.post(PATH, json=BODY, headers=later, buffered=True).status_code == 202
    with ThreadPoolExecutor() as threads:
        retry = threads.submit(keys.client.post, PATH, json=BODY, headers=once)
        wait_until(lambda: keys.usage("phone")["requests"] == 2)
        start(keys)
        assert retry.result().status_code == 200
    keys.container.job_workers.stop(60)


def test_who_follows_a_job_or_waits_for_it_is_told_when_the_key_ends(keys: Keys) -> None:
    keys.add("phone")
    once = {**keys.headers("phone"), "Idempotency-Key": "one"}
    later = keys.client.post(PATH, json=BODY, headers={**once, "Prefer": "respond-async"})
    events = keys.client.get(f"{JOBS}/{later.get_json()['id']}/events", headers=once, buffered=False)
    with ThreadPoolExecutor() as threads:
        retry = threads.submit(keys.client.post, PATH, json=BODY, headers=once)
        wait_until(lambda: keys.usage("phone")["requests"] == 2)
        keys.container.gate.revoke_key("phone")
        assert (retry.result().status_code, retry.result().get_json()["error"]["code"]) == (
            *(401, "auth.key_ended"),
        )
    assert "auth.key_ended" in b"".join(events.iter_encoded()).decode().rpartition("event: error")[2]


def test_a_key_leaves_event_streams_to_others(keys: Keys) -> None:
    for name in ("phone", "laptop"):
        keys.add(name)
    own, other = (f"{JOBS}/{keys.post(name)}/events" for name in ("phone", "laptop"))
    streams = [keys.client.get(own, headers=keys.headers("phone"), buffered=False) for _ in range(48)]
    refused = keys.client.get(own, headers=keys.headers("phone"))
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "events.too_many_streams")
    assert "this key" in refused.get_json()["error"]["message"]
    streams += [keys.client.get(other, headers=keys.headers("laptop"), buffered=False) for _ in range(16)]
    assert {stream.status_code for stream in streams} == {200}
    assert keys.client.get(other, headers=keys.headers("laptop")).status_code == 503
    for stream in streams:
        stream.close()
    again = keys.client.get(own, headers=keys.headers("phone"), buffered=False)
    assert again.status_code == 200
    again.close()


def test_a_request_that_is_answered_later_needs_no_place_until_it_is_drawn(keys: Keys) -> None:
    keys.add("phone", concurrent=1)
    with contextlib.closing(keys.take_place("phone")):
        assert keys.client.post(PATH, json=BODY, headers=keys.headers("phone")).status_code == 429
        jobs = [keys.post("phone") for _ in range(3)]
    start(keys)
    for job in jobs:
        keys.wait_for("phone", job, "done")
    assert keys.usage("phone")["requests"] == 3


def test_a_request_with_an_idempotency_key_needs_a_place_only_to_draw(keys: Keys) -> None:
    keys.add("phone", concurrent=1)
    once = {**keys.headers("phone"), "Idempotency-Key": "one"}
    with contextlib.closing(keys.take_place("phone")):
        refused = keys.client.post(PATH, json=BODY, headers=once, buffered=True)
        assert refused.status_code == 429
        assert refused.get_json()["error"]["details"]["name"] == "concurrent"
    assert keys.client.post(PATH, json=BODY, headers=once, buffered=True).status_code == 200
    with contextlib.closing(keys.take_place("phone")):
        again = keys.client.post(PATH, json=BODY, headers=once, buffered=True)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")


def test_a_retry_that_joins_its_request_takes_no_second_place(keys: Keys) -> None:
    keys.add("phone", concurrent=1)
    arbiter, once = keys.container.arbiter, {**keys.headers("phone"), "Idempotency-Key": "one"}

    def draw() -> Any:
        return keys.client.post(PATH, json=BODY, headers=once, buffered=True)

    with ThreadPoolExecutor() as threads:
        with contextlib.ExitStack() as blockers:
            for number in range(2):
                blockers.enter_context(arbiter.lease("generation", job=f"blocker-{number}", timeout_s=5))
            first = threads.submit(draw)
            wait_until(lambda: any(claim.kind == "ticket" for claim in arbiter.claims.all()))
            retry = threads.submit(draw)
            wait_until(lambda: keys.usage("phone")["requests"] == 2)
            other = keys.client.post(PATH, json=BODY, headers=keys.headers("phone"), buffered=True)
            assert other.status_code == 429
        answers = [first.result(), retry.result()]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]
    assert keys.usage("phone")["pictures"] == 1
