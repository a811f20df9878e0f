"""Makes a model of the catalogue from a workflow of ComfyUI. Pure but for reading the file: the commands write the result.

workflow = read_workflow(path, signatures_for)      # any file with a workflow, as a graph in API format
imported = import_workflow(workflow, signatures, name=…, title=…, choices=Choices())
imported.template, imported.entries                 # the texts of NAME.json.j2 and NAME.yaml
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.signatures import Signatures
from importer.bindings import Assumption, Bindings, Choices, find_bindings
from importer.graph_view import GraphView, Place
from importer.prove import prove_same
from importer.read_source import ModelFile, Workflow, parse_workflow, read_workflow
from importer.write_entries import entries, entries_text, file_roles
from importer.write_template import write_template

__all__ = [
    "Assumption",
    "Bindings",
    "Choices",
    "Imported",
    "ModelFile",
    "Workflow",
    "import_workflow",
    "parse_workflow",
    "read_workflow",
]


@dataclass(frozen=True)
class Imported:
    """What an import makes of a workflow, and how it came to it."""

    name: str
    template: str
    entries: str
    bindings: Bindings
    files: Mapping[str, tuple[ModelFile, tuple[Place, ...]]]
    """role -> the file, and the inputs that name it"""
    ids: Mapping[str, str]
    """node id of the workflow -> id in the template"""
    classes: frozenset[str]


def import_workflow(
    workflow: Workflow, signatures: Signatures, *, name: str, title: str, choices: Choices
) -> Imported:
    """The model `name` from `workflow`, whose nodes all have signatures. Raises WorkflowNotImportable."""
    graph = GraphView(workflow.nodes, signatures)
    bindings = find_bindings(workflow.nodes, signatures, choices)
    files = file_roles(workflow.nodes, bindings, workflow.files)
    roles = {place: role for role, (_, places) in files.items() for place in places}
    written = write_template(workflow.nodes, bindings, roles, title)
    prove_same(workflow.nodes, written, bindings, files)
    document = entries(
        name=name,
        title=title,
        graph=graph,
        bindings=bindings,
        files=files,
        output=written.ids[bindings.output],
    )
    return Imported(
        name=name,
        template=written.text,
        entries=entries_text(
            document, f"Imported by `flask import-workflow` from the {workflow.kind} {title}."
        ),
        bindings=bindings,
        files=files,
        ids=written.ids,
        classes=frozenset(node["class_type"] for node in workflow.nodes.values()),
    )
