"""Two ways to the same picture: through the gateway, and straight to the engine as a plain client would go.
Both keep their connections and use the same HTTP library with the same options."""

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

PROMPT = "a lighthouse above a calm sea"
TIMEOUT_S = 900.0
_JSON = {"Content-Type": "application/json"}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Taken:
    """How long a picture took, seconds, and where the time went as far as this client knows."""

    total_s: float
    stages: Mapping[str, float]


class Client(Protocol):
    """One client with its own connections, for one thread."""

    def picture(self, seed: int) -> Taken:
        """Ask for a picture that was never drawn before and wait for its bytes."""

    def first_step(self, seed: int) -> float:
        """Seconds until the sampler's first step of such a picture is told; then wait for its end."""

    def close(self) -> None: ...


class Way(Protocol):
    """A way to a picture, as a value that can go to another process."""

    @property
    def name(self) -> str: ...

    def open(self) -> Client:
        """A client whose connections stand."""


@dataclass(frozen=True)
class Direct:
    """Straight to the engine with the graph that the gateway would compile. `graph` is in API format."""

    url: str
    graph: Mapping[str, Any]
    name: str = "direct"

    def open(self) -> Client:
        return _DirectClient(self)


@dataclass(frozen=True)
class Gateway:
    """Through Easel. `fields`: what a request has besides prompt, seed and response_format."""

    url: str
    fields: Mapping[str, Any]
    as_url: bool = False

    @property
    def name(self) -> str:
        return "gateway, url + GET" if self.as_url else "gateway, b64_json"

    def open(self) -> Client:
        return _GatewayClient(self)


def session() -> requests.Session:
    """Kept connections, and nothing taken from the environment: no proxy stands between us and a loopback address."""
    made = requests.Session()
    made.trust_env = False
    return made


class _DirectClient:
    """As lean as an honest client can be: it learns the file's name from the socket and never asks for the history."""

    def __init__(self, way: Direct) -> None:
        self._url, self._graph = way.url, way.graph
        self._client_id = uuid.uuid4().hex
        self._session = session()
        self._session.get(f"{way.url}/prompt", timeout=TIMEOUT_S).raise_for_status()
        self._socket = websocket.create_connection(
            f"{way.url.replace('http', 'ws', 1)}/ws?clientId={self._client_id}",
            timeout=TIMEOUT_S,
            suppress_origin=True,
            skip_utf8_validation=True,
        )
        self._socket.recv()

    def picture(self, seed: int) -> Taken:
        began = time.perf_counter()
        prompt_id = self._submit(seed)
        submitted = time.perf_counter()
        file = self._wait(prompt_id)
        ended = time.perf_counter()
        answer = self._session.get(f"{self._url}/view", params=file, timeout=TIMEOUT_S)
        _check_picture(answer, answer.content)
        done = time.perf_counter()
        stages = {"submit_s": submitted - began, "engine_s": ended - submitted, "fetch_s": done - ended}
        return Taken(done - began, stages)

    def first_step(self, seed: int) -> float:
        began = time.perf_counter()
        prompt_id = self._submit(seed)
        took = None
        while True:
            message = self._socket.recv()
            event = json.loads(message) if isinstance(message, str) else {}
            if event.get("data", {}).get("prompt_id") != prompt_id:
                continue
            if event["type"] == "progress" and took is None:
                took = time.perf_counter() - began
            elif event["type"] == "execution_success":
                assert took is not None, "the engine told of no step"
                return took

    def _submit(self, seed: int) -> str:
        prompt_id = str(uuid.uuid4())
        graph = reseeded(self._graph, seed, f"easel/{uuid.uuid4()}-0")
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id, "extra_data": {}}
        answer = self._session.post(
            f"{self._url}/prompt", data=json.dumps(body), headers=_JSON, timeout=TIMEOUT_S
        )
        answer.raise_for_status()
        return prompt_id

    def _wait(self, prompt_id: str) -> Mapping[str, str]:
        """The file of the job's picture, once the job has ended well."""
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
    def __init__(self, way: Gateway) -> None:
        self._way = way
        self._session = session()
        self._session.get(f"{way.url}/health", timeout=TIMEOUT_S).raise_for_status()

    def picture(self, seed: int) -> Taken:
        began = time.perf_counter()
        form = "url" if self._way.as_url else "b64_json"
        body = {**self._way.fields, "prompt": PROMPT, "seed": seed, "response_format": form}
        answer = self._session.post(
            f"{self._way.url}/v1/images/generations", data=json.dumps(body), headers=_JSON, timeout=TIMEOUT_S
        )
        if answer.status_code != 200:
            raise RuntimeError(f"the gateway answered {answer.status_code}: {answer.text[:500]}")
        told = answer.json()
        self._read(told["data"][0])
        return Taken(time.perf_counter() - began, told["_hal0"]["timings"])

    def first_step(self, seed: int) -> float:
        began = time.perf_counter()
        body = {**self._way.fields, "prompt": PROMPT, "seed": seed, "stream": True, "stream_options": {}}
        url = f"{self._way.url}/v1/images/generations"
        took = None
        with self._session.post(
            url, data=json.dumps(body), headers=_JSON, timeout=TIMEOUT_S, stream=True
        ) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines(chunk_size=1):
                if took is None and b'"progress":' in line and b'"progress":0.0' not in line:
                    took = time.perf_counter() - began
        assert took is not None, "the gateway told of no step"
        return took

    def _read(self, datum: Mapping[str, str]) -> None:
        if self._way.as_url:
            answer = self._session.get(datum["url"], timeout=TIMEOUT_S)
            _check_picture(answer, answer.content)
        else:
            _check_png(base64.b64decode(datum["b64_json"]))

    def close(self) -> None:
        self._session.close()


def reseeded(graph: Mapping[str, Any], seed: int, prefix: str) -> dict[str, Any]:
    """The graph with another seed and another prefix of its files: to the engine, a picture never drawn before."""
    new = {"seed": seed, "filename_prefix": prefix}
    return {
        node: {
            **entry,
            "inputs": {name: new.get(name, value) for name, value in entry["inputs"].items()},
        }
        for node, entry in graph.items()
    }


def _check_picture(answer: requests.Response, data: bytes) -> None:
    answer.raise_for_status()
    _check_png(data)


def _check_png(data: bytes) -> None:
    if not data.startswith(_PNG):
        raise RuntimeError("that is no PNG")
