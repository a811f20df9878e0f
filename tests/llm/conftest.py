"""A fixture that runs a test once with each of the eight fake servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.llm.fake_servers import ALL, FakeServer


@pytest.fixture(params=ALL, ids=lambda kind: kind.DRIVER)
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    """Each kind of LLM server, one after another."""
    with request.param() as fake:
        yield fake
