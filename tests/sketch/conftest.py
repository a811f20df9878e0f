"""One sketch engine shared by all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sketch import SketchProcess
from tests.sketch.sketch_client import FILES, NODES, Client


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with SketchProcess(nodes=NODES, files=FILES) as sketch:
        yield Client(sketch.url)
