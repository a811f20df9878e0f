"""Draw, as a person uses it: on a phone and on a wide screen, in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest
import requests

from tests.page.browser import violations
from tests.page.conftest import OpenPage, serving
from tests.page.scripted_events import ScriptedEvents
from tests.server.running import Server
from tests.waiting import wait_until

PROMPT = "a red fox asleep in the snow"
TAKES_STEPS = "sd-1.5-pruned-emaonly"
OTHER_NAME = "https://pictures.example/easel"


def choose_model(page: Any, model: str) -> None:
    page.get_by_role("button", name=re.compile("^Model: ")).click()
    page.get_by_role("searchbox", name="Search models").fill(model)
    page.locator(f'[data-model="{model}"]').click()
    page.wait_for_function(
        "(model) => JSON.parse(sessionStorage.getItem('easel.draw') ?? '{}').model === model", arg=model
    )


def finished(page: Any, count: int = 1) -> list[str]:
    """The URLs of the pictures, once there are `count`."""
    page.wait_for_function(
        "(count) => [...document.querySelectorAll('.picture-open img')].filter((one) => one.naturalWidth).length === count",
        arg=count,
    )
    page.locator(".stage-facts").wait_for()
    urls: list[str] = page.eval_on_selector_all(".picture-open img", "(all) => all.map((one) => one.src)")
    return urls


def field(page: Any, name: str) -> Any:
    return page.locator(f'.fields [data-name="{name}"]')


def main_thread_s(profiler: Any) -> float:
    """Processor time that the page's thread has used for its tasks."""
    metrics = profiler.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def sent_bodies(page: Any) -> list[dict[str, Any]]:
    """Collects the bodies of the requests for pictures."""
    bodies: list[dict[str, Any]] = []
    page.context.on(
        "request",
        lambda request: (
            bodies.append(json.loads(request.post_data))
            if request.url.endswith("/images/generations") and request.post_data
            else None
        ),
    )
    return bodies


# --- drawing ---------------------------------------------------------------------------------------


@pytest.mark.essential
def test_a_prompt_and_ctrl_enter_draw_a_picture_that_the_api_has_too(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    [url] = finished(page)
    picture = requests.get(url, timeout=60)
    assert picture.headers["Content-Type"] == "image/png"
    assert "Sketches: no ComfyUI is connected" in page.locator("body").inner_text()


def test_an_empty_prompt_is_not_sent_and_says_why(easel: Server, open_page: OpenPage, size: str) -> None:
    page = open_page(easel.url, size)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("Describe the picture first.").wait_for()
    page.get_by_label("Prompt", exact=True).fill("x")
    assert page.get_by_text("Describe the picture first.").count() == 0


@pytest.mark.essential
def test_the_form_has_exactly_the_fields_that_the_model_declares(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    for model in (TAKES_STEPS, "flux-schnell"):
        choose_model(page, model)
        declared = requests.get(f"{easel.url}/v1/models/{model}", timeout=60).json()["inputs"]["generate"]
        expected = {one["name"] for one in declared} - {"prompt"}
        page.wait_for_function(
            "(expected) => { const names = [...document.querySelectorAll('.fields [data-name]')].map((one) => one.dataset.name);"
            " return names.length === expected.length && expected.every((name) => names.includes(name)); }",
            arg=sorted(expected),
        )


def test_what_was_set_is_sent_and_what_was_not_is_left_to_the_model(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    bodies = sent_bodies(page)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="3:2").click()
    field(page, "n").get_by_role("spinbutton").fill("2")
    field(page, "steps").get_by_role("spinbutton").fill("7")
    field(page, "negative_prompt").get_by_role("textbox").fill("blurry")
    page.get_by_label("Seed", exact=True).fill("42")
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page, 2)
    [body] = bodies
    sent = {
        name: body[name]
        for name in body
        if name not in ("stream", "partial_images", "stream_options", "response_format")
    }
    assert sent == {
        "model": TAKES_STEPS,
        "prompt": PROMPT,
        "size": "768x512",
        "n": 2,
        "steps": 7,
        "negative_prompt": "blurry",
        "seed": "42",
    }
    facts = page.locator(".stage-facts").inner_text()
    assert "768 × 512" in facts
    assert "seed 42" in facts


def test_numbers_that_the_model_does_not_allow_are_never_replaced_unseen(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    bodies = sent_bodies(page)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Seed", exact=True).fill("4 or 5")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("The seed is not valid").wait_for()
    assert bodies == []
    page.get_by_label("Seed", exact=True).fill("4")
    steps = field(page, "steps").get_by_role("spinbutton")
    most = steps.get_attribute("max")
    steps.fill(f"{most}0")
    steps.press("Enter")
    assert steps.input_value() == most
    finished(page)
    assert [str(body["steps"]) for body in bodies] == [most]


def test_previews_and_steps_show_while_a_batch_is_drawn_and_nothing_moves(
    slow_easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(slow_easel.url, size)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    field(page, "n").get_by_role("spinbutton").fill("2")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.get_by_role("progressbar").wait_for()
    before = page.locator(".picture").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().toJSON())"
    )
    page.locator(".picture canvas").first.wait_for()
    page.get_by_text(re.compile(r"Drawing picture 1 of 2 · step \d+ of 20")).wait_for()
    # Previews take the focus from nobody who types.
    assert page.evaluate("document.activeElement.id") == "prompt"
    finished(page, 2)
    after = page.locator(".picture").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert [(one["width"], one["height"], one["x"]) for one in after] == [
        (one["width"], one["height"], one["x"]) for one in before
    ]


@pytest.mark.essential
def test_stop_ends_the_job_in_the_engine(endless_easel: Server, open_page: OpenPage, size: str) -> None:
    page = open_page(endless_easel.url, size)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile(r"step \d+ of 20")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.get_by_role("button", name="Draw", exact=True).wait_for()

    def is_idle() -> bool:
        status = requests.get(f"{endless_easel.url}/api/comfyui/status", timeout=60).json()
        return (status["jobs"], status["queue"]["running"]) == ([], 0)

    wait_until(is_idle, 20.0)  # far less than the job has left


@pytest.mark.essential
def test_what_was_adjusted_is_listed_beside_the_picture(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Width in pixels").fill("515")
    page.get_by_text("It is rounded to a multiple of 8.").wait_for()
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)
    assert "515x512 became 512x512" in page.get_by_role("note").inner_text()


def test_the_seed_of_a_picture_can_be_kept(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    bodies = sent_bodies(page)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)
    page.get_by_role("button", name="Keep the last seed").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".draw-button[data-kind=stop]").wait_for()
    finished(page)
    assert str(bodies[0]["seed"]) == str(bodies[1]["seed"])


def test_the_picture_can_be_enlarged_in_one_click(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)
    page.get_by_role("group", name="What to do with the picture").get_by_role(
        "button", name="Enlarge"
    ).click()
    page.get_by_text("2048 × 2048").wait_for()


def test_a_picture_is_shown_on_the_whole_screen_with_all_that_the_gallery_can_do(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    (url,) = finished(page)
    image = url.replace("/cache/", "/")
    page.get_by_role("button", name="Open Picture").click()
    viewer = page.get_by_role("dialog", name="Picture")
    viewer.wait_for()
    page.keyboard.press("f")
    viewer.get_by_role("button", name="Favourite", pressed=True).wait_for()
    assert requests.get(image, timeout=60).json()["favourite"] is True
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    page.get_by_role("button", name="Open Picture").click()
    viewer.wait_for()
    page.keyboard.press("Delete")
    page.get_by_role("dialog", name=re.compile("Delete")).get_by_role("button", name="Delete").click()
    viewer.wait_for(state="hidden")
    page.get_by_text("no longer in the gallery").wait_for()
    assert requests.get(image, timeout=60).status_code == 404


def test_a_deleted_picture_is_shown_no_more_wherever_it_was_deleted(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("spinbutton", name="Pictures").fill("3")
    page.get_by_role("button", name="Draw", exact=True).click()
    third = finished(page, 3)[2].rpartition("/")[2]
    page.get_by_role("button", name="Open Picture 1").click()
    viewer = page.get_by_role("dialog", name="Picture", exact=True)
    viewer.get_by_text("1 of 3").wait_for()
    page.keyboard.press("Delete")
    page.get_by_role("dialog", name=re.compile("Delete")).get_by_role("button", name="Delete").click()
    viewer.get_by_text("1 of 2").wait_for()
    page.keyboard.press("Escape")
    viewer.wait_for(state="hidden")
    # The keys go on in the view, as the button that had the focus is gone.
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_selector(".gallery-tile")
    assert requests.delete(f"{easel.url}/api/images/{third}", timeout=60).status_code == 204
    page.wait_for_selector(f'.gallery-tile[data-name="{third}"]', state="detached")
    page.get_by_role("link", name="Draw").click()
    page.get_by_role("button", name="Open Picture 2").wait_for()
    assert page.get_by_text("no longer in the gallery").count() == 2
    assert page.locator(".picture-open").count() == page.locator(".picture-actions").count() == 1
    page.get_by_role("button", name="Open Picture 2").click()
    viewer.get_by_text("1 of 1").wait_for()


def test_a_latest_picture_that_is_chosen_is_in_sight(easel: Server, open_page: OpenPage, size: str) -> None:
    easel.draw(response_format="url")
    page = open_page(easel.url, size)
    page.locator(".recent button").first.click()
    page.locator(".picture-open img:not(.is-loading)").wait_for()
    box, height = page.locator(".picture").bounding_box(), page.viewport_size["height"]
    assert 0 <= box["y"] < height / 2


def test_a_picture_is_saved_under_the_name_that_the_gallery_gives_it(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    (url,) = finished(page)
    image = requests.get(url.replace("/cache/", "/"), timeout=60).json()
    end = f"{image['model']} {image['seed']} {image['name'][:4]}.png"
    for beginning in (r"\d{4}-\d\d-\d\d \d\d-\d\d-\d\d ", ""):
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert re.fullmatch(beginning + re.escape(end), download.value.suggested_filename)
        # While the index cannot be read the picture can still be saved.
        page.route(f"**/api/images/{image['name']}", lambda route: route.fulfill(status=503, json={}))


def test_a_key_that_may_not_draw_is_offered_nothing_that_draws(easel: Server, open_page: OpenPage) -> None:
    easel.draw(response_format="url")
    page = open_page(easel.url, path="/#gallery")
    events = ScriptedEvents(page, {"version": "1", "key": {"name": "me", "scopes": ["operate"]}})
    page.goto(f"{easel.url}/?scripted")
    events.send("status", requests.get(f"{easel.url}/api/comfyui/status", timeout=60).json())
    page.locator(".recent button").first.click()
    bar = page.get_by_role("group", name="What to do with the picture")
    bar.get_by_role("button", name="Download").wait_for()
    assert bar.get_by_role("button", name=re.compile("Vary|Enlarge|Remove")).count() == 0
    events.send("hello", {"version": "1", "key": {"name": "me", "scopes": ["draw"]}})
    page.locator(".recent button").first.click()
    bar.get_by_role("button", name="Enlarge").wait_for()


def test_pictures_show_whatever_host_and_path_the_answers_name(easel: Server, open_page: OpenPage) -> None:
    name = (
        requests.post(
            f"{easel.url}/v1/images/generations",
            json={"prompt": PROMPT, "size": "512x512", "response_format": "url"},
            timeout=180,
        )
        .json()["data"][0]["url"]
        .rpartition("/")[2]
    )
    page = open_page(easel.url)

    def rename(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(status=answer.status, json=json.loads(answer.text().replace(easel.url, OTHER_NAME)))

    page.context.route(re.compile(r"/api/images\?"), rename)
    page.context.route(
        "**/v1/images/generations",
        lambda route: route.fulfill(
            json={"data": [{"url": f"{OTHER_NAME}/api/images/cache/{name}"}], "size": "512x512"}
        ),
    )
    page.reload()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    assert finished(page) == [f"{easel.url}/api/images/cache/{name}"]
    page.wait_for_function("() => document.querySelector('.recent img')?.naturalWidth")


def test_another_view_that_is_opened_meanwhile_keeps_the_focus(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    held: list[Any] = []
    page.context.route(re.compile(r"/api/images\?"), lambda route: held.append(route))
    page.get_by_role("link", name="Gallery", exact=True).click()
    page.locator(".gallery-view").wait_for()
    page.get_by_role("link", name="Draw", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    with page.expect_response(lambda response: "limit=100" in response.url):
        for route in held:
            route.continue_()
    page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 100)))")
    assert page.evaluate("[document.activeElement.id, document.title]") == ["prompt", "Easel"]


# --- models ----------------------------------------------------------------------------------------


def test_draw_waits_for_the_fields_of_the_model_that_was_just_chosen(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    page.get_by_role("button", name=re.compile("^Model: SDXL")).wait_for()
    bodies = sent_bodies(page)
    held: list[Any] = []
    page.context.route("**/v1/models/flux-schnell", lambda route: held.append(route))
    choose_model(page, "flux-schnell")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("The models are still being read.").wait_for()
    assert bodies == []
    for route in held:
        route.continue_()
    finished(page)
    assert [body["model"] for body in bodies] == ["flux-schnell"]


def test_an_example_changes_the_prompt_and_nothing_else(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    choose_model(page, TAKES_STEPS)
    field(page, "steps").get_by_role("spinbutton").fill("9")
    page.get_by_role("button", name="A lighthouse in a storm, oil painting").click()
    assert page.get_by_label("Prompt", exact=True).input_value() == "A lighthouse in a storm, oil painting"
    assert field(page, "steps").get_by_role("spinbutton").input_value() == "9"


def test_a_model_is_found_by_a_word_with_the_keyboard_alone(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    page.get_by_role("button", name=re.compile("^Model: ")).focus()
    page.keyboard.press("Enter")
    page.keyboard.type("flux schnell")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_role("button", name=re.compile(r"^Model: FLUX\.1 .?schnell")).wait_for()


# --- bad input, reloads, tabs ----------------------------------------------------------------------


def test_the_form_survives_a_reload(easel: Server, open_page: OpenPage, size: str) -> None:
    page = open_page(easel.url, size)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill("שלום <script>alert(1)</script>")
    field(page, "steps").get_by_role("spinbutton").fill("9")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.get_by_label("Prompt", exact=True).input_value() == "שלום <script>alert(1)</script>"
    assert field(page, "steps").get_by_role("spinbutton").input_value() == "9"
    assert page.locator("script:not([src])").count() == 0


def test_two_tabs_keep_forms_of_their_own(easel: Server, open_page: OpenPage) -> None:
    first = open_page(easel.url)
    first.get_by_label("Prompt", exact=True).fill("one")
    second = first.context.new_page()
    second.goto(easel.url)
    second.wait_for_selector("html[data-ready]")
    second.get_by_label("Prompt", exact=True).fill("two")
    second.wait_for_timeout(600)
    first.reload()
    first.wait_for_selector("html[data-ready]")
    assert first.get_by_label("Prompt", exact=True).input_value() == "one"


def test_a_full_storage_loses_nothing_but_the_settings(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    page.evaluate(
        "() => { try { for (let n = 0; ; n++) localStorage.setItem('fill' + n, 'x'.repeat(100_000)); } catch {} }"
    )
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)


def test_a_forbidden_storage_loses_nothing_but_the_settings(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, { get() { throw new DOMException('', 'SecurityError'); } });"
    )
    page.reload()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)


def test_a_prompt_of_32000_characters_types_without_lag(slow_easel: Server, open_page: OpenPage) -> None:
    page = open_page(slow_easel.url)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill("word " * 6395)
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.locator(".picture canvas").first.wait_for()
    profiler = page.context.new_cdp_session(page)
    profiler.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.get_by_label("Prompt", exact=True).press("End")
    before = main_thread_s(profiler)
    page.keyboard.type("typing on", delay=60)
    assert page.get_by_label("Prompt", exact=True).input_value().endswith("typing on")
    # Processor time, which other programs on the machine do not change.
    assert (main_thread_s(profiler) - before) / len("typing on") < 0.05


def test_a_prompt_that_is_too_long_is_not_cut_off(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url)
    page.get_by_label("Prompt", exact=True).fill("x" * 32_001)
    page.get_by_text("32,001 of 32,000 characters").wait_for()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("at most 32,000 are possible").wait_for()


@pytest.mark.essential
def test_an_error_says_what_helps_and_shows_text_as_text(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size)
    error = {
        "error": {
            "message": "Files of <img src=x onerror=alert(1)> are missing.",
            "code": "model.files_missing",
            "details": {},
        }
    }
    page.context.route("**/v1/images/generations", lambda route: route.fulfill(status=503, json=error))
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    card = page.get_by_role("group", name="Files of this model are missing")
    card.wait_for()
    assert "<img src=x onerror=alert(1)>" in card.inner_text()
    assert "model.files_missing" in card.inner_text()
    assert card.get_by_role("button", name="Get the files").is_visible()
    assert card.locator("img").count() == 0


# --- lost connections ------------------------------------------------------------------------------


def test_a_worker_that_is_killed_while_it_draws_costs_no_picture(
    slow_easel: Server, open_page: OpenPage
) -> None:
    page = open_page(slow_easel.url)
    bodies = sent_bodies(page)
    choose_model(page, TAKES_STEPS)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile(r"step \d+ of 20")).wait_for()
    for worker in slow_easel.workers():
        os.kill(worker, signal.SIGKILL)
    page.locator(".status-text", has_text="Connection lost. Drawing goes on").wait_for()
    [url] = finished(page)
    assert requests.get(url, timeout=60).status_code == 200
    assert {body["seed"] for body in bodies} == {bodies[0]["seed"]}


# --- keys ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_easel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("closed"), EASEL_API_KEYS="secret-key") as server:
        yield server


@pytest.mark.essential
def test_a_key_is_asked_for_once_and_kept_for_the_session(
    closed_easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(closed_easel.url, size)
    page.get_by_label("API key", exact=True).fill("wrong")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("This key is not accepted").wait_for()
    page.get_by_label("API key", exact=True).fill("secret-key")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)
    page.reload()
    page.get_by_role("button", name=re.compile("^Model: ")).wait_for()
    assert page.get_by_role("dialog").count() == 0
    # A new tab has it from this one; no cookie and no local storage has it.
    other = page.context.new_page()
    other.goto(closed_easel.url)
    other.get_by_role("button", name=re.compile("^Model: SDXL")).wait_for()
    assert other.get_by_role("dialog").count() == 0
    assert page.context.cookies() == []
    assert "secret-key" not in json.dumps(page.evaluate("({...localStorage})"))


def test_a_key_that_one_tab_gets_closes_the_question_in_the_other(
    closed_easel: Server, open_page: OpenPage
) -> None:
    page = open_page(closed_easel.url)
    other = page.context.new_page()
    other.goto(closed_easel.url)
    for tab in (other, page):
        tab.get_by_role("dialog").wait_for()
    page.get_by_label("API key", exact=True).fill("secret-key")
    page.get_by_role("button", name="Use this key").click()
    other.get_by_role("dialog").wait_for(state="detached")
    other.get_by_role("button", name=re.compile("^Model: SDXL")).wait_for()


def test_a_key_that_may_not_draw_is_told_so_before_anything_is_sent(
    easel: Server, open_page: OpenPage
) -> None:
    page = open_page(easel.url)
    ScriptedEvents(page, {"version": "1", "key": {"name": "viewer", "scopes": ["view"]}})
    page.reload()
    page.wait_for_function("() => window.pushEvent")
    bodies = sent_bodies(page)
    page.get_by_role("button", name=re.compile("^Model: ")).wait_for()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("It needs the scope draw.").wait_for()
    assert bodies == []


# --- for everyone ----------------------------------------------------------------------------------


@pytest.mark.essential
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_before_and_after_a_picture(
    easel: Server, open_page: OpenPage, size: str, scheme: str, axe: str
) -> None:
    page = open_page(easel.url, size, color_scheme=scheme)
    assert violations(page, axe) == []
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Draw", exact=True).click()
    finished(page)
    page.get_by_text("More settings").click()
    assert violations(page, axe) == []
    page.get_by_role("button", name=re.compile("^Model: ")).click()
    assert violations(page, axe) == []


def test_the_page_speaks_the_language_of_the_browser_and_another_if_chosen(
    easel: Server, open_page: OpenPage, size: str
) -> None:
    page = open_page(easel.url, size, locale="de-DE")
    page.get_by_role("button", name="Zeichnen", exact=True).wait_for()
    page.get_by_role("button", name="Einstellungen", exact=True).click()
    page.get_by_role("radio", name="English").click()
    page.get_by_role("button", name="Draw", exact=True).wait_for()


def test_nothing_is_wider_than_the_screen(easel: Server, open_page: OpenPage) -> None:
    for width in (320, 390, 768, 1024, 1440, 2560):
        page = open_page(easel.url, viewport={"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
