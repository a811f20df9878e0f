"""GET /ready: whether pictures can be drawn now, answered in time whatever the engine does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from freezing_proxy import FreezingProxy

from app import Container
from bench.compiling import multiply_models
from compiler import Catalogue, Compiled
from deadline import time_limit
from engine import Engine
from errors import EngineUnreachable
from generation import Generator, warm_up
from sketch import SketchProcess
from status.engine_readiness import _Checks
from status.shared_probe import SharedProbe
from tests.conftest import NODES, SMALL_CATALOGUE, MakeApp
from tests.waiting import wait_until

ANSWER_TIMEOUT_S = 4.0
"""It promises 2 s; a busy machine may take longer"""


@pytest.fixture
def make_app(make_app: MakeApp) -> MakeApp:
    """With the small catalogue: the tests count its models."""
    small = {
        "catalogue": str(SMALL_CATALOGUE / "catalogue.yaml"),
        "templates": str(SMALL_CATALOGUE / "templates_wf"),
    }
    return lambda **settings: make_app(**{**small, **settings})


def ready(client: FlaskClient) -> tuple[int, dict[str, Any]]:
    started_at = time.monotonic()
    response = client.get("/ready")
    assert time.monotonic() - started_at < ANSWER_TIMEOUT_S
    return response.status_code, response.get_json()


def known(client: FlaskClient) -> tuple[int, dict[str, Any]]:
    """The answer once the models are known, which on a busy machine may take longer than one request waits."""
    return wait_until(lambda: answer if (answer := ready(client))[1]["status"] != "checking_models" else None)


@pytest.fixture
def proxy(sketch_url: str) -> Iterator[FreezingProxy]:
    with FreezingProxy(sketch_url) as proxy:
        yield proxy


@pytest.mark.parametrize("path", ["/system_stats", "/ws", "/"])
@pytest.mark.parametrize("manner", ["silent", "dripping head", "half body"])
def test_it_answers_in_time_while_the_engine_is_frozen_and_is_ready_again_afterwards(
    make_app: MakeApp, proxy: FreezingProxy, path: str, manner: str
) -> None:
    app = make_app(engine__url=proxy.url)
    app.extensions["easel"].prepare_catalogue()  # as a server does when it starts
    client = app.test_client()
    proxy.frozen = {path: manner}
    status, body = ready(client)
    assert status == 503
    assert body["engine"]["code"] == "engine.unreachable"
    proxy.frozen = {}
    wait_until(lambda: ready(client)[0] == 200)


def test_it_answers_in_time_while_the_nodes_are_slow_and_keeps_the_last_known_models(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    client = make_app(engine__url=proxy.url).test_client()
    proxy.frozen = {"/object_info": "silent"}
    status, body = ready(client)
    assert (status, body["status"], body["engine"]["code"]) == (503, "checking_models", None)
    other = make_app(engine__url=proxy.url).test_client()
    proxy.frozen = {}
    assert known(other)[0] == 200
    # The models are asked for again after two seconds, which this test therefore takes.
    asked = proxy.paths.count("/object_info/CheckpointLoaderSimple")
    proxy.frozen = {"/object_info": "silent"}
    wait_until(lambda: ready(other)[0] and proxy.paths.count("/object_info/CheckpointLoaderSimple") > asked)
    assert ready(other)[0] == 200


@pytest.mark.parametrize(
    ("status", "code"),
    [("500", "engine.unreachable"), ("403", "engine.access_denied"), ("302", "engine.unreachable")],
)
def test_nodes_that_the_engine_does_not_describe_are_named_and_stop_only_their_models(
    make_app: MakeApp, proxy: FreezingProxy, status: str, code: str
) -> None:
    proxy.frozen = {"/object_info/UNETLoader": status}
    answer, body = known(make_app(engine__url=proxy.url).test_client())
    assert (answer, body["status"]) == (200, "ready")
    (problem,) = [entry for entry in body["models_not_ready"] if entry["model"] == "flux-schnell"]
    assert problem["code"] == code
    assert len(body["models_not_ready"]) < body["catalogue"]["models"]
    proxy.frozen = {"/object_info": status}
    answer, body = known(make_app(engine__url=proxy.url).test_client())
    assert (answer, body["status"]) == (503, "no_model")
    assert {entry["code"] for entry in body["models_not_ready"]} == {code}


def test_many_callers_share_one_probe(make_app: MakeApp, proxy: FreezingProxy) -> None:
    app = make_app(engine__url=proxy.url)
    assert known(app.test_client())[0] == 200
    proxy.paths.clear()
    began_at = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ready(app.test_client())[0], range(64)))
    rounds = time.monotonic() - began_at + 1
    assert set(answers) == {200}
    assert proxy.paths.count("/system_stats") <= rounds


def without(files: dict[str, list[str]], *names: str) -> dict[str, list[str]]:
    return {folder: [name for name in listed if name not in names] for folder, listed in files.items()}


@pytest.mark.parametrize("keys", [(), ("k",)])
def test_a_lost_file_of_the_default_model_is_a_warning_and_one_of_every_model_is_not_ready(
    make_app: MakeApp, catalogue_files: dict[str, list[str]], keys: tuple[str, ...]
) -> None:
    lost = without(catalogue_files, "sd_xl_turbo_1.0_fp16.safetensors")
    with SketchProcess(nodes=NODES, files=lost) as sketch:
        status, body = known(make_app(engine__url=sketch.url, api_keys=keys).test_client())
    assert (status, body["status"]) == (200, "ready")
    (warning,) = body["warnings"]
    assert (warning["model"], warning["code"]) == ("sdxl-turbo", "model.files_missing")
    assert warning["missing"] == ([] if keys else ["sd_xl_turbo_1.0_fp16.safetensors"])
    assert warning in body["models_not_ready"]
    with SketchProcess(nodes=NODES, files={}) as sketch:
        status, body = known(make_app(engine__url=sketch.url, api_keys=keys).test_client())
    assert (status, body["status"]) == (503, "no_model")
    assert len(body["models_not_ready"]) == body["catalogue"]["models"]


def test_a_file_that_is_lost_and_put_back_shows_without_a_restart(
    make_app: MakeApp, catalogue_files: dict[str, list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "files.json"
    path.write_text(json.dumps(catalogue_files))
    with SketchProcess(nodes=NODES, files=path) as sketch:
        client = make_app(engine__url=sketch.url).test_client()
        assert known(client)[1]["warnings"] == []
        for files, lacks in (
            (without(catalogue_files, "sd_xl_turbo_1.0_fp16.safetensors"), True),
            (catalogue_files, False),
        ):
            replacement = tmp_path / "new.json"
            replacement.write_text(json.dumps(files))
            replacement.rename(path)
            wait_until(lambda lacks=lacks: bool(ready(client)[1]["warnings"]) is lacks)
            assert ready(client)[0] == 200


def test_a_server_is_ready_while_the_nodes_of_other_models_are_slow(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    proxy.frozen = {"/object_info/UNETLoader": "silent"}
    status, body = known(make_app(engine__url=proxy.url).test_client())
    assert (status, body["status"], body["models_not_ready"]) == (200, "ready", [])


class CountingGenerator(Generator):
    """Counts the models that are checked."""

    def __init__(self, generator: Generator) -> None:
        vars(self).update(vars(generator))
        self.checks = 0

    def check_graphs(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> None:
        self.checks += 1
        super().check_graphs(compiled, catalogue, engine)


def test_only_models_that_use_a_changed_node_are_checked_again(
    make_app: MakeApp, catalogue_files: dict[str, list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "files.json"
    path.write_text(json.dumps(catalogue_files))
    with SketchProcess(nodes=NODES, files=path) as sketch:
        container: Container = make_app(engine__url=sketch.url).extensions["easel"]
        generator = CountingGenerator(container.generator)
        checks = _Checks(generator)
        engine = generator.engine()
        for _ in range(3):
            checks.update(generator.catalogue(), engine)
        assert generator.checks == len(generator.catalogue().visible_models)
        replacement = tmp_path / "new.json"
        replacement.write_text(json.dumps(without(catalogue_files, "flux1-schnell.safetensors")))
        replacement.rename(path)
        checks.update(generator.catalogue(), engine)
        assert checks.known is not None
        assert [state.id for state in checks.known.states if not state.is_ready] == ["flux-schnell"]
        assert generator.checks == len(generator.catalogue().visible_models) + 1


def test_the_check_of_the_models_takes_no_place_among_the_shapes_of_requests(make_app: MakeApp) -> None:
    container: Container = make_app().extensions["easel"]
    checks = _Checks(container.generator)
    catalogue, engine = container.catalogue(), container.generator.engine()
    for _ in range(2):  # the second graph of a kind would become a shape
        checks.update(catalogue, engine)
        checks._forget({model.id for model in catalogue.visible_models})
    assert (catalogue.shapes._seen, catalogue.shapes._shapes) == (set(), {})


def test_checks_of_models_with_the_same_nodes_share_their_set(make_app: MakeApp) -> None:
    container: Container = make_app().extensions["easel"]
    checks = _Checks(container.generator)
    checks.update(container.catalogue(), container.generator.engine())
    sets = [check.classes for check in checks._checks.values()]
    assert len({id(classes) for classes in sets}) == len(set(sets)) < len(sets)


def test_what_another_engine_has_is_forgotten(
    make_app: MakeApp, catalogue_files: dict[str, list[str]], proxy: FreezingProxy, tmp_path: Path
) -> None:
    path = tmp_path / "files.json"
    path.write_text(json.dumps(without(catalogue_files, "flux1-schnell.safetensors")))
    container: Container = make_app(engine__url=proxy.url).extensions["easel"]
    checks = _Checks(container.generator)
    catalogue = container.catalogue()
    checks.update(catalogue, container.generator.engine())
    assert checks.known is not None
    assert all(state.is_ready for state in checks.known.states)
    with (
        SketchProcess(nodes=NODES, files=path) as sketch,
        FreezingProxy(sketch.url) as other,
        contextlib.closing(Engine(other.url)) as engine,
    ):
        other.frozen = {"/object_info": "silent"}
        with pytest.raises(EngineUnreachable), time_limit(0.5):
            checks.update(catalogue, engine)
        assert checks.known is None
        other.frozen = {}
        checks.update(catalogue, engine)
        assert [state.id for state in checks.known.states if not state.is_ready] == ["flux-schnell"]


def test_a_process_that_has_just_started_leaves_the_published_models_as_they_are(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    app = make_app(engine__url=proxy.url)
    visible = [model.id for model in app.extensions["easel"].catalogue().visible_models]
    wait_until(lambda: len(status_of(app.test_client())["models"]) == len(visible))
    proxy.frozen = {"/object_info/UNETLoader": "silent"}
    other = make_app(engine__url=proxy.url)
    readiness = other.extensions["easel"].readiness
    first = wait_until(lambda: readiness.models(0.1))
    assert not first.is_complete
    began_at = time.time()
    status = wait_until(
        lambda: status if (status := status_of(other.test_client()))["probed_at"] > began_at else None
    )
    assert sorted(entry["id"] for entry in status["models"]) == sorted(visible)


def test_a_large_catalogue_and_slow_nodes_do_not_make_the_status_call_a_live_engine_stopped(
    make_app: MakeApp, proxy: FreezingProxy, tmp_path: Path
) -> None:
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(multiply_models((SMALL_CATALOGUE / "catalogue.yaml").read_text(), 1200))
    client = make_app(engine__url=proxy.url, catalogue=str(catalogue)).test_client()
    proxy.frozen = {"/object_info": "silent"}
    status = wait_until(lambda: engine_that_runs(client))
    assert (status["reachable"], status["models"]) == (True, [])
    other = make_app(
        engine__url=proxy.url, catalogue=str(catalogue), state_dir=str(tmp_path / "other")
    ).test_client()
    proxy.frozen = {}
    states = []

    def is_complete() -> bool:
        status = other.get("/api/comfyui/status").get_json()
        states.append(status["engine"])
        return len(status["models"]) == 1200

    wait_until(is_complete)
    # On a busy machine, a probe of the engine itself may take too long now and then.
    assert states.count("running") > len(states) / 2


def engine_that_runs(client: FlaskClient) -> Any:
    status = client.get("/api/comfyui/status").get_json()
    return status if status["engine"] == "running" else None


# --- before the first request ----------------------------------------------------------------------------------------


def test_after_the_warm_up_the_first_picture_asks_for_no_nodes_and_opens_no_socket(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    app = make_app(engine__url=proxy.url)
    warm_up(app.extensions["easel"].generator)
    assert proxy.paths.count("/ws") == 1
    proxy.paths.clear()
    body = {"prompt": "a", "size": "256x256"}
    assert app.test_client().post("/v1/images/generations", json=body).status_code == 200
    assert [path for path in proxy.paths if path.startswith(("/object_info", "/ws"))] == []


def test_a_warm_up_without_an_engine_ends_and_raises_nothing(make_app: MakeApp) -> None:
    warm_up(make_app(engine__url="http://127.0.0.1:1").extensions["easel"].generator)


# --- the shared probe -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_probe_runs_once_in_its_interval() -> None:
    results, clock = iter(range(10)), Clock()
    probe = SharedProbe(lambda: next(results), 1.0, clock=clock)
    assert [probe.latest(5), probe.latest(5)] == [0, 0]
    clock.now += 1.0
    assert probe.latest(5) == 1


def test_a_probe_that_hangs_is_not_waited_for_and_not_run_a_second_time() -> None:
    release, runs = threading.Event(), []

    def hang() -> str:
        runs.append(1)
        release.wait()
        return "done"

    probe = SharedProbe(hang, 0.0)
    assert [probe.latest(0.05) for _ in range(3)] == [None] * 3
    assert (len(runs), probe.last) == (1, None)
    release.set()
    wait_until(lambda: probe.last)
    assert probe.last == "done"


def test_a_probe_whose_thread_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    probe = SharedProbe(lambda: "found", 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            probe.latest(5)
    assert probe.latest(5) == "found"


def test_a_probe_that_found_out_nothing_keeps_the_last_result() -> None:
    results, clock = iter(["known", None]), Clock()
    probe = SharedProbe(lambda: next(results), 1.0, clock=clock)
    assert probe.latest(5) == "known"
    clock.now += 1
    assert (probe.latest(5), probe.last) == (None, "known")


def test_an_engine_that_answered_moments_ago_and_is_late_now_is_busy(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    """ComfyUI answers nothing while it encodes pictures for the WebSocket."""
    client = make_app(engine__url=proxy.url).test_client()
    assert known(client)[0] == 200
    proxy.frozen = {"/system_stats": "silent"}
    asked = proxy.paths.count("/system_stats")
    # The next round of probes begins a second after the last one.
    wait_until(lambda: ready(client)[0] and proxy.paths.count("/system_stats") > asked)
    assert ready(client)[0] == 200


def test_an_engine_that_stays_silent_is_unreachable_in_the_end(
    make_app: MakeApp, proxy: FreezingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.client._MAX_SILENCE_S", 0.5)
    client = make_app(engine__url=proxy.url).test_client()
    assert known(client)[0] == 200
    proxy.frozen = {"/": "silent"}
    status, body = wait_until(lambda: answer if (answer := ready(client))[0] == 503 else None)
    assert (status, body["engine"]["code"]) == (503, "engine.unreachable")


def status_of(client: FlaskClient) -> dict[str, Any]:
    body: dict[str, Any] = client.get("/api/comfyui/status").get_json()
    return body


def test_the_status_keeps_the_last_facts_of_an_engine_that_is_busy(
    make_app: MakeApp, proxy: FreezingProxy
) -> None:
    client = make_app(engine__url=proxy.url).test_client()
    before = wait_until(lambda: status if (status := status_of(client))["reachable"] else None)
    proxy.frozen = {"/": "silent"}
    after = wait_until(
        lambda: status if (status := status_of(client))["probed_at"] > before["probed_at"] else None
    )
    assert (after["reachable"], after["engine"], after["problem"]) == (True, "running", None)
    assert after["version"] == before["version"]


@pytest.mark.parametrize(("can_send", "delivery"), [(True, "websocket"), (False, "file")])
def test_the_status_says_how_pictures_come(
    make_app: MakeApp, proxy: FreezingProxy, can_send: bool, delivery: str
) -> None:
    proxy.has_socket_output = can_send
    client = make_app(engine__url=proxy.url).test_client()
    wait_until(lambda: status_of(client)["picture_delivery"] == delivery)
