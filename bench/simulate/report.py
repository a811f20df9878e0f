"""The results as a table of Markdown, and the rows in which Easel does worse than another way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.simulate.simulation import Outcome


@dataclass(frozen=True, slots=True)
class Result:
    """What one way of placing did with one trace on so many engines."""

    trace: str
    engines: int
    placement: str
    outcome: Outcome


HEAD = "| trace | engines | placement | wait p50, s | p95, s | longest, s | loads for 100 jobs | drawing |"
MEASURES: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
    ("wait p50", lambda outcome: outcome.wait_s(0.5)),
    ("wait p95", lambda outcome: outcome.wait_s(0.95)),
    ("longest wait", lambda outcome: max(outcome.waits_s)),
    ("loads", lambda outcome: outcome.loads_per_100),
)


def table(results: Iterable[Result]) -> Iterator[str]:
    """One line for each result."""
    yield HEAD
    yield "|" + "---|" * HEAD.count(" |")
    for result in results:
        outcome = result.outcome
        numbers = [f"{measure(outcome):.1f}" for _, measure in MEASURES]
        cells = [result.trace, str(result.engines), result.placement, *numbers, f"{outcome.utilisation:.0%}"]
        yield f"| {' | '.join(cells)} |"


def worse(results: Sequence[Result]) -> list[str]:
    """Where Easel's number is higher than that of the better other way, by more than a tenth and 0.1, as lines of a
    table."""
    lines = []
    for ours in (result for result in results if result.placement == "easel"):
        others = [
            other
            for other in results
            if (other.trace, other.engines) == (ours.trace, ours.engines) and other is not ours
        ]
        for name, measure in MEASURES:
            best = min(others, key=lambda other: measure(other.outcome))
            mine, theirs = measure(ours.outcome), measure(best.outcome)
            if mine > theirs * 1.1 and mine - theirs >= 0.1:
                cells = [ours.trace, str(ours.engines), name, f"{mine:.1f}", f"{best.placement} {theirs:.1f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines
