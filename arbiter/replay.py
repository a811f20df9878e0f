"""Plays an event log against a policy in simulated time: the same requests, each as long as it ran, and switches that cost
what they cost then. The decisions are those of `policy.py` and `fair_queue.py`; only time and the two tenants are
simulated. Pure."""

from __future__ import annotations

import heapq
import json
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from arbiter.fair_queue import (
    Turns,
    flow_of,
    has_turn,
    queue_order,
    with_end,
    with_turn,
)
from arbiter.leases import Claim
from arbiter.policy import (
    ASKED_S,
    FIRST_LEASE_TIMEOUT_S,
    Situation,
    idle_restore_at,
    is_open,
    is_refused,
    may_trigger_switch,
    next_switch,
    select,
)
from arbiter.values import MODES, Mode, Pace, Policy, State, Switch, other_mode
from arbiter.waiting import DEFAULT_SWITCH_S

_DEFAULT_RUN_S = 1.0
"""Of a request that never ran, if none of its mode ran either"""
_RECORDED = get_type_hints(Policy)
_MAX_SECONDS = 1e12
"""Unix times, too; `reserve_bytes` and other sizes of a policy are smaller"""
_MAX_NAMED_LINES = 10
_PROGRESS_STEP = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the log. `run_s`: how long it used the GPU. `waited_s`: how long it really waited; None if it gave
    up."""

    mode: Mode
    asked_at: float
    run_s: float
    key: str
    waited_s: float | None


@dataclass(frozen=True)
class Recording:
    """What a log says. `switch_s`: the median cost of a switch to each mode, without the wait for running requests.
    `policy`: the last one in it, None if it has none. `first_mode`: the mode at its beginning. `damaged_lines`: the
    numbers, from 1, of the first of those that were skipped."""

    requests: tuple[Request, ...]
    switch_s: Mapping[Mode, float]
    policy: Policy | None
    switches: int
    skipped_lines: int
    first_mode: Mode = "inference"
    damaged_lines: tuple[int, ...] = ()


@dataclass
class Waits:
    """How long the requests of each mode waited, in seconds. `switches`: how many, and how long they took together."""

    by_mode: dict[Mode, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    refused: int = 0
    never_ran: int = 0
    switches: int = 0
    switching_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Count, median, 95th percentile and longest wait of each mode."""
        return {
            **{str(mode): _figures(waits) for mode, waits in self.by_mode.items()},
            "refused": self.refused,
            "never_ran": self.never_ran,
            "switches": self.switches,
            "switching_s": round(self.switching_s, 3),
        }


def _figures(waits: list[float]) -> dict[str, float]:
    if not waits:
        return {"requests": 0}
    ordered = sorted(waits)
    return {
        "requests": len(ordered),
        "median_s": round(statistics.median(ordered), 3),
        "p95_s": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "longest_s": round(ordered[-1], 3),
    }


def read_recording(lines: Iterable[str]) -> Recording:
    """What the lines of an event log say. Lines that are damaged, and requests that needed no GPU, are left out."""
    found: list[Request] = []
    costs: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    policy, first_mode, switches, skipped = None, None, 0, 0
    damaged: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind in ("lease", "gave_up"):
                if event["uses_gpu"]:
                    found.append(_request(event))
            elif kind == "switch_ended":
                target = _mode(event["target"])
                first_mode = first_mode or other_mode(target)
                if event["error"] is None and event["mode"] == target:
                    waiting = ("closing", "draining")
                    costs[target].append(
                        sum(_seconds(s) for name, s in event["phases"] if name not in waiting)
                    )
                switches += 1
            elif kind == "policy":
                policy = _policy(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if line.strip():
                skipped += 1
                if len(damaged) < _MAX_NAMED_LINES:
                    damaged.append(number)
    runs: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    for request in found:
        if request.waited_s is not None:
            runs[request.mode].append(request.run_s)
    usual = {mode: statistics.median(runs[mode]) if runs[mode] else _DEFAULT_RUN_S for mode in MODES}
    requests = (
        request if request.waited_s is not None else replace(request, run_s=usual[request.mode])
        for request in found
    )
    return Recording(
        tuple(sorted(requests, key=lambda request: request.asked_at)),
        {mode: statistics.median(costs[mode]) if costs[mode] else DEFAULT_SWITCH_S for mode in MODES},
        policy,
        switches,
        skipped,
        first_mode or "inference",
        tuple(damaged),
    )


def _mode(value: Any) -> Mode:
    if value not in MODES:
        raise ValueError("no mode")
    return cast(Mode, value)


def _seconds(value: Any) -> float:
    """A time or a duration. Raises ValueError for what no clock says."""
    if not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        raise ValueError("no time")
    return float(value)


def _policy(event: Mapping[str, Any]) -> Policy:
    """Raises ValueError if a value is not one of a policy."""
    values = {name: event[name] for name in _RECORDED if name in event}
    for name, value in values.items():
        if get_origin(kind := _RECORDED[name]) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name} is not one of a policy")
        else:
            _seconds(value)
    return Policy(**values)


def _request(event: Mapping[str, Any]) -> Request:
    ran = event["event"] == "lease"
    run_s = event.get("run_s")
    if run_s is None:
        run_s = event.get("held_s", 0.0)
    return Request(
        _mode(event["mode"]),
        _seconds(event["asked_at"]),
        _seconds(run_s),
        sys.intern(str(event.get("key", ""))),
        _seconds(event["waited_s"]) if ran else None,
    )


def recorded_waits(recording: Recording) -> Waits:
    """The waits as they were."""
    waits = Waits(switches=recording.switches)
    for request in recording.requests:
        if request.waited_s is None:
            waits.never_ran += 1
        else:
            waits.by_mode[request.mode].append(request.waited_s)
    return waits


def simulate(
    recording: Recording, policy: Policy, on_progress: Callable[[int], None] = lambda count: None
) -> Waits:
    """The waits with `policy`. Every request waits until it is served or refused; the engine runs one picture at a time,
    LLM requests run side by side. `on_progress`: told now and then how many requests have asked since it was told last."""
    return _Simulation(recording, policy, on_progress).run()


_EPSILON_S = 1e-6
"""Later than a time limit by this much, so that it is over"""


class _Claims:
    """The claims of the simulation. `depth`: as in Policy.

    A decision depends on few of them: on whether an LLM request waits or runs, and among the pictures on the leases and the
    first `depth` tickets of each flow, since no others can be the next ones. So it takes the same time however many wait.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._tickets: dict[Mode, dict[str, deque[Claim]]] = {mode: {} for mode in MODES}
        self._leases: dict[Mode, dict[int, Claim]] = {mode: {} for mode in MODES}
        self._that_count: tuple[Claim, ...] | None = ()
        """None after a change"""

    def __len__(self) -> int:
        waiting = sum(len(queue) for flows in self._tickets.values() for queue in flows.values())
        return waiting + sum(map(len, self._leases.values()))

    def add(self, ticket: Claim) -> None:
        queue = self._tickets[ticket.mode].setdefault(ticket.flow, deque())
        queue.append(ticket)
        if len(queue) <= self._depth:
            self._that_count = None

    def grant(self, ticket: Claim) -> None:
        """`ticket`: the first of its flow."""
        flows = self._tickets[ticket.mode]
        flows[ticket.flow].popleft()
        if not flows[ticket.flow]:
            del flows[ticket.flow]
        self._leases[ticket.mode][ticket.number] = replace(ticket, kind="lease")
        self._that_count = None

    def end(self, lease: Claim) -> None:
        del self._leases[lease.mode][lease.number]
        self._that_count = None

    def fills_engine(self) -> bool:
        """Whether no picture has its turn."""
        return len(self._leases["generation"]) >= self._depth

    def waiting_llms(self) -> list[Claim]:
        """In their order. They have no flows."""
        return list(self._tickets["inference"].get("", ()))

    def that_count(self) -> tuple[Claim, ...]:
        """Those on which decisions depend."""
        if self._that_count is None:
            leases = self._leases["generation"].values(), islice(self._leases["inference"].values(), 1)
            pictures = (islice(queue, self._depth) for queue in self._tickets["generation"].values())
            llms = (islice(queue, 1) for queue in self._tickets["inference"].values())
            self._that_count = tuple(chain(*leases, *pictures, *llms))
        return self._that_count


class _Simulation:
    def __init__(self, recording: Recording, policy: Policy, on_progress: Callable[[int], None]) -> None:
        self._recording, self._policy, self._on_progress = recording, policy, on_progress
        self._state = State(mode=recording.first_mode)
        self._claims = _Claims(policy.depth)
        self._last_number = 0
        """Of a claim or a turn: they have one sequence"""
        self._turns: Turns = {}
        self._asked_at: dict[int, float] = {}
        """claim number -> when it asked"""
        self._requests: dict[int, Request] = {}
        self._mode_asked_at: dict[Mode, float] = dict.fromkeys(MODES, 0.0)
        self._pace, self._engine_free_at, self._now = Pace(), 0.0, 0.0
        self._is_switch_scheduled = False
        self._looks: set[float] = set()
        self._waits = Waits()
        self._events: list[tuple[float, int, str, Any]] = []
        """Those to come, but for the requests, which are in order already"""
        self._count = 0

    def run(self) -> Waits:
        requests = iter(sorted(self._recording.requests, key=lambda request: request.asked_at))
        request = next(requests, None)
        asked = 0
        while request is not None or self._events:
            if request is not None and (not self._events or request.asked_at <= self._events[0][0]):
                self._now = max(self._now, request.asked_at)
                self._ask(request)
                request, asked = next(requests, None), asked + 1
                if asked % _PROGRESS_STEP == 0:
                    self._on_progress(_PROGRESS_STEP)
            else:
                self._take_event()
            self._settle()
        self._waits.never_ran += len(self._claims)
        self._on_progress(asked % _PROGRESS_STEP)
        return self._waits

    def _take_event(self) -> None:
        moment, _, kind, value = heapq.heappop(self._events)
        self._now = moment
        if kind == "end":
            self._end(value)
        elif kind == "switched":
            self._finish_switch()
        else:
            self._looks.discard(value)

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _at(self, moment: float, kind: str, value: Any = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(moment, self._now), self._count, kind, value))

    def _situation(self) -> Situation:
        claims = self._claims.that_count()
        for mode in {claim.mode for claim in claims}:
            self._mode_asked_at[mode] = self._now
        return Situation(
            self._state,
            claims,
            self._pace,
            self._policy,
            self._now,
            self._mode_asked_at[self._state.mode],
            turns=self._turns,
        )

    def _ask(self, request: Request) -> None:
        if is_refused(self._state, request.mode, self._policy):
            self._waits.refused += 1
            return
        if request.mode == "inference" and self._keeps_generation():
            self._waits.never_ran += 1
            return
        flow = flow_of(request.key) if request.mode == "generation" else ""
        number = self._next_number()
        triggers = may_trigger_switch(request.mode, self._policy)
        self._claims.add(Claim("ticket", number, request.mode, triggers, 0, 0, f"job-{number}", flow))
        self._asked_at[number], self._requests[number] = self._now, request

    def _keeps_generation(self) -> bool:
        """Whether LLM requests wait for the end of generation mode and nothing ends it."""
        policy, state = self._policy, self._state
        never_idle = policy.restore == "never" or (policy.restore == "idle" and policy.idle_restore_s <= 0)
        is_there = state.mode == "generation" and state.active_switch is None
        return is_there and never_idle and not may_trigger_switch("inference", policy)

    def _end(self, claim: Claim) -> None:
        self._claims.end(claim)
        request = self._requests.pop(claim.number)
        if claim.flow:
            self._turns = with_end(self._turns, claim.flow, self._now)
        if claim.mode == "generation":
            self._pace = self._pace.with_use(self._now, request.run_s)

    # --- decisions ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Grant what can be granted, and begin the switch that is due."""
        while self._grant_one() or self._begin_switch():
            pass
        switch = self._state.active_switch
        if switch is not None and not self._is_switch_scheduled and not self._has_old_leases(switch):
            self._is_switch_scheduled = True
            self._at(self._now + self._recording.switch_s[switch.target], "switched")
        for moment in self._next_times():
            if moment > self._now and moment not in self._looks:
                self._looks.add(moment)
                self._at(moment + _EPSILON_S, "look", moment)

    def _has_old_leases(self, switch: Switch) -> bool:
        return bool(select(self._claims.that_count(), "lease", other_mode(switch.target)))

    def _grant_one(self) -> bool:
        """One picture, or all LLM requests: these have always their turn."""
        if is_open(self._state, "inference") and (llms := self._claims.waiting_llms()):
            for ticket in llms:
                self._grant(ticket)
            return True
        if not is_open(self._state, "generation") or self._claims.fills_engine():
            return False
        claims = self._claims.that_count()
        for ticket in queue_order(claims, "generation", self._turns):
            if has_turn(claims, ticket, self._policy.depth, self._turns, self._now):
                self._grant(ticket)
                return True
        return False

    def _grant(self, ticket: Claim) -> None:
        self._claims.grant(ticket)
        self._waits.by_mode[ticket.mode].append(self._now - self._asked_at.pop(ticket.number))
        run_s = self._requests[ticket.number].run_s
        if ticket.mode == "inference":
            return self._at(self._now + run_s, "end", ticket)
        if ticket.flow:
            self._turns = with_turn(self._turns, ticket.flow, self._next_number(), self._now)
        self._engine_free_at = max(self._engine_free_at, self._now) + run_s
        return self._at(self._engine_free_at, "end", ticket)

    def _begin_switch(self) -> bool:
        if self._state.active_switch is not None:
            return False
        plan = next_switch(self._situation())
        if plan is None:
            return False
        number = self._state.switch.number + 1 if self._state.switch else 1
        switch = Switch(number, plan.target, plan.reason, self._now, phase_since=self._now)
        self._state = replace(self._state, switch=switch)
        return True

    def _finish_switch(self) -> None:
        switch = self._state.active_switch
        assert switch is not None
        self._is_switch_scheduled = False
        self._waits.switches += 1
        self._waits.switching_s += self._now - switch.began
        self._state = replace(
            self._state, mode=switch.target, since=self._now, switch=switch.with_end(self._now)
        )

    def _next_times(self) -> Iterator[float]:
        """When the policy may decide otherwise although nothing happens."""
        claims = self._claims.that_count()
        if not claims and self._state.mode == "inference":
            return
        yield self._state.since + self._policy.min_stay_s
        yield self._state.since + FIRST_LEASE_TIMEOUT_S
        if not any(claim.mode == self._state.mode for claim in claims):
            yield self._mode_asked_at[self._state.mode] + ASKED_S
        restore_at = idle_restore_at(self._situation())
        if restore_at is not None:
            yield restore_at
