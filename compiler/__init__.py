"""Request + catalogue -> graph. Pure: no network, no clock, no chance, no environment; reading its texts is its only I/O.

catalogue = load_catalogue(read_sources(paths))
compiled = compile_workflow(request, catalogue)
compiled.graphs[0].nodes                            # ComfyUI's API format, proved against the node signatures
"""

from __future__ import annotations

from compiler.catalogue import Catalogue, Model
from compiler.catalogue_file import parse_catalogue
from compiler.check import check, find_errors
from compiler.fit import fit
from compiler.resolve import resolve
from compiler.signatures import parse_object_info
from compiler.size import Size
from compiler.sources import SourcePaths, Sources, read_sources
from compiler.values import MAX_SEED, Compiled, Graph, ImageRequest, LoraChoice, Plan, Source, Task
from errors import CatalogueInvalid, EaselError, TemplateInvalid

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
    "Source",
    "SourcePaths",
    "Sources",
    "Task",
    "compile_workflow",
    "find_errors",
    "fit",
    "load_catalogue",
    "parse_object_info",
    "read_sources",
    "resolve",
]


def compile_workflow(request: ImageRequest, catalogue: Catalogue) -> Compiled:
    """The plan of `request` and one checked graph for each of its jobs.

    Raises what `resolve` raises for the request's faults, TemplateInvalid and GraphInvalid for the template's.
    """
    plan = resolve(request, catalogue)
    values = {name: planned.value for name, planned in plan.values.items()}
    graphs = []
    for index, job in enumerate(plan.jobs):
        of_job = {"seed": job.seed, "batch": job.batch, "prefix": f"{plan.prefix}-{index}"}
        nodes = catalogue.renderer.render(plan.template, {**values, **of_job})
        check(nodes, catalogue.signatures, plan.template)
        graphs.append(Graph(nodes, job, plan.template))
    return Compiled(plan, tuple(graphs))


def load_catalogue(sources: Sources) -> Catalogue:
    """The catalogue that `sources` make, proved: every model compiles with its defaults for every task it has.

    Raises CatalogueInvalid with every fault found.
    """
    catalogue = parse_catalogue(sources)
    errors = [
        f"{sources.catalogue_name}: models.{model.id} ({task}): {error}"
        for model in catalogue.models.values()
        for task in model.workflows
        if (error := _error_of(model, task, catalogue)) is not None
    ]
    if errors:
        raise CatalogueInvalid("\n".join(errors), errors=errors)
    return catalogue


# With everything in it that could break out of JSON or Jinja, so that a quoted {{ prompt }} is found at start.
_TRIAL_PROMPT = '"{{ 7*7 }}",}\n\\'
_TRIAL_IMAGE, _TRIAL_MASK = "easel/image.png [temp]", "easel/mask.png [temp]"


def _error_of(model: Model, task: Task, catalogue: Catalogue) -> EaselError | None:
    """What is wrong with the graph of `task`, tried with all that its template must not lose."""
    loras = list(catalogue.loras_for(model).values())[:1]
    mask = _TRIAL_MASK if task == "inpaint" else None
    request = ImageRequest(
        prompt=_TRIAL_PROMPT,
        seed=0,
        id="check",
        model=model.id,
        task=task,
        loras=tuple(LoraChoice(lora.id) for lora in loras),
        source=None if task == "generate" else Source(model.size.default, _TRIAL_IMAGE, mask),
    )
    try:
        (graph,) = compile_workflow(request, catalogue).graphs
    except EaselError as error:
        return error
    texts = {
        value for node in graph.nodes.values() for value in node["inputs"].values() if isinstance(value, str)
    }
    wanted = {lora.file.name: "the request's LoRAs" for lora in loras}
    if request.source is not None:
        wanted |= {_TRIAL_IMAGE: "the request's image"}
    if mask:
        wanted |= {_TRIAL_MASK: "the request's mask"}
    lost = [what for text, what in wanted.items() if text not in texts]
    if lost:
        return TemplateInvalid(f"{graph.template}: the graph does not use {' and '.join(lost)}")
    if not any(_TRIAL_PROMPT in text for text in texts):
        return TemplateInvalid(
            f"{graph.template}: the prompt is not in the graph as it was given; write {{{{ prompt }}}} bare, no quotes"
        )
    return None
