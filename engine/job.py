"""One job as its events and its history tell it: when it started, what it made, how it ended. Knows no socket."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import Graph, node_failure
from engine.messages import Event, Frame
from engine.values import Picture, Preview, Progress
from errors import JobInterrupted, NodeFailed

ProgressCallback = Callable[[Progress | Preview], None]
File = Mapping[str, str]

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
_SOCKET_OUTPUT = "SaveImageWebsocket"


class Job:
    """Fed with events, frames or the history entry; raises the error that ended the job.

    `succeeded` and `ended` tell the state; `started_at` is on the caller's clock.
    """

    def __init__(
        self, prompt_id: str, graph: Graph, watch: ProgressCallback, clock: Callable[[], float]
    ) -> None:
        self.prompt_id = prompt_id
        self.started_at: float | None = None
        self.succeeded = False
        self.ended = False
        self.left_engine = False
        self.cached_nodes: tuple[str, ...] = ()
        self._graph = graph
        self._watch = watch
        self._clock = clock
        self._made: dict[str, list[Picture | File]] = {}

    def hear(self, item: Event | Frame) -> None:
        if isinstance(item, Frame):
            self._hear_frame(item)
        elif item.kind in _HEARD:
            _HEARD[item.kind](self, item.data)

    def made(self) -> list[tuple[str, Picture | File]]:
        """Node and picture (or the file that holds it), in the order of the graph's nodes, then of the batch."""
        order = [*self._graph, *(node for node in self._made if node not in self._graph)]
        return [(node, made) for node in order for made in self._made.get(node, ())]

    def read_history(self, entry: Mapping[str, Any]) -> None:
        """End the job by its history entry. Interruption shows only in the last message."""
        messages = _messages(entry)
        if "execution_cached" in messages:
            self._cached(messages["execution_cached"])
        outputs = entry.get("outputs")
        for node, output in outputs.items() if isinstance(outputs, dict) else ():
            self._executed({"node": node, "output": output})
        self.left_engine = True
        for kind in ("execution_error", "execution_interrupted"):
            if kind in messages:
                _HEARD[kind](self, messages[kind])
        status = entry.get("status")
        if isinstance(status, dict) and status.get("status_str") == "error":
            self._failed(messages.get("execution_error", {}))
        self._success({})

    def _hear_frame(self, frame: Frame) -> None:
        if frame.node is not None and self._class_of(frame.node) == _SOCKET_OUTPUT:
            self._made.setdefault(frame.node, []).append(Picture(frame.data, frame.node, frame.mime))
        else:
            self._watch(Preview(self.prompt_id, frame.node, frame.mime, frame.data))

    def _started(self, _: Mapping[str, Any]) -> None:
        self.started_at = self._clock()

    def _cached(self, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes")
        self.cached_nodes = tuple(map(str, nodes)) if isinstance(nodes, list) else ()

    def _progressed(self, data: Mapping[str, Any]) -> None:
        node = data.get("node")
        node = node if isinstance(node, str) else None
        value, maximum = _whole(data.get("value")), _whole(data.get("max"))
        if node is not None and self._class_of(node) == _SOCKET_OUTPUT:
            return  # it counts pictures, not steps
        if value is not None and maximum is not None:
            self._watch(Progress(self.prompt_id, node, value, maximum))

    def _executed(self, data: Mapping[str, Any]) -> None:
        node, output = data.get("node"), data.get("output")
        images = output.get("images") if isinstance(output, dict) else None
        if isinstance(node, str) and isinstance(images, list):
            self._made[node] = [file for file in map(_picture_file, images) if file is not None]

    def _success(self, _: Mapping[str, Any]) -> None:
        self.succeeded = self.ended = True

    def _failed(self, data: Mapping[str, Any]) -> None:
        self.ended = True
        failure: NodeFailed = node_failure(data)
        raise failure

    def _interrupted(self, _: Mapping[str, Any]) -> None:
        self.ended = True
        raise JobInterrupted("The job was interrupted in ComfyUI while it ran.", prompt_id=self.prompt_id)

    def _executing(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is None:
            self.left_engine = True

    def _class_of(self, node: str) -> object:
        entry = self._graph.get(node)
        return entry.get("class_type") if isinstance(entry, Mapping) else None


_HEARD: Mapping[str, Callable[[Job, Mapping[str, Any]], None]] = {
    "execution_start": Job._started,
    "execution_cached": Job._cached,
    "executing": Job._executing,
    "progress": Job._progressed,
    "executed": Job._executed,
    "execution_success": Job._success,
    "execution_error": Job._failed,
    "execution_interrupted": Job._interrupted,
}


def mime_of(filename: str) -> str | None:
    """By the file's ending; None if it is not a picture (videos come under `images` too)."""
    return _MIMES.get(filename.rpartition(".")[2].lower())


def _whole(value: object) -> int | None:
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


def _messages(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    status = entry.get("status")
    listed = status.get("messages") if isinstance(status, dict) else None
    pairs = listed if isinstance(listed, list) else []
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict)
    }
