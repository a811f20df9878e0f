"""The compose files in the combinations that the documentation names, put together as Docker Compose does."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.conftest import ROOT

COMBINATIONS = {
    "easel": ("compose.yaml",),
    "nvidia": ("compose.yaml", "compose.nvidia.yaml"),
    "amd": ("compose.yaml", "compose.amd.yaml"),
    "strix-halo": ("compose.yaml", "compose.strix-halo.yaml"),
    "strix-halo-ollama": ("compose.yaml", "compose.strix-halo.yaml", "compose.ollama-amd.yaml"),
    "nvidia-ollama": ("compose.yaml", "compose.nvidia.yaml", "compose.ollama.yaml"),
    "nvidia-llama-server": ("compose.yaml", "compose.nvidia.yaml", "compose.llama-server.yaml"),
    "amd-ollama": ("compose.yaml", "compose.amd.yaml", "compose.ollama-amd.yaml"),
}


def merged(files: tuple[str, ...]) -> dict[str, Any]:
    """One document: later files add to lists and replace single values. Variables have their defaults."""
    document: dict[str, Any] = {}
    for name in files:
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (ROOT / name).read_text())
        document = _merge(document, yaml.safe_load(text))
    return document


def _merge(first: Any, second: Any) -> Any:
    if isinstance(first, dict) and isinstance(second, dict):
        shared = {key: _merge(first[key], second[key]) for key in first.keys() & second.keys()}
        return {**first, **second, **shared}
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *second]
    return second
