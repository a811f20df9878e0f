from __future__ import annotations
from dataclasses import dataclass, field
from collections.abc import Mapping, Sequence
from typing import Any
from engine import NO_CREDENTIALS, Credentials


@dataclass(frozen=True)
class EngineEntry:
    name: str
    url: str
    gpu: str
    models: tuple[str, ...] | None = None
    weight: float = 1.0
    start: Mapping[str, Any] = field(default_factory=dict)
    depth: int | None = None
    credentials: Credentials = NO_CREDENTIALS


def read_engines(
    entries: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> tuple[EngineEntry, ...]:
    return tuple(
        EngineEntry(
            e["name"],
            e["url"],
            e.get("gpu", e["name"]),
            tuple(e["models"]) if "models" in e else None,
            e.get("weight", 1.0),
        )
        for e in entries
    )
