"""The nodes of a graph in an order that follows from links and values alone, so that neither the ids nor the order of the
file decide what is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from compiler.links import is_link, sources_of
from compiler.values import Nodes

_CIRCLE = "circle"


def in_order_of_links(nodes: Nodes) -> Nodes:
    """`nodes` with each one after those that feed it, in the order of its inputs."""
    digests = _digests(nodes)
    used = {source for node in nodes for source in sources_of(nodes, node)}
    # Those that nothing uses come first; only nodes in a circle are not behind them.
    starts = sorted(nodes, key=lambda node: (node in used, digests[node]))
    return {node: nodes[node] for node in sources_first(nodes, starts)}


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
            name: [digests.get(value[0], _CIRCLE), value[1]] if is_link(value, nodes) else value
            for name, value in entry["inputs"].items()
        }
        text = json.dumps([entry["class_type"], inputs], sort_keys=True)
        digests[node] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return digests
