"""The arbiter's plain frozen values. Times are Unix seconds, memory is bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from gpu_tenant import Failure, Resident

Mode = Literal["inference", "generation"]
"""`inference`: the LLM stacks have the GPU. `generation`: the engine has it."""
Phase = Literal["closing", "draining", "releasing", "verifying", "starting", "restoring"]
MODES: tuple[Mode, ...] = ("inference", "generation")
REQUESTED = "requested"
"""The reason of a switch that the owner requested"""
STATE_LOST = "the state was lost"
"""The reason of the switch that repairs a state that could not be read"""


def other_mode(mode: Mode) -> Mode:
    return "generation" if mode == "inference" else "inference"


@dataclass(frozen=True)
class SwitchRequest:
    """A switchover that was requested explicitly and has not started."""

    mode: Mode
    force: bool = False
    pin: bool = False
    reason: str = REQUESTED


@dataclass(frozen=True)
class Switch:
    """One switchover; it is active while `ended` is None.

    `number` is one higher for each switch. `phases` are the finished ones, with their seconds. `failed`: what could not
    be loaded again. `resumed`: how often another process took the switch over. `reason`, `notes`: texts for people.
    """

    number: int
    target: Mode
    reason: str
    began: float
    force: bool = False
    pin: bool = False
    phase: Phase = "closing"
    phase_since: float = 0.0
    phases: tuple[tuple[str, float], ...] = ()
    pid: int = 0
    resumed: int = 0
    had: bool = False
    """Whether anything was resident before the first unload"""
    free_before: int | None = None
    """Bytes of free GPU memory before the first unload, if known"""
    error: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    ended: float | None = None

    @property
    def may_have_released(self) -> bool:
        """Whether this or an earlier process may have unloaded anything."""
        return not {self.phase, *(name for name, _ in self.phases)} <= {"closing", "draining"}

    def with_phase(self, phase: Phase, now: float) -> Self:
        """This switch with its current phase finished and `phase` started."""
        return replace(self, phases=self._phases_until(now), phase=phase, phase_since=now)

    def with_end(self, now: float) -> Self:
        return replace(self, phases=self._phases_until(now), ended=now)

    def _phases_until(self, now: float) -> tuple[tuple[str, float], ...]:
        return (*self.phases, (self.phase, round(max(0.0, now - self.phase_since), 4)))


@dataclass(frozen=True)
class State:
    """What all processes agree on. `since`: when `mode` was reached; 0 if unknown.

    `wanted`: the explicit request for a switch that has not started. `revoked`: claims of a mode with a number up to
    this one are void. `saved`: what the LLM stacks had loaded when the GPU was last taken from them. `took_s`: how long
    the last successful switch to each mode took.
    """

    mode: Mode = "inference"
    since: float = 0.0
    pinned: bool = False
    requested: bool = False
    """Whether generation mode was requested explicitly: then it does not end soon after the last picture."""
    wanted: SwitchRequest | None = None
    switch: Switch | None = None
    saved: tuple[Resident, ...] = ()
    revoked: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    took_s: Mapping[str, float] = field(default_factory=dict)
    rebuilt: str | None = None
    """Why the state was rebuilt, if it was: the file before it could not be used."""

    @property
    def active_switch(self) -> Switch | None:
        """The switch that has not ended."""
        return self.switch if self.switch is not None and self.switch.ended is None else None

    def as_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError for a document that its schema does not allow."""
        values = {name: value for name, value in document.items() if name != "version"}
        wanted, switch = values.get("wanted"), values.get("switch")
        values["wanted"] = SwitchRequest(**wanted) if wanted else None
        values["switch"] = _switch(switch) if switch else None
        values["saved"] = tuple(Resident(**item) for item in values.get("saved", ()))
        return cls(**values)


def _switch(document: Mapping[str, Any]) -> Switch:
    values = dict(document)
    values["phases"] = tuple((name, seconds) for name, seconds in values["phases"])
    values["failed"] = tuple(Failure(**item) for item in values["failed"])
    values["notes"] = tuple(values["notes"])
    return Switch(**values)


@dataclass(frozen=True)
class Pace:
    """How long the engine's jobs take, over all processes. `last`: when the engine was last used. `seconds_each`: a
    moving average. `jobs`: how many jobs were timed. `timed_at`: when the last of them ended."""

    last: float = 0.0
    seconds_each: float = 10.0
    jobs: int = 0
    timed_at: float = 0.0

    def with_use(self, now: float, seconds: float | None) -> Pace:
        """This pace after one more use; `seconds`: how long the job took, if it finished."""
        if seconds is None:
            return replace(self, last=now)
        # The engine runs one job at a time. One that seems to have taken longer than the time since the one before it
        # ended was still in the engine's queue for a part of it.
        if 0 < now - self.timed_at < seconds:
            seconds = now - self.timed_at
        weight = max(0.2, 1 / (self.jobs + 1))
        return Pace(now, self.seconds_each + weight * (seconds - self.seconds_each), self.jobs + 1, now)


@dataclass(frozen=True)
class Policy:
    """The owner's settings, and the intervals of the arbiter's loops. Seconds; bytes."""

    llm_during_generation: Literal["switch", "wait", "refuse"] = "switch"
    restore: Literal["linger", "idle", "never"] = "linger"
    linger_s: float = 5.0
    idle_restore_s: float = 3600.0
    min_stay_s: float = 30.0
    sharing: Literal["exclusive", "coexist"] = "exclusive"
    reserve_bytes: int = 10**9
    min_free_bytes: int = 0
    depth: int = 2
    """How many jobs the engine gets at the same time"""
    on_drain_timeout: Literal["fail", "kill"] = "fail"
    drain_timeout_s: float = 120.0
    release_timeout_s: float = 60.0
    verify_timeout_s: float = 20.0
    poll_interval_s: float = 0.05
    """Between two reads of what is resident during a switch"""
    release_interval_s: float = 1.0
    """Between two unload calls for what is still resident: a late request may have loaded it again"""
    reconcile_interval_s: float = 0.02
    """How soon the reconciler sees a new ticket or switch request"""
    check_interval_s: float = 1.0
    """Between two checks for LLMs loaded outside Easel and for an engine that is down"""
    max_retry_after_s: float = 300.0
    """No `Retry-After` is longer"""
