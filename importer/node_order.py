"""The nodes of a graph in an order that follows from links and values alone, so that neither the ids nor the order of the
file decide what is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from compiler.links import is_link, sources_of
from compiler.values import Nodes
from errors import WorkflowNotImportable, shorten

_MAX_NAMED = 8


def in_order_of_links(nodes: Nodes) -> Nodes:
    """`nodes` with each one after those that feed it, in the order of its inputs. Raises WorkflowNotImportable if links go
    in a circle."""
    _check_for_circles(nodes)
    digests = _digests(nodes)
    used = {source for node in nodes for source in sources_of(nodes, node)}
    starts = sorted(nodes.keys() - used, key=lambda node: digests[node])
    return {node: nodes[node] for node in sources_first(nodes, starts)}


def _check_for_circles(nodes: Nodes) -> None:
    try:
        TopologicalSorter({node: set(sources_of(nodes, node)) for node in nodes}).prepare()
    except CycleError as error:
        circle = " -> ".join(shorten(node, 40) for node in error.args[1][:_MAX_NAMED])
        raise WorkflowNotImportable(
            f"The links of the workflow go in a circle: {circle}. Open it in ComfyUI and remove one of them."
        ) from error


def sources_first(nodes: Nodes, starts: Iterable[str]) -> list[str]:
    """The nodes that `starts` depend on, themselves included, each after those that feed it."""
    ordered: dict[str, None] = {}
    entered: set[str] = set()
    for start in starts:
        pending = [(start, False)]
        while pending:
            node, is_done = pending.pop()
            if is_done:
                ordered[node] = None
            elif node not in entered:
                entered.add(node)
                pending.append((node, True))
                pending += [(source, False) for source in reversed(list(sources_of(nodes, node)))]
    return list(ordered)


def _digests(nodes: Nodes) -> dict[str, str]:
    """node -> a text that is equal for nodes that get the same values from equal nodes"""
    digests: dict[str, str] = {}
    for node in sources_first(nodes, nodes):
        entry = nodes[node]
        inputs = {
            name: [digests[value[0]], value[1]] if is_link(value, nodes) else value
            for name, value in entry["inputs"].items()
        }
        text = json.dumps([entry["class_type"], inputs], sort_keys=True)
        digests[node] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return digests
