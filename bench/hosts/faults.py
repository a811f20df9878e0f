"""Many requests while processes are killed: none may be lost, answered twice or given another one's picture, and the
death of a host's process must be noticed soon."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from bench.hosts.clients import SIZE, Clients
from bench.hosts.cluster import Cluster, HostOptions
from bench.hosts.kills import (
    HEADINGS,
    MAX_NOTICE_S,
    MUST_BE_NOTICED,
    Kill,
    Kind,
    schedule,
    summaries,
)
from bench.hosts.ledger import Job, Ledger, Verdict
from bench.hosts.programs import MODELS, FrontEnd, Host
from bench.hosts.reference import reference_digests
from bench.hosts.tables import table, target

_POLL_INTERVAL_S = 0.1
_RENDER_WAIT_S = 10.0
_NOTICE_WAIT_S = 15.0
_RECOVERY_WAIT_S = 90.0
_SHOWN = 10


@dataclass(frozen=True)
class FaultOptions:
    """`jobs`: at least so many; more are sent until all kills are done. `kills`: of each kind."""

    jobs: int
    hosts: int
    fronts: int
    kills: int
    kinds: Sequence[Kind] = tuple(Kind)
    render_ms: float = 50.0
    clients: int = 8
    seed: int = 1
    size: int = SIZE


@dataclass
class FaultResult:
    ledger: Ledger
    kills: list[Kill]
    verdict: Verdict
    took_s: float
    failure: str = ""
    """Why the run could not go on, such as a host that did not come back"""
    unused: int = 0
    """Stored pictures of requests that were answered with an error, or whose client was cut off"""
    found_again: int = 0
    """Answered pictures whose record was lost with a front end, so that only their file says what they are"""
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        late = any(kill.is_late for kill in self.kills)
        return self.verdict.is_clean and not late and not self.failure


def measure_faults(options: HostOptions, faults: FaultOptions) -> FaultResult:
    """Raises RuntimeError if the cluster does not start."""
    ledger = Ledger()
    with Cluster(options, name="faults") as cluster:
        cluster.start_all(faults.hosts, faults.fronts, render_ms=faults.render_ms)
        began_at = time.monotonic()
        killer = _Killer(cluster, ledger, faults)

        def may_end() -> bool:
            return killer.is_done and len(ledger.jobs) >= faults.jobs

        urls = [front.url for front in cluster.fronts]
        clients = Clients(urls, _jobs(faults.seed), ledger, may_end, faults.size)
        threads = clients.run(faults.clients)
        try:
            killer.run()
        finally:
            killer.is_done = True  # also after an error, or the clients would never end
            for thread in threads:
                thread.join()
        took_s = time.monotonic() - began_at
        for kill in killer.kills:
            kill.follow(ledger.all_answers())
        stored, nameless = _stored(cluster.fronts)
    answered = [ledger.jobs[index] for index in ledger.answers]
    found_again = ledger.stored_without_name(stored, nameless)
    stored.update(found_again)
    verdict = ledger.verdict(stored, reference_digests(answered, faults.size))
    used = {answer.request_id for answer in ledger.all_answers()}
    unused = sum(count for name, count in stored.items() if name not in used)
    unused += len(nameless) - len(found_again)
    return FaultResult(ledger, killer.kills, verdict, took_s, killer.failure, unused, len(found_again))


def _jobs(seed: int) -> Iterator[Job]:
    """Without end. The sketch engine draws another picture for another seed, prompt or model."""
    source = random.Random(seed)
    first = source.randrange(2**40)
    index = 0
    while True:
        yield Job(
            index, first + index, source.choice(MODELS), f"a lighthouse above a calm sea, number {index}"
        )
        index += 1


def _stored(fronts: Sequence[FrontEnd]) -> tuple[Counter[str], list[int | None]]:
    """The number of pictures of each request id in all stores, and the seeds of those whose record was made again from
    their file, which does not have the id."""
    counts: Counter[str] = Counter()
    nameless = []
    for front in fronts:
        cursor = ""
        while True:
            page = front.get(f"/api/images?limit=200{cursor}", timeout_s=60)
            counts.update(image["request_id"] for image in page["images"] if image["request_id"])
            nameless += [image["seed"] for image in page["images"] if not image["request_id"]]
            if not page["next"]:
                break
            cursor = f"&cursor={page['next']}"
    return counts, nameless


class _Killer:
    """Kills in turn, starts again what it killed, and waits until all is ready before the next."""

    def __init__(self, cluster: Cluster, ledger: Ledger, faults: FaultOptions) -> None:
        self._cluster, self._ledger, self._faults = cluster, ledger, faults
        self._random = random.Random(faults.seed)
        self.kills: list[Kill] = []
        self.is_done = False
        self.failure = ""

    def run(self) -> None:
        try:
            for kind, turn in schedule(self._faults.kinds, self._faults.kills):
                time.sleep(self._random.uniform(0.1, 0.6))
                kill = self._kill(kind, turn)
                began_at = time.monotonic()
                self._cluster.wait_ready(_RECOVERY_WAIT_S)
                kill.recovered_s = time.monotonic() - kill.at
                print(
                    f"{turn + 1}/{self._faults.kills} {kind}: {kill.target}, noticed "
                    f"{_seconds(kill.noticed_s)} ({kill.sign}), ready {_seconds(kill.recovered_s)} "
                    f"(waited {_seconds(time.monotonic() - began_at)}), {len(self._ledger.answers)} answered",
                    flush=True,
                )
        except RuntimeError as error:
            self.failure = str(error)

    def _kill(self, kind: Kind, turn: int) -> Kill:
        if kind in (Kind.HOST, Kind.CHILD, Kind.ENGINE):
            host = self._cluster.hosts[turn % len(self._cluster.hosts)]
            return self._kill_of_host(kind, host, is_restarted_at_once=turn % 2 == 0)
        if kind == Kind.REDIS:
            return self._kill_redis()
        return self._kill_front(kind, self._cluster.fronts[turn % len(self._cluster.fronts)])

    def _kill_of_host(self, kind: Kind, host: Host, *, is_restarted_at_once: bool) -> Kill:
        child, children = host.drawing_child(), set(host.children())
        running = self._wait_for_render([host])
        kill = self._new_kill(kind, host.name, running, is_restarted_at_once)
        if kind == Kind.HOST:
            host.kill()
        elif kind == Kind.ENGINE:
            host.engine.kill()
        elif child is not None:
            _kill_pid(child)
        if is_restarted_at_once:
            self._restart(kind, host)
        if kind in MUST_BE_NOTICED:
            self._wait_for_notice(kill, host, children if kind == Kind.CHILD else None)
        if not is_restarted_at_once:
            self._restart(kind, host)
        return kill

    def _restart(self, kind: Kind, host: Host) -> None:
        if kind == Kind.HOST:
            host.start()
        elif kind == Kind.ENGINE:
            host.engine.start()

    def _kill_redis(self) -> Kill:
        kill = self._new_kill(Kind.REDIS, "redis", self._wait_for_render(self._cluster.hosts))
        self._cluster.redis.kill()
        self._cluster.redis.start()
        self._cluster.redis.wait_ready()
        return kill

    def _kill_front(self, kind: Kind, front: FrontEnd) -> Kill:
        workers = front.children()
        kill = self._new_kill(kind, front.name, self._wait_for_render(self._cluster.hosts))
        if kind == Kind.FRONT:
            front.kill(group=True)
            front.start()
        elif workers:
            _kill_pid(self._random.choice(workers))
        return kill

    def _new_kill(
        self, kind: Kind, target_name: str, running: frozenset[str], is_restarted_at_once: bool = True
    ) -> Kill:
        kill = Kill(kind, target_name, time.monotonic(), running, is_restarted_at_once)
        self.kills.append(kill)
        return kill

    def _wait_for_render(self, hosts: Sequence[Host]) -> frozenset[str]:
        """The jobs that these hosts' engines draw, as soon as there is one. Empty if there is none for a while."""
        deadline = time.monotonic() + _RENDER_WAIT_S
        while time.monotonic() < deadline:
            for host in hosts:
                if running := host.engine.running():
                    return frozenset(running)
            time.sleep(0.005)
        return frozenset()

    def _wait_for_notice(self, kill: Kill, host: Host, children: set[int] | None) -> None:
        """Until a front end no longer calls the host ready, a running job is answered as drawn again, or the host's main
        process has replaced the killed child. `children`: of the host before the kill, for a killed child."""
        deadline = kill.at + _NOTICE_WAIT_S
        while kill.noticed_s is None and time.monotonic() < deadline:
            kill.follow(self._ledger.all_answers())
            if self._is_not_ready(host.name):
                kill.see("not ready", time.monotonic())
            if children is not None and set(host.children()) - children:
                kill.see("child replaced", time.monotonic())
            time.sleep(_POLL_INTERVAL_S)

    def _is_not_ready(self, name: str) -> bool:
        """Whether a front end says so. One that does not answer says nothing."""
        for front in self._cluster.fronts:
            with contextlib.suppress(requests.RequestException, LookupError, ValueError):
                return front.host_states().get(name) != "ready"
        return False


def _kill_pid(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _seconds(value: float | None) -> str:
    return "not" if value is None else f"after {value:.1f} s"


def report(result: FaultResult, faults: FaultOptions) -> str:
    """The table of kills, what became of the requests, and the targets."""
    ledger, verdict = result.ledger, result.verdict
    used = [each for each in summaries(result.kills) if each.kills]
    noticed = [kill.noticed_s for kill in result.kills if kill.kind in MUST_BE_NOTICED]
    latest = max((each for each in noticed if each is not None), default=0.0)
    late = sum(kill.is_late for kill in result.kills)
    redrawn = sum(answer.is_redrawn for answer in ledger.all_answers())
    lines = [
        f"{len(ledger.jobs)} requests, {faults.clients} clients, {faults.fronts} front ends, {faults.hosts} hosts, "
        f"{faults.size}x{faults.size}, render {faults.render_ms:.0f} ms, {result.took_s:.0f} s",
        "",
        table(HEADINGS, [each.row() for each in used]),
        "(median / maximum)",
        "",
        f"answered: {len(ledger.answers)}; drawn again by another host or engine: {redrawn}; "
        f"stored for a request that was cut off: {result.unused}; "
        f"listed again from their file: {result.found_again}",
        "retries of the clients: "
        + (", ".join(f"{count} x {reason}" for reason, count in ledger.retries.most_common()) or "none"),
        "",
        target("lost", str(len(verdict.lost)), "0", is_met=not verdict.lost),
        target("answered twice", str(len(verdict.twice)), "0", is_met=not verdict.twice),
        target("mixed", str(len(verdict.mixed)), "0", is_met=not verdict.mixed),
        target("answered, but not stored", str(len(verdict.not_stored)), "0", is_met=not verdict.not_stored),
        target(
            "a killed process of a host is noticed",
            f"after {latest:.1f} s at most, {late} late",
            f"at most {MAX_NOTICE_S:.0f} s",
            is_met=not late,
        ),
    ]
    for name, found in _problems(verdict).items():
        lines += [f"{name}: {each}" for each in found[:_SHOWN]]
    if result.failure:
        lines.append(f"The run ended early: {result.failure}")
    return "\n".join(lines)


def _problems(verdict: Verdict) -> dict[str, Sequence[str]]:
    return {
        "lost": verdict.lost,
        "twice": verdict.twice,
        "mixed": verdict.mixed,
        "not stored": verdict.not_stored,
    }


def numbers(result: FaultResult) -> dict[str, Any]:
    """For --json."""
    return {
        "requests": len(result.ledger.jobs),
        "answered": len(result.ledger.answers),
        "retries": dict(result.ledger.retries),
        "took_s": result.took_s,
        "failure": result.failure,
        **{name: list(found) for name, found in _problems(result.verdict).items()},
        "kills": [
            {
                "kind": kill.kind,
                "target": kill.target,
                "running": len(kill.running),
                "restarted_at_once": kill.is_restarted_at_once,
                "noticed_s": kill.noticed_s,
                "sign": kill.sign,
                "recovered_s": kill.recovered_s,
                "answered_s": kill.answered_s,
            }
            for kill in result.kills
        ],
    }
