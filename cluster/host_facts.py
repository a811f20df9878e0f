"""What hosts tell about themselves, once a second, and what the others know of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from cluster import names
from cluster.celery_leftovers import CeleryLeftovers
from cluster.redis_connection import answers_of, is_wrong_type, redis_errors
from cluster.sealing import Seal
from engines import Cost, Costs
from errors import ClusterMessageInvalid

log = logging.getLogger("easel.cluster")
HEARTBEAT_S = 1.0
GONE_AFTER_S = 3.5
"""After its last heartbeat. Front ends look once a second, so that all know it within 5 s. Redis counts the time, so that no
clock of a host matters."""
_MAX_COSTS = 1000
_MAX_NAMED = 100
_OTHER_KEY = "its heartbeat was not made with the EASEL_CLUSTER_KEY of this machine"
_OTHER_FORM = "its heartbeat has a form that this version of Easel cannot read: it has another version, or it is damaged"


@dataclass(frozen=True)
class HostFacts:
    """One host. `instance`: differs for each start of its worker. `slots`: how many jobs it draws at the same time.
    `problem`: code and message of why it can draw nothing; empty if it can. `models`: those that it can draw. `stages`: what
    it can do of each stage. `loaded`:
    those that are probably in its memory, the newest first. `memory_bytes`: of its GPU; None if that is not known."""

    name: str
    instance: str
    version: str = ""
    comfyui: str = ""
    is_sketch: bool = False
    slots: int = 1
    problem: tuple[str, str] = ("", "")
    models: frozenset[str] = frozenset()
    stages: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    memory_bytes: int | None = None
    costs: Costs = field(default_factory=Costs)
    recent: Mapping[str, int] = field(default_factory=dict)
    """Of its last jobs, how many each model had"""
    pictures_per_hour: int = 0
    is_checking: bool = False
    """Whether it may be able to draw more models than it has found out yet"""
    models_mark: str = ""
    """Changes when `models` does"""
    is_drained: bool = False
    holds: bool = True
    """Whether it says which jobs its processes have, by `names.held`. Older versions of Easel do not."""

    @property
    def can_draw(self) -> bool:
        return not self.problem[0] and not self.is_drained

    @property
    def seconds_per_job(self) -> float | None:
        """How long its jobs take, over all models; None if nothing was measured."""
        seconds = self.costs.mean_render_s
        return None if seconds is None else round(seconds, 2)

    @property
    def state(self) -> str:
        """`ready`, `drained` or `down`"""
        return "drained" if self.is_drained else "down" if self.problem[0] else "ready"

    def as_json(self) -> dict[str, Any]:
        """Without the models, which are sent when they change."""
        costs = list(self.costs.models.items())[-_MAX_COSTS:]
        return {
            "name": self.name,
            "instance": self.instance,
            "version": self.version,
            "comfyui": self.comfyui,
            "is_sketch": self.is_sketch,
            "slots": self.slots,
            "problem": list(self.problem),
            "stages": {name: list(values) for name, values in self.stages.items()},
            "loaded": list(self.loaded),
            "memory_bytes": self.memory_bytes,
            "costs": {model: [cost.render_s, cost.first_s] for model, cost in costs},
            "recent": dict(self.recent),
            "pictures_per_hour": self.pictures_per_hour,
            "is_checking": self.is_checking,
            "models_mark": self.models_mark,
            "holds": self.holds,
        }

    @classmethod
    def read(
        cls, document: Mapping[str, Any], models: frozenset[str], *, is_drained: bool = False
    ) -> HostFacts:
        """Raises ClusterMessageInvalid."""
        try:
            costs = {str(model): Cost(*pair) for model, pair in document.get("costs", {}).items()}
            code, message = document.get("problem", ("", ""))
            memory = document.get("memory_bytes")
            return cls(
                name=str(document["name"]),
                instance=str(document["instance"]),
                version=str(document.get("version", "")),
                comfyui=str(document.get("comfyui", "")),
                is_sketch=bool(document.get("is_sketch", False)),
                slots=max(1, int(document.get("slots", 1))),
                problem=(str(code), str(message)),
                models=models,
                stages={str(name): tuple(values) for name, values in document.get("stages", {}).items()},
                loaded=tuple(map(str, document.get("loaded", ()))),
                memory_bytes=None if memory is None else int(memory),
                costs=Costs(models=costs),
                recent={str(model): int(count) for model, count in document.get("recent", {}).items()},
                pictures_per_hour=int(document.get("pictures_per_hour", 0)),
                is_checking=bool(document.get("is_checking", False)),
                models_mark=str(document.get("models_mark", "")),
                is_drained=is_drained,
                holds=bool(document.get("holds", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterMessageInvalid(f"A heartbeat has not the form of one: {error}.") from error


def _name_of(member: bytes) -> str | None:
    """None if no host can have the name."""
    try:
        return member.decode()
    except UnicodeDecodeError:
        return None


class KnownHosts:
    """Reads the hosts. Thread-safe: each read replaces what was known."""

    def __init__(self, client: redis.Redis, seal: Seal) -> None:
        self._client, self._seal = client, seal
        self._models: dict[str, tuple[str, frozenset[str]]] = {}
        """host -> the mark of its models, and they"""
        self._leftovers = CeleryLeftovers(client)
        self._noted: dict[str, str] = {}
        """host -> its instance that was noted in `names.QUEUES`"""
        self._kept = set[str]()
        """Those of which the log said that they cannot be forgotten"""
        self._read_at = -math.inf
        self.last: Mapping[str, HostFacts] = {}
        self.gone: tuple[str, ...] = ()
        """Those that were there and are no more"""
        self.unreadable: Mapping[str, str] = {}
        """Those whose heartbeat cannot be used, and why"""

    def are_fresh(self) -> bool:
        """Whether `last` was read within about two heartbeats."""
        return time.monotonic() - self._read_at < 1.5 * HEARTBEAT_S

    def read(self) -> Mapping[str, HostFacts]:
        """All that are there, by name. Raises the errors of Redis."""
        with redis_errors():
            members: Iterable[Any] = self._client.smembers(names.HOSTS)
            known = sorted(filter(None, map(_name_of, members)))
            pipeline = self._client.pipeline(transaction=False)
            for name in known:
                pipeline.get(names.host(name))
                pipeline.exists(names.drained(name))
                pipeline.exists(names.seen(name))
            answers = answers_of(pipeline) if known else []
            found: dict[str, HostFacts] = {}
            unreadable: dict[str, str] = {}
            gone: list[str] = []
            facts = zip(known, answers[::3], answers[1::3], answers[2::3], strict=True)
            for name, data, drained, was_seen in facts:
                if data is None:
                    if was_seen:
                        gone.append(name)
                    continue
                if not isinstance(data, bytes) or not self._seal.is_own(names.host(name), data):
                    unreadable[name] = _OTHER_KEY
                    continue
                try:
                    document = self._seal.open(names.host(name), data)
                    models = self._models_of(name, str(document.get("models_mark", "")))
                    found[name] = HostFacts.read(document, models, is_drained=bool(drained))
                except ClusterMessageInvalid:
                    unreadable[name] = _OTHER_FORM
            self._note(found)
        self._read_at = time.monotonic()
        self.last, self.unreadable, self.gone = found, unreadable, tuple(gone)
        return found

    def _note(self, found: Mapping[str, HostFacts]) -> None:
        """That Celery keeps something for these hosts. One that ends properly takes its name out of `names.HOSTS`."""
        instances = {name: host.instance for name, host in found.items()}
        new = [name for name, instance in instances.items() if self._noted.get(name) != instance]
        if new:
            pipeline = self._client.pipeline(transaction=False).sadd(names.QUEUES, *new)
            if not isinstance(answers_of(pipeline)[0], Exception):
                self._noted = instances

    def forget_gone(self) -> None:
        """Remove those that have not been there lately (in the last hour, if they did not say that they end), and what
        Celery keeps for them. Raises the errors of Redis."""
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.smembers(names.HOSTS)
            pipeline.smembers(names.QUEUES)
            hosts, queues = answers_of(pipeline)
            if isinstance(queues, Exception):
                log.warning("%s holds what no front end has written; it is removed", names.QUEUES)
                self._client.delete(names.QUEUES)
                queues, self._noted = set(), {}
            if isinstance(hosts, Exception):
                raise hosts
            for member in hosts | queues:
                if (name := _name_of(member)) is None:
                    log.warning("%s is no name of a host; it is removed", names.shown(member))
                    self._client.srem(names.HOSTS, member)
                    self._client.srem(names.QUEUES, member)
                elif name not in self.last:
                    self._forget(name)

    def _forget(self, name: str) -> None:
        try:
            if self._leftovers.forget(name):
                log.info("The host %s is forgotten: it has not been there lately.", names.shown(name))
        except redis.ResponseError as error:
            if not is_wrong_type(error):
                raise
            if name not in self._kept and len(self._kept) < _MAX_NAMED:
                self._kept.add(name)
                log.warning("The host %s cannot be forgotten: %s", *map(names.shown, (name, str(error))))

    def _models_of(self, name: str, mark: str) -> frozenset[str]:
        known = self._models.get(name)
        if known is not None and known[0] == mark:
            return known[1]
        (data,) = answers_of(self._client.pipeline(transaction=False).get(names.host_models(name)))
        if not isinstance(data, bytes):
            return frozenset()
        document = self._seal.open(names.host_models(name), data)
        models = frozenset(map(str, document.get("models", ())))
        self._models[name] = str(document.get("mark", "")), models
        return models
