"""The files that ComfyUI's editor saves, as values: nodes, links, and the definitions of subgraphs.

Versions 0.4 (links are lists) and 1 (links are objects) are read alike. A group node of older editors becomes a subgraph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from errors import WorkflowUnreadable, shorten

SUBGRAPH_INPUT = "-10"
SUBGRAPH_OUTPUT = "-20"
"""The ids that links inside a subgraph use for its inputs and outputs"""

MUTED, BYPASSED = 2, 4
"""Modes of a node; the other modes run normally."""

NOTES = frozenset({"Note", "MarkdownNote"})
REROUTE = "Reroute"
PRIMITIVE = "PrimitiveNode"
SETTER, GETTER = "SetNode", "GetNode"
"""Of the custom nodes KJNodes: a link without a line. A getter gives what feeds the setter with the same name."""
VIRTUAL = NOTES | {REROUTE, PRIMITIVE, SETTER, GETTER}
"""Classes that exist only in the editor"""

_GROUP_PREFIXES = ("workflow/", "workflow>")
MAX_NODES = 20_000
"""in one file, subgraphs expanded; the largest known workflows have about 1,000"""


@dataclass(frozen=True)
class Socket:
    """An input or output of a node in the file."""

    name: str
    type: str
    link: str | None = None
    """The id of the link to an input"""
    is_widget: bool = False


@dataclass(frozen=True)
class EditorNode:
    id: str
    type: str
    """The node class, or the id of a subgraph"""
    mode: int
    title: str
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]
    widgets: tuple[Any, ...] | Mapping[str, Any]
    """The saved values: in the order of the node's widgets, or by name as some custom nodes save them"""
    properties: Mapping[str, Any]

    @property
    def first_value(self) -> Any:
        """The first saved value, None if there is none."""
        values = list(self.widgets.values()) if isinstance(self.widgets, Mapping) else self.widgets
        return values[0] if values else None

    @property
    def is_muted(self) -> bool:
        return self.mode == MUTED

    @property
    def is_bypassed(self) -> bool:
        return self.mode == BYPASSED

    def input(self, name: str) -> Socket | None:
        return next((socket for socket in self.inputs if socket.name == name), None)


@dataclass(frozen=True)
class Link:
    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class EditorGraph:
    """The root of a file, or the definition of a subgraph."""

    nodes: Mapping[str, EditorNode]
    links: Mapping[str, Link]
    inputs: tuple[Socket, ...] = ()
    """of a subgraph"""
    outputs: tuple[Socket, ...] = ()

    def links_from_input(self, slot: int) -> Iterator[Link]:
        """The links from one of the subgraph's inputs to its nodes."""
        return (
            link for link in self.links.values() if link.origin == SUBGRAPH_INPUT and link.origin_slot == slot
        )

    def link_to_output(self, slot: int) -> str | None:
        """The id of the link to one of the subgraph's outputs."""
        ids = (
            name
            for name, link in self.links.items()
            if link.target == SUBGRAPH_OUTPUT and link.target_slot == slot
        )
        return next(ids, None)


@dataclass(frozen=True)
class EditorFile:
    root: EditorGraph
    subgraphs: Mapping[str, EditorGraph] = field(default_factory=dict)
    """by the name that nodes have as their type"""


def is_editor_file(document: Any) -> bool:
    """Whether this is a workflow of ComfyUI's editor, rather than an API graph."""
    return isinstance(document, Mapping) and isinstance(document.get("nodes"), list)


def read_editor_file(document: Mapping[str, Any]) -> EditorFile:
    """Parse a workflow of the editor. Raises WorkflowUnreadable."""
    try:
        definitions = document.get("definitions") or {}
        subgraphs = {
            str(entry["id"]): _graph(entry, f"the subgraph {entry.get('name') or entry['id']!r}")
            for entry in definitions.get("subgraphs") or ()
        }
        groups = (document.get("extra") or {}).get("groupNodes") or {}
        for name, entry in groups.items():
            graph = _group(entry)
            subgraphs |= {prefix + name: graph for prefix in _GROUP_PREFIXES}
        return EditorFile(_graph(document, "the file"), subgraphs)
    except WorkflowUnreadable:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise WorkflowUnreadable(
            f"This looks like a workflow of ComfyUI's editor, but a part of it has another form ({_reason(error)}). Open it "
            "in ComfyUI and save it again, or use Workflow > Export (API)."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return shorten(str(error), 120)


def _graph(entry: Mapping[str, Any], place: str) -> EditorGraph:
    nodes: dict[str, EditorNode] = {}
    for each in entry["nodes"]:
        node = _node(each)
        if node.id in nodes:
            raise WorkflowUnreadable(f"Two nodes of {place} have the id {node.id}.")
        nodes[node.id] = node
    links = dict(_link(each) for each in entry.get("links") or () if each is not None)
    return EditorGraph(nodes, links, _sockets(entry, "inputs"), _sockets(entry, "outputs"))


def _node(entry: Mapping[str, Any]) -> EditorNode:
    saved = entry.get("widgets_values")
    if saved is not None and not isinstance(saved, list | Mapping):
        raise TypeError(f"the widgets_values of node {entry.get('id')} are neither a list nor an object")
    return EditorNode(
        id=str(entry["id"]),
        type=str(entry["type"]),
        mode=int(entry.get("mode") or 0),
        title=str(entry.get("title") or ""),
        inputs=_sockets(entry, "inputs"),
        outputs=_sockets(entry, "outputs"),
        widgets=dict(saved) if isinstance(saved, Mapping) else tuple(saved or ()),
        properties=dict(entry.get("properties") or {}),
    )


def _sockets(entry: Mapping[str, Any], key: str) -> tuple[Socket, ...]:
    return tuple(
        Socket(
            name=str(each.get("name", "")),
            type=_type_name(each.get("type")),
            link=None if each.get("link") is None else str(each["link"]),
            is_widget=isinstance(each.get("widget"), Mapping),
        )
        for each in entry.get(key) or ()
    )


def _type_name(kind: Any) -> str:
    """Old files write a list of choices as the type."""
    return kind if isinstance(kind, str) else "COMBO" if isinstance(kind, list) else "*"


def _link(entry: Any) -> tuple[str, Link]:
    if isinstance(entry, Mapping):
        values = [entry[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        values = list(entry[:5])
    name, origin, origin_slot, target, target_slot = values
    return str(name), Link(str(origin), int(origin_slot), str(target), int(target_slot))


# --- group nodes of older editors -----------------------------------------------------------------------


def _group(entry: Mapping[str, Any]) -> EditorGraph:
    """The definition of a group node as a subgraph: every input that no inner link feeds is one of its inputs, every
    output that is shown outside is one of its outputs."""
    nodes = [
        _node({**each, "id": each.get("index", index)}) for index, each in enumerate(entry.get("nodes") or ())
    ]
    links: dict[str, Link] = {}
    fed: dict[tuple[str, int], str] = {}
    for each in entry.get("links") or ():
        if each is None or each[0] is None:
            continue
        name = f"inner {len(links)}"
        links[name] = Link(str(each[0]), int(each[1]), str(each[2]), int(each[3]))
        fed[str(each[2]), int(each[3])] = name
    inputs: list[Socket] = []
    linked: dict[str, EditorNode] = {}
    for node in nodes:
        sockets = []
        for slot, socket in enumerate(node.inputs):
            link_id = fed.get((node.id, slot))
            if link_id is None:
                link_id = f"input {len(inputs)}"
                links[link_id] = Link(SUBGRAPH_INPUT, len(inputs), node.id, slot)
                taken = {each.name for each in inputs}
                title = node.title or node.type
                inputs.append(
                    Socket(
                        socket.name if socket.name not in taken else f"{title} {socket.name}",
                        socket.type,
                        is_widget=socket.is_widget,
                    )
                )
            sockets.append(Socket(socket.name, socket.type, link_id, socket.is_widget))
        linked[node.id] = EditorNode(**{**vars(node), "inputs": tuple(sockets)})
    outputs: list[Socket] = []
    for index, slot, kind in _group_outputs(
        entry, nodes, {(link.origin, link.origin_slot) for link in links.values()}
    ):
        links[f"output {len(outputs)}"] = Link(index, slot, SUBGRAPH_OUTPUT, len(outputs))
        outputs.append(Socket(kind, kind))
    return EditorGraph(linked, links, tuple(inputs), tuple(outputs))


def _group_outputs(
    entry: Mapping[str, Any], nodes: list[EditorNode], used: set[tuple[str, int]]
) -> Iterator[tuple[str, int, str]]:
    """node, slot and type of each output of a group node, in order: those that no inner node uses, and those that are
    declared to be shown outside as well."""
    external = {(str(each[0]), int(each[1])) for each in entry.get("external") or () if each}
    for node in nodes:
        for slot, socket in enumerate(node.outputs):
            if (node.id, slot) not in used or (node.id, slot) in external:
                yield node.id, slot, socket.type
