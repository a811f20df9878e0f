"""All engines of this host: which of them draws a job, which are drained or down, and what concerns all of them at once.
One per process; the processes agree through the files of the arbiters, of the measured costs and of the drained engines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from arbiter import ActiveRequest, Arbiter
from deadline import time_limit
from engines.choice import Candidate, Choice, Refusal, Wanted, choose, should_move
from engines.drains import Drains
from engines.facts import Facts, Look, Placed
from engines.health import FAILED_GPU_S, Health
from engines.measured_costs import EndedJob
from engines.unit import EngineUnit
from errors import (
    EaselError,
    EngineDrained,
    EngineGpuFailed,
    EngineNotListed,
    EngineTooOld,
    FilesMissing,
    JobLost,
    JobNotFound,
    NodesMissing,
)

_LACKS = (FilesMissing, NodesMissing, EngineTooOld)
_LACKING_S = 60.0
_CHECK_TIMEOUT_S = 2.0
_MIN_PACE_S = 0.001
_PLACING_TIMEOUT_S, _PLACING_POLL_S = 1.0, 0.005
_OUTLOOK_AGE_S = 0.2
"""Of the facts by which a waiting job is moved; a new job is placed by fresh ones"""


class Fleet:
    """`units`: the engines. `need_bytes`: the GPU memory that a model needs, 0 if that is not known. `model_id`: the id of
    the model that a name in the settings stands for. Thread-safe."""

    def __init__(
        self,
        units: Sequence[EngineUnit],
        *,
        drains: Drains | None = None,
        need_bytes: Callable[[str], int] = lambda model: 0,
        model_id: Callable[[str], str] = lambda name: name,
        placing_lock: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`placing_lock`: the file by which processes that draw one job each take turns in placing them."""
        self.units = tuple(units)
        self._placing_lock = placing_lock
        self._leaving: tuple[EngineUnit, ...] = ()
        """Those that were removed and still have jobs"""
        self._kept: dict[str, EngineUnit] = {}
        """GPU -> the engine that had it until it was removed: the LLMs there need its arbiter"""
        self.drains, self._need_bytes, self._clock = drains, need_bytes, clock
        self._model_id = model_id
        self.health = Health(self._check)
        self._placed: dict[str, Placed] = {}
        self._lock = threading.Lock()
        self._lacking_until: dict[tuple[str, str], float] = {}
        """(unit, model) -> until when the model counts as one that it cannot draw (monotonic)"""
        self._facts = Facts(need_bytes, on_down=self._report_down)

    @property
    def first(self) -> EngineUnit:
        """The one that the documented fields of the status describe."""
        return self.units[0]

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.units) == 1

    def unit(self, name: str) -> EngineUnit | None:
        """None if there is none of that name."""
        return next((unit for unit in self.units if unit.name == name), None)

    @property
    def gpus(self) -> dict[str, EngineUnit]:
        """The name of each GPU -> the engine that has it, or that had it until it was removed, if LLMs still use it.
        Empty without names of GPUs, which only the setting `engines` gives."""
        named = {unit.gpu: unit for unit in self.units if unit.gpu}
        return {**named, **{gpu: unit for gpu, unit in self._kept.items() if gpu not in named}}

    def arbiter_of(self, gpu: str) -> Arbiter:
        """That of a GPU, also after its engine was removed; of the first engine's for a GPU that is not known."""
        return self.gpus.get(gpu, self.first).arbiter

    def replace(self, units: Sequence[EngineUnit]) -> None:
        """Use these from now on. Jobs that run elsewhere end there; those that wait elsewhere are placed again."""
        with self._lock:
            before, self.units = self.units, tuple(units)
            self._lacking_until.clear()
        for unit in before:
            if unit not in self.units:
                self.health.forget(unit.name)
                self._facts.forget(unit)

    def leave(self, unit: EngineUnit) -> None:
        """`unit` is removed: it gets no new jobs; those that it has can still be cancelled."""
        self._leaving = (*self._leaving, unit)

    def left(self, unit: EngineUnit) -> None:
        """`unit` was removed, and has no job any more."""
        self._leaving = tuple(each for each in self._leaving if each is not unit)

    @property
    def with_leaving(self) -> tuple[EngineUnit, ...]:
        """All engines, and those that were removed and still have jobs."""
        return (*self.units, *self._leaving)

    def keep_arbiter(self, unit: EngineUnit) -> None:
        """Its engine is removed; LLMs still use its GPU."""
        self._kept[unit.gpu] = unit

    # --- which engine draws a job ------------------------------------------------------------------

    def begin_placing(self) -> Callable[[], None]:
        """No other process of a host places a job from now until the returned function is called, which is to be done once
        the job has a claim: until then the others do not see it, and would choose the same engine. May be called again.
        Waits for a second at most, because an engine may be slow to describe its nodes."""
        if self._placing_lock is None or self.is_single:
            return lambda: None
        lock = FileLock(self._placing_lock, is_singleton=False, thread_local=False)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(timeout=_PLACING_TIMEOUT_S, poll_interval=_PLACING_POLL_S)
        return lambda: lock.release(force=True)

    def place(
        self, job: str, model: str, key: str = "", lacking: Mapping[str, EaselError] | None = None
    ) -> EngineUnit:
        """The engine that is to draw `job`, which counts as its job from now on, until `forget`. `key`: the name of the API
        key. `lacking`: why engines cannot draw it, by name. Raises one of these errors if no engine can, EngineNotListed,
        EngineDrained, and the error of an engine that is down."""
        if self.is_single:
            if self._refusal(self.first, model, lacking or {}) is None:
                return self.first
            raise self._no_engine(model, lacking or {})
        for name, error in (lacking or {}).items():
            if isinstance(error, _LACKS):
                self._lacking_until[name, model] = time.monotonic() + _LACKING_S
        self._ask_memory()
        with self._lock:  # of jobs that come at once each must see where the one before it went
            choice = self.explain(model, key, lacking or {})
            unit = self.unit(choice.name) if choice is not None else self._slow_engine(model, lacking or {})
            if unit is not None:
                self._placed[job] = Placed(unit, model, key)
                return unit
        raise self._no_engine(model, lacking or {})

    def has_other(self, unit: EngineUnit, model: str, lacking: Mapping[str, EaselError]) -> bool:
        """Whether another engine than `unit` can draw a job of `model`."""
        return any(self._refusal(each, model, lacking) is None for each in self.units if each is not unit)

    def explain(
        self, model: str, key: str = "", lacking: Mapping[str, EaselError] | None = None
    ) -> Choice | None:
        """Which engine a job of `model` would get now, and why; None if none can draw it."""
        wanted, candidates = self._candidates(model, key, lacking or {})
        return choose(wanted, candidates)

    def is_better_elsewhere(self, job: str, lacking: Mapping[str, EaselError]) -> bool:
        """Whether `job`, which waits for the GPU of its engine, had better be placed again."""
        placed = self._placed.get(job)
        if placed is None:
            return False
        if placed.unit not in self.units:  # it was removed, or is another one now
            return True
        wanted, candidates = self._candidates(
            placed.model, placed.key, lacking, job=job, max_age_s=_OUTLOOK_AGE_S
        )
        current = next(each for each in candidates if each.name == placed.unit.name)
        return should_move(wanted, current, candidates) is not None

    def forget(self, job: str) -> None:
        """The job has ended, or is placed again."""
        self._placed.pop(job, None)

    def ran(self, unit: EngineUnit, model: str, run_s: float, pictures: int) -> None:
        """Record what a job cost that has just ended on `unit` and made so many pictures."""
        if unit.costs is None:
            return
        costs, now = unit.costs.read(), self._clock()
        # The engine runs one job at a time. What seems to be longer was a wait in its own queue.
        if 0 < now - costs.ended_at < run_s:
            run_s = now - costs.ended_at
        was_loaded = model in self.loaded_models(unit)
        unit.costs.write(costs.with_job(EndedJob(model, now, pictures), run_s, was_loaded=was_loaded))

    def failed(self, unit: EngineUnit, error: EaselError) -> None:
        """`unit` could not be used. It gets no jobs until it answers again."""
        if not self.is_single:
            hold_s = FAILED_GPU_S if isinstance(error, EngineGpuFailed) else 0.0
            self.health.report(unit.name, error, hold_s)
            if unit.costs is not None and _lost_its_models(error):
                unit.costs.write(replace(unit.costs.read(), unloaded_at=self._clock()))

    def loaded_models(self, unit: EngineUnit) -> tuple[str, ...]:
        """The models that are probably in its memory, the newest first."""
        return self._facts.loaded(unit, self._facts.outlook(unit, _OUTLOOK_AGE_S))

    def drained_since(self, unit: EngineUnit) -> float | None:
        """Unix time; None if it is not drained."""
        return self.drains.all().get(unit.name) if self.drains is not None else None

    def lists(self, unit: EngineUnit, model: str) -> bool:
        """Whether its entry in the settings lets it draw `model`."""
        return unit.models is None or any(self._model_id(name) == model for name in unit.models)

    # --- what concerns all -------------------------------------------------------------------------

    def cancel(self, name: str | None) -> tuple[str, ...]:
        """As `Arbiter.cancel`, on all GPUs."""
        jobs: dict[str, None] = {}
        missing: JobNotFound | None = None
        for unit in self.with_leaving:
            try:
                jobs |= dict.fromkeys(unit.arbiter.cancel(name))
            except JobNotFound as error:
                missing = error
        if not jobs and missing is not None:
            raise missing
        return tuple(jobs)

    def requests(self) -> tuple[ActiveRequest, ...]:
        """The requests that wait or are drawn on any of them, the oldest first, each once."""
        found: dict[str, ActiveRequest] = {}
        for unit in self.with_leaving:
            for request in unit.arbiter.snapshot().requests:
                known = found.get(request.id)
                if known is None or request.since < known.since:
                    found[request.id] = request
        return tuple(sorted(found.values(), key=lambda request: request.since))

    def seconds_until_free(self) -> int | None:
        """How long until a new request for pictures can run, in whole seconds; None if unknown."""
        known = [unit.arbiter.seconds_until("generation") for unit in self._usable()]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def seconds_per_job(self) -> float | None:
        """How often a job ends while all engines draw, in seconds; None if nothing was measured."""
        paces = [unit.arbiter.pace() for unit in self._usable()]
        rate = sum(1 / max(pace.seconds_each, _MIN_PACE_S) for pace in paces if pace.jobs)
        return 1 / rate if rate else None

    def fail_waiting(self, error: EaselError) -> None:
        """As `Arbiter.fail_waiting`, on all GPUs."""
        for unit in self.with_leaving:
            unit.arbiter.fail_waiting(error)

    # --- whether one can be used -------------------------------------------------------------------

    def _usable(self) -> Iterable[EngineUnit]:
        usable = [
            unit
            for unit in self.units
            if self.drained_since(unit) is None and self.health.outage(unit.name) is None
        ]
        return usable or self.units

    def _candidates(
        self,
        model: str,
        key: str,
        lacking: Mapping[str, EaselError],
        *,
        job: str = "",
        max_age_s: float = 0.0,
    ) -> tuple[Wanted, list[Candidate]]:
        """All engines, with what is known of them. `job`: one that waits already."""
        look = Look(self.units, self._facts, self._may_draw, dict(self._placed), max_age_s=max_age_s)
        wanted = look.wanted(model)
        return wanted, [
            look.candidate(unit, wanted, key, job, self._refusal(unit, model, lacking)) for unit in self.units
        ]

    def _ask_memory(self) -> None:
        """It may find that an engine is down."""
        for unit in self.units:
            if self.health.outage(unit.name) is None:
                self._facts.ask_memory(unit)

    def _may_draw(self, unit: EngineUnit, model: str) -> bool:
        """Whether it lists the model and was not found to lack its files lately."""
        if not self.lists(unit, model):
            return False
        return time.monotonic() >= self._lacking_until.get((unit.name, model), 0.0)

    def _refusal(self, unit: EngineUnit, model: str, lacking: Mapping[str, EaselError]) -> Refusal | None:
        if not self.lists(unit, model):
            return Refusal("not_listed", "its entry under `engines` does not list the model")
        if self.drained_since(unit) is not None:
            return Refusal("drained", "it is drained")
        if (error := lacking.get(unit.name)) is not None:
            return Refusal(error.code, error.message)
        if (outage := self.health.outage(unit.name)) is not None and not unit.can_start:
            return Refusal("down", outage.reason.message)
        return None

    def _slow_engine(self, model: str, lacking: Mapping[str, EaselError]) -> EngineUnit | None:
        """One that did not answer in time, if no other can draw the model: it may be busy with loading."""
        for unit in self.units:
            outage = self.health.outage(unit.name)
            is_slow = outage is not None and outage.reason.details.get("slow")
            may_draw = (
                self.lists(unit, model) and self.drained_since(unit) is None and unit.name not in lacking
            )
            if is_slow and may_draw:
                return unit
        return None

    def _report_down(self, unit: EngineUnit, error: EaselError) -> None:
        if not unit.can_start:
            self.failed(unit, error)

    def _check(self, name: str) -> None:
        """Raises EngineUnreachable if the engine does not answer."""
        unit = self.unit(name)
        if unit is not None:
            with time_limit(_CHECK_TIMEOUT_S):
                unit.engine().stats()

    def _no_engine(self, model: str, lacking: Mapping[str, EaselError]) -> EaselError:
        """Why no engine can draw a job of `model`."""
        listing = [unit for unit in self.units if self.lists(unit, model)]
        if not listing:
            return EngineNotListed(
                f"None of the engines may draw {model}: no entry under `engines` lists it.", model=model
            )
        for unit in listing:
            outage = self.health.outage(unit.name)
            if self.drained_since(unit) is None and unit.name not in lacking and outage is not None:
                return outage.reason
        for unit in listing:
            if unit.name in lacking:
                return lacking[unit.name]
        names = ", ".join(unit.name for unit in listing)
        return EngineDrained(f"All engines that may draw {model} are drained: {names}.", engines=names)


def _lost_its_models(error: EaselError) -> bool:
    """Whether the engine's process has ended, as far as the error tells."""
    return isinstance(error, JobLost) or bool(error.details.get("refused"))
