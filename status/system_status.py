"""The system status: who has the GPUs, the state of the engines and the LLM servers, what runs and waits. The servers are
probed at most once a second, for all processes together; one that does not respond is reported as such. The check of the
models, which takes long for a large catalogue, is published by itself."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from arbiter import ActiveRequest, Arbiter, Claim, PastSwitch, Snapshot
from atomic_file import write_atomic
from engines import EngineUnit
from errors import EaselError
from generation import Generator, ModelState
from llm import Stacks
from state_files import read_state, set_aside
from status.engine_entry import (
    Measured,
    container_state,
    engine_entry,
    engine_state,
    gpu_mode,
    memory,
    queue_counts,
)
from status.engine_probe import UNKNOWN_FACTS, EngineProbe, Facts, problem_of
from status.host_readiness import HostList, host_entries, no_engine, unreadable
from status.last_engine_error import LastEngineError
from status.listed_requests import GpuRequests, listed_requests
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
_FIRST_RESULTS_S = 0.3
"""After this time the results of those that have answered are published; the others keep their last ones until they answer
or fail"""
_STACK_TIMEOUT_S = 1.5
_FIRST_MODELS_WAIT_S = 0.3
"""So that the first report of a small catalogue has the states of its models"""
_MODELS_WAIT_S = 0.5
"""After a round of probes, for the check of the models; the next round publishes one that ends later"""
_UNKNOWN: Mapping[str, Any] = {"at": 0.0, "engines": {}, "stacks": [], "stages": []}
"""`engines`: name -> its facts, see `EngineProbe`"""


def _probe_results(document: Any) -> Mapping[str, Any]:
    """Raises TypeError, or KeyError, if the document is not what a round of probes writes."""
    results = {**_UNKNOWN, **document}
    for name, value in _UNKNOWN.items():
        if not isinstance(results[name], int | float if isinstance(value, float) else type(value)):
            raise TypeError(f"{name} is not a {type(value).__name__}")
    for facts in results["engines"].values():
        for name, value in UNKNOWN_FACTS.items():
            expected = dict if value is None else type(value)
            if not (isinstance(facts[name], expected) or (value is None and facts[name] is None)):
                raise TypeError(f"{name} of an engine is not a {expected.__name__}")
    return results


class SystemStatus:
    """`folder` holds the results of the last round of probes, shared by all processes. `hosts`: those that draw, if
    the engines of this one do not."""

    def __init__(
        self,
        generator: Generator,
        stacks: Stacks,
        readiness: Readiness,
        folder: Path,
        *,
        last_error: LastEngineError | None = None,
        hosts: HostList | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hosts = hosts
        self._generator, self._fleet, self._stacks = generator, generator.fleet, stacks
        self._readiness = readiness
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

    def engine_facts(self) -> dict[str, Mapping[str, Any] | None]:
        """What each engine said about itself in the last round of probes, by its name: the fields of `EngineStats` and
        `tells_gpu_memory`; None if it did not answer. Memory is in bytes. Waits for nothing."""
        results = self._last_results()
        return {unit.name: _facts(results, unit)["stats"] for unit in self._fleet.units}

    def memory_samples(self) -> tuple[Sample, ...]:
        """The memory of the last five minutes, as far as somebody asked for the status; oldest first."""
        return self._memory.samples()

    def _report(self, probes: Mapping[str, Any]) -> dict[str, Any]:
        units = self._fleet.units
        gpus = [self._gpu(unit) for unit in units]
        first, facts, snapshot = units[0], _facts(probes, units[0]), gpus[0].snapshot
        stats = facts["stats"] or {}
        snapshots = {unit.name: gpu.snapshot for unit, gpu in zip(units, gpus, strict=True)}
        jobs = [self._jobs(gpu) for gpu in gpus]
        # The fields that describe one engine are those of the first one.
        job = jobs[0][0] if jobs[0] else _NO_JOB
        return {
            "mode": gpu_mode(first, facts, snapshot),
            "engine": engine_state(facts),
            "reachable": facts["reachable"],
            "problem": facts["problem"],
            "container": {"name": first.process.name or None, "state": container_state(first.process, facts)},
            "endpoint": stats.get("url"),
            "version": stats.get("version"),
            "sketch": bool(stats.get("is_sketch")),
            "picture_delivery": stats.get("picture_delivery"),
            "memory": memory(facts["stats"]),
            "queue": queue_counts(facts),
            "it_s": job["it_s"],
            "eta": job["eta_s"],
            "step": None if job["step"] is None else f"{job['step']}/{job['steps']}",
            "jobs": [job for of_gpu in jobs for job in of_gpu],
            "tickets": [ticket for gpu in gpus for ticket in self._tickets(gpu)],
            "requests": listed_requests(gpus, self._clock()),
            "switchover": _switchover(snapshot, self._clock()),
            "switches": _past_switches(first.arbiter),
            "last_error": self._last_error.latest(),
            "arbiter": self._arbiter_block(first.arbiter, snapshot),
            "engines": [
                engine_entry(unit, _facts(probes, unit), gpu.snapshot, self._measured(unit))
                for unit, gpu in zip(units, gpus, strict=True)
            ],
            "gpus": [self._gpu_entry(name, unit, snapshots) for name, unit in self._fleet.gpus.items()],
            "stacks": probes["stacks"],
            "models": self._models.read(),
            "stages": probes["stages"],
            "probed_at": probes["at"],
            **(self._of_hosts(self._hosts) if self._hosts is not None else {}),
        }

    def _of_hosts(self, hosts: HostList) -> dict[str, Any]:
        """What takes the place of this host's engine. The fields that describe one engine are those of the first host."""
        state = self._readiness.engine(0)
        try:
            entries, waiting = host_entries(hosts), dict(hosts.load().waiting)
            problem = next((problem for _, problem in unreadable(hosts)), None)
        except EaselError as error:
            entries, waiting, problem = [], {}, problem_of(error)
        first = next((entry for entry in entries if entry["reachable"]), None)
        return {
            "mode": "generation" if state.reachable else "inference",
            "engine": first["engine"] if first else "stopped",
            "reachable": state.reachable,
            "problem": problem_of(state.error),
            "container": {"name": None, "state": "running" if state.reachable else "absent"},
            "endpoint": None,
            "version": first["version"] if first else None,
            "sketch": bool(first and first["sketch"]),
            "queue": first["queue"] if first else {"running": 0, "pending": 0},
            "gpus": [],
            "engines": entries or [no_engine("hosts", problem or problem_of(state.error))],
            "cluster": {"problem": problem, "waiting": waiting},
        }

    def _gpu_entry(self, name: str, unit: EngineUnit, snapshots: Mapping[str, Snapshot]) -> dict[str, Any]:
        """What the fields of the same names say of the first engine's GPU, for the GPU `name`. `snapshots`: those of the
        engines, by name."""
        is_present = unit in self._fleet.units
        snapshot = snapshots.get(unit.name) if is_present else None
        snapshot = snapshot or unit.arbiter.snapshot()
        return {
            "name": name,
            "engine": unit.name if is_present else None,
            "switchover": _switchover(snapshot, self._clock()),
            "switches": _past_switches(unit.arbiter),
            "arbiter": self._arbiter_block(unit.arbiter, snapshot),
        }

    def _gpu(self, unit: EngineUnit) -> GpuRequests:
        name = None if self._fleet.is_single else unit.name
        return GpuRequests(unit.arbiter.snapshot(), unit.arbiter.job_progress.get, name)

    def _measured(self, unit: EngineUnit) -> Measured:
        since = self._fleet.drained_since(unit)
        if unit.costs is None:
            return Measured(since)
        pictures = unit.costs.read().pictures_per_hour(self._clock())
        outage = self._fleet.health.outage(unit.name)
        problem = problem_of(outage.reason) if outage else None
        return Measured(since, self._fleet.loaded_models(unit), pictures, problem)

    def _jobs(self, gpu: GpuRequests) -> list[dict[str, Any]]:
        requests = _requests_by_job(gpu.snapshot)
        return [
            self._job(claim, requests.get(claim.job), gpu)
            for claim in gpu.snapshot.claims
            if claim.kind == "lease" and claim.mode == "generation"
        ]

    def _job(self, claim: Claim, request: ActiveRequest | None, gpu: GpuRequests) -> dict[str, Any]:
        progress, who = gpu.progress_of(claim.job), {**self._who(request), **gpu.shown_engine()}
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

    def _tickets(self, gpu: GpuRequests) -> list[dict[str, Any]]:
        """In the order of their turns, not of their arrival."""
        snapshot, requests = gpu.snapshot, _requests_by_job(gpu.snapshot)
        tickets = sorted(
            (claim for claim in snapshot.claims if claim.kind == "ticket"),
            key=lambda claim: waiting.place if (waiting := snapshot.waiting.get(claim.job)) else 0,
        )
        return [
            {**self._ticket(place, claim, snapshot, requests.get(claim.job)), **gpu.shown_engine()}
            for place, claim in enumerate(tickets)
        ]

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

    def _arbiter_block(self, arbiter: Arbiter, snapshot: Snapshot) -> dict[str, Any] | None:
        if not arbiter.shares_gpu:
            return None
        state = snapshot.state
        return {
            "mode": state.mode,
            "since": state.since or None,
            "pinned": state.pinned,
            "wanted": state.wanted.mode if state.wanted else None,
            "saved_llm_slots": [f"{item.owner}/{item.id}" for item in state.saved],
            "idle_restore_at": snapshot.idle_restore_at,
            "retry_after_s": {mode: arbiter.seconds_until(mode) for mode in ("generation", "inference")},
            "rebuilt": state.rebuilt,
        }

    # --- probes ------------------------------------------------------------------------------------

    def _probes(self) -> Mapping[str, Any]:
        """The results of the last round. Starts the next round when it is due, and waits for it only if the last
        results are old, for a limited time."""
        results = self._last_results()
        if self._age(results) >= _PROBE_INTERVAL_S and (error := self._start_round()):
            first = self._fleet.first
            facts = {**_facts(results, first), "problem": problem_of(error)}
            return {**results, "engines": {**results["engines"], first.name: facts}}
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

            def publish(found: Mapping[str, Any]) -> None:
                self._publish({**found, "stages": self._stage_entries(last)}, can_lock=lock.is_locked)

            results = self._probe_all(last, publish)
            self._publish_models(0 if self._models.read() else _FIRST_MODELS_WAIT_S)
            publish(results)
            self._record_problem(last, results)
            self._memory.add(memory(_facts(results, self._fleet.first)["stats"]), results["at"])
            self._publish_models(_MODELS_WAIT_S)
        except Exception:
            log.exception("a round of probes failed")
        finally:
            self._end_round(lock)

    def _record_problem(self, last: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        """A new one, else that of the first engine that has one, so that several that last are not written in turn."""
        problems = [
            (facts["problem"], (last["engines"].get(name) or UNKNOWN_FACTS)["problem"])
            for name, facts in results["engines"].items()
            if facts["problem"]
        ]
        if problems:
            problem = next((now for now, before in problems if now != before), problems[0][0])
            self._last_error.record(problem["code"], problem["message"])

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
        if models is None:
            return
        entries = {model.id: _model_entry(model, models.engines) for model in models.states}
        known = {} if models.is_complete and not models.unknown_engines else self._known_entries()
        if not models.is_complete:
            entries = {**known, **entries}
        for id, entry in known.items():
            # Only this process, which has just started, has never seen that engine.
            if not models.unknown_engines.isdisjoint(entry.get("engines", ())) and not entries[id]["ready"]:
                entries[id] = entry
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

    def _probe_all(
        self, before: Mapping[str, Any], publish_first: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """Run all probes in parallel. One that does not finish in time counts as failed. `before`: the last results.
        `publish_first`: called with what is known after a moment, if there are several engines and one of them needs
        longer."""
        units = self._fleet.units
        tasks: dict[concurrent.futures.Future[Mapping[str, Any]], tuple[str | None, Mapping[str, Any]]] = {}
        pool = concurrent.futures.ThreadPoolExecutor(3 * len(units) + 1, thread_name_prefix="probe")
        for unit in units:
            probe = EngineProbe(unit, self._readiness.of(unit), _facts(before, unit))
            for part, fallback in probe.parts().items():
                tasks[pool.submit(part)] = unit.name, fallback
        tasks[pool.submit(self._probe_stacks)] = None, {"stacks": []}
        began_at = time.monotonic()
        if len(units) > 1:
            late = concurrent.futures.wait(tasks, timeout=_FIRST_RESULTS_S).not_done
            names = {tasks[task][0] for task in late}
            if names and len(names - {None}) < len(units):
                publish_first(self._collected(tasks, before, names))
        concurrent.futures.wait(tasks, timeout=began_at + _PROBE_TIMEOUT_S - time.monotonic())
        pool.shutdown(wait=False, cancel_futures=True)
        return self._collected(tasks, before, set())

    def _collected(
        self,
        tasks: Mapping[concurrent.futures.Future[Mapping[str, Any]], tuple[str | None, Mapping[str, Any]]],
        before: Mapping[str, Any],
        late: set[str | None],
    ) -> dict[str, Any]:
        """The results of all tasks, by engine. `late`: the engines, or None for the LLM servers, whose last results hold."""
        results: dict[str | None, dict[str, Any]] = {None: {}}
        for unit in self._fleet.units:
            results[unit.name] = dict(UNKNOWN_FACTS)
        for task, (name, fallback) in tasks.items():
            succeeded = task.done() and not task.cancelled() and task.exception() is None
            results.setdefault(name, dict(UNKNOWN_FACTS)).update(task.result() if succeeded else fallback)
        if None in late:
            results[None] = {"stacks": before["stacks"]}
        of_engines = {name: facts for name, facts in results.items() if name is not None}
        of_engines |= {
            name: before["engines"][name] for name in late if name is not None and name in before["engines"]
        }
        return {**_UNKNOWN, **results[None], "engines": of_engines, "at": self._clock()}

    def _probe_stacks(self) -> Mapping[str, Any]:
        has_names = bool(self._fleet.gpus)
        return {
            "stacks": [
                {**asdict(status), **({"gpu": self._stacks.gpu_of(status.name)} if has_names else {})}
                for status in self._stacks.status(_STACK_TIMEOUT_S)
            ]
        }


def _facts(results: Mapping[str, Any], unit: EngineUnit) -> Facts:
    """Of an engine, as it was probed last."""
    facts: Facts = results["engines"].get(unit.name, UNKNOWN_FACTS)
    return facts


def _requests_by_job(snapshot: Snapshot) -> dict[str, ActiveRequest]:
    return {job: request for request in snapshot.requests for job in request.jobs}


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
        isinstance(entry, dict) and entry.keys() - {"engines"} == _ENTRY_KEYS for entry in document
    ):
        raise TypeError("not a list of models")
    return document


_ENTRY_KEYS = {
    *("id", "ready", "code", "missing", "not_drawable"),
    *("files", "lacks", "needs_comfyui", "fits_gpu"),
}


def _model_entry(model: ModelState, engines: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    of_engines = {} if engines is None else {"engines": list(engines[model.id])}
    return {
        "id": model.id,
        **model.facts,
        "missing": list(model.missing),
        "not_drawable": list(model.refused_tasks),
        **of_engines,
    }


_NO_JOB: Mapping[str, Any] = {"id": None, "step": None, "steps": None, "it_s": None, "eta_s": None}


def _past_switches(arbiter: Arbiter) -> list[dict[str, Any]]:
    """The last ones, newest first."""
    return [_past_switch(switch) for switch in arbiter.switch_history.latest()]


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
