"""Proves that a template is the workflow: rendered with the workflow's own values, it gives the workflow back, node by
node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.render import TemplateRenderer
from compiler.signatures import plain_value
from compiler.values import Nodes
from errors import EaselError, WorkflowNotImportable
from importer.bindings import Bindings
from importer.graph_view import Place
from importer.read_source import ModelFile
from importer.write_template import WrittenTemplate


def exported_values(
    bindings: Bindings, nodes: Nodes, files: Mapping[str, tuple[ModelFile, tuple[Place, ...]]]
) -> dict[str, Any]:
    """The values of the template's variables with which it gives the workflow back."""
    images = [nodes[node]["inputs"][name] for node, name in bindings.images]
    return {
        "task": bindings.tasks[0],
        **{field.name: field.value for field in bindings.fields.values()},
        "files": {role: file.name for role, (file, _) in files.items()},
        "images": images,
        "image": images[0] if images else None,
        "mask": nodes[mask[0]]["inputs"][mask[1]] if (mask := bindings.mask_file) is not None else None,
        "crop": None,
        "loras": [],
    }


def prove_same(
    nodes: Nodes,
    written: WrittenTemplate,
    bindings: Bindings,
    files: Mapping[str, tuple[ModelFile, tuple[Place, ...]]],
) -> None:
    """Raises WorkflowNotImportable if the template does not give the workflow back. Where a request's field takes the place
    of a computed number, or of several values that differ, its own value is expected."""
    name = "workflow.json.j2"
    try:
        rendered = TemplateRenderer({name: written.text}).render(
            name, exported_values(bindings, nodes, files)
        )
    except EaselError as error:
        raise WorkflowNotImportable(f"The template that was written is wrong: {error.message}") from error
    found = list(_differences(_expected(nodes, written, bindings), rendered))
    if found:
        raise WorkflowNotImportable(
            f"The template that was written does not give the workflow back: {'; '.join(found[:5])}. Nothing was kept."
        )


def _expected(nodes: Nodes, written: WrittenTemplate, bindings: Bindings) -> dict[str, Any]:
    values = {place: field.value for field in bindings.fields.values() for place in field.places}
    values |= bindings.changed
    return {
        written.ids[node]: {
            "class_type": entry["class_type"],
            "inputs": {
                name: values.get((node, name), _renamed(value, written.ids))
                for name, value in entry["inputs"].items()
            },
        }
        for node, entry in nodes.items()
    }


def _renamed(value: Any, ids: Mapping[str, str]) -> Any:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in ids:
        return [ids[value[0]], value[1]]
    return plain_value(value) if isinstance(value, dict) else value


def _differences(expected: Mapping[str, Any], rendered: Mapping[str, Any]) -> Iterator[str]:
    for node in expected.keys() | rendered.keys():
        if node not in rendered or node not in expected:
            yield f"the node {node} is {'missing' if node not in rendered else 'new'}"
            continue
        if rendered[node].get("class_type") != expected[node]["class_type"]:
            yield f"the node {node} is a {rendered[node].get('class_type')} instead of a {expected[node]['class_type']}"
        for name in expected[node]["inputs"].keys() | rendered[node]["inputs"].keys():
            wanted = expected[node]["inputs"].get(name)
            got = rendered[node]["inputs"].get(name)
            if (plain_value(got) if isinstance(got, dict) else got) != wanted:
                yield f"{node}.{name} is {got!r} instead of {wanted!r}"
