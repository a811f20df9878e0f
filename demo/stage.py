"""Everything that the demo needs, started for it and ended with it: the sketch engine, the LLM server, and an Easel with
its own state directory and keys."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from access import Gate
from compiler import SourcePaths, load_catalogue, read_sources
from demo.llm_server import LlmServer, Memory
from demo.script import HOUR_S, PEOPLE
from errors import ServerUnreachable
from http_session import DirectSession
from installation import PROJECT
from scratch_folder import ScratchFolder
from sketch import SketchProcess

WATCHER = "watcher"
"""The key of whoever watches on the page: it may see everything"""
_PICTURE_S, _LOAD_S, _UNLOAD_S, _TOKENS_PER_S = 12.0, 18.0, 3.0, 30.0
_MIN_STAY_S, _LINGER_S = 30.0, 5.0
"""The defaults of Easel"""
_START_TIMEOUT_S, _STOP_TIMEOUT_S, _CALL_TIMEOUT_S = 60.0, 60.0, 5.0
_URL = re.compile(r"Easel is at (http://\S+)")
_FOREIGN = ("EASEL_", "OTEL_")
"""Variables of an Easel that is not this one; those of OpenTelemetry would send traces away"""


@dataclass(frozen=True)
class Stage:
    """`keys`: by name. `events`: the arbiter's log. `engine_url`: of the sketch engine."""

    url: str
    keys: Mapping[str, str]
    events: Path
    engine_url: str
    llm: LlmServer
    memory: Memory


@contextlib.contextmanager
def open_stage(seconds: float, port: int = 0) -> Iterator[Stage]:
    """`seconds`: how long the hour lasts; all durations are shortened alike. Raises ServerUnreachable with the log if the
    server does not start."""
    scale = seconds / HOUR_S
    memory = Memory()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder("easel-demo-"))
        gpu = folder / "gpu.json"
        memory.write(gpu, llm_is_loaded=True)
        paths = SourcePaths(PROJECT / "catalogue.yaml", PROJECT / "templates_wf", PROJECT / "schemas")
        catalogue = load_catalogue(read_sources(paths))
        engine = stack.enter_context(
            SketchProcess(
                nodes=catalogue.nodes, files=catalogue.files, render_ms=_PICTURE_S * scale * 1000, gpu=gpu
            )
        )
        llm = stack.enter_context(
            LlmServer(
                memory,
                gpu,
                lambda: _free_bytes(engine.url),
                load_s=_LOAD_S * scale,
                unload_s=_UNLOAD_S * scale,
                tokens_per_s=_TOKENS_PER_S / scale,
            )
        )
        state = folder / "state"
        state.mkdir(mode=0o700)
        gate = Gate(state)
        keys = {name: gate.add_key(name, ("draw", "view"), {})[1] for name in PEOPLE}
        keys[WATCHER] = gate.add_key(WATCHER, ("view", "operate"), {})[1]
        settings = {
            "CONFIG": str(folder / "easel.yaml"),
            "STATE_DIR": str(state),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ENGINE_URL": engine.url,
            "LLM_STACKS": json.dumps(
                [{"name": "llm", "driver": "llama-server", "url": llm.url, "load_s": 30}]
            ),
            "GPU_MIN_STAY_S": str(_MIN_STAY_S * scale),
            "GPU_LINGER_S": str(_LINGER_S * scale),
        }
        (folder / "easel.yaml").touch()
        url = stack.enter_context(_server(folder / "log", settings))
        yield Stage(url, keys, state / "gpu" / "events.jsonl", engine.url, llm, memory)


def _free_bytes(engine_url: str) -> int:
    """What the simulated GPU has free. No memory if the engine does not say."""
    try:
        with DirectSession() as session:
            response = session.get(f"{engine_url}/system_stats", timeout=_CALL_TIMEOUT_S)
            return int(response.json()["devices"][0]["vram_free"])
    except (requests.RequestException, ValueError, LookupError):
        return 0


@contextlib.contextmanager
def _server(log: Path, settings: Mapping[str, str]) -> Iterator[str]:
    """The URL of an Easel with these settings, once it answers."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    gunicorn = [sys.executable, "-P", "-m", "gunicorn", "--config", str(PROJECT / "gunicorn.conf.py")]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and modules
            [sys.executable, "-m", "demo.tied", *gunicorn, "wsgi:app"],
            cwd=PROJECT,
            env={**inherited, **{f"EASEL_{name}": value for name, value in settings.items()}},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Ctrl-C in a terminal goes to the demo only, which then ends the server.
            start_new_session=True,
        )
    try:
        yield _wait_for_url(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with DirectSession() as session:
        while process.poll() is None and time.monotonic() < deadline:
            found = _URL.search(log.read_text("utf-8", "replace"))
            if found:
                with contextlib.suppress(requests.RequestException):
                    if session.get(f"{found[1]}/health", timeout=_CALL_TIMEOUT_S).ok:
                        return found[1]
            time.sleep(0.02)
    raise ServerUnreachable(f"The demo's server did not start:\n{log.read_text('utf-8', 'replace').strip()}")
