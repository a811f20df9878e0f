"""Node classes and choices that no recorded ComfyUI has, as its documentation and its official workflows describe them:
`schemas/documented_nodes.json`. What an engine says about itself replaces them (`easel snapshot-nodes`).

{"nodes": {class: a record as in nodes.json, and `since`}, "choices": {class: {input: {choice: since}}}}, where `since` is
the oldest ComfyUI that an official workflow with it asks for; a custom node has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.node_records import version_key
from compiler.signatures import Signatures, plain_value
from compiler.versions import is_at_least

DOCUMENTED_NODES = "documented_nodes.json"


def documented_classes(text: str) -> frozenset[str]:
    """The node classes of the file; `text` is its content, or empty."""
    return frozenset(json.loads(text)["nodes"]) if text else frozenset()


def with_documented(known: Mapping[str, Any], learned: Mapping[str, Any], text: str) -> dict[str, Any]:
    """`known` (nodes.json with the learned nodes) with what only the documentation describes; `text` is the content of the
    file, or empty. Its versions are listed as `documented`.

    A class that some engine has is that engine's. A choice that a class learned from an engine of `since` or newer lacks
    was removed, or never existed.
    """
    if not text:
        return dict(known)
    documented = json.loads(text)
    nodes, versions = dict(known["nodes"]), set()
    for name, record in documented["nodes"].items():
        if name not in nodes:
            others = {key: value for key, value in record.items() if key != "since"}
            since = [record["since"]] if "since" in record else []
            nodes[name] = {**others, **({"only_in": since} if since else {}), "documented": True}
            versions.update(since)
    for name, inputs in documented["choices"].items():
        for key, choices in inputs.items():
            entry = nodes.get(name, {}).get("inputs", {}).get(key, {})
            added = {
                choice: since
                for choice, since in choices.items()
                if choice not in entry.get("choices", (choice,)) and not _was_learned(name, since, learned)
            }
            if added:
                nodes[name] = {
                    **nodes[name],
                    "inputs": {**nodes[name]["inputs"], key: _with_choices(entry, added)},
                }
                versions |= set(added.values())
    return {**known, "nodes": nodes, "documented": sorted(versions, key=version_key)}


def _was_learned(name: str, since: str, learned: Mapping[str, Any]) -> bool:
    """Whether an engine of version `since` or newer has described this class."""
    versions = learned["versions"].items()
    return any(name in records and is_at_least(version, since) for version, records in versions)


def _with_choices(entry: Mapping[str, Any], added: Mapping[str, str]) -> dict[str, Any]:
    marks = {choice: [since] for choice, since in added.items()}
    return {
        **entry,
        "choices": [*entry["choices"], *added],
        "choices_in": {**entry.get("choices_in", {}), **marks},
        "documented_choices": list(added),
    }


def unverified_parts(nodes: Mapping[str, Any], signatures: Signatures) -> tuple[str, ...]:
    """The classes and choices of a graph that only the documentation describes, such as `CLIPLoader.type flux3`."""
    return tuple(sorted({part for node in nodes.values() for part in _unverified(node, signatures)}))


def _unverified(node: Mapping[str, Any], signatures: Signatures) -> Iterator[str]:
    signature = signatures.get(node["class_type"])
    if signature is None:
        return
    if signature.documented:
        yield node["class_type"]
    known = signature.inputs_for(node["inputs"])
    for name, value in node["inputs"].items():
        if name in known and plain_value(value) in known[name].documented_choices:
            yield f"{node['class_type']}.{name} {value}"
