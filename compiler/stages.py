"""What is done with the pictures of a graph before they are sent: enlarging them, removing their background. A stage is a
template of its own, whose nodes are put between the graph's pictures and the node that is the answer; so every model has
it, whatever its template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.catalogue import Catalogue, Stage
from compiler.check import find_errors
from compiler.values import MAX_IMAGES, Nodes
from dynamic_inputs import is_link
from errors import InvalidValue, TemplateInvalid, list_names
from schemas import LocatedError
from schemas.explain import given_value

_IMAGES = "images"
"""What the nodes that save pictures call them"""


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a request asks for, and the value that it has there."""

    stage: Stage
    value: Any


def planned_stages(wanted: Mapping[str, Any], catalogue: Catalogue) -> tuple[PlannedStage, ...]:
    """The stages with these values, in the order of the catalogue. Raises InvalidValue, LicenceNotAccepted."""
    for name, value in wanted.items():
        values = catalogue.stages[name].values if name in catalogue.stages else ()
        if value not in values:
            allowed = (
                f"it must be one of {list_names([str(each) for each in values])}"
                if values
                else "no stage does that"
            )
            raise InvalidValue(f"`{name}` is {given_value(value)}; {allowed}.", param=name)
        catalogue.licences.check(catalogue.stages[name])
    return tuple(
        PlannedStage(stage, wanted[name]) for name, stage in catalogue.stages.items() if name in wanted
    )


def with_stages(
    nodes: Nodes, output: str, stages: Sequence[PlannedStage], catalogue: Catalogue, template: str
) -> dict[str, Any]:
    """The graph whose node `output` gets the pictures that the stages have made of its own. Raises TemplateInvalid if that
    node gets no pictures, or the template of a stage is wrong."""
    for planned in stages:
        nodes = _with_stage(nodes, output, planned, catalogue, template)
    return dict(nodes)


def _with_stage(
    nodes: Nodes, output: str, planned: PlannedStage, catalogue: Catalogue, template: str
) -> Nodes:
    stage, answer = planned.stage, nodes[output]
    pictures = answer["inputs"].get(_IMAGES)
    if not is_link(pictures):
        raise TemplateInvalid(
            f"{template}: node {output!r}, which is the answer, has no input {_IMAGES!r}, so `{stage.id}` cannot be done",
            template=template,
        )
    values = {
        "pictures": pictures,
        "value": planned.value,
        "files": {role: file.name for role, file in stage.files.items()},
    }
    added = catalogue.renderer.render(stage.template, values)
    result = _result(stage, added)
    if taken := set(nodes) & set(added):
        raise TemplateInvalid(
            f"{template}: the stage {stage.id} has a node of the id {min(taken)!r} too", template=template
        )
    inputs = {**answer["inputs"], _IMAGES: [result, 0]}
    return {**nodes, **added, output: {**answer, "inputs": inputs}}


def _result(stage: Stage, added: Nodes) -> str:
    """The node with the pictures that the stage makes: the one that no other of its nodes needs."""
    used = {value[0] for node in added.values() for value in node["inputs"].values() if is_link(value)}
    results = sorted(set(added) - used)
    if len(results) != 1:
        raise TemplateInvalid(
            f"{stage.template}: one node must have the result; {list_names(results) or 'none'} are needed by no other",
            template=stage.template,
        )
    return results[0]


def sample_graph(stage: Stage, value: Any, catalogue: Catalogue) -> Nodes:
    """A graph that loads a picture, has the stage with `value`, and saves it. Raises TemplateInvalid."""
    return with_stages(_LOADED, "picture", [PlannedStage(stage, value)], catalogue, stage.template)


_LOADED: Nodes = {
    "image": {"class_type": "LoadImage", "inputs": {"image": "easel/image.png [temp]"}},
    "picture": {
        "class_type": "SaveImage",
        "inputs": {_IMAGES: ["image", 0], "filename_prefix": "easel/x"},
    },
}


def stage_errors(catalogue: Catalogue) -> Iterator[LocatedError]:
    """What is wrong with the stages: each is tried with every value on a graph that only loads and saves an image. Each
    value and each file must change the graph."""
    for stage in catalogue.stages.values():
        path = ("stages", stage.id)
        graphs = []
        for value in stage.values[:MAX_IMAGES]:
            try:
                graph = sample_graph(stage, value, catalogue)
            except TemplateInvalid as error:
                yield path, error.message
                return
            for found in find_errors(graph, catalogue.signatures, stage.template):
                yield path, str(found)
            if graph in graphs:
                yield (*path, "values"), f"{value!r} gives the same graph as another value"
            graphs.append(graph)
            texts = {str(each) for node in graph.values() for each in node["inputs"].values()}
            for role, file in stage.files.items():
                if file.name not in texts:
                    yield (
                        (*path, "files", role),
                        f"{stage.template} does not use it; write {{{{ files.{role} }}}}",
                    )
