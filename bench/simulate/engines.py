"""One simulated engine: a queue, one job at a time, and the models that its GPU's memory holds."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from bench.simulate.costs import Costs
from bench.simulate.traces import Job, Model


class LoadedModels:
    """The models in a GPU's memory. A new one pushes out those that were used longest ago, until it fits; one that is
    larger than the memory pushes out all."""

    def __init__(self, memory_bytes: int, models: Iterable[Model] = ()) -> None:
        self._memory_bytes = memory_bytes
        self._models: OrderedDict[Model, None] = OrderedDict.fromkeys(models)
        self._used = sum(model.size_bytes for model in self._models)

    def __contains__(self, model: Model) -> bool:
        return model in self._models

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def displaced_by(self, model: Model) -> list[Model]:
        """The models that using `model` would push out."""
        if model in self._models:
            return []
        free = self._memory_bytes - self._used
        displaced = []
        for each in self._models:
            if free >= model.size_bytes:
                break
            displaced.append(each)
            free += each.size_bytes
        return displaced

    def use(self, model: Model) -> bool:
        """Load `model` if it is not loaded. Returns whether it was."""
        is_warm = model in self._models
        for each in self.displaced_by(model):
            del self._models[each]
            self._used -= each.size_bytes
        if not is_warm:
            self._models[model] = None
            self._used += model.size_bytes
        self._models.move_to_end(model)
        return is_warm

    def clear(self) -> None:
        self._models.clear()
        self._used = 0

    def copy(self) -> LoadedModels:
        return LoadedModels(self._memory_bytes, self._models)


class Engine:
    """An engine with its waiting jobs. `lacks`: the names of models that it cannot draw."""

    def __init__(self, number: int, costs: Costs, lacks: frozenset[str] = frozenset()) -> None:
        self.name = f"gpu{number:04d}"
        self.lacks = lacks
        self.costs = costs
        self.waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.loaded = LoadedModels(costs.memory_bytes)
        self.loads = 0
        self.drawn_s = 0.0
        self.last_end = -1.0
        self.last_used = 0.0

    @property
    def jobs(self) -> int:
        return len(self.waiting) + (self.running is not None)

    def start(self, job: Job, now: float) -> float:
        """Begin a job. Returns how long it takes: switchover, load and render."""
        self.running = job
        duration = job.render_s
        if self.gave_gpu_back(now):
            self.loaded.clear()
            duration += self.costs.switch_s
        if not self.loaded.use(job.model):
            self.loads += 1
            duration += self.costs.load_s(job.model.size_bytes)
        self.drawn_s += job.render_s
        return duration

    def end(self, now: float) -> None:
        self.running = None
        self.last_end = now

    def gave_gpu_back(self, now: float) -> bool:
        """Whether LLMs have its GPU now."""
        is_idle = self.last_end < 0 or now - self.last_end > self.costs.linger_s
        return self.costs.is_shared and is_idle
