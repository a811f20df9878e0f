"""How the status shows one engine, from the facts of its last probe and what its arbiter knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbiter import Snapshot
from engine import EngineProcess
from engines import EngineUnit
from status.engine_probe import Facts

_GB = 1e9


@dataclass(frozen=True)
class Measured:
    """What Easel knows of an engine besides its probes. `outage`: why this process gives it no jobs, if so: it may answer a
    probe, and fail every job. `drained_since`: Unix time. `loaded_models`, `pictures_per_hour`:
    None where there is only one engine, so that it is not measured."""

    drained_since: float | None = None
    loaded_models: Sequence[str] | None = None
    pictures_per_hour: int | None = None
    outage: Mapping[str, Any] | None = None


def engine_entry(unit: EngineUnit, facts: Facts, snapshot: Snapshot, measured: Measured) -> dict[str, Any]:
    """As JSON: an entry of `engines`."""
    stats, queue = facts["stats"] or {}, queue_counts(facts)
    return {
        "name": unit.name,
        "gpu": unit.gpu or None,
        "endpoint": stats.get("url") or unit.url or None,
        "engine": engine_state(facts),
        "reachable": facts["reachable"],
        "problem": facts["problem"] or measured.outage,
        "sketch": bool(stats.get("is_sketch")),
        "version": stats.get("version"),
        "shared": unit.arbiter.shares_gpu,
        "mode": gpu_mode(unit, facts, snapshot),
        "switching": snapshot.state.active_switch is not None or snapshot.state.wanted is not None,
        "drained": measured.drained_since is not None,
        "drained_since": measured.drained_since,
        "models": None if unit.models is None else sorted(unit.models),
        "weight": unit.weight,
        "loaded_models": None if measured.loaded_models is None else list(measured.loaded_models),
        "queue": queue,
        "waiting": sum(claim.kind == "ticket" for claim in snapshot.claims),
        "memory": memory(facts["stats"]),
        "seconds_per_job": round(snapshot.pace.seconds_each, 2) if snapshot.pace.jobs else None,
        "pictures_per_hour": measured.pictures_per_hour,
    }


def queue_counts(facts: Facts) -> dict[str, int]:
    """Of the jobs in ComfyUI"""
    return {"running": len(facts["running"]), "pending": len(facts["pending"])}


def engine_state(facts: Facts) -> str:
    """`generating`, `running`, `starting` or `stopped`."""
    if facts["reachable"]:
        return "generating" if facts["running"] else "running"
    return "starting" if facts["container"] in ("running", "starting") else "stopped"


def container_state(process: EngineProcess, facts: Facts) -> str:
    """An engine that Easel does not start, or whose start command has ended, counts as running if it responds."""
    if process.kind in ("none", "command") and facts["reachable"]:
        return "running"
    return "running" if facts["container"] == "starting" else str(facts["container"])


def gpu_mode(unit: EngineUnit, facts: Facts, snapshot: Snapshot) -> str:
    """The arbiter's mode. If the GPU is not shared: generation while an engine runs."""
    if unit.arbiter.shares_gpu:
        return snapshot.state.mode
    return "generation" if facts["reachable"] or facts["container"] == "running" else "inference"


def memory(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Gigabytes of 10^9 bytes. GTT is the RAM that an AMD GPU uses; None for other GPUs."""
    if stats is None:
        return None
    used, total = None, None
    if stats["tells_gpu_memory"]:
        # ComfyUI reports memory that its allocator has reserved but does not use as free; no other process can use it.
        used, total = _used_and_total(
            stats["vram_total"], stats["vram_free"] - (stats["torch_vram_free"] or 0)
        )
    ram_used, ram_total = _used_and_total(stats["ram_total"], stats["ram_free"])
    name = str(stats["device"] or "").lower()
    is_amd = "amd" in name or "radeon" in name or "gfx" in name
    share = None if used is None or not total else round(used / total, 3)
    return {
        "gtt_used_gb": used if is_amd else None,
        "gtt_ceil_gb": total if is_amd else None,
        "vram_used_gb": used,
        "vram_ceil_gb": total,
        "vram_used_share": share,
        "ram_used_gb": ram_used,
        "ram_ceil_gb": ram_total,
        "pressure": None if share is None else share >= 0.8,
    }


def _used_and_total(total: int | None, free: int | None) -> tuple[float | None, float | None]:
    """Both in gigabytes, from bytes."""
    if total is None or free is None:
        return None, None
    return round((total - free) / _GB, 1), round(total / _GB, 1)
