"""What the arbiter remembers and decides with: plain frozen values. Times are Unix seconds, memory is bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from gpu_tenant import Failure, Resident

Mode = Literal["inference", "generation"]
"""`inference`: the LLM stacks have the GPU. `generation`: the engine has it."""
Phase = Literal["closing", "draining", "releasing", "verifying", "starting", "restoring"]
MODES: tuple[Mode, ...] = ("inference", "generation")
STATE_LOST = "the state was lost"
"""The reason of the switch that mends a state that could not be read"""


def other(mode: Mode) -> Mode:
    """The mode that `mode` is not."""
    return "generation" if mode == "inference" else "inference"


@dataclass(frozen=True)
class SwitchRequest:
    """A switchover that somebody asked for by name, not yet taken up."""

    mode: Mode
    force: bool = False
    pin: bool = False
    reason: str = "asked"


@dataclass(frozen=True)
class Switch:
    """One passing-on of the GPU, under way while `ended` is None.

    `number` grows by one each time. `phases` are those that are over, with their seconds. `failed`: what could not be
    loaded again. `saved` lies in the state, for it outlives the switch.
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
    """Whether anything was resident when it began"""
    free_before: int | None = None
    """Bytes of GPU memory that were free then, where that can be told"""
    error: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    ended: float | None = None

    def entering(self, phase: Phase, now: float) -> Self:
        """This switch with its present phase over and `phase` begun."""
        return replace(self, phases=self._phases_until(now), phase=phase, phase_since=now)

    def ending(self, now: float) -> Self:
        return replace(self, phases=self._phases_until(now), ended=now)

    def _phases_until(self, now: float) -> tuple[tuple[str, float], ...]:
        return (*self.phases, (self.phase, round(max(0.0, now - self.phase_since), 4)))


@dataclass(frozen=True)
class State:
    """What every process agrees on. `since`: when `mode` was reached, 0 for longer than anybody knows.

    `revoked` voids every lease and ticket of a mode up to that number. `saved` is what the LLM stacks had loaded when
    the GPU was last taken from them. `took_s`: how long the last good switch to each mode took.
    """

    mode: Mode = "inference"
    since: float = 0.0
    pinned: bool = False
    wanted: SwitchRequest | None = None
    switch: Switch | None = None
    saved: tuple[Resident, ...] = ()
    revoked: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    took_s: Mapping[str, float] = field(default_factory=dict)
    rebuilt: str | None = None
    """Why the state was made anew, if it was: the file before it could not be used."""

    @property
    def under_way(self) -> Switch | None:
        """The switch that is not over yet."""
        return self.switch if self.switch is not None and self.switch.ended is None else None

    def as_json(self) -> dict[str, Any]:
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError for what the schema would have refused."""
        values = {name: value for name, value in document.items() if name != "version"}
        wanted, switch = values.get("wanted"), values.get("switch")
        values["wanted"] = SwitchRequest(**wanted) if wanted else None
        values["switch"] = _switch(switch) if switch else None
        values["saved"] = tuple(Resident(**item) for item in values.get("saved", ()))
        return cls(**values)


def _switch(values: Mapping[str, Any]) -> Switch:
    given = dict(values)
    given["phases"] = tuple((name, seconds) for name, seconds in given["phases"])
    given["failed"] = tuple(Failure(**item) for item in given["failed"])
    given["notes"] = tuple(given["notes"])
    return Switch(**given)


@dataclass(frozen=True)
class Pace:
    """How the engine has been going of late, over all processes: `last` is when it was last used, `jobs` how many of
    its jobs were timed."""

    last: float = 0.0
    seconds_each: float = 10.0
    jobs: int = 0

    def used(self, now: float, seconds: float | None) -> Pace:
        """This pace after one more use; `seconds` that the job took, if it came to its end."""
        if seconds is None:
            return replace(self, last=now)
        weight = max(0.2, 1 / (self.jobs + 1))
        return Pace(now, self.seconds_each + weight * (seconds - self.seconds_each), self.jobs + 1)


@dataclass(frozen=True)
class Policy:
    """The owner's settings. Seconds; bytes."""

    llm_during_generation: Literal["switch", "wait", "refuse"] = "switch"
    restore: Literal["idle", "when_done", "never"] = "idle"
    idle_restore_s: float = 3600.0
    min_stay_s: float = 30.0
    sharing: Literal["exclusive", "coexist"] = "exclusive"
    reserve_bytes: int = 10**9
    min_free_bytes: int = 0
    depth: int = 2
    on_drain_timeout: Literal["fail", "kill"] = "fail"
    drain_s: float = 120.0
    release_s: float = 60.0
    verify_s: float = 20.0
    look_s: float = 0.05
    """Between two looks at what is resident; an empty list counts when it was seen twice."""
    again_s: float = 1.0
    """Between two requests to let go of what is still there: a late request may have loaded it again"""
    tick_s: float = 0.02
    """How soon the reconciler sees a new wish"""
    housekeeping_s: float = 1.0
    """Between looks for intruders, an engine that died, and time to restore"""
