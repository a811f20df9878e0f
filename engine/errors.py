"""ComfyUI's refusals and failures in Easel's words. Tracebacks, input configurations and paths of the engine's host
stay here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from errors import EaselError, EngineOutOfMemory, EngineRejected, EngineUnreachable, NodeFailed, shorten

Graph = Mapping[str, Any]

_LONGEST = 500
_PLACE = "<path>"
_QUOTED_PATH = re.compile(r"""(['"`])(?:file://)?(?:/|~/|[A-Za-z]:[\\/]|\\\\)(?!\1)[^\n]*?\1""")
_LABELLED_PATH = re.compile(
    r"(?mi)^(\s*\w*(?:folder|path|file|dir|directory)\w*\s*[:=]\s*)(?:/|~/|[A-Z]:[\\/]|\\\\).*$"
)
_BARE_PATH = re.compile(
    r"""(?<![\w/.:\\])(?:file:/+|~?/|[A-Za-z]:[\\/]|\\\\)[\w.@+~-][^\s'"`,;:()\[\]<>|]*"""
)

_OUT_OF_MEMORY_TYPES = ("OutOfMemoryError", "MemoryError")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|insufficient memory|can(?:not|'t) allocate memory|unable to allocate"
    r"|allocation on device|ALLOC_FAILED",
    re.IGNORECASE,
)


def without_paths(text: str) -> str:
    """The text with every path of the engine's host replaced, and its length bounded."""
    for pattern, instead in (
        (_QUOTED_PATH, rf"\1{_PLACE}\1"),
        (_LABELLED_PATH, rf"\1{_PLACE}"),
        (_BARE_PATH, _PLACE),
    ):
        text = pattern.sub(instead, text)
    return shorten(text.strip(), _LONGEST)


def node_failure(data: Mapping[str, Any]) -> NodeFailed:
    """What an `execution_error` means, from the socket or from history."""
    kind = str(data.get("exception_type") or "Exception")
    reason = without_paths(str(data.get("exception_message") or "")) or kind
    node, class_type = str(data.get("node_id")), str(data.get("node_type"))
    memory = kind.endswith(_OUT_OF_MEMORY_TYPES) or _OUT_OF_MEMORY.search(reason)
    failure = EngineOutOfMemory if memory else NodeFailed
    if memory:
        reason = reason.partition("\n")[
            0
        ]  # what follows are PyTorch's and ComfyUI's tips for their own users
    return failure(
        f"{class_type} (node {node}) failed: {reason}",
        node=node,
        class_type=class_type,
        exception_type=kind,
        exception_message=reason,
    )


def refusal(status: int, body: Any, graph: Graph) -> EaselError:
    """What an answer other than 200 to `POST /prompt` means. `body` is JSON where it was JSON, else None."""
    if isinstance(body, dict) and (isinstance(body.get("error"), dict) or body.get("node_errors")):
        errors = [*_node_errors(body.get("node_errors"), graph)] or [_graph_error(body["error"], graph)]
        return rejected(errors)
    if status in (404, 405):
        return EngineUnreachable(f"What answers is not a ComfyUI: POST /prompt gave {status}.", status=status)
    if status in (502, 503, 504):
        return EngineUnreachable(f"A proxy answered {status} in place of ComfyUI.", status=status)
    message = f"ComfyUI answered {status} to the graph without saying why; its log tells."
    return rejected([_error(None, None, None, f"http_{status}", message)])


def dropped_outputs(node_errors: Any, graph: Graph) -> EngineRejected:
    """ComfyUI says 200 when one output is valid, and drops the others: for us that is a refusal."""
    return rejected([*_node_errors(node_errors, graph)])


def rejected(errors: list[dict[str, Any]]) -> EngineRejected:
    first = errors[0]
    place = " of ".join(
        [
            *([f"input {first['input']}"] if first["input"] else []),
            *(
                [f"{first['class_type'] or 'node'} (node {first['node']})"]
                if first["node"] is not None
                else []
            ),
        ]
    )
    more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
    said = f"{place}: {first['message']}" if place else first["message"]
    return EngineRejected(f"ComfyUI refused the graph: {said}{more}", errors=errors)


def _node_errors(node_errors: Any, graph: Graph) -> Iterator[dict[str, Any]]:
    if not isinstance(node_errors, dict):
        return
    for node, entry in node_errors.items():
        errors = entry.get("errors") if isinstance(entry, dict) else None
        for error in errors or [{}]:
            yield _node_error(node, error if isinstance(error, dict) else {}, graph)


def _node_error(node: str, error: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    extra = error.get("extra_info")
    wanted = extra.get("input_name") if isinstance(extra, dict) else None
    message, details = str(error.get("message") or "not valid"), str(error.get("details") or "")
    if details and details != wanted:
        message = f"{message}: {details}"
    return _error(node, _class_of(node, graph), wanted, str(error.get("type") or "unknown"), message)


def _graph_error(error: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    """A fault of the graph as a whole; an unknown class names its node only in `details`: Node ID '#1'."""
    message = str(error.get("message") or "not valid")
    found = re.search(r"Node ID '#(.*)'", str(error.get("details") or ""))
    node = found.group(1) if found else None
    if message == "Prompt outputs failed validation":
        message = "not valid, and no node is named; a cycle of links looks like this"
    return _error(node, _class_of(node, graph), None, str(error.get("type") or "unknown"), message)


def _error(node: str | None, class_type: str | None, wanted: Any, kind: str, message: str) -> dict[str, Any]:
    return {
        "node": node,
        "class_type": class_type,
        "input": wanted if isinstance(wanted, str) else None,
        "type": kind,
        "message": without_paths(message),
    }


def _class_of(node: str | None, graph: Graph) -> str | None:
    entry = graph.get(node) if node is not None else None
    class_type = entry.get("class_type") if isinstance(entry, Mapping) else None
    return class_type if isinstance(class_type, str) else None
