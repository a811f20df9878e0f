"""A GPU with an LLM server and a ComfyUI, simulated by a small server that many processes call. It keeps what is
resident and records violations: what must never happen."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import EngineStartFailed, StackRefused, StackUnreachable
from gpu_tenant import Failure, Resident
from tests.processes import is_alive

MODELS = ("chat", "embed")
UNSEEN_S = 1.0
ERRORS = {kind.code: kind for kind in (EngineStartFailed, StackRefused, StackUnreachable)}


@dataclass
class Misbehaviour:
    """How the LLM server and ComfyUI misbehave. Seconds."""

    unload_s: float = 0.0
    """From the response until the memory is free"""
    ignored_unloads: int = 0
    """So many unload calls succeed without an effect"""
    reload_after_s: float | None = None
    """A late request loads the model again, once"""
    slow_unload_s: float = 0.0
    """How long an unload call takes"""
    failing_lists: int = 0
    """So many list calls fail"""
    refuses_repeats: bool = False
    """Unloading a model that is not loaded is an error"""
    failing_loads: tuple[str, ...] = ()
    free_s: float = 0.0
    """From ComfyUI's response to /free until its memory is free"""
    failing_starts: int = 0


@dataclass
class SimulatedGpu:
    """Everything on the GPU, under one lock. Times are monotonic."""

    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)
    violations: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    begun: list[tuple[int, str, str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    accepted: int = 0
    served: int = 0
    drawn: int = 0
    chatted: int = 0
    cut: int = 0
    starts_at: float | None = None
    """When the plan starts, in Unix seconds; None until all workers are ready"""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, float | None] = dict.fromkeys(MODELS)
        """Model -> when its memory is free, None while it stays loaded"""
        self._reloads: dict[str, float] = {}
        self._jobs: dict[str, float] = {}
        self._serving: dict[str, tuple[Callable[[], bool], int]] = {}
        """The LLM requests that Easel forwards: whether the connection is open, and the process"""
        self._chats: dict[str, tuple[float, bool]] = {}
        """Requests straight to the LLM server: until when, and whether nothing was drawn or waited when it arrived"""
        self._loaded_by_chats: dict[str, float] = {}
        """Model -> when such a request loaded it"""
        self._comfyui_holds_memory = False
        self._comfyui_frees_at: float | None = None
        self._created_at = time.monotonic()

    def call(self, op: str, arguments: dict[str, Any]) -> Any:
        with self._lock:
            self._advance(time.monotonic())
            caller = arguments.pop("caller", "")
            if op not in ("resident", "busy", "llm_busy", "is_done", "start_time"):
                self.log.append(f"{time.monotonic() - self._created_at:.3f} {caller} {op} {arguments}")
            return getattr(self, f"do_{op}")(**arguments)

    def _violation(self, message: str) -> None:
        self.violations.append(message)
        self.log.append(f"!!! {message}")

    def _advance(self, now: float) -> None:
        for name, gone_at in list(self._loaded.items()):
            if gone_at is not None and gone_at <= now:
                del self._loaded[name]
                if self.misbehaviour.reload_after_s is not None:
                    self._reloads[name] = gone_at + self.misbehaviour.reload_after_s
        for name, reload_at in list(self._reloads.items()):
            if reload_at <= now:
                del self._reloads[name]
                self._loaded[name] = None
                self.misbehaviour.reload_after_s = None
                self.log.append(f"    a late request loaded {name} again")
        self._jobs = {job: end for job, end in self._jobs.items() if end > now}
        self._serving = {
            job: (is_open, pid)
            for job, (is_open, pid) in self._serving.items()
            if is_open() and is_alive(pid)
        }
        self._chats = {job: chat for job, chat in self._chats.items() if chat[0] > now}
        if self._comfyui_frees_at is not None and self._comfyui_frees_at <= now and not self._jobs:
            self._comfyui_holds_memory, self._comfyui_frees_at = False, None

    # --- the LLM server ----------------------------------------------------------------------------

    def do_resident(self) -> list[str]:
        if self.misbehaviour.failing_lists > 0:
            self.misbehaviour.failing_lists -= 1
            raise StackUnreachable("the fake does not respond")
        return sorted(self._loaded)

    def do_unload(self, name: str, forced: bool) -> float:
        now = time.monotonic()
        if name not in self._loaded:
            if self.misbehaviour.refuses_repeats:
                raise StackRefused("it is not loaded")
            return 0.0
        if self._serving and not forced:
            self._violation(f"{name} was unloaded while an LLM request ran that was not cancelled")
        if any(came_first for _, came_first in self._chats.values()) and not forced:
            self._violation(f"{name} was unloaded during a chat that came while nothing was drawn or waited")
        self.cut += len(self._chats)
        self._serving.clear()
        self._chats.clear()
        if self.misbehaviour.ignored_unloads > 0:
            self.misbehaviour.ignored_unloads -= 1
        elif self._loaded[name] is None:
            self._loaded[name] = now + self.misbehaviour.unload_s
        return self.misbehaviour.slow_unload_s

    def do_load(self, name: str) -> str:
        """Returns why the model could not be loaded, or an empty string."""
        if name in self.misbehaviour.failing_loads:
            return "it does not fit"
        if self._jobs:
            self._violation(f"{name} was loaded while a picture was drawn")
        self._loaded[name] = None
        self._loaded_by_chats.pop(name, None)
        self._reloads.pop(name, None)
        return ""

    def begin_serving(self, job: str, pid: int, is_open: Callable[[], bool]) -> None:
        """An LLM request that process `pid` forwards has come, on a connection that `is_open` looks at. The LLM server
        loads its model on demand."""
        with self._lock:
            self._advance(time.monotonic())
            self.log.append(f"{time.monotonic() - self._created_at:.3f} LLM server: request {job} of {pid}")
            if self._comfyui_holds_memory:
                self._violation("an LLM request was served while ComfyUI held memory")
            if self._jobs:
                self._violation("an LLM request was served while a picture was drawn")
            self.served += 1
            self._serving[job] = (is_open, pid)
            for name in MODELS:
                self._loaded.setdefault(name, None)

    def is_serving(self, job: str) -> bool:
        """Whether the request still runs: a forced unload ends it."""
        with self._lock:
            return job in self._serving

    def end_serving(self, job: str) -> None:
        with self._lock:
            if self._serving.pop(job, None) is not None:
                self.log.append(f"{time.monotonic() - self._created_at:.3f} LLM server: end of {job}")

    def serving(self) -> list[str]:
        """The requests that run."""
        with self._lock:
            return sorted(self._serving)

    def do_llm_busy(self) -> int:
        # Not those that Easel serves: its leases alone must protect them.
        return len(self._chats)

    def do_chat(self, job: str, seconds: float, model: str) -> None:
        """A request straight to the LLM server, which loads the model on demand."""
        now = time.monotonic()
        if self._loaded.get(model, now) is not None:  # not loaded, or being unloaded
            self._loaded[model] = None
            self._loaded_by_chats[model] = now
        self.chatted += 1
        self._chats[job] = (now + seconds, False)

    def do_chat_came_first(self, job: str) -> None:
        if job in self._chats:
            self._chats[job] = (self._chats[job][0], True)

    # --- ComfyUI -----------------------------------------------------------------------------------

    def do_draw(self, job: str, seconds: float) -> None:
        now = time.monotonic()
        # Easel cannot see at once what a chat loads behind its back.
        known = [name for name in self._loaded if now - self._loaded_by_chats.get(name, 0.0) > UNSEEN_S]
        if known:
            self._violation(f"a picture was drawn while {sorted(known)} were loaded")
        if self._serving:
            self._violation("a picture was drawn during an LLM request")
        self.drawn += 1
        self._comfyui_holds_memory, self._comfyui_frees_at = True, None
        self._jobs[job] = max([now, *self._jobs.values()]) + seconds

    def do_is_done(self, job: str) -> bool:
        return job not in self._jobs

    def do_cancel_jobs(self, jobs: list[str] | None) -> None:
        for job in list(self._jobs) if jobs is None else jobs:
            self._jobs.pop(job, None)

    def do_busy(self) -> int:
        return len(self._jobs)

    def do_free(self) -> None:
        if self._comfyui_holds_memory:
            self._comfyui_frees_at = time.monotonic() + self.misbehaviour.free_s

    def do_holds_memory(self) -> bool:
        return self._comfyui_holds_memory

    def do_start(self) -> None:
        if self.misbehaviour.failing_starts > 0:
            self.misbehaviour.failing_starts -= 1
            raise EngineStartFailed("the fake does not start")

    # --- reports of the processes ------------------------------------------------------------------

    def do_begun(self, number: int, target: str, reason: str) -> None:
        self.begun.append((number, target, reason))

    def do_result(self, **result: Any) -> None:
        self.results.append(result)

    def do_start_time(self) -> float | None:
        return self.starts_at

    def do_accepted(self) -> None:
        self.accepted += 1

    def do_killed(self, phase: str) -> None:
        self.results.append({"kind": "killed", "phase": phase})

    def heal(self) -> None:
        """From now on everything works."""
        with self._lock:
            self.misbehaviour = Misbehaviour()


class SimulatedGpuServer(socketserver.ThreadingUnixStreamServer):
    """Lines of JSON: {"op", …} -> {"value"} or {"error", "message"}."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        super().__init__(str(path), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    server: SimulatedGpuServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the process was killed
            self._serve()

    def _serve(self) -> None:
        for line in self.rfile:
            arguments = json.loads(line)
            try:
                response = {"value": self.server.gpu.call(arguments.pop("op"), arguments)}
            except tuple(ERRORS.values()) as error:
                response = {"error": error.code, "message": error.message}
            self.wfile.write(json.dumps(response).encode() + b"\n")


class Caller:
    """Calls the simulated GPU from a process; one connection for each thread."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._local = threading.local()

    def __call__(self, op: str, **arguments: Any) -> Any:
        stream = getattr(self._local, "stream", None)
        if stream is None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._path))
                stream = self._local.stream = connection.makefile("rwb")  # keeps it open
        try:
            stream.write(json.dumps({"op": op, "caller": self._name, **arguments}).encode() + b"\n")
            stream.flush()
            response = json.loads(stream.readline())
        except OSError:
            self.close()
            raise
        if "error" in response:
            raise ERRORS[response["error"]](response["message"])
        return response.get("value")

    def close(self) -> None:
        """Close the connection of this thread."""
        if (stream := getattr(self._local, "stream", None)) is not None:
            self._local.stream = None
            with contextlib.suppress(OSError):  # what could not be sent
                stream.close()


class FakeStacks:
    """The LLM server as a tenant."""

    def __init__(self, call: Caller, is_forced: Any) -> None:
        self._call, self._is_forced = call, is_forced

    def resident(self) -> tuple[Resident, ...]:
        return tuple(Resident("fake", name) for name in self._call("resident"))

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        try:
            return self.resident()
        except StackUnreachable:
            return ()

    def busy(self) -> int | None:
        return int(self._call("llm_busy"))

    def release(self, residents: Any) -> None:
        for item in residents:
            try:
                time.sleep(self._call("unload", name=item.id, forced=self._is_forced()))
            except StackRefused:
                continue  # only what `resident` lists counts

    def restore(self, residents: Any, is_cancelled: Any) -> tuple[Failure, ...]:
        messages = [(item, self._call("load", name=item.id)) for item in residents if not is_cancelled()]
        return tuple(Failure(item.owner, item.id, message) for item, message in messages if message)

    def cancel_jobs(self, jobs: Any) -> bool:
        """An LLM server has no jobs of Easel."""
        return True


class FakeEngine:
    """ComfyUI as a tenant."""

    def __init__(self, call: Caller) -> None:
        self._call = call

    def resident(self) -> tuple[Resident, ...]:
        return (Resident("engine", "models"),) if self._call("holds_memory") else ()

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        return self.resident()

    def busy(self) -> int | None:
        return int(self._call("busy"))

    def release(self, residents: Any) -> None:
        self._call("free")

    def restore(self, residents: Any, is_cancelled: Any) -> tuple[Failure, ...]:
        self._call("start")
        return ()

    def cancel_jobs(self, jobs: Any) -> bool:
        self._call("cancel_jobs", jobs=None if jobs is None else list(jobs))
        return True


def random_misbehaviour(dice: random.Random) -> Misbehaviour:
    """At most two kinds besides slow memory."""
    misbehaviour = Misbehaviour(
        unload_s=dice.choice((0, 0, 0.005, 0.03)), free_s=dice.choice((0, 0.005, 0.03))
    )
    for _ in range(dice.choice((0, 1, 1, 2))):
        kind = dice.choice(("ignored", "reload", "slow", "lists", "repeats", "load", "start", "stuck"))
        if kind == "ignored":
            misbehaviour.ignored_unloads = dice.choice((1, 2))
        elif kind == "stuck":
            misbehaviour.ignored_unloads = 1000
        elif kind == "reload":
            misbehaviour.reload_after_s = dice.choice((0.0, 0.002, 0.005))
        elif kind == "slow":
            misbehaviour.slow_unload_s = dice.choice((0.02, 0.1))
        elif kind == "lists":
            misbehaviour.failing_lists = dice.choice((1, 2, 5))
        elif kind == "repeats":
            misbehaviour.refuses_repeats = True
        elif kind == "load":
            misbehaviour.failing_loads = (dice.choice(MODELS),)
        elif kind == "start":
            misbehaviour.failing_starts = 1
    return misbehaviour
