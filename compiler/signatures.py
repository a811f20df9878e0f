"""Node signatures: inputs, types, ranges, choices and outputs. They are stored in `schemas/nodes.json`, which is
generated from the `/object_info` of one or more ComfyUI versions, so that adding a node needs no Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FileFolders = Mapping[str, Mapping[str, str]]
"""node class -> input -> folder of ComfyUI's models directory, as in `schemas/files.yaml`"""


@dataclass(frozen=True)
class InputSignature:
    """One input of a node. `type` is a type name of ComfyUI: MODEL, LATENT, INT, FLOAT, STRING, BOOLEAN, COMBO, …"""

    type: str
    required: bool = True
    default: Any = None
    has_default: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    folder: str | None = None
    """Set if the choices are the files in a folder of the engine, which only the engine knows."""
    only_in: tuple[str, ...] = ()
    """The ComfyUI versions that have this input; empty if all have it."""


@dataclass(frozen=True)
class NodeSignature:
    inputs: Mapping[str, InputSignature] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_node: bool = False


Signatures = Mapping[str, NodeSignature]


def parse_signatures(document: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """Parse the content of `schemas/nodes.json` to signatures by node class."""
    return {name: _node(entry) for name, entry in document["nodes"].items()}


def parse_object_info(entries: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """Parse `/object_info` entries of any ComfyUI version to signatures by node class."""
    return {name: _node(_node_entry(entry)) for name, entry in entries.items()}


def _node(entry: Mapping[str, Any]) -> NodeSignature:
    return NodeSignature(
        inputs={name: _input(input_entry) for name, input_entry in entry["inputs"].items()},
        outputs=tuple(entry["outputs"]),
        output_node=entry.get("output_node", False),
    )


def _input(entry: Mapping[str, Any]) -> InputSignature:
    return InputSignature(
        type=entry["type"],
        required=not entry.get("optional", False),
        default=entry.get("default"),
        has_default="default" in entry,
        minimum=entry.get("min"),
        maximum=entry.get("max"),
        choices=tuple(entry["choices"]) if "choices" in entry else None,
        folder=entry.get("folder"),
        only_in=tuple(entry.get("only_in", ())),
    )


# --- recording signatures of an engine ------------------------------------------------------------


def record_signatures(
    known: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    version: str,
    classes: Iterable[str],
    folders: FileFolders,
) -> dict[str, Any]:
    """`known` (the content of nodes.json) updated with the `object_info` of `version` for these node classes.

    Inputs and choices that not all versions have are marked with the versions that have them. A class that this version
    does not have keeps its entry.
    """
    versions = sorted({*known["versions"], version}, key=_version_key)
    nodes = dict(known["nodes"])
    for name in sorted(classes):
        if name in object_info:
            entry = _without_files(_node_entry(object_info[name]), folders.get(name, {}))
            known_versions = known["versions"] if name in nodes else []
            nodes[name] = _merge(nodes.get(name), entry, version, [v for v in known_versions if v != version])
    return {"versions": versions, "nodes": dict(sorted(nodes.items()))}


def _version_key(version: str) -> tuple[tuple[int, Any], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in version.split("."))


def _node_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in entry["input"].get(group, {}).items():
            inputs[name] = _input_entry(spec, optional=group == "optional")
    return {"inputs": inputs, "outputs": list(entry["output"]), "output_node": bool(entry["output_node"])}


def _input_entry(spec: list[Any], *, optional: bool) -> dict[str, Any]:
    kind, options = spec[0], (spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
    entry: dict[str, Any] = {"type": "COMBO" if isinstance(kind, list) else kind}
    # ComfyUI versions write a list of choices in two ways: [[a, b], {…}] and ["COMBO", {"options": [a, b]}].
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None:
        entry["choices"] = list(choices)
    entry |= {key: options[key] for key in ("default", "min", "max", "step") if key in options}
    if optional:
        entry["optional"] = True
    return entry


def _without_files(entry: dict[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """`entry` with the folder in place of the choices of each input that names a file."""
    for name, folder in folders.items():
        if name in entry["inputs"]:
            input_entry = entry["inputs"][name]
            input_entry.pop("choices", None)
            input_entry.pop("default", None)
            input_entry["folder"] = folder
    return entry


def _merge(
    old: Mapping[str, Any] | None, new: dict[str, Any], version: str, other_versions: list[str]
) -> dict[str, Any]:
    if old is None or not other_versions:
        return new
    inputs: dict[str, Any] = {}
    for name in [*old["inputs"], *(n for n in new["inputs"] if n not in old["inputs"])]:
        old_input, new_input = old["inputs"].get(name), new["inputs"].get(name)
        if old_input is None:
            inputs[name] = {**new_input, "only_in": [version]}
        elif new_input is None:
            remaining = [v for v in old_input.get("only_in", other_versions) if v != version]
            inputs[name] = {**old_input, "only_in": remaining}
        else:
            inputs[name] = _merge_input(old_input, new_input, version, other_versions)
    kept = {name: entry for name, entry in inputs.items() if entry.get("only_in") != []}
    return {**new, "inputs": kept}


def _merge_input(
    old: Mapping[str, Any], new: Mapping[str, Any], version: str, other_versions: list[str]
) -> dict[str, Any]:
    merged = dict(new)
    if "only_in" in old:
        merged["only_in"] = sorted({*old["only_in"], version}, key=_version_key)
        if set(merged["only_in"]) == {*other_versions, version}:
            del merged["only_in"]
    if "choices" in old and "choices" in new:
        merged |= _merge_choices(old, new["choices"], version, other_versions)
    return merged


def _merge_choices(
    old: Mapping[str, Any], new_choices: list[Any], version: str, other_versions: list[str]
) -> dict[str, Any]:
    versions_of: dict[Any, set[str]] = {
        choice: {v for v in old.get("choices_in", {}).get(str(choice), other_versions) if v != version}
        for choice in old["choices"]
    }
    for choice in new_choices:
        versions_of.setdefault(choice, set()).add(version)
    all_versions = {*other_versions, version}
    choices_in = {
        str(choice): sorted(versions, key=_version_key)
        for choice, versions in versions_of.items()
        if versions and versions != all_versions
    }
    merged: dict[str, Any] = {"choices": [choice for choice, versions in versions_of.items() if versions]}
    if choices_in:
        merged["choices_in"] = choices_in
    return merged
