"""Graph + what the live engine says of its nodes -> the graph that this very engine runs, or what it lacks.

Versions of ComfyUI differ a little: one requires an input that another does not know. Both are served by one template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.catalogue import File
from compiler.signatures import InputSignature, NodeSignature, Signatures
from compiler.values import Nodes
from errors import FilesMissing, NodesMissing


@dataclass(frozen=True)
class MissingFile:
    """A file of weights that a node wants and the engine does not list."""

    node: str
    input: str
    name: str
    folder: str


def fit(nodes: Nodes, live: Signatures, signatures: Signatures, files: Mapping[str, File]) -> dict[str, Any]:
    """The graph with the inputs that `live` (the engine's own signatures) requires filled from their defaults, and
    those that it does not know left out where that changes nothing.

    `files` are the model's, to say where a missing one can be had. Raises NodesMissing or FilesMissing.
    """
    lacking = sorted({node["class_type"] for node in nodes.values()} - set(live))
    if lacking:
        raise NodesMissing(f"This ComfyUI has no node {', '.join(lacking)}.", nodes=lacking)
    missing = list(missing_files(nodes, live, signatures))
    if missing:
        raise _files_missing(missing, files)
    return {
        node_id: {
            **node,
            "inputs": _fitted(node_id, node, live[node["class_type"]], signatures[node["class_type"]]),
        }
        for node_id, node in nodes.items()
    }


def missing_files(nodes: Nodes, live: Signatures, signatures: Signatures) -> Iterator[MissingFile]:
    """Every file that the graph names and the engine does not list."""
    for node_id, node in nodes.items():
        for name, value in node["inputs"].items():
            known = signatures[node["class_type"]].inputs.get(name)
            there = live[node["class_type"]].inputs.get(name)
            if known is None or known.folder in (None, "input") or there is None or isinstance(value, list):
                continue
            if there.choices is not None and value not in there.choices:
                yield MissingFile(node_id, name, value, str(known.folder))


def _files_missing(missing: list[MissingFile], files: Mapping[str, File]) -> FilesMissing:
    urls = {(file.folder, file.name): file.url for file in files.values()}
    listed = [
        {
            "name": one.name,
            "folder": f"models/{one.folder}",
            "url": urls.get((one.folder, one.name)),
            "node": one.node,
            "input": one.input,
        }
        for one in missing
    ]
    names = ", ".join(f"{one.name} in models/{one.folder}" for one in missing)
    return FilesMissing(f"ComfyUI does not have {names}.", files=listed)


def _fitted(
    node_id: str, node: Mapping[str, Any], live: NodeSignature, known: NodeSignature
) -> dict[str, Any]:
    inputs = dict(node["inputs"])
    for name, value in node["inputs"].items():
        if name not in live.inputs:
            _drop(inputs, node_id, node["class_type"], name, value, known.inputs[name])
        else:
            _refuse_unknown_choice(
                node_id, node["class_type"], name, value, live.inputs[name], known.inputs[name]
            )
    for name, wanted in live.inputs.items():
        if wanted.required and name not in inputs:
            _fill(inputs, node_id, node["class_type"], name, wanted)
    return inputs


def _drop(
    inputs: dict[str, Any], node_id: str, class_type: str, name: str, value: Any, known: InputSignature
) -> None:
    if not known.has_default or value != known.default:
        raise NodesMissing(
            f"This ComfyUI's {class_type} has no input {name!r}, which node {node_id!r} sets to {value!r}.",
            node=node_id, class_type=class_type, input=name,
        )  # fmt: skip
    del inputs[name]


def _fill(inputs: dict[str, Any], node_id: str, class_type: str, name: str, wanted: InputSignature) -> None:
    if wanted.has_default:
        inputs[name] = wanted.default
    elif wanted.choices:
        inputs[name] = wanted.choices[0]  # as ComfyUI's own page does for a list without a default
    else:
        raise NodesMissing(
            f"This ComfyUI's {class_type} requires an input {name!r} that node {node_id!r} does not set.",
            node=node_id, class_type=class_type, input=name,
        )  # fmt: skip


def _refuse_unknown_choice(
    node_id: str, class_type: str, name: str, value: Any, live: InputSignature, known: InputSignature
) -> None:
    if isinstance(value, list) or known.folder is not None or live.choices is None or value in live.choices:
        return
    raise NodesMissing(
        f"This ComfyUI's {class_type} does not offer {name} {value!r}, which node {node_id!r} wants.",
        node=node_id, class_type=class_type, input=name, given=value, allowed=list(live.choices),
    )  # fmt: skip
