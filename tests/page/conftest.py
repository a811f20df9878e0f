"""Fixtures of the page's tests: a served Easel with the sketch engine, and a real Chromium that opens it.

Without Chromium these tests are skipped, and say so; `make test-page` says how to get it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from compiler import Catalogue
from sketch import SketchProcess
from tests.page.browser import HEIGHTS, WIDTHS, axe_source, find_chromium
from tests.server.running import Server, started
from tests.waiting import wait_until

HOW_TO = "`make test-page` says how to get it"
TIMEOUT_MS = 60_000
START_TIMEOUT_S = 120.0
"""A browser and a server at the same time are slow on a small machine"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browsers take minutes of a small machine, so `make test` runs only the essential tests of the page."""
    if os.environ.get("EASEL_TEST_PAGE"):
        return
    reason = "`make test` runs the essential tests of the page, `make test-page` all of them"
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()) and item.get_closest_marker("essential") is None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser. Skips without one, or fails if `make test-page` wants it."""
    path = find_chromium()
    if path is None:
        reason = f"NO CHROMIUM: the web page is not tested; {HOW_TO}"
        if os.environ.get("EASEL_TEST_PAGE"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(state: Path, **variables: str) -> Iterator[Server]:
    """A server that answers; stopped at the end of the block."""
    with started(state, **variables) as server:
        server.url = server.wait_for(r"Easel is at (http://[^\s\"]+)", START_TIMEOUT_S)[1]
        wait_until(lambda: _answers(server.url), START_TIMEOUT_S)
        yield server


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/health", timeout=60).status_code == 200
    return False


@pytest.fixture(scope="session")
def easel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Easel as `make run` starts it, whose sketch engine draws at once."""
    with serving(tmp_path_factory.mktemp("easel")) as server:
        yield server


@pytest.fixture(scope="session")
def slow_sketch(shipped_catalogue: Catalogue) -> Iterator[SketchProcess]:
    """A sketch engine that takes three seconds for each job."""
    with SketchProcess(
        nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=3000
    ) as sketch:
        yield sketch


@pytest.fixture(scope="session")
def slow_easel(tmp_path_factory: pytest.TempPathFactory, slow_sketch: SketchProcess) -> Iterator[Server]:
    """Easel with the slow sketch engine, so that there is time to look at what is drawn."""
    with serving(tmp_path_factory.mktemp("slow"), EASEL_ENGINE_URL=slow_sketch.url) as server:
        yield server


@pytest.fixture(scope="session")
def endless_easel(tmp_path_factory: pytest.TempPathFactory, shipped_catalogue: Catalogue) -> Iterator[Server]:
    """Easel with a sketch engine that takes a minute for each job, so that no job ends before somebody stops it."""
    with (
        SketchProcess(
            nodes=shipped_catalogue.nodes, files=shipped_catalogue.files, render_ms=60_000
        ) as sketch,
        serving(tmp_path_factory.mktemp("endless"), EASEL_ENGINE_URL=sketch.url) as server,
    ):
        yield server


OpenPage = Callable[..., Any]


@pytest.fixture(params=list(WIDTHS))
def size(request: pytest.FixtureRequest) -> str:
    """ "phone" (390 px) or "wide" (1440 px)."""
    name: str = request.param
    return name


@pytest.fixture
def open_page(chromium: Any) -> Iterator[OpenPage]:
    """Opens a page as a new visitor: `open_page(url, "phone")`; further arguments are Playwright's for a context. A test
    fails if a script of the page failed, or broke the page's policy."""
    contexts: list[Any] = []
    problems: list[str] = []

    def open_one(url: str, size: str = "wide", path: str = "/", **options: Any) -> Any:
        is_phone = size == "phone"
        context = chromium.new_context(
            **{
                "viewport": {"width": WIDTHS[size], "height": HEIGHTS[size]},
                "has_touch": is_phone,
                "is_mobile": is_phone,
                "locale": "en-US",
                **options,
            }
        )
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        context.on("page", lambda page: watch(page, problems))
        page = context.new_page()
        page.goto(f"{url}{path}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def watch(page: Any, problems: list[str]) -> None:
    """Collects what `page` reports as an error of its own."""
    page.on("pageerror", lambda error: problems.append(f"{error}"))
    page.on(
        "console",
        # Chromium also reports answers that are errors, which the page shows itself.
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core. Skips without npm."""
    source = axe_source()
    if source is None:
        reason = f"NO AXE-CORE: accessibility is not tested, because npm cannot fetch it; {HOW_TO}"
        if os.environ.get("EASEL_TEST_PAGE"):
            pytest.fail(reason)
        pytest.skip(reason)
    return source
