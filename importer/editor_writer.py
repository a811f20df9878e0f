"""Writes a graph in API format as a file of ComfyUI's editor (version 0.4), with its nodes laid out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.catalogue import File
from compiler.signatures import PLAIN_TYPES, InputSignature, NodeSignature, Signatures, plain_value
from compiler.values import Nodes
from dynamic_inputs import grown_inputs, is_link
from importer.dynamic_prompts import without_expansion
from importer.editor_layout import Position, Shape, Size, positions
from importer.editor_widgets import CONTROL, UNSAVED_WIDGETS, Widget, has_widget, widgets_of

_MAX_EXACT = 2**53
"""The editor rounds larger whole numbers."""
_TEXT_REPLACEMENT = re.compile(r"%(date:[^%]*|[^%.]+\.[^%.]+)%")
"""What the editor replaces in the name of a file to save, as Node.widget"""
_READABLE_ID = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class EditorDocument:
    """`document`: the JSON of the file. `ids`: node id of the graph -> id in the file. `notes`: sentences about what the
    editor will change."""

    document: Mapping[str, Any]
    ids: Mapping[str, int]
    notes: tuple[str, ...] = ()


def write_editor_file(nodes: Nodes, signatures: Signatures, files: Iterable[File] = ()) -> EditorDocument:
    """The file for a graph that was checked against `signatures`. `files`: those that the graph may load, whose URLs the
    editor offers if they are missing."""
    return _Writer(nodes, signatures, files).write()


@dataclass
class _Written:
    """One node while it is written."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    widgets: list[Widget]
    title: str
    shape: Shape
    links: list[tuple[str, int, int, str]] = field(default_factory=list)
    """source, its output, index of the input, type"""


class _Writer:
    def __init__(self, nodes: Nodes, signatures: Signatures, files: Iterable[File]) -> None:
        self._nodes, self._signatures = nodes, signatures
        self._files = {file.name: file for file in files}
        self._notes: list[str] = []
        self._ids = _numbered(nodes)

    def write(self) -> EditorDocument:
        written = {node_id: self._node(node_id) for node_id in self._nodes}
        links = self._linked(written)
        sizes = {node_id: node.shape.size for node_id, node in written.items()}
        places = positions(sizes, {name: [link[0] for link in node.links] for name, node in written.items()})
        entries = [
            self._entry(node_id, order, written[node_id], places[node_id], sizes[node_id])
            for order, node_id in enumerate(sorted(places, key=lambda name: places[name]))
        ]
        document = {
            "revision": 0,
            "last_node_id": max(self._ids.values(), default=0),
            "last_link_id": len(links),
            "nodes": entries,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        return EditorDocument(document, self._ids, tuple(dict.fromkeys(self._notes)))

    def _node(self, node_id: str) -> _Written:
        node = self._nodes[node_id]
        signature = self._signatures[node["class_type"]]
        inputs = node["inputs"]
        plain = list(widgets_of(node["class_type"], signature, inputs))
        self._note_differences(node_id, inputs, plain, signature)
        widgets = [self._protected(widget) for widget in plain]
        entries, links = self._inputs(inputs, signature)
        title = _title(node_id, node)
        outputs = [{"name": kind, "type": kind, "links": None} for kind in signature.outputs]
        shape = _shape(title or node["class_type"], entries, signature, widgets)
        return _Written(entries, outputs, widgets, title, shape, links)

    def _inputs(
        self, inputs: Mapping[str, Any], signature: NodeSignature
    ) -> tuple[list[dict[str, Any]], list[tuple[str, int, int, str]]]:
        """The sockets of a node, and the links to them. Inputs with a widget, and those that an auto-grown input stands for,
        are listed only if they are linked."""
        known = signature.inputs_for(inputs)
        grown = {
            f"{parent}.{name}"
            for parent, entry in grown_inputs(signature.inputs, inputs).items()
            for name in entry.grown_names
        }
        shown = {
            name: entry
            for name, entry in known.items()
            if is_link(inputs.get(name)) or not (has_widget(entry) or name in grown)
        }
        others = {name: InputSignature("*") for name in inputs if name not in known and is_link(inputs[name])}
        entries, links = [], []
        for index, (name, entry) in enumerate({**shown, **others}.items()):
            widget = {"widget": {"name": name}} if has_widget(entry) else {}
            entries.append({"name": name, "type": entry.type, **widget, "link": None})
            if is_link(inputs.get(name)):
                source, output = inputs[name]
                links.append((source, output, index, self._type_of(source, output)))
        return entries, links

    def _type_of(self, node_id: str, output: int) -> str:
        outputs = self._signatures[self._nodes[node_id]["class_type"]].outputs
        return outputs[output] if output < len(outputs) else "*"

    def _linked(self, written: Mapping[str, _Written]) -> list[list[Any]]:
        """The links of the file; also enters their ids at both ends."""
        links: list[list[Any]] = []
        for node_id, node in written.items():
            for source, output, index, kind in node.links:
                number = len(links) + 1
                node.inputs[index]["link"] = number
                end = written[source].outputs[output]
                end["links"] = [*(end["links"] or ()), number]
                links.append([number, self._ids[source], output, self._ids[node_id], index, kind])
        return links

    def _entry(
        self, node_id: str, order: int, node: _Written, position: Position, size: Size
    ) -> dict[str, Any]:
        node_class = self._nodes[node_id]["class_type"]
        models = [entry for widget in node.widgets if (entry := self._model(widget)) is not None]
        return {
            "id": self._ids[node_id],
            "type": node_class,
            "pos": list(position),
            "size": list(size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": node.inputs,
            "outputs": node.outputs,
            **({"title": node.title} if node.title else {}),
            "properties": {"Node name for S&R": node_class, **({"models": models} if models else {})},
            "widgets_values": [widget.value for widget in node.widgets],
        }

    def _model(self, widget: Widget) -> dict[str, str] | None:
        """What the editor needs to offer the download of the file that a widget names."""
        signature = widget.signature
        file = self._files.get(widget.value) if isinstance(widget.value, str) else None
        if file is None or not file.url or signature is None or not signature.is_model_file:
            return None
        known_hash = {"hash": file.sha256, "hash_type": "SHA256"} if file.sha256 else {}
        return {"name": file.name, "url": file.url, "directory": file.folder, **known_hash}

    # --- what the editor would change ---

    def _protected(self, widget: Widget) -> Widget:
        """`widget` with a text that the editor leaves as it is in the graph."""
        signature, text = widget.signature, widget.value
        if signature is None or not signature.dynamic_prompt or not isinstance(text, str):
            return widget
        protected = without_expansion(text)
        return widget if protected is None else replace(widget, value=protected)

    def _note_differences(
        self, node_id: str, inputs: Mapping[str, Any], widgets: Iterable[Widget], signature: NodeSignature
    ) -> None:
        """Notes for the inputs of a node that the editor will send with another value."""
        known = signature.inputs_for(inputs)
        unsaved = {name: UNSAVED_WIDGETS.get(entry.type) for name, entry in known.items()}
        written = {widget.name: widget for widget in widgets if widget.name != CONTROL}
        for name, value in inputs.items():
            if not is_link(value) and name not in written and plain_value(value) != unsaved.get(name):
                self._note(
                    node_id, name, "the editor has no place for this value; connect a node that holds it"
                )
        for name, widget in written.items():
            if widget.is_given and (change := _change(widget)):
                self._note(node_id, name, change)
            elif name not in inputs:
                self._note(node_id, name, f"the graph leaves it out, the editor sends {widget.value!r}")

    def _note(self, node_id: str, name: str, text: str) -> None:
        node_class = self._nodes[node_id]["class_type"]
        self._notes.append(f"node {self._ids[node_id]} ({node_class}), input {name!r}: {text}")


def _change(widget: Widget) -> str:
    """What the editor does to a value that it cannot send as it is; empty for others."""
    value, signature = widget.value, widget.signature
    if isinstance(value, int) and abs(value) > _MAX_EXACT:
        return f"the editor rounds {value}, because it is above 2^53"
    if not isinstance(value, str):
        return ""
    if widget.name == "filename_prefix" and (match := _TEXT_REPLACEMENT.search(value)):
        return f"the editor replaces {match[0]}"
    if signature is not None and signature.dynamic_prompt and without_expansion(value) is None:
        return "the editor adds the word undefined after the backslash at its end"
    return ""


def _numbered(nodes: Nodes) -> dict[str, int]:
    """The id in the file of each node: its own if all are numbers, as in exports of the editor."""
    if all(node_id.isascii() and node_id.isdigit() and len(node_id) < 10 for node_id in nodes):
        own = {node_id: int(node_id) for node_id in nodes}
        if len(set(own.values())) == len(own):
            return own
    return {node_id: number for number, node_id in enumerate(nodes, 1)}


def _title(node_id: str, node: Mapping[str, Any]) -> str:
    """The node's own title, or its id in the graph if that is a word; empty for the title of its class."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    if isinstance(title, str) and title:
        return title
    return node_id.replace("_", " ").capitalize() if _READABLE_ID.fullmatch(node_id) else ""


def _shape(
    title: str, entries: Iterable[Mapping[str, Any]], signature: NodeSignature, widgets: Iterable[Widget]
) -> Shape:
    texts, rows, drawn = [], [], 0
    for widget in widgets:
        if widget.signature is not None and widget.signature.multiline:
            texts.append(str(widget.value))
        elif widget.signature is not None and widget.signature.type not in PLAIN_TYPES:
            drawn += 1
        else:
            rows.append(f"{widget.name}  {widget.value}")
    loads_picture = any(entry.folder == "input" for entry in signature.inputs.values())
    return Shape(
        title=title,
        sockets=[entry["name"] for entry in entries if "widget" not in entry],
        outputs=signature.outputs,
        rows=rows,
        texts=texts,
        spare_sockets=sum(
            max(1, entry.grown_minimum) for entry in signature.inputs.values() if entry.grown_names
        ),
        drawn_widgets=drawn,
        shows_result=signature.output_node or loads_picture,
    )
