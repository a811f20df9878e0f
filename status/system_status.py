"""The system status: who has the GPU, the state of the engine and the LLM servers, what runs and waits. The servers are
probed at most once a second, for all processes together; one that does not respond is reported as such. The check of the
models, which takes long for a large catalogue, is published by itself."""

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

from arbiter import ActiveRequest, Arbiter, Claim, PastSwitch, Snapshot
from atomic_file import write_atomic
from deadline import time_limit
from engine import Engine, EngineProcess, EngineStats, QueueState
from errors import EaselError, EngineUnreachable
from generation import Generator, ModelState
from llm import Stacks
from state_files import read_state, set_aside
from status.last_engine_error import LastEngineError
from status.listed_requests import listed_requests
from status.memory_history import MemoryHistory, Sample
from status.readiness import Readiness
from system_errors import shortage_in

log = logging.getLogger("easel.gpu")

_PROBE_INTERVAL_S = 1.0
"""Between two rounds of probes, for any number of clients"""
_MAX_AGE_S = 2.0
"""If the last results are older, wait a little for the next round"""
_WAIT_TIMEOUT_S = 0.5
_PROBE_TIMEOUT_S = 2.0
_ENGINE_TIMEOUT_S = 1.5
_STACK_TIMEOUT_S = 1.5
_FIRST_MODELS_WAIT_S = 0.3
"""So that the first report of a small catalogue has the states of its models"""
_MODELS_WAIT_S = 0.5
"""After a round of probes, for the check of the models; the next round publishes one that ends later"""
_GB = 1e9
_UNKNOWN: Mapping[str, Any] = {
    "at": 0.0,
    "reachable": False,
    "stats": None,
    "running": [],
    "pending": [],
    "container": "absent",
    "stacks": [],
    "stages": [],
    "problem": None,
}


def _probe_results(document: Any) -> Mapping[str, Any]:
    """Raises TypeError if the document is not an object with the types of `_UNKNOWN`."""
    results = {**_UNKNOWN, **document}
    for name, value in _UNKNOWN.items():
        expected = dict if value is None else int | float if isinstance(value, float) else type(value)
        if not (isinstance(results[name], expected) or (value is None and results[name] is None)):
            raise TypeError(f"{name} is not a {type(value).__name__}")
    return results


class SystemStatus:
    """`folder` holds the results of the last round of probes, shared by all processes."""

    def __init__(
        self,
        arbiter: Arbiter,
        generator: Generator,
        engine_process: EngineProcess,
        stacks: Stacks,
        readiness: Readiness,
        folder: Path,
        *,
        last_error: LastEngineError | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._arbiter, self._generator, self._stacks = arbiter, generator, stacks
        self._engine_process, self._readiness = engine_process, readiness
        self._file, self._lock_file, self._clock = folder / "probes.json", folder / "probes.lock", clock
        self._models = _ModelsFile(folder / "models.json")
        self._memory = MemoryHistory(folder / "memory.json")
        self._last_error = last_error or LastEngineError(folder / "last_error.json", clock)
        self._is_probing = threading.Lock()
        self._own_results = _UNKNOWN
        """Of this process's last round: all that there is while the state directory cannot be written"""
        self._write_failures: set[str | None] = set()
        """Those that are logged already"""

    def report(self) -> dict[str, Any]:
        """The whole status as plain JSON, of the shape of `schemas/comfyui_status.schema.json`. Never raises."""
        try:
            return self._report(self._probes())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # The file of results has a shape that no version of Easel writes.
            set_aside(self._file, error)
            return self._report(_UNKNOWN)

    def engine_facts(self) -> Mapping[str, Any] | None:
        """What the engine said about itself in the last round of probes: the fields of `EngineStats` and
        `tells_gpu_memory`. Memory is in bytes. Waits for nothing."""
        facts: Mapping[str, Any] | None = self._last_results()["stats"]
        return facts

    def memory_samples(self) -> tuple[Sample, ...]:
        """The memory of the last five minutes, as far as somebody asked for the status; oldest first."""
        return self._memory.samples()

    def _report(self, probes: Mapping[str, Any]) -> dict[str, Any]:
        snapshot, process = self._arbiter.snapshot(), self._engine_process
        queue = {"running": len(probes["running"]), "pending": len(probes["pending"])}
        requests = {job: request for request in snapshot.requests for job in request.jobs}
        jobs = [
            self._job(claim, requests.get(claim.job))
            for claim in snapshot.claims
            if claim.kind == "lease" and claim.mode == "generation"
        ]
        # In the order of their turns, not of their arrival.
        tickets = sorted(
            (claim for claim in snapshot.claims if claim.kind == "ticket"),
            key=lambda claim: waiting.place if (waiting := snapshot.waiting.get(claim.job)) else 0,
        )
        first = jobs[0] if jobs else _NO_JOB
        return {
            "mode": self._mode(snapshot, probes),
            "engine": _engine_state(probes, queue),
            "reachable": probes["reachable"],
            "problem": probes["problem"],
            "container": {"name": process.name or None, "state": _container_state(process, probes)},
            "endpoint": (probes["stats"] or {}).get("url"),
            "version": (probes["stats"] or {}).get("version"),
            "sketch": bool((probes["stats"] or {}).get("is_sketch")),
            "picture_delivery": (probes["stats"] or {}).get("picture_delivery"),
            "memory": _memory(probes["stats"]),
            "queue": queue,
            "it_s": first["it_s"],
            "eta": first["eta_s"],
            "step": None if first["step"] is None else f"{first['step']}/{first['steps']}",
            "jobs": jobs,
            "tickets": [
                self._ticket(place, claim, snapshot, requests.get(claim.job))
                for place, claim in enumerate(tickets)
            ],
            "requests": listed_requests(snapshot, self._arbiter.job_progress.get, self._clock()),
            "switchover": _switchover(snapshot, self._clock()),
            "switches": [_past_switch(switch) for switch in self._arbiter.switch_history.latest()],
            "last_error": self._last_error.latest(),
            "arbiter": self._arbiter_block(snapshot),
            "stacks": probes["stacks"],
            "models": self._models.read(),
            "stages": probes["stages"],
            "probed_at": probes["at"],
        }

    def _mode(self, snapshot: Snapshot, probes: Mapping[str, Any]) -> str:
        """The arbiter's mode. If the GPU is not shared: generation while an engine runs."""
        if self._arbiter.shares_gpu:
            return snapshot.state.mode
        return "generation" if probes["reachable"] or probes["container"] == "running" else "inference"

    def _job(self, claim: Claim, request: ActiveRequest | None) -> dict[str, Any]:
        progress, who = self._arbiter.job_progress.get(claim.job), self._who(request)
        if progress is None:
            return {**_NO_JOB, "id": claim.job, **who}
        step_s, eta = progress.seconds_per_step, progress.eta_s
        if eta is not None:
            eta = max(0.0, eta - (self._clock() - progress.at))
        return {
            "id": claim.job,
            "step": progress.step,
            "steps": progress.steps,
            "it_s": None if step_s is None else round(1 / step_s, 2),
            "eta_s": None if eta is None else round(eta, 1),
            **who,
        }

    def _ticket(
        self, place: int, claim: Claim, snapshot: Snapshot, request: ActiveRequest | None
    ) -> dict[str, Any]:
        waiting = snapshot.waiting.get(claim.job)
        return {
            "place": place,
            "id": claim.job,
            "mode": claim.mode,
            **self._who(request),
            "waits_for": waiting.waits_for if waiting else None,
            "reason": waiting.reason if waiting else None,
            "expected_s": waiting.expected_s if waiting else None,
        }

    def _who(self, request: ActiveRequest | None) -> dict[str, Any]:
        """The request that a job belongs to; empty fields if it is not known."""
        if request is None:
            return dict.fromkeys(("request_id", "model", "key", "owner", "client", "age_s"))
        return {
            "request_id": request.request_id or request.id,
            "model": request.model,
            "key": request.key or None,
            "owner": request.owner,
            "client": request.client or None,
            "age_s": round(max(0.0, self._clock() - request.since), 1),
        }

    def _arbiter_block(self, snapshot: Snapshot) -> dict[str, Any] | None:
        if not self._arbiter.shares_gpu:
            return None
        state = snapshot.state
        return {
            "mode": state.mode,
            "since": state.since or None,
            "pinned": state.pinned,
            "wanted": state.wanted.mode if state.wanted else None,
            "saved_llm_slots": [f"{item.owner}/{item.id}" for item in state.saved],
            "idle_restore_at": snapshot.idle_restore_at,
            "retry_after_s": {
                mode: self._arbiter.seconds_until(mode) for mode in ("generation", "inference")
            },
            "rebuilt": state.rebuilt,
        }

    # --- probes ------------------------------------------------------------------------------------

    def _probes(self) -> Mapping[str, Any]:
        """The results of the last round. Starts the next round when it is due, and waits for it only if the last
        results are old, for a limited time."""
        results = self._last_results()
        if self._age(results) >= _PROBE_INTERVAL_S and (error := self._start_round()):
            return {**results, "problem": _problem(error)}
        timeout_s = _WAIT_TIMEOUT_S if results["at"] else _PROBE_TIMEOUT_S + _WAIT_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        while self._age(results) >= _MAX_AGE_S and time.monotonic() < deadline:
            time.sleep(0.01)
            results = self._last_results()
        return results

    def _age(self, probes: Mapping[str, Any]) -> float:
        return abs(self._clock() - float(probes["at"]))

    def _last_results(self) -> Mapping[str, Any]:
        shared = read_state(self._file, _probe_results) or _UNKNOWN
        return max(shared, self._own_results, key=lambda results: float(results["at"]))

    def _start_round(self) -> EaselError | None:
        """Start a round of probes unless another process runs one. In a thread: the caller must not wait for a server
        that does not respond. The error if the system gives no more threads."""
        if not self._is_probing.acquire(blocking=False):
            return None
        lock = FileLock(self._lock_file, is_singleton=False, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self._is_probing.release()
            return None
        except OSError as error:  # each process probes for itself
            self._log_write_failure(error)
        if self._age(self._last_results()) < _PROBE_INTERVAL_S:
            self._end_round(lock)
            return None
        try:
            threading.Thread(target=self._run_round, args=(lock,), name="probes", daemon=True).start()
        except RuntimeError as error:
            self._end_round(lock)
            return shortage_in(error)
        return None

    def _end_round(self, lock: FileLock) -> None:
        lock.release()
        self._is_probing.release()

    def _run_round(self, lock: FileLock) -> None:
        try:
            self._readiness.models(0)  # begins to check them
            last = self._last_results()
            results = {**self._probe_all(last), "stages": self._stage_entries(last)}
            self._publish_models(0 if self._models.read() else _FIRST_MODELS_WAIT_S)
            self._publish(results, can_lock=lock.is_locked)
            if results["problem"]:
                self._last_error.record(results["problem"]["code"], results["problem"]["message"])
            self._memory.add(_memory(results["stats"]), results["at"])
            self._publish_models(_MODELS_WAIT_S)
        except Exception:
            log.exception("a round of probes failed")
        finally:
            self._end_round(lock)

    def _publish(self, results: Mapping[str, Any], *, can_lock: bool) -> None:
        self._own_results = results
        try:
            write_atomic(self._file, json.dumps(results).encode())
        except OSError as error:
            self._log_write_failure(error)
        else:
            if can_lock:
                self._write_failures.clear()

    def _log_write_failure(self, error: OSError) -> None:
        """Once, and not in every round."""
        if error.strerror not in self._write_failures:
            self._write_failures.add(error.strerror)
            log.error("the status cannot be stored, so that each worker has its own: %s", error.strerror)

    def _publish_models(self, timeout_s: float) -> None:
        models = self._readiness.models(timeout_s)
        if models is not None:
            entries = {model.id: _model_entry(model) for model in models.states}
            if not models.is_complete:
                entries = {**self._known_entries(), **entries}
            self._models.write(list(entries.values()))

    def _stage_entries(self, last: Mapping[str, Any]) -> list[Any]:
        """What the engine can do of the stages; as it was last, before this process has asked it."""
        known = self._readiness.models(0)
        return (
            list(last["stages"])
            if known is None
            else [{"id": each.id, **each.facts} for each in known.stages]
        )

    def _known_entries(self) -> dict[str, Any]:
        """Those that are published already: a process that has just started has not checked what others have."""
        visible = {model.id for model in self._generator.catalogue().visible_models}
        return {entry["id"]: entry for entry in self._models.read() if entry["id"] in visible}

    def _probe_all(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Run all probes in parallel. One that does not finish in time counts as failed. `before`: the last results."""
        pool = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="probe")
        tasks = {
            pool.submit(self._probe_engine, before): _NOT_REACHABLE,
            pool.submit(self._engine_problem): {},
            pool.submit(lambda: {"container": self._engine_process.state()}): {"container": "absent"},
            pool.submit(self._probe_stacks): {"stacks": []},
        }
        concurrent.futures.wait(tasks, timeout=_PROBE_TIMEOUT_S)
        pool.shutdown(wait=False, cancel_futures=True)
        results = dict(_UNKNOWN)
        for task, fallback in tasks.items():
            succeeded = task.done() and not task.cancelled() and task.exception() is None
            results |= task.result() if succeeded else fallback
        return {**results, "at": self._clock()}

    def _probe_engine(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The last known facts of an engine that is only busy."""
        engine = self._generator.engine()
        try:
            with time_limit(_ENGINE_TIMEOUT_S):
                return _engine_values(engine, *engine.stats_and_queue(_ENGINE_TIMEOUT_S))
        except EngineUnreachable as error:
            was_reachable = before["reachable"] and (before["stats"] or {}).get("url") == engine.url
            if not (was_reachable and engine.is_busy(error)):
                raise
            return {name: before[name] for name in _NOT_REACHABLE}

    def _probe_stacks(self) -> dict[str, Any]:
        return {"stacks": [asdict(status) for status in self._stacks.status(_STACK_TIMEOUT_S)]}

    def _engine_problem(self) -> dict[str, Any]:
        """Why the engine cannot draw now. The message is without secrets, like every message of an error."""
        return {"problem": _problem(self._readiness.engine(_ENGINE_TIMEOUT_S).error)}


class _ModelsFile:
    """The state of each model as it was published last, shared by all processes. It is written and parsed only when it
    changes: that of 10,000 models has a megabyte."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None
        """The file's inode, time and size, and its content"""
        self._unwritten: list[dict[str, Any]] | None = None
        """What could not be written, such as on a full disk"""

    def read(self) -> list[dict[str, Any]]:
        """Empty before the first check."""
        if self._unwritten is not None:
            return self._unwritten
        try:
            found = self._path.lstat()
        except OSError:
            return []
        version, known = (found.st_ino, found.st_mtime_ns, found.st_size), self._known
        if known is None or known[0] != version:
            known = self._known = version, read_state(self._path, _model_entries) or []
        return known[1]

    def write(self, entries: list[dict[str, Any]]) -> None:
        """If the disk is full or cannot be written, only this process has them until it can be."""
        if self._unwritten is None and entries == self.read():
            return
        try:
            write_atomic(self._path, json.dumps(entries).encode())
        except OSError:
            self._unwritten = entries
        else:
            self._unwritten = None


def _model_entries(document: Any) -> list[dict[str, Any]]:
    """Raises TypeError if the document is not what `_ModelsFile.write` writes."""
    if not isinstance(document, list) or not all(
        isinstance(entry, dict) and entry.keys() == _ENTRY_KEYS for entry in document
    ):
        raise TypeError("not a list of models")
    return document


_ENTRY_KEYS = {
    *("id", "ready", "code", "missing", "not_drawable"),
    *("files", "lacks", "needs_comfyui", "fits_gpu"),
}


def _model_entry(model: ModelState) -> dict[str, Any]:
    return {
        "id": model.id,
        **model.facts,
        "missing": list(model.missing),
        "not_drawable": list(model.refused_tasks),
    }


_NOT_REACHABLE: Mapping[str, Any] = {"reachable": False, "stats": None, "running": [], "pending": []}
_NO_JOB: Mapping[str, Any] = {"id": None, "step": None, "steps": None, "it_s": None, "eta_s": None}


def _problem(error: EaselError | None) -> dict[str, str] | None:
    return {"code": error.code, "message": error.message} if error else None


def _engine_values(engine: Engine, stats: EngineStats, queue: QueueState) -> dict[str, Any]:
    return {
        "reachable": True,
        "stats": {
            **asdict(stats),
            "url": engine.url,
            "tells_gpu_memory": stats.reports_gpu_memory,
            "picture_delivery": _picture_delivery(engine),
        },
        "running": list(queue.running),
        "pending": list(queue.pending),
    }


def _picture_delivery(engine: Engine) -> str | None:
    """How pictures come from the engine; None if it does not say in time."""
    try:
        return "websocket" if engine.sends_pictures else "file"
    except EaselError:
        return None


def _engine_state(probes: Mapping[str, Any], queue: Mapping[str, int]) -> str:
    if probes["reachable"]:
        return "generating" if queue["running"] else "running"
    return "starting" if probes["container"] in ("running", "starting") else "stopped"


def _container_state(process: EngineProcess, probes: Mapping[str, Any]) -> str:
    """An engine that Easel does not start, or whose start command has ended, counts as running if it responds."""
    if process.kind in ("none", "command") and probes["reachable"]:
        return "running"
    return "running" if probes["container"] == "starting" else str(probes["container"])


def _memory(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Gigabytes of 10^9 bytes. GTT is the RAM that an AMD GPU uses; None for other GPUs."""
    if stats is None:
        return None
    used, total = None, None
    if stats["tells_gpu_memory"]:
        # ComfyUI reports memory that its allocator has reserved but does not use as free; no other process can use it.
        used, total = _used_and_total(
            stats["vram_total"], stats["vram_free"] - (stats["torch_vram_free"] or 0)
        )
    ram_used, ram_total = _used_and_total(stats["ram_total"], stats["ram_free"])
    name = str(stats["device"] or "").lower()
    is_amd = "amd" in name or "radeon" in name or "gfx" in name
    share = None if used is None or not total else round(used / total, 3)
    return {
        "gtt_used_gb": used if is_amd else None,
        "gtt_ceil_gb": total if is_amd else None,
        "vram_used_gb": used,
        "vram_ceil_gb": total,
        "vram_used_share": share,
        "ram_used_gb": ram_used,
        "ram_ceil_gb": ram_total,
        "pressure": None if share is None else share >= 0.8,
    }


def _used_and_total(total: int | None, free: int | None) -> tuple[float | None, float | None]:
    """Both in gigabytes, from bytes."""
    if total is None or free is None:
        return None, None
    return round((total - free) / _GB, 1), round(total / _GB, 1)


def _past_switch(switch: PastSwitch) -> dict[str, Any]:
    return {
        "at": switch.at,
        "from": switch.source,
        "to": switch.target,
        "reason": switch.reason or None,
        "who": switch.key or None,
        "seconds": switch.seconds,
        "phases": [{"name": name, "seconds": seconds} for name, seconds in switch.phases],
        "error": switch.error,
    }


def _switchover(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """The active switch, or the last one."""
    switch, wanted = snapshot.state.switch, snapshot.state.wanted
    active = snapshot.state.active_switch is not None or wanted is not None
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
