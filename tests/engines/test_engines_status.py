"""What the status, /ready, the models and the metrics say of several engines."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from api.status_document import Audience, whole_status
from app import Container
from arbiter import Sender
from compiler import Catalogue, ImageRequest, Size
from engines.measured_costs import Cost, Costs, EndedJob
from generation import OutputOptions
from sketch import SketchProcess
from tests.api.test_key_permissions import schema_of
from tests.conftest import MakeApp
from tests.server.running import running, stopped
from tests.waiting import wait_until

STATUS = "/api/comfyui/status"
REQUEST = ImageRequest(prompt="a cat", seed=1, id="x", model="flux-schnell", size=Size(256, 256))
NOT_KEPT = OutputOptions(keep=False)

StartEngine = Callable[..., SketchProcess]


@pytest.fixture
def start_engine(shipped_catalogue: Catalogue) -> Iterator[StartEngine]:
    """Starts a sketch engine that needs `render_ms` for each job and has the files of all models, or `files`."""
    with contextlib.ExitStack() as running:

        def start(render_ms: float = 0, files: Any = None) -> SketchProcess:
            catalogue = shipped_catalogue
            sketch = SketchProcess(
                nodes=catalogue.nodes,
                files=catalogue.files if files is None else files,
                render_ms=render_ms,
            )
            return running.enter_context(sketch)

        yield start


def entries(*urls: str, **changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The setting `engines`: e0, e1, …"""
    return tuple(
        {"name": f"e{index}", "gpu": str(index), "url": url, **changes.get(f"e{index}", {})}
        for index, url in enumerate(urls)
    )


def status_of(client: FlaskClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get(STATUS).get_json()
    schema_of("ComfyuiStatus").validate(document)
    return document


def engines_of(client: FlaskClient) -> dict[str, dict[str, Any]]:
    return {engine["name"]: engine for engine in status_of(client)["engines"]}


def test_one_engine_has_an_entry_and_nothing_else_changes(client: FlaskClient) -> None:
    document = wait_until(lambda: (found := status_of(client))["reachable"] and found)
    (engine,) = document["engines"]
    assert (engine["name"], engine["gpu"], engine["models"], engine["weight"]) == ("engine", None, None, 1.0)
    for name in (
        "endpoint",
        "engine",
        "reachable",
        "problem",
        "sketch",
        "version",
        "mode",
        "queue",
        "memory",
    ):
        assert engine[name] == document[name]
    assert [engine[name] for name in ("shared", "drained", "switching", "waiting")] == [
        False,
        False,
        False,
        0,
    ]
    unmeasured = ("drained_since", "loaded_models", "seconds_per_job", "pictures_per_hour")
    assert [engine[name] for name in unmeasured] == [None] * 4
    assert not any("engines" in model for model in document["models"])


def test_each_engine_has_what_is_known_of_it(make_app: MakeApp, start_engine: StartEngine) -> None:
    urls = [start_engine().url, start_engine().url]
    app = make_app(
        engine__url="", engines=entries(*urls, e1={"models": ["sd-1.5", "flux-schnell"], "weight": 2.5})
    )
    container: Container = app.extensions["easel"]
    second = container.fleet.units[1]
    assert second.costs is not None
    history = [EndedJob("flux-schnell", time.time() - ago_s, 2) for ago_s in (10, 20, 4000)]
    second.costs.write(Costs(tuple(history), {"flux-schnell": Cost(1.0)}))
    assert container.fleet.drains is not None
    container.fleet.drains.set("e1", is_drained=True)
    client = app.test_client()
    engines = wait_until(lambda: (found := engines_of(client))["e1"]["reachable"] and found)
    assert list(engines) == ["e0", "e1"]
    first, second_entry = engines.values()
    assert [each["endpoint"] for each in engines.values()] == urls
    assert (first["gpu"], first["models"], first["weight"], first["drained"]) == ("0", None, 1.0, False)
    assert (first["loaded_models"], first["pictures_per_hour"]) == ([], 0)
    assert (second_entry["models"], second_entry["weight"]) == (["flux-schnell", "sd-1.5"], 2.5)
    assert (second_entry["loaded_models"], second_entry["pictures_per_hour"]) == (["flux-schnell"], 4)
    assert second_entry["drained"]
    assert time.time() - second_entry["drained_since"] < 60
    assert (second_entry["sketch"], second_entry["engine"], second_entry["problem"]) == (
        True,
        "running",
        None,
    )


def test_jobs_tickets_and_requests_are_those_of_all_engines(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    app = make_app(engine__url="", engines=entries(start_engine().url, start_engine().url))
    container: Container = app.extensions["easel"]
    client = app.test_client()
    first, second = (unit.arbiter for unit in container.fleet.units)
    with contextlib.ExitStack() as held:
        # Of four pictures the first is finished, two are drawn, each by an engine, and the last has not begun.
        jobs = ["a", "b", "c", "d"]
        for arbiter in (first, second):
            held.enter_context(
                arbiter.listed("r1", model="sdxl", jobs=jobs, sender=Sender("mine", "192.0.2.1"))
            )
        held.enter_context(second.listed("r2", model="sd15", jobs=["e"], sender=Sender("yours")))
        for arbiter, job in ((second, "b"), (first, "c"), (second, "e")):
            held.enter_context(arbiter.lease("generation", job=job, timeout_s=5))
        second.job_progress.report("b", 5, 10)
        first.job_progress.report("c", 2, 10)
        document = status_of(client)
        assert [(job["engine"], job["id"], job["request_id"]) for job in document["jobs"]] == [
            ("e0", "c", "mine"),
            ("e1", "b", "mine"),
            ("e1", "e", "yours"),
        ]
        assert document["step"] == "2/10", "that of the first engine"
        spread, single = document["requests"]
        assert (spread["id"], spread["engine"], spread["state"], spread["step"]) == ("r1", "e0", "drawing", 2)
        assert spread["progress"] == pytest.approx((1 + 0.5 + 0.2) / 4, abs=0.001)
        assert (single["id"], single["engine"], single["progress"]) == ("r2", "e1", None)


def test_a_request_that_waits_says_for_which_engine_and_can_be_cancelled_by_its_id(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    app = make_app(
        engine__url="",
        engines=entries(start_engine().url, start_engine(60_000).url, e0={"models": ["sd-1.5"]}),
    )
    container: Container = app.extensions["easel"]
    client = app.test_client()
    second = container.fleet.units[1]
    generator = container.generator
    with contextlib.ExitStack() as others:
        for job in ("one", "two"):
            others.enter_context(second.arbiter.lease("generation", job=job, timeout_s=60))
        drawing = generator.prepare(REQUEST, timeout_s=120)
        failures: list[BaseException] = []

        def draw() -> None:
            try:
                list(drawing.images(NOT_KEPT, sender=Sender("client-1")))
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=draw)
        thread.start()
        document = wait_until(lambda: (found := status_of(client))["tickets"] and found)
        (ticket,) = document["tickets"]
        assert (ticket["engine"], ticket["place"], ticket["request_id"]) == ("e1", 0, "client-1")
        assert [engine["waiting"] for engine in document["engines"]] == [0, 1]
        assert client.post("/api/comfyui/render/cancel", json={"id": ticket["id"]}).status_code == 202
        thread.join(60)
    assert [type(error).__name__ for error in failures] == ["RenderCancelled"]


def test_an_engine_that_is_killed_is_reported_and_pictures_go_on(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    first, second = start_engine(), start_engine()
    app = make_app(engine__url="", engines=entries(first.url, second.url))
    client = app.test_client()
    wait_until(lambda: all(each["reachable"] for each in engines_of(client).values()))
    wait_until(lambda: client.get("/ready").status_code == 200)
    second.stop()
    began = time.monotonic()
    dead = wait_until(lambda: not (found := engines_of(client))["e1"]["reachable"] and found["e1"])
    assert time.monotonic() - began < 10
    assert (dead["engine"], dead["memory"], dead["endpoint"]) == ("stopped", None, second.url)
    assert dead["problem"]["code"] == "engine.unreachable"
    document = status_of(client)
    assert (document["reachable"], document["problem"]) == (True, None), "they describe the first engine"
    first_ready = client.get("/ready")
    assert (first_ready.status_code, first_ready.get_json()["status"]) == (200, "ready")
    drawn = client.post("/v1/images/generations", json={"prompt": "a cat", "size": "256x256"})
    assert drawn.status_code == 200
    first.stop()
    wait_until(lambda: client.get("/ready").get_json()["status"] == "engine_unreachable")


def test_the_second_engine_is_enough_to_be_ready(make_app: MakeApp, start_engine: StartEngine) -> None:
    first, second = start_engine(), start_engine()
    app = make_app(engine__url="", engines=entries(first.url, second.url))
    first.stop()
    client = app.test_client()
    wait_until(lambda: client.get("/ready").status_code == 200)
    document = wait_until(lambda: (found := status_of(client))["models"] and found)
    assert (document["reachable"], document["engine"]) == (False, "stopped")
    assert document["problem"]["code"] == "engine.unreachable"
    container: Container = app.extensions["easel"]
    assert container.fleet.drains is not None
    container.fleet.drains.set("e1", is_drained=True)
    ready = wait_until(lambda: (answer := client.get("/ready")).status_code == 503 and answer.get_json())
    assert (ready["status"], ready["engine"]["code"]) == ("engine_not_usable", "engine.drained")


def test_an_engine_that_never_answers_delays_neither_the_status_nor_ready(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        app = make_app(engine__url="", engines=entries(silent_url, start_engine().url))
        client = app.test_client()
        wait_until(lambda: engines_of(client)["e1"]["reachable"])
        wait_until(lambda: client.get("/ready").status_code == 200)
        for _ in range(4):
            time.sleep(1.1)  # a new round each time
            began = time.monotonic()
            document = status_of(client)
            assert (document["engines"][1]["reachable"], document["engines"][0]["reachable"]) == (True, False)
            assert client.get("/ready").status_code == 200
            assert time.monotonic() - began < 1.5
        # The facts of the other engine are as new as ever.
        assert time.time() - status_of(client)["probed_at"] < 2.5


def test_a_model_is_ready_if_one_engine_has_its_files(
    make_app: MakeApp, start_engine: StartEngine, catalogue_files: dict[str, list[str]]
) -> None:
    nothing: dict[str, list[str]] = {folder: [] for folder in catalogue_files}
    second = start_engine()
    app = make_app(
        engine__url="",
        engines=entries(
            start_engine(files=nothing).url, second.url, e1={"models": ["sd-1.5", "flux-schnell"]}
        ),
    )
    container: Container = app.extensions["easel"]
    client = app.test_client()
    able = {"sd-1.5-pruned-emaonly", "flux-schnell"}  # the settings have an alias of the first one

    def models() -> dict[str, dict[str, Any]]:
        return {model["id"]: model for model in status_of(client)["models"]}

    def are_checked() -> bool:
        now = models()
        is_complete = len(now) == len(container.catalogue().visible_models)
        return is_complete and {id for id, model in now.items() if model["ready"]} == able

    wait_until(are_checked, timeout_s=60)
    found = models()
    assert found["sd-1.5-pruned-emaonly"]["engines"] == ["e1"]
    others = [model for id, model in found.items() if id not in able]
    assert all(model["engines"] == [] and model["code"] for model in others)

    def listed() -> set[str]:
        return {each["id"] for each in client.get("/v1/models").get_json()["data"]}

    wait_until(lambda: "sdxl-base-1.0" not in listed(), timeout_s=30)
    assert able <= listed()
    assert client.get("/ready").status_code == 200
    second.stop()
    wait_until(lambda: client.get("/ready").get_json()["status"] == "no_model", timeout_s=30)
    assert models()["flux-schnell"]["ready"], "what was known of an engine that does not answer holds"


def test_a_new_process_keeps_what_others_knew_of_an_engine_that_is_down(
    make_app: MakeApp, start_engine: StartEngine, catalogue_files: dict[str, list[str]]
) -> None:
    nothing: dict[str, list[str]] = {folder: [] for folder in catalogue_files}
    first, second = start_engine(files=nothing), start_engine()
    engines = entries(first.url, second.url, e1={"models": ["flux-schnell"]})
    container: Container = make_app(engine__url="", engines=engines).extensions["easel"]

    def flux_of(one: Container) -> dict[str, Any]:
        models = {model["id"]: model for model in one.system_status.report()["models"]}
        return models.get("flux-schnell", {})

    wait_until(lambda: flux_of(container).get("ready"), timeout_s=60)
    second.stop()
    new: Container = make_app(engine__url="", engines=engines).extensions["easel"]

    def has_checked() -> bool:
        new.system_status.report()
        models = new.readiness.models(0)
        return models is not None and models.is_complete

    wait_until(has_checked, timeout_s=60)
    states = new.readiness.models(0)
    assert states is not None
    assert states.unknown_engines == {"e1"}
    for _ in range(3):
        time.sleep(1.1)  # a round of this process
        assert flux_of(new)["ready"]
        assert flux_of(new)["engines"] == ["e1"]


def test_who_may_not_see_messages_sees_no_addresses_and_messages_of_engines(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    dead = start_engine()
    container: Container = make_app(engine__url="", engines=entries(start_engine().url, dead.url)).extensions[
        "easel"
    ]
    dead.stop()
    document = wait_until(
        lambda: (found := whole_status(container.services))["engines"][1]["problem"] and found
    )
    hidden = Audience("key", sees_all=False, sees_messages=False).part_of(document)["engines"]
    shown = Audience("key", sees_all=False).part_of(document)["engines"]
    assert [engine["endpoint"] for engine in hidden] == [None, None]
    assert hidden[1]["problem"] == {"code": "engine.unreachable", "message": None}
    assert (shown[1]["endpoint"], bool(shown[1]["problem"]["message"])) == (dead.url, True)
    schema_of("ComfyuiStatus").validate({**document, "engines": hidden})


def test_the_processes_of_a_server_share_what_they_know_of_the_engines(
    tmp_path: Path, start_engine: StartEngine
) -> None:
    first, second = start_engine(), start_engine()
    listed = json.dumps(
        entries(first.url, second.url, e0={"models": ["sdxl-turbo"]}, e1={"models": ["flux-schnell"]})
    )
    with running(tmp_path / "state", EASEL_ENGINES=listed, EASEL_WORKERS="3") as server:

        def engines() -> tuple[bool, ...]:
            """Whether each answers, as the worker says that takes this connection"""
            document = requests.get(server.url + STATUS, timeout=60).json()
            return tuple(engine["reachable"] for engine in document["engines"])

        wait_until(lambda: len(server.workers()) == 3)
        workers = server.workers()
        wait_until(lambda: engines() == (True, True))
        assert server.draw(n=2, model="flux-schnell").status_code == 200
        second.stop()
        wait_until(lambda: engines() == (True, False))
        answers = []
        for worker in workers:
            with contextlib.ExitStack() as others:
                for other in workers:
                    if other != worker:
                        others.enter_context(stopped(other))
                answers.append((engines(), server.draw(model="sdxl-turbo").status_code))
        assert answers == [((True, False), 200)] * 3
        text = requests.get(f"{server.url}/metrics", timeout=60).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['easel_engines_pictures_total{engine="e0"}'] == "3.0"
    assert values['easel_engines_pictures_total{engine="e1"}'] == "2.0"
    assert float(values['easel_engines_busy_seconds_total{engine="e0"}']) > 0
    assert values['easel_engines_up{engine="e0"}'] == "1.0"
    assert values['easel_engines_up{engine="e1"}'] == "0.0"
