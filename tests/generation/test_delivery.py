"""How the pictures of a job come from the engine: over the WebSocket, or saved where the engine cannot send them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compiler import ImageRequest, Size
from engine.client import _BLACK_PIXEL
from generation import Generation, Generator, OutputOptions, Pictures
from pictures import read_image
from sketch import SketchProcess
from tests.conftest import NODES, MakeApp

REQUEST = ImageRequest(
    prompt="a cat", seed=1, id="x", model="sd-1.5", size=Size(256, 256), inputs={"steps": 1}
)
PNG = OutputOptions(keep=False)

StartSketch = Callable[..., SketchProcess]


@pytest.fixture
def start_sketch(catalogue_files: dict[str, list[str]], tmp_path: Path) -> Iterator[StartSketch]:
    """Start a sketch engine that keeps its files in `tmp_path`/"engine", optionally without SaveImageWebsocket."""
    with ExitStack() as stack:

        def start(*, can_send: bool = True) -> SketchProcess:
            nodes = json.loads(NODES.read_text())
            if not can_send:
                del nodes["nodes"]["SaveImageWebsocket"]
            folder = tmp_path / "engine"
            folder.mkdir(exist_ok=True)
            return stack.enter_context(SketchProcess(nodes=nodes, files=catalogue_files, folder=folder))

        yield start


def generator_of(make_app: MakeApp, sketch: SketchProcess, **settings: Any) -> Generator:
    generator: Generator = make_app(engine__url=sketch.url, **settings).extensions["easel"].generator
    return generator


def saved_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix == ".png"]


def pixels(generation: Generation) -> bytes:
    return Image.open(io.BytesIO(generation.images[0].data)).convert("RGB").tobytes()


def test_neither_picture_nor_prompt_stays_on_the_engines_disk(
    make_app: MakeApp, start_sketch: StartSketch, tmp_path: Path
) -> None:
    generator = generator_of(make_app, start_sketch())
    assert len(generator.generate(REQUEST, PNG, timeout_s=30).images) == 1
    photo = io.BytesIO()
    Image.new("RGB", (256, 256), "red").save(photo, "PNG")
    source = Pictures(read_image(photo.getvalue()))
    generator.generate(REQUEST, PNG, timeout_s=30, pictures=source)
    assert saved_files(tmp_path) == [_BLACK_PIXEL]


def test_without_the_node_that_sends_pictures_they_are_saved_and_are_the_same(
    make_app: MakeApp, start_sketch: StartSketch, tmp_path: Path
) -> None:
    sent = generator_of(make_app, start_sketch()).generate(REQUEST, PNG, timeout_s=30)
    assert saved_files(tmp_path) == []
    saved = generator_of(make_app, start_sketch(can_send=False)).generate(REQUEST, PNG, timeout_s=30)
    assert len(saved_files(tmp_path)) == 1
    assert pixels(sent) == pixels(saved)


@pytest.mark.parametrize("can_send", [True, False])
def test_easel_writes_the_graph_that_saves_the_picture_into_it(
    make_app: MakeApp, start_sketch: StartSketch, can_send: bool
) -> None:
    generator = generator_of(make_app, start_sketch(can_send=can_send), images__metadata="workflow")
    (image,) = generator.generate(REQUEST, PNG, timeout_s=30).images
    texts = Image.open(io.BytesIO(image.data)).info
    assert set(texts) == {"parameters", "prompt"}
    graph = json.loads(texts["prompt"])
    assert [node["class_type"] for node in graph.values() if "images" in node["inputs"]] == ["SaveImage"]
    assert "a cat" in [node["inputs"].get("text") for node in graph.values()]
