"""A GPU with an LLM server and a ComfyUI on it, as a little server that many processes call; it counts what is resident,
and writes down whatever must never happen."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import socketserver
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import EngineStartFailed, StackRefused, StackUnreachable
from gpu_tenant import Failure, Resident

MODELS = ("chat", "embed")
ERRORS = {kind.code: kind for kind in (EngineStartFailed, StackRefused, StackUnreachable)}


def is_alive(pid: int) -> bool:
    """Whether the process runs; a killed one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Errors:
    """How the LLM server and ComfyUI misbehave. Seconds."""

    unload_s: float = 0.0
    """From the answer until the memory is free"""
    lies: int = 0
    """So many unloads answer well and do nothing"""
    reload_after_s: float | None = None
    """A late request loads the model again, once after each unload"""
    hang_s: float = 0.0
    """An unload answers so late"""
    deaf: int = 0
    """So many lists are not answered"""
    refuses_repeats: bool = False
    """Unloading what is not loaded is an error to it"""
    load_fails: tuple[str, ...] = ()
    free_s: float = 0.0
    """From ComfyUI's 200 to /free until it lets go"""
    start_fails: int = 0


@dataclass
class World:
    """Everything on the GPU, under one lock. Times are monotonic."""

    errors: Errors = field(default_factory=Errors)
    violations: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    begun: list[tuple[int, str, str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    accepted: int = 0
    served: int = 0
    drawn: int = 0
    began_at: float | None = None
    """When the plan begins, in Unix seconds; None as long as not everybody is there"""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, float | None] = dict.fromkeys(MODELS)
        """Model -> when it will be gone, None for staying"""
        self._comes_back: dict[str, float] = {}
        self._jobs: dict[str, float] = {}
        self._serving: dict[str, tuple[float, int]] = {}
        self._comfy_holds = False
        self._comfy_frees_at: float | None = None
        self._began = time.monotonic()

    def call(self, op: str, given: dict[str, Any]) -> Any:
        with self._lock:
            self._advance(time.monotonic())
            if op not in ("resident", "busy", "is_done", "began"):
                self.log.append(f"{time.monotonic() - self._began:.3f} {given.pop('who', '')} {op} {given}")
            given.pop("who", None)
            return getattr(self, f"do_{op}")(**given)

    def _wrong(self, words: str) -> None:
        self.violations.append(words)
        self.log.append(f"!!! {words}")

    def _advance(self, now: float) -> None:
        for name, gone_at in list(self._loaded.items()):
            if gone_at is not None and gone_at <= now:
                del self._loaded[name]
                if self.errors.reload_after_s is not None:
                    self._comes_back[name] = gone_at + self.errors.reload_after_s
        for name, at in list(self._comes_back.items()):
            if at <= now:
                del self._comes_back[name]
                self._loaded[name] = None
                self.errors.reload_after_s = None
                self.log.append(f"    a late request loaded {name} again")
        self._jobs = {job: end for job, end in self._jobs.items() if end > now}
        self._serving = {
            job: (end, pid) for job, (end, pid) in self._serving.items() if end > now and is_alive(pid)
        }
        if self._comfy_frees_at is not None and self._comfy_frees_at <= now and not self._jobs:
            self._comfy_holds, self._comfy_frees_at = False, None

    # --- the LLM server ----------------------------------------------------------------------------

    def do_resident(self) -> list[str]:
        if self.errors.deaf > 0:
            self.errors.deaf -= 1
            raise StackUnreachable("the fake is deaf")
        return sorted(self._loaded)

    def do_unload(self, name: str, forced: bool) -> float:
        now = time.monotonic()
        if name not in self._loaded:
            if self.errors.refuses_repeats:
                raise StackRefused("it is not loaded")
            return 0.0
        if self._serving and not forced:
            self._wrong(f"{name} was unloaded under a request that nobody had told to go")
        self._serving.clear()
        if self.errors.lies > 0:
            self.errors.lies -= 1
        elif self._loaded[name] is None:
            self._loaded[name] = now + self.errors.unload_s
        return self.errors.hang_s

    def do_load(self, name: str) -> str:
        if name in self.errors.load_fails:
            return "it does not fit"
        if self._jobs:
            self._wrong(f"{name} was loaded while a picture was drawn")
        self._loaded[name] = None
        self._comes_back.pop(name, None)
        return ""

    def do_serve(self, job: str, seconds: float, pid: int) -> None:
        if self._comfy_holds:
            self._wrong("an LLM request was served while ComfyUI held the memory")
        if self._jobs:
            self._wrong("an LLM request was served while a picture was drawn")
        self.served += 1
        self._serving[job] = (time.monotonic() + seconds, pid)
        for name in MODELS:
            self._loaded.setdefault(name, None)  # as a server that loads on demand does

    def do_stop_serving(self, job: str) -> None:
        self._serving.pop(job, None)

    # --- ComfyUI -----------------------------------------------------------------------------------

    def do_draw(self, job: str, seconds: float) -> None:
        if self._loaded:
            self._wrong(f"a picture was drawn while {sorted(self._loaded)} were loaded")
        self.drawn += 1
        self._comfy_holds, self._comfy_frees_at = True, None
        now = time.monotonic()
        self._jobs[job] = max([now, *self._jobs.values()]) + seconds

    def do_is_done(self, job: str) -> bool:
        return job not in self._jobs

    def do_drop(self, jobs: list[str] | None) -> None:
        for job in list(self._jobs) if jobs is None else jobs:
            self._jobs.pop(job, None)

    def do_busy(self) -> int:
        return len(self._jobs)

    def do_free(self) -> None:
        if self._comfy_holds:
            self._comfy_frees_at = time.monotonic() + self.errors.free_s

    def do_holding(self) -> bool:
        return self._comfy_holds

    def do_start(self) -> None:
        if self.errors.start_fails > 0:
            self.errors.start_fails -= 1
            raise EngineStartFailed("the fake does not start")

    # --- what the processes tell -------------------------------------------------------------------

    def do_begun(self, number: int, target: str, reason: str) -> None:
        self.begun.append((number, target, reason))

    def do_result(self, **result: Any) -> None:
        self.results.append(result)

    def do_began(self) -> float | None:
        return self.began_at

    def do_accepted(self) -> None:
        self.accepted += 1

    def do_died(self, phase: str) -> None:
        self.results.append({"what": "died", "phase": phase})

    def heal(self) -> None:
        """From now on everything works."""
        with self._lock:
            self.errors = Errors()


class WorldServer(socketserver.ThreadingUnixStreamServer):
    """Lines of JSON: {"op", …} -> {"value"} or {"error", "message"}."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, world: World) -> None:
        self.world = world
        super().__init__(str(path), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    server: WorldServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the process was killed
            self._serve()

    def _serve(self) -> None:
        for line in self.rfile:
            given = json.loads(line)
            try:
                answer = {"value": self.server.world.call(given.pop("op"), given)}
            except tuple(ERRORS.values()) as error:
                answer = {"error": error.code, "message": error.message}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Caller:
    """Calls the world from a process; a connection for each thread."""

    def __init__(self, path: Path, who: str) -> None:
        self._path, self._who = path, who
        self._local = threading.local()

    def __call__(self, op: str, **given: Any) -> Any:
        stream = getattr(self._local, "stream", None)
        if stream is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self._path))
            stream = self._local.stream = connection.makefile("rwb")
            connection.close()  # the stream keeps it open
        stream.write(json.dumps({"op": op, "who": self._who, **given}).encode() + b"\n")
        stream.flush()
        answer = json.loads(stream.readline())
        if "error" in answer:
            raise ERRORS[answer["error"]](answer["message"])
        return answer.get("value")

    def close(self) -> None:
        """Close the connection of this thread."""
        if (stream := getattr(self._local, "stream", None)) is not None:
            stream.close()


class FakeStacks:
    """The LLM server as a tenant."""

    def __init__(self, call: Caller, is_forced: Any) -> None:
        self._call, self._is_forced = call, is_forced

    def resident(self) -> tuple[Resident, ...]:
        return tuple(Resident("fake", name) for name in self._call("resident"))

    def busy(self) -> int | None:
        return None

    def release(self, residents: Any) -> None:
        for item in residents:
            try:
                time.sleep(self._call("unload", name=item.id, forced=self._is_forced()))
            except StackRefused:
                continue  # what counts is the list

    def restore(self, residents: Any) -> tuple[Failure, ...]:
        words = [(item, self._call("load", name=item.id)) for item in residents]
        return tuple(Failure(item.owner, item.id, said) for item, said in words if said)

    def drop(self, jobs: Any) -> None:
        """An LLM server knows no jobs of ours."""


class FakeEngine:
    """ComfyUI as a tenant."""

    def __init__(self, call: Caller) -> None:
        self._call = call

    def resident(self) -> tuple[Resident, ...]:
        return (Resident("engine", "models"),) if self._call("holding") else ()

    def busy(self) -> int | None:
        return int(self._call("busy"))

    def release(self, residents: Any) -> None:
        self._call("free")

    def restore(self, residents: Any) -> tuple[Failure, ...]:
        self._call("start")
        return ()

    def drop(self, jobs: Any) -> None:
        self._call("drop", jobs=None if jobs is None else list(jobs))


def random_errors(dice: random.Random) -> Errors:
    """Mostly one or two kinds of trouble at a time."""
    errors = Errors(unload_s=dice.choice((0, 0, 0.005, 0.03)), free_s=dice.choice((0, 0.005, 0.03)))
    for _ in range(dice.choice((0, 1, 1, 2))):
        kind = dice.choice(("lies", "reload", "hang", "deaf", "repeats", "load", "start", "stuck"))
        if kind == "lies":
            errors.lies = dice.choice((1, 2))
        elif kind == "stuck":
            errors.lies = 1000
        elif kind == "reload":
            errors.reload_after_s = dice.choice((0.0, 0.002, 0.005))
        elif kind == "hang":
            errors.hang_s = dice.choice((0.02, 0.1))
        elif kind == "deaf":
            errors.deaf = dice.choice((1, 2, 5))
        elif kind == "repeats":
            errors.refuses_repeats = True
        elif kind == "load":
            errors.load_fails = (dice.choice(MODELS),)
        elif kind == "start":
            errors.start_fails = 1
    return errors
