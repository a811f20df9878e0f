"""Requests drawn by several engines: the pictures keep their order, and an engine that fails is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import requests

from app import Container
from arbiter import Sender
from compiler import Catalogue, ImageRequest, Size
from engine import Progress
from engines.measured_costs import Cost, Costs, EndedJob
from errors import (
    EngineDrained,
    EngineNotListed,
    EngineUnreachable,
    FilesMissing,
    JobInterrupted,
    RequestCancelled,
)
from generation import Drawing, Generator, OutputOptions
from sketch import SketchProcess
from tests.conftest import MakeApp
from tests.waiting import wait_until

REQUEST = ImageRequest(prompt="a cat", seed=1, id="x", model="flux-schnell", size=Size(256, 256))
NOT_KEPT = OutputOptions(keep=False)

StartEngine = Callable[..., SketchProcess]


@pytest.fixture
def start_engine(shipped_catalogue: Catalogue) -> Iterator[StartEngine]:
    """Starts a sketch engine that needs `render_ms` for each job."""
    with contextlib.ExitStack() as running:

        def start(render_ms: float = 100, files: Any = None) -> SketchProcess:
            catalogue = shipped_catalogue
            sketch = SketchProcess(
                nodes=catalogue.nodes,
                files=catalogue.files if files is None else files,
                render_ms=render_ms,
            )
            return running.enter_context(sketch)

        yield start


def kill(engine: SketchProcess) -> None:
    """Without a chance to say that its job was interrupted."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def fleet_of(make_app: MakeApp, *urls: str, **entries: dict[str, Any]) -> Container:
    """An application with the engines e0, e1, … `entries`: more of an entry, by name."""
    listed = [
        {"name": f"e{index}", "url": url, **entries.get(f"e{index}", {})} for index, url in enumerate(urls)
    ]
    container: Container = make_app(engine__url="", engines=tuple(listed)).extensions["easel"]
    # Loads are free, so that only the waiting counts.
    for unit in container.fleet.units:
        assert unit.costs is not None
        measured = {model: Cost(0.1, 0.1) for model in ("flux-schnell", "sd-1.5")}
        unit.costs.write(Costs((EndedJob("flux-schnell", 1.0),), measured))
    return container


def test_the_jobs_of_a_request_are_drawn_at_the_same_time_and_keep_their_order(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    generator = fleet_of(make_app, start_engine(400).url, start_engine(400).url).generator
    single = fleet_of(make_app, start_engine(0).url).generator
    drawing = generator.prepare(replace(REQUEST, n=6, seed=40), timeout_s=120)
    images = list(drawing.images(NOT_KEPT))
    assert [image.seed for image in images] == [40, 41, 42, 43, 44, 45]
    assert {image.engine for image in images} == {"e0", "e1"}
    # Each engine draws about half of them.
    counts = [sum(image.engine == name for image in images) for name in ("e0", "e1")]
    assert max(counts) <= 4
    expected = single.generate(replace(REQUEST, n=6, seed=40), NOT_KEPT, timeout_s=120).images
    assert [image.data for image in images] == [image.data for image in expected]
    assert all(image.engine == "" for image in expected)


def test_requests_that_come_at_once_are_spread(make_app: MakeApp, start_engine: StartEngine) -> None:
    generator = fleet_of(make_app, *(start_engine(300).url for _ in range(3))).generator

    def draw(seed: int) -> str:
        result = generator.generate(replace(REQUEST, seed=seed, id=f"r{seed}"), NOT_KEPT, timeout_s=120)
        return result.images[0].engine

    with ThreadPoolExecutor(9) as pool:
        engines = list(pool.map(draw, range(9)))
    assert sorted(set(engines)) == ["e0", "e1", "e2"]
    assert max(engines.count(name) for name in set(engines)) <= 5


def test_a_job_whose_engine_dies_is_drawn_by_another_with_the_same_seed(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    first, second = start_engine(60_000), start_engine(50)
    container = fleet_of(make_app, first.url, second.url)
    costs = container.fleet.units[1].costs
    assert costs is not None
    costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))  # so that the first one is chosen
    drawing = container.generator.prepare(replace(REQUEST, seed=7), timeout_s=120)
    submitted = threading.Event()

    def kill_it() -> None:
        assert submitted.wait(60)
        time.sleep(0.3)
        kill(first)

    killer = threading.Thread(target=kill_it)
    killer.start()
    (image,) = drawing.images(NOT_KEPT, on_submitted=submitted.set)
    killer.join()
    assert (image.engine, image.seed) == ("e1", 7)
    (redrawn,) = drawing.redrawn
    assert (redrawn.failed_engine, redrawn.engine, redrawn.prompt_id) == ("e0", "e1", image.prompt_id)
    assert redrawn.code in ("engine.unreachable", "engine.job_lost")
    # The next one does not try the dead engine.
    (image,) = container.generator.prepare(REQUEST, timeout_s=120).images(NOT_KEPT)
    assert image.engine == "e1"


def interrupted(
    make_app: MakeApp, start_engine: StartEngine, then: Callable[[SketchProcess], None]
) -> Drawing:
    """A drawing whose job the first of two engines draws, until another client interrupts it there; `then` is called after
    that."""
    first, second = start_engine(60_000), start_engine(50)
    container = fleet_of(make_app, first.url, second.url)
    costs = container.fleet.units[1].costs
    assert costs is not None
    costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))  # so that the first one is chosen

    def interrupt() -> None:
        wait_until(lambda: container.fleet.first.engine().queue().running)
        requests.post(f"{first.url}/interrupt", json={}, timeout=60)
        then(first)

    drawing = container.generator.prepare(replace(REQUEST, seed=7), timeout_s=120)
    threading.Thread(target=interrupt).start()
    return drawing


def test_a_job_that_an_engine_reports_as_interrupted_before_it_ends_is_drawn_by_another(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    def end(engine: SketchProcess) -> None:
        time.sleep(0.5)
        kill(engine)

    drawing = interrupted(make_app, start_engine, end)
    (image,) = drawing.images(NOT_KEPT)
    assert (image.engine, image.seed) == ("e1", 7)
    assert [(each.failed_engine, each.code) for each in drawing.redrawn] == [("e0", "engine.job_lost")]


def test_the_job_of_an_engine_that_gets_sigterm_is_drawn_by_another(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    first, second = start_engine(60_000), start_engine(50)
    container = fleet_of(make_app, first.url, second.url)
    costs = container.fleet.units[1].costs
    assert costs is not None
    costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))

    def stop() -> None:
        wait_until(lambda: container.fleet.first.engine().queue().running)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGTERM)

    threading.Thread(target=stop).start()
    drawing = container.generator.prepare(replace(REQUEST, seed=7), timeout_s=120)
    (image,) = drawing.images(NOT_KEPT)
    assert (image.engine, image.seed) == ("e1", 7)
    assert [each.failed_engine for each in drawing.redrawn] == ["e0"]


def test_a_job_that_somebody_interrupts_is_not_drawn_again(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    drawing = interrupted(make_app, start_engine, lambda engine: None)
    with pytest.raises(JobInterrupted):
        list(drawing.images(NOT_KEPT))
    assert drawing.redrawn == ()


def test_a_job_is_not_drawn_a_third_time(make_app: MakeApp, start_engine: StartEngine) -> None:
    engines = [start_engine(60_000) for _ in range(3)]
    container = fleet_of(make_app, *(engine.url for engine in engines))
    drawing = container.generator.prepare(REQUEST, timeout_s=120)
    by_url = {engine.url: engine for engine in engines}
    killed: list[str] = []

    def kill_the_one_that_draws() -> None:
        """Called in the thread that waits for the job"""
        for unit in container.fleet.units:
            if unit.name not in killed and unit.engine().queue().running:
                killed.append(unit.name)
                kill(by_url[unit.url])
                return
        threading.Timer(0.05, kill_the_one_that_draws).start()

    with pytest.raises(EngineUnreachable):
        list(
            drawing.images(
                NOT_KEPT, on_submitted=lambda: threading.Timer(0.05, kill_the_one_that_draws).start()
            )
        )
    assert len(set(killed)) == len(killed) == 2


def test_a_model_is_drawn_by_the_engine_that_has_its_files(
    make_app: MakeApp, start_engine: StartEngine, catalogue_files: dict[str, list[str]]
) -> None:
    none: dict[str, list[str]] = {folder: [] for folder in catalogue_files}
    container = fleet_of(make_app, start_engine(0, files=none).url, start_engine(0).url)
    costs = container.fleet.units[1].costs
    assert costs is not None
    costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))
    for _ in range(2):
        (image,) = container.generator.generate(REQUEST, NOT_KEPT, timeout_s=120).images
        assert image.engine == "e1"
    nobody = fleet_of(make_app, start_engine(0, files=none).url, start_engine(0, files=none).url)
    with pytest.raises(FilesMissing):
        nobody.generator.prepare(REQUEST, timeout_s=60)


def test_an_engine_gets_only_the_models_that_it_lists(make_app: MakeApp, start_engine: StartEngine) -> None:
    container = fleet_of(
        make_app,
        *(start_engine(0).url, start_engine(0).url),
        e0={"models": ["sd-1.5"]},
        e1={"models": ["flux-schnell"]},
    )
    for model, engine in (("flux-schnell", "e1"), ("sd-1.5", "e0")):
        request = replace(REQUEST, model=model)
        (image,) = container.generator.generate(request, NOT_KEPT, timeout_s=60).images
        assert image.engine == engine
    with pytest.raises(EngineNotListed) as caught:
        container.generator.prepare(replace(REQUEST, model="sdxl"), timeout_s=60)
    assert caught.value.details["model"] == "sdxl-base-1.0"


def test_a_drained_engine_gets_no_new_jobs(make_app: MakeApp, start_engine: StartEngine) -> None:
    container = fleet_of(make_app, start_engine(0).url, start_engine(0).url)
    drains = container.fleet.drains
    drains.set("e0", is_drained=True)
    (image,) = container.generator.generate(REQUEST, NOT_KEPT, timeout_s=60).images
    assert image.engine == "e1"
    drains.set("e1", is_drained=True)
    with pytest.raises(EngineDrained):
        container.generator.prepare(REQUEST, timeout_s=60)
    drains.set("e0", is_drained=False)
    (image,) = container.generator.generate(REQUEST, NOT_KEPT, timeout_s=60).images
    assert image.engine == "e0"


def test_a_job_that_waits_moves_when_its_engine_is_drained(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    container = fleet_of(make_app, start_engine(0).url, start_engine(0).url)
    first, second = container.fleet.units
    assert second.costs is not None
    second.costs.write(Costs((), {"flux-schnell": Cost(500.0, 1000.0)}))
    with contextlib.ExitStack() as others:
        for job in ("one", "two"):
            others.enter_context(first.arbiter.lease("generation", job=job, timeout_s=60))
        drawing = container.generator.prepare(REQUEST, timeout_s=120)

        def drain(waiting: object) -> None:
            container.fleet.drains.set("e0", is_drained=True)

        (image,) = drawing.images(NOT_KEPT, on_wait=drain)
    assert image.engine == "e1"
    assert drawing.redrawn == ()


def test_jobs_do_not_wait_for_an_engine_that_hangs(make_app: MakeApp, start_engine: StartEngine) -> None:
    """It answers nothing more, in the middle of a job: new jobs avoid it, and those that wait for it leave."""
    hanging, other = start_engine(60_000), start_engine(50)
    container = fleet_of(make_app, hanging.url, other.url)
    first, second = container.fleet.units
    assert second.costs is not None
    second.costs.write(Costs((), {"flux-schnell": Cost(3.0, 6.0)}))  # the first seems to be much faster
    generator = container.generator
    stuck = generator.prepare(replace(REQUEST, n=1, id="stuck"), timeout_s=120)
    cancelled = threading.Event()

    def draw_there() -> None:
        with contextlib.suppress(RequestCancelled, EngineUnreachable):
            list(stuck.images(NOT_KEPT, cancelled=cancelled.is_set))

    thread = threading.Thread(target=draw_there)
    thread.start()
    while not first.engine().queue().running:
        time.sleep(0.05)
    assert hanging.pid is not None
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(6) as pool:
            drawn = list(
                pool.map(
                    lambda seed: generator.generate(
                        replace(REQUEST, seed=seed, id=f"r{seed}"), NOT_KEPT, timeout_s=150
                    ),
                    range(6),
                )
            )
        assert [result.images[0].engine for result in drawn] == ["e1"] * 6
    finally:
        os.kill(hanging.pid, signal.SIGCONT)
        cancelled.set()
        thread.join(90)


def test_the_job_of_an_engine_that_hangs_is_drawn_elsewhere(
    make_app: MakeApp, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.job_runs._HUNG_S", 2.0)
    hanging, other = start_engine(60_000), start_engine(0)
    container = fleet_of(make_app, hanging.url, other.url)
    first, second = container.fleet.units
    assert second.costs is not None
    second.costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))
    drawing = container.generator.prepare(replace(REQUEST, seed=9), timeout_s=150)
    pid = hanging.pid
    assert pid is not None

    def freeze() -> None:
        while not first.engine().queue().running:
            time.sleep(0.05)
        os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        (image,) = drawing.images(NOT_KEPT)
    finally:
        thread.join()
        os.kill(pid, signal.SIGCONT)
    assert (image.engine, image.seed) == ("e1", 9)
    assert [each.failed_engine for each in drawing.redrawn] == ["e0"]


def test_an_engine_that_had_nothing_to_do_is_not_taken_for_one_that_hangs(
    make_app: MakeApp, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.job_runs._HUNG_S", 5.0)
    container = fleet_of(make_app, start_engine(0).url, start_engine(0).url)
    first, second = container.fleet.units
    assert second.costs is not None
    second.costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))
    drawing = container.generator.prepare(REQUEST, timeout_s=60)
    monkeypatch.setattr(type(first.engine()), "silent_s", lambda engine: 1000.0)
    (image,) = drawing.images(NOT_KEPT)
    assert image.engine == "e0"
    assert container.fleet.health.outage("e0") is None


def test_a_request_ends_when_only_a_dead_engine_is_left(make_app: MakeApp, start_engine: StartEngine) -> None:
    """The list was edited while the request waited."""
    alive, dead = start_engine(0), start_engine(0)
    container = fleet_of(make_app, alive.url, dead.url)
    fleet = container.fleet
    first, second = fleet.units
    drawing = container.generator.prepare(REQUEST, timeout_s=60)
    dead.stop()
    fleet.replace([second])
    began = time.monotonic()
    with pytest.raises(EngineUnreachable):
        list(drawing.images(NOT_KEPT))
    assert time.monotonic() - began < 30
    with pytest.raises(EngineUnreachable):
        container.generator.prepare(REQUEST, timeout_s=60)
    fleet.replace([first, second])
    assert container.generator.generate(REQUEST, NOT_KEPT, timeout_s=60).images[0].engine == "e0"


def test_a_list_of_one_engine_holds_it_to_its_models(make_app: MakeApp, start_engine: StartEngine) -> None:
    container = fleet_of(make_app, start_engine(0).url, e0={"models": ["sd-1.5"]})
    with pytest.raises(EngineNotListed):
        container.generator.prepare(REQUEST, timeout_s=60)
    (image,) = container.generator.generate(replace(REQUEST, model="sd-1.5"), NOT_KEPT, timeout_s=60).images
    assert image.engine == ""


def test_a_job_on_a_removed_engine_can_be_cancelled(make_app: MakeApp, start_engine: StartEngine) -> None:
    container = fleet_of(make_app, start_engine(60_000).url, start_engine(0).url)
    fleet = container.fleet
    first, second = fleet.units
    assert second.costs is not None
    second.costs.write(Costs((), {"flux-schnell": Cost(50.0, 100.0)}))
    drawing = container.generator.prepare(replace(REQUEST, id="mine"), timeout_s=120)
    caught: list[BaseException] = []

    def draw() -> None:
        try:
            list(drawing.images(NOT_KEPT))
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    while not first.engine().queue().running:
        time.sleep(0.05)
    fleet.leave(first)
    fleet.replace([second])
    assert [request.id for request in fleet.requests()] == ["mine"]
    assert fleet.cancel("mine")
    thread.join(60)
    assert [type(error).__name__ for error in caught] == ["RenderCancelled"]
    fleet.left(first)
    assert fleet.with_leaving == (second,)


def test_a_cancelled_request_leaves_no_job_on_any_engine(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    container = fleet_of(make_app, start_engine(60_000).url, start_engine(60_000).url)
    drawing = container.generator.prepare(replace(REQUEST, n=6), timeout_s=120)
    cancelled = threading.Event()

    def cancel_when_both_draw() -> None:
        while not all(unit.engine().queue().running for unit in container.fleet.units):
            time.sleep(0.05)
        cancelled.set()

    watcher = threading.Thread(target=cancel_when_both_draw)
    watcher.start()
    with pytest.raises(RequestCancelled):
        list(drawing.images(NOT_KEPT, cancelled=cancelled.is_set))
    watcher.join()
    for unit in container.fleet.units:
        queue = unit.engine().queue()
        assert not queue.running
        assert not queue.pending
        assert not unit.arbiter.claims.all()
        assert not unit.arbiter.snapshot().requests


def test_a_request_is_cancelled_by_its_id_on_all_engines(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    container = fleet_of(make_app, start_engine(60_000).url, start_engine(60_000).url)
    drawing = container.generator.prepare(replace(REQUEST, n=4, id="mine"), timeout_s=120)
    caught: list[BaseException] = []

    def draw() -> None:
        try:
            list(drawing.images(NOT_KEPT, sender=Sender("client-1")))
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    while not all(unit.engine().queue().running for unit in container.fleet.units):
        time.sleep(0.05)
    (request,) = container.fleet.requests()
    assert request.has_name("client-1")
    assert len(request.jobs) == 4
    assert len(container.fleet.cancel("client-1")) >= 2
    thread.join(60)
    assert [type(error).__name__ for error in caught] == ["RenderCancelled"]
    assert not any(unit.engine().queue().running for unit in container.fleet.units)


def test_progress_is_told_only_of_the_picture_that_comes_next(
    make_app: MakeApp, start_engine: StartEngine
) -> None:
    container = fleet_of(make_app, start_engine(300).url, start_engine(300).url)
    drawing = container.generator.prepare(replace(REQUEST, n=4), timeout_s=120)
    told: list[str] = []
    threads: set[int] = set()

    def on_progress(event: object) -> None:
        threads.add(threading.get_ident())
        if isinstance(event, Progress) and event.prompt_id not in told:
            told.append(event.prompt_id)

    images = list(drawing.images(NOT_KEPT, on_progress=on_progress))
    order = [image.prompt_id for image in images]
    assert told == [each for each in order if each in told]
    assert threads <= {threading.get_ident()}


def test_the_costs_of_jobs_are_measured_per_engine(make_app: MakeApp, start_engine: StartEngine) -> None:
    container = fleet_of(make_app, start_engine(300).url, start_engine(0).url)
    generator: Generator = container.generator
    generator.generate(replace(REQUEST, n=8), NOT_KEPT, timeout_s=120)
    slow, fast = (
        unit.costs.read().models["flux-schnell"].render_s for unit in container.fleet.units if unit.costs
    )
    assert slow is not None
    assert fast is not None
    assert slow > 1.5 * fast
