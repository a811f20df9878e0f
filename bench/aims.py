"""What we aim for, and what came out. Nothing here passes or fails: a figure depends on the machine it was taken on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """One figure, how to find it in the results (None: not measured), and how it is written."""

    what: str
    find: Callable[[Results], float | None]
    limit: float
    at_least: bool = False
    scale: float = 1.0
    unit: str = ""

    def line(self, results: Results) -> str | None:
        """The measured figure beside the aim, or None if it was not measured."""
        found = self.find(results)
        if found is None:
            return None
        met = found >= self.limit if self.at_least else found <= self.limit
        words = "at least" if self.at_least else "at most"
        shown, limit = (f"{value * self.scale:.3g}{self.unit}" for value in (found, self.limit))
        return f"  {self.what:<54} {shown:>10}   aim: {words} {limit:<8} {'met' if met else 'NOT MET'}"


def _latency(results: Results) -> float | None:
    return float(results["latency"]["b64_json"]["added_s"]) if "latency" in results else None


def _eight_clients(results: Results) -> float | None:
    """With a simulated render; a real engine's own render takes its place."""
    entries = [entry for entry in results.get("throughput", []) if entry["clients"] == 8]
    return entries[-1]["ratio"] if entries else None


def _compile(results: Results) -> float | None:
    if "compile" not in results:
        return None
    return max(float(each["median"]) for each in results["compile"]["per_model_s"].values())


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
    return max(each["times"] for each in large.values()) if large else None


AIMS = (
    Aim("added to one picture at the median", _latency, 0.003, scale=1000, unit=" ms"),
    Aim("throughput of direct, 8 clients, rendering engine", _eight_clients, 0.9, at_least=True),
    Aim("compiling one request (slowest model's median)", _compile, 0.001, scale=1000, unit=" ms"),
    Aim("reading and proving a catalogue of 1,000 models", _catalogue, 2.0, unit=" s"),
    Aim("from start to the first answer, median", _start, 1.5, unit=" s"),
    Aim("memory of a worker (largest RSS)", _memory, 90.0, unit=" MB"),
    Aim("a step is told later than by the engine, median", _first_step, 0.02, scale=1000, unit=" ms"),
    Aim("peak memory of ten 2048x2048 by their base64", _large, 4.0, unit="x"),
    Aim("an uncontended lease, median", _gpu("lease_s"), 0.001, scale=1000, unit=" ms"),
    Aim("a switch's own time, median", _gpu("switch_s"), 0.25, scale=1000, unit=" ms"),
    Aim("a status poll while 50 watch, median", _gpu("status_s"), 0.005, scale=1000, unit=" ms"),
)
