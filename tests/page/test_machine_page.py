"""The machine view, as its owner uses it: what is happening, and what can be done about it."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
import requests

from tests.page.browser import violations
from tests.page.conftest import OpenPage
from tests.page.scripted_events import ScriptedEvents
from tests.server.running import Server

VIEWER = {"version": "1", "key": {"name": "viewer", "scopes": ["view"]}}


def status(**changes: Any) -> dict[str, Any]:
    """The status of a machine whose GPU is shared: two requests are drawn and two wait."""
    now = time.time()
    return {
        "mode": "generation",
        "engine": "generating",
        "reachable": True,
        "problem": None,
        "container": {"name": "comfyui", "state": "running"},
        "endpoint": "http://127.0.0.1:8188",
        "version": "0.33.0",
        "sketch": False,
        "picture_delivery": "websocket",
        "memory": {
            "gtt_used_gb": None,
            "gtt_ceil_gb": None,
            "vram_used_gb": 13.1,
            "vram_ceil_gb": 16.0,
            "vram_used_share": 0.82,
            "ram_used_gb": 26.0,
            "ram_ceil_gb": 64.0,
            "pressure": True,
        },
        "queue": {"running": 1, "pending": 1},
        "jobs": [],
        "tickets": [],
        "switchover": {
            **NO_SWITCH,
            "failed": [{"owner": "llama", "id": "qwen3-14b", "message": "out of memory"}],
        },
        "arbiter": {
            "mode": "generation",
            "since": now - 754,
            "pinned": False,
            "wanted": None,
            "retry_after_s": {},
            "saved_llm_slots": ["ollama/gemma3:12b"],
            "idle_restore_at": now + 400,
            "rebuilt": None,
        },
        "stacks": [
            stack("llama", loaded=["qwen3-14b"], busy=2),
            stack("vllm", reachable=False, loaded=None, busy=None, problem="connection refused"),
        ],
        "models": [],
        "stages": [],
        "probed_at": now,
        "upstreams": [
            {
                "name": "cloud",
                "url": "http://10.0.0.5/v1",
                "preset": "openai",
                "stack": None,
                "models": 3,
                "problem": "401",
            }
        ],
        "keys": {"error": None},
        "metrics": {"problem": None},
        "requests": [
            waiting(
                "r1",
                state="drawing",
                model="flux2-dev",
                prompt="<b>a cat</b>",
                progress=0.35,
                step=7,
                steps=20,
            ),
            waiting(
                "r2", place=1, model="sdxl-turbo", waits_for="2 pictures that are drawn before", expected_s=21
            ),
            waiting("r3", place=2, model="qwen3-14b", kind="llm", client="open-webui", can_cancel=False),
        ],
        "switches": [
            {
                "at": now - 754,
                "from": "inference",
                "to": "generation",
                "reason": "an image request waits",
                "who": "kitchen",
                "seconds": 6.2,
                "error": None,
                "phases": [{"name": "draining", "seconds": 2.2}, {"name": "releasing", "seconds": 4.0}],
            },
            {
                "at": now - 4000,
                "from": "generation",
                "to": "inference",
                "reason": "idle",
                "who": None,
                "seconds": 3.8,
                "phases": [],
                "error": {"code": "llm.load_failed", "message": "llama is gone"},
            },
        ],
        "last_error": {
            "at": now - 180,
            "code": "engine.out_of_memory",
            "message": "The GPU ran out of memory.",
            "remedy": "Request a smaller size.",
        },
        "catalogue": {"error": None, "own_errors": []},
        **changes,
    }


NO_SWITCH: dict[str, Any] = {
    "active": False,
    "target": None,
    "error": None,
    "error_code": None,
    "number": 4,
    "reason": None,
    "phase": None,
    "phases": [],
    "elapsed_s": None,
    "failed": [],
    "notes": [],
    "forced": None,
    "resumed": None,
}


def stack(name: str, **changes: Any) -> dict[str, Any]:
    facts = {"driver": "llama-server", "url": "http://127.0.0.1:8081", "reachable": True, "problem": None}
    return {"name": name, **facts, "loaded": [], "busy": 0, **changes}


def waiting(id: str, **changes: Any) -> dict[str, Any]:
    known = {
        "state": "waiting",
        "kind": "image",
        "prompt": None,
        "client": "studio",
        "age_s": 14.2,
        "place": 0,
    }
    unknown = {"progress": None, "step": None, "steps": None, "waits_for": None, "expected_s": None}
    return {"id": id, **known, **unknown, "can_cancel": True, **changes}


def pull(**changes: Any) -> dict[str, Any]:
    file = {
        "name": "sdxl.safetensors",
        "folder": "checkpoints",
        "size": 6_000_000_000,
        "received": 2_000_000_000,
    }
    return {
        "id": "p1",
        "models": ["sdxl-base-1.0"],
        "state": "running",
        "received": 2_000_000_000,
        "error": None,
        "size": 6_000_000_000,
        "bytes_per_s": 50_000_000,
        "files": [{**file, "state": "running", "reason": None}],
        **changes,
    }


@pytest.fixture
def machine(open_page: OpenPage, easel: Server) -> Any:
    """Opens the machine view with scripted events: `machine("phone", document)` gives the page and its events."""

    def open_one(
        size: str = "wide",
        document: Any = None,
        hello: Any = None,
        heading: str = "Who has the GPU",
        **options: Any,
    ) -> Any:
        page = open_page(easel.url, size, path="/#gallery", **options)
        events = ScriptedEvents(page, hello)
        page.goto(f"{easel.url}/?scripted#machine")
        page.wait_for_selector("html[data-ready]")
        events.send("status", document or status())
        page.get_by_role("heading", name=heading).wait_for()
        return page, events

    return open_one


def card(page: Any, name: str) -> Any:
    return page.get_by_role("region", name=name, exact=True)


@pytest.mark.essential
def test_everything_of_the_status_is_there_in_words(machine: Any, size: str) -> None:
    page, events = machine(size)
    samples = [
        {
            "at": time.time() - 300 + 5 * i,
            "vram_used_gb": 4 + i / 10,
            "vram_ceil_gb": 16.0,
            "ram_used_gb": 20.0,
            "ram_ceil_gb": 64.0,
        }
        for i in range(60)
    ]
    events.send("memory", samples)
    gpu = card(page, "Who has the GPU").inner_text()
    assert re.search(r"ComfyUI has the GPU, for 12 min 3\d sec", gpu)
    assert re.search(r"goes back to the LLM servers in 6 min", gpu)
    assert "llama/qwen3-14b could not be loaded again: out of memory" in gpu
    engine = card(page, "Engine").inner_text()
    for words in (
        "0.33.0",
        "http://127.0.0.1:8188",
        "leave no file in ComfyUI",
        "comfyui: running",
        "1 running, 1 waiting",
    ):
        assert words in engine
    assert re.search(
        r"The last error, 3 minutes ago\s+The GPU ran out of memory\.\s+What helps: Request a smaller", engine
    )
    memory = card(page, "Memory")
    assert "9.9 GB of 16 GB" in memory.inner_text()
    assert memory.get_by_role("meter", name="GPU memory").get_attribute("aria-valuenow") == "9.9"
    assert "from 4 GB to 9.9 GB" in memory.locator("svg").get_attribute("aria-label")
    stacks = card(page, "LLM servers").inner_text()
    for words in (
        "qwen3-14b",
        "2 requests",
        "not reachable",
        "connection refused",
        "ollama/gemma3:12b",
        "cloud",
        "401",
    ):
        assert words in stacks
    queue = card(page, "Queue").inner_text()
    for words in (
        "flux2-dev",
        "<b>a cat</b>",
        "step 7 of 20",
        "waiting, 1 ahead",
        "waits for 2 pictures",
        "open-webui",
    ):
        assert words in queue
    assert "about 21 sec left" in queue
    switches = card(page, "Switches").inner_text()
    for words in (
        "LLMs → Pictures",
        "an image request waits · kitchen",
        "6.2 sec",
        "llama is gone",
        "10 sec in all",
    ):
        assert words in switches
    assert card(page, "Switches").get_by_label(re.compile("Free the memory 4 sec")).count() == 1


def engine_entry(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "gpu": name,
        "endpoint": "http://127.0.0.1:8188",
        "engine": "running",
        "reachable": True,
        "problem": None,
        "sketch": False,
        "version": "0.33.0",
        "shared": True,
        "mode": "generation",
        "switching": False,
        "drained": False,
        "drained_since": None,
        "models": None,
        "weight": 1.0,
        "loaded_models": [],
        "queue": {"running": 0, "pending": 0},
        "waiting": 0,
        "memory": None,
        "seconds_per_job": None,
        "pictures_per_hour": 0,
        **changes,
    }


ENGINES = [
    engine_entry(
        "left",
        engine="generating",
        loaded_models=["flux2-dev", "sdxl-turbo"],
        waiting=2,
        pictures_per_hour=1234,
    ),
    engine_entry("right", mode="inference", drained=True, drained_since=1.0, pictures_per_hour=1),
    engine_entry(
        "a-third-one-with-a-very-long-name-that-does-not-fit",
        engine="stopped",
        shared=False,
        mode="inference",
        reachable=False,
        problem={
            "code": "engine.unreachable",
            "message": "ComfyUI at http://127.0.0.1:8190 does not answer.",
        },
    ),
]


def test_several_engines_are_listed_and_one_is_not(machine: Any, size: str) -> None:
    document = status(engines=ENGINES)
    document["requests"][0]["engine"] = "left"
    page, events = machine(size, document)
    engines = card(page, "Engines")
    rows = [row.inner_text().split("\n") for row in engines.get_by_role("listitem").all()]
    assert [[line for line in row if line.strip()] for row in rows] == [
        ["left", "drawing", "Loaded: flux2-dev, sdxl-turbo", "2 waiting · 1,234 pictures per hour"],
        [
            *("right", "ready", "drained", "Nothing is loaded."),
            "The LLM servers have the GPU · 0 waiting · 1 picture per hour",
        ],
        [
            *("a-third-one-with-a-very-long-name-that-does-not-fit", "not running"),
            *("0 waiting · 0 pictures per hour", "ComfyUI at http://127.0.0.1:8190 does not answer."),
        ],
    ]
    assert "Name\nleft" in card(page, "Engine").inner_text()
    assert "studio · on left · 14 sec old" in card(page, "Queue").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    events.send("status", status(engines=ENGINES[:1]))
    engines.wait_for(state="hidden")
    assert "Name" not in card(page, "Engine").inner_text()


def test_the_line_at_the_top_says_ready_while_another_engine_can_draw(machine: Any) -> None:
    dead = {
        "engine": "stopped",
        "reachable": False,
        "problem": ENGINES[2]["problem"],
        "requests": [],
        "stacks": [],
    }
    page, events = machine("wide", status(**dead, engines=[ENGINES[2], ENGINES[0]]))
    line = page.locator(".status-words")
    page.wait_for_function("document.querySelector('.status-dot').dataset.kind === 'ready'")
    ready = line.inner_text()
    drained = {**ENGINES[0], "drained": True}
    for engines in ([ENGINES[2], drained], [ENGINES[2]]):
        events.send("status", status(**dead, engines=engines))
        page.wait_for_function("document.querySelector('.status-dot').dataset.kind === 'off'")
        assert line.inner_text() != ready
        events.send("status", status(**dead, engines=ENGINES[:1]))
        page.wait_for_function("document.querySelector('.status-dot').dataset.kind === 'ready'")


def gpu_entry(name: str, **changes: Any) -> dict[str, Any]:
    shared = {**status()["arbiter"], "saved_llm_slots": [], "idle_restore_at": None}
    return {
        "name": name,
        "engine": name,
        "switchover": NO_SWITCH,
        "switches": [],
        "arbiter": shared,
        **changes,
    }


def test_each_gpu_that_llms_share_is_shown_and_switched_by_its_name(machine: Any, size: str) -> None:
    first = status()
    right = gpu_entry(
        "right",
        arbiter={**first["arbiter"], "mode": "inference", "saved_llm_slots": ["vllm/gemma"]},
        switches=[{**first["switches"][0], "at": time.time() - 5, "reason": "an LLM request waits"}],
    )
    own = {part: first[part] for part in ("switchover", "switches", "arbiter")}
    gpus = [gpu_entry("left", **own), right, gpu_entry("a-third-one", arbiter=None)]
    stacks = [stack("llama", gpu="left"), stack("vllm", gpu="right", loaded=["qwen3"])]
    page, _events = machine(
        size, status(engines=ENGINES, gpus=gpus, stacks=stacks), heading="Who has GPU left"
    )
    titles = [title for title in page.get_by_role("heading", level=2).all_inner_texts() if "Who has" in title]
    assert titles == ["Who has GPU left", "Who has GPU right"], "the third one is not shared"
    assert "ComfyUI has the GPU, for 12 min" in card(page, "Who has GPU left").inner_text()
    shown = card(page, "Who has GPU right")
    assert "The LLM servers have the GPU" in shown.inner_text()
    assert "1 model loaded" in shown.inner_text()
    assert "GPU right · an LLM request waits" in card(page, "Switches").inner_text()
    servers = card(page, "LLM servers").inner_text()
    assert "GPU right" in servers
    assert "Will be loaded again: ollama/gemma3:12b, vllm/gemma" in servers
    sent: list[Any] = []
    page.route(
        "**/api/comfyui/*",
        lambda route: (
            sent.append((route.request.url.rpartition("/")[2], route.request.post_data_json)),
            route.fulfill(json={}),
        ),
    )
    shown.get_by_role("button", name="Give it to ComfyUI").click()
    card(page, "Who has GPU left").get_by_role("button", name="Hold for pictures").click()
    page.wait_for_timeout(300)
    assert sent == [
        ("switchover", {"mode": "generation", "gpu": "right"}),
        ("pin", {"pinned": True, "gpu": "left"}),
    ]


def test_engines_speak_german(machine: Any) -> None:
    page, _events = machine("phone", status(engines=ENGINES), locale="de-DE", heading="Wer die GPU hat")
    text = card(page, "Engines").inner_text()
    for words in (
        "zeichnet",
        "Geladen: flux2-dev",
        "2 warten · 1.234 Bilder pro Stunde",
        "nimmt nichts Neues an",
    ):
        assert words in text
    assert "1 Bild pro Stunde" in text


def test_what_a_phase_has_taken_so_far_counts_on(machine: Any) -> None:
    page, events = machine()
    phases = [{"name": "closing", "seconds": 0.1}, {"name": "draining", "seconds": 2.0}]
    running = {
        **NO_SWITCH,
        "active": True,
        "target": "inference",
        "phase": "releasing",
        "phases": phases,
        "elapsed_s": 3.1,
    }
    events.send("status", status(switchover=running))
    gpu = card(page, "Who has the GPU")
    gpu.get_by_text("The GPU goes to the LLM servers").wait_for()
    assert "Wait for running requests\n2 sec" in gpu.inner_text()
    current = gpu.locator(".is-current .phase-seconds")
    first = current.inner_text()
    page.wait_for_function(
        "(text) => document.querySelector('.is-current .phase-seconds').textContent !== text", arg=first
    )
    assert float(current.inner_text().split()[0]) > float(first.split()[0]) >= 1.0
    button = gpu.get_by_role("button", name="Give it to the LLMs")
    assert button.get_attribute("aria-disabled") == "true"
    assert button.get_attribute("title") == "A switch is under way."


def test_the_gpu_is_switched_held_and_forced_after_a_question(machine: Any, size: str) -> None:
    page, _events = machine(size)
    sent: list[tuple[str, Any]] = []

    def answer(route: Any) -> None:
        sent.append((route.request.url.rsplit("/", 1)[1], json.loads(route.request.post_data)))
        route.fulfill(status=202, json={"status": "switching"})

    page.route("**/api/comfyui/switchover", answer)
    page.route("**/api/comfyui/pin", answer)
    gpu = card(page, "Who has the GPU")
    gpu.get_by_role("button", name="Give it to the LLMs").click()
    gpu.get_by_role("button", name="Hold for pictures").click()
    gpu.get_by_role("button", name="Force to the LLMs").click()
    question = page.get_by_role("dialog", name="Switch by force?")
    assert "3 requests are running or waiting" in question.inner_text()
    question.get_by_role("button", name="Cancel").click()
    assert sent == [("switchover", {"mode": "inference"}), ("pin", {"pinned": True})]
    gpu.get_by_role("button", name="Force to the LLMs").click()
    question.get_by_role("button", name="Switch now").click()
    page.wait_for_timeout(300)
    assert sent[2:] == [("switchover", {"mode": "inference", "force": True})]
    refused = {"error": {"code": "comfyui.busy", "message": "ComfyUI draws 2 pictures.", "param": None}}
    page.unroute("**/api/comfyui/switchover")
    page.route("**/api/comfyui/switchover", lambda route: route.fulfill(status=409, json=refused))
    gpu.get_by_role("button", name="Give it to the LLMs").click()
    gpu.get_by_text("ComfyUI draws 2 pictures.").wait_for()


def test_one_request_is_cancelled_and_its_button_stays_while_the_queue_changes(
    machine: Any, size: str
) -> None:
    page, events = machine(size)
    sent: list[Any] = []
    page.route(
        "**/api/comfyui/render/cancel",
        lambda route: (sent.append(json.loads(route.request.post_data)), route.fulfill(status=202, json={})),
    )
    button = page.get_by_role("button", name="Cancel the request to sdxl-turbo")
    button.focus()
    document = status()
    document["requests"] = [waiting("r0", state="drawing", model="flux-schnell"), *document["requests"][1:]]
    events.send("status", document)
    card(page, "Queue").get_by_text("flux-schnell").wait_for()
    assert (
        page.evaluate("() => document.activeElement.getAttribute('aria-label')")
        == "Cancel the request to sdxl-turbo"
    )
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert sent == [{"id": "r2"}]
    # A request that may not be cancelled has no button.
    assert page.get_by_role("button", name="Cancel the request to qwen3-14b").count() == 0
    page.get_by_role("button", name="Cancel all").click()
    page.get_by_role("dialog", name="Cancel 3 requests?").get_by_role("button", name="Cancel all").click()
    page.wait_for_timeout(300)
    assert sent[1:] == [{"all": True}]


def test_a_failed_download_is_explained_in_the_readers_language(easel: Server, open_page: OpenPage) -> None:
    page = open_page(easel.url, path="/#gallery", locale="de-DE")
    events = ScriptedEvents(page, None)
    page.goto(f"{easel.url}/?scripted#machine")
    error = {"code": "model.disk_full", "message": "No space for a.safetensors."}
    events.send("status", status())
    events.send("pulls", [pull(state="failed", error=error)])
    page.get_by_text("Für die Dateien des Modells ist kein Platz auf der Platte.").wait_for()
    assert page.locator(".downloads-card [lang=en]").inner_text() == "No space for a.safetensors."


def test_downloads_have_progress_and_are_cancelled(machine: Any, size: str) -> None:
    page, events = machine(size)
    failed = pull(
        id="p0",
        models=["flux-dev"],
        state="failed",
        error={"code": "x", "message": "Accept the licence first."},
    )
    events.send("pulls", [pull(), failed])
    downloads = card(page, "Downloads")
    downloads.get_by_text("2 GB of 6 GB · 50 MB per second · about 1 min 20 sec left").wait_for()
    downloads.get_by_text("Accept the licence first.").wait_for()
    assert downloads.get_by_role("progressbar").first.get_attribute("aria-valuenow") == "33"
    cancelled: list[str] = []
    page.route(
        "**/api/models/pulls/*",
        lambda route: (
            cancelled.append(f"{route.request.method} {route.request.url}"),
            route.fulfill(status=202, json={}),
        ),
    )
    downloads.get_by_role("button", name="Cancel the download of sdxl-base-1.0").click()
    page.wait_for_timeout(300)
    assert len(cancelled) == 1
    assert cancelled[0].startswith("DELETE")
    assert cancelled[0].endswith("/p1")


def test_mistakes_of_the_catalogue_have_file_and_line(machine: Any, size: str) -> None:
    page, events = machine(size)
    assert card(page, "Please fix").count() == 0
    error = {
        "code": "catalogue.invalid",
        "message": "max must be <WxH>",
        "file": "catalogue.yaml",
        "line": 214,
        "column": 11,
    }
    own = {"message": "my-model has no workflow", "file": "own/my.yaml", "line": 3}
    events.send(
        "status",
        status(
            catalogue={"error": error, "own_errors": [own]},
            settings={
                "error": {**error, "message": "engines.0.gpu is taken", "file": "easel.yaml", "line": 7}
            },
            keys={"error": "keys.json is not JSON"},
        ),
    )
    fix = card(page, "Please fix")
    fix.wait_for()
    for words in (
        "easel.yaml:7:11",
        "engines.0.gpu is taken",
        "catalogue.yaml:214:11",
        "max must be <WxH>",
        "own/my.yaml:3",
        "keys.json is not JSON",
    ):
        assert words in fix.inner_text()
    events.send("status", status())
    fix.wait_for(state="hidden")


def test_a_key_that_may_only_look_sees_why_it_cannot_act(machine: Any, size: str) -> None:
    page, events = machine(size, hello=VIEWER)
    events.send("pulls", [pull()])
    gpu = card(page, "Who has the GPU")
    gpu.get_by_text("It needs the scope operate.").wait_for()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method != "GET" else None)
    for name in ("Give it to the LLMs", "Hold for pictures", "Force to the LLMs"):
        button = gpu.get_by_role("button", name=name)
        assert button.get_attribute("aria-disabled") == "true"
        button.click(force=True)
    assert sent == []
    assert page.get_by_role("button", name="Cancel the download").count() == 0
    assert page.get_by_role("button", name="Cancel all").count() == 0


def test_nothing_is_asked_for_while_it_is_open_and_a_lost_connection_is_said(machine: Any) -> None:
    page, events = machine()
    page.wait_for_timeout(500)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for progress in (0.4, 0.5, 0.6):
        document = status()
        document["requests"][0]["progress"] = progress
        events.send("status", document)
        page.wait_for_timeout(400)
    assert card(page, "Queue").get_by_role("progressbar").first.get_attribute("aria-valuenow") == "60"
    assert asked == []
    events.end()
    page.get_by_text("The connection is lost").wait_for()


def test_a_machine_without_shared_gpu_and_an_engine_with_a_problem(machine: Any, size: str) -> None:
    problem = {
        "code": "engine.no_websocket",
        "message": "The proxy before ComfyUI passes no WebSockets: allow them.",
    }
    page, _events = machine(
        size, status(arbiter=None, stacks=[], requests=[], switches=[], problem=problem, last_error=None)
    )
    assert "ComfyUI always has the GPU." in card(page, "Who has the GPU").inner_text()
    assert card(page, "Who has the GPU").get_by_role("button").count() == 0
    assert "allow them" in card(page, "Engine").inner_text()
    assert "Nothing is drawn and nothing waits." in card(page, "Queue").inner_text()
    assert card(page, "Switches").count() == 0


@pytest.mark.essential
def test_what_the_page_shows_is_what_the_api_answers(open_page: OpenPage, easel: Server, size: str) -> None:
    answer = requests.get(f"{easel.url}/api/comfyui/status", timeout=60).json()
    page = open_page(easel.url, size, path="/#machine")
    engine = card(page, "Engine")
    engine.wait_for()
    assert answer["endpoint"] in engine.inner_text()
    assert "Sketch engine" in engine.inner_text()
    assert "the built-in engine draws sketches" in engine.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_objection(machine: Any, axe: str, size: str, scheme: str) -> None:
    error = {
        "code": "catalogue.invalid",
        "message": "wrong",
        "file": "catalogue.yaml",
        "line": 1,
        "column": 1,
    }
    page, events = machine(
        size, status(catalogue={"error": error, "own_errors": []}, engines=ENGINES), color_scheme=scheme
    )
    events.send("pulls", [pull()])
    page.wait_for_timeout(300)
    assert violations(page, axe) == []
    events.send(
        "status",
        status(
            switchover={
                **NO_SWITCH,
                "active": True,
                "target": "inference",
                "phase": "draining",
                "elapsed_s": 1.0,
            }
        ),
    )
    page.wait_for_timeout(300)
    assert violations(page, axe) == []
