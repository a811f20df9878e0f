"""Fits a graph to the nodes of a running engine, or reports what the engine lacks.

Versions of ComfyUI differ a little: one requires an input that another does not have. One template serves all of them.
"""

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
    """A file of weights that a node uses and the engine does not list."""

    node: str
    input: str
    name: str
    folder: str


def fit(nodes: Nodes, live: Signatures, signatures: Signatures, files: Mapping[str, File]) -> dict[str, Any]:
    """The graph for the engine whose signatures are `live`; `signatures` are the catalogue's.

    Inputs that the engine requires and the graph does not set get their defaults. Inputs that the engine does not have
    are removed if they have their default value. `files` are the model's files, to report the download URL of a missing
    one. Raises NodesMissing or FilesMissing.
    """
    classes = sorted({node["class_type"] for node in nodes.values()} - set(live))
    if classes:
        raise NodesMissing(f"This ComfyUI does not have the node {', '.join(classes)}.", nodes=classes)
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
    """Every file that the graph uses and the engine does not list."""
    for node_id, node in nodes.items():
        for name, value in node["inputs"].items():
            known = signatures[node["class_type"]].inputs.get(name)
            live_input = live[node["class_type"]].inputs.get(name)
            if (
                known is None
                or known.folder in (None, "input")
                or live_input is None
                or isinstance(value, list)
            ):
                continue
            if live_input.choices is not None and value not in live_input.choices:
                yield MissingFile(node_id, name, value, str(known.folder))


def _files_missing(missing: list[MissingFile], files: Mapping[str, File]) -> FilesMissing:
    urls = {(file.folder, file.name): file.url for file in files.values()}
    entries = [
        {
            "name": file.name,
            "folder": f"models/{file.folder}",
            "url": urls.get((file.folder, file.name)),
            "node": file.node,
            "input": file.input,
        }
        for file in missing
    ]
    names = ", ".join(f"{file.name} in models/{file.folder}" for file in missing)
    return FilesMissing(f"ComfyUI does not have {names}.", files=entries)


def _fitted(
    node_id: str, node: Mapping[str, Any], live: NodeSignature, known: NodeSignature
) -> dict[str, Any]:
    inputs = dict(node["inputs"])
    for name, value in node["inputs"].items():
        if name not in live.inputs:
            _check_is_default(node_id, node["class_type"], name, value, known.inputs[name])
            del inputs[name]
        else:
            _check_choice(node_id, node["class_type"], name, value, live.inputs[name], known.inputs[name])
    for name, live_input in live.inputs.items():
        if live_input.required and name not in inputs:
            inputs[name] = _default(node_id, node["class_type"], name, live_input)
    return inputs


def _check_is_default(node_id: str, class_type: str, name: str, value: Any, known: InputSignature) -> None:
    if not known.has_default or value != known.default:
        raise NodesMissing(
            f"This ComfyUI's {class_type} has no input {name!r}, which node {node_id!r} sets to {value!r}.",
            node=node_id, class_type=class_type, input=name,
        )  # fmt: skip


def _default(node_id: str, class_type: str, name: str, live: InputSignature) -> Any:
    if live.has_default:
        return live.default
    if live.choices:
        return live.choices[0]  # as ComfyUI's own page does for a list without a default
    raise NodesMissing(
        f"This ComfyUI's {class_type} requires an input {name!r} that node {node_id!r} does not set.",
        node=node_id, class_type=class_type, input=name,
    )  # fmt: skip


def _check_choice(
    node_id: str, class_type: str, name: str, value: Any, live: InputSignature, known: InputSignature
) -> None:
    if isinstance(value, list) or known.folder is not None or live.choices is None or value in live.choices:
        return
    raise NodesMissing(
        f"This ComfyUI's {class_type} does not offer {name} {value!r}, which node {node_id!r} uses.",
        node=node_id, class_type=class_type, input=name, given=value, allowed=list(live.choices),
    )  # fmt: skip
