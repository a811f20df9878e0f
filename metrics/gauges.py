"""The gauges that are read when Prometheus asks: pure functions of what the status of the server says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metrics.families import (
    BUILD,
    CLUSTER_WAITING,
    DOWNLOAD_RATE,
    DOWNLOAD_RECEIVED,
    DOWNLOAD_SIZE,
    DOWNLOADS,
    ENGINE_INFO,
    ENGINE_QUEUE,
    ENGINE_READY,
    ENGINE_UP,
    ENGINES_DRAINED,
    ENGINES_JOBS,
    ENGINES_UP,
    ENGINES_VRAM_FREE,
    ENGINES_VRAM_TOTAL,
    ENGINES_WAITING,
    GPUS_MODE,
    GPUS_PINNED,
    GPUS_SWITCHING,
    IMAGES,
    IMAGES_SIZE,
    JOBS,
    LLM_LOADED,
    MODE,
    MODELS,
    PINNED,
    RAM_FREE,
    RAM_TOTAL,
    STACK_LOADED,
    STACK_UP,
    STARTED,
    SWITCHING,
    VRAM_FREE,
    VRAM_TOTAL,
    WAITING,
    WRITABLE,
    Family,
)
from metrics.recorder import label_value

_MODES = ("generation", "inference")
_MAX_LLMS = 50
"""Loaded models of one LLM server that are listed; an upstream service could list thousands"""
_ACTIVE_PULLS = ("running", "waiting")


@dataclass(frozen=True)
class Gauge:
    family: Family
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerState:
    """What the gauges are made of. `status`: of the shape of `schemas/comfyui_status.schema.json`. `engine`: what the first
    engine says about itself, as it was probed last, or None. `pulls`: as the API lists them. `images`: count and bytes of
    the image store, None if they are not known. `engines`: as `engine`, of each engine of this host by its name. Memory is
    in bytes."""

    status: Mapping[str, Any]
    engine: Mapping[str, Any] | None
    pulls: Sequence[Mapping[str, Any]]
    images: tuple[int, int] | None
    engines: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Build:
    """`started_at`: Unix time at which the server started."""

    version: str
    python: str
    started_at: float


def gauges(state: ServerState, build: Build, *, is_writable: bool) -> Iterator[Gauge]:
    """All of them; those whose value is not known are left out."""
    yield Gauge(BUILD, 1, (build.version, build.python))
    yield Gauge(STARTED, build.started_at)
    yield Gauge(WRITABLE, is_writable)
    yield from _engine(state.status, state.engine)
    yield from _engines(state.status)
    yield from _gpus(state.status)
    yield from _memory_of_gpus(state)
    yield from _queue(state.status)
    for stack in state.status["stacks"]:
        yield from _stack(stack)
    ready = sum(bool(model["ready"]) for model in state.status["models"])
    yield Gauge(MODELS, ready, ("ready",))
    yield Gauge(MODELS, len(state.status["models"]) - ready, ("missing",))
    yield from _pulls(state.pulls)
    if state.images is not None:
        yield Gauge(IMAGES, state.images[0])
        yield Gauge(IMAGES_SIZE, state.images[1])


def _engine(status: Mapping[str, Any], engine: Mapping[str, Any] | None) -> Iterator[Gauge]:
    yield Gauge(ENGINE_UP, status["reachable"])
    yield Gauge(ENGINE_READY, status["reachable"] and status["problem"] is None)
    for name in ("running", "pending"):
        yield Gauge(ENGINE_QUEUE, status["queue"][name], (name,))
    if engine is None or not status["reachable"]:
        return
    kind = "sketch" if engine["is_sketch"] else "comfyui"
    yield Gauge(ENGINE_INFO, 1, (label_value(str(engine["version"])), kind))
    memory = {RAM_TOTAL: engine["ram_total"], RAM_FREE: engine["ram_free"]}
    if engine["tells_gpu_memory"]:
        memory |= {VRAM_TOTAL: engine["vram_total"], VRAM_FREE: _free_vram(engine)}
    for family, value in memory.items():
        if value is not None:
            yield Gauge(family, value)


def _engines(status: Mapping[str, Any]) -> Iterator[Gauge]:
    """Of each engine, also if there is only one."""
    first = status["engines"][0]["name"]
    running = Counter(job.get("engine", first) for job in status["jobs"])
    for engine in status["engines"]:
        labels = (label_value(engine["name"]),)
        yield Gauge(ENGINES_UP, engine["reachable"], labels)
        yield Gauge(ENGINES_DRAINED, engine["drained"], labels)
        # Of hosts only themselves know which jobs they have.
        queue = engine["queue"] if "cluster" in status else None
        yield Gauge(ENGINES_JOBS, queue["running"] if queue else running[engine["name"]], labels)
        yield Gauge(ENGINES_WAITING, queue["pending"] if queue else engine["waiting"], labels)
    for model, count in status.get("cluster", {}).get("waiting", {}).items():
        yield Gauge(CLUSTER_WAITING, count, (label_value(model),))


def _free_vram(engine: Mapping[str, Any]) -> int:
    """ComfyUI adds what its allocator has reserved and does not use, which no other program can have."""
    return int(engine["vram_free"] - (engine["torch_vram_free"] or 0))


def _memory_of_gpus(state: ServerState) -> Iterator[Gauge]:
    """Of the GPU of each engine of this host that answers, also if there is only one."""
    for name, engine in state.engines.items():
        if engine is not None and engine["tells_gpu_memory"]:
            labels = (label_value(name),)
            yield Gauge(ENGINES_VRAM_TOTAL, engine["vram_total"], labels)
            yield Gauge(ENGINES_VRAM_FREE, _free_vram(engine), labels)


def _gpus(status: Mapping[str, Any]) -> Iterator[Gauge]:
    """Of each GPU that the setting `engines` names and that LLM servers share."""
    for gpu in status["gpus"]:
        if (arbiter := gpu["arbiter"]) is None:
            continue
        name = label_value(gpu["name"])
        for mode in _MODES:
            yield Gauge(GPUS_MODE, arbiter["mode"] == mode, (name, mode))
        yield Gauge(GPUS_PINNED, arbiter["pinned"], (name,))
        yield Gauge(GPUS_SWITCHING, gpu["switchover"]["active"], (name,))


def _queue(status: Mapping[str, Any]) -> Iterator[Gauge]:
    for mode in _MODES:
        yield Gauge(WAITING, sum(ticket["mode"] == mode for ticket in status["tickets"]), (mode,))
        yield Gauge(MODE, status["mode"] == mode, (mode,))
    yield Gauge(JOBS, len(status["jobs"]))
    arbiter = status["arbiter"]
    yield Gauge(PINNED, bool(arbiter and arbiter["pinned"]))
    yield Gauge(SWITCHING, status["switchover"]["active"])


def _stack(stack: Mapping[str, Any]) -> Iterator[Gauge]:
    name = label_value(stack["name"])
    yield Gauge(STACK_UP, stack["reachable"], (name,))
    loaded = stack["loaded"]
    if loaded is None:
        return
    yield Gauge(STACK_LOADED, len(loaded), (name,))
    for model in dict.fromkeys(map(label_value, loaded[:_MAX_LLMS])):
        yield Gauge(LLM_LOADED, 1, (name, model))


def _pulls(pulls: Sequence[Mapping[str, Any]]) -> Iterator[Gauge]:
    active = [pull for pull in pulls if pull["state"] in _ACTIVE_PULLS]
    yield Gauge(DOWNLOADS, len(active))
    yield Gauge(DOWNLOAD_RECEIVED, sum(pull["received"] for pull in active))
    yield Gauge(DOWNLOAD_SIZE, sum(pull["size"] or 0 for pull in active))
    yield Gauge(DOWNLOAD_RATE, sum(pull["bytes_per_s"] for pull in active))
