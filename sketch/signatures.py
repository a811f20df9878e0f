"""The nodes of a ComfyUI 0.33.0 and their inputs, read from `nodes.json`, and the lists of model files. Both files are
read again when they change. Nodes learned from another ComfyUI are offered as that one has them, and those that only the
documentation describes as it does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dynamic_inputs import AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE, expand_inputs
from sketch.shared_files import read_files, read_nodes

VERSION = "0.33.0"
VALUE_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
INPUT_FOLDER = "input"


@dataclass(frozen=True)
class Input:
    """One input of a node. `is_file` instead of `choices` if the allowed values are files: those in `folder`, or in any
    folder if it is not known. `also` are further allowed values."""

    type: str
    optional: bool = False
    choices: tuple[str, ...] = ()
    is_file: bool = False
    folder: str | None = None
    also: tuple[str, ...] = ()
    any_value: bool = False
    """ComfyUI does not check the value against a list."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """default, min, max, step"""
    options: Mapping[str, Mapping[str, Input]] | None = None
    """choice of a dynamic combo -> the inputs that it adds"""
    grown_names: tuple[str, ...] = ()
    """The names that an auto-grown input can grow to"""
    grown_template: Input | None = None
    grown_minimum: int = 0
    match: str | None = None
    match_types: str = "*"

    @property
    def is_plain(self) -> bool:
        """Whether its value is written in the graph instead of linked from another node."""
        return self.type in VALUE_TYPES or self.options is not None

    def grown(self, index: int) -> Input:
        template = self.grown_template or Input("*")
        return replace(template, optional=template.optional or index >= self.grown_minimum)


@dataclass(frozen=True)
class Node:
    """The signature of a node class."""

    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    output_node: bool
    output_matches: tuple[str | None, ...] = ()
    """For each output, the match of the inputs whose type it has; empty if there are none"""

    def inputs_for(self, values: Any) -> Mapping[str, Input]:
        """The inputs that a node with these values has in an API graph, by full name."""
        if not any(node_input.options or node_input.grown_names for node_input in self.inputs.values()):
            return self.inputs
        return expand_inputs(self.inputs, values)

    def match_of(self, output: int) -> str | None:
        """The match of an output, or None."""
        return self.output_matches[output] if output < len(self.output_matches) else None


Version = tuple[int, int, int]
"""Inode, modification time and size of a file: equal versions mean equal content"""


def _version_of(path: Path) -> Version | None:
    """None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class FileLists:
    """The model files by folder, from a JSON file that is read again when it changes. While the file is missing or
    damaged, they are what it was before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: Version | None = None
        self._lists: dict[str, list[str]] = {}

    def lists(self) -> dict[str, list[str]]:
        """Sorted names by folder."""
        version = _version_of(self._path)
        if version is not None and version != self._version:
            self._version = version
            with contextlib.suppress(OSError, ValueError):
                self._lists = read_files(self._path)
        return self._lists


class Signatures:
    """All nodes of this engine. `input_names` returns the names of the images in the input folder."""

    def __init__(self, path: Path, files: FileLists, input_names: Callable[[], list[str]]) -> None:
        self._path, self._files, self._input_names = path, files, input_names
        self._nodes: dict[str, Node] = {}
        self._version = _version_of(path)
        self._read()

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The signatures by class. A class once known stays, because a queued job may use it."""
        version = _version_of(self._path)
        if version is not None and version != self._version:
            self._version = version
            # The file may be damaged in any way; what was read before stays.
            with contextlib.suppress(Exception):
                self._read()
        return self._nodes

    def _read(self) -> None:
        document = read_nodes(self._path)
        reader = _Reader({VERSION, *document.get("learned", ()), *document.get("documented", ())})
        self._nodes = {
            **self._nodes,
            **{name: reader.node(entry) for name, entry in document["nodes"].items()},
        }

    def choices(self, node_input: Input) -> list[str]:
        """The values that a COMBO allows now."""
        if node_input.folder == INPUT_FOLDER:
            return self._input_names()
        if node_input.is_file:
            lists = self._files.lists()
            folders = [node_input.folder] if node_input.folder else list(lists)
            return [*node_input.also, *(name for folder in folders for name in lists.get(folder, ()))]
        return list(node_input.choices)

    def config(self, node_input: Input) -> list[Any]:
        """An input as in `/object_info`: its type, or its list of choices, and the options."""
        settings = dict(node_input.settings)
        if node_input.options is not None:
            options = [
                {"key": key, "inputs": self._groups(inputs)} for key, inputs in node_input.options.items()
            ]
            return [node_input.type, {"options": options, **settings}]
        if node_input.grown_template is not None:
            template = {
                "input": self._groups({"value": node_input.grown_template}),
                "names": list(node_input.grown_names),
                "min": node_input.grown_minimum,
            }
            return [node_input.type, {"template": template}]
        if node_input.match is not None:
            types = {"template_id": node_input.match, "allowed_types": node_input.match_types}
            return [node_input.type, {"template": types}]
        return [self.choices(node_input) if node_input.type == "COMBO" else node_input.type, settings]

    def _groups(self, inputs: Mapping[str, Input]) -> dict[str, dict[str, Any]]:
        """Inputs as in `/object_info`, the required ones and the optional ones."""
        groups = {
            kind: {key: self.config(i) for key, i in inputs.items() if i.optional is optional}
            for kind, optional in {"required": False, "optional": True}.items()
        }
        return {kind: entries for kind, entries in groups.items() if entries or kind == "required"}

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
        inputs = self._groups(node.inputs)
        return {
            "input": inputs,
            "input_order": {kind: list(entries) for kind, entries in inputs.items()},
            "output": list(node.outputs),
            "output_is_list": [False] * len(node.outputs),
            "output_name": list(node.outputs),
            **({"output_matchtypes": list(node.output_matches)} if node.output_matches else {}),
            "name": name,
            "display_name": name,
            "description": "",
            "python_module": "sketch",
            "category": "sketch",
            "output_node": node.output_node,
        }


class _Reader:
    """Reads the records of nodes.json, without what only other versions of ComfyUI have."""

    def __init__(self, versions: set[str]) -> None:
        self._versions = versions

    def node(self, entry: Mapping[str, Any]) -> Node:
        return Node(
            self._inputs(entry["inputs"]),
            tuple(entry["outputs"]),
            bool(entry["output_node"]),
            tuple(entry.get("output_matches", ())),
        )

    def _inputs(self, entries: Mapping[str, Any]) -> dict[str, Input]:
        return {
            name: self._input(data) for name, data in entries.items() if self._is_offered(data.get("only_in"))
        }

    def _input(self, data: Mapping[str, Any]) -> Input:
        versions = data.get("choices_in", {})
        choices = tuple(
            choice for choice in data.get("choices", ()) if self._is_offered(versions.get(str(choice)))
        )
        settings = {key: data[key] for key in ("default", "min", "max", "step") if key in data}
        flags = {
            "image_upload": data.get("folder") == INPUT_FOLDER,
            "multiselect": data.get("several"),
            "socketless": data.get("widget"),
        }
        settings |= {name: True for name, is_set in flags.items() if is_set}
        is_file = "folder" in data or data.get("file", False)
        plain = Input(
            data["type"],
            bool(data.get("optional")),
            choices,
            is_file=is_file,
            folder=data.get("folder"),
            also=tuple(data.get("also", ())),
            any_value=data.get("any_value", False)
            or (data["type"] == "COMBO" and not is_file and "choices" not in data),
            settings=settings,
        )
        return self._dynamic(data, plain)

    def _dynamic(self, data: Mapping[str, Any], plain: Input) -> Input:
        if data["type"] == DYNAMIC_COMBO:
            options = {
                option["key"]: self._inputs(option["inputs"])
                for option in data["options"]
                if self._is_offered(option.get("only_in"))
            }
            return replace(plain, choices=tuple(options), options=options)
        if data["type"] == AUTOGROW:
            return replace(
                plain,
                settings={},
                grown_names=tuple(data["names"]),
                grown_template=self._input(data["template"]),
                grown_minimum=data["min"],
            )
        if data["type"] == MATCH_TYPE:
            return replace(plain, match=data["match"], match_types=data["types"])
        return plain

    def _is_offered(self, versions: list[str] | None) -> bool:
        return versions is None or bool(self._versions & set(versions))
