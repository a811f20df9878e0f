"""The results as a small SVG of two rows: loads for 100 jobs, and the 95th percentile of the wait, by number of engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from bench.simulate.report import Result
from bench.simulate.simulation import Outcome

COLOURS = {"easel": "#0072b2", "fifo": "#d55e00", "round robin": "#767676"}
DASHES = {"easel": "", "fifo": "6 3", "round robin": "2 3"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 170, 130, 52, 44, 48
MIN_WAIT_S = 0.1
"""The waits have a logarithmic axis, which has no zero"""


def svg(results: Sequence[Result]) -> str:
    """A picture with a column for each trace."""
    traces = list(dict.fromkeys(result.trace for result in results))
    width = LEFT + len(traces) * (WIDTH + GAP)
    height = TOP + 2 * (HEIGHT + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        "<title>Loads and waits by number of engines: Easel, FIFO and round robin</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(),
    ]
    for column, trace in enumerate(traces):
        of_trace = [result for result in results if result.trace == trace]
        left = LEFT + column * (WIDTH + GAP)
        lines += [_text(left, TOP - 8, trace, "start", 'font-weight="bold"')]
        lines += _panel(of_trace, left, TOP, lambda outcome: outcome.loads_per_100 / 100, (0, 50, 100))
        lines += _panel(of_trace, left, TOP + HEIGHT + GAP, _wait_height, (0.1, 1, 10, 100, 1000))
    lines += [_side("loads for 100 jobs", TOP), _side("wait p95, s", TOP + HEIGHT + GAP), "</svg>"]
    return "\n".join(lines) + "\n"


def _wait_height(outcome: Outcome) -> float:
    return _log_height(outcome.wait_s(0.95))


def _log_height(wait_s: float) -> float:
    return min(4.0, math.log10(max(wait_s, MIN_WAIT_S) / MIN_WAIT_S)) / 4


def _panel(
    results: Sequence[Result],
    left: int,
    top: int,
    share: Callable[[Outcome], float],
    ticks: Sequence[float],
) -> Iterator[str]:
    counts = sorted({result.engines for result in results})
    step = WIDTH / max(1, len(counts) - 1)
    for tick in ticks:
        height = tick / 100 if ticks[0] == 0 else _log_height(tick)
        y = top + HEIGHT * (1 - height)
        yield f'<path d="M{left} {y:.0f}h{WIDTH}" stroke="#ddd"/>'
        yield _text(left - 5, y + 4, f"{tick:g}", "end")
    for index, count in enumerate(counts):
        yield _text(left + index * step, top + HEIGHT + 14, str(count), "middle")
    for placement, colour in COLOURS.items():
        own = {result.engines: result.outcome for result in results if result.placement == placement}
        points = " ".join(
            f"{left + index * step:.0f},{top + HEIGHT * (1 - share(own[count])):.1f}"
            for index, count in enumerate(counts)
        )
        dash = f' stroke-dasharray="{DASHES[placement]}"' if DASHES[placement] else ""
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'


def _legend() -> Iterator[str]:
    for index, (placement, colour) in enumerate(COLOURS.items()):
        x = LEFT + index * 110
        dash = f' stroke-dasharray="{DASHES[placement]}"' if DASHES[placement] else ""
        yield f'<path d="M{x} 12h24" stroke="{colour}" stroke-width="2"{dash}/>'
        yield _text(x + 30, 16, placement, "start")


def _side(text: str, top: int) -> str:
    middle = top + HEIGHT // 2
    return _text(12, middle, text, "middle", f'transform="rotate(-90 12 {middle})"')


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" {more}>{text}</text>'.replace(" >", ">")
