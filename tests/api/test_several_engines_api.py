"""Several engines as clients see them, and the command that controls them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from app import Container
from compiler import Catalogue
from engines.measured_costs import Cost, Costs
from sketch import SketchProcess
from tests.api.sse import stream
from tests.conftest import ROOT, MakeApp
from tests.llm.fake_servers import FakeLlamaServer
from tests.waiting import wait_until

SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas/image_response.schema.json").read_text()))
ROUTE = "/v1/images/generations"
BODY: dict[str, Any] = {
    "model": "flux-schnell",
    "prompt": "a cat",
    "size": "256x256",
    "response_format": "b64_json",
}


@pytest.fixture
def sketches(shipped_catalogue: Catalogue) -> Iterator[tuple[SketchProcess, SketchProcess]]:
    catalogue = shipped_catalogue

    def engine(render_ms: float) -> SketchProcess:
        return SketchProcess(nodes=catalogue.nodes, files=catalogue.files, render_ms=render_ms)

    with engine(200) as one, engine(200) as two:
        yield one, two


@pytest.fixture
def container(make_app: MakeApp, sketches: tuple[SketchProcess, SketchProcess]) -> Container:
    entries = tuple({"name": f"e{index}", "url": sketch.url} for index, sketch in enumerate(sketches))
    container: Container = make_app(engine__url="", engines=entries).extensions["easel"]
    for unit in container.fleet.units:
        assert unit.costs is not None
        unit.costs.write(Costs((), {"flux-schnell": Cost(0.2, 0.2)}))
    return container


@pytest.fixture
def client(container: Container, make_app: MakeApp) -> FlaskClient:
    app = make_app(engine__url="", engines=container.settings["engines"])
    return app.test_client()


def drawn(client: FlaskClient, **more: Any) -> dict[str, Any]:
    response = client.post(ROUTE, json=BODY | more)
    assert response.status_code == 200, response.get_json()
    document: dict[str, Any] = response.get_json()
    SCHEMA.validate(document)
    return document


def test_the_answer_says_which_engine_drew_each_picture(client: FlaskClient) -> None:
    document = drawn(client, n=4, seed=10)
    images = document["_hal0"]["images"]
    assert [image["seed"] for image in images] == [10, 11, 12, 13]
    assert {image["engine"] for image in images} == {"e0", "e1"}
    assert "redrawn" not in document["_hal0"]
    assert len({entry["b64_json"] for entry in document["data"]}) == 4


def test_a_kept_image_says_which_engine_drew_it_also_after_a_restart(
    client: FlaskClient, container: Container, make_app: MakeApp
) -> None:
    document = drawn(client, n=4, seed=10, response_format="url")
    expected = {image["seed"]: image["engine"] for image in document["_hal0"]["images"]}
    assert set(expected.values()) == {"e0", "e1"}
    again = make_app(engine__url="", engines=container.settings["engines"]).test_client()
    for each in (client, again):
        images = each.get("/api/images").get_json()["images"]
        assert {image["seed"]: image["engine"] for image in images} == expected


def test_the_answer_says_that_a_job_was_drawn_again(
    client: FlaskClient, container: Container, sketches: tuple[SketchProcess, SketchProcess]
) -> None:
    first = container.fleet.units[0]

    def kill() -> None:
        wait_until(lambda: first.engine().queue().running)
        assert sketches[0].pid is not None
        os.kill(sketches[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    document = drawn(client, n=4, seed=10)
    killer.join()
    information = document["_hal0"]
    assert [image["seed"] for image in information["images"]] == [10, 11, 12, 13]
    again = [each["prompt_id"] for each in information["redrawn"]]
    assert again
    assert {each["engine"] for each in information["redrawn"]} == {"e1"}
    assert {i["engine"] for i in information["images"] if i["prompt_id"] in again} == {"e1"}


def test_the_pictures_of_a_stream_keep_their_order(client: FlaskClient) -> None:
    events = [
        event.data for event in stream(client, ROUTE, **BODY, n=5, seed=20) if isinstance(event.data, dict)
    ]
    assert [event["_hal0"]["images"][0]["seed"] for event in events] == [20, 21, 22, 23, 24]


def test_a_job_of_a_request_is_cancelled_whichever_engine_has_it(
    client: FlaskClient, container: Container
) -> None:
    answers: list[Any] = []

    def draw() -> None:
        answers.append(client.post(ROUTE, json=BODY | {"n": 8}, headers={"x-request-id": "mine"}))

    thread = threading.Thread(target=draw)
    thread.start()
    wait_until(lambda: all(unit.engine().queue().running for unit in container.fleet.units))
    response = client.post("/api/comfyui/render/cancel", json={"id": "mine"})
    assert response.status_code == 202
    thread.join(60)
    assert answers[0].status_code == 409
    assert answers[0].get_json()["error"]["code"] == "comfyui.cancelled"
    response = client.post("/api/comfyui/render/cancel", json={"id": "mine"})
    assert response.get_json()["error"]["code"] == "comfyui.job_not_found"


def test_drained_engines_refuse_with_a_stable_code(client: FlaskClient, container: Container) -> None:
    for unit in container.fleet.units:
        assert container.fleet.drains is not None
        container.fleet.drains.set(unit.name, is_drained=True)
    response = client.post(ROUTE, json=BODY)
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "engine.drained")
    assert response.headers["x-should-retry"] == "true"


def test_each_gpu_is_switched_by_its_name(
    make_app: MakeApp, sketches: tuple[SketchProcess, SketchProcess]
) -> None:
    with FakeLlamaServer() as llama:
        app = make_app(
            engine__url="",
            engines=tuple(
                {"name": f"e{i}", "url": each.url, "gpu": str(i)} for i, each in enumerate(sketches)
            ),
            llm__stacks=({"driver": "llama-server", "url": llama.url, "gpu": "1"},),
            gpu__min_stay_s=0,
        )
        container: Container = app.extensions["easel"]
        client = app.test_client()
        units = container.fleet.units
        for unit in units:
            unit.arbiter.reconciler.start()
        try:
            body = {"mode": "generation"}
            assert client.post("/api/comfyui/switchover", json=body).status_code == 503  # GPU 0 is not shared
            response = client.post("/api/comfyui/switchover", json=body | {"gpu": "1"})
            assert response.status_code == 202
            wait_until(lambda: units[1].arbiter.snapshot().state.mode == "generation")
            assert client.post("/api/comfyui/pin", json={"pinned": True, "gpu": "1"}).status_code == 200
            assert units[1].arbiter.snapshot().state.pinned
            for wrong in ("2", 1, ["1"], ""):
                error = client.post("/api/comfyui/switchover", json=body | {"gpu": wrong}).get_json()["error"]
                assert (error["code"], error["param"]) == ("request.invalid_value", "gpu")
        finally:
            for unit in units:
                unit.arbiter.reconciler.stop()


# --- easel engines ---------------------------------------------------------------------------------


def run(container: Container, make_app: MakeApp, *arguments: str) -> tuple[int, str]:
    app = make_app(engine__url="", engines=container.settings["engines"])
    result = app.test_cli_runner().invoke(args=["engines", *arguments])
    return result.exit_code, result.output


def test_the_command_lists_engines_and_drains_them(container: Container, make_app: MakeApp) -> None:
    code, output = run(container, make_app, "list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["e0", "e1"]
    assert "0 running, 0 waiting" in output
    assert run(container, make_app, "drain", "e0", "--wait", "5") == (0, "The engine e0 is drained.\n")
    reports = json.loads(run(container, make_app, "list", "--json")[1])
    assert [report["drained_since"] is not None for report in reports] == [True, False]
    assert "drained since 20" in run(container, make_app, "list")[1]
    assert run(container, make_app, "resume", "e0")[0] == 0
    assert container.fleet.drains is not None
    assert not container.fleet.drains.all()
    actions = [entry.action for entry in container.audit.entries()]
    assert actions[-2:] == ["engines.drain", "engines.resume"]
    code, output = run(container, make_app, "drain", "e7")
    assert code == 2
    assert "there are: e0, e1" in output


def test_draining_waits_for_the_last_job_no_longer_than_it_is_told(
    container: Container, make_app: MakeApp
) -> None:
    with container.fleet.units[0].arbiter.lease("generation", job="slow", timeout_s=60):
        began = time.monotonic()
        code, output = run(container, make_app, "drain", "e0", "--wait", "1")
        assert time.monotonic() - began >= 1
    assert code == 2
    assert "still has 1 job" in output


def test_the_command_says_which_engine_would_draw_and_why_none_can(
    container: Container, make_app: MakeApp
) -> None:
    code, output = run(container, make_app, "explain", "flux-schnell")
    assert code == 0
    assert output.startswith("e0: ")
    assert "2. e1" in output
    assert run(container, make_app, "explain", "no-such-model")[0] == 2
    for name in ("e0", "e1"):
        run(container, make_app, "drain", name)
    code, output = run(container, make_app, "explain", "flux-schnell")
    assert code == 3
    assert output.startswith("engine.drained: ")


def test_an_engine_that_does_not_answer_is_listed_as_such(
    container: Container, make_app: MakeApp, sketches: tuple[SketchProcess, SketchProcess]
) -> None:
    sketches[1].stop()
    code, output = run(container, make_app, "list")
    assert code == 0
    assert "connection refused" in output.splitlines()[1]


def test_the_only_engine_cannot_be_drained(make_app: MakeApp) -> None:
    result = make_app().test_cli_runner().invoke(args=["engines", "drain", "engine"])
    assert result.exit_code == 2
    assert "List it under `engines`" in result.output
