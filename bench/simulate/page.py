"""docs/scaling.md: its part on the simulation is made from the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.simulate.costs import Costs
from bench.simulate.plot import svg
from bench.simulate.report import Result, table, worse

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOT = DOCS / "scaling.md", DOCS / "scaling.svg"
BEGIN, END = "<!-- written by python -m bench.simulate --write -->\n", "<!-- end -->\n"
USUAL = "as in the first table and the plot"
ENGINES = 8
"""The tables of the page are for so many engines; the plot has the others"""


@dataclass(frozen=True, slots=True)
class Condition:
    """Other costs, or another demand, than those of the first table."""

    title: str
    demand: float = 0.2
    costs: Costs = field(default_factory=Costs)


CONDITIONS = (
    Condition("few jobs: demand 0.05", 0.05),
    Condition("many jobs: demand 0.7", 0.7),
    Condition("one model in memory at a time (21 GB)", costs=Costs(memory_bytes=21 * 10**9)),
    Condition("80 GB, demand 0.6", 0.6, Costs(memory_bytes=80 * 10**9)),
    Condition("loads ten times as fast, demand 0.5", 0.5, Costs(read_bytes_per_s=2e10)),
    Condition("renders of 0.2 s", costs=Costs(render_s=0.2)),
    Condition("renders of 0.2 s, loads take no time, demand 0.6", 0.6, Costs(0.24, 0.2, 1e15)),
    Condition("LLMs share every GPU", costs=Costs(is_shared=True)),
)


def write(results: Sequence[Result], others: Mapping[str, Sequence[Result]]) -> None:
    """Replace the part of the page between the marks, and the plot. `others`: the results of each condition."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text(results, others)}\n{END}{after}", "utf-8")
    PLOT.write_text(svg(results), "utf-8")


def text(results: Sequence[Result], others: Mapping[str, Sequence[Result]]) -> str:
    """The part of the page."""
    traces = list(dict.fromkeys(result.trace for result in results))
    lines = [
        *table(result for result in results if result.engines == ENGINES),
        "",
        f"Under other conditions, {ENGINES} engines: the loads as a share of round robin's, and the 95th percentile of the",
        "wait as a share of the better one of the two other ways (less than 1 is better; - where nobody waits).",
        "",
        f"| condition | {' | '.join(traces)} |",
        "|" + "---|" * (len(traces) + 1),
        *(f"| {title} | {' | '.join(_cells(of, traces))} |" for title, of in others.items()),
        "",
        "Where Easel's number is higher than that of the better other way, by more than a tenth and 0.1 s or load:",
        "",
        "| condition | trace | engines | number | Easel | other |",
        "|---|---|---|---|---|---|",
    ]
    for title, of in {USUAL: results, **others}.items():
        lines += [f"| {title} {line}" for line in worse(of) or ["| nowhere | | | | |"]]
    return "\n".join([*lines, ""])


def _cells(results: Sequence[Result], traces: Sequence[str]) -> Iterator[str]:
    for trace in traces:
        of = {result.placement: result.outcome for result in results if result.trace == trace}
        loads = of["easel"].loads / of["round robin"].loads
        wait_s = min(of["fifo"].wait_s(0.95), of["round robin"].wait_s(0.95))
        waits = f"{of['easel'].wait_s(0.95) / wait_s:.2f}" if wait_s >= 0.05 else "-"
        yield f"{loads:.2f}, {waits}"
