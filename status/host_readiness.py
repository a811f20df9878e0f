"""Whether pictures can be drawn now, and which models, where other hosts draw: as these tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from compiler import Catalogue
from engines import EngineUnit
from errors import ClusterMessageInvalid, EaselError, NoHosts
from generation import Generator, ModelState, StageState
from status.engine_probe import problem_of
from status.engine_readiness import EngineReadiness, EngineState, ModelStates
from status.readiness import Readiness


class HostView(Protocol):
    """What is known of a host. `problem`: code and message; empty if it can draw. `loaded`: the models that are probably in
    its memory. `slots`: how many jobs it draws at the same time."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def comfyui(self) -> str: ...
    @property
    def is_sketch(self) -> bool: ...
    @property
    def slots(self) -> int: ...
    @property
    def problem(self) -> tuple[str, str]: ...
    @property
    def models(self) -> frozenset[str]: ...
    @property
    def stages(self) -> Mapping[str, tuple[Any, ...]]: ...
    @property
    def loaded(self) -> tuple[str, ...]: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def pictures_per_hour(self) -> int: ...
    @property
    def seconds_per_job(self) -> float | None: ...
    @property
    def is_drained(self) -> bool: ...
    @property
    def can_draw(self) -> bool: ...


class HostLoad(Protocol):
    """The jobs of all hosts. `waiting`: model -> how many no host has; `of_hosts`: host -> how many run, and how many it has
    besides."""

    @property
    def waiting(self) -> Mapping[str, int]: ...
    @property
    def of_hosts(self) -> Mapping[str, tuple[int, int]]: ...


class HostList(Protocol):
    """The hosts that draw."""

    def known_hosts(self) -> Mapping[str, HostView]:
        """All that are there, by name. Raises the errors of Redis."""

    def gone_hosts(self) -> tuple[str, ...]:
        """The names of those that were there and are no more."""

    def unreadable_hosts(self) -> Mapping[str, str]:
        """The names of those that are there and whose heartbeat cannot be used, with a sentence about each."""

    def none_there(self) -> NoHosts:
        """Why there is no host at all."""

    def load(self) -> HostLoad:
        """Raises the errors of Redis."""


class HostReadiness(Readiness):
    """The state of all hosts together. One per process; thread-safe."""

    def __init__(self, generator: Generator, hosts: HostList) -> None:
        super().__init__(generator)
        self._hosts = hosts
        self._known_states: tuple[tuple[Any, ...], ModelStates] | None = None
        """What the states were made from, and they"""

    def engine(self, timeout_s: float) -> EngineState:
        """That of the first host that can draw; else why none can."""
        try:
            hosts = self._hosts.known_hosts()
        except EaselError as error:
            return EngineState(reachable=False, error=error)
        for host in hosts.values():
            if host.can_draw:
                return EngineState(True, None, host.comfyui, host.is_sketch)
        if not hosts:
            return EngineState(reachable=False, error=self._hosts.none_there())
        texts = (f"{host.name}: {host.problem[1] or 'it is drained'}" for host in hosts.values())
        return EngineState(reachable=True, error=NoHosts(f"No host can draw now. {'; '.join(texts)}"))

    def of(self, unit: EngineUnit) -> EngineReadiness:
        """That of all hosts, for each engine of this host, which draws nothing."""
        return _AsEngine(self, self._generator, unit)

    def engines(self, timeout_s: float) -> list[tuple[EngineUnit, EngineState]]:
        """Of all hosts together: this one has no engine."""
        return [(self._fleet.first, self.engine(timeout_s))]

    def can_draw(self, models: ModelStates) -> bool:
        """Whether one of the models can be drawn."""
        return any(state.is_drawable for state in models.states)

    def models(self, timeout_s: float) -> ModelStates | None:
        """None if Redis does not answer."""
        try:
            hosts = self._hosts.known_hosts()
        except EaselError:
            return None
        catalogue = self._generator.catalogue()
        able = {host.name: host.models for host in hosts.values() if host.can_draw}
        stages = {host.name: host.stages for host in hosts.values() if host.can_draw}
        made_from = (catalogue, able, stages)
        known = self._known_states
        if known is None or known[0][0] is not catalogue or known[0][1:] != made_from[1:]:
            states = _model_states(catalogue, able, tuple(_stage_states(catalogue, stages.values())))
            known = self._known_states = made_from, states
        return known[1]


class _AsEngine(EngineReadiness):
    def __init__(self, hosts: HostReadiness, generator: Generator, unit: EngineUnit) -> None:
        super().__init__(generator, unit)
        self._hosts = hosts

    def engine(self, timeout_s: float) -> EngineState:
        return self._hosts.engine(timeout_s)


def _model_states(
    catalogue: Catalogue, able: Mapping[str, frozenset[str]], stages: tuple[StageState, ...]
) -> ModelStates:
    states, engines = [], {}
    for model in catalogue.visible_models:
        engines[model.id] = tuple(name for name, models in able.items() if model.id in models)
        has_host = bool(engines[model.id])
        error = None if has_host else NoHosts(f"No host can draw {model.id} now.", model=model.id)
        states.append(
            ModelState(
                model.id,
                is_ready=has_host,
                is_drawable=has_host,
                error=error,
                refused_tasks=tuple(catalogue.undrawable.get(model.id, ())),
            )
        )
    return ModelStates(tuple(states), is_complete=True, stages=stages, engines=engines)


def _stage_states(
    catalogue: Catalogue, of_hosts: Iterable[Mapping[str, tuple[Any, ...]]]
) -> Iterator[StageState]:
    """What one host at least can do of each stage."""
    found = list(of_hosts)
    for stage in catalogue.stages.values():
        values = tuple(
            value for value in stage.values if any(value in each.get(stage.id, ()) for each in found)
        )
        error = None if values == tuple(stage.values) else NoHosts(f"No host can do all of `{stage.id}` now.")
        yield StageState(stage.id, values, tuple(stage.values), error)


def host_entries(hosts: HostList) -> list[dict[str, Any]]:
    """As JSON: entries of `engines`, one for each host that is there or was lately. Raises the errors of Redis."""
    known, load = hosts.known_hosts(), hosts.load()
    entries = [_entry(host, *load.of_hosts.get(host.name, (0, 0))) for host in known.values()]
    entries += [no_engine(name, problem) for name, problem in unreadable(hosts)]
    return entries + [_gone(name) for name in hosts.gone_hosts()]


def unreadable(hosts: HostList) -> list[tuple[str, Mapping[str, Any] | None]]:
    """Hosts that are there and whose heartbeat cannot be used, with the problem of each as JSON."""
    texts = hosts.unreadable_hosts()
    return [(name, problem_of(ClusterMessageInvalid(text, host=name))) for name, text in texts.items()]


def _gone(name: str) -> dict[str, Any]:
    error = NoHosts(f"The host {name} is not there: it ended, or it is cut off.")
    return no_engine(name, problem_of(error))


def _entry(host: HostView, running: int, pending: int) -> dict[str, Any]:
    code, message = host.problem
    return {
        **_gone(host.name),
        "engine": ("generating" if running else "running") if not code else "stopped",
        "reachable": not code,
        "problem": {"code": code, "message": message} if code else None,
        "sketch": host.is_sketch,
        "version": host.comfyui or None,
        "mode": "generation",
        "drained": host.is_drained,
        "loaded_models": list(host.loaded),
        "queue": {"running": running, "pending": pending},
        "memory": None,
        "seconds_per_job": host.seconds_per_job,
        "pictures_per_hour": host.pictures_per_hour,
    }


def no_engine(name: str, problem: Mapping[str, Any] | None) -> dict[str, Any]:
    """An entry of `engines` that can draw nothing."""
    return {
        "name": name,
        "gpu": None,
        "endpoint": None,
        "engine": "stopped",
        "reachable": False,
        "problem": problem,
        "sketch": False,
        "version": None,
        "shared": False,
        "mode": "inference",
        "switching": False,
        "drained": False,
        "drained_since": None,
        "models": None,
        "weight": 1.0,
        "loaded_models": None,
        "queue": {"running": 0, "pending": 0},
        "waiting": 0,
        "memory": None,
        "seconds_per_job": None,
        "pictures_per_hour": None,
    }
