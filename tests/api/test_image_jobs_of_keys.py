"""Image jobs of named keys: limits count when a job is drawn, and a job belongs to its key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import Container
from tests.conftest import MakeApp
from tests.waiting import wait_until

PATH, JOBS = "/v1/images/generations", "/v1/images/jobs"
BODY = {"prompt": "a cat", "size": "256x256", "model": "sd-1.5", "response_format": "b64_json"}


class Keys:
    """An application with named keys."""

    def __init__(self, make_app: MakeApp) -> None:
        app = make_app()
        self.client: FlaskClient = app.test_client()
        self.container: Container = app.extensions["easel"]
        self._texts: dict[str, str] = {}

    def add(self, name: str, *scopes: str, **limits: Any) -> None:
        _, self._texts[name] = self.container.gate.add_key(name, scopes or ("draw", "view"), limits)

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._texts[name]}"}

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
    first, second = keys.post("phone"), keys.post("phone")
    start(keys)
    keys.wait_for("phone", first, "done")
    wait_until(lambda: "may use 1 pictures per minute" in (keys.get("phone", second)["waits_for"] or ""))
    assert keys.get("phone", second)["state"] == "running"


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
    assert keys.client.get(f"{JOBS}/{job}").status_code == 401
    cancelled = keys.client.post(f"{JOBS}/{job}/cancel", headers=keys.headers("owner"))
    assert cancelled.get_json()["state"] == "cancelled"
