"""The story of one look at the house: who has the GPU, how the engine and the LLM servers are, what waits and runs. Asks
at most once a second, for all processes together, and degrades where nobody answers."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from arbiter import Arbiter, Claim, Snapshot, Switch
from atomic_file import write_atomic
from compiler import ImageRequest, compile_workflow
from engine import Engine, EngineProcess, EngineStats, QueueState
from errors import EaselError, FilesMissing
from generation import Generator
from llm import Stacks

log = logging.getLogger("easel.gpu")

ROUND_S = 1.0
"""Between two rounds of probes, however many look"""
STALE_S = 2.0
"""What is older is worth waiting for the next round, a little"""
_PATIENCE_S = 0.5
PROBE_S = 2.0
_GLANCE_S = 1.5
_READINESS_S = 10.0
_GB = 1e9
_UNKNOWN: Mapping[str, Any] = {
    "at": 0.0,
    "reachable": False,
    "stats": None,
    "running": [],
    "pending": [],
    "container": "absent",
    "stacks": [],
    "models": [],
    "models_at": 0.0,
}


class SystemStatus:
    """`folder` is where the processes share what the last round of probes found."""

    def __init__(
        self,
        arbiter: Arbiter,
        generator: Generator,
        host: EngineProcess,
        stacks: Stacks,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._arbiter, self._generator, self._host, self._stacks = arbiter, generator, host, stacks
        self._file, self._lock_file, self._clock = folder / "probes.json", folder / "probes.lock", clock

    def status(self) -> dict[str, Any]:
        """Everything, as plain JSON; the shape is that of `schemas/comfyui_status.schema.json`. Never raises."""
        view, probes = self._arbiter.view(), self.probes()
        queue = {"running": len(probes["running"]), "pending": len(probes["pending"])}
        jobs = [self._job(claim) for claim in view.claims if _is(claim, "lease", "generation")]
        first = jobs[0] if jobs else _NO_JOB
        return {
            "mode": self._mode(view, probes),
            "engine": _engine_word(probes, queue),
            "reachable": probes["reachable"],
            "container": {"name": self._host.name or None, "state": _container(self._host, probes)},
            "endpoint": (probes["stats"] or {}).get("url"),
            "version": (probes["stats"] or {}).get("version"),
            "sketch": bool((probes["stats"] or {}).get("is_sketch")),
            "memory": _memory(probes["stats"]),
            "queue": queue,
            "it_s": first["it_s"],
            "eta": first["eta_s"],
            "step": None if first["step"] is None else f"{first['step']}/{first['steps']}",
            "jobs": jobs,
            "tickets": [_ticket(place, claim) for place, claim in enumerate(_tickets(view))],
            "switchover": _switchover(view.state.switch, view, self._clock()),
            "arbiter": self._arbiter_block(view),
            "stacks": probes["stacks"],
            "models": probes["models"],
            "probed_at": probes["at"],
        }

    def _mode(self, view: Snapshot, probes: Mapping[str, Any]) -> str:
        """The arbiter's word; without one, whether there is an engine that could draw."""
        if self._arbiter.is_wired:
            return view.state.mode
        return "generation" if probes["reachable"] or probes["container"] == "running" else "inference"

    def _job(self, claim: Claim) -> dict[str, Any]:
        progress = self._arbiter.job_progress.progress(claim.job)
        if progress is None:
            return {**_NO_JOB, "id": claim.job}
        each, eta = progress.seconds_a_step, progress.eta_s
        if eta is not None:
            eta = max(0.0, eta - (self._clock() - progress.at))
        return {
            "id": claim.job,
            "step": progress.step,
            "steps": progress.steps,
            "it_s": None if each is None else round(1 / each, 2),
            "eta_s": None if eta is None else round(eta, 1),
        }

    def _arbiter_block(self, view: Snapshot) -> dict[str, Any] | None:
        if not self._arbiter.is_wired:
            return None
        state = view.state
        return {
            "mode": state.mode,
            "since": state.since or None,
            "pinned": state.pinned,
            "wanted": state.wanted.mode if state.wanted else None,
            "saved_llm_slots": [f"{item.owner}/{item.id}" for item in state.saved],
            "idle_restore_at": view.idle_restore_at,
            "retry_after_s": {
                mode: self._arbiter.seconds_until(mode) for mode in ("generation", "inference")
            },
            "rebuilt": state.rebuilt,
        }

    # --- probes ------------------------------------------------------------------------------------

    def probes(self) -> Mapping[str, Any]:
        """What the last round found. Starts the next when it is due; waits for it only when the last is some time ago,
        and not for a server that hangs."""
        known = self._known()
        if self._age(known) >= ROUND_S:
            self._start_round()
        give_up = time.monotonic() + (_PATIENCE_S if known["at"] else PROBE_S + _PATIENCE_S)
        while self._age(known) >= STALE_S and time.monotonic() < give_up:
            time.sleep(0.01)
            known = self._known()
        return known

    def _age(self, probes: Mapping[str, Any]) -> float:
        return abs(self._clock() - float(probes["at"]))

    def _known(self) -> Mapping[str, Any]:
        try:
            return {**_UNKNOWN, **json.loads(self._file.read_bytes())}
        except (OSError, ValueError, TypeError):
            return _UNKNOWN

    def _start_round(self) -> None:
        """By one process at a time; in a thread, so that nobody who looks has to wait for a server that hangs."""
        lock = FileLock(self._lock_file, is_singleton=False, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return
        if self._age(self._known()) < ROUND_S:
            lock.release()
            return
        threading.Thread(target=self._round, args=(lock,), name="probes", daemon=True).start()

    def _round(self, lock: FileLock) -> None:
        try:
            found = self._probed(self._known())
            write_atomic(self._file, json.dumps(found).encode())
        except Exception:
            log.exception("a round of probes failed")
        finally:
            lock.release()

    def _probed(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """All at once; whoever is not done in time is not known this time."""
        pool = concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="probe")
        tasks = {
            pool.submit(self._engine_probe, before): _NOT_REACHABLE,
            pool.submit(lambda: {"container": self._host.state()}): {"container": "absent"},
            pool.submit(self._stacks_probe): {"stacks": [asdict(each) for each in self._stacks.unanswered()]},
        }
        concurrent.futures.wait(tasks, timeout=PROBE_S)
        pool.shutdown(wait=False, cancel_futures=True)
        found = {**_UNKNOWN, "models": before["models"], "models_at": before["models_at"]}
        for task, otherwise in tasks.items():
            good = task.done() and not task.cancelled() and task.exception() is None
            found |= task.result() if good else otherwise
        return {**found, "at": self._clock()}

    def _engine_probe(self, before: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._generator.engine()
        stats, queue = engine.glance(_GLANCE_S)
        found = _found(engine, stats, queue)
        came_back = not before["reachable"]
        if came_back or abs(self._clock() - before["models_at"]) >= _READINESS_S:
            found |= {"models": self._readiness(engine), "models_at": self._clock()}
        return found

    def _stacks_probe(self) -> dict[str, Any]:
        return {"stacks": [asdict(status) for status in self._stacks.status()]}

    def _readiness(self, engine: Engine) -> list[dict[str, Any]]:
        catalogue = self._generator.catalogue()
        return [self._ready(model.id, engine) for model in catalogue.visible_models]

    def _ready(self, model: str, engine: Engine) -> dict[str, Any]:
        """Whether a picture of this model could be drawn, and what is in the way."""
        catalogue = self._generator.catalogue()
        try:
            request = ImageRequest(prompt="ready?", model=model, seed=0, id="readiness")
            self._generator.check(compile_workflow(request, catalogue), catalogue, engine)
        except FilesMissing as error:
            missing = [str(entry["name"]) for entry in error.details.get("files", ())]
            return {"id": model, "ready": False, "code": error.code, "missing": missing}
        except EaselError as error:
            return {"id": model, "ready": False, "code": error.code, "missing": []}
        return {"id": model, "ready": True, "code": None, "missing": []}


_NOT_REACHABLE: Mapping[str, Any] = {"reachable": False, "stats": None, "running": [], "pending": []}
_NO_JOB: Mapping[str, Any] = {"id": None, "step": None, "steps": None, "it_s": None, "eta_s": None}


def _found(engine: Engine, stats: EngineStats, queue: QueueState) -> dict[str, Any]:
    return {
        "reachable": True,
        "stats": {**asdict(stats), "url": engine.url, "tells_gpu_memory": stats.tells_gpu_memory},
        "running": list(queue.running),
        "pending": list(queue.pending),
    }


def _is(claim: Claim, kind: str, mode: str) -> bool:
    return claim.kind == kind and claim.mode == mode


def _tickets(view: Snapshot) -> list[Claim]:
    return [claim for claim in view.claims if claim.kind == "ticket"]


def _ticket(place: int, claim: Claim) -> dict[str, Any]:
    return {"place": place, "id": claim.job, "mode": claim.mode}


def _engine_word(probes: Mapping[str, Any], queue: Mapping[str, int]) -> str:
    if probes["reachable"]:
        return "generating" if queue["running"] else "running"
    return "starting" if probes["container"] in ("running", "starting") else "stopped"


def _container(host: EngineProcess, probes: Mapping[str, Any]) -> str:
    """An engine that nobody here starts, or a script that is through, runs if it answers."""
    if host.kind in ("none", "command") and probes["reachable"]:
        return "running"
    return "running" if probes["container"] == "starting" else str(probes["container"])


def _memory(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Gigabytes of 10^9 bytes. GTT is AMD's memory of the machine that its GPU uses; null on any other."""
    if stats is None:
        return None
    used, ceiling = None, None
    if stats["tells_gpu_memory"]:
        # ComfyUI counts what its allocator has reserved and not in use as free; nobody else can have it.
        used, ceiling = _gb(stats["vram_total"], stats["vram_free"] - (stats["torch_vram_free"] or 0))
    ram_used, ram_ceiling = _gb(stats["ram_total"], stats["ram_free"])
    name = str(stats["device"] or "").lower()
    is_amd = "amd" in name or "radeon" in name or "gfx" in name
    share = None if used is None or not ceiling else round(used / ceiling, 3)
    return {
        "gtt_used_gb": used if is_amd else None,
        "gtt_ceil_gb": ceiling if is_amd else None,
        "vram_used_gb": used,
        "vram_ceil_gb": ceiling,
        "vram_used_share": share,
        "ram_used_gb": ram_used,
        "ram_ceil_gb": ram_ceiling,
        "pressure": None if share is None else share >= 0.8,
    }


def _gb(total: int | None, free: int | None) -> tuple[float | None, float | None]:
    if total is None or free is None:
        return None, None
    return round((total - free) / _GB, 1), round(total / _GB, 1)


def _switchover(switch: Switch | None, view: Snapshot, now: float) -> dict[str, Any]:
    """The switch that is under way, or the last one."""
    wanted = view.state.wanted
    active = view.state.under_way is not None or wanted is not None
    block: dict[str, Any] = {
        "active": active,
        "target": wanted.mode if wanted else switch.target if switch and active else None,
        "error": None,
        "error_code": None,
        "number": None,
        "reason": None,
        "phase": None,
        "phases": [],
        "elapsed_s": None,
        "failed": [],
        "notes": [],
        "forced": None,
        "resumed": None,
    }
    if switch is None:
        return block
    phases = [{"name": name, "seconds": seconds} for name, seconds in switch.phases]
    if switch.ended is None:
        phases.append({"name": switch.phase, "seconds": round(max(0.0, now - switch.phase_since), 4)})
    error = switch.error
    return block | {
        "error": f"{switch.target}: {error['message']}" if error else None,
        "error_code": error["code"] if error else None,
        "number": switch.number,
        "reason": switch.reason,
        "phase": switch.phase if switch.ended is None else None,
        "phases": phases,
        "elapsed_s": round(max(0.0, (switch.ended or now) - switch.began), 4),
        "failed": [asdict(failure) for failure in switch.failed],
        "notes": list(switch.notes),
        "forced": switch.force,
        "resumed": switch.resumed,
    }
