"""Compiled graphs fitted to one engine: with the inputs of its ComfyUI version and its file names."""

from __future__ import annotations

from typing import Any

from compiler import COMFYUI, SKETCH, Catalogue, Compiled, fit, parse_object_info
from compiler.signatures import NodeSignature
from engine import Engine
from errors import FilesMissing, NodesMissing


class FittedGraphs:
    """Fits graphs to engines; caches the parsed node signatures. Thread-safe."""

    def __init__(self) -> None:
        self._parsed: dict[str, tuple[Any, NodeSignature]] = {}

    def get(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """The graphs as `engine` needs them. Raises FilesMissing or NodesMissing for what it lacks."""
        try:
            return self._fit(compiled, catalogue, engine, fresh=False)
        except (FilesMissing, NodesMissing):
            # The cache may be old: ComfyUI needs no restart to see a file that was added since.
            return self.get_uncached(compiled, catalogue, engine)

    def get_uncached(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """As `get`, with signatures that are requested from the engine now."""
        return self._fit(compiled, catalogue, engine, fresh=True)

    def get_cached(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """As `get`, with the signatures that were requested last."""
        return self._fit(compiled, catalogue, engine, fresh=False)

    def _fit(
        self, compiled: Compiled, catalogue: Catalogue, engine: Engine, *, fresh: bool
    ) -> list[dict[str, Any]]:
        classes = frozenset().union(*(graph.classes for graph in compiled.graphs))
        signatures = {
            name: self._parse(name, entry) for name, entry in engine.signatures(classes, fresh=fresh).items()
        }
        model = catalogue.models[compiled.plan.model]
        files = {**model.files, **{name: lora.file for name, lora in catalogue.loras_for(model).items()}}
        name = SKETCH if engine.is_sketch else COMFYUI
        return [fit(graph.nodes, signatures, catalogue.signatures, files, name) for graph in compiled.graphs]

    def _parse(self, name: str, entry: Any) -> NodeSignature:
        cached = self._parsed.get(name)
        if cached is None or cached[0] is not entry:
            cached = self._parsed[name] = (entry, parse_object_info({name: entry})[name])
        return cached[1]
