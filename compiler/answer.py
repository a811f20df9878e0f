"""Which node of a graph delivers the answer, and the part of the graph that this node depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compiler.check import GraphError
from compiler.links import upstream
from compiler.signatures import Signatures
from compiler.values import Nodes
from errors import GraphInvalid, shorten

SAVING_CLASSES = ("SaveImage", "SaveImageAdvanced", "SaveImageWebsocket")
"""The nodes that count as the answer by themselves. Others, such as PreviewImage, only if the workflow names them."""

_MAX_CANDIDATES = 10


def find_output(
    nodes: Nodes, signatures: Signatures, *, template: str, entry: str, declared: str | None
) -> str:
    """The id of the node whose pictures are the answer: `declared`, or the only node that saves a picture.

    Raises GraphInvalid, which names the candidates and the line to write under `entry`, such as `workflows.mine in
    catalogue.yaml`.
    """
    outputs = [node_id for node_id, node in nodes.items() if _is_output(node, signatures)]
    saving = [node_id for node_id, node in nodes.items() if node["class_type"] in SAVING_CLASSES]
    if declared is None and len(saving) == 1:
        return saving[0]
    if declared is not None and (declared in outputs or _is_unknown(nodes.get(declared), signatures)):
        return declared
    raise _no_answer(nodes, saving or outputs, template=template, entry=entry, declared=declared)


def _is_output(node: Mapping[str, Any], signatures: Signatures) -> bool:
    signature = signatures.get(node["class_type"])
    return node["class_type"] in SAVING_CLASSES or (signature is not None and signature.output_node)


def _is_unknown(node: Mapping[str, Any] | None, signatures: Signatures) -> bool:
    """Whether the node's class is not known, which the check of the graph reports."""
    return node is not None and node["class_type"] not in signatures


def _no_answer(
    nodes: Nodes, candidates: list[str], *, template: str, entry: str, declared: str | None
) -> GraphInvalid:
    named = ", ".join(describe(nodes, node_id) for node_id in candidates[:_MAX_CANDIDATES])
    if not candidates:
        allowed, given = "a node such as SaveImage", ", ".join(nodes) or "no nodes"
        message = "no node delivers a picture; add a SaveImage node"
    else:
        line = f"`output: {json.dumps(candidates[0])}`"
        allowed, given = f"one of {named}", declared or named
        remedy = f"write {line} (or another of {named}) under {entry}"
        if len(candidates) == 1:
            remedy = f"write {line} under {entry}"
        if declared is None and any(nodes[node_id]["class_type"] in SAVING_CLASSES for node_id in candidates):
            message = f"several nodes save a picture: {named}; {remedy}"
        elif declared is None:
            message = f"no node saves a picture, only {named}; add a SaveImage node, or {remedy}"
        elif declared in nodes:
            message = f"`output` names {describe(nodes, declared)}, which delivers no picture; {remedy}"
        else:
            message = f"`output` names a node {declared!r} that does not exist; {remedy}"
    error = GraphError(template, declared or "", None, shorten(given, 120), allowed, message)
    return GraphInvalid(f"{template}: {message}", errors=[asdict(error)])


def describe(nodes: Nodes, node_id: str) -> str:
    """A node as messages name it, such as `node '9' (SaveImage)`."""
    return f"node {node_id!r} ({nodes[node_id]['class_type']})"


# --- the part that counts ----------------------------------------------------------------------------

Part = dict[str, tuple[str, Mapping[str, Any]]]
"""node id -> class and inputs, of the nodes that the answer depends on"""


def answer_part(nodes: Nodes, output: str) -> Part:
    """What decides the pictures of `output`: classes and inputs of it and of all nodes upstream of it."""
    return {
        node_id: (nodes[node_id]["class_type"], nodes[node_id]["inputs"])
        for node_id in upstream(nodes, [output])
    }
