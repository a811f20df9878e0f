"""The target of each measured value. A missed target does not fail the run: the values depend on the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.conversation import GATEWAY, LEASE

Results = Mapping[str, Any]
Reader = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """One measured value: how to read it from the results (None: not measured), its limit, and how it is printed."""

    title: str
    read: Reader
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
        return f"  {self.title:<58} {measured:>10}   target: {bound} {limit:<8} {verdict}"


def _time(size: int, *, on_sketch: bool) -> Reader:
    """The time of one picture through the gateway, as a multiple of the direct client's."""

    def read(results: Results) -> float | None:
        entry = results.get("latency", {}).get(str(size))
        is_measured = entry and results["is_sketch"] == on_sketch
        return float(entry["routes"]["gateway"]["ratio"]) if is_measured else None

    return read


def _throughput(size: int, *, on_sketch: bool, with_render: bool = False) -> Reader:
    """The pictures per second of eight clients of the gateway, as a multiple of direct clients'."""

    def read(results: Results) -> float | None:
        entry = _entry(results, size, 8, with_render=with_render)
        is_measured = entry and results["is_sketch"] == on_sketch
        return float(entry["routes"]["gateway"]["ratio"]) if entry and is_measured else None

    return read


def _gateway_cpu(clients: int) -> Reader:
    def read(results: Results) -> float | None:
        entry = _entry(results, 64, clients, with_render=False)
        return float(entry["routes"]["gateway"]["cpu_s_per_picture"]["gateway"]) if entry else None

    return read


def _entry(results: Results, size: int, clients: int, *, with_render: bool) -> Mapping[str, Any] | None:
    for entry in results.get("throughput", []):
        key = (entry["size"], entry["clients"], (entry["render_ms"] or 0) > 0)
        if key == (size, clients, with_render) and "routes" in entry:
            return dict(entry)
    return None


def _compile(results: Results) -> float | None:
    if "compile" not in results:
        return None
    return max(float(times["median"]) for times in results["compile"]["per_model_s"].values())


def _catalogue(results: Results) -> float | None:
    """None if fewer than 1,000 models were read, as in a quick run."""
    catalogue = results.get("compile", {}).get("catalogue", {})
    return catalogue["load_s"]["median"] if catalogue.get("models", 0) >= 1000 else None


def _start(results: Results) -> float | None:
    return results["start"]["first_answer_s"]["median"] if "start" in results else None


def _memory(results: Results) -> float | None:
    workers = results.get("memory", {}).get("workers")
    return max(worker["rss_mb"] for worker in workers) if workers else None


def _gpu(name: str) -> Reader:
    return lambda results: results["gpu"][name]["median"] if "gpu" in results else None


def _first_step(results: Results) -> float | None:
    return results.get("streams", {}).get("ratio")


def _large(results: Results) -> float | None:
    large = results.get("streams", {}).get("large")
    return max(entry["times"] for entry in large.values()) if large else None


def _keys(name: str) -> Reader:
    return lambda results: results["keys"][name]["median"] if "keys" in results else None


_FREE_CPU = 0.8
"""Above it the machine's CPU limits the engines"""


def _engines(results: Results) -> float | None:
    """The smallest share, among numbers of engines for which the CPU suffices."""
    shares = [entry["share"] for entry in results.get("engines", ()) if entry["busy"] < _FREE_CPU]
    return min(shares) if shares else None


def _conversation(measurement: str, value: str, worst: Callable[..., float] = max) -> Reader:
    """The worse value of the two routes through the gateway."""

    def read(results: Results) -> float | None:
        routes = results.get("conversation", {}).get(measurement, {})
        values = [float(routes[name][value]) for name in (GATEWAY, LEASE) if value in routes.get(name, {})]
        return worst(values) if values else None

    return read


TARGETS = (
    Target("time, 64 px, relative to direct", _time(64, on_sketch=True), 1.2, unit="x"),
    Target("time, 512 px, relative to direct", _time(512, on_sketch=False), 1.0, unit="x"),
    Target("time, 1024 px, relative to direct", _time(1024, on_sketch=False), 0.95, unit="x"),
    Target(
        "pictures/s, 1024 px, 8 clients, relative to direct",
        _throughput(1024, on_sketch=False),
        1.3,
        at_least=True,
        unit="x",
    ),
    Target(
        "pictures/s, 64 px, 8 clients, instant, relative to direct",
        _throughput(64, on_sketch=True),
        1.0,
        at_least=True,
        unit="x",
    ),
    Target(
        "pictures/s, 64 px, 8 clients, with render, same",
        _throughput(64, on_sketch=True, with_render=True),
        0.9,
        at_least=True,
        unit="x",
    ),
    Target("gateway's CPU for a picture, 64 px, 1 client", _gateway_cpu(1), 0.0035, scale=1000, unit=" ms"),
    Target("gateway's CPU for a picture, 64 px, 8 clients", _gateway_cpu(8), 0.0035, scale=1000, unit=" ms"),
    Target("first step of a stream, relative to direct", _first_step, 1.25, unit="x"),
    Target("compiling one request (slowest model's median)", _compile, 0.001, scale=1000, unit=" ms"),
    Target("reading and checking a catalogue of 1,000 models", _catalogue, 2.0, unit=" s"),
    Target("from start to the first response, median", _start, 1.5, unit=" s"),
    Target("memory of a worker (largest RSS)", _memory, 50.0, unit=" MB"),
    Target("peak memory of ten 2048x2048, relative to their base64", _large, 4.0, unit="x"),
    Target("an uncontended lease, median", _gpu("lease_s"), 0.001, scale=1000, unit=" ms"),
    Target("overhead of a switchover, median", _gpu("switch_s"), 0.25, scale=1000, unit=" ms"),
    Target(
        "first token of a stream, later than direct",
        _conversation("one", "added_s"),
        0.002,
        scale=1000,
        unit=" ms",
    ),
    Target("the same with 32 streams", _conversation("many", "added_s"), 0.002, scale=1000, unit=" ms"),
    Target(
        "32 streams at 50 tokens/s, relative to direct",
        _conversation("load", "ratio", min),
        0.98,
        at_least=True,
        unit="x",
    ),
    Target(
        "/health beside 128 streams and 32 pictures, p95",
        _conversation("busy", "p95"),
        0.1,
        scale=1000,
        unit=" ms",
    ),
    Target("memory for a stream of 100,000 tokens", _conversation("long", "anonymous_mb"), 4.0, unit=" MB"),
    Target("memory for an upload of 100 MB", _conversation("upload", "anonymous_mb"), 4.0, unit=" MB"),
    Target("counting a request and its picture for a key", _keys("one_s"), 0.0002, scale=1000, unit=" ms"),
    Target("the same among 1,000 keys", _keys("many_s"), 0.0002, scale=1000, unit=" ms"),
    Target("N engines, relative to N times one, while CPU is free", _engines, 0.95, at_least=True, unit="x"),
    Target("a status request while 50 clients poll, median", _gpu("status_s"), 0.005, scale=1000, unit=" ms"),
)
