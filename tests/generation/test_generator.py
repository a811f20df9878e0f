"""What a generation promises beyond what the HTTP tests show: preloading, progress, and files that come and go."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arbiter import Sender, Waiting
from compiler import ImageRequest, Size
from engine import Engine, Progress
from errors import EngineUnreachable, FilesMissing, JobTimedOut
from generation import Generator, OutputOptions, preload
from sketch import SketchProcess
from tests.conftest import NODES, MakeApp

REQUEST = ImageRequest(
    prompt="a cat", seed=1, id="x", model="sd-1.5", size=Size(256, 256), inputs={"steps": 3}
)


@pytest.fixture
def generator(make_app: MakeApp) -> Generator:
    generator: Generator = make_app().extensions["easel"].generator
    return generator


def test_models_are_preloaded_once_the_engine_answers(
    generator: Generator,
    sketch_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, pauses = generator.engine(), []

    def starting_engine() -> Engine:
        if len(pauses) < 2:
            raise EngineUnreachable("still starting")
        return engine

    monkeypatch.setattr(generator.fleet.first.selector, "current", starting_engine)
    caplog.set_level("INFO", "easel.generation")
    preload(generator, ("sd-1.5-pruned-emaonly", "flux-schnell"), timeout_s=60, sleep=pauses.append)
    assert len(pauses) == 2
    preloaded = [record for record in caplog.records if record.name == "easel.generation"]
    assert [record.args[0] for record in preloaded if record.args] == [
        "sd-1.5-pruned-emaonly",
        "flux-schnell",
    ]


def test_the_steps_of_a_job_are_reported(generator: Generator) -> None:
    steps: list[int] = []

    def on_progress(event: object) -> None:
        if isinstance(event, Progress):
            steps.append(event.value)

    generator.generate(REQUEST, OutputOptions(keep=False), timeout_s=30, on_progress=on_progress)
    assert steps == [1, 2, 3]


def test_a_job_is_reported_when_the_engine_has_it_and_before_its_steps(generator: Generator) -> None:
    reported: list[str] = []
    drawing = generator.prepare(replace(REQUEST, seed=77), timeout_s=30)
    images = drawing.images(
        OutputOptions(keep=False),
        on_submitted=lambda: reported.append("submitted"),
        on_progress=lambda event: reported.append(type(event).__name__),
    )
    assert len(tuple(images)) == 1
    assert reported == ["submitted", "Progress", "Progress", "Progress"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "files.json"


@pytest.fixture
def own_sketch(files: Path, catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    files.write_text(json.dumps(catalogue_files))
    with SketchProcess(nodes=NODES, files=files) as sketch:
        yield sketch


def test_a_file_that_is_added_or_deleted_while_the_server_runs_is_noticed_at_once(
    make_app: MakeApp, own_sketch: SketchProcess, files: Path, catalogue_files: dict[str, list[str]]
) -> None:
    generator: Generator = make_app(engine__url=own_sketch.url).extensions["easel"].generator

    def draw() -> int:
        return len(generator.generate(REQUEST, OutputOptions(keep=False), timeout_s=30).images)

    assert draw() == 1
    files.write_text(json.dumps({**catalogue_files, "checkpoints": []}))
    with pytest.raises(FilesMissing) as caught:
        draw()
    assert caught.value.details["files"][0]["name"] == "v1-5-pruned-emaonly.safetensors"
    files.write_text(json.dumps(catalogue_files))
    assert draw() == 1


@pytest.mark.parametrize("counts", [True, False])
def test_the_time_of_waiting_for_the_gpu_counts_only_for_those_who_wait_on_a_connection(
    make_app: MakeApp, counts: bool
) -> None:
    container = make_app().extensions["easel"]
    late = [0.0]
    generator = Generator(
        container.catalogue,
        container.fleet,
        container.store,
        clock=lambda: time.monotonic() + sum(late),
    )
    with contextlib.ExitStack() as others:
        for job in ("one", "two"):
            others.enter_context(container.arbiter.lease("generation", job=job, timeout_s=60, key="other"))

        def on_wait(waiting: Waiting) -> None:
            late.append(1000)
            others.close()

        drawing = generator.prepare(REQUEST, timeout_s=300)
        drawing.counts_waiting = counts
        images = drawing.images(OutputOptions(format="png"), on_wait=on_wait, sender=Sender("", "", "own"))
        if counts:
            with pytest.raises(JobTimedOut):
                list(images)
        else:
            assert len(list(images)) == 1
    assert len(late) > 1
