"""What a person sees when the engine, a worker or the network fails during a render, with seven tabs and keys on, and
behind a proxy. Each time what the page shows is compared with the API's answer."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from compiler import Catalogue
from sketch import SketchProcess
from tests.network_cable import NetworkCable
from tests.page.conftest import START_TIMEOUT_S, OpenPage, serving
from tests.page.test_draw_page import PROMPT, TAKES_STEPS, choose_model, finished
from tests.server.proxies import PROGRAMS, proxying
from tests.server.running import Server
from tests.waiting import wait_until

KEY = "secret-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
IDLE = "Sketches: no ComfyUI is connected"
"""What the line at the top says of a sketch engine that draws nothing"""
TABS = 7
"""More than the six connections that a browser opens to one host"""


def begin_drawing(page: Any) -> None:
    """Until the page shows a step."""
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile(r"step \d+ of 20")).wait_for()


def newest_image(url: str, **options: Any) -> str:
    images = requests.get(f"{url}/api/images?limit=1", timeout=30, **options).json()["images"]
    return str(images[0]["name"])


def recent_images(page: Any) -> list[str]:
    names: list[str] = page.eval_on_selector_all(
        ".recent-list > li", "(all) => all.map((one) => one.dataset.name)"
    )
    return names


# --- the engine ------------------------------------------------------------------------------------


def test_an_engine_that_is_killed_in_mid_render_is_named_and_its_return_is_seen(
    tmp_path: Path, shipped_catalogue: Catalogue, open_page: OpenPage
) -> None:
    nodes, files = shipped_catalogue.nodes, shipped_catalogue.files
    with SketchProcess(nodes=nodes, files=files, render_ms=3000) as first:
        port = int(first.url.rpartition(":")[2])
        with serving(tmp_path, EASEL_ENGINE_URL=first.url) as server:
            page = open_page(server.url)
            begin_drawing(page)
            os.kill(first.pid or 0, signal.SIGKILL)
            error = page.locator(".error-card")
            error.wait_for()
            assert "engine.unreachable" in error.inner_text()
            wait_until(lambda: not status(server)["reachable"])
            page.locator(".status-words", has_text="ComfyUI is not running").wait_for()
            with SketchProcess(nodes=nodes, files=files, port=port):
                wait_until(lambda: status(server)["reachable"], START_TIMEOUT_S)
                page.locator(".status-words", has_text=IDLE).wait_for()
                page.get_by_role("button", name="Draw", exact=True).click()
                [url] = finished(page)
                assert newest_image(server.url) == url.rpartition("/")[2]


def status(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{server.url}/api/comfyui/status", timeout=60).json()
    return answer


# --- the network -----------------------------------------------------------------------------------


def test_a_picture_that_ends_while_the_network_is_cut_is_found_when_it_is_back(
    slow_easel: Server, open_page: OpenPage
) -> None:
    with NetworkCable(slow_easel.url) as cable:
        page = open_page(cable.url)
        before = newest_or_none(slow_easel.url)
        begin_drawing(page)
        cable.cut()
        page.locator(".status-text", has_text="Connection lost. Drawing goes on").wait_for()
        page.locator(".status-words", has_text="Connection lost").wait_for()
        wait_until(lambda: newest_or_none(slow_easel.url) != before or not status(slow_easel)["requests"])
        cable.mend()
        [url] = finished(page)
        name = newest_image(slow_easel.url)
        assert url.rpartition("/")[2] == name
        page.wait_for_function(
            "(name) => document.querySelector('.recent-list > li')?.dataset.name === name", arg=name
        )
        page.locator(".status-words", has_text=IDLE).wait_for()
        page.close()


def newest_or_none(url: str) -> str | None:
    images = requests.get(f"{url}/api/images?limit=1", timeout=60).json()["images"]
    return images[0]["name"] if images else None


# --- seven tabs, two workers, keys -----------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, slow_sketch: SketchProcess) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("closed-slow")
    with serving(state, EASEL_ENGINE_URL=slow_sketch.url, EASEL_API_KEYS=KEY) as server:
        wait_until(lambda: len(server.workers()) == 2, START_TIMEOUT_S)
        yield server


def test_seven_tabs_live_from_one_stream_that_outlives_the_worker_that_sends_it(
    closed: Server, open_page: OpenPage
) -> None:
    with NetworkCable(closed.url) as cable:
        first = open_page(cable.url)
        first.get_by_label("API key", exact=True).fill(KEY)
        first.get_by_role("button", name="Use this key").click()
        first.get_by_role("dialog").wait_for(state="detached")
        tabs = [first]
        for _ in range(TABS - 1):
            tab = first.context.new_page()
            tab.goto(cable.url)
            tab.wait_for_selector("html[data-ready]")
            tabs.append(tab)
        for tab in tabs:
            tab.locator(".status-words", has_text=IDLE).wait_for()
        begin_drawing(tabs[-1])
        for worker in closed.workers():
            os.kill(worker, signal.SIGKILL)
        [url] = finished(tabs[-1])
        name = newest_image(closed.url, headers=HEADERS)
        assert url.rpartition("/")[2] == name
        for tab in tabs:
            tab.wait_for_function(
                "(name) => document.querySelector('.recent-list > li')?.dataset.name === name", arg=name
            )
        listed = requests.get(f"{closed.url}/api/images?limit=24", headers=HEADERS, timeout=60).json()[
            "images"
        ]
        assert {tuple(recent_images(tab)) for tab in tabs} == {tuple(image["name"] for image in listed)}
        asked = cable.requests
        first.wait_for_timeout(5000)
        assert cable.requests - asked <= 2  # nothing polls, however many tabs there are
        first.context.close()


# --- behind a proxy --------------------------------------------------------------------------------


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_behind_a_proxy_with_a_path_everything_is_below_it(
    tmp_path: Path, slow_sketch: SketchProcess, open_page: OpenPage, program: str
) -> None:
    variables = {"EASEL_ENGINE_URL": slow_sketch.url, "EASEL_TRUSTED_PROXIES": "127.0.0.1"}
    (tmp_path / "proxy").mkdir()
    with (
        serving(tmp_path / "state", **variables) as server,
        proxying(program, tmp_path / "proxy", server.url) as url,
    ):
        asked: list[str] = []
        page = open_page(f"{url}/easel", path="/", ignore_https_errors=True)
        page.context.on("request", lambda request: asked.append(request.url))
        page.locator(".status-words", has_text=IDLE).wait_for()
        begin_drawing(page)
        [picture] = finished(page)
        assert picture == f"{url}/easel/api/images/cache/{newest_image(server.url)}"
        page.goto(f"{url}/easel/#gallery")
        page.wait_for_selector(".gallery-tile.is-loaded")
        outside = [one for one in asked if not one.startswith((f"{url}/easel/", "blob:", "data:"))]
        assert outside == []
        page.context.close()  # caddy waits for the end of its streams before it stops
