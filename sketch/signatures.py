"""The nodes of a ComfyUI 0.3.64 and their inputs, read from `nodes.json`, and the lists of model files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "0.3.64"
VALUE_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
INPUT_FOLDER = "input"


@dataclass(frozen=True)
class Input:
    """One input of a node. `folder` instead of `choices` if the allowed values are files."""

    type: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    folder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether its value is written in the graph instead of linked from another node."""
        return self.type in VALUE_TYPES


@dataclass(frozen=True)
class Node:
    """The signature of a node class."""

    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    output_node: bool


class FileLists:
    """The model files by folder, from a JSON file that is read again when it changes. Empty while the file is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int] | None = None
        self._lists: dict[str, list[str]] = {}

    def lists(self) -> dict[str, list[str]]:
        """Sorted names by folder."""
        try:
            stat = self._path.stat()
        except OSError:
            self._version, self._lists = None, {}
            return self._lists
        if (stat.st_mtime_ns, stat.st_size) != self._version:
            self._lists = {
                folder: sorted(names) for folder, names in json.loads(self._path.read_text()).items()
            }
            self._version = (stat.st_mtime_ns, stat.st_size)
        return self._lists


class Signatures:
    """All nodes of this engine. `input_names` returns the names of the images in the input folder."""

    def __init__(self, path: Path, files: FileLists, input_names: Callable[[], list[str]]) -> None:
        entries = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        self.nodes: dict[str, Node] = {name: _node(entry) for name, entry in entries.items()}
        self._files, self._input_names = files, input_names

    def choices(self, node_input: Input) -> list[str]:
        """The values that a COMBO allows now."""
        if node_input.folder == INPUT_FOLDER:
            return self._input_names()
        if node_input.folder:
            return self._files.lists().get(node_input.folder, [])
        return list(node_input.choices)

    def config(self, node_input: Input) -> list[Any]:
        """An input as in `/object_info`: its type, or its list of choices, and the options."""
        first = self.choices(node_input) if node_input.type == "COMBO" else node_input.type
        return [first, dict(node_input.options)]

    def folders(self) -> dict[str, list[str]]:
        """Files by folder, for every folder that a node reads or that has files."""
        folders: dict[str, list[str]] = {
            i.folder: [] for node in self.nodes.values() for i in node.inputs.values() if i.folder
        }
        folders |= self._files.lists()
        return {folder: names for folder, names in folders.items() if folder != INPUT_FOLDER}

    def object_info(self, name: str) -> dict[str, Any]:
        """The entry of one class in `/object_info`."""
        node = self.nodes[name]
        kinds = {"required": False, "optional": True}
        inputs = {
            kind: {key: self.config(i) for key, i in node.inputs.items() if i.optional is optional}
            for kind, optional in kinds.items()
        }
        inputs = {kind: entries for kind, entries in inputs.items() if entries or kind == "required"}
        return {
            "input": inputs,
            "input_order": {kind: list(entries) for kind, entries in inputs.items()},
            "output": list(node.outputs),
            "output_is_list": [False] * len(node.outputs),
            "output_name": list(node.outputs),
            "name": name,
            "display_name": name,
            "description": "",
            "python_module": "sketch",
            "category": "sketch",
            "output_node": node.output_node,
        }


def _node(entry: Mapping[str, Any]) -> Node:
    inputs = {
        name: _input(data) for name, data in entry["inputs"].items() if _in_this_version(data.get("only_in"))
    }
    return Node(inputs, tuple(entry["outputs"]), bool(entry["output_node"]))


def _input(data: Mapping[str, Any]) -> Input:
    versions = data.get("choices_in", {})
    choices = tuple(choice for choice in data.get("choices", ()) if _in_this_version(versions.get(choice)))
    options = {key: data[key] for key in ("default", "min", "max", "step") if key in data}
    if data.get("folder") == INPUT_FOLDER:
        options["image_upload"] = True
    return Input(data["type"], bool(data.get("optional")), choices, data.get("folder"), options)


def _in_this_version(versions: list[str] | None) -> bool:
    return versions is None or VERSION in versions
