"""The links between the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from compiler.values import Nodes


def upstream(nodes: Nodes, outputs: Iterable[str]) -> set[str]:
    """The nodes that `outputs` depend on, themselves included."""
    found: set[str] = set()
    pending = list(outputs)
    while pending:
        node_id = pending.pop()
        if node_id not in found:
            found.add(node_id)
            pending += [
                value[0]
                for value in nodes[node_id]["inputs"].values()
                if isinstance(value, list) and is_link(value, nodes)
            ]
    return found


def sources_of(nodes: Nodes, node_id: str) -> Iterator[str]:
    """The nodes that a node's inputs are linked to."""
    for value in nodes[node_id]["inputs"].values():
        if is_link(value, nodes):
            yield value[0]


def is_link(value: Any, nodes: Nodes) -> bool:
    """Whether the value of an input is a link to a node of the graph."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and type(value[1]) is int
        and value[0] in nodes
    )
