"""The types of links in a graph. An output with a match type has the type of what is linked to the node's inputs of the
same match, which may come from such an output itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.signatures import Signatures
from dynamic_inputs import is_link

ANY = "*"

Output = tuple[str, int]
"""node id, output index"""


class LinkTypes:
    """The types of the outputs of one graph's nodes. Each is found once, without recursion: a graph may be long."""

    def __init__(self, nodes: Mapping[str, Any], signatures: Signatures) -> None:
        self._nodes, self._signatures = nodes, signatures
        self._types: dict[Output, str] = {}

    def of(self, output: Output) -> str:
        """The type of an output; `*` if it can be any, or if there is no such output."""
        if not self._signatures[self._class_of(output[0])].output_matches:
            return self._declared(output)
        pending, waiting = [output], set()
        while pending:
            current = pending[-1]
            links = [link for _, link in self._links_that_decide(current)]
            unknown = [link for link in links if link not in self._types and link not in waiting]
            if unknown and current not in self._types:
                waiting.add(current)
                pending += unknown
                continue
            pending.pop()
            found = [self._types.get(link, ANY) for link in links]
            own = self._declared(current)
            self._types.setdefault(current, next((kind for kind in found if kind != ANY), own))
        return self._types[output]

    def conflict(self, node_id: str) -> tuple[str, str, str] | None:
        """If links of one match have different types: the name of the second input, its type, and that of the first."""
        matches = self._signatures[self._class_of(node_id)].output_matches
        for match in dict.fromkeys(filter(None, matches)) if matches else ():
            first: str | None = None
            for name, link in self._matched_links(node_id, match):
                kind = self.of(link)
                if kind == ANY:
                    continue
                if first is not None and not set(kind.split(",")) & set(first.split(",")):
                    return name, kind, first
                first = first or kind
        return None

    def _class_of(self, node_id: str) -> str:
        return str(self._nodes[node_id]["class_type"])

    def _declared(self, output: Output) -> str:
        """The type that the signature gives; `*` for one that its inputs decide."""
        signature, index = self._signatures[self._class_of(output[0])], output[1]
        exists = 0 <= index < len(signature.outputs)
        return signature.outputs[index] if exists and signature.match_of(index) is None else ANY

    def _links_that_decide(self, output: Output) -> list[tuple[str, Output]]:
        signature = self._signatures[self._class_of(output[0])]
        match = signature.match_of(output[1]) if output[1] >= 0 else None
        return list(self._matched_links(output[0], match)) if match is not None else []

    def _matched_links(self, node_id: str, match: str) -> Iterator[tuple[str, Output]]:
        """The inputs of a match that are linked to existing nodes, with their links."""
        values = self._nodes[node_id]["inputs"]
        for name, signature in self._signatures[self._class_of(node_id)].inputs_for(values).items():
            link = values.get(name)
            if signature.match == match and is_link(link) and link[0] in self._nodes:
                yield name, (link[0], link[1])
