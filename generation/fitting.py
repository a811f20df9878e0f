"""Graphs as one engine gets them: its version's own inputs, its own files."""

from __future__ import annotations

from typing import Any

from compiler import Catalogue, Compiled, fit, parse_object_info
from compiler.signatures import NodeSignature
from engine import Engine
from errors import FilesMissing, NodesMissing


class Fitting:
    """Remembers what engines said of their nodes. Safe for threads."""

    def __init__(self) -> None:
        self._parsed: dict[str, tuple[Any, NodeSignature]] = {}

    def graphs(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """The graphs as `engine` gets them. Raises FilesMissing or NodesMissing for what it lacks."""
        try:
            return self._fit(compiled, catalogue, engine, fresh=False)
        except (FilesMissing, NodesMissing):
            # What we remember of the engine may be old: a file that was put there since needs no restart.
            return self.graphs_afresh(compiled, catalogue, engine)

    def graphs_afresh(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[dict[str, Any]]:
        """The same, with nothing remembered."""
        return self._fit(compiled, catalogue, engine, fresh=True)

    def _fit(
        self, compiled: Compiled, catalogue: Catalogue, engine: Engine, *, fresh: bool
    ) -> list[dict[str, Any]]:
        classes = frozenset().union(*(graph.classes for graph in compiled.graphs))
        live = {
            name: self._signature(name, raw) for name, raw in engine.signatures(classes, fresh=fresh).items()
        }
        model = catalogue.models[compiled.plan.model]
        files = {**model.files, **{name: lora.file for name, lora in catalogue.loras_for(model).items()}}
        return [fit(graph.nodes, live, catalogue.signatures, files) for graph in compiled.graphs]

    def _signature(self, name: str, raw: Any) -> NodeSignature:
        known = self._parsed.get(name)
        if known is None or known[0] is not raw:
            known = self._parsed[name] = (raw, parse_object_info({name: raw})[name])
        return known[1]
