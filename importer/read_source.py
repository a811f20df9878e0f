"""Reads what people have: an API export, a file of ComfyUI's editor, or a picture that carries one of them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from compiler.exports import export_error
from compiler.signatures import Signatures
from compiler.values import Nodes
from dynamic_inputs import is_link
from errors import WorkflowUnreadable, shorten
from importer.editor_file import EditorFile, is_editor_file, read_editor_file
from importer.editor_graph import convert_editor_file, node_classes
from importer.png_texts import PNG_START, has_end, png_texts

MAX_JSON_BYTES = 20_000_000
MAX_PICTURE_BYTES = 100_000_000
_MAKE, _MODEL = 0x010F, 0x0110
"""The EXIF fields in which ComfyUI's WebP files carry `workflow:…` and `prompt:…`"""

_DAMAGED = "The picture is damaged, but the workflow in it is whole."
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that is half of a character, or one of both halves"""

SignaturesFor = Callable[[set[str]], Signatures]
"""The signatures of node classes, those of unknown classes left out"""


@dataclass(frozen=True)
class ModelFile:
    """What a workflow says about one of its files."""

    name: str
    folder: str | None = None
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A workflow in API format. `kind`: what it was read from. `files`: what the workflow says about its files by name.
    `notes`: sentences about the reading."""

    nodes: Nodes
    kind: str
    files: Mapping[str, ModelFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_workflow(path: Path, signatures_for: SignaturesFor) -> Workflow:
    """Read a file. Raises WorkflowUnreadable, NodesMissing."""
    data = _content(path)
    if _is_picture(data):
        return _from_picture(data, signatures_for)
    return parse_workflow(_json(data, str(path.name)), signatures_for)


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        limit = MAX_PICTURE_BYTES if path.suffix.lower() in (".png", ".webp") else MAX_JSON_BYTES
        if size > limit:
            raise WorkflowUnreadable(
                f"{path.name} has {size / 1e6:.0f} MB; at most {limit / 1e6:.0f} MB are read."
            )
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise WorkflowUnreadable(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > (MAX_PICTURE_BYTES if _is_picture(data) else MAX_JSON_BYTES):
        raise WorkflowUnreadable(f"{path.name} is too large to be a workflow.")
    return data


def _json(data: bytes, name: str) -> Any:
    try:
        document = json.loads(data.decode("utf-8-sig"))
        if _HALF_CHARACTER.search(data):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
        return document
    except UnicodeEncodeError as error:
        raise WorkflowUnreadable(
            f"{name} has a text with half a character ({error.object[error.start]!a}); correct it in ComfyUI."
        ) from error
    except UnicodeDecodeError as error:
        raise WorkflowUnreadable(f"{name} is neither JSON in UTF-8 nor a PNG or WebP picture.") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowUnreadable(f"{name} is not JSON: {shorten(str(error), 120)}.") from error


def parse_workflow(document: Any, signatures_for: SignaturesFor) -> Workflow:
    """The workflow in a JSON document. Raises WorkflowUnreadable, NodesMissing."""
    try:
        return _parse_workflow(document, signatures_for)
    except RecursionError as error:
        raise WorkflowUnreadable(
            "Hundreds of reroutes, bypassed nodes or subgraphs follow each other, more than can be followed. Remove some of "
            "them in ComfyUI, or use Workflow > Export (API)."
        ) from error


def _parse_workflow(document: Any, signatures_for: SignaturesFor) -> Workflow:
    if is_editor_file(document):
        file = read_editor_file(document)
        converted = convert_editor_file(file, signatures_for(node_classes(file)))
        if not converted.nodes:
            raise WorkflowUnreadable("The workflow has no node that runs.")
        return Workflow(converted.nodes, "editor file", dict(_declared_files(file)), converted.notes)
    if isinstance(document, Mapping) and isinstance(document.get("prompt"), Mapping):
        document = document["prompt"]
    return Workflow(_api_nodes(document), "API export")


def _api_nodes(document: Any) -> Nodes:
    if not isinstance(document, Mapping) or not document:
        raise WorkflowUnreadable("This is no workflow of ComfyUI: a workflow is a JSON object of nodes.")
    if wrong := export_error(document):
        raise WorkflowUnreadable(f"This is no API export: {wrong}.")
    nodes: dict[str, Any] = {}
    for name, node in document.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            raise WorkflowUnreadable(
                f"The node {shorten(str(name), 40)!r} has no `class_type`. Export the workflow in ComfyUI with Workflow > "
                "Export (API)."
            )
        inputs = node.get("inputs")
        if not isinstance(inputs, Mapping):
            raise WorkflowUnreadable(f"The node {shorten(str(name), 40)!r} has no object `inputs`.")
        nodes[str(name)] = {"class_type": node["class_type"], "inputs": dict(inputs)}
    for name, node in nodes.items():
        for key, value in node["inputs"].items():
            if is_link(value) and value[0] not in nodes:
                raise WorkflowUnreadable(
                    f"The input {key} of node {name} is linked to node {value[0]}, which does not exist."
                )
    return nodes


def _declared_files(file: EditorFile) -> Iterator[tuple[str, ModelFile]]:
    """What the nodes of an editor file say about the files that they load."""
    for graph in (file.root, *file.subgraphs.values()):
        for node in graph.nodes.values():
            entries = node.properties.get("models")
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, Mapping) and isinstance(name := entry.get("name"), str):
                    yield name, _model_file(name, entry)


def _model_file(name: str, entry: Mapping[str, Any]) -> ModelFile:
    url, digest = entry.get("url"), str(entry.get("hash") or "").lower()
    is_sha256 = str(entry.get("hash_type", "")).lower().replace("-", "") == "sha256" and len(digest) == 64
    return ModelFile(
        name,
        entry.get("directory") if isinstance(entry.get("directory"), str) else None,
        url if isinstance(url, str) and url.startswith("https://") else None,
        digest if is_sha256 and set(digest) <= set("0123456789abcdef") else None,
    )


# --- pictures -------------------------------------------------------------------------------------------


def _is_picture(data: bytes) -> bool:
    return data.startswith(PNG_START) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _from_picture(data: bytes, signatures_for: SignaturesFor) -> Workflow:
    texts, is_damaged = _metadata(data)
    if "prompt" not in texts and "workflow" not in texts:
        more = (
            " It has the settings of another program (`parameters`), which are no graph."
            if "parameters" in texts
            else ""
        )
        raise WorkflowUnreadable(
            f"The picture carries no workflow of ComfyUI; many sites remove it from what they show.{more}"
        )
    documents: dict[str, Any] = {}
    faults: list[WorkflowUnreadable] = []
    for key in ("prompt", "workflow"):
        if key in texts:
            try:
                documents[key] = _json(
                    texts[key].encode("utf-8", "replace"), f"The field `{key}` of the picture"
                )
            except WorkflowUnreadable as error:
                faults.append(error)
    # Other programs write texts or settings under the same names.
    graphs = [document for document in documents.values() if isinstance(document, Mapping) and document]
    if not graphs:
        raise faults[0] if faults else WorkflowUnreadable("The workflow in the picture is empty.")
    found = parse_workflow(graphs[0], signatures_for)
    notes = (*found.notes, *([_DAMAGED] if is_damaged else []))
    files = found.files or _files_of_editor(documents.get("workflow"))
    return replace(found, kind="picture", files=files, notes=notes)


def _files_of_editor(document: Any) -> Mapping[str, ModelFile]:
    """What the editor's file, which a picture carries beside its graph, says about model files."""
    with contextlib.suppress(WorkflowUnreadable):
        if is_editor_file(document):
            return dict(_declared_files(read_editor_file(document)))
    return {}


def _metadata(data: bytes) -> tuple[dict[str, str], bool]:
    """The texts that a picture carries by key, and whether the picture is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as picture:
            texts = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
            if picture.format == "PNG":
                # ComfyUI writes its texts before the pixels; others may write them behind.
                texts |= {key: str(value) for key, value in getattr(picture, "text", {}).items()}
            exif = picture.getexif()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if texts := png_texts(data):
            return texts, True
        if isinstance(error, UnidentifiedImageError):
            raise WorkflowUnreadable(
                "The picture cannot be read: it is damaged, or has no usual PNG or WebP form."
            ) from error
        raise WorkflowUnreadable(f"The picture cannot be read: {shorten(str(error), 120)}.") from error
    for tag in (_MAKE, _MODEL):
        key, found, value = str(exif.get(tag, "")).partition(":")
        if found and key in ("workflow", "prompt"):
            texts.setdefault(key, value)
    return texts, data.startswith(PNG_START) and not has_end(data)
