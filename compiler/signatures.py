"""What nodes look like: their inputs, ranges, choices and outputs. Facts kept in `schemas/nodes.json`, learnt from
the `/object_info` of one or more ComfyUI versions, so that adding a node needs no Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FileFolders = Mapping[str, Mapping[str, str]]
"""Node class -> input -> folder of the models directory, as in `schemas/files.yaml`."""


@dataclass(frozen=True)
class InputSignature:
    """One input of a node. `type` is ComfyUI's own word: MODEL, LATENT, INT, FLOAT, STRING, BOOLEAN, COMBO, …"""

    type: str
    required: bool = True
    default: Any = None
    has_default: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    folder: str | None = None
    """Set when the choices are files that only the engine knows."""
    only_in: tuple[str, ...] = ()
    """The versions that have this input; empty when all have."""


@dataclass(frozen=True)
class NodeSignature:
    inputs: Mapping[str, InputSignature] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_node: bool = False


Signatures = Mapping[str, NodeSignature]


def parse_signatures(facts: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """The content of `schemas/nodes.json` as signatures by node class."""
    return {name: _node(entry) for name, entry in facts["nodes"].items()}


def parse_object_info(entries: Mapping[str, Any]) -> dict[str, NodeSignature]:
    """Raw `/object_info` entries, of any version, as signatures by node class."""
    return {name: _node(_facts_of(entry)) for name, entry in entries.items()}


def _node(entry: Mapping[str, Any]) -> NodeSignature:
    return NodeSignature(
        inputs={name: _input(facts) for name, facts in entry["inputs"].items()},
        outputs=tuple(entry["outputs"]),
        output_node=entry.get("output_node", False),
    )


def _input(facts: Mapping[str, Any]) -> InputSignature:
    return InputSignature(
        type=facts["type"],
        required=not facts.get("optional", False),
        default=facts.get("default"),
        has_default="default" in facts,
        minimum=facts.get("min"),
        maximum=facts.get("max"),
        choices=tuple(facts["choices"]) if "choices" in facts else None,
        folder=facts.get("folder"),
        only_in=tuple(facts.get("only_in", ())),
    )


# --- learning from an engine ----------------------------------------------------------------------


def learn(
    known: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    version: str,
    wanted: Iterable[str],
    folders: FileFolders,
) -> dict[str, Any]:
    """`known` (the content of nodes.json) with what `object_info` of `version` says of the `wanted` classes.

    Inputs and choices that not every version has are marked with those that have them. A wanted class that
    this version lacks keeps what the others say of it.
    """
    versions = sorted({*known["versions"], version}, key=_version_key)
    nodes = dict(known["nodes"])
    for name in sorted(wanted):
        if name in object_info:
            fresh = _without_files(_facts_of(object_info[name]), folders.get(name, {}))
            seen_in = known["versions"] if name in nodes else []
            nodes[name] = _merge(nodes.get(name), fresh, version, [v for v in seen_in if v != version])
    return {"versions": versions, "nodes": dict(sorted(nodes.items()))}


def _version_key(version: str) -> tuple[tuple[int, Any], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in version.split("."))


def _facts_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in entry["input"].get(group, {}).items():
            inputs[name] = _input_facts(spec, optional=group == "optional")
    return {"inputs": inputs, "outputs": list(entry["output"]), "output_node": bool(entry["output_node"])}


def _input_facts(spec: list[Any], *, optional: bool) -> dict[str, Any]:
    kind, options = spec[0], (spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
    facts: dict[str, Any] = {"type": "COMBO" if isinstance(kind, list) else kind}
    # Two spellings of a list of choices are about: [[a, b], {…}] and ["COMBO", {"options": [a, b]}].
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None:
        facts["choices"] = list(choices)
    facts |= {key: options[key] for key in ("default", "min", "max", "step") if key in options}
    if optional:
        facts["optional"] = True
    return facts


def _without_files(facts: dict[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    for name, folder in folders.items():
        if name in facts["inputs"]:
            entry = facts["inputs"][name]
            entry.pop("choices", None)
            entry.pop("default", None)
            entry["folder"] = folder
    return facts


def _merge(
    old: Mapping[str, Any] | None, new: dict[str, Any], version: str, others: list[str]
) -> dict[str, Any]:
    if old is None or not others:
        return new
    inputs: dict[str, Any] = {}
    for name in [*old["inputs"], *(n for n in new["inputs"] if n not in old["inputs"])]:
        was, now = old["inputs"].get(name), new["inputs"].get(name)
        if was is None:
            inputs[name] = {**new["inputs"][name], "only_in": [version]}
        elif now is None:
            inputs[name] = {**was, "only_in": [v for v in was.get("only_in", others) if v != version]}
        else:
            inputs[name] = _merge_input(was, now, version, others)
    kept = {name: facts for name, facts in inputs.items() if facts.get("only_in") != []}
    return {**new, "inputs": kept}


def _merge_input(
    was: Mapping[str, Any], now: Mapping[str, Any], version: str, others: list[str]
) -> dict[str, Any]:
    merged = dict(now)
    if "only_in" in was:
        merged["only_in"] = sorted({*was["only_in"], version}, key=_version_key)
        if set(merged["only_in"]) == {*others, version}:
            del merged["only_in"]
    if "choices" in was and "choices" in now:
        merged |= _merge_choices(was, now["choices"], version, others)
    return merged


def _merge_choices(was: Mapping[str, Any], now: list[Any], version: str, others: list[str]) -> dict[str, Any]:
    has: dict[Any, set[str]] = {
        choice: {v for v in was.get("choices_in", {}).get(str(choice), others) if v != version}
        for choice in was["choices"]
    }
    for choice in now:
        has.setdefault(choice, set()).add(version)
    every = {*others, version}
    some = {str(choice): sorted(v, key=_version_key) for choice, v in has.items() if v and v != every}
    merged: dict[str, Any] = {"choices": [choice for choice, v in has.items() if v]}
    if some:
        merged["choices_in"] = some
    return merged
