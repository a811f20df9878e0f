"""The target of each measured value. A missed target does not fail the run: the values depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One measured value: how to read it from the results (None: not measured), its limit, and how it is printed."""

    title: str
    read: Callable[[Results], float | None]
    limit: float
    at_least: bool = False
    scale: float = 1.0
    unit: str = ""

    def line(self, results: Results) -> str | None:
        """The measured value beside its target, or None if it was not measured."""
        value = self.read(results)
        if value is None:
            return None
        is_met = value >= self.limit if self.at_least else value <= self.limit
        bound = "at least" if self.at_least else "at most"
        measured, limit = (f"{number * self.scale:.3g}{self.unit}" for number in (value, self.limit))
        verdict = "met" if is_met else "NOT MET"
        return f"  {self.title:<54} {measured:>10}   target: {bound} {limit:<8} {verdict}"


def _latency(results: Results) -> float | None:
    return float(results["latency"]["b64_json"]["added_s"]) if "latency" in results else None


def _eight_clients(results: Results) -> float | None:
    """The last entry: with the sketch engine the one with a simulated render, with a real engine its only one."""
    entries = [entry for entry in results.get("throughput", []) if entry["clients"] == 8]
    return entries[-1]["ratio"] if entries else None


def _compile(results: Results) -> float | None:
    if "compile" not in results:
        return None
    return max(float(times["median"]) for times in results["compile"]["per_model_s"].values())


def _catalogue(results: Results) -> float | None:
    return results["compile"]["catalogue"]["load_s"]["median"] if "compile" in results else None


def _start(results: Results) -> float | None:
    return results["start"]["first_answer_s"]["median"] if "start" in results else None


def _memory(results: Results) -> float | None:
    workers = results.get("memory", {}).get("workers")
    return max(worker["rss_mb"] for worker in workers) if workers else None


def _gpu(name: str) -> Callable[[Results], float | None]:
    return lambda results: results["gpu"][name]["median"] if "gpu" in results else None


def _first_step(results: Results) -> float | None:
    return float(results["streams"]["added_s"]) if "streams" in results else None


def _large(results: Results) -> float | None:
    large = results.get("streams", {}).get("large")
    return max(entry["times"] for entry in large.values()) if large else None


TARGETS = (
    Target("time added to one picture, median", _latency, 0.003, scale=1000, unit=" ms"),
    Target("throughput relative to direct, 8 clients, with render", _eight_clients, 0.9, at_least=True),
    Target("compiling one request (slowest model's median)", _compile, 0.001, scale=1000, unit=" ms"),
    Target("reading and checking a catalogue of 1,000 models", _catalogue, 2.0, unit=" s"),
    Target("from start to the first response, median", _start, 1.5, unit=" s"),
    Target("memory of a worker (largest RSS)", _memory, 90.0, unit=" MB"),
    Target("added until the first reported step, median", _first_step, 0.02, scale=1000, unit=" ms"),
    Target("peak memory of ten 2048x2048, relative to their base64", _large, 4.0, unit="x"),
    Target("an uncontended lease, median", _gpu("lease_s"), 0.001, scale=1000, unit=" ms"),
    Target("overhead of a switchover, median", _gpu("switch_s"), 0.25, scale=1000, unit=" ms"),
    Target("a status request while 50 clients poll, median", _gpu("status_s"), 0.005, scale=1000, unit=" ms"),
)
