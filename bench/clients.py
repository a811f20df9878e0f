"""The clients that are compared: one sends requests to the gateway (or to another server with the same API), one directly
to the engine. Both do as little as a client can: the standard library's HTTP on kept connections, a plain socket for the
engine's events, and no message is parsed that does not matter. So the difference is what the gateway costs."""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import requests

from bench.http import Http, wire_bytes
from bench.lines import lines_of
from bench.photo import MARGIN
from bench.websocket import BINARY, WebSocket

PROMPT = "a lighthouse above a calm sea"
REQUEST_ID = "bench-request"
"""The id in the graphs of `DirectRoute`. Each submission has its own instead."""
TIMEOUT_S = 900.0
DIRECT, DIRECT_SOCKET, GATEWAY, GATEWAY_URL = ROUTE_NAMES = (
    "direct",
    "direct, WebSocket",
    "gateway",
    "gateway, url + GET",
)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_COMPARED_BYTES = 65_536
_PREVIEW_HEADER_BYTES = 8
"""What ComfyUI puts before a picture in a binary message: the kind of the message and the picture's format"""


_FAILURES = ("execution_error", "execution_interrupted")
_FAILURE_MARKS = tuple(f'"{kind}"'.encode() for kind in _FAILURES)


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, and how long it took, in seconds, in all and for each stage that the client can tell apart."""

    picture: bytes
    total_s: float
    stages: Mapping[str, float] = field(default_factory=dict)


class Client(Protocol):
    """One client with its own connections, for one thread."""

    def draw(self, seed: int) -> Drawn:
        """Request a picture that was not drawn before and wait for its bytes."""

    def first_step_s(self, seed: int) -> float:
        """Seconds until the first sampler step of such a picture is reported. Returns when the picture is done."""

    def wire_bytes(self) -> int | None:
        """Bytes sent and received so far; None if the system does not count them."""

    def close(self) -> None: ...


class Route(Protocol):
    """How a client reaches the engine. A value that can be sent to another process."""

    @property
    def name(self) -> str: ...

    def open(self) -> Client:
        """A client with open connections."""


@dataclass(frozen=True)
class DirectRoute:
    """Directly to the engine, with the graph that the gateway would compile. `graph` is in API format and saves the
    picture of `size` x `size` pixels. `over_socket`: SaveImageWebsocket takes the place of SaveImage."""

    url: str
    graph: Mapping[str, Any]
    size: int
    over_socket: bool = False

    @property
    def name(self) -> str:
        return DIRECT_SOCKET if self.over_socket else DIRECT

    def open(self) -> Client:
        return _SocketPictureClient(self) if self.over_socket else _DirectClient(self)


@dataclass(frozen=True)
class GatewayRoute:
    """Through a server with OpenAI's images API. `fields`: request fields besides prompt, seed, size and response_format.
    `moves`: the model is one of `bench_photo`, which takes another part of the photo for each seed."""

    url: str
    fields: Mapping[str, Any]
    size: int
    as_url: bool = False
    moves: bool = False
    name: str = GATEWAY

    def open(self) -> Client:
        return _GatewayClient(self)


def session() -> requests.Session:
    """A session that keeps connections open and ignores the environment, so that no proxy is used for loopback
    addresses. For requests whose time is not compared."""
    result = requests.Session()
    result.trust_env = False
    return result


class _DirectClient:
    """Submits, reads the file's name from the event `executed`, fetches the file. Never requests queue or history."""

    def __init__(self, route: DirectRoute) -> None:
        self._graph, self._size = route.graph, route.size
        client_id = uuid.uuid4().hex
        self._submission = {"client_id": client_id, "extra_data": {}}
        self._http = Http(route.url, TIMEOUT_S)
        self._http.call("GET", "/prompt")
        self._socket = WebSocket(f"{route.url}/ws?clientId={client_id}", TIMEOUT_S)
        self._socket.receive()  # the first message says that the engine knows this client

    def draw(self, seed: int) -> Drawn:
        started_at = time.perf_counter()
        job = self._submit(seed)
        submitted_at = time.perf_counter()
        file = self._event(job, "executed")["output"]["images"][0]
        ended_at = time.perf_counter()
        picture = self._http.call("GET", f"/view?{urlencode(file)}")
        check_png(picture, self._size)
        fetched_at = time.perf_counter()
        stages = {
            "submit_s": submitted_at - started_at,
            "engine_s": ended_at - submitted_at,
            "fetch_s": fetched_at - ended_at,
        }
        return Drawn(picture, fetched_at - started_at, stages)

    def first_step_s(self, seed: int) -> float:
        started_at = time.perf_counter()
        job = self._submit(seed)
        self._event(job, "progress")
        elapsed_s = time.perf_counter() - started_at
        self._event(job, "execution_success")
        return elapsed_s

    def _submit(self, seed: int) -> str:
        job = str(uuid.uuid4())
        body = {
            **self._submission,
            "prompt": with_seed(self._graph, seed, job),
            "prompt_id": job,
        }
        self._http.call("POST", "/prompt", json.dumps(body).encode())
        return job

    def _event(self, job: str, kind: str) -> Any:
        """The data of the job's next event of this kind. Raises RuntimeError if the job ends before."""
        job_mark, kind_mark = job.encode(), f'"{kind}"'.encode()
        while True:
            opcode, message = self._socket.receive()
            if opcode == BINARY or job_mark not in message:
                continue
            if kind_mark in message or any(mark in message for mark in _FAILURE_MARKS):
                event = json.loads(message)
                if event["type"] == kind:
                    return event["data"]
                check_event(event)

    def wire_bytes(self) -> int | None:
        return wire_bytes([self._http.socket, self._socket.socket])

    def close(self) -> None:
        self._socket.close()
        self._http.close()


class _SocketPictureClient(_DirectClient):
    """The same with SaveImageWebsocket, which sends the picture over the WebSocket."""

    def __init__(self, route: DirectRoute) -> None:
        super().__init__(route)
        self._graph = over_socket(route.graph)

    def draw(self, seed: int) -> Drawn:
        started_at = time.perf_counter()
        job = self._submit(seed)
        submitted_at = time.perf_counter()
        picture = self._picture(job)
        check_png(picture, self._size)
        received_at = time.perf_counter()
        stages = {"submit_s": submitted_at - started_at, "engine_s": received_at - submitted_at}
        return Drawn(picture, received_at - started_at, stages)

    def _picture(self, job: str) -> bytes:
        """The next picture. It can only be of this job: there is one picture in a job, and one job at a time."""
        job_mark = job.encode()
        while True:
            opcode, message = self._socket.receive()
            if opcode == BINARY:
                if message.startswith(_PNG, _PREVIEW_HEADER_BYTES):
                    return message[_PREVIEW_HEADER_BYTES:]
            elif job_mark in message and any(mark in message for mark in _FAILURE_MARKS):
                check_event(json.loads(message))


class _GatewayClient:
    def __init__(self, route: GatewayRoute) -> None:
        self._route = route
        self._http = Http(route.url, TIMEOUT_S)
        response_format = "url" if route.as_url else "b64_json"
        self._fields = {
            **route.fields,
            "prompt": PROMPT,
            "size": f"{route.size}x{route.size}",
            "response_format": response_format,
        }

    def draw(self, seed: int) -> Drawn:
        started_at = time.perf_counter()
        content = self._http.call("POST", "/v1/images/generations", self._body(seed))
        try:
            answer = json.loads(content)
            picture = self._picture(answer["data"][0])
        except (ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"{self._route.name} sent no picture: {content[:200]!r}") from error
        check_png(picture, self._route.size)
        ended_at = time.perf_counter()
        return Drawn(picture, ended_at - started_at, answer.get("_hal0", {}).get("timings", {}))

    def first_step_s(self, seed: int) -> float:
        started_at = time.perf_counter()
        body = self._body(seed, stream=True, stream_options={})
        response = self._http.open("POST", "/v1/images/generations", body)
        elapsed_s = None
        has_picture = False
        for line in lines_of(response):
            if elapsed_s is None and b'"progress":' in line and b'"progress":0.0' not in line:
                elapsed_s = time.perf_counter() - started_at
            has_picture = has_picture or b'"b64_json":' in line
        if elapsed_s is None or not has_picture:
            raise RuntimeError(f"{self._route.name} reported no {'picture' if elapsed_s else 'step'}.")
        return elapsed_s

    def _body(self, seed: int, **more: Any) -> bytes:
        moved = dict(zip(("left", "top"), window(seed), strict=True)) if self._route.moves else {}
        return json.dumps({**self._fields, **moved, "seed": seed, **more}).encode()

    def _picture(self, item: Mapping[str, str]) -> bytes:
        if encoded := item.get("b64_json"):
            return base64.b64decode(encoded)
        parts = urlsplit(item["url"])
        return self._http.call("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)

    def wire_bytes(self) -> int | None:
        return wire_bytes([self._http.socket])

    def close(self) -> None:
        self._http.close()


def with_seed(graph: Mapping[str, Any], seed: int, request_id: str) -> dict[str, Any]:
    """The graph of another request: with its seed, its part of the photo and its file name, so that the engine does not
    return a cached picture."""
    left, top = window(seed)
    new = {"seed": seed, "x": left, "y": top}

    def changed(inputs: Mapping[str, Any]) -> dict[str, Any]:
        result = {name: new.get(name, value) for name, value in inputs.items()}
        if prefix := inputs.get("filename_prefix"):
            result["filename_prefix"] = prefix.replace(REQUEST_ID, request_id)
        return result

    return {node: {**entry, "inputs": changed(entry["inputs"])} for node, entry in graph.items()}


def over_socket(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The graph with SaveImageWebsocket in place of SaveImage."""
    return {
        node: {"class_type": "SaveImageWebsocket", "inputs": {"images": entry["inputs"]["images"]}}
        if entry["class_type"] == "SaveImage"
        else entry
        for node, entry in graph.items()
    }


def window(seed: int) -> tuple[int, int]:
    """Left and top edge of the part of the photo that a picture shows."""
    return seed % MARGIN, seed // MARGIN % MARGIN


def check_event(event: Mapping[str, Any]) -> None:
    """Raises RuntimeError if the event says that a job failed."""
    if event["type"] in _FAILURES:
        raise RuntimeError(f"The engine's job failed: {event}")


def check_png(data: bytes, size: int) -> None:
    """Raises RuntimeError unless this is a PNG of size x size pixels, from its beginning to its end."""
    if not (data.startswith(_PNG) and data.endswith(_PNG_END)):
        raise RuntimeError(f"The answer is not a complete PNG: {data[:60]!r} … {data[-20:]!r}")
    if (found := struct.unpack(">II", data[16:24])) != (size, size):
        raise RuntimeError(f"The picture has {found[0]}x{found[1]} pixels instead of {size}x{size}.")


def fingerprint(picture: bytes) -> int:
    """Equal for equal pictures, and practically never for others. Of a large picture it takes a sample, so that it costs
    nothing beside the drawing: the bytes of another PNG differ almost everywhere after the first other pixel."""
    return hash(picture[:: 1 + len(picture) // _COMPARED_BYTES])


def check_all_new(name: str, fingerprints: Sequence[int]) -> None:
    """Raises RuntimeError if the route `name` gave one picture for two seeds: it did not draw each of them."""
    if len(set(fingerprints)) < len(fingerprints):
        raise RuntimeError(f"{name} sent the same picture for different seeds, so its times mean nothing.")
