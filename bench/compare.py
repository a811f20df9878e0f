"""`python -m bench.compare COMMIT`: compares the working tree with another commit, on one engine and in turn, so that a
slower commit is visible although the machine is busy."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.checkout import Checkout, checked_out
from bench.clients import Client, GatewayRoute, Route
from bench.ending import clean_ending
from bench.equality import same_pixels
from bench.load import LoadGenerator
from bench.machine import machine
from bench.options import Options, add_engine_arguments, writable_path
from bench.processes import memory_mb
from bench.server import ROOT, Server
from bench.streams import SAMPLED_MODEL
from bench.testbed import Testbed, gateway_route, open_testbed
from bench.throughput import Meter, measured_run

SIZE, CLIENTS = 64, 8
BLOCKS, QUICK_BLOCKS, BLOCK_PICTURES = 40, 2, 12
"""Each block of pictures, one after another, gives one ratio."""
ROUNDS, START_ROUNDS, QUICK_ROUNDS = 16, 6, 1
BUDGET_S, QUICK_BUDGET_S = 1.0, 0.3
"""About how long eight clients of one commit draw in one round"""
LOAD_PICTURES = 40
"""Pictures before the memory is measured"""
MIN_ROUNDS = 6
"""With fewer ratios, no interval has a probability of 95 %."""
MIN_DIFFERENCE = 0.02
"""Smaller differences are not reported as such."""


@dataclass(frozen=True)
class Comparison:
    """One measured value of the two commits: pairs that were measured one right after the other."""

    title: str
    unit: str
    before: Sequence[float]
    after: Sequence[float]
    more_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """The working tree's value relative to the other commit's, for each pair."""
        return [after / before for before, after in zip(self.before, self.after, strict=True) if before]

    @property
    def verdict(self) -> str:
        """`better`, `WORSE`, `no difference`, or `too few rounds`."""
        if len(self.ratios) < MIN_ROUNDS:
            return "too few rounds"
        low, high = median_interval(self.ratios)
        if low <= 1 <= high or abs(statistics.median(self.ratios) - 1) < MIN_DIFFERENCE:
            return "no difference"
        return "better" if (low > 1) == self.more_is_better else "WORSE"

    def line(self) -> str:
        """Both medians, the median of the ratios, and the interval that contains the true one with 95 %."""
        if not self.ratios:
            return f"  {self.title:<36}  not available on this system"
        before, after = statistics.median(self.before), statistics.median(self.after)
        low, high = median_interval(self.ratios)
        values = f"{before:>10.2f}{after:>14.2f} {self.unit:<4}"
        return (
            f"  {self.title:<36}{values}{statistics.median(self.ratios):>8.2f}x"
            f"{f'{low:.2f}..{high:.2f}':>14}   {self.verdict}"
        )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval that contains the median of the distribution with a probability of at least 95 %, whatever the
    distribution; lowest and highest value if there are fewer than 6."""
    ordered, count = sorted(values), len(values)
    outside, skipped = 0.0, 0
    while skipped < count // 2:
        outside += 2 * math.comb(count, skipped) / 2**count
        if outside > 0.05:
            break
        skipped += 1
    skipped = max(0, skipped - 1)
    return ordered[skipped], ordered[count - 1 - skipped]


def main() -> None:
    arguments = argument_parser().parse_args()
    options = Options(
        url=arguments.url,
        quick=arguments.quick,
        checkpoint=arguments.checkpoint,
        engine_pid=arguments.engine_pid,
        sizes=[SIZE],
    )
    with clean_ending(), checked_out(arguments.commit) as checkout, open_testbed(options) as testbed:
        comparisons = compare(testbed, checkout)
        print(report(machine(testbed), checkout, comparisons))
    if arguments.json:
        entries = [asdict(comparison) | {"ratios": comparison.ratios} for comparison in comparisons]
        arguments.json.write_text(json.dumps(entries, indent=1), "utf-8")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("commit", help="the commit, branch or tag that the working tree is compared with")
    add_engine_arguments(parser)
    parser.add_argument(
        "--json", type=writable_path, metavar="PATH", help="write all raw numbers to this file"
    )
    return parser


def report(machine: dict[str, str], checkout: Checkout, comparisons: Iterable[Comparison]) -> str:
    """The comparison as text."""
    lines = ["", f"The working tree compared with {checkout.commit}"]
    lines += [f"  {name:<10} {value}" for name, value in machine.items()]
    headings = f"{checkout.commit:>10}{'working tree':>14} {'':<4}{'ratio':>9}{'95 %':>14}"
    lines += ["", f"  {'medians':<36}{headings}", *(comparison.line() for comparison in comparisons)]
    lines += [
        "",
        "  The two ran in turn; a ratio compares neighbours. 95 %: the interval for the ratio's median.",
    ]
    return "\n".join(lines)


def compare(testbed: Testbed, checkout: Checkout) -> list[Comparison]:
    """All comparisons. Raises SystemExit if the commit's gateway does not start."""
    with LoadGenerator() as load:
        with _started(testbed.another_server(checkout.root), checkout) as other:
            servers = (other, testbed.server)
            _check_pixels(testbed, servers, checkout)
            comparisons = [*_latency(testbed, servers), *_throughput(testbed, servers, load)]
        return [*comparisons, *_starts(testbed, (checkout.root, ROOT), load)]


@contextlib.contextmanager
def _started(server: Server, checkout: Checkout) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(server)
        except RuntimeError as error:
            raise SystemExit(
                f"Easel at {checkout.commit} does not run with this environment's packages and the benchmark's "
                f"catalogue of the working tree, so it cannot be compared: {error}"
            ) from error
        yield server


def _check_pixels(testbed: Testbed, servers: Sequence[Server], checkout: Checkout) -> None:
    """Raises RuntimeError if the two draw different pictures: their times cannot be compared."""
    routes = [gateway_route(server.url, testbed.engine, SIZE) for server in servers]
    if not same_pixels(routes, next(testbed.seeds)):
        raise RuntimeError(
            f"{checkout.commit} and the working tree draw different pictures for the same request and seed."
        )


def _in_turn(count: int) -> Iterator[tuple[int, int]]:
    """The order of the two commits in each round: A B, B A, A B, …"""
    return ((0, 1) if number % 2 == 0 else (1, 0) for number in range(count))


def _latency(testbed: Testbed, servers: Sequence[Server]) -> list[Comparison]:
    """One client. The first step is not compared if the engine has no checkpoint, without which there are no steps."""
    routes = [gateway_route(server.url, testbed.engine, SIZE) for server in servers]
    pictures = _blocks(testbed, routes, lambda client, seed: client.draw(seed).total_s)
    comparisons = [Comparison("one picture after another, 64 px", "ms", *pictures)]
    if testbed.engine.checkpoint:
        routes = [GatewayRoute(server.url, {"model": SAMPLED_MODEL}, SIZE) for server in servers]
        steps = _blocks(testbed, routes, lambda client, seed: client.first_step_s(seed))
        comparisons.append(Comparison("first step of a stream, 64 px", "ms", *steps))
    return comparisons


def _blocks(
    testbed: Testbed, routes: Sequence[Route], measure_s: Callable[[Client, int], float]
) -> tuple[list[float], list[float]]:
    """The median of each block, in milliseconds, for both commits. `measure_s`: draws a picture with this seed."""
    blocks = QUICK_BLOCKS if testbed.options.quick else BLOCKS
    medians: tuple[list[float], list[float]] = ([], [])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(route.open())) for route in routes]
        for client in clients * 3:
            measure_s(client, next(testbed.seeds))
        for _ in range(blocks):
            times: tuple[list[float], list[float]] = ([], [])
            for order in _in_turn(BLOCK_PICTURES):
                for side in order:
                    times[side].append(measure_s(clients[side], next(testbed.seeds)) * 1000)
            for side in (0, 1):
                medians[side].append(statistics.median(times[side]))
    return medians


def _throughput(testbed: Testbed, servers: Sequence[Server], load: LoadGenerator) -> list[Comparison]:
    quick = testbed.options.quick
    meters = [Meter(server.workers, testbed.engine) for server in servers]
    pictures = _pictures_per_round(testbed, QUICK_BUDGET_S if quick else BUDGET_S)
    rates: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for order in _in_turn(QUICK_ROUNDS if quick else ROUNDS):
        for side in order:
            route = gateway_route(servers[side].url, testbed.engine, SIZE)
            seeds = [next(testbed.seeds) for _ in range(pictures)]
            run: dict[str, Any] = measured_run(load, route, meters[side], CLIENTS, seeds)
            rates[side].append(run["pictures_per_s"])
            cpu[side].append(run["cpu_s_per_picture"]["gateway"] * 1000)
    return [
        Comparison("pictures per second, 64 px, 8 clients", "/s", *rates, more_is_better=True),
        Comparison("gateway's CPU for a picture", "ms", *cpu),
    ]


def _pictures_per_round(testbed: Testbed, budget_s: float) -> int:
    with contextlib.closing(testbed.direct(SIZE).open()) as client:
        client.draw(next(testbed.seeds))
        started_at = time.perf_counter()
        client.draw(next(testbed.seeds))
        return max(CLIENTS, round(budget_s / (time.perf_counter() - started_at)))


def _starts(testbed: Testbed, roots: Sequence[Path], load: LoadGenerator) -> list[Comparison]:
    """Time to the first response and the first picture, and the memory of the largest worker after some more pictures."""
    answers: tuple[list[float], list[float]] = ([], [])
    pictures: tuple[list[float], list[float]] = ([], [])
    memory: tuple[list[float], list[float]] = ([], [])
    for order in _in_turn(QUICK_ROUNDS if testbed.options.quick else START_ROUNDS):
        for side in order:
            with testbed.another_server(roots[side]) as server:
                answers[side].append(time.perf_counter() - server.started_at)
                route = gateway_route(server.url, testbed.engine, SIZE)
                with contextlib.closing(route.open()) as client:
                    client.draw(next(testbed.seeds))
                pictures[side].append(time.perf_counter() - server.started_at)
                load.run(route, CLIENTS, [next(testbed.seeds) for _ in range(LOAD_PICTURES)])
                memory[side].append(_largest_rss_mb(server))
    return [
        Comparison("from start to the first response", "s", *answers),
        Comparison("from start to the first picture", "s", *pictures),
        Comparison("memory of a worker (largest RSS)", "MB", *memory),
    ]


def _largest_rss_mb(server: Server) -> float:
    """0 if the system does not tell."""
    return max((usage["rss_mb"] for usage in map(memory_mb, server.workers) if usage), default=0.0)


if __name__ == "__main__":
    main()
