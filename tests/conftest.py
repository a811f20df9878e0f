"""A sketch engine for the session, and applications over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import Container, create_app
from compiler import SourcePaths, load_catalogue, read_sources
from settings import BY_NAME, Settings
from sketch import SketchProcess

ROOT = Path(__file__).resolve().parents[1]
NODES = ROOT / "schemas/nodes.json"


@pytest.fixture(scope="session")
def catalogue_files() -> dict[str, list[str]]:
    """The files that the project's own catalogue names, by folder."""
    paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
    return load_catalogue(read_sources(paths)).files


@pytest.fixture(scope="session")
def sketch_url(catalogue_files: dict[str, list[str]]) -> Iterator[str]:
    """A sketch engine that has every file of the catalogue and draws at once."""
    with SketchProcess(nodes=NODES, files=catalogue_files) as sketch:
        yield sketch.url


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path, sketch_url: str) -> Iterator[MakeApp]:
    """Makes an application over the sketch engine; settings by name, dots as double underscores."""
    houses: list[Container] = []

    def make(**given: Any) -> Flask:
        values = {name: setting.default for name, setting in BY_NAME.items()}
        values |= {"engine.url": sketch_url, "state_dir": str(tmp_path / "state")}
        values |= {name.replace("__", "."): value for name, value in given.items()}
        app = create_app(Settings(values, base=ROOT))
        houses.append(app.extensions["easel"])
        return app

    yield make
    for container in houses:
        container.engine_selector.close()


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """A client of an application with default settings."""
    return make_app().test_client()
