"""Compiles a request and the catalogue into graphs. Pure: no network, clock, randomness or environment; its only I/O is
reading the catalogue's files.

catalogue = load_catalogue(read_sources(paths))
compiled = compile_workflow(request, catalogue)
compiled.graphs[0].nodes                            # ComfyUI's API format, checked against the node signatures
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.catalogue import Catalogue, Model
from compiler.catalogue_file import learned_nodes, parse_catalogue
from compiler.check import check, find_errors
from compiler.exports import without_editor_inputs
from compiler.fit import fit
from compiler.resolve import resolve
from compiler.signatures import parse_object_info
from compiler.size import Size
from compiler.sources import SourcePaths, Sources, read_sources
from compiler.values import MAX_SEED, Compiled, Graph, ImageRequest, LoraChoice, Plan, SourceImage, Task
from errors import CatalogueInvalid, EaselError, GraphInvalid, TemplateInvalid

__all__ = [
    "MAX_SEED",
    "Catalogue",
    "Compiled",
    "Graph",
    "ImageRequest",
    "LoraChoice",
    "Model",
    "Plan",
    "Size",
    "SourceImage",
    "SourcePaths",
    "Sources",
    "Task",
    "compile_workflow",
    "find_errors",
    "fit",
    "learned_nodes",
    "load_catalogue",
    "parse_object_info",
    "read_sources",
    "resolve",
]


def compile_workflow(request: ImageRequest, catalogue: Catalogue) -> Compiled:
    """The plan of `request` and one checked graph for each of its jobs.

    Raises what `resolve` raises if the request is wrong, TemplateInvalid or GraphInvalid if the template is.
    """
    plan = resolve(request, catalogue)
    values = {name: planned.value for name, planned in plan.values.items()}
    graphs = []
    for index, job in enumerate(plan.jobs):
        job_values = {"seed": job.seed, "batch": job.batch, "prefix": f"{plan.prefix}-{index}"}
        rendered = catalogue.renderer.render(plan.template, {**values, **job_values})
        nodes = without_editor_inputs(rendered, catalogue.signatures)
        _check(nodes, catalogue, plan.template)
        graphs.append(Graph(nodes, job, plan.template))
    return Compiled(plan, tuple(graphs))


def _check(nodes: Mapping[str, Any], catalogue: Catalogue, template: str) -> None:
    try:
        check(nodes, catalogue.signatures, template)
    except GraphInvalid as error:
        hint = catalogue.renderer.quotes_hint(template)
        raise GraphInvalid(f"{error.message}{hint}", **error.details) from error


def load_catalogue(sources: Sources) -> Catalogue:
    """Parse `sources` and check that every model compiles with its defaults for each of its tasks.

    Raises CatalogueInvalid with every error found.
    """
    catalogue = parse_catalogue(sources)
    errors = [
        f"{sources.catalogue_name}: models.{model.id} ({task}): {error}"
        for model in catalogue.models.values()
        for task in model.workflows
        if (error := _model_error(model, task, catalogue)) is not None
    ]
    if errors:
        raise CatalogueInvalid("\n".join(errors), errors=errors)
    return catalogue


# Contains what could break out of JSON or Jinja, so that a quoted {{ prompt }} is found at start.
_TRIAL_PROMPT = '"{{ 7*7 }}",}\n\\'
_TRIAL_IMAGE, _TRIAL_MASK = "easel/image.png [temp]", "easel/mask.png [temp]"


def _model_error(model: Model, task: Task, catalogue: Catalogue) -> EaselError | None:
    """Compile a trial request for `task`: the error if that fails, or if the graph does not use all of the request."""
    loras = list(catalogue.loras_for(model).values())[:1]
    mask = _TRIAL_MASK if task == "inpaint" else None
    request = ImageRequest(
        prompt=_TRIAL_PROMPT,
        seed=0,
        id="check",
        model=model.id,
        task=task,
        loras=tuple(LoraChoice(lora.id) for lora in loras),
        source=None if task == "generate" else SourceImage(model.size.default, _TRIAL_IMAGE, mask),
    )
    try:
        (graph,) = compile_workflow(request, catalogue).graphs
    except EaselError as error:
        return error
    texts = {
        value for node in graph.nodes.values() for value in node["inputs"].values() if isinstance(value, str)
    }
    expected = {lora.file.name: "the request's LoRAs" for lora in loras}
    if request.source is not None:
        expected[_TRIAL_IMAGE] = "the request's image"
    if mask:
        expected[mask] = "the request's mask"
    unused = [description for text, description in expected.items() if text not in texts]
    if unused:
        return TemplateInvalid(f"{graph.template}: the graph does not use {' and '.join(unused)}")
    if not any(_TRIAL_PROMPT in text for text in texts):
        return TemplateInvalid(
            f"{graph.template}: the graph does not contain the prompt unchanged; "
            "write {{ prompt }} without quotes or filters"
        )
    return None
