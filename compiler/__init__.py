"""Compiles a request and the catalogue into graphs. Pure: no network, clock, randomness or environment; its only I/O is
reading the catalogue's files.

catalogue = load_catalogue(read_sources(paths))
compiled = compile_workflow(request, catalogue)
compiled.graphs[0].nodes                            # ComfyUI's API format, checked against the node signatures
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from compiler.answer import answer_part, find_output
from compiler.catalogue import (
    Catalogue,
    Licence,
    LicenceHolder,
    LicencePurpose,
    LicenceRules,
    LicenceState,
    Lora,
    LoraTags,
    Model,
    OwnFileNote,
    Stage,
)
from compiler.catalogue_file import learned_nodes, parse_catalogue
from compiler.check import check, find_errors
from compiler.choose_size import check_frame
from compiler.fit import COMFYUI, SKETCH, SOCKET_OUTPUT, fit, over_socket
from compiler.graph import render_nodes
from compiler.graph_shapes import ShapeKey
from compiler.own_entries import with_own_entries
from compiler.proof import proofs_to_keep, prove_catalogue
from compiler.resolve import check_image_count, resolve
from compiler.sample import sample_requests
from compiler.signatures import parse_object_info
from compiler.size import Size
from compiler.slots import SlotUsed
from compiler.sources import SourcePaths, Sources, is_own_file, read_sources
from compiler.stages import planned_stages, sample_graph, with_stages
from compiler.strength import with_drawable_strength
from compiler.values import (
    MAX_IMAGES,
    MAX_SEED,
    Compiled,
    Graph,
    ImageCount,
    ImageRequest,
    InputPicture,
    JobPlan,
    LoraChoice,
    Note,
    Plan,
    Shape,
    SourceImage,
    Task,
)
from errors import GraphInvalid

__all__ = [
    "COMFYUI",
    "MAX_IMAGES",
    "MAX_SEED",
    "SKETCH",
    "SOCKET_OUTPUT",
    "Catalogue",
    "Compiled",
    "Graph",
    "ImageCount",
    "ImageRequest",
    "InputPicture",
    "Licence",
    "LicenceHolder",
    "LicencePurpose",
    "LicenceRules",
    "LicenceState",
    "Lora",
    "LoraChoice",
    "LoraTags",
    "Model",
    "Note",
    "OwnFileNote",
    "Plan",
    "Shape",
    "Size",
    "SourceImage",
    "SourcePaths",
    "Sources",
    "Stage",
    "Task",
    "check_frame",
    "check_image_count",
    "compile_workflow",
    "find_errors",
    "fit",
    "is_own_file",
    "learned_nodes",
    "load_catalogue",
    "over_socket",
    "parse_object_info",
    "proofs_to_keep",
    "read_sources",
    "resolve",
    "sample_graph",
    "sample_requests",
]


def compile_workflow(request: ImageRequest, catalogue: Catalogue, *, shares_shapes: bool = True) -> Compiled:
    """The plan of `request` and one checked graph for each of its jobs. `shares_shapes`: false for a request that is not
    drawn, so that it takes no place among the shapes of those that are.

    Raises what `resolve` raises if the request is wrong or the model cannot be drawn, TemplateInvalid or GraphInvalid if
    the template does not handle the request's values.
    """
    plan = resolve(request, catalogue)
    graphs = _graphs(plan, catalogue, shares_shapes)
    drawable = with_drawable_strength(plan, graphs[0].nodes)
    if drawable is not plan:
        plan, graphs = drawable, _graphs(drawable, catalogue, shares_shapes)
    return Compiled(plan, graphs)


def _graphs(plan: Plan, catalogue: Catalogue, shares_shapes: bool) -> tuple[Graph, ...]:
    values = {name: planned.value for name, planned in plan.values.items()}
    graphs = []
    for index, job in enumerate(plan.jobs):
        job_values = {"seed": job.seed, "batch": job.batch, "prefix": f"{plan.prefix}-{index}"}
        graphs.append(_graph(plan, job, {**values, **job_values}, catalogue, shares_shapes))
    return tuple(graphs)


def _graph(
    plan: Plan, job: JobPlan, values: Mapping[str, Any], catalogue: Catalogue, shares_shapes: bool
) -> Graph:
    shapes = catalogue.shapes
    # The names of pictures differ in each request.
    is_shared = shares_shapes and not plan.stages and not plan.input_images
    key = ShapeKey.of(plan, values) if is_shared else None
    if (
        key is not None
        and (shape := shapes.get(key)) is not None
        and (nodes := shape.fill(values)) is not None
    ):
        return Graph(nodes, job, plan.template, shape.output)
    nodes = render_nodes(plan.template, values, catalogue)
    _check(nodes, catalogue, plan.template)
    workflow = catalogue.workflows[plan.workflow]
    output = find_output(
        nodes,
        catalogue.signatures,
        template=plan.template,
        entry=workflow.entry,
        declared=workflow.output,
    )
    crops = True
    if values["crop"] is not None:
        uncropped = render_nodes(plan.template, {**values, "crop": None}, catalogue)
        crops = output not in uncropped or answer_part(uncropped, output) != answer_part(nodes, output)
    if plan.stages:
        stages = planned_stages(plan.stages, catalogue)
        nodes = with_stages(nodes, output, stages, catalogue, plan.template)
        _check(nodes, catalogue, plan.template)
    if key is not None and shapes.wants(key):
        shapes.add(
            key,
            values,
            nodes,
            output,
            catalogue.signatures,
            lambda slots: _render_with_slots(plan.template, slots, catalogue),
        )
    return Graph(nodes, job, plan.template, output, crops)


def _render_with_slots(template: str, values: Mapping[str, Any], catalogue: Catalogue) -> Mapping[str, Any]:
    if catalogue.renderer.reads_output(template):
        raise SlotUsed
    return render_nodes(template, values, catalogue)


def _check(nodes: Mapping[str, Any], catalogue: Catalogue, template: str) -> None:
    try:
        check(nodes, catalogue.signatures, template)
    except GraphInvalid as error:
        hint = catalogue.renderer.quotes_hint(template)
        raise GraphInvalid(f"{error.message}{hint}", **error.details) from error


def load_catalogue(sources: Sources, *, proved: Collection[str] | None = None) -> Catalogue:
    """Parse `sources`, and prove for each task of each model that its template uses what a request may set. `proved`: the
    ids of the models that are proved; None for all.

    A model that fails stays in the catalogue: `Catalogue.undrawable` has its faults, and requests for it are refused. What
    is wrong in the owner's folder is left out and listed in `Catalogue.own_faults`. Raises CatalogueInvalid with every
    error found if the catalogue itself is invalid. The last catalogue is kept: it is returned again for equal `sources`.
    """
    global _last
    key = sources, sources.shipped_proofs, sources.own_proofs, proved and frozenset(proved)
    last = _last
    if last is None or last[0] != key:
        last = _last = key, _load(sources, proved)
    return last[1]


_last: tuple[Any, Catalogue] | None = None


def _load(sources: Sources, proved: Collection[str] | None) -> Catalogue:
    shipped = parse_catalogue(sources)
    catalogue = with_own_entries(shipped, sources)
    models = [model for model in catalogue.models.values() if proved is None or model.id in proved]
    kept = (sources.shipped_proofs, sources.own_proofs)
    # Facts of own files change nothing for the shipped workflows, so that these need no new proof.
    as_shipped = [model for model in models if _is_as_shipped(model, catalogue, shipped)]
    proofs = prove_catalogue(shipped, as_shipped, kept) if as_shipped else {}
    if others := [model for model in models if model.id not in proofs]:
        proofs |= prove_catalogue(catalogue, others, kept)
    for model in models:
        for task, workflow in model.workflows.items():
            # What the proof says without the template or the node that the workflow lacks would mislead.
            if faults := catalogue.workflows[workflow].faults:
                proofs[model.id][task] = replace(proofs[model.id][task], faults=faults)
    return replace(catalogue, proofs=proofs)


def _is_as_shipped(model: Model, catalogue: Catalogue, shipped: Catalogue) -> bool:
    """Whether the owner's folder has changed nothing of a shipped model, of its workflows and of the LoRAs."""
    return (
        shipped.models.get(model.id) == model
        and catalogue.loras == shipped.loras
        and all(
            catalogue.workflows[workflow] == shipped.workflows.get(workflow)
            for workflow in model.workflows.values()
        )
    )
