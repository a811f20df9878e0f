"""When an engine could begin a job, and whether its model is loaded then: the jobs before it are played through with what
each was measured to cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engines.measured_costs import Costs

DEFAULT_RENDER_S = 10.0
"""Until any job was measured"""
_LOAD_S_PER_GB = 1.0
_MIN_DEFAULT_LOAD_S = 2.0
_MAX_LOAD_SHARE = 0.9
"""Of a job of which only the whole was measured"""


@dataclass(frozen=True)
class JobCosts:
    """Estimates for one engine, in seconds. `costs`: what was measured on it. `others`: on all engines, by name, with the
    weight of each. `need_bytes`: the memory that a model needs, 0 if that is not known."""

    costs: Costs
    weight: float
    others: tuple[tuple[float, Costs], ...]
    need_bytes: Callable[[str], int]

    def render_s(self, model: str) -> float:
        """Of a job whose model is loaded."""
        own = self._measured(self.costs, model)
        if own is not None:
            return own[0]
        elsewhere = [
            found[0] * weight / self.weight
            for weight, costs in self.others
            if (found := self._measured(costs, model)) is not None
        ]
        if elsewhere:
            return sum(elsewhere) / len(elsewhere)
        return self.costs.mean_render_s or DEFAULT_RENDER_S / self.weight

    def load_s(self, model: str) -> float:
        """Of a model that is not loaded."""
        for costs in (self.costs, *(each for _, each in self.others)):
            found = self._measured(costs, model)
            if found is not None and costs.models[model].first_s is not None:
                return found[1]
        return self._usual_load_s(model)

    def _usual_load_s(self, model: str) -> float:
        """By its size, where nothing was measured"""
        return max(_MIN_DEFAULT_LOAD_S, self.need_bytes(model) / 1e9 * _LOAD_S_PER_GB)

    def _measured(self, costs: Costs, model: str) -> tuple[float, float] | None:
        """How long a job takes, and loading its model; None if no job was measured. If only one of both was measured, or
        only both together, the rest is estimated."""
        cost = costs.models.get(model)
        if cost is None:
            return None
        if cost.render_s is not None:
            return cost.render_s, self._usual_load_s(model) if cost.load_s is None else cost.load_s
        if cost.first_s is None:
            return None
        load_s = min(self._usual_load_s(model), _MAX_LOAD_SHARE * cost.first_s)
        return cost.first_s - load_s, load_s


def keeps_loaded(
    recent: Sequence[str], memory_bytes: int | None, need_bytes: Callable[[str], int]
) -> tuple[str, ...]:
    """Which of the models that were used last, the newest first, are still loaded: as many as fit into the GPU's memory
    together. Only the last one if its or the memory of the GPU is not known."""
    first, *older = recent or ("",)
    total = need_bytes(first)
    kept = [first] if first else []
    for model in older:
        need = need_bytes(model)
        total += need
        if memory_bytes is None or not need or total == need or total > memory_bytes:
            break
        kept.append(model)
    return tuple(kept)


@dataclass(frozen=True)
class Forecast:
    """`wait_s`: until the next job could begin. `loaded`: the models that are loaded then, the newest first."""

    wait_s: float
    loaded: tuple[str, ...]


def forecast(
    jobs: Iterable[str | None],
    costs: JobCosts,
    loaded: Sequence[str],
    memory_bytes: int | None,
    *,
    running_s: float | None = None,
    switch_s: float = 0.0,
) -> Forecast:
    """After `jobs`, of which each is given by its model, or None if that is not known. `loaded`: the models that are loaded
    now, the newest first. `running_s`: how long the first of them runs already; None if it does not."""
    found = Forecast(switch_s, keeps_loaded(loaded, memory_bytes, costs.need_bytes))
    for model in jobs:
        found = forecast_after(found, model, costs, memory_bytes, running_s=running_s)
        running_s = None
    return found


def forecast_after(
    before: Forecast,
    model: str | None,
    costs: JobCosts,
    memory_bytes: int | None,
    *,
    running_s: float | None = None,
) -> Forecast:
    """After one more job. The others are as in `forecast`."""
    loaded = before.loaded
    if model is None:
        seconds = costs.costs.mean_render_s or DEFAULT_RENDER_S / costs.weight
    else:
        seconds = costs.render_s(model) + (0.0 if model in loaded else costs.load_s(model))
        recent = (model, *(each for each in loaded if each != model))
        loaded = keeps_loaded(recent, memory_bytes, costs.need_bytes)
    if running_s is not None:
        # One that takes longer than others is expected to take as long again: it may never end.
        seconds = seconds - running_s if running_s < seconds else running_s
    return Forecast(before.wait_s + seconds, loaded)
