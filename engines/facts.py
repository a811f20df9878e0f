"""What is known of the engines when a job is placed: what they report, what was measured, and the jobs before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from arbiter import Outlook
from deadline import time_limit
from engines.choice import Candidate, Refusal, Wanted
from engines.forecast import JobCosts, forecast, keeps_loaded
from engines.measured_costs import Costs
from engines.unit import EngineUnit
from errors import EaselError, EngineUnreachable

_STATS_TIMEOUT_S = 1.0
_MEMORY_AGE_S = 60.0
_NEVER_S = 100_000.0
"""Until a GPU is free of which nobody knows when: it is the last choice, and still one"""


@dataclass(frozen=True)
class Placed:
    """A job of this process, from the moment in which its engine is chosen. `key`: the name of the API key."""

    unit: EngineUnit
    model: str
    key: str


class Facts:
    """What changes slowly, kept for a while. `need_bytes`: the GPU memory that a model needs, 0 if that is not known.
    `on_down`: called when an engine does not answer. Thread-safe."""

    def __init__(
        self, need_bytes: Callable[[str], int], *, on_down: Callable[[EngineUnit, EaselError], None]
    ) -> None:
        self.need_bytes, self._on_down = need_bytes, on_down
        self._memory: dict[str, tuple[float, int | None]] = {}
        """unit -> when it was asked (monotonic), and the memory of its GPU in bytes; None: not known"""
        self._outlooks: dict[str, tuple[float, Outlook]] = {}

    def memory(self, unit: EngineUnit) -> int | None:
        """Of its GPU in bytes, as it said last."""
        known = self._memory.get(unit.name)
        return known[1] if known else None

    def ask_memory(self, unit: EngineUnit) -> None:
        """Ask the engine for it, once a minute."""
        known, now = self._memory.get(unit.name), time.monotonic()
        if known is not None and now - known[0] < _MEMORY_AGE_S:
            return
        self._memory[unit.name] = now, known[1] if known else None  # other threads need not ask, too
        try:
            with time_limit(_STATS_TIMEOUT_S):
                stats = unit.engine().stats()
        except EngineUnreachable as error:
            self._on_down(unit, error)
        else:
            self._memory[unit.name] = now, stats.vram_total if stats.has_gpu else None

    def loaded(self, unit: EngineUnit, outlook: Outlook) -> tuple[str, ...]:
        """The models that are probably in its memory, the newest first."""
        state = outlook.situation.state
        if unit.costs is None or state.mode != "generation":
            return ()  # the LLMs have the GPU
        return keeps_loaded(unit.costs.read().recent(state.since), self.memory(unit), self.need_bytes)

    def forget(self, unit: EngineUnit) -> None:
        """The engine of that name was removed, or is another one now."""
        self._memory.pop(unit.name, None)
        self._outlooks.pop(unit.name, None)

    def outlook(self, unit: EngineUnit, max_age_s: float) -> Outlook:
        """What a job would wait for there."""
        known, now = self._outlooks.get(unit.name), time.monotonic()
        if known is None or now - known[0] > max_age_s:
            known = self._outlooks[unit.name] = now, unit.arbiter.outlook(uses_gpu=_uses_gpu(unit))
        return known[1]


class Look:
    """The engines at one moment. `may_draw`: whether an engine can draw a model, as far as that is known. `placed`: the jobs
    of this process. `max_age_s`: how old the facts about waiting jobs may be."""

    def __init__(
        self,
        units: Sequence[EngineUnit],
        facts: Facts,
        may_draw: Callable[[EngineUnit, str], bool],
        placed: Mapping[str, Placed],
        *,
        max_age_s: float,
    ) -> None:
        self._units, self._facts, self._may_draw, self._placed = units, facts, may_draw, placed
        self._outlooks = {unit.name: facts.outlook(unit, max_age_s) for unit in units}
        self._costs = {unit.name: unit.costs.read() if unit.costs else Costs() for unit in units}
        self._loaded = {unit.name: facts.loaded(unit, self._outlooks[unit.name]) for unit in units}

    @cached_property
    def _uses(self) -> Counter[str]:
        """Of the last jobs of all engines, how many each model had"""
        return Counter(job.model for costs in self._costs.values() for job in costs.history)

    def wanted(self, model: str) -> Wanted:
        """What a job of `model` needs."""
        return Wanted(model, self._facts.need_bytes(model), self._share(model))

    def candidate(
        self, unit: EngineUnit, wanted: Wanted, key: str, job: str, refusal: Refusal | None
    ) -> Candidate:
        """The facts of one engine for a job of `key`. `job`: one that waits already; empty: a new one."""
        model, memory = wanted.model, self._facts.memory(unit)
        costs, name = self._job_costs(unit), unit.name
        jobs, outlook = self._jobs_before(unit, key, job)
        switch_s = _NEVER_S if outlook.switch_s is None else outlook.switch_s
        running_s = self._running_s(unit, outlook)
        loaded = self._loaded[name]
        then = forecast(jobs, costs, loaded, memory, running_s=running_s, switch_s=switch_s)
        is_warm = model in then.loaded
        kept = keeps_loaded((model, *then.loaded), memory, self._facts.need_bytes)
        displaced = [] if is_warm else [each for each in then.loaded if each not in kept]
        return Candidate(
            name,
            refusal,
            wait_s=then.wait_s,
            is_warm=is_warm,
            load_s=costs.load_s(model),
            render_s=costs.render_s(model),
            jobs=len(jobs),
            memory_bytes=memory,
            displaced=", ".join(displaced),
            displaced_share=min(1.0, sum(self._share(each) / self._holders(each) for each in displaced)),
            only_here=self._only_here[name],
            last_used=self._costs[name].ended_at,
        )

    def _running_s(self, unit: EngineUnit, outlook: Outlook) -> float | None:
        """How long the job runs that the engine has; None if it has none."""
        if outlook.granted_at is None:
            return None
        # It may have waited in the engine's own queue for the one before it.
        since = max(outlook.granted_at, self._costs[unit.name].ended_at)
        return max(0.0, outlook.situation.now - since)

    def _share(self, model: str) -> float:
        total = self._uses.total()
        return self._uses[model] / total if total else 0.0

    def _holders(self, model: str) -> int:
        """On how many engines it is loaded"""
        return max(1, sum(model in loaded for loaded in self._loaded.values()))

    @cached_property
    def _only_here(self) -> Counter[str]:
        """Of each engine, how many of the last jobs were of models that only it can draw"""
        found: Counter[str] = Counter()
        for model, count in self._uses.items():
            able = [unit.name for unit in self._units if self._may_draw(unit, model)]
            if len(able) == 1:
                found[able[0]] += count
        return found

    def _job_costs(self, unit: EngineUnit) -> JobCosts:
        others = tuple((each.weight, self._costs[each.name]) for each in self._units if each is not unit)
        return JobCosts(self._costs[unit.name], unit.weight, others, self._facts.need_bytes)

    def _jobs_before(self, unit: EngineUnit, key: str, job: str) -> tuple[list[str | None], Outlook]:
        """The models of the jobs that come before `job`, or before a new one of `key`; None: not known."""
        outlook, placed = self._outlooks[unit.name], self._placed
        listed = [*outlook.running, *outlook.waiting_before(key, job or None)]
        jobs = [placed[each].model if each in placed else outlook.models.get(each) for each in listed]
        if not job:
            # Jobs that this process has placed there, and that have no ticket yet.
            claimed = {claim.job for claim in outlook.situation.claims}
            jobs += [
                each.model
                for name, each in placed.items()
                if each.unit.name == unit.name and name not in claimed
            ]
        return jobs, outlook


def _uses_gpu(unit: EngineUnit) -> bool:
    try:
        return unit.uses_gpu(unit.engine())
    except EngineUnreachable:
        return True
