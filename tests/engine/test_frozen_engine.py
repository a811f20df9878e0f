"""A request ends when its time is over, whatever the engine does and in which phase."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask.testing import FlaskClient
from freezing_proxy import FreezingProxy
from PIL import Image

from sketch import SketchProcess
from tests.conftest import NODES, MakeApp
from tests.waiting import wait_until

REQUEST_TIMEOUT_S = 1.0
SLACK_S = 3.0
"""For a busy machine. The brief wait for a cancel and for erasing the uploads is part of it."""


@pytest.fixture
def proxy(sketch_url: str) -> Iterator[FreezingProxy]:
    with FreezingProxy(sketch_url) as proxy:
        yield proxy


@pytest.fixture
def client(make_app: MakeApp, proxy: FreezingProxy) -> FlaskClient:
    return make_app(engine__url=proxy.url, request_timeout_s=REQUEST_TIMEOUT_S).test_client()


def edit(client: FlaskClient, timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[int, str]:
    """Status and error code of an edit, which goes through every phase. It must end in time."""
    photo = io.BytesIO()
    Image.new("RGB", (256, 256), (10, 200, 30)).save(photo, "PNG")
    photo.seek(0)
    started_at = time.monotonic()
    response = client.post(
        "/v1/images/edits",
        data={"prompt": "a hat", "model": "sd-1.5", "image": (photo, "photo.png")},
        content_type="multipart/form-data",
    )
    assert time.monotonic() - started_at < timeout_s + SLACK_S
    return response.status_code, (response.get_json().get("error") or {}).get("code")


ENDED = [(503, "engine.unreachable"), (504, "engine.timeout")]
"""The second if the time was over before or between two calls"""


def edit_until_it_reaches(
    path: str, client: FlaskClient, proxy: FreezingProxy, timeout_s: float = REQUEST_TIMEOUT_S
) -> None:
    """On a busy machine the time may be over before the request comes to this path."""

    def reaches() -> bool:
        assert edit(client, timeout_s) in ENDED
        return any(seen.startswith(path) for seen in proxy.paths)

    wait_until(reaches)


PATHS = ["/system_stats", "/object_info", "/upload/image", "/ws", "/prompt", "/view"]


@pytest.mark.parametrize("path", PATHS)
def test_an_engine_that_says_nothing_does_not_hold_a_request(
    client: FlaskClient, proxy: FreezingProxy, path: str
) -> None:
    proxy.frozen, proxy.has_socket_output = {path: "silent"}, path != "/view"
    edit_until_it_reaches(path, client, proxy)


@pytest.mark.parametrize("manner", ["dripping head", "half body", "dripping body"])
@pytest.mark.parametrize("path", ["/object_info", "/prompt", "/view"])
def test_an_engine_that_answers_byte_by_byte_or_stops_in_the_middle_does_not_hold_a_request(
    client: FlaskClient, proxy: FreezingProxy, path: str, manner: str
) -> None:
    proxy.frozen, proxy.has_socket_output = {path: manner}, path != "/view"
    edit_until_it_reaches(path, client, proxy)


@pytest.mark.parametrize(("path", "render_ms"), [("/queue", 600_000), ("/history", 0)])
def test_an_engine_that_freezes_while_the_job_runs_does_not_hold_a_request(
    make_app: MakeApp, catalogue_files: dict[str, list[str]], path: str, render_ms: float
) -> None:
    timeout_s = 2.0  # a job without events is looked for after a second: in the queue, and once it has left that in history
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=render_ms) as engine,
        FreezingProxy(engine.url) as proxy,
    ):
        client = make_app(engine__url=proxy.url, request_timeout_s=timeout_s).test_client()
        proxy.frozen, proxy.passes_events = {path: "silent"}, False
        edit_until_it_reaches(path, client, proxy, timeout_s)


def test_an_engine_that_freezes_completely_holds_no_request_of_many(
    client: FlaskClient, proxy: FreezingProxy
) -> None:
    proxy.frozen = {"/": "silent"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: edit(client.application.test_client()), range(8)))
    assert [answer for answer in answers if answer not in ENDED] == []


def test_the_pictures_of_a_request_whose_time_has_ended_are_erased_in_the_background(
    client: FlaskClient, proxy: FreezingProxy
) -> None:
    proxy.frozen = {"/prompt": "silent"}
    edit_until_it_reaches("/prompt", client, proxy)
    wait_until(
        lambda: proxy.paths.count("/upload/image") >= 2 and proxy.paths.count("/upload/image") % 2 == 0
    )


def test_it_draws_again_once_the_engine_answers(client: FlaskClient, proxy: FreezingProxy) -> None:
    proxy.frozen = {"/": "silent"}
    assert edit(client) in ENDED
    proxy.frozen = {}
    wait_until(lambda: edit(client)[0] == 200)
