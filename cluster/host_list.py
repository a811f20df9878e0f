"""What a process that waits for jobs knows of the hosts and shows of them: which are there, what they do, and which can draw
a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from cluster import names
from cluster.dispatcher import Dispatcher
from cluster.host_facts import HostFacts, KnownHosts
from cluster.placing import WaitingJob, refusal_of
from cluster.redis_connection import redis_errors
from errors import NoHosts

_CHECKING_S = 10.0
"""How long a request waits for a host that still finds out what it can draw"""


@dataclass(frozen=True)
class Load:
    """`waiting`: model -> how many jobs no host has. `of_hosts`: host -> how many it draws, and how many it has besides."""

    waiting: Mapping[str, int]
    of_hosts: Mapping[str, tuple[int, int]]


class HostList:
    """Thread-safe. `start`: starts what reads the hosts once a second, if it does not run yet; raises the errors of Redis.
    `wake`: called when jobs may be sent that could not before. `was_away_lately`: whether Redis did not answer a moment ago,
    so that hosts may be missing that are there."""

    def __init__(
        self,
        client: redis.Redis,
        known: KnownHosts,
        dispatcher: Dispatcher,
        *,
        start: Callable[[], None],
        wake: Callable[[], None],
        was_away_lately: Callable[[], bool],
    ) -> None:
        self._client, self._known, self._dispatcher = client, known, dispatcher
        self._start, self._wake, self._was_away_lately = start, wake, was_away_lately

    def known_hosts(self) -> Mapping[str, HostFacts]:
        """All that are there, by name, not older than about a second. Raises the errors of Redis."""
        self._start()
        return self._known.last if self._known.are_fresh() else self._known.read()

    def facts_of(self, name: str) -> HostFacts:
        """What was last read of a host; only its name if it was not there."""
        return self._known.last.get(name) or HostFacts(name, "")

    def gone_hosts(self) -> tuple[str, ...]:
        """The names of those that were there and are no more."""
        return self._known.gone

    def unreadable_hosts(self) -> Mapping[str, str]:
        """The names of those that are there and whose heartbeat cannot be used, with a sentence about each."""
        return {
            name: f"The host {names.shown(name)} is there, and {why}."
            for name, why in self._known.unreadable.items()
        }

    def none_there(self) -> NoHosts:
        """Why there is no host at all."""
        if others := " ".join(self.unreadable_hosts().values()):
            return NoHosts(f"No host is there that this machine can use. {others}")
        return NoHosts("No host is there: no `easel worker` runs with this Redis and key.")

    def host_for(self, model: str, avoided: tuple[str, ...] = ()) -> HostFacts:
        """One that can draw a model. Waits a moment for a host that has just started and still finds out what it can draw,
        and for hosts of which an outage of Redis hides that they are there. Raises NoHosts and the errors of Redis."""
        ends_at = time.monotonic() + _CHECKING_S
        while True:
            hosts = self.known_hosts()
            is_there = any(model in host.models for host in hosts.values())
            is_checking = any(host.is_checking for host in hosts.values()) or self._was_away_lately()
            if is_there or not is_checking or time.monotonic() > ends_at:
                if not hosts:
                    raise self.none_there()
                return _host_for(model, avoided, hosts)
            time.sleep(0.1)

    def load(self) -> Load:
        """The jobs of all hosts. Raises the errors of Redis."""
        self._start()
        situation = self._dispatcher.situation()
        jobs = Counter(each.host for each in situation.assigned)
        slots = {name: host.slots for name, host in situation.hosts.items()}
        return Load(
            Counter(job.model for job in situation.waiting),
            {
                host: (min(count, slots.get(host, 1)), max(0, count - slots.get(host, 1)))
                for host, count in jobs.items()
            },
        )

    def reports(self) -> list[dict[str, Any]]:
        """Of each host, as JSON: name, state (`ready`, `drained`, `down`, `unreadable` or `gone`), problem, version (of
        Easel), comfyui, sketch, engines, running, waiting, models (how many), loaded_models, pictures_per_hour. Raises the
        errors of Redis."""
        known, load = self.known_hosts(), self.load()
        found = [_report(host, *load.of_hosts.get(host.name, (0, 0))) for host in known.values()]
        found += [_absent(name, "unreadable", why) for name, why in self._known.unreadable.items()]
        return found + [_absent(name, "gone", "it ended, or it is cut off") for name in self.gone_hosts()]

    def set_drained(self, name: str, is_drained: bool) -> bool:
        """Whether a host gets no new jobs, until that is changed; returns what it was. Raises the errors of Redis."""
        with redis_errors():
            was_drained = bool(self._client.exists(names.drained(name)))
            if is_drained:
                self._client.set(names.drained(name), "1")
            else:
                self._client.delete(names.drained(name))
        self._wake()
        return was_drained


def _host_for(model: str, avoided: tuple[str, ...], hosts: Mapping[str, HostFacts]) -> HostFacts:
    job = WaitingJob("", 0, model, "", "", avoided=avoided)
    able = [host for host in hosts.values() if refusal_of(host, job) is None]
    if able:
        return min(able, key=lambda host: (model not in host.loaded, host.name))
    has_model = [host for host in hosts.values() if model in host.models]
    if not has_model:
        raise NoHosts(f"None of the hosts can draw {model}: {', '.join(sorted(hosts))}.", model=model)
    reasons = "; ".join(
        f"{host.name}: {refused.text}" for host in has_model if (refused := refusal_of(host, job))
    )
    raise NoHosts(f"No host can draw {model} now. {reasons}", model=model)


def _report(host: HostFacts, running: int, waiting: int) -> dict[str, Any]:
    return {
        "name": host.name,
        "state": host.state,
        "problem": host.problem[1] or None,
        "version": host.version,
        "comfyui": host.comfyui,
        "sketch": host.is_sketch,
        "engines": host.slots,
        "running": running,
        "waiting": waiting,
        "models": len(host.models),
        "loaded_models": list(host.loaded),
        "pictures_per_hour": host.pictures_per_hour,
    }


def _absent(name: str, state: str, problem: str) -> dict[str, Any]:
    """Of a host that draws nothing and about which nothing is known."""
    nothing = _report(HostFacts(name, "", slots=0), 0, 0)
    return {**nothing, "state": state, "problem": problem}
