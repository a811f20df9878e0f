"""The state of one job as its events and its history report it: when it started, its outputs, how it ended. Does no I/O
but logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import Graph, class_of, node_failure
from engine.messages import Event, Frame
from engine.values import Picture, Preview, Progress, ProgressCallback
from errors import JobInterrupted, shorten

log = logging.getLogger("easel.engine")

File = Mapping[str, str]
"""`filename`, `subfolder` and `type`: the parameters of `GET /view`"""

_MIMES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "avif": "image/avif",
}
SOCKET_OUTPUT = "SaveImageWebsocket"
"""The node that sends its pictures as frames, and writes no file"""
_MAX_LOGGED_CHARS = 2000


class Job:
    """Takes events, frames or the history entry; raises the error that ended the job.

    `succeeded` and `ended` give the state; `started_at` is in the time of `clock`. `left_engine`: ComfyUI is done
    with the job and has written its history. `success_was_sent`: the socket delivered the success, and so every frame
    before it.
    """

    def __init__(
        self,
        prompt_id: str,
        graph: Graph,
        on_progress: ProgressCallback,
        clock: Callable[[], float],
        output: str | None = None,
        on_node: Callable[[str | None], None] = lambda node: None,
    ) -> None:
        """`output`: the node whose pictures are wanted; None: those of all nodes. `on_node`: called when a node starts, and
        with None when the last one has ended."""
        self.prompt_id = prompt_id
        self.output = output
        self.started_at: float | None = None
        self.succeeded = False
        self.ended = False
        self.left_engine = False
        self.success_was_sent = False
        self.cached_nodes: tuple[str, ...] = ()
        self._graph = graph
        self._on_progress, self._on_node = on_progress, on_node
        self._clock = clock
        self._outputs: dict[str, list[Picture | File]] = {}
        self._last_step: Progress | None = None

    @property
    def sends_frames(self) -> bool:
        """Whether pictures that are wanted come over the socket, so that they are lost with it."""
        wanted = self._graph if self.output is None else [self.output]
        return any(class_of(node, self._graph) == SOCKET_OUTPUT for node in wanted)

    def handle(self, item: Event | Frame) -> None:
        if isinstance(item, Frame):
            self._handle_frame(item)
        elif item.kind in _EVENT_HANDLERS:
            self.success_was_sent = self.success_was_sent or item.kind == "execution_success"
            _EVENT_HANDLERS[item.kind](self, item.data)

    def outputs(self) -> list[tuple[str, Picture | File]]:
        """Each node and its picture (or the file that holds it), in the order of the graph's nodes, then of the
        batch; only those of `output`, if it is set."""
        nodes = [*self._graph, *(node for node in self._outputs if node not in self._graph)]
        if self.output is not None:
            nodes = [self.output]
        return [(node, output) for node in nodes for output in self._outputs.get(node, ())]

    def read_history(self, entry: Mapping[str, Any]) -> None:
        """End the job as its history entry says. An interruption shows only in the last message."""
        messages = messages_of(entry)
        if "execution_cached" in messages:
            self._on_cached(messages["execution_cached"])
        outputs = entry.get("outputs")
        for node, output in outputs.items() if isinstance(outputs, dict) else ():
            self._on_executed({"node": node, "output": output})
        self.left_engine = True
        for kind in ("execution_error", "execution_interrupted"):
            if kind in messages:
                _EVENT_HANDLERS[kind](self, messages[kind])
        status = entry.get("status")
        if isinstance(status, dict) and status.get("status_str") == "error":
            self._on_error(messages.get("execution_error", {}))
        self._on_success({})

    def _handle_frame(self, frame: Frame) -> None:
        if frame.node is not None and class_of(frame.node, self._graph) == SOCKET_OUTPUT:
            self._outputs.setdefault(frame.node, []).append(Picture(frame.data, frame.node, frame.mime))
        else:
            self._on_progress(Preview(self.prompt_id, frame.node, frame.mime, frame.data))

    def _on_start(self, _: Mapping[str, Any]) -> None:
        self.started_at = self._clock()

    def _on_cached(self, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes")
        self.cached_nodes = tuple(map(str, nodes)) if isinstance(nodes, list) else ()

    def _on_step(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        node = node if isinstance(node, str) else None
        value, maximum = _finite_int(data.get("value")), _finite_int(data.get("max"))
        if node is not None and class_of(node, self._graph) == SOCKET_OUTPUT:
            return  # it counts pictures, not steps
        if value is not None and maximum is not None:
            step = Progress(self.prompt_id, node, value, maximum)
            # ComfyUIs that leave out steps (0.33) may report one twice.
            if step != self._last_step:
                self._last_step = step
                self._on_progress(step)

    def _on_executed(self, data: Mapping[str, Any]) -> None:
        node, output = data.get("node"), data.get("output")
        images = output.get("images") if isinstance(output, dict) else None
        if isinstance(node, str) and isinstance(images, list):
            self._outputs[node] = [file for file in map(_picture_file, images) if file is not None]

    def _on_success(self, _: Mapping[str, Any]) -> None:
        self.succeeded = self.ended = True

    def _on_error(self, data: Mapping[str, Any]) -> None:
        self.ended = True
        # The error has no paths; the owner needs them.
        message = " ".join(str(data.get("exception_message") or "").split())
        log.error(
            "job %s: node %s (%s) raised %s: %s",
            self.prompt_id,
            data.get("node_id"),
            data.get("node_type"),
            data.get("exception_type"),
            shorten(message, _MAX_LOGGED_CHARS),
        )
        raise node_failure(data)

    def _on_interrupted(self, _: Mapping[str, Any]) -> None:
        self.ended = True
        raise JobInterrupted("The job was interrupted in ComfyUI while it ran.", prompt_id=self.prompt_id)

    def _on_executing(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        if node is None:
            self.left_engine = True
        self._on_node(node if isinstance(node, str) else None)


_EVENT_HANDLERS: Mapping[str, Callable[[Job, Mapping[str, Any]], None]] = {
    "execution_start": Job._on_start,
    "execution_cached": Job._on_cached,
    "executing": Job._on_executing,
    "progress": Job._on_step,
    "executed": Job._on_executed,
    "execution_success": Job._on_success,
    "execution_error": Job._on_error,
    "execution_interrupted": Job._on_interrupted,
}


def mime_of(filename: str) -> str | None:
    """The MIME type for the file's extension; None if it is not a picture (ComfyUI lists videos under `images` too)."""
    return _MIMES.get(filename.rpartition(".")[2].lower())


def _finite_int(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _picture_file(image: Any) -> File | None:
    if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
        return None
    if mime_of(image["filename"]) is None:
        return None
    return {
        "filename": image["filename"],
        "subfolder": str(image.get("subfolder") or ""),
        "type": str(image.get("type") or "output"),
    }


def messages_of(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The messages of a history entry, by kind."""
    status = entry.get("status")
    messages = status.get("messages") if isinstance(status, dict) else None
    pairs = messages if isinstance(messages, list) else []
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)
    }
