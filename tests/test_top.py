"""easel top: what the terminal shows."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands.top import view
from tests.conftest import ROOT
from tests.server.running import running
from tests.waiting import wait_until

JOB = {
    "id": "job-1",
    "request_id": "req-1",
    "model": "sdxl-turbo",
    "key": "anna",
    "client": "127.0.0.1",
    "age_s": 12.3,
    "step": 3,
    "steps": 20,
    "eta_s": 4.4,
    "it_s": 2.0,
}
TICKET = {
    **{name: JOB[name] for name in ("id", "request_id", "model", "client", "age_s")},
    "key": None,
    "mode": "generation",
    "place": 0,
    "waits_for": "2 jobs",
    "expected_s": 9,
}
STATUS: dict[str, Any] = {
    "mode": "generation",
    "engine": "generating",
    "version": "0.33.0",
    "endpoint": "http://127.0.0.1:8188",
    "sketch": False,
    "problem": None,
    "memory": {"vram_used_gb": 18.2, "vram_ceil_gb": 24.0, "ram_used_gb": 10.0, "ram_ceil_gb": None},
    "arbiter": {"pinned": True},
    "switchover": {
        "active": True,
        "target": "inference",
        "phase": "releasing",
        "phases": [{"name": "releasing", "seconds": 3.21}],
        "error": None,
    },
    "stacks": [
        {"name": "chat", "driver": "llama-server", "loaded": ["qwen3", "embed"], "problem": None},
        {"name": "old", "driver": "ollama", "loaded": None, "problem": "refused"},
    ],
    "models": [{"ready": True}, {"ready": False}],
    "queue": {"running": 1, "pending": 2},
    "jobs": [JOB],
    "tickets": [TICKET],
}


def engine_entry(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "engine": "running",
        "shared": True,
        "mode": "generation",
        "switching": False,
        "drained": False,
        "loaded_models": [],
        "waiting": 0,
        "pictures_per_hour": 0,
        "problem": None,
        **changes,
    }


def test_each_of_several_engines_has_a_line() -> None:
    engines = [
        engine_entry(
            "left", engine="generating", loaded_models=["sdxl", "flux"], waiting=2, pictures_per_hour=120
        ),
        engine_entry("b", mode="inference", switching=True),
        engine_entry(
            "c\x1b[2J",
            shared=False,
            mode="inference",
            engine="stopped",
            drained=True,
            problem={"code": "engine.unreachable", "message": ""},
        ),
    ]
    jobs, tickets = [{**JOB, "engine": "left"}], [{**TICKET, "engine": "b"}]
    lines = list(view({**STATUS, "engines": engines, "jobs": jobs, "tickets": tickets}))
    assert lines[1:4] == [
        "          left   generating, sdxl loaded, 2 waiting, 120 pictures per hour",
        "          b      running, LLMs have its GPU, its GPU is being handed over, 0 waiting, 0 pictures per hour",
        "          c?[2J  stopped, drained, 0 waiting, 0 pictures per hour, engine.unreachable",
    ]
    assert lines[-2:] == [
        "draws  sdxl-turbo  12 s  anna  req-1    on left step 3 of 20, 4 s left",
        "waits  sdxl-turbo  12 s  -     req-1    on b for 2 jobs, about 9 s more",
    ]
    assert list(view({**STATUS, "engines": [engine_entry("engine")]})) == list(view(STATUS))


def test_each_of_several_gpus_has_a_line() -> None:
    idle = {"active": False, "error": None}
    gpus = [
        {"name": "0", "arbiter": {"mode": "generation", "pinned": True}, "switchover": STATUS["switchover"]},
        {"name": "1", "arbiter": {"mode": "inference", "pinned": False}, "switchover": idle},
        {"name": "2\x1b[2J", "arbiter": None, "switchover": idle},
    ]
    shown = [line for line in view({**STATUS, "gpus": gpus}) if line.startswith("GPU")]
    assert shown == [
        "GPU       0: generation, pinned; handing over to inference: releasing 3.2 s",
        "GPU       1: inference",
        "GPU       2?[2J: not shared: no LLM server uses it",
    ]
    assert list(view({**STATUS, "gpus": gpus[:1]})) == list(view(STATUS))


def test_the_view_has_engine_memory_mode_stacks_and_queue() -> None:
    assert list(view(STATUS)) == [
        "engine    ComfyUI 0.33.0 at http://127.0.0.1:8188: generating",
        "memory    GPU 18.2 of 24 GB used",
        "GPU       generation, pinned; handing over to inference: releasing 3.2 s",
        "LLMs      chat (llama-server): qwen3, embed",
        "LLMs      old (ollama): refused",
        "models    1 of 2 ready",
        "queue     1 running and 2 pending in ComfyUI, 1 waiting",
        "",
        "       MODEL       AGE   KEY   REQUEST",
        "draws  sdxl-turbo  12 s  anna  req-1    step 3 of 20, 4 s left",
        "waits  sdxl-turbo  12 s  -     req-1    for 2 jobs, about 9 s more",
    ]


def test_texts_of_clients_cannot_control_the_terminal() -> None:
    evil = {**JOB, "model": "\x1b]0;title\x07", "key": "a\nb", "request_id": "x" * 500}
    problem = {"code": "c", "message": "\x1b[2Jgone"}
    lines = list(view({**STATUS, "jobs": [evil], "problem": problem}))
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 200


def command(state: Path, *options: str, url: str = "") -> list[str]:
    return [sys.executable, "-m", "flask", "--app", "app", "top", *options, *(["--url", url] if url else [])]


def environment(state: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    return {**kept, "EASEL_STATE_DIR": str(state), **variables}


def run(state: Path, *options: str, url: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(state, *options, url=url),
        cwd=ROOT,
        env=environment(state, **variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_top_of_a_server(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state, EASEL_API_KEYS="the-key") as server:
        once = run(state, "--once", EASEL_API_KEYS="the-key")
        assert once.returncode == 0, once.stderr
        assert once.stdout.startswith(f"Easel at {server.url}")
        assert "engine    the sketch engine, which runs no model" in once.stdout
        assert "\x1b" not in once.stdout
        document = json.loads(run(state, "--once", "--json", EASEL_API_KEYS="the-key").stdout)
        assert document["sketch"] is True
        refused = run(state, EASEL_API_KEYS="another-key")
        assert refused.returncode == 2
        assert "the-key" not in refused.stderr + once.stdout
        _watch(state)
    gone = run(state, "--once", url="http://127.0.0.1:9")
    assert gone.returncode == 3
    assert gone.stderr.startswith("server.away")


def _watch(state: Path) -> None:
    """In a terminal it is refreshed in place, and Ctrl-C ends it."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        command(state, "--interval", "0.2"),
        cwd=ROOT,
        env=environment(state, EASEL_API_KEYS="the-key"),
        stdin=inner,
        stdout=inner,
        stderr=inner,
    )
    os.close(inner)
    text = b""

    def has_refreshed() -> bool:
        nonlocal text
        text += os.read(outer, 4096)
        return text.count(b"\x1b[H") >= 3

    wait_until(has_refreshed)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal closes with the process
        while data := os.read(outer, 4096):
            text += data
    assert process.wait(90) == 0
    assert b"Traceback" not in text
    os.close(outer)
