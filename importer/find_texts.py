"""Finds the texts that a user would write: the prompt and the negative prompt.

From the sampler, the conditioning is followed to the nodes that encode text, and their text to the literal that decides
it: behind switches, concatenations, replacements, and language models that rewrite it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from importer.graph_view import GraphView, Output, Place

_ZERO = "ConditioningZeroOut"
_PARAMETERS = frozenset(
    {"find", "delimiter", "regex_pattern", "key", "system_prompt", "mode", "negative_prompt"}
)
"""Inputs of nodes that work on texts which are never the text itself"""
_INSERTED = "replace"
"""The text that a replacement puts into another, which is then only the frame"""


@dataclass(frozen=True)
class FoundText:
    """`places` all get the text. `others`: further places that could be meant. `rewritten`: a language model changes it."""

    places: tuple[Place, ...]
    others: tuple[Place, ...] = ()
    rewritten: bool = False

    @property
    def place(self) -> Place:
        return self.places[0]

    @property
    def is_sure(self) -> bool:
        return not self.others


@dataclass(frozen=True)
class _Leaf:
    place: Place
    is_held: bool
    """It stands in a node that only holds a value, as for a value that people change"""
    is_frame: bool
    """Other text is put into it"""
    is_inserted: bool
    """It is put into other text"""
    steps: int
    """How many nodes work on the text behind it"""


def find_text(graph: GraphView, sampler: str, *, negative: bool = False) -> FoundText | None:
    """The text of the sampler's positive or negative conditioning; None if it has none."""
    encoders = list(dict.fromkeys(_encoders(graph, sampler, negative)))
    if not encoders:
        return None
    node = encoders[0]
    found = [_text_at(graph, place) for place in _text_inputs(graph, node, negative)]
    texts = [text for text in found if text is not None]
    if not texts:
        return None
    best = max(texts, key=lambda text: len(str(graph.value(text.place) or "")))
    places = tuple(dict.fromkeys((best.place, *(text.place for text in texts))))
    return FoundText(places, best.others, best.rewritten)


# --- from the sampler to the encoders ---


def _encoders(graph: GraphView, sampler: str, negative: bool) -> Iterator[str]:
    for name in graph.named(sampler, "GUIDER"):
        producer = graph.producer((sampler, name))
        if producer is not None:
            yield from _encoders_behind(graph, producer[0], negative)
    yield from _encoders_behind(graph, sampler, negative)


def _encoders_behind(graph: GraphView, node: str, negative: bool) -> Iterator[str]:
    names = [name for name in graph.named(node, "CONDITIONING") if ("neg" in name) == negative]
    for name in names[:1]:
        yield from _follow(graph, graph.producer((node, name)), negative, set())


def _follow(graph: GraphView, output: Output | None, negative: bool, seen: set[Output]) -> Iterator[str]:
    if output is None or output in seen:
        return
    seen.add(output)
    node, slot = output
    if graph.node_class(node) == _ZERO:
        return
    if list(_text_inputs(graph, node, negative)):
        yield node
        return
    for name in _passed(graph, node, slot):
        yield from _follow(graph, graph.producer((node, name)), negative, seen)


def _passed(graph: GraphView, node: str, slot: int) -> list[str]:
    """The conditioning that an output of a node is made from: if several come and go, the one at the same place."""
    names = list(graph.named(node, "CONDITIONING"))
    outputs = [index for index, kind in enumerate(graph.output_types(node)) if kind == "CONDITIONING"]
    if len(outputs) > 1 and slot in outputs and outputs.index(slot) < len(names):
        return [names[outputs.index(slot)]]
    return names


def _text_inputs(graph: GraphView, node: str, negative: bool) -> Iterator[Place]:
    """The inputs for text of a node that encodes it; of a node for both texts, those for one of them."""
    inputs = graph.inputs(node)
    if not any(signature.type == "CLIP" for signature in inputs.values()):
        return
    texts = [name for name, signature in inputs.items() if signature.type == "STRING" and signature.multiline]
    texts = texts or [name for name, signature in inputs.items() if signature.type == "STRING"]
    for_both = any("neg" in name for name in texts) and not all("neg" in name for name in texts)
    for name in texts:
        if name in graph.nodes[node]["inputs"] and (not for_both or ("neg" in name) == negative):
            yield node, name


# --- from an encoder's input to the literal ---


def _text_at(graph: GraphView, place: Place) -> FoundText | None:
    if graph.is_literal(place):
        return FoundText((place,))
    reader = _LeafReader(graph)
    leaves = list(reader.leaves(place))
    if not leaves:
        return None
    leaves = _always_used(graph, place, leaves) or leaves
    inserted = [leaf for leaf in leaves if leaf.is_inserted]
    leaves = inserted or [leaf for leaf in leaves if not leaf.is_frame] or leaves
    leaves = [leaf for leaf in leaves if leaf.is_held] or leaves
    least = min(leaf.steps for leaf in leaves)
    if not inserted:
        leaves = [leaf for leaf in leaves if leaf.steps == least]
    # Where nodes that hold texts are joined, the user's is the last one, since instructions come first. Of literals in the
    # joining node it is the first one, since words of style follow.
    chosen = leaves[-1] if leaves[0].is_held and not inserted else leaves[0]
    others = tuple(leaf.place for leaf in leaves if leaf is not chosen)
    return FoundText((chosen.place,), others, reader.rewritten)


def _always_used(graph: GraphView, place: Place, leaves: list[_Leaf]) -> list[_Leaf]:
    """Those of `leaves` that are also used if a switch on the way is set the other way, as where a text is either rewritten
    or used as it is."""
    other_way = {leaf.place for leaf in _LeafReader(graph, other_side=True).leaves(place)}
    return [leaf for leaf in leaves if leaf.place in other_way]


class _LeafReader:
    """Collects the literals that a text is made from. `other_side`: only through the sides of switches that are off."""

    def __init__(self, graph: GraphView, *, other_side: bool = False) -> None:
        self._graph, self._other_side = graph, other_side
        self._seen: set[Place] = set()
        self.rewritten = False

    def leaves(
        self, place: Place, *, is_frame: bool = False, is_inserted: bool = False, steps: int = 0
    ) -> Iterator[_Leaf]:
        if place in self._seen:
            return
        self._seen.add(place)
        graph = self._graph
        if graph.is_literal(place):
            if isinstance(graph.value(place), str):
                held = len(graph.signature(place[0]).inputs) == 1
                yield _Leaf(place, held, is_frame, is_inserted, steps)
            return
        link = graph.link(place)
        if link is None:
            return
        node = link[0]
        if graph.is_switch(node):
            side = graph.chosen_side(node) or "on_true"
            if self._other_side:
                side = "on_false" if side == "on_true" else "on_true"
            yield from self.leaves((node, side), is_frame=is_frame, is_inserted=is_inserted, steps=steps)
            return
        inputs = graph.inputs(node)
        if any(signature.type == "CLIP" for signature in inputs.values()):
            self.rewritten = True
        single = len(inputs) == 1
        for name, signature in inputs.items():
            if not _carries_text(name, signature.type) or name not in graph.nodes[node]["inputs"]:
                continue
            replaces = _INSERTED in inputs
            yield from self.leaves(
                (node, name),
                is_frame=is_frame or (replaces and name != _INSERTED),
                is_inserted=not is_frame and (is_inserted or (replaces and name == _INSERTED)),
                steps=steps if single else steps + 1,
            )


def _carries_text(name: str, kind: str) -> bool:
    return name not in _PARAMETERS and (kind == "STRING" or kind == "*" or "STRING" in kind.split(","))
