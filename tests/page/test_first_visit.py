"""What a browser gets before the first picture, in how many rounds, and that no text is missing when it shows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.page.conftest import OpenPage, serving
from tests.page.seeding import seed_images
from tests.server.running import Server

MOST_BYTES = 60_000
READY = "html[data-ready]"
QUIET_MS = 1000
BROWSER = {"Accept": "text/html", "Accept-Encoding": "gzip"}
KEYS = re.compile(r"\b(?:common|draw|edit|gallery|machine|catalogue|menu|results|errors)\.[a-z_]+")


@pytest.fixture(scope="module")
def used_easel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Easel with more pictures than the strip in Draw shows."""
    state = tmp_path_factory.mktemp("used")
    seed_images(state, 40)
    with serving(state) as server:
        yield server


def first_events_size(url: str) -> int:
    """Compressed bytes of the event stream up to the catalogue, which comes last."""
    size, text, unpacker = 0, b"", zlib.decompressobj(16 + zlib.MAX_WBITS)
    with requests.get(f"{url}/api/events", stream=True, timeout=60) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        for chunk in response.raw.stream(1, decode_content=False):
            size += len(chunk)
            text += unpacker.decompress(chunk)
            if b"event: catalogue" in text:
                return size
    raise AssertionError(text)


@pytest.mark.essential
def test_less_than_60_kb_are_transferred_before_the_first_picture(
    chromium: Any, open_page: OpenPage, used_easel: Server
) -> None:
    """All files and all JSON, compressed, without headers; also what the workers of the page load."""
    page = open_page(used_easel.url)
    page.evaluate(
        "() => (addEventListener('pagehide', () => (localStorage.clear(), sessionStorage.clear())))"
    )
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.setCacheDisabled", {"cacheDisabled": True})
    paths: dict[str, str] = {}
    sizes: dict[str, int] = {}
    network.on(
        "Network.requestWillBeSent",
        lambda event: paths.update(
            {event["requestId"]: event["request"]["url"].removeprefix(used_easel.url)}
        ),
    )
    network.on(
        "Network.dataReceived",
        lambda event: sizes.update(
            {event["requestId"]: sizes.get(event["requestId"], 0) + event["encodedDataLength"]}
        ),
    )
    page.reload()
    page.wait_for_selector(".recent img")
    page.get_by_label("Prompt", exact=True).fill("a fox")
    with page.expect_response("**/v1/images/generations"):
        page.get_by_role("button", name="Draw", exact=True).click()
    # Thumbnails are pictures themselves.
    got = {path: sizes.get(key, 0) for key, path in paths.items() if not path.endswith("/thumbnail")}
    before = {path: size for path, size in got.items() if not path.startswith("/v1/images/")}
    before["/"] = len(requests.get(used_easel.url, headers=BROWSER, stream=True, timeout=60).raw.read())
    asked = {re.sub(r"^/page/\w+/", "", path) for path in before}
    # What is opened later is not loaded: no other view, no list of models.
    assert {path for path in asked if not path.startswith(("js/", "css/"))} - {"icon.svg"} == {
        "/",
        "texts/en/first.json",
        "/v1/models/img",
        "/api/images?limit=24",
    }
    version = next(path.split("/")[2] for path in before if path.startswith("/page/"))
    before = {path: size for path, size in before.items() if size}
    # A headless browser asks for no icon and no manifest; the page's view of its workers has no sizes.
    for name in ("js/live_worker.js", "js/draw/draw_worker.js", "icon.svg", "easel.webmanifest"):
        answer = requests.get(f"{used_easel.url}/page/{version}/{name}", stream=True, timeout=60)
        before[f"/page/{version}/{name}"] = int(answer.headers["Content-Length"])
    before["events"] = first_events_size(used_easel.url)
    total = sum(before.values())
    print(f"{total} bytes: {sorted(before.items(), key=lambda one: -one[1])}")
    assert total < MOST_BYTES


def test_typing_can_begin_after_three_rounds_and_drawing_one_later(
    chromium: Any, used_easel: Server, open_page: OpenPage
) -> None:
    """Requests are held until no further one follows, and then answered at once: that is a round. The document, what the
    first paint needs, the modules; then the model."""
    page = open_page(used_easel.url)
    held: list[Any] = []
    page.context.route("**/*", lambda route: held.append(route))
    page.evaluate("() => void setTimeout(() => location.reload())")
    rounds = {}
    for number in range(1, 7):
        seen = -1
        while seen != len(held) or not held:
            seen = len(held)
            page.wait_for_timeout(QUIET_MS)
        for route in held[:]:
            held.remove(route)
            route.continue_()
        page.wait_for_timeout(QUIET_MS)
        for name, selector in (("prompt", "#prompt"), ("fields", ".fields [data-name]")):
            if name not in rounds and page.locator(selector).count():
                rounds[name] = number
        if "fields" in rounds:
            break
    page.context.unroute_all(behavior="ignoreErrors")
    assert rounds["prompt"] <= 3
    assert rounds["fields"] == rounds["prompt"] + 1


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_no_view_ever_shows_the_name_of_a_text(
    open_page: OpenPage, used_easel: Server, locale: str, size: str
) -> None:
    page = open_page(used_easel.url, size, locale=locale)
    page.evaluate(
        """() => {
          window.texts = new Set();
          new MutationObserver(() => texts.add(document.body.innerText)).observe(document.body, {subtree: true, childList: true});
        }"""
    )
    for view in ("gallery", "machine", "catalogue", "draw"):
        page.evaluate("(view) => (location.hash = view)", view)
        page.wait_for_selector(f"main.view-{view} h1")
        page.wait_for_timeout(300)
    page.get_by_role("button", name=re.compile("^(Model|Modell): ")).click()
    page.wait_for_selector(".model-choice")
    shown = "\n".join(page.evaluate("() => [...texts]"))
    assert len(shown) > 1000
    assert set(KEYS.findall(shown)) == set()


def test_two_easels_below_different_paths_of_a_host_share_no_settings(
    chromium: Any, used_easel: Server
) -> None:
    context = chromium.new_context()
    context.route(
        re.compile("^http://two.example/"),
        lambda route: (
            route.fulfill(
                response=route.fetch(
                    url=re.sub("^http://two.example/(one|other)/", f"{used_easel.url}/", route.request.url),
                    headers={**route.request.headers, "host": used_easel.url.removeprefix("http://")},
                )
            )
            if "/api/events" not in route.request.url
            else route.abort()
        ),
    )
    page = context.new_page()
    page.goto("http://two.example/one/")
    page.wait_for_selector(READY)
    page.get_by_label("Prompt", exact=True).fill("of the first")
    page.get_by_role("button", name="Preferences").click()
    page.get_by_role("radio", name="Dark").click()
    page.goto("http://two.example/other/")
    page.wait_for_selector(READY)
    assert page.get_by_label("Prompt", exact=True).input_value() == ""
    assert page.evaluate("document.documentElement.dataset.theme ?? null") is None
    page.goto("http://two.example/one/")
    page.wait_for_selector(READY)
    assert page.get_by_label("Prompt", exact=True).input_value() == "of the first"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()
