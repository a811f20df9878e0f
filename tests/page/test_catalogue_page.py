"""The catalogue view, as a person uses it: finding a model, getting its files, seeing what a request becomes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.engine.freezing_proxy import FreezingProxy
from tests.page.browser import violations
from tests.page.conftest import OpenPage
from tests.page.scripted_events import ScriptedEvents
from tests.page.seeding import seed_images
from tests.server.running import Server, running
from tests.waiting import wait_until

MODEL = "sdxl-turbo"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with pictures of its models."""
    state = tmp_path_factory.mktemp("catalogue")
    seed_images(state, 4)
    with running(state) as server:
        yield server


@pytest.fixture(scope="module")
def comfyui(sketch_url: str) -> Iterator[FreezingProxy]:
    """A sketch engine that says it is a ComfyUI, whose editor has workflows."""
    with FreezingProxy(sketch_url) as proxy:
        proxy.version = "0.33.0"
        yield proxy


@pytest.fixture(scope="module")
def with_comfyui(tmp_path_factory: pytest.TempPathFactory, comfyui: FreezingProxy) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("comfyui"), EASEL_ENGINE_URL=comfyui.url) as server:
        yield server


def opened(
    open_page: OpenPage, server: Server, size: str = "wide", model: str = MODEL, **options: Any
) -> Any:
    page = open_page(server.url, size, path=f"/#catalogue/{model}", **options)
    page.wait_for_selector(".model-page")
    return page


def model_of(server: Server, name: str = MODEL) -> Any:
    return requests.get(f"{server.url}/v1/models/{name}", timeout=60).json()


@pytest.mark.essential
def test_models_are_grouped_by_family_and_found_by_any_of_their_names(
    open_page: OpenPage, catalogue: Server, size: str
) -> None:
    page = open_page(catalogue.url, size, path="/#catalogue")
    models = page.get_by_role("navigation", name="Models")
    models.get_by_role("link", name="SDXL Turbo").wait_for()
    listed = requests.get(f"{catalogue.url}/v1/models?type=image", timeout=60).json()["data"]
    count = sum(1 for model in listed if "slot_of" not in model)
    models.get_by_text(f"{count} models").wait_for()
    families = {model["family"] for model in listed}
    assert set(models.get_by_role("heading").all_text_contents()) == families
    models.get_by_role("searchbox").fill("stabilityai/sdxl-turbo")
    models.get_by_text("1 model", exact=True).wait_for()
    models.get_by_role("searchbox").fill("<script>")
    models.get_by_text("No model matches.").wait_for()


def test_a_model_has_facts_licence_files_and_its_newest_picture(
    open_page: OpenPage, catalogue: Server, size: str
) -> None:
    model = model_of(catalogue)
    page = opened(open_page, catalogue, size)
    facts = page.get_by_role("region", name="Facts").inner_text()
    for words in (MODEL, "512 × 512, from 256 × 256 to 1024 × 1024", "6.9 GB", "from 8 GB", "lcm-sdxl"):
        assert words in facts
    licence = page.get_by_role("region", name="Licence").inner_text()
    for words in (model["licence"]["name"], "commercial use with conditions", "not accepted yet"):
        assert words in licence
    assert f"easel accept-licence {MODEL}" in licence
    files = page.get_by_role("region", name="Files").inner_text()
    for file in model["files"]:
        assert file["name"] in files
    newest = requests.get(f"{catalogue.url}/api/images?model={MODEL}&limit=1", timeout=60).json()["images"][0]
    picture = page.locator(".sample img")
    picture.wait_for()
    assert newest["name"] in picture.get_attribute("src")
    page.get_by_role("button", name="Draw with it").click()
    page.wait_for_function("() => location.hash === '#draw'")


def test_missing_files_are_downloaded_and_the_download_shows_its_progress(
    open_page: OpenPage, catalogue: Server, size: str
) -> None:
    page = open_page(catalogue.url, size, path="/#gallery")
    events = ScriptedEvents(page)
    document = model_of(catalogue)
    document["files"] = [{**file, "state": "missing"} for file in document["files"]]
    document["pull"] = f"easel pull-model {MODEL}"
    page.route(re.compile(f"/v1/models/{MODEL}$"), lambda route: route.fulfill(json=document))
    sent: list[Any] = []
    page.route(
        "**/api/models/pull",
        lambda route: (sent.append(json.loads(route.request.post_data)), route.fulfill(status=202, json={})),
    )
    page.goto(f"{catalogue.url}/?scripted#catalogue/{MODEL}")
    files = page.get_by_role("region", name="Files")
    files.get_by_text(f"easel pull-model {MODEL}").wait_for()
    files.get_by_role("button", name="Download what is missing").click()
    page.wait_for_timeout(300)
    assert sent == [{"models": [MODEL]}]
    pull = {
        "id": "p1",
        "models": [MODEL],
        "state": "running",
        "received": 1_000_000_000,
        "size": 4_000_000_000,
        "bytes_per_s": 100_000_000,
        "files": [],
        "error": None,
    }
    events.send("pulls", [pull])
    files.get_by_text("downloading · 1 GB of 4 GB · 100 MB per second · about 30 sec left").wait_for()
    assert files.get_by_role("progressbar").get_attribute("aria-valuenow") == "25"
    failed = {**pull, "state": "failed", "error": {"code": "model.disk_full", "message": "The disk is full."}}
    events.send("pulls", [failed])
    files.get_by_text("The disk is full.").wait_for()
    # What has arrived is read again.
    document["files"] = [{**file, "state": "present"} for file in document["files"]]
    events.send("pulls", [{**pull, "state": "done"}])
    files.get_by_text("present").first.wait_for()
    files.get_by_role("button", name="Download what is missing").wait_for(state="hidden")


@pytest.mark.essential
def test_the_graph_of_a_request_says_where_each_value_comes_from(
    open_page: OpenPage, catalogue: Server, size: str
) -> None:
    page = opened(open_page, catalogue, size)
    page.get_by_label("Prompt", exact=True).fill("a red <b>fox</b>")
    body = {"model": MODEL, "prompt": "a red <b>fox</b>"}
    answer = requests.post(f"{catalogue.url}/api/graph", json=body, timeout=60).json()
    nodes = page.locator(".graph-node")
    page.locator(".graph-row-value", has_text="a red <b>fox</b>").wait_for()
    assert nodes.count() == len(answer["nodes"])
    links = sum(1 for node in answer["nodes"] for entry in node["inputs"] if entry["link"])
    assert page.locator(".graph-links path").count() == links
    boxes = [node.bounding_box() for node in nodes.all()]
    overlapping = [
        (one, other)
        for place, one in enumerate(boxes)
        for other in boxes[place + 1 :]
        if one["x"] < other["x"] + other["width"]
        and other["x"] < one["x"] + one["width"]
        and one["y"] < other["y"] + other["height"]
        and other["y"] < one["y"] + one["height"]
    ]
    assert overlapping == []
    page.get_by_role("button", name="As a list").click()
    for node in answer["nodes"]:
        item = page.locator(".graph-list .graph-item", has_text=f"{node['id']}: ")
        for entry in node["inputs"]:
            row = item.get_by_role("row").filter(
                has=page.get_by_role("rowheader", name=entry["name"], exact=True)
            )
            text = row.first.inner_text()
            if entry["origin"]:
                assert entry["origin"] in text
            if entry["link"]:
                assert f"from {entry['link'][0]}: " in text


def test_the_graph_is_moved_and_enlarged_by_keys(open_page: OpenPage, catalogue: Server) -> None:
    page = opened(open_page, catalogue)
    page.wait_for_selector(".graph-node")
    canvas = page.locator(".graph-canvas")
    canvas.focus()
    first = page.locator(".graph-node").first
    before = first.bounding_box()
    page.keyboard.press("ArrowRight")
    moved = first.bounding_box()
    assert moved["x"] == pytest.approx(before["x"] - 64, abs=1)
    page.keyboard.press("+")
    assert first.bounding_box()["width"] > before["width"] * 1.2
    page.keyboard.press("0")
    assert first.bounding_box() == pytest.approx(before)
    first.click()
    chosen = page.locator(".graph-chosen")
    chosen.wait_for()
    assert first.get_attribute("data-id") in chosen.inner_text()


def test_the_saved_graph_is_that_of_the_api(open_page: OpenPage, catalogue: Server) -> None:
    page = opened(open_page, catalogue)
    page.wait_for_selector(".graph-node")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    assert download.value.suggested_filename == f"{MODEL}-generate.json"
    with open(download.value.path(), encoding="utf-8") as file:
        saved = json.load(file)
    body = {"model": MODEL, "prompt": page.get_by_label("Prompt", exact=True).input_value()}
    expected = requests.post(f"{catalogue.url}/api/graph", json=body, timeout=60).json()["graph"]
    assert without_chance(saved) == without_chance(expected)
    assert saved


def workflows_of(engine: FreezingProxy) -> list[str]:
    response = requests.get(f"{engine.url}/userdata?dir=workflows", timeout=60)
    return list(response.json()) if response.status_code == 200 else []


@pytest.mark.essential
def test_the_graph_is_downloaded_for_comfyui_and_saved_among_its_workflows(
    open_page: OpenPage, with_comfyui: Server, comfyui: FreezingProxy
) -> None:
    # When the state of a model becomes known, its page is shown anew.
    wait_until(lambda: (model_of(with_comfyui, "flux-schnell")["engine"] or {}).get("ready"), 60)
    page = opened(open_page, with_comfyui, model="flux-schnell")
    page.get_by_label("Prompt", exact=True).fill("a red fox")
    page.locator(".graph-row-value", has_text="a red fox").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download for ComfyUI").click()
    assert download.value.suggested_filename == "easel-flux-schnell-generate.json"
    with open(download.value.path(), encoding="utf-8") as file:
        downloaded = json.load(file)
    body = {"model": "flux-schnell", "prompt": "a red fox", "as": "editor"}
    answer = requests.post(f"{with_comfyui.url}/api/graph", json=body, timeout=60).json()
    assert [node["type"] for node in downloaded["nodes"]] == [
        node["type"] for node in answer["editor_file"]["nodes"]
    ]
    assert "a red fox" in json.dumps(downloaded)
    page.get_by_role("list", name="ComfyUI").get_by_text(answer["notes"][0]).wait_for()
    before = set(workflows_of(comfyui))
    save = page.get_by_role("button", name="Save into ComfyUI's workflows")
    save.focus()
    page.keyboard.press("Enter")
    page.locator("#live-polite", has_text="Saved in ComfyUI").wait_for(state="attached")
    (saved,) = set(workflows_of(comfyui)) - before
    assert saved.startswith("easel-flux-schnell-generate")
    assert saved in page.locator(".toast[data-kind=success]").last.inner_text()
    assert save.evaluate("(button) => button === document.activeElement")
    # Another request's graph is not the one of which something was said.
    page.get_by_label("Prompt", exact=True).fill("a blue fox")
    page.locator(".graph-row-value", has_text="a blue fox").wait_for()
    page.get_by_role("list", name="ComfyUI").wait_for(state="hidden")
    comfyui.frozen["/userdata"] = "500"
    try:
        save.click()
        page.locator(".toast[data-kind=error]", has_text="Download it instead").wait_for()
    finally:
        comfyui.frozen.clear()
    assert len(workflows_of(comfyui)) == len(before) + 1


def test_without_an_editor_or_the_permission_nothing_offers_to_save(
    open_page: OpenPage, catalogue: Server, with_comfyui: Server, size: str
) -> None:
    page = opened(open_page, catalogue, size)
    page.get_by_role("button", name="Download for ComfyUI").wait_for()
    assert not page.get_by_role("button", name="Save into ComfyUI's workflows").is_visible()
    page = open_page(with_comfyui.url, size, path="/#gallery")
    events = ScriptedEvents(page)
    page.goto(f"{with_comfyui.url}/?scripted#catalogue/{MODEL}")
    page.get_by_role("button", name="Download for ComfyUI").wait_for()
    save = page.get_by_role("button", name="Save into ComfyUI's workflows")
    status = requests.get(f"{with_comfyui.url}/api/comfyui/status", timeout=60).json()
    for scopes, is_shown in ((["draw", "view"], False), (["operate"], True)):
        events.send("hello", {"version": "1", "key": {"name": "me", "scopes": scopes}})
        events.send("status", status)
        save.wait_for(state="visible" if is_shown else "hidden")
    events.send("status", {**status, "reachable": False})
    save.wait_for(state="hidden")


def test_the_buttons_for_comfyui_speak_german(open_page: OpenPage, with_comfyui: Server) -> None:
    page = opened(open_page, with_comfyui, "phone", locale="de-DE")
    page.get_by_role("button", name="Für ComfyUI herunterladen").wait_for()
    page.get_by_role("button", name="In ComfyUIs Workflows speichern").click()
    page.locator(".toast[data-kind=success]", has_text="gespeichert").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def without_chance(graph: Any) -> Any:
    """Without what differs in each request."""
    return {
        name: {
            **node,
            "inputs": {
                key: value
                for key, value in node["inputs"].items()
                if key not in ("noise_seed", "filename_prefix")
            },
        }
        for name, node in graph.items()
    }


PROMPT = 'it\'s a "quoted" $HOME `fox` \\ and 猫'


def code_in(page: Any, language: str) -> str:
    page.get_by_role("tab", name=language).click()
    text: str = page.get_by_role("tabpanel").inner_text()
    return text


def test_the_requests_as_code_draw_what_they_say(open_page: OpenPage, catalogue: Server) -> None:
    page = opened(open_page, catalogue)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.wait_for_timeout(600)
    python = code_in(page, "Python")
    assert PROMPT in [node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)]
    assert f'base_url="{catalogue.url}/v1"' in python
    assert "EASEL_API_KEY" in python
    environment = {**os.environ, "EASEL_API_KEY": "none"}
    curl = code_in(page, "curl")
    result = subprocess.run(
        ["sh", "-c", curl], capture_output=True, text=True, timeout=180, env=environment, check=True
    )
    name = json.loads(result.stdout)["data"][0]["url"].rsplit("/", 1)[1]
    assert requests.get(f"{catalogue.url}/api/images/{name}", timeout=60).json()["prompt"] == PROMPT
    script = code_in(page, "JavaScript")
    node = ["node", "--input-type=module", "-e", script]
    try:
        result = subprocess.run(
            node, capture_output=True, text=True, timeout=180, env=environment, check=True
        )
    except FileNotFoundError:
        assert PROMPT.replace("\\", "\\\\").replace('"', '\\"') in script  # without Node it is only read
    else:
        name = result.stdout.strip().rsplit("/", 1)[1]
        assert requests.get(f"{catalogue.url}/api/images/{name}", timeout=60).json()["prompt"] == PROMPT


def test_on_a_phone_the_list_leads_to_a_model_and_back(open_page: OpenPage, catalogue: Server) -> None:
    page = open_page(catalogue.url, "phone", path="/#catalogue")
    page.get_by_role("link", name="SDXL Turbo").click()
    page.get_by_role("heading", name="SDXL Turbo").wait_for()
    assert page.evaluate("() => location.hash") == f"#catalogue/{MODEL}"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.go_back()
    page.get_by_role("navigation", name="Models").wait_for()
    page.get_by_role("link", name="SDXL Turbo").click()
    page.get_by_role("link", name="All models").click()
    page.get_by_role("navigation", name="Models").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_objection(
    open_page: OpenPage, catalogue: Server, axe: str, size: str, scheme: str
) -> None:
    page = opened(open_page, catalogue, size, color_scheme=scheme)
    page.wait_for_selector(".graph-node")
    assert violations(page, axe) == []
    page.get_by_role("button", name="As a list").click()
    assert violations(page, axe) == []
    if size == "phone":
        page.get_by_role("link", name="All models").click()
        page.get_by_role("navigation", name="Models").wait_for()
        page.wait_for_timeout(300)
        assert violations(page, axe) == []
