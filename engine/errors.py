"""Turns ComfyUI's refusals and failures into Easel's errors. Drops tracebacks, input configurations and paths of the
machine that ComfyUI runs on, but for the names of files of weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from errors import (
    EaselError,
    EngineGpuFailed,
    EngineOutOfMemory,
    EngineRejected,
    EngineUnreachable,
    NodeFailed,
    SketchCannotRun,
    shorten,
)

Graph = Mapping[str, Any]

PROXY_ERRORS = frozenset((502, 503, 504))
"""What a proxy answers when ComfyUI does not; ComfyUI itself sends none of them."""
_MAX_LENGTH = 500
_PLACEHOLDER = "<path>"
_QUOTED_PATH = re.compile(r"""(['"`])(?:file://)?(?:/|~/|[A-Za-z]:[\\/]|\\\\)(?!\1)[^\n]*?\1""")
_LABELLED_PATH = re.compile(
    r"(?mi)^(\s*(?:\w*(?:folder|path|file|dir|directory)\w*|\w+ (?:path|folder))\s*[:=]\s*)(?:/|~/|[A-Z]:[\\/]|\\\\).*$"
)
_BARE_PATH = re.compile(
    r"""(?<![\w/.:\\>])(?:file:/+|~?/|[A-Za-z]:[\\/]|\\\\)[\w.@+~-][^\s'"`,;:()\[\]<>|]*"""
)

_WEIGHTS_NAME = re.compile(
    r"[^/\\]+\.(?:safetensors|sft|ckpt|pt2?|pth|bin|gguf|onnx|engine|pkl)(?=\W|$)", re.IGNORECASE
)

_SKETCH_LIMIT = "sketch.nodes.CannotSketch"
"""What the sketch engine raises for what it cannot do, in contrast to a graph that is wrong"""
_OUT_OF_MEMORY_TYPES = ("OutOfMemoryError", "MemoryError", "MemoryAllocationError")
_OUT_OF_MEMORY = re.compile(
    # CUDA, ROCm and MPS; OutOfMemory, OUT_OF_DEVICE_MEMORY and the like are names of codes (Metal, HIP, Level Zero)
    r"out[ _-]?of[ _-]?(?:device[ _-]?|host[ _-]?|gpu[ _-]?|video[ _-]?)?memory|ERROR_OUT_OF_RESOURCES"
    r"|insufficient memory|can(?:not|'t) allocate memory|unable to allocate|allocation on device|Alloc_?Failed"
    r"|failed to allocate .{0,40}(?:buffer|memory)|invalid buffer size: [\d.]+ ?[KMGT]?i?B"
    # DirectML
    r"|could not allocate tensor with \d+ bytes|not enough (?:gpu |video |system |cpu )*memory|8007000E"
    # Windows: the page file is too small; its messages are translated, its numbers are not
    r"|paging file|(?:WinError|os error) (?:8|14|1450|1453|1455)\b|bad[ _]alloc",
    re.IGNORECASE,
)

_GPU_FAILED_TYPES = ("AcceleratorError",)
_GPU_FAILED = re.compile(
    r"\b(?:CUDA|HIP|XPU|MPS) error:|illegal memory access|device-side assert|unspecified launch failure"
    r"|\b(?:cuda|hip)Error(?:IllegalAddress|LaunchFailure|Assert|ECCUncorrectable|HardwareStackError|DevicesUnavailable)",
)
"""After these, every further call in ComfyUI's process fails or ends it (seen on an H200 that had run out of memory)."""


def without_paths(text: str) -> str:
    """`text` with every path of a file replaced by a placeholder, cut to 500 characters. A file of weights keeps its
    name, which says what to download again; its folders are dropped."""
    for pattern, replacement in (
        (_QUOTED_PATH, lambda match: f"{match[1]}{_placeholder(match[0][1:-1])}{match[1]}"),
        (_LABELLED_PATH, lambda match: f"{match[1]}{_placeholder(match[0])}"),
        (_BARE_PATH, lambda match: _placeholder(match[0])),
    ):
        text = pattern.sub(replacement, text)
    return shorten(text.strip(), _MAX_LENGTH)


def _placeholder(path: str) -> str:
    name = _WEIGHTS_NAME.search(path.rstrip(".,;:"))
    return f"{_PLACEHOLDER}/{name[0]}" if name else _PLACEHOLDER


def node_failure(data: Mapping[str, Any]) -> NodeFailed:
    """The error for the data of an `execution_error` message, from the socket or from history."""
    exception_type = str(data.get("exception_type") or "Exception")
    text = str(data.get("exception_message") or "")
    reason = without_paths(text) or exception_type
    node, class_type = str(data.get("node_id")), str(data.get("node_type"))
    error_class = NodeFailed
    if exception_type == _SKETCH_LIMIT:
        error_class = SketchCannotRun
    elif exception_type.endswith(_OUT_OF_MEMORY_TYPES) or _OUT_OF_MEMORY.search(text):
        error_class = EngineOutOfMemory
        # The further lines are PyTorch's and ComfyUI's tips for their own users.
        reason = reason.partition("\n")[0]
    elif exception_type.endswith(_GPU_FAILED_TYPES) or _GPU_FAILED.search(text):
        error_class = EngineGpuFailed
        first = reason.partition("\n")[0].rstrip(".")
        reason = f"{first}. Restart ComfyUI"
    # The sketch engine names the class itself.
    who = f"Node {node}" if error_class is SketchCannotRun else f"{class_type} (node {node}) failed"
    return error_class(
        f"{who}: {reason}",
        node=node,
        class_type=class_type,
        exception_type=exception_type,
        exception_message=reason,
    )


def submission_error(status: int, body: Any, graph: Graph) -> EaselError:
    """The error for a response to `POST /prompt` that did not accept the graph. `body` is the parsed JSON, or None."""
    if isinstance(body, dict) and (isinstance(body.get("error"), dict) or body.get("node_errors")):
        errors = [*_node_errors(body.get("node_errors"), graph)] or [_graph_error(body["error"], graph)]
        return rejected(errors)
    if status in (404, 405):
        return EngineUnreachable(
            f"The server is not a ComfyUI: POST /prompt returned {status}.", status=status
        )
    if status in PROXY_ERRORS:
        return EngineUnreachable(f"A proxy in front of ComfyUI returned {status}.", status=status)
    message = f"ComfyUI answered {status} to the graph and gave no reason; see ComfyUI's log."
    return rejected([_error_entry(None, None, None, f"http_{status}", message)])


def is_dropped(node_errors: Any, output: str | None) -> bool:
    """Whether ComfyUI, which accepts a graph if one of its outputs is valid, drops the wanted one (None: any)."""
    if not node_errors or output is None or not isinstance(node_errors, dict):
        return bool(node_errors)
    dependents = [entry.get("dependent_outputs") for entry in node_errors.values() if isinstance(entry, dict)]
    # An entry that does not list what depends on it may concern the wanted output.
    return len(dependents) < len(node_errors) or any(
        not isinstance(names, list) or output in map(str, names) for names in dependents
    )


def dropped_outputs(node_errors: Any, graph: Graph) -> EngineRejected:
    """The error for a graph of which ComfyUI dropped an output. ComfyUI answers 200 if another one is valid; Easel
    treats that as a refusal."""
    return rejected([*_node_errors(node_errors, graph)])


def rejected(errors: list[dict[str, Any]], engine: str = "ComfyUI") -> EngineRejected:
    """An EngineRejected whose message is the first of `errors` and the number of the others. `engine`: its name."""
    first = errors[0]
    parts = []
    if first["input"]:
        parts.append(f"input {first['input']}")
    if first["node"] is not None:
        parts.append(f"{first['class_type'] or 'node'} (node {first['node']})")
    location = " of ".join(parts)
    message = f"{location}: {first['message']}" if location else first["message"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return EngineRejected(f"{engine} refused the graph: {message}{more}", errors=errors)


def _node_errors(node_errors: Any, graph: Graph) -> Iterator[dict[str, Any]]:
    if not isinstance(node_errors, dict):
        return
    for node, entry in node_errors.items():
        errors = entry.get("errors") if isinstance(entry, dict) else None
        for error in errors or [{}]:
            yield _node_error(node, error if isinstance(error, dict) else {}, graph)


def _node_error(node: str, error: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    extra = error.get("extra_info")
    input_name = extra.get("input_name") if isinstance(extra, dict) else None
    message, details = str(error.get("message") or "not valid"), str(error.get("details") or "")
    if details and details != input_name:
        message = f"{message}: {details}"
    return _error_entry(node, class_of(node, graph), input_name, str(error.get("type") or "unknown"), message)


def _graph_error(error: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    """An error of the graph as a whole. For an unknown class, only `details` names the node: Node ID '#1'."""
    message = str(error.get("message") or "not valid")
    match = re.search(r"Node ID '#(.*)'", str(error.get("details") or ""))
    node = match.group(1) if match else None
    if message == "Prompt outputs failed validation":
        message = "not valid, and ComfyUI names no node; a cycle of links gives this error"
    return _error_entry(node, class_of(node, graph), None, str(error.get("type") or "unknown"), message)


def _error_entry(
    node: str | None, class_type: str | None, input_name: Any, kind: str, message: str
) -> dict[str, Any]:
    return {
        "node": node,
        "class_type": class_type,
        "input": input_name if isinstance(input_name, str) else None,
        "type": kind,
        "message": without_paths(message),
    }


def class_of(node: str | None, graph: Graph) -> str | None:
    """The class of a node of the graph, or None."""
    entry = graph.get(node) if node is not None else None
    class_type = entry.get("class_type") if isinstance(entry, Mapping) else None
    return class_type if isinstance(class_type, str) else None
