"""Converts a workflow of ComfyUI's editor to the graph in API format that the editor itself would send.

Subgraphs are expanded (`57:8` is node 8 in the subgraph node 57), values that a subgraph shows outside are written where
they are used, muted and bypassed nodes and nodes that exist only in the editor vanish.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.signatures import Signatures
from compiler.values import Nodes
from dynamic_inputs import is_link
from errors import NodesMissing, WorkflowUnreadable, list_names
from importer.dynamic_prompts import expanded
from importer.editor_file import (
    GETTER,
    MAX_NODES,
    NOTES,
    PRIMITIVE,
    REROUTE,
    SETTER,
    SUBGRAPH_INPUT,
    VIRTUAL,
    EditorFile,
    EditorGraph,
    EditorNode,
    Socket,
)
from importer.editor_widgets import SavedWidgets, has_widget

_MAX_DEPTH = 32
"""of subgraphs inside each other"""


@dataclass(frozen=True)
class _Output:
    """A link to the output of a node that runs."""

    node: str
    slot: int


@dataclass(frozen=True)
class _Value:
    """What feeds an input is a plain value."""

    value: Any


_Source = _Output | _Value | None
"""None: nothing feeds the input."""


@dataclass(frozen=True)
class _Scope:
    """One use of a graph: the root, or a subgraph at the place of a node."""

    graph: EditorGraph
    path: str = ""
    host: EditorNode | None = None
    parent: _Scope | None = None

    def full_id(self, node: EditorNode) -> str:
        return self.path + node.id


@dataclass(frozen=True)
class Converted:
    """`nodes`: by id in API format. `notes`: sentences about what the file does not say or says oddly."""

    nodes: Nodes
    notes: tuple[str, ...] = ()


def convert_editor_file(file: EditorFile, signatures: Signatures) -> Converted:
    """The graph of the file. Raises NodesMissing for classes without a signature, WorkflowUnreadable for links that lead
    nowhere and subgraphs that contain themselves."""
    return _Conversion(file, signatures).run()


def node_classes(file: EditorFile) -> set[str]:
    """The classes of all nodes in the file, those of subgraphs included."""
    graphs = (file.root, *file.subgraphs.values())
    found = {node.type for graph in graphs for node in graph.nodes.values()}
    return found - VIRTUAL - set(file.subgraphs)


class _Conversion:
    def __init__(self, file: EditorFile, signatures: Signatures) -> None:
        self._file, self._signatures = file, signatures
        self._notes: list[str] = []
        self._saved: dict[str, SavedWidgets] = {}
        self._scopes: dict[str, _Scope] = {}

    def run(self) -> Converted:
        placed = list(itertools.islice(self._placed(_Scope(self._file.root), ()), MAX_NODES + 1))
        if len(placed) > MAX_NODES:
            raise WorkflowUnreadable(
                f"The workflow has more than {MAX_NODES} nodes, those of its subgraphs included."
            )
        unknown = {
            scope.full_id(node): node.type for scope, node in placed if node.type not in self._signatures
        }
        nodes = {
            full_id: self._convert(scope, node)
            for scope, node in placed
            if (full_id := scope.full_id(node)) not in unknown
        }
        self._leave_out_unknown(unknown, nodes)
        return Converted(nodes, tuple(dict.fromkeys(self._notes)))

    # --- which nodes run ---

    def _placed(self, scope: _Scope, inside: tuple[str, ...]) -> Iterator[tuple[_Scope, EditorNode]]:
        """Every node that runs, with the use of the graph it belongs to."""
        if len(inside) > _MAX_DEPTH:
            raise WorkflowUnreadable(f"More than {_MAX_DEPTH} subgraphs are nested in each other.")
        for node in scope.graph.nodes.values():
            if node.type in VIRTUAL:
                continue
            is_subgraph = node.type in self._file.subgraphs
            # The editor drops the nodes of a muted or bypassed subgraph only if it is not itself in a subgraph. Nothing
            # reaches those that it leaves.
            if (node.is_muted or node.is_bypassed) and not (is_subgraph and scope.parent is not None):
                continue
            if not is_subgraph:
                yield scope, node
                continue
            if node.type in inside:
                raise WorkflowUnreadable(
                    f"The subgraph of node {scope.full_id(node)} contains itself; open the workflow in ComfyUI and "
                    "remove one of them."
                )
            inner = self._inner(scope, node)
            if len(self._scopes) > MAX_NODES:
                raise WorkflowUnreadable(f"The workflow uses more than {MAX_NODES} subgraphs.")
            yield from self._placed(inner, (*inside, node.type))

    def _inner(self, scope: _Scope, node: EditorNode) -> _Scope:
        path = f"{scope.full_id(node)}:"
        if path not in self._scopes:
            self._scopes[path] = _Scope(self._file.subgraphs[node.type], path, node, scope)
        return self._scopes[path]

    def _leave_out_unknown(self, unknown: Mapping[str, str], nodes: Nodes) -> None:
        """Notes which of the nodes `unknown` (id -> class) are left out: those that no other node needs, such as the ones
        that only switch or label others in the editor. Raises NodesMissing for the others, and for all if nothing known
        makes a result."""
        has_result = any(self._signatures[node["class_type"]].output_node for node in nodes.values())
        linked = {value[0] for node in nodes.values() for value in node["inputs"].values() if is_link(value)}
        missing = sorted({name for full_id, name in unknown.items() if full_id in linked or not has_result})
        if missing:
            raise NodesMissing(
                f"Easel does not know the node {', '.join(missing)}, so the values in the editor's file have no names. "
                "Name a ComfyUI that has it (--engine URL) or a saved response of its /object_info (--object-info FILE), "
                "or export the workflow in ComfyUI with Workflow > Export (API).",
                nodes=missing,
            )
        if unknown:
            self._notes.append(
                f"No other node needs {list_names(sorted(set(unknown.values())))}, which Easel does not know: left out."
            )

    # --- one node ---

    def _convert(self, scope: _Scope, node: EditorNode) -> dict[str, Any]:
        values = {
            name: _wrapped(self._typed(scope, node, name, value))
            for name, value in self._widgets(scope, node).values.items()
        }
        for socket in node.inputs:
            if socket.link is None:
                continue
            source = self._source(scope, socket.link, socket.type)
            if isinstance(source, _Output):
                values[socket.name] = [source.node, source.slot]
            elif isinstance(source, _Value):
                values[socket.name] = _wrapped(source.value)
        return {"class_type": node.type, "inputs": values}

    def _typed(self, scope: _Scope, node: EditorNode, name: str, value: Any) -> Any:
        """What the editor sends for a text that is typed in the node itself. Outside subgraphs it chooses from
        `{red|blue}` at random and removes comments; a text with a choice is kept."""
        signature = self._signatures[node.type].inputs.get(name)
        if signature is None or not signature.dynamic_prompt or scope.parent is not None:
            return value
        if not isinstance(value, str) or (text := expanded(value)) == value or _is_linked(node, name):
            return value
        what = f"Node {node.id} ({node.type}): ComfyUI's editor"
        if text is None:
            self._notes.append(
                f"{what} chooses from the braces in {name} at random; the text is kept as it is."
            )
            return value
        self._notes.append(
            f"{what} removes comments, braces and escapes from {name} before each run; so does Easel."
        )
        return text

    def _widgets(self, scope: _Scope, node: EditorNode) -> SavedWidgets:
        full = scope.full_id(node)
        if full not in self._saved:
            saved = SavedWidgets(node.type, self._signatures[node.type], node.widgets)
            if saved.missing_control is not None:
                self._notes.append(
                    f"Node {full} ({node.type}) has no value for what happens to {saved.missing_control} after a run; the "
                    "values after it were read as if it had one."
                )
            self._saved[full] = saved
        return self._saved[full]

    # --- where a link comes from ---

    def _source(
        self, scope: _Scope, link_id: str, kind: str, seen: frozenset[tuple[str, str]] = frozenset()
    ) -> _Source:
        """What feeds an input of type `kind` through a link."""
        if (scope.path, link_id) in seen:
            raise WorkflowUnreadable(f"The links around link {link_id} go in a circle.")
        seen |= {(scope.path, link_id)}
        link = scope.graph.links.get(link_id)
        if link is None:
            raise WorkflowUnreadable(_dangling(scope, link_id))
        if link.origin == SUBGRAPH_INPUT:
            return self._outer_source(scope, link.origin_slot, kind, seen)
        node = scope.graph.nodes.get(link.origin)
        if node is None:
            raise WorkflowUnreadable(_dangling(scope, link_id))
        if node.type == PRIMITIVE:
            return _Value(node.widgets[0]) if not isinstance(node.widgets, Mapping) and node.widgets else None
        if node.is_muted:
            return None
        if node.type == GETTER:
            return self._named_source(scope, node, kind, seen)
        if node.type in (REROUTE, SETTER):
            feeding = node.inputs[0].link if node.inputs else None
            return None if feeding is None else self._source(scope, feeding, kind, seen)
        if node.is_bypassed:
            return self._bypassed(scope, node, link.origin_slot, kind, seen)
        if node.type in self._file.subgraphs:
            inner = self._inner(scope, node)
            feeding = inner.graph.link_to_output(link.origin_slot)
            return None if feeding is None else self._source(inner, feeding, kind, seen)
        if node.type in NOTES:
            return None
        return _Output(scope.full_id(node), link.origin_slot)

    def _named_source(
        self, scope: _Scope, getter: EditorNode, kind: str, seen: frozenset[tuple[str, str]]
    ) -> _Source:
        """What feeds the setter that has the getter's name, in the same graph or in one around it."""
        place: _Scope | None = scope
        while place is not None:
            for node in place.graph.nodes.values():
                if node.type == SETTER and node.first_value == getter.first_value:
                    feeding = node.inputs[0].link if node.inputs else None
                    return None if feeding is None else self._source(place, feeding, kind, seen)
            place = place.parent
        raise WorkflowUnreadable(
            f"The GetNode {scope.full_id(getter)} reads {getter.first_value!r}, but no SetNode has this name. Open the "
            "workflow in ComfyUI, correct the name and save it."
        )

    def _bypassed(
        self, scope: _Scope, node: EditorNode, slot: int, kind: str, seen: frozenset[tuple[str, str]]
    ) -> _Source:
        """A bypassed node passes on the input of the output's type: the one at the same place, or the first."""
        wanted = node.outputs[slot].type if slot < len(node.outputs) else kind
        beside = node.inputs[slot : slot + 1]
        matching = [
            *(each for each in beside if each.type == wanted),
            *(each for each in node.inputs if each.type == wanted),
            *(each for each in node.inputs if _is_compatible(each.type, wanted)),
        ]
        if not matching or matching[0].link is None:
            return None
        return self._source(scope, matching[0].link, kind, seen)

    def _outer_source(self, scope: _Scope, slot: int, kind: str, seen: frozenset[tuple[str, str]]) -> _Source:
        """What feeds one of the inputs of a subgraph: a link to its node outside, or the value that this node shows."""
        host, parent = scope.host, scope.parent
        if host is None or parent is None or slot >= len(scope.graph.inputs):
            raise WorkflowUnreadable("A link begins at an input that its subgraph does not have.")
        socket = host.input(scope.graph.inputs[slot].name)
        if socket is not None and socket.link is not None:
            return self._source(parent, socket.link, kind, seen)
        return self._shown_value(scope, slot)

    def _shown_value(self, scope: _Scope, slot: int) -> _Source:
        """The value that the subgraph's node shows for one of its inputs. Files with `proxyWidgets` are older and save no
        values there; then the value of the inner widget that is shown holds."""
        assert scope.host is not None
        saved = scope.host.widgets
        if "proxyWidgets" not in scope.host.properties and not isinstance(saved, Mapping):
            shown = [
                index for index in range(len(scope.graph.inputs)) if self._shows_widget(scope.graph, index)
            ]
            if slot in shown and shown.index(slot) < len(saved):
                return _Value(saved[shown.index(slot)])
        return self._inner_value(scope, slot)

    def _inner_value(self, scope: _Scope, slot: int) -> _Source:
        """The saved value of the first widget inside that an input of a subgraph leads to."""
        for link in scope.graph.links_from_input(slot):
            node = scope.graph.nodes.get(link.target)
            if node is None or link.target_slot >= len(node.inputs):
                continue
            name = node.inputs[link.target_slot].name
            if node.type in self._file.subgraphs:
                inner = self._inner(scope, node)
                names = [each.name for each in inner.graph.inputs]
                source = self._shown_value(inner, names.index(name)) if name in names else None
                if source is not None:
                    return source
            elif node.type in self._signatures and name in (values := self._widgets(scope, node).values):
                return _Value(values[name])
        return None

    def _shows_widget(self, graph: EditorGraph, slot: int) -> bool:
        """Whether an input of a subgraph leads to an input with a widget."""
        for link in graph.links_from_input(slot):
            node = graph.nodes.get(link.target)
            if node is None or link.target_slot >= len(node.inputs):
                continue
            socket = node.inputs[link.target_slot]
            inner = self._file.subgraphs.get(node.type)
            if inner is not None:
                names = [each.name for each in inner.inputs]
                if socket.name in names and self._shows_widget(inner, names.index(socket.name)):
                    return True
            elif self._is_widget(node, socket):
                return True
        return False

    def _is_widget(self, node: EditorNode, socket: Socket) -> bool:
        if socket.is_widget:
            return True
        signature = self._signatures.get(node.type)
        known = signature.inputs.get(socket.name) if signature is not None else None
        return known is not None and has_widget(known)


def _is_linked(node: EditorNode, name: str) -> bool:
    socket = node.input(name)
    return socket is not None and socket.link is not None


def _dangling(scope: _Scope, link_id: str) -> str:
    place = f"the subgraph node {scope.path.rstrip(':')}" if scope.path else "the workflow"
    return (
        f"Link {link_id} in {place} comes from a node that does not exist. Open the workflow in ComfyUI, connect the input "
        "again and save it."
    )


def _is_compatible(first: str, second: str) -> bool:
    return "*" in (first, second) or bool(set(first.split(",")) & set(second.split(",")))


def _wrapped(value: Any) -> Any:
    """A list as a value is wrapped, because a plain list is a link."""
    return {"__value__": value} if isinstance(value, list) else value
