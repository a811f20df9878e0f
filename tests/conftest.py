"""Fixtures: one sketch engine for the test session, and applications that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import Container, create_app
from compiler import Catalogue, SourcePaths, load_catalogue, read_sources
from settings import SETTINGS_BY_NAME, Settings
from sketch import SketchProcess

ROOT = Path(__file__).resolve().parents[1]
SMALL_CATALOGUE = ROOT / "tests" / "small_catalogue"
"""A catalogue of five models, for tests that edit it"""
NODES = ROOT / "schemas/nodes.json"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with a slow test come first: one that starts last would run alone, while the other processes have nothing
    left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shipped_catalogue() -> Catalogue:
    """The project's catalogue."""
    paths = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
    return load_catalogue(read_sources(paths))


@pytest.fixture(scope="session")
def catalogue_files(shipped_catalogue: Catalogue) -> dict[str, list[str]]:
    """The files in the project's catalogue, by folder."""
    return shipped_catalogue.files


@pytest.fixture(scope="session")
def sketch_url(shipped_catalogue: Catalogue) -> Iterator[str]:
    """A sketch engine as Easel starts it, which has every file of the catalogue and draws without delay."""
    with SketchProcess(nodes=shipped_catalogue.nodes, files=shipped_catalogue.files) as sketch:
        yield sketch.url


@pytest.fixture(scope="session")
def recorded_sketch_url(catalogue_files: dict[str, list[str]]) -> Iterator[str]:
    """One that has only the nodes of recorded versions of ComfyUI."""
    with SketchProcess(nodes=NODES, files=catalogue_files) as sketch:
        yield sketch.url


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path, sketch_url: str) -> Iterator[MakeApp]:
    """Creates applications that use the sketch engine. Settings are keyword arguments with `__` for dots."""
    containers: list[Container] = []

    def make(**settings: Any) -> Flask:
        values = {name: setting.default for name, setting in SETTINGS_BY_NAME.items()}
        values |= {"engine.url": sketch_url, "state_dir": str(tmp_path / "state")}
        values |= {name.replace("__", "."): value for name, value in settings.items()}
        app = create_app(Settings(values, base=ROOT))
        containers.append(app.extensions["easel"])
        return app

    yield make
    for container in containers:
        container.engine_selector.close()
        container.metric_files.close()


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """A test client of an application with default settings."""
    return make_app().test_client()
