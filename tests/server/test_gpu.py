"""Switchovers through a real server: two workers, a fake llama-server that counts what is loaded, and the sketch
engine."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator

from engine import Engine
from sketch import SketchProcess
from tests.conftest import NODES, ROOT
from tests.llm.fake_servers import FakeLlamaServer
from tests.processes import free_port
from tests.server.running import Server, running
from tests.waiting import wait_until

SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas/comfyui_status.schema.json").read_text()))
KEY = "sk-secret-of-the-llm-server"


@pytest.fixture
def llama() -> Iterator[FakeLlamaServer]:
    """An LLM server that needs a key, with two models loaded."""
    with FakeLlamaServer() as fake:
        fake.key = KEY
        yield fake


@pytest.fixture
def slow_sketch(catalogue_files: dict[str, list[str]]) -> Iterator[SketchProcess]:
    """An engine that takes two seconds for a picture."""
    with SketchProcess(nodes=NODES, files=catalogue_files, render_ms=2000) as sketch:
        yield sketch


def variables(llama: FakeLlamaServer, engine_url: str, **gpu: Any) -> dict[str, str]:
    stack = {"name": "chat", "driver": "llama-server", "url": llama.url, "key_env": "LLAMA_KEY", "load_s": 5}
    settings = {
        "EASEL_GPU_MIN_STAY_S": 0,
        "EASEL_GPU_RESTORE": "idle",
        **{f"EASEL_GPU_{name.upper()}": value for name, value in gpu.items()},
    }
    return {
        "EASEL_ENGINE_URL": engine_url,
        "EASEL_LLM_STACKS": json.dumps([stack]),
        "LLAMA_KEY": KEY,
        **{name: str(value) for name, value in settings.items()},
    }


def status(server: Server) -> dict[str, Any]:
    response = requests.get(f"{server.url}/api/comfyui/status", timeout=60)
    assert response.status_code == 200
    assert KEY not in response.text
    document: dict[str, Any] = response.json()
    SCHEMA.validate(document)
    return document


def post(server: Server, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/api/comfyui/{path}", json=body, timeout=60)


def switch(server: Server, mode: str, **options: Any) -> dict[str, Any]:
    """Requests a switch, waits until it has ended, and returns its status."""
    response = post(server, "switchover", mode=mode, **options)
    assert response.status_code == 202, response.text
    wait_until(lambda: not status(server)["switchover"]["active"])
    block: dict[str, Any] = status(server)["switchover"]
    return block


def in_background(pool: ThreadPoolExecutor, server: Server, **fields: Any) -> Any:
    return pool.submit(lambda: server.draw(response_format="b64_json", **fields))


def code_of(response: requests.Response) -> str:
    return str(response.json()["error"]["code"])


# --- switchovers -----------------------------------------------------------------------------------


def test_a_picture_switches_to_generation_in_every_worker_and_a_switch_back_loads_the_llms_again(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert status(server)["mode"] == "inference"
        assert server.draw().status_code == 200
        assert llama.loaded() == []
        # Separate connections, so that both workers respond.
        assert {status(server)["mode"] for _ in range(12)} == {"generation"}
        assert status(server)["arbiter"]["saved_llm_slots"] == ["chat/chat", "chat/embed"]
        block = switch(server, "inference")
        assert [phase["name"] for phase in block["phases"]] == [
            "closing", "draining", "releasing", "verifying", "restoring",
        ]  # fmt: skip
        assert (block["error"], block["failed"]) == (None, [])
        assert sorted(llama.loaded()) == ["chat", "embed"]
        assert KEY not in server.log


def test_a_switch_takes_less_than_a_second_besides_the_servers_own_time(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    """The aim is 250 ms on a quiet machine; a CI machine may be busy, so the limit here is four times that."""
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        seconds = [
            sum(phase["seconds"] for phase in switch(server, mode)["phases"])
            for mode in ("generation", "inference") * 3
        ]
        assert sorted(seconds)[len(seconds) // 2] < 1.0, seconds


def test_an_invalid_image_request_fails_without_a_switch(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        for fields, code in (
            ({"model": "unknown-model"}, "image.model_not_curated"),
            ({"prompt": " "}, "image.prompt_required"),
            ({"size": "9x9"}, "image.size_not_allowed"),
        ):
            assert code_of(server.draw(**fields)) == code
        assert sorted(llama.loaded()) == ["chat", "embed"]
        assert status(server)["switchover"]["number"] is None


def test_an_unreachable_engine_fails_the_request_without_a_switch(
    tmp_path: Path, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, f"http://127.0.0.1:{free_port()}")) as server:
        assert code_of(server.draw()) == "engine.unreachable"
        assert sorted(llama.loaded()) == ["chat", "embed"]
        report = status(server)
        assert (report["engine"], report["reachable"], report["memory"]) == ("stopped", False, None)


def test_an_unload_without_effect_fails_the_request_and_the_mode_stays(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.ignores_unloads = True
    with running(tmp_path / "state", **variables(llama, sketch_url, release_timeout_s=1)) as server:
        response = server.draw()
        assert (response.status_code, code_of(response)) == (503, "gpu.switch_failed")
        assert int(response.headers["Retry-After"]) >= 1
        block = status(server)["switchover"]
        assert block["error"].startswith("generation: Still in memory")
        assert (block["error_code"], status(server)["mode"]) == ("gpu.switch_failed", "inference")


def test_a_model_that_cannot_be_loaded_again_is_reported_and_the_others_are_loaded(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.load("broken")
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert server.draw().status_code == 200
        block = switch(server, "inference")
        assert [failure["id"] for failure in block["failed"]] == ["broken"]
        assert sorted(llama.loaded()) == ["chat", "embed"]
        assert status(server)["mode"] == "inference"


def test_a_chat_straight_to_the_llm_server_gets_the_gpu_while_nothing_is_drawn(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert server.draw().status_code == 200
        llama.requests.clear()
        llama.load("chat")
        wait_until(lambda: status(server)["mode"] == "inference")
        wait_until(lambda: not status(server)["switchover"]["active"])
        assert status(server)["switchover"]["reason"] == "LLM loaded: chat/chat"
        assert "/models/unload" not in [path for _, path, _ in llama.requests]
        assert "chat" in llama.loaded()


def test_a_chat_straight_to_the_llm_server_during_a_picture_is_put_out_and_its_model_loaded_again(
    tmp_path: Path, slow_sketch: SketchProcess, llama: FakeLlamaServer
) -> None:
    environment = variables(llama, slow_sketch.url, restore="linger", linger_s=0)
    with running(tmp_path / "state", **environment) as server, ThreadPoolExecutor(1) as pool:
        drawing = in_background(pool, server, n=2, model="flux-schnell")
        wait_until(lambda: status(server)["queue"]["running"])
        llama.load("chat")
        wait_until(lambda: llama.loaded() == [])
        report = status(server)
        assert report["switchover"]["reason"] == "loaded outside Easel: chat/chat"
        assert report["arbiter"]["saved_llm_slots"] == ["chat/chat", "chat/embed"]
        assert drawing.result(60).status_code == 200
        wait_until(lambda: sorted(llama.loaded()) == ["chat", "embed"])


def test_the_gpu_goes_back_soon_after_the_last_picture_of_a_burst(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    environment = variables(llama, sketch_url, restore="linger", linger_s=2)
    with running(tmp_path / "state", **environment) as server:
        for _ in range(5):
            assert server.draw().status_code == 200
            time.sleep(0.3)
        assert status(server)["switchover"]["number"] == 1
        wait_until(lambda: sorted(llama.loaded()) == ["chat", "embed"], timeout_s=10)
        assert server.draw().status_code == 200, "no minimum stay: nobody asks for the LLMs"
        assert status(server)["switchover"]["number"] == 3


def test_the_sketch_engine_that_easel_starts_unloads_no_llm(tmp_path: Path, llama: FakeLlamaServer) -> None:
    environment = variables(llama, "", restore="linger")
    with running(tmp_path / "state", **environment) as server:
        if not status(server)["sketch"]:
            pytest.skip("a ComfyUI runs on port 8188")
        assert server.draw(n=2).status_code == 200
        assert status(server)["mode"] == "inference"
        refused = post(server, "switchover", mode="generation")
        assert (refused.status_code, code_of(refused)) == (503, "comfyui.arbiter_unavailable")
        assert "sketch engine" in refused.json()["error"]["message"]
        assert "/models/unload" not in [path for _, path, _ in llama.requests]


# --- killed processes ------------------------------------------------------------------------------


def test_a_switch_whose_worker_is_killed_is_finished_by_another(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.unload_delay_s = 1.5
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert post(server, "switchover", mode="generation").status_code == 202
        wait_until(lambda: status(server)["switchover"]["phase"] == "verifying")
        state = json.loads((tmp_path / "state/gpu/state.json").read_text())
        os.kill(state["switch"]["pid"], signal.SIGKILL)
        wait_until(lambda: not status(server)["switchover"]["active"])
        report = status(server)
        assert (report["mode"], report["switchover"]["resumed"], report["switchover"]["error"]) == (
            "generation",
            1,
            None,
        )
        assert llama.loaded() == []
        assert report["arbiter"]["saved_llm_slots"] == ["chat/chat", "chat/embed"]


def test_the_job_of_a_killed_worker_is_cancelled_and_the_next_picture_is_drawn(
    tmp_path: Path, slow_sketch: SketchProcess, llama: FakeLlamaServer
) -> None:
    with (
        running(tmp_path / "state", **variables(llama, slow_sketch.url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        connection_lost = pool.submit(_loses_connection, server)
        wait_until(lambda: status(server)["jobs"])
        worker = next((tmp_path / "state/gpu/holds").iterdir()).name.split(".")[5]
        os.kill(int(worker), signal.SIGKILL)
        assert connection_lost.result(20)
        engine = Engine(slow_sketch.url)
        wait_until(lambda: engine.queue().running == () and engine.queue().pending == (), 1.9)
        engine.close()
        assert server.draw().status_code == 200


def _loses_connection(server: Server) -> bool:
    try:
        server.draw()
    except requests.ConnectionError:
        return True
    return False


def kill(server: Server) -> None:
    """The whole server, as after a power cut."""
    for pid in (server.process.pid, *server.workers()):
        os.kill(pid, signal.SIGKILL)
    server.process.wait(90)


def test_after_a_kill_in_generation_mode_the_llms_are_loaded_again_at_the_next_start(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert server.draw().status_code == 200
        kill(server)
    assert llama.loaded() == []
    with running(tmp_path / "state", **variables(llama, sketch_url, restore="linger")) as server:
        wait_until(lambda: sorted(llama.loaded()) == ["chat", "embed"])
        wait_until(lambda: status(server)["mode"] == "inference")


def test_a_restart_with_llms_loaded_switches_to_inference(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert server.draw().status_code == 200
        kill(server)
    llama.load("chat")
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        wait_until(lambda: status(server)["mode"] == "inference")
        assert "chat" in llama.loaded()


def test_a_clean_stop_hands_the_gpu_back(tmp_path: Path, sketch_url: str, llama: FakeLlamaServer) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert server.draw().status_code == 200
        assert llama.loaded() == []
    assert sorted(llama.loaded()) == ["chat", "embed"]
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        assert status(server)["mode"] == "inference"


@pytest.mark.parametrize("options", [{"restore": "never"}, {"pin": True}])
def test_never_and_a_pin_keep_generation_mode_through_a_stop(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer, options: dict[str, Any]
) -> None:
    is_pinned = options.pop("pin", False)
    with running(tmp_path / "state", **variables(llama, sketch_url, **options)) as server:
        switch(server, "generation", pin=is_pinned)
    assert llama.loaded() == []
    with running(tmp_path / "state", **variables(llama, sketch_url, **options)) as server:
        assert status(server)["mode"] == "generation"


# --- explicit requests -----------------------------------------------------------------------------


def test_force_cancels_the_render_and_the_queue(
    tmp_path: Path, catalogue_files: dict[str, list[str]], llama: FakeLlamaServer
) -> None:
    with (
        SketchProcess(nodes=NODES, files=catalogue_files, render_ms=15_000) as sketch,
        running(tmp_path / "state", **variables(llama, sketch.url)) as server,
        ThreadPoolExecutor(5) as pool,
    ):
        drawings = [in_background(pool, server, seed=seed) for seed in range(5)]
        wait_until(lambda: len(status(server)["jobs"]) == 2 and len(status(server)["tickets"]) == 3)
        refused = post(server, "switchover", mode="inference")
        assert (refused.status_code, code_of(refused)) == (409, "comfyui.busy")
        assert refused.json()["error"]["details"]["queue"] == {"running": 1, "pending": 4}
        started_at = time.monotonic()
        switch(server, "inference", force=True)
        assert time.monotonic() - started_at < 10, "a render takes longer"
        assert {code_of(drawing.result(10)) for drawing in drawings} == {"gpu.preempted"}
        assert sorted(llama.loaded()) == ["chat", "embed"]
        queue = Engine(sketch.url).queue()
        assert (queue.running, queue.pending) == ((), ())


def test_a_render_is_cancelled_by_its_id_and_all_renders_with_all(
    tmp_path: Path, slow_sketch: SketchProcess, llama: FakeLlamaServer
) -> None:
    with (
        running(tmp_path / "state", **variables(llama, slow_sketch.url)) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        drawings = [in_background(pool, server, seed=seed) for seed in range(4)]
        wait_until(lambda: len(status(server)["jobs"]) == 2 and len(status(server)["tickets"]) == 2)
        waiting = status(server)["tickets"][0]["id"]
        assert post(server, "render/cancel", id=waiting).json() == {
            "status": "cancel_requested",
            "jobs": [waiting],
        }
        wait_until(lambda: sum(drawing.done() for drawing in drawings) == 1)
        response = post(server, "render/cancel", all=True)
        assert (response.status_code, len(response.json()["jobs"])) == (202, 3)
        responses = [drawing.result(10) for drawing in drawings]
        assert {(response.status_code, code_of(response)) for response in responses} == {
            (409, "comfyui.cancelled")
        }
        assert {response.headers["x-should-retry"] for response in responses} == {"false"}
        assert code_of(post(server, "render/cancel", id=waiting)) == "comfyui.job_not_found"


def test_a_request_is_cancelled_whole_by_its_request_id_or_by_one_of_its_jobs(
    tmp_path: Path, slow_sketch: SketchProcess, llama: FakeLlamaServer
) -> None:
    with (
        running(tmp_path / "state", **variables(llama, slow_sketch.url)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        for name in ("x-request-id", "job"):
            # Six pictures in two jobs, because four is the model's largest batch.
            drawing = pool.submit(_draw_with_id, server, "my-request", n=6)
            wait_until(lambda: status(server)["jobs"])
            (job,) = status(server)["jobs"]
            assert (job["request_id"], job["model"]) == ("my-request", "sdxl-turbo")
            assert job["client"].startswith("127.0.0.1 python-requests/")
            assert 0 <= job["age_s"] < 30
            cancelled = post(
                server, "render/cancel", id="my-request" if name == "x-request-id" else job["id"]
            )
            assert cancelled.json() == {"status": "cancel_requested", "jobs": [job["id"]]}
            response = drawing.result(10)
            assert (response.status_code, code_of(response)) == (409, "comfyui.cancelled")
        assert status(server)["jobs"] == []
        assert len(list((tmp_path / "state/gpu/requests").glob("*"))) == 0
        assert list((tmp_path / "state/gpu/jobs").glob("*.cancelled")) == []


def _draw_with_id(server: Server, request_id: str, **fields: Any) -> requests.Response:
    return requests.post(
        f"{server.url}/v1/images/generations",
        json={"prompt": "a cat", "size": "256x256", "response_format": "b64_json", **fields},
        headers={"x-request-id": request_id},
        timeout=180,
    )


def test_a_waiting_request_says_what_it_waits_for_and_flask_gpu_cancels_it(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.busy = {"chat": (1, 0)}
    with (
        running(tmp_path / "state", **variables(llama, sketch_url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        drawing = pool.submit(_draw_with_id, server, "my-request", stream=True)
        wait_until(lambda: status(server)["tickets"] and status(server)["switchover"]["phase"])
        (ticket,) = status(server)["tickets"]
        assert ticket["waits_for"] == "running LLM requests to end"
        assert (ticket["request_id"], ticket["model"], ticket["place"]) == ("my-request", "sdxl-turbo", 0)
        assert ticket["expected_s"] >= 1
        time.sleep(1)  # so that the stream reports it, too
        shown = flask_gpu(server, "status").stdout
        assert "my-request  sdxl-turbo  127.0.0.1 python-requests/" in shown
        assert "waits for running LLM requests to end, about " in shown
        assert flask_gpu(server, "cancel", "my-request").returncode == 0
        body = drawing.result(10).text
        waiting = json.loads(body.partition(": waiting ")[2].partition("\n")[0])
        assert waiting["waits_for"] == "running LLM requests to end"
        assert waiting.keys() == {"waits_for", "reason", "waited_s", "expected_s", "place"}
        assert waiting["reason"] == {"code": "running_llm_requests"}
        assert '"code": "comfyui.cancelled"' in body or '"code":"comfyui.cancelled"' in body
        unknown = flask_gpu(server, "cancel", "my-request")
        assert unknown.returncode != 0
        assert "comfyui.job_not_found" in unknown.stderr
        assert flask_gpu(server, "cancel").returncode != 0, "neither an id nor --all"
        assert flask_gpu(server, "cancel", "--all").stdout == "nothing runs\n"


def test_a_stream_says_how_many_pictures_are_before_it_in_comfyuis_queue(
    tmp_path: Path, slow_sketch: SketchProcess
) -> None:
    """Without LLM stacks the requests wait in ComfyUI."""
    with (
        running(tmp_path / "state", EASEL_ENGINE_URL=slow_sketch.url) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        first = [in_background(pool, server, seed=seed) for seed in (1, 2)]
        wait_until(lambda: sum(status(server)["queue"].values()) == 2)
        body = _draw_with_id(server, "third", stream=True, stream_options={"include_usage": True}).text
        assert [drawing.result(30).status_code for drawing in first] == [200, 200]
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        *waiting, begun = [event["waiting"] for event in events if "waiting" in event]
        assert begun is None
        assert waiting[0]["waits_for"] in ("2 pictures before it", "the picture before it")
        assert waiting[-1]["waited_s"] >= waiting[0]["waited_s"] >= 0
        assert events[-1]["data"][0]["progress"] == 100


def flask_gpu(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "gpu", *arguments, "--url", server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_each_gpu_is_shown_switched_and_pinned_by_its_name(
    tmp_path: Path, sketch_url: str, catalogue_files: dict[str, list[str]], llama: FakeLlamaServer
) -> None:
    with SketchProcess(nodes=NODES, files=catalogue_files) as second:
        engines = [
            {"name": "large", "url": sketch_url, "gpu": 0},
            {"name": "small", "url": second.url, "gpu": 1},
        ]
        environment = variables(llama, "")
        stacks = [{**stack, "gpu": 1} for stack in json.loads(environment.pop("EASEL_LLM_STACKS"))]
        environment |= {"EASEL_ENGINES": json.dumps(engines), "EASEL_LLM_STACKS": json.dumps(stacks)}
        del environment["EASEL_ENGINE_URL"]
        with running(tmp_path / "state", **environment) as server:
            wait_until(lambda: all(engine["reachable"] for engine in status(server)["engines"]))

            def gpu(*arguments: str) -> str:
                done = flask_gpu(server, *arguments)
                assert done.returncode == 0, done.stderr
                return done.stdout

            lines = gpu("status").splitlines()
            assert lines[0] == "GPU 0      generation (no LLM stack shares it)"
            assert lines[1] == "GPU 1      inference"
            lines = gpu("status", "--gpu", "1").splitlines()
            assert lines[:2] == [
                "GPU 1      inference",
                "engine     small, running, the built-in sketch engine",
            ]
            assert "stack      chat (llama-server): loaded: chat, embed" in lines
            lines = gpu("switch", "generation", "--gpu", "1", "--pin").splitlines()
            assert lines[0] == "GPU 1      generation, pinned"
            assert llama.loaded() == []
            (first, other) = status(server)["gpus"]
            assert (first["name"], first["engine"], first["arbiter"]) == ("0", "large", None)
            assert (other["name"], other["engine"], other["arbiter"]["pinned"]) == ("1", "small", True)
            assert [each["to"] for each in other["switches"]] == ["generation"]
            assert gpu("unpin", "--gpu", "1") == "not pinned\n"
            shown = json.loads(gpu("switch", "inference", "--gpu", "1", "--json"))
            assert (shown["gpu"], shown["engine_name"], shown["mode"]) == ("1", "small", "inference")
            assert sorted(llama.loaded()) == ["chat", "embed"]
            for command in (("status",), ("pin",), ("switch", "generation")):
                refused = flask_gpu(server, *command, "--gpu", "9")
                assert refused.returncode == 2
                assert refused.stderr.startswith("request.invalid_value: ")
                assert "there are: 0, 1." in refused.stderr
            refused = flask_gpu(server, "switch", "generation", "--gpu", "1", "--model", "sdxl-turbo")
            assert "--model cannot be used with --gpu" in refused.stderr
            metrics = requests.get(f"{server.url}/metrics", timeout=60).text
            assert 'easel_gpus_switchovers_total{gpu="1",result="done",target="generation"} 1.0' in metrics
            assert 'easel_gpus_mode{gpu="1",mode="inference"} 1.0' in metrics


def test_a_hung_llm_server_is_shown_as_hung_and_hides_no_other(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with FakeLlamaServer() as hung:
        hung.hanging_paths = ("/",)
        stacks = [
            {"name": "chat", "driver": "llama-server", "url": llama.url, "key_env": "LLAMA_KEY"},
            {"name": "hung", "driver": "llama-server", "url": hung.url},
        ]
        environment = {**variables(llama, sketch_url), "EASEL_LLM_STACKS": json.dumps(stacks)}
        with running(tmp_path / "state", **environment) as server:
            wait_until(lambda: len(status(server)["stacks"]) == 2)
            good, bad = status(server)["stacks"]
            assert (good["reachable"], sorted(good["loaded"])) == (True, ["chat", "embed"])
            assert (bad["reachable"], bad["loaded"]) == (False, None)
            assert "hangs" in bad["problem"]
            server.wait_for("LLM stack hung cannot be used")
            server.wait_for("LLM stack chat: loaded: chat, embed")


def test_misconfigured_stacks_are_reported_at_start(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    stacks = [
        {"name": "no-key", "driver": "llama-server", "url": llama.url},
        {"name": "wrong-driver", "driver": "ollama", "url": llama.url, "key_env": "LLAMA_KEY"},
        {"name": "down", "driver": "llama-server", "url": f"http://127.0.0.1:{free_port()}"},
    ]
    environment = {**variables(llama, sketch_url), "EASEL_LLM_STACKS": json.dumps(stacks)}
    with running(tmp_path / "state", **environment) as server:
        server.wait_for("ERROR easel.llm LLM stack no-key cannot be used: .*key")
        server.wait_for("ERROR easel.llm LLM stack wrong-driver cannot be used: ")
        server.wait_for("WARNING easel.llm LLM stack down is not running yet")
        server.wait_for("WARNING easel.llm the LLM stacks no-key and wrong-driver have the same address")


def test_a_pin_keeps_generation_mode_and_survives_a_restart(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    environment = variables(llama, sketch_url, restore="linger", linger_s=0)
    with running(tmp_path / "state", **environment) as server:
        assert code_of(post(server, "pin", pinned=True)) == "gpu.not_generating"
        switch(server, "generation", pin=True)
        refused = post(server, "switchover", mode="inference")
        assert (refused.status_code, code_of(refused)) == (409, "gpu.pinned")
    with running(tmp_path / "state", **environment) as server:
        assert status(server)["arbiter"]["pinned"] is True
        assert post(server, "pin", pinned=False).json() == {"pinned": False}
        wait_until(lambda: status(server)["mode"] == "inference")


def test_every_worker_reports_the_step_and_the_remaining_time(
    tmp_path: Path, slow_sketch: SketchProcess, llama: FakeLlamaServer
) -> None:
    with (
        running(tmp_path / "state", **variables(llama, slow_sketch.url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        drawing = in_background(pool, server, model="sd-1.5", steps=10)
        wait_until(lambda: status(server)["eta"] is not None)
        report = status(server)
        step, steps = map(int, report["step"].split("/"))
        assert (1 < step <= steps == 10, report["it_s"] > 1, report["eta"] < 2) == (True, True, True)
        assert drawing.result(20).status_code == 200
        assert status(server)["jobs"] == []


# --- the engine's process --------------------------------------------------------------------------


def test_an_engine_that_is_down_is_started_for_the_first_picture_and_again_when_it_is_killed(
    tmp_path: Path, llama: FakeLlamaServer, catalogue_files: dict[str, list[str]]
) -> None:
    port, files = free_port(), tmp_path / "files.json"
    files.write_text(json.dumps(catalogue_files))
    argv = [sys.executable, "-m", "sketch", "--port", port, "--nodes", NODES, "--files", files]
    command = ["/usr/bin/env", f"PYTHONPATH={ROOT}", *map(str, argv)]
    environment = variables(llama, f"http://127.0.0.1:{port}") | {
        "EASEL_ENGINE_START": json.dumps({"command": command})
    }
    state = tmp_path / "state"
    try:
        with running(state, **environment) as server:
            assert status(server)["container"] == {"name": "env", "state": "exited"}
            response = server.draw()
            assert response.status_code == 200, response.text
            names = [phase["name"] for phase in status(server)["switchover"]["phases"]]
            assert names[-1] == "starting"
            wait_until(lambda: status(server)["container"]["state"] == "running")
            # Killed in generation mode, it is started again.
            os.kill(int((state / "engine.pid").read_text().split()[0]), signal.SIGKILL)
            wait_until(lambda: status(server)["switchover"]["reason"] == "the engine is down")
            wait_until(lambda: server.draw().status_code == 200)
    finally:
        os.kill(int((state / "engine.pid").read_text().split()[0]), signal.SIGKILL)


def test_an_engine_that_does_not_start_fails_the_request_and_the_llms_are_restored(
    tmp_path: Path, llama: FakeLlamaServer
) -> None:
    environment = variables(llama, f"http://127.0.0.1:{free_port()}") | {
        "EASEL_ENGINE_START": '{"command": ["/bin/false"]}',
        "EASEL_ENGINE_START_TIMEOUT_S": "1",
    }
    with running(tmp_path / "state", **environment) as server:
        response = server.draw()
        assert (response.status_code, code_of(response)) == (503, "gpu.switch_failed")
        assert response.json()["error"]["details"]["cause"] == "engine.start_failed"
        assert sorted(llama.loaded()) == ["chat", "embed"]
        assert status(server)["mode"] == "inference"


# --- commands --------------------------------------------------------------------------------------


def flask(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    environment["EASEL_STATE_DIR"] = str(tmp_path / "state")
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_flask_gpu_switches_loads_a_model_and_shows_the_status(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        unknown = flask(tmp_path, "gpu", "switch", "generation", "--model", "unknown-model")
        assert (unknown.returncode, llama.loaded() != []) == (2, True)
        done = flask(tmp_path, "gpu", "switch", "generation", "--model", "sd-1.5", "--pin")
        assert done.returncode == 0, done.stderr
        assert "GPU        generation, pinned" in done.stdout
        assert "sd-1.5 is loaded" in done.stderr
        assert "stack      chat (llama-server): loaded: none" in done.stdout
        refused = flask(tmp_path, "gpu", "switch", "inference")
        assert (refused.returncode, refused.stderr.strip()[:10]) == (2, "gpu.pinned")
        assert flask(tmp_path, "gpu", "unpin").stdout == "not pinned\n"
        SCHEMA.validate(json.loads(flask(tmp_path, "gpu", "status", "--json").stdout))
        assert flask(tmp_path, "gpu", "switch", "inference").returncode == 0
        assert status(server)["mode"] == "inference"
    without_server = flask(tmp_path, "gpu", "status")
    assert (without_server.returncode, without_server.stderr.strip()[:11]) == (3, "server.away")


# --- status polls, stops, commands without a server, a full disk ----------------------------------


def test_fifty_clients_that_poll_the_status_cause_one_round_of_probes_a_second(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        status(server)
        before, started_at = _rounds(llama), time.monotonic()
        stop = threading.Event()

        def poll() -> int:
            polls = 0
            with requests.Session() as session:
                while not stop.is_set():
                    session.get(f"{server.url}/api/comfyui/status", timeout=60)
                    polls += 1
                    stop.wait(0.2)
            return polls

        with ThreadPoolExecutor(50) as pool:
            futures = [pool.submit(poll) for _ in range(50)]
            time.sleep(3)
            stop.set()
            polls = sum(future.result() for future in futures)
        seconds = time.monotonic() - started_at
        assert polls > 50
        assert _rounds(llama) - before <= seconds + 1


def _rounds(llama: FakeLlamaServer) -> int:
    """Rounds of probes: each requests the LLM server's health once, and nothing else does."""
    return sum(path == "/health" for _, path, _ in list(llama.requests))


def test_a_request_that_waits_for_the_gpu_fails_when_the_server_stops(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.busy = {"chat": (1, 0)}  # a request that did not come through Easel
    with (
        running(tmp_path / "state", **variables(llama, sketch_url)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = in_background(pool, server)
        wait_until(lambda: status(server)["switchover"]["phase"] == "draining")
        server.process.send_signal(signal.SIGINT)
        response = waiting.result(10)
        assert (response.status_code, code_of(response)) == (503, "server.stopping")
        assert sorted(llama.loaded()) == ["chat", "embed"]


def test_flask_generate_without_a_server_restores_the_llms_before_it_ends(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    environment = {**os.environ, **variables(llama, sketch_url), "EASEL_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "generate", "a cat", "-o", str(tmp_path / "cat.png")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cat.png").read_bytes()[:4] == b"\x89PNG"
    assert [path for _, path, _ in llama.requests].count("/models/unload") == 2
    assert sorted(llama.loaded()) == ["chat", "embed"]


def test_ctrl_c_while_flask_generate_waits_for_the_gpu_ends_it_at_once_and_cancels_the_switch(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    llama.busy = {"chat": (1, 0)}
    environment = {**os.environ, **variables(llama, sketch_url), "EASEL_STATE_DIR": str(tmp_path / "state")}
    # A test run in the background of a shell inherits an ignored SIGINT, which Python would leave ignored.
    flask = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from flask.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", flask, "--app", "app", "generate", "a cat", "-o", str(tmp_path / "cat.png")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = tmp_path / "state/gpu/state.json"
    wait_until(lambda: state.exists() and json.loads(state.read_text())["switch"]["phase"] == "draining")
    process.send_signal(signal.SIGINT)
    # Far less than the drain of 120 s that it would otherwise wait for, and enough for a machine under load.
    assert process.wait(60) != 0
    assert json.loads(state.read_text())["switch"]["ended"] is not None
    assert sorted(llama.loaded()) == ["chat", "embed"]


def test_a_pin_during_a_switch_is_refused(tmp_path: Path, sketch_url: str, llama: FakeLlamaServer) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        switch(server, "generation")
        llama.load_delay_s = 1
        assert post(server, "switchover", mode="inference").status_code == 202
        refused = post(server, "pin", pinned=True)
        assert (refused.status_code, code_of(refused)) == (409, "comfyui.switch_in_progress")


def test_a_full_disk_fails_switch_and_image_requests_with_a_507(
    tmp_path: Path, sketch_url: str, llama: FakeLlamaServer
) -> None:
    with running(tmp_path / "state", **variables(llama, sketch_url)) as server:
        # One that starts later would have no limit, and wait for a switch that the leader cannot write.
        wait_until(lambda: len(server.workers()) == 2)
        for worker in server.workers():
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        switching = post(server, "switchover", mode="generation")
        assert (switching.status_code, code_of(switching)) == (507, "image.store_full")
        drawn = server.draw(timeout=10, response_format="b64_json")
        assert (drawn.status_code, code_of(drawn)) == (507, "image.store_full")
        assert sorted(llama.loaded()) == ["chat", "embed"]
        assert status(server)["mode"] == "inference"
