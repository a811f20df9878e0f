"""What can happen to a page that stays open: its key is revoked, it sleeps, Easel is updated, its tab crashes, too many others
are open."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests

from access import Gate
from tests.page.conftest import OpenPage, serving
from tests.page.scripted_events import ScriptedEvents
from tests.server.running import Server

PROMPT = "a red fox asleep in the snow"
MODELS = 1000
MOST_ROWS = 200

_NO_PLACE = """
delete window.SharedWorker;
const fetchOverNetwork = window.fetch;
window.fetch = (resource, options) =>
  String(resource).endsWith("/api/events")
    ? Promise.resolve(new Response(
        JSON.stringify({ error: { code: "events.too_many_streams", message: "64 clients follow events already." } }),
        { status: 503, headers: { "Content-Type": "application/json" } },
      ))
    : fetchOverNetwork(resource, options);
"""


def draw(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()


def wait_for_picture(page: Any) -> None:
    page.wait_for_function("() => document.querySelector('.picture-open img')?.naturalWidth")


# --- keys ------------------------------------------------------------------------------------------


@pytest.mark.essential
def test_a_key_that_is_revoked_while_the_page_is_open_is_asked_for_again(
    open_page: OpenPage, tmp_path: Any
) -> None:
    gate = Gate(tmp_path)
    first, second = (gate.add_key(name, ["draw"], {})[1] for name in ("first", "second"))
    with serving(tmp_path) as server:
        page = open_page(server.url)
        page.get_by_label("API key", exact=True).fill(first)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("dialog").wait_for(state="detached")
        draw(page)
        wait_for_picture(page)
        gate.revoke_key("first")
        dialog = page.get_by_role("dialog", name="This Easel needs an API key")
        dialog.wait_for()
        assert page.get_by_label("Prompt", exact=True).input_value() == PROMPT
        page.get_by_label("API key", exact=True).fill(first)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("This key is not accepted").wait_for()
        page.get_by_label("API key", exact=True).fill(second)
        page.get_by_role("button", name="Use this key").click()
        dialog.wait_for(state="detached")
        # What the form had is still there, and it can be drawn with the new key.
        assert page.get_by_label("Prompt", exact=True).input_value() == PROMPT
        with page.expect_response("**/v1/images/generations") as answered:
            page.get_by_role("button", name="Draw", exact=True).click()
        assert answered.value.status == 200
        wait_for_picture(page)


# --- sleep, crashes and updates --------------------------------------------------------------------


def test_a_tab_that_was_frozen_shows_what_was_drawn_meanwhile(
    open_page: OpenPage, easel: Server, size: str
) -> None:
    page = open_page(easel.url, size, path="/#gallery")
    page.wait_for_selector(".status-line[data-state], .status-dot[data-kind=ready]")
    browser = page.context.new_cdp_session(page)
    browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    answer = easel.draw(response_format="url")
    name = answer.json()["data"][0]["url"].rpartition("/")[2]
    browser.send("Page.setWebLifecycleState", {"state": "active"})
    page.wait_for_selector(f'.gallery-tile[data-name="{name}"]')


def test_the_shared_worker_forgets_tabs_that_say_nothing(open_page: OpenPage, easel: Server) -> None:
    """Its module runs here with a clock of the test."""
    page = open_page(easel.url)
    folder = page.evaluate("() => document.querySelector('script[type=module]').src.replace('app.js', '')")
    page.evaluate(
        """async (folder) => {
          window.streams = [];
          window.now = Date.now();
          Date.now = () => now;
          const setRealInterval = window.setInterval;
          window.setInterval = (call) => (window.look = call, 0);
          window.fetch = (url, { signal }) => new Promise((_, reject) => {
            const stream = { isOpen: true };
            streams.push(stream);
            signal.addEventListener("abort", () => (stream.isOpen = false, reject(new DOMException("", "AbortError"))));
          });
          await import(`${folder}live_worker.js?of-a-test`);
          window.setInterval = setRealInterval;
          window.connect = () => {
            const { port1, port2 } = new MessageChannel();
            const got = [];
            const keys = [];
            port1.onmessage = ({ data }) => {
              got.push(data.type);
              if (data.type === "key") keys.push(data.key);
            };
            dispatchEvent(Object.assign(new Event("connect"), { ports: [port2] }));
            const send = (type, key = null) => port1.postMessage({ type, url: "/of-a-test", key, visible: true });
            return { got, keys, send };
          };
          window.pass = (seconds) => { for (; seconds > 0; seconds -= 15) { now += 15_000; look(); } };
          window.crashed = connect();
          crashed.send("hello");
        }""",
        folder,
    )
    page.wait_for_function("() => crashed.got.includes('welcome') && streams.length === 1")
    page.evaluate("() => pass(75)")
    assert page.evaluate("() => streams.map(({isOpen}) => isOpen)") == [True]
    page.evaluate("() => pass(30)")
    assert page.evaluate("() => streams.map(({isOpen}) => isOpen)") == [False]
    # It was only asleep.
    page.evaluate("() => (crashed.got.length = 0, crashed.send('alive'))")
    page.wait_for_function("() => crashed.got.includes('welcome') && streams.length === 2")
    # While it slept another tab got another key, which counts.
    page.evaluate(
        "() => (crashed.send('key', 'old'), pass(105), window.other = connect(), other.send('hello', 'new'))"
    )
    page.wait_for_function("() => other.got.includes('welcome')")
    page.evaluate("() => crashed.send('alive', 'old')")
    page.wait_for_function("() => crashed.keys.includes('new')")
    assert page.evaluate("() => other.keys") == []
    # The machine was asleep, and all tabs with it: none of them is gone.
    page.evaluate("() => { now += 3_600_000; look(); }")
    assert page.evaluate("() => streams.at(-1).isOpen")


@pytest.mark.essential
def test_a_tab_of_an_older_version_offers_to_reload_and_still_draws(
    open_page: OpenPage, easel: Server
) -> None:
    page = open_page(easel.url)
    # The server of another version does not have the files of this one.
    page.context.route(
        re.compile(r"/page/"),
        lambda route: route.fulfill(status=404, json={"error": {"code": "route.not_found", "message": ""}}),
    )
    draw(page)
    wait_for_picture(page)
    # What it has not loaded is named so, wherever it would be.
    for button in (page.get_by_role("button", name=re.compile("^Model: ")), page.locator(".picture-open")):
        page.locator("#toasts").evaluate("(toasts) => toasts.replaceChildren()")
        button.click()
        page.locator(".toast", has_text="Easel was updated").get_by_role("button", name="Reload").wait_for()
    page.get_by_role("link", name="Gallery").click()
    page.get_by_text("Easel was updated or is not reachable").first.wait_for()
    page.context.unroute_all(behavior="ignoreErrors")
    page.get_by_role("button", name="Reload").first.click()
    page.wait_for_selector(".gallery-tile")


def test_no_place_for_live_updates_is_not_called_a_lost_connection(
    open_page: OpenPage, easel: Server
) -> None:
    page = open_page(easel.url)
    page.add_init_script(_NO_PLACE)
    page.reload()
    page.get_by_text("No live updates: too many pages are open").wait_for()
    assert page.get_by_text("Connection lost").count() == 0
    draw(page)
    wait_for_picture(page)


def test_what_happens_while_the_gallery_is_read_again_is_not_lost(open_page: OpenPage, easel: Server) -> None:
    page = open_page(easel.url)
    shown = page.evaluate(
        """async (folder) => {
          const { ImageList } = await import(`${folder}gallery/image_list.js`);
          const answers = [];
          const list = new ImageList({ request: () => new Promise((resolve) => answers.push(resolve)) }, () => {});
          const image = (name, created) => ({ name, created });
          const answer = (...images) => answers.shift()({ images, next: null, total: images.length });
          const first = list.start({});
          answer(image("old", 1), image("deleted", 2));
          await first;
          const reading = list.readAgain();
          list.take({ change: "added", image: image("new", 3) }, true);
          list.take({ change: "removed", image: { name: "deleted" } }, true);
          list.readAgain();
          answer(image("deleted", 2), image("old", 1));
          await new Promise((resolve) => setTimeout(resolve, 50));
          const after = list.images.map(({ name }) => name);
          answer(image("newest", 4), image("new", 3), image("old", 1));
          await reading;
          return [after, list.images.map(({ name }) => name), answers.length];
        }""",
        page.evaluate("() => document.querySelector('script[type=module]').src.replace('app.js', '')"),
    )
    assert shown == [["new", "old"], ["newest", "new", "old"], 0]


def test_a_page_that_the_browser_brings_back_takes_the_key_of_the_other_tabs(
    open_page: OpenPage, easel: Server
) -> None:
    def set_key(page: Any, key: str) -> None:
        page.evaluate(
            """async (key) => {
              const app = document.querySelector('script[type=module]').src;
              (await import(app.replace('app.js', 'api.js'))).setKey(key);
            }""",
            key,
        )

    def wait_for_key(page: Any, key: str) -> None:
        page.wait_for_function(
            "(key) => sessionStorage.getItem('easel.key') === JSON.stringify(key)", arg=key
        )

    first = open_page(easel.url)
    other = first.context.new_page()
    other.goto(easel.url)
    other.wait_for_selector("html[data-ready]")
    set_key(first, "old")
    wait_for_key(other, "old")
    first.evaluate("() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    set_key(other, "new")
    first.evaluate("() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    wait_for_key(first, "new")
    wait_for_key(other, "new")


# --- many models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(easel: Server) -> dict[str, Any]:
    """The list of models, with a thousand more."""
    listed = requests.get(f"{easel.url}/v1/models?type=image", timeout=60).json()
    model = listed["data"][0]
    more = [
        {**model, "id": f"many-{number}", "name": f"Many {number}", "aliases": []} for number in range(MODELS)
    ]
    return {**listed, "data": [*listed["data"], *more]}


def test_a_thousand_models_are_few_rows_in_the_picker_and_each_is_found(
    open_page: OpenPage, easel: Server, many: dict[str, Any], size: str
) -> None:
    page = open_page(easel.url, size)
    page.context.route(re.compile(r"/v1/models\?"), lambda route: route.fulfill(json=many))
    page.get_by_role("button", name=re.compile("^Model: ")).click()
    page.wait_for_selector(".model-choice")
    assert page.locator(".model-choice").count() <= MOST_ROWS
    page.get_by_text("Search to find them").wait_for()
    page.get_by_role("searchbox", name="Search models").fill("many 977")
    page.wait_for_selector('[data-model="many-977"]')
    assert page.locator(".model-choice").count() == 1


def test_a_thousand_models_are_few_nodes_in_the_catalogue(
    open_page: OpenPage, easel: Server, many: dict[str, Any]
) -> None:
    page = open_page(easel.url)
    page.context.route(re.compile(r"/v1/models\?"), lambda route: route.fulfill(json=many))
    page.get_by_role("link", name="Catalogue").click()
    page.wait_for_selector("main.view-catalogue h1")
    page.get_by_text("Search to find them").wait_for()
    nodes = page.evaluate("() => document.querySelectorAll('main *').length")
    rows = page.evaluate(
        "() => document.querySelectorAll('main li, main [role=listitem], main button').length"
    )
    assert rows <= 2 * MOST_ROWS + 50
    assert nodes < 15 * MOST_ROWS


# --- in another language ---------------------------------------------------------------------------


def test_errors_and_what_is_waited_for_are_in_the_readers_language(
    open_page: OpenPage, easel: Server
) -> None:
    page = open_page(easel.url, locale="de-DE")
    error = {"message": "ComfyUI at X does not answer.", "type": "server_error", "param": None, "details": {}}
    body = json.dumps({"error": {**error, "code": "engine.unreachable"}})
    page.context.route(
        "**/v1/images/generations",
        lambda route: route.fulfill(status=503, content_type="application/json", body=body),
    )
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Zeichnen", exact=True).click()
    card = page.get_by_role("group", name="ComfyUI antwortet nicht")
    card.get_by_text("Starten Sie es, oder prüfen Sie engine.url.").wait_for()
    original = card.locator("[lang=en]")
    assert original.inner_text() == "ComfyUI at X does not answer."
    text = page.evaluate(
        """async (folder) => {
          const { waitsFor, messageOf } = await import(`${folder}text.js`);
          return [
            waitsFor({ waits_for: "2 pictures before it", reason: { code: "pictures_before", count: 2 } }),
            waitsFor({ waits_for: "tomorrow", reason: { code: "unheard.of" } }),
            waitsFor({ waits_for: null, reason: null }),
            waitsFor({ waits_for: "the LLMs to be loaded", reason: { code: "llms_loading", names: "" } }),
            waitsFor({ waits_for: "the LLMs to be loaded: a/b", reason: { code: "llms_loading", names: "a/b" } }),
            messageOf({ code: "auth.scope_missing", message: "no", details: { scope: "draw" } }),
            messageOf({ code: "auth.scope_missing", message: "no", details: {} }),
          ];
        }""",
        page.evaluate("() => document.querySelector('script[type=module]').src.replace('app.js', '')"),
    )
    assert text == [
        "2 Bilder davor",
        "tomorrow",
        None,
        "das Laden der LLMs",
        "das Laden der LLMs: a/b",
        "Ihr Schlüssel darf das nicht: ihm fehlt das Recht draw.",
        "no",
    ]


def test_the_line_at_the_top_says_in_the_readers_language_what_is_wrong(
    open_page: OpenPage, easel: Server
) -> None:
    page = open_page(easel.url, path="/#gallery", locale="de-DE")
    events = ScriptedEvents(page)
    page.goto(f"{easel.url}/?scripted")
    page.wait_for_selector("html[data-ready]")
    status = requests.get(f"{easel.url}/api/comfyui/status", timeout=60).json()
    # With one engine the stream lists none: the other fields say the same.
    problem = {"code": "engine.access_denied", "message": "401"}
    events.send("status", {**status, "engines": [], "problem": problem})
    page.locator(".status-words", has_text="ComfyUI lässt Easel nicht zu.").wait_for()


@pytest.mark.parametrize(
    ("locale", "view", "text"),
    [
        ("de-DE", "gallery", "Easel ist nicht erreichbar. Prüfen Sie, ob es läuft."),
        ("en-US", "catalogue", "Easel cannot be reached. Check that it is running."),
    ],
)
def test_a_server_that_is_away_is_named_in_the_readers_language(
    open_page: OpenPage, easel: Server, locale: str, view: str, text: str
) -> None:
    page = open_page(easel.url, locale=locale)
    page.context.route(re.compile(r"/(api/images|v1/models)\?"), lambda route: route.abort())
    page.evaluate("(view) => (location.hash = view)", view)
    page.locator("main").get_by_text(text).first.wait_for()


def test_an_address_and_settings_that_mean_nothing_do_no_harm(open_page: OpenPage, easel: Server) -> None:
    page = open_page(easel.url)
    for language in ('"toString"', '"xx"', "7", "{"):
        page.evaluate("(language) => localStorage.setItem('easel.language', language)", language)
        page.goto(f"{easel.url}/?{language}#constructor")
        page.wait_for_selector("html[data-ready]")
        page.get_by_label("Prompt", exact=True).wait_for()
