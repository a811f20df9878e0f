"""Easel's way: what is known of each engine is gathered for `engines.choice`, which decides."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence

from bench.simulate.engines import Engine
from bench.simulate.traces import Job, Model
from engines.choice import DEFAULT_PRICES, Candidate, Prices, Refusal, Wanted, choose, should_move

RECENT = 200
"""So many of the last jobs say how often a model is wanted"""
LOOKS_EVERY_S = 1.0
"""So often a waiting job looks whether another engine has become better"""
MAX_ASKED = 16
"""So many jobs look, those that wait longest. In Easel all do; here it keeps the simulation fast."""

_LACKS = Refusal("files_missing", "It lacks files of the model.")


class RecentJobs:
    """The models of the last jobs of all engines."""

    def __init__(self) -> None:
        self._models: deque[Model] = deque()
        self._counts: Counter[Model] = Counter()

    def count(self, names: Collection[str]) -> int:
        return sum(count for model, count in self._counts.items() if model.name in names)

    def add(self, model: Model) -> None:
        self._models.append(model)
        self._counts[model] += 1
        if len(self._models) > RECENT:
            self._counts[self._models.popleft()] -= 1

    def share(self, model: Model) -> float:
        return self._counts[model] / len(self._models) if self._models else 0.0


class Plan:
    """What an engine has before it: when its jobs will have ended, and which models are loaded then."""

    def __init__(self, engine: Engine, average_s: float) -> None:
        self.engine = engine
        self.ends_at = 0.0
        self._average_s = average_s
        self._queued_s = 0.0
        self._loaded = engine.loaded.copy()

    def wait_s(self, now: float) -> float:
        # A job that takes longer than the average is expected to take as long again as it is late.
        running_s = abs(self.ends_at - now) if self.engine.running is not None else 0.0
        switch_s = self.engine.costs.switch_s if self._is_given_back(now) else 0.0
        return running_s + self._queued_s + switch_s

    def loaded(self, now: float) -> Iterable[Model]:
        return () if self._is_given_back(now) else self._loaded

    def is_warm(self, model: Model, now: float) -> bool:
        return model in self._loaded and not self._is_given_back(now)

    def displaced_by(self, model: Model, now: float) -> list[Model]:
        return [] if self._is_given_back(now) else self._loaded.displaced_by(model)

    def add(self, job: Job, now: float) -> None:
        if self._is_given_back(now):
            self._loaded.clear()
        self._queued_s += self._average_s
        if not self._loaded.use(job.model):
            self._queued_s += self.engine.costs.load_s(job.model.size_bytes)

    def plan_again(self, jobs: Iterable[Job], now: float) -> None:
        """After a job began or left: only `jobs` wait."""
        self._loaded = self.engine.loaded.copy()
        self._queued_s = 0.0
        for job in jobs:
            self.add(job, now)

    def _is_given_back(self, now: float) -> bool:
        return self.engine.jobs == 0 and self.engine.gave_gpu_back(now)


class Easel:
    """Each job goes to the engine that `choose` names and waits there; it moves when `should_move` says so. Renders are
    known by their average, as a measured pace is."""

    def __init__(
        self, engines: Sequence[Engine], average_s: float, prices: Prices = DEFAULT_PRICES, moves: bool = True
    ) -> None:
        self._plans = {engine.name: Plan(engine, average_s) for engine in engines}
        self._average_s = average_s
        self._prices = prices
        self.looks_every_s = LOOKS_EVERY_S if moves and len(engines) > 1 else 0.0
        self._recent = RecentJobs()
        self._lacked_by_others = {
            engine.name: frozenset.intersection(*(other.lacks for other in engines if other is not engine))
            for engine in engines
            if len(engines) > 1 and any(each.lacks for each in engines)
        }
        self._waits_at: dict[Job, Engine] = {}
        self._placed = 0
        self.moved = 0

    def arrived(self, job: Job, now: float) -> None:
        copies = self._copies(now)
        candidates = [self._candidate(job, plan, copies, now) for plan in self._plans.values()]
        choice = choose(self._wanted(job), candidates, self._prices)
        assert choice is not None  # no engine refuses
        self._recent.add(job.model)
        self._place(job, self._plans[choice.name].engine, now)

    def started(self, engine: Engine, job: Job, now: float, duration_s: float) -> None:
        plan = self._plans[engine.name]
        plan.ends_at = now + duration_s - job.render_s + self._average_s
        plan.plan_again(engine.waiting, now)

    def next_job(self, engine: Engine, now: float) -> Job | None:
        if not engine.waiting:
            return None
        job = engine.waiting.popleft()
        del self._waits_at[job]
        return job

    def look_again(self, now: float) -> None:
        """Move each of the jobs that wait longest for which another engine has become better by far."""
        for job, engine in list(self._waits_at.items())[:MAX_ASKED]:
            copies = self._copies(now)
            current = self._candidate(job, self._plan_before(job, engine, now), copies, now)
            others = [
                self._candidate(job, plan, copies, now)
                for plan in self._plans.values()
                if plan.engine is not engine
            ]
            move = should_move(self._wanted(job), current, others, self._prices)
            if move is not None:
                engine.waiting.remove(job)
                self._plans[engine.name].plan_again(engine.waiting, now)
                self._place(job, self._plans[move.name].engine, now)
                self.moved += 1

    def _place(self, job: Job, engine: Engine, now: float) -> None:
        self._plans[engine.name].add(job, now)
        engine.waiting.append(job)
        self._waits_at[job] = engine
        self._placed += 1
        engine.last_used = self._placed

    def _plan_before(self, job: Job, engine: Engine, now: float) -> Plan:
        """The plan of an engine as a job that waits there sees it: only the jobs before it count."""
        plan = Plan(engine, self._average_s)
        plan.ends_at = self._plans[engine.name].ends_at
        waiting = list(engine.waiting)
        plan.plan_again(waiting[: waiting.index(job)], now)
        return plan

    def _only_here(self, engine: Engine) -> int:
        """How many recent jobs were of models that all other engines lack."""
        return self._recent.count(self._lacked_by_others[engine.name]) if self._lacked_by_others else 0

    def _wanted(self, job: Job) -> Wanted:
        return Wanted(job.model.name, job.model.size_bytes, self._recent.share(job.model))

    def _copies(self, now: float) -> Counter[Model]:
        """On how many engines each model is loaded."""
        return Counter(model for plan in self._plans.values() for model in plan.loaded(now))

    def _candidate(self, job: Job, plan: Plan, copies: Counter[Model], now: float) -> Candidate:
        engine = plan.engine
        displaced = plan.displaced_by(job.model, now)
        return Candidate(
            engine.name,
            _LACKS if job.model.name in engine.lacks else None,
            wait_s=plan.wait_s(now),
            is_warm=plan.is_warm(job.model, now),
            load_s=engine.costs.load_s(job.model.size_bytes),
            render_s=self._average_s,
            jobs=engine.jobs,
            memory_bytes=engine.costs.memory_bytes,
            displaced=", ".join(model.name for model in displaced),
            displaced_share=sum(self._recent.share(model) / max(1, copies[model]) for model in displaced),
            only_here=self._only_here(engine),
            last_used=engine.last_used,
        )
