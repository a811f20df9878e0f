"""Makes a model of the catalogue from a workflow of ComfyUI. Pure but for reading the file: the commands write the result.

workflow = read_workflow(path, signatures_for)      # any file with a workflow, as a graph in API format
imported = import_workflow(workflow, signatures, name=…, title=…, choices=Choices())
imported.template, imported.entries                 # the texts of NAME.json.j2 and NAME.yaml
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler.check import is_out_of_range
from compiler.exports import without_editor_inputs
from compiler.links import upstream
from compiler.signatures import Signatures
from compiler.values import Nodes
from errors import WorkflowNotImportable, shorten
from importer.bindings import Assumption, Bindings, Choices, find_bindings
from importer.graph_view import GraphView, Place
from importer.node_order import in_order_of_links
from importer.official_templates import OfficialTemplate, TemplateLibrary, packaged_templates
from importer.optional_images import find_optional_images
from importer.prove import prove_same
from importer.read_source import ModelFile, Workflow, parse_workflow, read_workflow
from importer.write_entries import entries, entries_text, file_roles, node_facts, workflow_id
from importer.write_template import has_template_syntax, write_template

__all__ = [
    "Assumption",
    "Bindings",
    "Choices",
    "Imported",
    "ModelFile",
    "OfficialTemplate",
    "TemplateLibrary",
    "Workflow",
    "import_workflow",
    "packaged_templates",
    "parse_workflow",
    "read_workflow",
]


@dataclass(frozen=True)
class Imported:
    """What an import makes of a workflow, and how it came to it."""

    name: str
    workflow: str
    """The id of its workflow, which its files are named after"""
    template: str
    entries: str
    bindings: Bindings
    files: Mapping[str, tuple[ModelFile, tuple[Place, ...]]]
    """role -> the file, and the inputs that name it"""
    ids: Mapping[str, str]
    """node id of the workflow -> id in the template"""
    left_out: tuple[str, ...]
    """Nodes of the workflow that no output needs"""
    facts: Mapping[str, Mapping[str, Any]]
    """node class -> what the workflow shows that its signature does not say"""
    classes: frozenset[str]


def import_workflow(
    workflow: Workflow, signatures: Signatures, *, name: str, title: str, choices: Choices
) -> Imported:
    """The model `name` from `workflow`, whose nodes all have signatures. Raises WorkflowNotImportable."""
    try:
        return _import_workflow(workflow, signatures, name=name, title=title, choices=choices)
    except RecursionError as error:
        raise WorkflowNotImportable(
            "Hundreds of nodes of the workflow work on the same value one after the other, more than can be followed."
        ) from error


def _import_workflow(
    workflow: Workflow, signatures: Signatures, *, name: str, title: str, choices: Choices
) -> Imported:
    _check_values(workflow.nodes)
    nodes = in_order_of_links(without_editor_inputs(workflow.nodes, signatures))
    bindings = find_bindings(nodes, signatures, choices)
    needed = _needed(nodes, signatures, bindings)
    left_out = tuple(node for node in nodes if node not in needed)
    nodes = {node: entry for node, entry in nodes.items() if node in needed}
    bindings = replace(
        bindings, files={place: folder for place, folder in bindings.files.items() if place[0] in needed}
    )
    graph = GraphView(nodes, signatures)
    _check_limits(graph, bindings)
    files = file_roles(nodes, bindings, workflow.files)
    roles = {place: role for role, (_, places) in files.items() for place in places}
    values = [*bindings.places_of_values(graph), *(places for _, places in files.values())]
    optional = find_optional_images(graph, bindings.images, bindings.output, values)
    written = write_template(nodes, bindings, roles, optional, title)
    prove_same(nodes, written, bindings, files)
    document = entries(
        name=name,
        title=title,
        graph=graph,
        bindings=bindings,
        files=files,
        output=written.ids[bindings.output],
        least_images=optional.least,
    )
    return Imported(
        name=name,
        workflow=workflow_id(name),
        template=written.text,
        entries=entries_text(
            document, f"Imported by `easel import-workflow` from the {workflow.kind} {title}."
        ),
        bindings=bindings,
        files=files,
        ids=written.ids,
        left_out=left_out,
        facts=node_facts(graph),
        classes=frozenset(node["class_type"] for node in nodes.values()),
    )


def _check_values(nodes: Nodes) -> None:
    """Raises WorkflowNotImportable for what cannot be written into a template."""
    for node, entry in nodes.items():
        for name, value in entry["inputs"].items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError as error:
                raise WorkflowNotImportable(
                    f"The input {name} of node {node} is not a number that JSON has (NaN or infinity)."
                ) from error
        for text in (entry["class_type"], *entry["inputs"]):
            if has_template_syntax(text):
                raise WorkflowNotImportable(
                    f"The name {shorten(text)!r} in node {node} looks like a placeholder of a template. Export the workflow "
                    "again; names of inputs and nodes are no place for placeholders."
                )


def _check_limits(graph: GraphView, bindings: Bindings) -> None:
    """Raises WorkflowNotImportable for numbers that their nodes do not take. The seed of a request takes the place of the
    workflow's own, whatever that is."""
    seeds = bindings.fields["seed"].places if "seed" in bindings.fields else ()
    found = []
    for node in graph.nodes:
        for name, signature in graph.inputs(node).items():
            value = graph.value((node, name))
            if isinstance(value, bool) or (node, name) in seeds or not is_out_of_range(value, signature):
                continue
            low = "" if signature.minimum is None else f" from {signature.minimum}"
            high = "" if signature.maximum is None else f" up to {signature.maximum}"
            found.append(
                f"{name} of node {node} ({graph.node_class(node)}) is {value}, but takes values{low}{high}"
            )
    if found:
        raise WorkflowNotImportable(
            f"The workflow has numbers that ComfyUI would refuse: {'; '.join(found[:8])}. Correct them in ComfyUI and "
            "export it again."
        )


def _needed(nodes: Nodes, signatures: Signatures, bindings: Bindings) -> set[str]:
    """The nodes that some output depends on once the fields of a request have their places: not what computed a size, for
    instance. ComfyUI runs no others."""
    bound = {place for field in bindings.fields.values() for place in field.places}
    cut = {
        node: {
            **entry,
            "inputs": {
                name: None if (node, name) in bound else value for name, value in entry["inputs"].items()
            },
        }
        for node, entry in nodes.items()
    }
    outputs = [
        node
        for node, entry in nodes.items()
        if node == bindings.output or signatures[entry["class_type"]].output_node
    ]
    return upstream(cut, outputs)
