"""A compiled graph as a file of ComfyUI's editor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler import Catalogue, Compiled, parse_object_info
from compiler.signatures import NodeSignature
from compiler.values import Nodes
from deadline import time_limit
from engine import Engine
from errors import EngineTooOld, EngineUnreachable, FilesMissing, NodesMissing
from generation.fitted_graphs import FittedGraphs

_TIMEOUT_S = 30.0
"""For all that an engine is asked; ComfyUI may not answer for seconds while it works"""


@dataclass(frozen=True)
class EditorFile:
    """`document`: the JSON of the file. `notes`: sentences about what the file does not say, what the editor will change,
    and what the engine lacks."""

    document: Mapping[str, Any]
    notes: tuple[str, ...]


def write_for_editor(
    compiled: Compiled, catalogue: Catalogue, nodes: Nodes, engine: Engine | None = None
) -> EditorFile:
    """The file of the first graph. `nodes`: that graph, as it was compiled or fitted. `engine`: the one whose editor is to
    read the file, which must have the nodes: the order of the values in it is that of their inputs. Raises
    EngineUnreachable."""
    # A server that is not asked for such files never needs it.
    from importer.editor_writer import write_editor_file

    signatures = catalogue.signatures
    if engine is not None:
        classes = {node["class_type"] for node in nodes.values()}
        live = parse_object_info(engine.signatures(classes))
        signatures = {**signatures, **{name: _with_facts(live[name], signatures[name]) for name in live}}
    files = (
        *catalogue.models[compiled.plan.model].files.values(),
        *(file for name in compiled.plan.stages for file in catalogue.stages[name].files.values()),
        *(lora.file for lora in catalogue.loras.values()),
    )
    written = write_editor_file(nodes, signatures, files)
    return EditorFile(written.document, (*_note_of_jobs(compiled), *written.notes))


def write_for_engine(
    compiled: Compiled, catalogue: Catalogue, find_engine: Callable[[], Engine], fitted_graphs: FittedGraphs
) -> EditorFile:
    """The file of the first graph as the present engine would run it. If that is not known, or if the engine lacks
    something, it is the graph as it was compiled, and a note says so: the editor offers to download missing files."""
    nodes = compiled.graphs[0].nodes
    try:
        with time_limit(_TIMEOUT_S):
            engine = find_engine()
            try:
                nodes = fitted_graphs.get(compiled, catalogue, engine)[0].nodes
                note = None
            except FilesMissing as error:
                note = f"The engine cannot run this graph yet: {error.message}"
            return _with_note(note, write_for_editor(compiled, catalogue, nodes, engine))
    except EngineUnreachable as error:
        note = f"The engine could not be asked which inputs its nodes have: {error.message}"
    except (NodesMissing, EngineTooOld) as error:
        note = f"The engine cannot run this graph: {error.message}"
    return _with_note(note, write_for_editor(compiled, catalogue, nodes))


def _with_facts(live: NodeSignature, known: NodeSignature) -> NodeSignature:
    """`live` with what only the catalogue knows: in which folders the inputs have their files."""
    inputs = {
        name: replace(entry, is_file=True, folder=known.inputs[name].folder)
        if name in known.inputs and known.inputs[name].is_file
        else entry
        for name, entry in live.inputs.items()
    }
    return replace(live, inputs=inputs, more_inputs=known.more_inputs)


def _with_note(note: str | None, file: EditorFile) -> EditorFile:
    return file if note is None else EditorFile(file.document, (note, *file.notes))


def _note_of_jobs(compiled: Compiled) -> list[str]:
    if len(compiled.graphs) == 1:
        return []
    seed = f" (seed {compiled.plan.jobs[0].seed})" if compiled.plan.has_seed else ""
    return [f"The request has {len(compiled.graphs)} jobs; this is the graph of the first one{seed}."]
