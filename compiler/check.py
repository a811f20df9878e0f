"""Is this graph one that ComfyUI runs as meant? Proved from the node signatures alone, before any engine is asked.

Stricter than ComfyUI where it is careless: it drops an input name that the node lacks, takes a plain value where a link
is wanted and fails later, turns any text into true, and dies of an unconnected node without inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compiler.signatures import InputSignature, NodeSignature, Signatures
from errors import GraphInvalid, shorten

# Types whose values are written in the graph itself; every other type can only come through a link.
PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "COMBO": (str, int, float, bool),
}


@dataclass(frozen=True)
class GraphError:
    """One thing that is wrong, and where. `given` and `allowed` are short texts."""

    template: str
    node: str
    input: str | None
    given: str
    allowed: str
    message: str

    def __str__(self) -> str:
        place = f"{self.template}: node {self.node!r}" + (f", input {self.input!r}" if self.input else "")
        return f"{place}: {self.message} (given: {self.given}; allowed: {self.allowed})"


def check(nodes: Mapping[str, Any], signatures: Signatures, template: str) -> None:
    """Raises GraphInvalid with every fault of the graph."""
    errors = list(find_errors(nodes, signatures, template))
    if errors:
        raise GraphInvalid("\n".join(map(str, errors)), errors=[asdict(error) for error in errors])


def find_errors(nodes: Mapping[str, Any], signatures: Signatures, template: str) -> Iterator[GraphError]:
    """Every fault of the graph; the shape of nodes first, then their inputs, then the whole."""
    say = _Reporter(template)
    sound = True
    for node_id, node in nodes.items():
        for error in _shape_errors(node_id, node, signatures, say):
            sound = False
            yield error
    if not sound:
        return
    for node_id, node in nodes.items():
        yield from _input_errors(node_id, node, nodes, signatures, say)
    yield from _whole_errors(nodes, signatures, say)


@dataclass(frozen=True)
class _Reporter:
    template: str

    def __call__(self, node: str, name: str | None, given: Any, allowed: str, message: str) -> GraphError:
        text = given if isinstance(given, str) else repr(given)
        return GraphError(self.template, node, name, shorten(text, 120), allowed, message)


def _shape_errors(node_id: str, node: Any, signatures: Signatures, say: _Reporter) -> Iterator[GraphError]:
    if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
        yield say(node_id, None, node, '{"class_type": …, "inputs": {…}}', "not a node")
        return
    if not isinstance(node.get("inputs"), dict):
        yield say(node_id, None, node.get("inputs"), "an object", "a node needs an object of inputs")
    for extra in sorted(set(node) - {"class_type", "inputs", "_meta"}):
        yield say(node_id, None, extra, "class_type, inputs, _meta", "a node has no such key")
    if node["class_type"] not in signatures:
        yield say(
            node_id,
            None,
            node["class_type"],
            "a class of schemas/nodes.json (flask snapshot-nodes adds one)",
            "unknown node class",
        )


# --- inputs ---------------------------------------------------------------------------------------


def _input_errors(
    node_id: str, node: Mapping[str, Any], nodes: Mapping[str, Any], signatures: Signatures, say: _Reporter
) -> Iterator[GraphError]:
    signature = signatures[node["class_type"]]
    for name, known in signature.inputs.items():
        if name not in node["inputs"] and known.required and not known.only_in:
            yield say(node_id, name, "nothing", _describe(known), "a required input is missing")
    for name, value in node["inputs"].items():
        known_input = signature.inputs.get(name)
        if known_input is None:
            yield say(node_id, name, value, ", ".join(signature.inputs), "the node has no such input")
        elif isinstance(value, list):
            yield from _link_errors(node_id, name, value, known_input, nodes, signatures, say)
        else:
            yield from _value_errors(node_id, name, value, known_input, say)


def _link_errors(
    node_id: str,
    name: str,
    link: list[Any],
    known: InputSignature,
    nodes: Mapping[str, Any],
    signatures: Signatures,
    say: _Reporter,
) -> Iterator[GraphError]:
    if len(link) != 2 or not isinstance(link[0], str) or type(link[1]) is not int:
        yield say(node_id, name, link, "[node id, output index]", "not a link")
        return
    source, index = link
    if source not in nodes:
        yield say(node_id, name, link, ", ".join(nodes), "the link points at a node that is not there")
        return
    outputs = signatures[nodes[source]["class_type"]].outputs
    if not 0 <= index < len(outputs):
        listed = ", ".join(f"{i}: {kind}" for i, kind in enumerate(outputs)) or "no outputs"
        yield say(node_id, name, link, listed, "the link points at an output that is not there")
    elif not _fits(outputs[index], known.type):
        yield say(
            node_id, name, f"{link} of type {outputs[index]}", known.type, "the link has the wrong type"
        )


def _fits(output: str, wanted: str) -> bool:
    # ComfyUI writes "*" for anything and "A,B" for one of several; its COMFY_… types are opaque to us.
    if "*" in (output, wanted) or wanted.startswith("COMFY_"):
        return True
    return bool(set(output.split(",")) & set(wanted.split(",")))


def _value_errors(
    node_id: str, name: str, value: Any, known: InputSignature, say: _Reporter
) -> Iterator[GraphError]:
    kinds = PLAIN_TYPES.get(known.type)
    if kinds is None:
        if not known.type.startswith("COMFY_") and known.type != "*":
            yield say(
                node_id, name, value, f"a link of type {known.type}", "a plain value where a link is wanted"
            )
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield say(node_id, name, value, _describe(known), "a value of the wrong type")
    elif known.choices is not None and value not in known.choices:
        yield say(node_id, name, value, _describe(known), "not among the choices")
    elif _is_beyond(value, known):
        yield say(node_id, name, value, _describe(known), "outside the range")


def _is_beyond(value: Any, known: InputSignature) -> bool:
    below = known.minimum is not None and value < known.minimum
    return below or (known.maximum is not None and value > known.maximum)


def _describe(known: InputSignature) -> str:
    if known.choices is not None:
        return "one of " + ", ".join(map(str, known.choices))
    if known.folder is not None:
        return f"a file of {known.folder}"
    if known.type not in PLAIN_TYPES:
        return f"a link of type {known.type}"
    words = [known.type]
    if known.minimum is not None:
        words.append(f"from {known.minimum}")
    if known.maximum is not None:
        words.append(f"to {known.maximum}")
    return " ".join(words)


# --- the whole ------------------------------------------------------------------------------------


def _whole_errors(nodes: Mapping[str, Any], signatures: Signatures, say: _Reporter) -> Iterator[GraphError]:
    outputs = [node_id for node_id, node in nodes.items() if _signature(node, signatures).output_node]
    if not outputs:
        yield say("", None, ", ".join(nodes) or "no nodes", "a node such as SaveImage", "no output node")
        return
    cycle = _cycle(nodes)
    if cycle:
        yield say(cycle[0], None, " -> ".join(cycle), "links without a circle", "the links run in a circle")
    reached = _upstream(nodes, outputs)
    for node_id in nodes:
        if node_id not in reached:
            yield say(
                node_id, None, "unconnected", "a node that an output needs", "no output needs this node"
            )


def _signature(node: Mapping[str, Any], signatures: Signatures) -> NodeSignature:
    return signatures[node["class_type"]]


def _sources(nodes: Mapping[str, Any], node_id: str) -> Iterator[str]:
    for value in nodes[node_id]["inputs"].values():
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0] in nodes:
            yield value[0]


def _upstream(nodes: Mapping[str, Any], outputs: list[str]) -> set[str]:
    reached: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node_id = waiting.pop()
        if node_id not in reached:
            reached.add(node_id)
            waiting.extend(_sources(nodes, node_id))
    return reached


def _cycle(nodes: Mapping[str, Any]) -> list[str] | None:
    """A circle of links as node ids, first = last; found without recursion, so a deep graph is no trouble."""
    done: set[str] = set()
    for start in nodes:
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in done:
            path.append(start)
            stack.append((start, _sources(nodes, start)))
        while stack:
            node_id, sources = stack[-1]
            following = next((source for source in sources if source not in done), None)
            if following is None:
                done.add(node_id)
                path.pop()
                stack.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            else:
                path.append(following)
                stack.append((following, _sources(nodes, following)))
    return None
