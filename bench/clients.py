"""The clients that are compared: one sends requests to the gateway, one directly to the engine, as a plain client
would. Both keep their connections open and use the same HTTP library with the same options."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import requests
import websocket

from bench.lines import lines_of

PROMPT = "a lighthouse above a calm sea"
TIMEOUT_S = 900.0
_JSON = {"Content-Type": "application/json"}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Timing:
    """How long one picture took, in seconds, in all and for each stage that the client can tell apart."""

    total_s: float
    stages: Mapping[str, float]


class Client(Protocol):
    """One client with its own connections, for one thread."""

    def draw(self, seed: int) -> Timing:
        """Request a picture that was not drawn before and wait for its bytes."""

    def first_step_s(self, seed: int) -> float:
        """Seconds until the first sampler step of such a picture is reported. Returns when the picture is done."""

    def close(self) -> None: ...


class Route(Protocol):
    """How a client reaches the engine. A value that can be sent to another process."""

    @property
    def name(self) -> str: ...

    def open(self) -> Client:
        """A client with open connections."""


@dataclass(frozen=True)
class DirectRoute:
    """Directly to the engine, with the graph that the gateway would compile. `graph` is in API format."""

    url: str
    graph: Mapping[str, Any]
    name: str = "direct"

    def open(self) -> Client:
        return _DirectClient(self)


@dataclass(frozen=True)
class GatewayRoute:
    """Through Easel. `fields`: request fields besides prompt, seed and response_format."""

    url: str
    fields: Mapping[str, Any]
    as_url: bool = False

    @property
    def name(self) -> str:
        return "gateway, url + GET" if self.as_url else "gateway, b64_json"

    def open(self) -> Client:
        return _GatewayClient(self)


def session() -> requests.Session:
    """A session that keeps connections open and ignores the environment, so that no proxy is used for loopback
    addresses."""
    result = requests.Session()
    result.trust_env = False
    return result


class _DirectClient:
    """Makes as few calls as possible: it reads the file's name from the WebSocket and never requests the history."""

    def __init__(self, route: DirectRoute) -> None:
        self._url, self._graph = route.url, route.graph
        self._client_id = uuid.uuid4().hex
        self._session = session()
        self._session.get(f"{route.url}/prompt", timeout=TIMEOUT_S).raise_for_status()
        self._socket = websocket.create_connection(
            f"{route.url.replace('http', 'ws', 1)}/ws?clientId={self._client_id}",
            timeout=TIMEOUT_S,
            suppress_origin=True,
            skip_utf8_validation=True,
        )
        self._socket.recv()

    def draw(self, seed: int) -> Timing:
        started_at = time.perf_counter()
        prompt_id = self._submit(seed)
        submitted_at = time.perf_counter()
        file = self._wait(prompt_id)
        ended_at = time.perf_counter()
        response = self._session.get(f"{self._url}/view", params=file, timeout=TIMEOUT_S)
        _check_picture(response)
        fetched_at = time.perf_counter()
        stages = {
            "submit_s": submitted_at - started_at,
            "engine_s": ended_at - submitted_at,
            "fetch_s": fetched_at - ended_at,
        }
        return Timing(fetched_at - started_at, stages)

    def first_step_s(self, seed: int) -> float:
        started_at = time.perf_counter()
        prompt_id = self._submit(seed)
        elapsed_s = None
        while True:
            message = self._socket.recv()
            event = json.loads(message) if isinstance(message, str) else {}
            if event.get("data", {}).get("prompt_id") != prompt_id:
                continue
            if event["type"] == "progress" and elapsed_s is None:
                elapsed_s = time.perf_counter() - started_at
            elif event["type"] == "execution_success":
                assert elapsed_s is not None, "the engine reported no step"
                return elapsed_s

    def _submit(self, seed: int) -> str:
        prompt_id = str(uuid.uuid4())
        graph = with_seed(self._graph, seed, f"easel/{uuid.uuid4()}-0")
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id, "extra_data": {}}
        response = self._session.post(
            f"{self._url}/prompt", data=json.dumps(body), headers=_JSON, timeout=TIMEOUT_S
        )
        response.raise_for_status()
        return prompt_id

    def _wait(self, prompt_id: str) -> Mapping[str, str]:
        """The file of the job's picture, once the job has succeeded. Raises RuntimeError if it fails."""
        files: list[Mapping[str, str]] = []
        while True:
            message = self._socket.recv()
            event = json.loads(message) if isinstance(message, str) else {}
            data = event.get("data", {})
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "executed":
                files += data["output"].get("images", [])
            elif event["type"] in ("execution_error", "execution_interrupted"):
                raise RuntimeError(f"the job failed: {event}")
            elif event["type"] == "execution_success":
                return files[0]

    def close(self) -> None:
        self._socket.close()
        self._session.close()


class _GatewayClient:
    def __init__(self, route: GatewayRoute) -> None:
        self._route = route
        self._session = session()
        self._session.get(f"{route.url}/health", timeout=TIMEOUT_S).raise_for_status()

    def draw(self, seed: int) -> Timing:
        started_at = time.perf_counter()
        response_format = "url" if self._route.as_url else "b64_json"
        fields = {**self._route.fields, "prompt": PROMPT, "seed": seed, "response_format": response_format}
        response = self._session.post(
            f"{self._route.url}/v1/images/generations",
            data=json.dumps(fields),
            headers=_JSON,
            timeout=TIMEOUT_S,
        )
        if response.status_code != 200:
            raise RuntimeError(f"the gateway responded {response.status_code}: {response.text[:500]}")
        body = response.json()
        self._read_picture(body["data"][0])
        return Timing(time.perf_counter() - started_at, body["_hal0"]["timings"])

    def first_step_s(self, seed: int) -> float:
        started_at = time.perf_counter()
        fields = {**self._route.fields, "prompt": PROMPT, "seed": seed, "stream": True, "stream_options": {}}
        url = f"{self._route.url}/v1/images/generations"
        elapsed_s = None
        with self._session.post(
            url, data=json.dumps(fields), headers=_JSON, timeout=TIMEOUT_S, stream=True
        ) as response:
            response.raise_for_status()
            for line in lines_of(response):
                if elapsed_s is None and b'"progress":' in line and b'"progress":0.0' not in line:
                    elapsed_s = time.perf_counter() - started_at
        assert elapsed_s is not None, "the gateway reported no step"
        return elapsed_s

    def _read_picture(self, item: Mapping[str, str]) -> None:
        if self._route.as_url:
            _check_picture(self._session.get(item["url"], timeout=TIMEOUT_S))
        else:
            _check_png(base64.b64decode(item["b64_json"]))

    def close(self) -> None:
        self._session.close()


def with_seed(graph: Mapping[str, Any], seed: int, prefix: str) -> dict[str, Any]:
    """The graph with another seed and file name prefix, so that the engine does not return a cached picture."""
    new = {"seed": seed, "filename_prefix": prefix}
    return {
        node: {
            **entry,
            "inputs": {name: new.get(name, value) for name, value in entry["inputs"].items()},
        }
        for node, entry in graph.items()
    }


def _check_picture(response: requests.Response) -> None:
    response.raise_for_status()
    _check_png(response.content)


def _check_png(data: bytes) -> None:
    if not data.startswith(_PNG):
        raise RuntimeError("the picture is not a PNG")
