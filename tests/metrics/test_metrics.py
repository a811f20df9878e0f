"""What reports become in the text that Prometheus reads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics import FAMILIES, Build, Exposition, Recorder, ServerState, ValueFiles
from metrics.recorder import MAX_ENGINES, MAX_KEYS, MAX_MODELS
from observer import DrawingReport, JobReport, PictureReport, ResponseReport, SwitchesOfGpu, SwitchReport

STATUS: dict[str, Any] = {
    "reachable": True,
    "problem": None,
    "mode": "generation",
    "queue": {"running": 1, "pending": 2},
    "tickets": [{"mode": "generation"}, {"mode": "generation"}, {"mode": "inference"}],
    "jobs": [{}],
    "engines": [{"name": "engine", "reachable": True, "drained": False, "waiting": 3}],
    "gpus": [],
    "arbiter": {"pinned": True},
    "switchover": {"active": False},
    "stacks": [
        {"name": "llama", "reachable": True, "loaded": ["qwen3", "qwen3", 'a"b\n']},
        {"name": "ollama", "reachable": False, "loaded": None},
    ],
    "models": [{"ready": True}, {"ready": True}, {"ready": False}],
}
ENGINE = {
    "is_sketch": False,
    "version": "0.33.0",
    "ram_total": 64,
    "ram_free": 32,
    "vram_total": 24,
    "vram_free": 20,
    "torch_vram_free": 4,
    "tells_gpu_memory": True,
}
PULLS = [
    {"state": "running", "received": 10, "size": 100, "bytes_per_s": 5},
    {"state": "waiting", "received": 0, "size": None, "bytes_per_s": 0},
    {"state": "done", "received": 7, "size": 7, "bytes_per_s": 0},
]
STATE = ServerState(STATUS, ENGINE, PULLS, (3, 300))


def exposition(folder: Path, state: ServerState = STATE) -> Exposition:
    return Exposition(ValueFiles(folder), lambda: state, Build("1.2", "3.11", 5.0))


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """name and label values in the order of the labels' names -> value"""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def drawing(**changes: Any) -> DrawingReport:
    values: dict[str, Any] = {
        "request_id": "r",
        "key": "anna",
        "trace": "",
        "model": "sdxl",
        "prompt": "secret words",
        "result": "done",
        "code": "",
        "jobs": (JobReport(0.3, 4.0, True), JobReport(0.0, 2.0, False)),
        "pictures": (PictureReport(1, "8x8", "", 0.3, 4.0), PictureReport(2, "8x8", "", 0.0, 2.0)),
        "stages": (),
    }
    return DrawingReport(**{**values, **changes})


def test_a_drawing_counts_pictures_gpu_seconds_and_times(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    recorder.drawing(drawing())
    recorder.drawing(drawing(result="failed", code="engine.out_of_memory", jobs=(), pictures=()))
    found = samples(exposition(tmp_path).text())
    assert found["easel_drawings_total", "sdxl", "done"] == 1
    assert found["easel_drawings_total", "sdxl", "failed"] == 1
    assert found["easel_drawing_errors_total", "engine.out_of_memory"] == 1
    assert found["easel_pictures_total", "anna", "sdxl"] == 2
    assert found["easel_gpu_seconds_total", "anna", "sdxl"] == 4.0  # the second job was a sketch
    assert found["easel_job_wait_seconds_bucket", "0.25", "sdxl"] == 1
    assert found["easel_job_wait_seconds_bucket", "0.5", "sdxl"] == 2
    assert found["easel_job_wait_seconds_count", "sdxl"] == 2
    assert found["easel_job_render_seconds_sum", "sdxl"] == 6.0
    assert found["easel_job_render_seconds_bucket", "+Inf", "sdxl"] == 2
    assert b"secret words" not in exposition(tmp_path).text()


def test_pictures_and_seconds_are_counted_by_engine(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    jobs = (
        JobReport(0.0, 4.0, True, "left"),
        JobReport(0.0, 2.0, False, "right"),
        JobReport(0, 1, True, "left"),
    )
    pictures = [PictureReport(1, "8x8", "", 0, job.run_s, job.engine) for job in jobs]
    recorder.drawing(drawing(jobs=jobs, pictures=(*pictures, pictures[0])))
    recorder.drawing(drawing(jobs=jobs[:1], pictures=(), result="failed"))
    found = samples(exposition(tmp_path).text())
    assert found["easel_engines_pictures_total", "left"] == 3
    assert found["easel_engines_pictures_total", "right"] == 1
    assert found["easel_engines_busy_seconds_total", "left"] == 9.0
    assert found["easel_engines_busy_seconds_total", "right"] == 2.0


def test_further_engines_are_other(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    names = [f"e{number}" for number in range(MAX_ENGINES + 2)]
    jobs = tuple(JobReport(0, 1, True, name) for name in names)
    pictures = tuple(PictureReport(1, "8x8", "", 0, 1, name) for name in names)
    recorder.drawing(drawing(jobs=jobs, pictures=pictures))
    found = samples(exposition(tmp_path).text())
    counted = {key[1]: value for key, value in found.items() if key[0] == "easel_engines_pictures_total"}
    assert (len(counted), sum(counted.values()), counted["other"]) == (MAX_ENGINES + 1, MAX_ENGINES + 2, 2)


def test_each_engine_has_gauges(tmp_path: Path) -> None:
    engines = [
        {"name": "left", "reachable": True, "drained": True, "waiting": 2},
        {"name": "right", "reachable": False, "drained": False, "waiting": 0},
    ]
    jobs = [{"engine": "right"}, {"engine": "right"}]
    state = ServerState({**STATUS, "engines": engines, "jobs": jobs}, ENGINE, [], None)
    found = samples(exposition(tmp_path, state).text())
    shown = {
        name: tuple(
            found[f"easel_engines_{kind}", name] for kind in ("up", "drained", "running_jobs", "waiting_jobs")
        )
        for name in ("left", "right")
    }
    assert shown == {"left": (1, 1, 0, 2), "right": (0, 0, 2, 0)}
    alone = samples(exposition(tmp_path).text())
    assert (alone["easel_engines_up", "engine"], alone["easel_engines_running_jobs", "engine"]) == (1, 1)


def test_each_gpu_that_llms_share_has_gauges_and_each_engine_its_memory(tmp_path: Path) -> None:
    gpus = [
        {"name": "0", "arbiter": {"mode": "inference", "pinned": True}, "switchover": {"active": True}},
        {"name": "1", "arbiter": None, "switchover": {"active": False}},
    ]
    engines = {"left": ENGINE, "right": {**ENGINE, "tells_gpu_memory": False}, "down": None}
    found = samples(
        exposition(tmp_path, ServerState({**STATUS, "gpus": gpus}, ENGINE, [], None, engines)).text()
    )
    assert {key: value for key, value in found.items() if key[0].startswith("easel_gpus_")} == {
        ("easel_gpus_mode", "0", "generation"): 0,
        ("easel_gpus_mode", "0", "inference"): 1,
        ("easel_gpus_pinned", "0"): 1,
        ("easel_gpus_switchover_active", "0"): 1,
    }
    assert {key: value for key, value in found.items() if key[0].startswith("easel_engines_vram_")} == {
        ("easel_engines_vram_size_bytes", "left"): 24,
        ("easel_engines_vram_free_bytes", "left"): 16,
    }


def test_the_switchovers_of_a_named_gpu_are_counted_for_it_and_for_all(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    recorder.switch(SwitchReport("generation", "done", ()))
    SwitchesOfGpu(recorder, "1").switch(SwitchReport("generation", "done", ()))
    found = samples(exposition(tmp_path).text())
    assert found["easel_switchovers_total", "done", "generation"] == 2
    assert found["easel_gpus_switchovers_total", "1", "done", "generation"] == 1


def test_responses_and_switches_are_counted(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    recorder.response(ResponseReport("/v1/models/<name>", "GET", 404, "model.not_curated"))
    recorder.response(ResponseReport("", "BREW", 404, "route.not_found"))
    recorder.switch(SwitchReport("generation", "done", (("draining", 0.0), ("releasing", 3.0))))
    recorder.requests_in_progress(1)
    found = samples(exposition(tmp_path).text())
    assert found["easel_http_requests_total", "GET", "/v1/models/<name>", "404"] == 1
    assert found["easel_http_requests_total", "other", "none", "404"] == 1
    assert found["easel_errors_total", "model.not_curated"] == 1
    assert found["easel_switchovers_total", "done", "generation"] == 1
    assert found["easel_switchover_phase_seconds_sum", "releasing", "generation"] == 3.0
    assert found["easel_http_requests_in_progress",] == 1


def test_the_state_of_the_server_becomes_gauges(tmp_path: Path) -> None:
    found = samples(exposition(tmp_path).text())
    assert found["easel_build_info", "3.11", "1.2"] == 1
    assert found["easel_start_time_seconds",] == 5.0
    assert found["easel_metrics_writable",] == 1
    assert (found["easel_engine_up",], found["easel_engine_ready",]) == (1, 1)
    assert found["easel_engine_info", "comfyui", "0.33.0"] == 1
    assert found["easel_engine_vram_free_bytes",] == 16
    assert found["easel_engine_vram_size_bytes",] == 24
    assert found["easel_waiting_requests", "generation"] == 2
    assert found["easel_gpu_mode", "generation"] == 1
    assert found["easel_gpu_mode", "inference"] == 0
    assert found["easel_gpu_pinned",] == 1
    assert (found["easel_llm_stack_up", "llama"], found["easel_llm_stack_up", "ollama"]) == (1, 0)
    assert found["easel_llm_stack_loaded_models", "llama"] == 3
    assert found["easel_llm_model_loaded", 'a"b\n', "llama"] == 1
    assert ("easel_llm_stack_loaded_models", "ollama") not in found
    assert (found["easel_models", "ready"], found["easel_models", "missing"]) == (2, 1)
    assert found["easel_downloads_active",] == 2
    assert found["easel_downloads_received_bytes",] == 10
    assert (found["easel_image_store_images",], found["easel_image_store_bytes",]) == (3, 300)


def test_a_dead_engine_has_no_memory(tmp_path: Path) -> None:
    state = ServerState({**STATUS, "reachable": False}, ENGINE, [], None)
    found = samples(exposition(tmp_path, state).text())
    assert found["easel_engine_up",] == 0
    assert ("easel_engine_ram_free_bytes",) not in found
    assert ("easel_image_store_images",) not in found


def test_a_state_that_cannot_be_read_hides_only_the_gauges(tmp_path: Path) -> None:
    def fail() -> ServerState:
        raise KeyError("mode")

    Recorder(ValueFiles(tmp_path)).drawing(drawing())
    text = Exposition(ValueFiles(tmp_path), fail, Build("1", "3", 0.0)).text()
    assert samples(text)["easel_pictures_total", "anna", "sdxl"] == 2


def test_every_metric_of_the_table_is_announced_and_no_other(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    recorder.drawing(drawing(code="x"))
    recorder.switch(SwitchReport("generation", "done", (("draining", 0.0),)))
    recorder.response(ResponseReport("/", "GET", 200))
    text = exposition(tmp_path).text().decode()
    announced = [line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE")]
    assert announced == [[family.name, family.kind] for family in FAMILIES]
    helps = {
        line.split()[2]: line.split(maxsplit=3)[3] for line in text.splitlines() if line.startswith("# HELP")
    }
    assert helps == {family.name: family.help for family in FAMILIES}
    labels = {
        sample.name.removesuffix("_bucket"): set(sample.labels) - {"le"}
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
    }
    assert {family.name: labels[family.name] for family in FAMILIES if family.name in labels} == {
        family.name: set(family.labels) for family in FAMILIES if family.name in labels
    }


def test_further_models_and_keys_are_other(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path))
    for number in range(3 * MAX_MODELS):
        recorder.drawing(drawing(model=f"model {number}", key=f"key {number}", jobs=()))
    found = [key for key in samples(exposition(tmp_path).text()) if key[0] == "easel_pictures_total"]
    assert len({key for _, key, _ in found}) == MAX_KEYS + 1
    assert len({model for _, _, model in found}) == MAX_MODELS + 1
    assert ("easel_pictures_total", "other", "other") in found


@pytest.mark.parametrize(
    "name", ['a "quote"', "line\nbreak", "back\\slash", "Zoë 絵", "{}=,", "half\ud83d", "x" * 999]
)
def test_label_values_of_any_kind_are_read_back(tmp_path: Path, name: str) -> None:
    Recorder(ValueFiles(tmp_path)).drawing(drawing(key=name))
    found = samples(exposition(tmp_path).text())
    assert found["easel_pictures_total", name.replace("\ud83d", "?")[:120], "sdxl"] == 2


def test_many_readers_share_one_text_and_do_not_wait_for_a_slow_state(tmp_path: Path) -> None:
    now, calls, release = [0.0], 0, threading.Event()

    def state() -> ServerState:
        nonlocal calls
        calls += 1
        if calls > 1:
            release.wait(30)
        return STATE

    shared = Exposition(ValueFiles(tmp_path), state, Build("1", "3", 0.0), clock=lambda: now[0])
    first = shared.text()
    assert all(shared.text() is first for _ in range(100))
    now[0] = 2.0
    slow = threading.Thread(target=shared.text)
    slow.start()
    while calls < 2:
        pass
    assert all(shared.text() is first for _ in range(100))  # while the thread waits for the state
    release.set()
    slow.join()
    assert calls == 2


def test_a_command_counts_nothing(tmp_path: Path) -> None:
    recorder = Recorder(ValueFiles(tmp_path / "metrics"), is_on=lambda: False)
    recorder.drawing(drawing())
    recorder.response(ResponseReport("/", "GET", 200))
    recorder.requests_in_progress(1)
    assert not (tmp_path / "metrics").exists()


def test_the_processor_is_not_kept_busy_by_a_large_state(tmp_path: Path) -> None:
    now, made = [0.0], 0

    def state() -> ServerState:
        nonlocal made
        made += 1
        began = time.thread_time()
        while time.thread_time() - began < 0.3:
            pass
        return STATE

    shared = Exposition(ValueFiles(tmp_path), state, Build("1", "3", 0.0), clock=lambda: now[0])
    shared.text()
    now[0] = 2.9  # ten times the 0.3 s that it took are not over
    shared.text()
    assert made == 1
    now[0] = 100.0
    shared.text()
    assert made == 2
