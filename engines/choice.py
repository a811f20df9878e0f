"""Which engine draws a job. Pure: what is known of each engine in, a choice out. README.md lists the rules by number.

No clock, no chance, no environment: the same facts give the same choice, in any order of the engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ReasonCode = Literal[
    "only_one", "only_fit", "warm", "warm_wait", "load", "load_sooner", "kept_free", "move", "left"
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine cannot draw a job at all: a stable code (`files_missing`, `drained`, `down`, …) and a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one engine when a job is to be placed. Seconds; bytes."""

    name: str
    refusal: Refusal | None = None
    """Why it cannot draw the job; None: it can"""
    wait_s: float = 0.0
    """Until a new job could begin there: the jobs before it, and a switchover if LLMs have that GPU"""
    is_warm: bool = False
    """Whether the model is loaded when the job begins, after the jobs that wait before it"""
    load_s: float = 0.0
    """How long loading the model takes there, measured or estimated; ignored if it is warm"""
    render_s: float = 1.0
    """How long the job takes there with the model loaded"""
    jobs: int = 0
    """How many jobs run or wait there"""
    memory_bytes: int | None = None
    """The memory of its GPU; None: unknown"""
    displaced: str = ""
    """The models that loading would push out, for people; empty: none"""
    displaced_share: float = 0.0
    """0 to 1: the share of the recent jobs, of all engines, that need those models here. A model that is loaded on k
    engines counts a k-th of its jobs."""
    only_here: int = 0
    """How many recent jobs were of models that only this engine can draw"""
    last_used: float = 0.0
    """When it last got a job, on any scale that grows"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job needs. `need_bytes`: the memory that the model takes; 0: unknown. `share`: 0 to 1, the share of the
    recent jobs, of all engines, that drew this model."""

    model: str
    need_bytes: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Prices:
    """What a load costs beyond its own time, and when a difference counts. The defaults were found by simulation
    (docs/decisions/0046)."""

    load: float = 0.5
    """Of the load's seconds, for the later jobs that wait for it"""
    copy: float = 2.0
    """That price falls by this times the model's share of the recent jobs, below 0 if the share is large: a model that most
    jobs need should be loaded on more engines"""
    displaced: float = 1.0
    """Of the load's seconds, if the model that is pushed out is certain to be needed before this one is again"""
    min_load_s: float = 0.6
    """For its price a load counts as at least so long, also where it was measured to take no time"""
    tolerance: float = 0.1
    """Engines are as good as the cheapest one if they cost more by at most this share of the job's own time there"""
    move_gain_s: float = 1.0
    """A waiting job moves only if its cost falls by at least so many seconds …"""
    move_gain: float = 0.25
    """… and by at least this share of it"""


DEFAULT_PRICES = Prices()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an engine was chosen: a stable code and a sentence."""

    code: ReasonCode
    text: str


@dataclass(frozen=True, slots=True)
class Rank:
    """One engine in a choice. `expected_s`: until the job has ended there; `cost_s`: the same with the price of a load
    for other jobs. Both are meaningless for an engine that was left out: `left_out` says why."""

    name: str
    expected_s: float
    cost_s: float
    is_warm: bool
    left_out: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that draws a job, why, and all engines, best first; those that were left out come last."""

    name: str
    reason: Reason
    ranking: tuple[Rank, ...]


def choose(wanted: Wanted, candidates: Sequence[Candidate], prices: Prices = DEFAULT_PRICES) -> Choice | None:
    """The engine that draws a job; None if all refuse it. The names of the engines are unique."""
    # 1. Only an engine that can draw the job.
    usable = [each for each in candidates if each.refusal is None]
    if not usable:
        return None
    # 2. An engine whose memory is too small only if no other has enough.
    fitting = [each for each in usable if _fits(wanted, each)] or usable
    # 3. The soonest end, with the price of a load for other jobs.
    costs = {each.name: _cost_s(wanted, each, prices) for each in fitting}
    cheapest = min(fitting, key=lambda each: (costs[each.name], each.name))
    limit_s = costs[cheapest.name] + prices.tolerance * _own_s(cheapest)
    equals = [each for each in fitting if costs[each.name] <= limit_s]
    # 4. Of those that are as good: no needless load, then no engine that other models depend on.
    # 5. Of those, the one with the fewest jobs, then the one that was used longest ago.
    chosen = min(equals, key=lambda each: (not each.is_warm, each.only_here, *_turn(each)))
    is_kept_free = chosen != min(equals, key=lambda each: (not each.is_warm, *_turn(each)))
    reason = _reason(wanted, chosen, candidates, usable, fitting, is_kept_free)
    return Choice(chosen.name, reason, _ranking(wanted, chosen, candidates, fitting, costs, prices))


def should_move(
    wanted: Wanted, current: Candidate, candidates: Sequence[Candidate], prices: Prices = DEFAULT_PRICES
) -> Choice | None:
    """Where a job that waits at `current` should go instead, or None to stay. `current.wait_s` is what this job still
    waits there. Ask for one job at a time, with facts that contain the moves before it: an engine that is free for one
    job is not free for ten."""
    choice = choose(wanted, [each for each in candidates if each.name != current.name], prices)
    if choice is None:
        return None
    # 6. It leaves an engine that cannot draw it any more, and others only for a gain that is large enough.
    if current.refusal is not None:
        text = f"{current.name}, where it waited, cannot draw it any more: {current.refusal.text}"
        return Choice(choice.name, Reason("left", text), choice.ranking)
    better = next(each for each in candidates if each.name == choice.name)
    if _fits(wanted, current) != _fits(wanted, better):
        if not _fits(wanted, better):
            return None
        text = f"{current.name} has less memory than the {_gb(wanted.need_bytes)} that it needs."
        return Choice(choice.name, Reason("left", text), choice.ranking)
    cost_s = _cost_s(wanted, current, prices)
    gain_s = cost_s - _cost_s(wanted, better, prices)
    if gain_s < max(prices.move_gain_s, prices.move_gain * cost_s):
        return None
    text = f"It gains {gain_s:.1f} s there compared with {current.name}, the price of loads included."
    return Choice(choice.name, Reason("move", text), choice.ranking)


def explain(choice: Choice) -> list[str]:
    """The choice in lines for people: the engine and why, then each engine in order."""
    width = max(len(rank.name) for rank in choice.ranking)
    lines = [f"{choice.name}: {choice.reason.text}"]
    for place, rank in enumerate(choice.ranking, 1):
        lines.append(f"{place:>4}. {rank.name:<{width}}  {_rank_text(rank)}")
    return lines


def _rank_text(rank: Rank) -> str:
    if rank.left_out is not None:
        return f"left out ({rank.left_out.code}): {rank.left_out.text}"
    text = f"ends in {rank.expected_s:.1f} s"
    if rank.is_warm:
        return f"{text}, model loaded"
    return f"{text} with loading; counts as {rank.cost_s:.1f} s, because loading delays other jobs"


def _fits(wanted: Wanted, candidate: Candidate) -> bool:
    """An unknown memory counts as large enough: refusing it would leave out every engine that does not tell."""
    return candidate.memory_bytes is None or candidate.memory_bytes >= wanted.need_bytes


def _own_s(candidate: Candidate) -> float:
    return candidate.render_s + (0.0 if candidate.is_warm else candidate.load_s)


def _cost_s(wanted: Wanted, candidate: Candidate, prices: Prices) -> float:
    """Seconds until the job ends there, and the price of its load for later jobs. The engine does not draw meanwhile, but
    later jobs of this model find one more engine that has it loaded. The model that is pushed out must be loaded again,
    if it is needed before this one is: as likely as its share of the jobs of both."""
    end_s = candidate.wait_s + _own_s(candidate)
    if candidate.is_warm:
        return end_s
    priced_s = max(candidate.load_s, prices.min_load_s)
    later = prices.load * (1 - prices.copy * wanted.share)
    later_s = later * (priced_s if later > 0 else candidate.load_s)
    needed = candidate.displaced_share
    likely = needed / (needed + wanted.share) if needed else 0.0
    return end_s + later_s + prices.displaced * likely * priced_s


def _turn(candidate: Candidate) -> tuple[int, float, str]:
    return candidate.jobs, candidate.last_used, candidate.name


def _reason(
    wanted: Wanted,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    usable: Sequence[Candidate],
    fitting: Sequence[Candidate],
    is_kept_free: bool,
) -> Reason:
    if len(usable) == 1:
        only = "It is the only engine." if len(candidates) == 1 else "No other engine can draw it now."
        return Reason("only_one", only)
    if len(fitting) == 1:
        return Reason(
            "only_fit", f"No other engine has the {_gb(wanted.need_bytes)} of memory that it needs."
        )
    if is_kept_free:
        return Reason("kept_free", "Others are as good, but some models can be drawn only there.")
    warm = [each for each in fitting if each.is_warm]
    if chosen.is_warm:
        end_s = chosen.wait_s + chosen.render_s
        if any(each.wait_s + _own_s(each) < end_s for each in fitting if not each.is_warm):
            text = f"{wanted.model} is loaded there; waiting {chosen.wait_s:.1f} s costs less than loading it elsewhere."
            return Reason("warm_wait", text)
        return Reason("warm", f"{wanted.model} is loaded there, and it can begin in {chosen.wait_s:.1f} s.")
    pushed_out = f", which pushes out {chosen.displaced}" if chosen.displaced else ""
    if warm:
        wait_s = min(each.wait_s for each in warm)
        text = f"Where {wanted.model} is loaded it would wait {wait_s:.1f} s; loading it here{pushed_out}, costs less."
        return Reason("load_sooner", text)
    return Reason("load", f"No engine has {wanted.model} loaded; loading it there{pushed_out} costs least.")


def _ranking(
    wanted: Wanted,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    fitting: Sequence[Candidate],
    costs: dict[str, float],
    prices: Prices,
) -> tuple[Rank, ...]:
    ranked = sorted(fitting, key=lambda each: (each is not chosen, costs[each.name], *_turn(each)))
    ranks = [Rank(each.name, each.wait_s + _own_s(each), costs[each.name], each.is_warm) for each in ranked]
    return (*ranks, *_left_out(wanted, candidates, costs, prices))


def _left_out(
    wanted: Wanted, candidates: Sequence[Candidate], costs: dict[str, float], prices: Prices
) -> Iterator[Rank]:
    for each in sorted((each for each in candidates if each.name not in costs), key=lambda each: each.name):
        why = each.refusal or Refusal(
            "memory", f"It has less than the {_gb(wanted.need_bytes)} that it needs."
        )
        cost_s = _cost_s(wanted, each, prices)
        yield Rank(each.name, each.wait_s + _own_s(each), cost_s, each.is_warm, why)


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
