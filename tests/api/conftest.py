"""Fixtures of the tests of more than one route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from sketch import SketchProcess
from tests.conftest import NODES, SMALL_CATALOGUE, MakeApp


@pytest.fixture
def failing(make_app: MakeApp, tmp_path: Any, catalogue_files: dict[str, list[str]]) -> Iterator[FlaskClient]:
    """A client of an application whose SD 1.5 jobs fail when the picture is saved, because it cannot be sent. It has the
    small catalogue: all models use the template that is changed here, so all are proved again."""
    nodes = json.loads(NODES.read_text())
    del nodes["nodes"]["SaveImageWebsocket"]
    templates = {path.name: path.read_text() for path in (SMALL_CATALOGUE / "templates_wf").iterdir()}
    templates["part_picture.json.j2"] = templates["part_picture.json.j2"].replace(
        "{{ prefix }}", '{{ "../../outside/" ~ prefix }}'
    )
    (tmp_path / "templates").mkdir()
    for name, text in templates.items():
        (tmp_path / "templates" / name).write_text(text)
    settings = {
        "catalogue": str(SMALL_CATALOGUE / "catalogue.yaml"),
        "templates": str(tmp_path / "templates"),
    }
    with SketchProcess(nodes=nodes, files=catalogue_files) as sketch:
        yield make_app(engine__url=sketch.url, **settings).test_client()
