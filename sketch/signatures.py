"""What nodes exist and what may be put into them: `nodes.json` read as a ComfyUI 0.3.64, and the lists of weight files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "0.3.64"
PLAIN_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
UPLOADS = "input"


@dataclass(frozen=True)
class Input:
    """One input of a node. `folder` instead of `choices` where the allowed values are files."""

    type: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    folder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether its value stands in the graph, rather than coming from another node."""
        return self.type in PLAIN_TYPES


@dataclass(frozen=True)
class Node:
    """The signature of a node class."""

    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    output_node: bool


class FileLists:
    """Which files of weights there are, by folder; read again when the JSON file changes, empty while it is absent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._lists: dict[str, list[str]] = {}

    def lists(self) -> dict[str, list[str]]:
        """Sorted names by folder."""
        try:
            found = self._path.stat()
        except OSError:
            self._seen, self._lists = None, {}
            return self._lists
        if (found.st_mtime_ns, found.st_size) != self._seen:
            self._lists = {
                folder: sorted(names) for folder, names in json.loads(self._path.read_text()).items()
            }
            self._seen = (found.st_mtime_ns, found.st_size)
        return self._lists


class Signatures:
    """Every node this engine has. `uploads` lists the images in the input folder."""

    def __init__(self, path: Path, files: FileLists, uploads: Callable[[], list[str]]) -> None:
        found = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        self.nodes: dict[str, Node] = {name: _node(entry) for name, entry in found.items()}
        self._files, self._uploads = files, uploads

    def choices(self, given: Input) -> list[str]:
        """The values that a COMBO allows at this moment."""
        if given.folder == UPLOADS:
            return self._uploads()
        return self._files.lists().get(given.folder, []) if given.folder else list(given.choices)

    def config(self, given: Input) -> list[Any]:
        """An input as `/object_info` tells it: its type, or its list of choices, and the options."""
        return [self.choices(given) if given.type == "COMBO" else given.type, dict(given.options)]

    def folders(self) -> dict[str, list[str]]:
        """Files by folder, for every folder that a node reads or that was listed."""
        named: dict[str, list[str]] = {
            i.folder: [] for node in self.nodes.values() for i in node.inputs.values() if i.folder
        }
        return {
            folder: names for folder, names in ({**named, **self._files.lists()}).items() if folder != UPLOADS
        }

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
    inputs = {name: _input(given) for name, given in entry["inputs"].items() if _here(given.get("only_in"))}
    return Node(inputs, tuple(entry["outputs"]), bool(entry["output_node"]))


def _input(given: Mapping[str, Any]) -> Input:
    elsewhere = given.get("choices_in", {})
    choices = tuple(choice for choice in given.get("choices", ()) if _here(elsewhere.get(choice)))
    options = {key: given[key] for key in ("default", "min", "max", "step") if key in given}
    if given.get("folder") == UPLOADS:
        options["image_upload"] = True
    return Input(given["type"], bool(given.get("optional")), choices, given.get("folder"), options)


def _here(versions: list[str] | None) -> bool:
    return versions is None or VERSION in versions
