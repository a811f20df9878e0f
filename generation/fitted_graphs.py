"""Compiled graphs fitted to one engine: with the inputs of its ComfyUI version and its file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler import (
    COMFYUI,
    SKETCH,
    SOCKET_OUTPUT,
    Catalogue,
    Compiled,
    Plan,
    Stage,
    fit,
    over_socket,
    parse_object_info,
)
from compiler.signatures import NodeSignature
from compiler.versions import derived_needs, is_older, marks_of, newest_first, too_old_for
from engine import Engine
from errors import EaselError, EngineTooOld, FilesMissing, NodesMissing, shorten


@dataclass(frozen=True)
class FittedGraph:
    """A graph as one engine needs it. `nodes` saves its pictures as the template says; `socket_nodes` is the same graph
    with its pictures sent over the WebSocket, or None if the engine or the template does not allow that."""

    nodes: dict[str, Any]
    socket_nodes: dict[str, Any] | None


class FittedGraphs:
    """Fits graphs to engines; caches the parsed node signatures. Thread-safe."""

    def __init__(self) -> None:
        self._parsed: dict[str, tuple[Any, NodeSignature]] = {}

    def get(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[FittedGraph]:
        """The graphs as `engine` needs them. Raises FilesMissing, NodesMissing or EngineTooOld for what it lacks."""
        try:
            return self._fit(compiled, catalogue, engine, fresh=False)
        except (FilesMissing, NodesMissing, EngineTooOld):
            # The cache may be old: ComfyUI needs no restart to see a file that was added since.
            return self.get_uncached(compiled, catalogue, engine)

    def get_uncached(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[FittedGraph]:
        """As `get`, with signatures that are requested from the engine now."""
        return self._fit(compiled, catalogue, engine, fresh=True)

    def get_cached(self, compiled: Compiled, catalogue: Catalogue, engine: Engine) -> list[FittedGraph]:
        """As `get`, with the signatures that were requested last."""
        return self._fit(compiled, catalogue, engine, fresh=False)

    def _fit(
        self, compiled: Compiled, catalogue: Catalogue, engine: Engine, *, fresh: bool
    ) -> list[FittedGraph]:
        check_version(compiled.plan, catalogue, engine, fresh=fresh)
        classes = frozenset().union(*(graph.classes for graph in compiled.graphs))
        signatures = {
            name: self._parse(name, entry)
            for name, entry in engine.signatures(classes | {SOCKET_OUTPUT}, fresh=fresh).items()
        }
        model = catalogue.models[compiled.plan.model]
        stages = [catalogue.stages[name] for name in compiled.plan.stages]
        # A model and a stage may use one role for different files.
        staged = {f"{stage.id}.{role}": file for stage in stages for role, file in stage.files.items()}
        files = {
            **staged,
            **model.files,
            **{name: lora.file for name, lora in catalogue.loras_for(model).items()},
        }
        name = SKETCH if engine.is_sketch else COMFYUI
        fitted = []
        for graph in compiled.graphs:
            try:
                nodes = fit(graph.nodes, signatures, catalogue.signatures, files, name)
            except NodesMissing as error:
                raise _with_version(error, compiled.plan, graph.nodes, catalogue, engine) from error
            fitted.append(FittedGraph(nodes, over_socket(nodes, graph.output, signatures)))
        return fitted

    def check_stage(
        self, stage: Stage, nodes: Mapping[str, Any], catalogue: Catalogue, engine: Engine
    ) -> None:
        """Raises FilesMissing, NodesMissing or EngineTooOld for what `engine` lacks for a graph that has only this stage; it
        is asked for nothing that is known of it."""
        classes = frozenset(node["class_type"] for node in nodes.values())
        signatures = {
            name: self._parse(name, entry) for name, entry in engine.signatures(classes, fresh=False).items()
        }
        try:
            name = SKETCH if engine.is_sketch else COMFYUI
            fit(nodes, signatures, catalogue.signatures, dict(stage.files), name)
        except NodesMissing as error:
            needs = derived_needs(marks_of(nodes, catalogue.signatures), catalogue.nodes.get("complete", ()))
            if not needs or engine.is_sketch or not is_older(engine.version(), needs[0].comfyui):
                raise
            raise EngineTooOld(
                f"`{stage.id}` needs ComfyUI {needs[0].comfyui}; this one is {shorten(engine.version(), 40)}. Update "
                f"ComfyUI to {needs[0].comfyui} or newer.",
                needs=needs[0].comfyui,
                version=engine.version(),
            ) from error

    def _parse(self, name: str, entry: Any) -> NodeSignature:
        cached = self._parsed.get(name)
        if cached is None or cached[0] is not entry:
            cached = self._parsed[name] = (entry, parse_object_info({name: entry})[name])
        return cached[1]


def check_version(plan: Plan, catalogue: Catalogue, engine: Engine, *, fresh: bool = False) -> None:
    """Raises EngineTooOld if the version of `engine` is certainly too old for the plan's model and task. The weights would
    be downloaded in vain, or ComfyUI would fail after it has read them."""
    needs = catalogue.needs(catalogue.models[plan.model], plan.task)
    if not needs or engine.is_sketch:
        return
    version = engine.version(fresh=fresh)
    if too_old_for(needs, version):
        raise _too_old(plan, needs[0].comfyui, version)


def _with_version(
    error: NodesMissing, plan: Plan, nodes: Mapping[str, Any], catalogue: Catalogue, engine: Engine
) -> EaselError:
    """`error`, with the version to get if the engine is older than that. `nodes`: the graph, with its stages."""
    marks = marks_of(nodes, catalogue.signatures)
    of_graph = derived_needs(marks, catalogue.nodes.get("complete", ()))
    needs = newest_first((*catalogue.needs(catalogue.models[plan.model], plan.task), *of_graph))
    if not needs or engine.is_sketch or not is_older(engine.version(), needs[0].comfyui):
        return error
    return _too_old(plan, needs[0].comfyui, engine.version(), f"{error.message} ")


def _too_old(plan: Plan, needs: str, version: str, reason: str = "") -> EngineTooOld:
    stages = f" with {', '.join(plan.stages)}" if reason and plan.stages else ""
    return EngineTooOld(
        f"{reason}{plan.model} needs ComfyUI {needs} for the task {plan.task}{stages}; this one is "
        f"{shorten(version, 40)}. Update ComfyUI to {needs} or newer.",
        model=plan.model, task=plan.task, needs=needs, version=version,
    )  # fmt: skip
