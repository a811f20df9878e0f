"""Runs jobs one at a time in its own thread, node by node, and caches the results of the last graph."""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sketch.folders import Folders
from sketch.jobs import Job, JobQueue
from sketch.nodes import CannotSketch, run_node
from sketch.nodes.inputs import GraphFault, Interrupted, NodeInputs
from sketch.nodes.values import Value
from sketch.signatures import INPUT_FOLDER, Signatures
from sketch.simulated_gpu import SimulatedGpu
from sketch.sockets import Sockets

NEVER_CACHED = {"SaveImageWebsocket"}


@dataclass(frozen=True)
class NodeResult:
    """What a node returned. `ui`: what it reports to the user interface, if anything."""

    outputs: tuple[Value, ...]
    ui: dict[str, Any] | None


class Worker(threading.Thread):
    """The thread that draws."""

    def __init__(
        self,
        jobs: JobQueue,
        signatures: Signatures,
        folders: Folders,
        sockets: Sockets,
        render_s: float,
        gpu: SimulatedGpu | None = None,
    ) -> None:
        super().__init__(name="sketch-worker", daemon=True)
        self._jobs, self._sockets = jobs, sockets
        self._signatures, self._folders, self._render_s = signatures, folders, render_s
        self._gpu = gpu
        self._cache: dict[str, NodeResult] = {}

    def run(self) -> None:
        while not self._jobs.closed:
            job, free = self._jobs.take()
            if free:
                self._cache = {}
                if self._gpu:
                    self._gpu.free()
            if job:
                self._run_job(job)

    def _run_job(self, job: Job) -> None:
        execution = Execution(
            job, self._signatures, self._folders, self._sockets, self._render_s, self._cache, self._gpu
        )
        entry = execution.run()
        self._cache = execution.cache
        self._jobs.finish(entry)
        execution.send("executing", {"node": None, "prompt_id": job.prompt_id})
        self._sockets.set_running_node(None, None)


class Execution:
    """One running job. `cache`: the results of its nodes by fingerprint, including still valid results of the last job."""

    def __init__(
        self,
        job: Job,
        signatures: Signatures,
        folders: Folders,
        sockets: Sockets,
        render_s: float,
        cache: Mapping[str, NodeResult],
        gpu: SimulatedGpu | None = None,
    ) -> None:
        self._gpu = gpu
        self.job, self.folders, self.render_s = job, folders, render_s
        self.signatures, self.sockets = signatures, sockets
        self.client = job.extra_data.get("client_id")
        self._failure: Exception | None = None
        """Why the graph as a whole cannot be run; it must not end the thread that runs all jobs"""
        self.keys: dict[str, str] = {}
        self._order: list[str] = []
        self.cache: dict[str, NodeResult] = {}
        self.cached: set[str] = set()
        self.executed: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}
        self._messages: list[tuple[str, dict[str, Any]]] = []
        try:
            self._plan(cache)
        except Exception as error:
            self._failure = error

    def _plan(self, cache: Mapping[str, NodeResult]) -> None:
        self.keys = Fingerprints(self.job.prompt, self.signatures, self.folders).all()
        self.cache = {
            key: cache[key] for key in self.keys.values() if key in cache and self._has_files(cache[key])
        }
        self.cached = {node_id for node_id, key in self.keys.items() if key in self.cache}
        self._order = execution_order(self.job.prompt, self.job.outputs, self.cached, self.signatures)

    def _has_files(self, result: NodeResult) -> bool:
        """Whether the pictures that the node saved are still there."""
        files = (result.ui or {}).get("images", ())
        return all(
            (self.folders.of(file["type"]) / file["subfolder"] / file["filename"]).exists() for file in files
        )

    def run(self) -> dict[str, Any]:
        """Run the nodes and send events to the client. Returns the history entry, without the job itself."""
        self._send_and_record("execution_start", {})
        self._send_and_record(
            "execution_cached", {"nodes": [node_id for node_id in self.job.prompt if node_id in self.cached]}
        )
        succeeded = self._run_nodes()
        if succeeded:
            self._send_and_record("execution_success", {})
        status = {
            "status_str": "success" if succeeded else "error",
            "completed": succeeded,
            "messages": [list(message) for message in self._messages],
        }
        return {"outputs": self._ui_outputs(), "status": status, "meta": self._meta()}

    def _run_nodes(self) -> bool:
        for node_id in self.job.outputs if self._failure else self._order:
            try:
                if self._failure:
                    raise CannotSketch(
                        "Easel's sketch engine, which draws without models, cannot run this graph "
                        f"({type(self._failure).__name__}). A ComfyUI can: set engine.url."
                    ) from self._failure
                self._run_node(node_id)
            except Interrupted:
                self._send_and_record("execution_interrupted", self._node_info(node_id))
                return False
            except Exception as error:
                if isinstance(error, GraphFault) and isinstance(error.__cause__, Exception):
                    error = error.__cause__
                details = self._node_info(node_id) | self._error_info(node_id, error)
                self._send_and_record("execution_error", details)
                return False
            self.executed.append(node_id)
        return True

    def _run_node(self, node_id: str) -> None:
        result = self.cache.get(self.keys[node_id])
        if result:
            self._send_ui_output(node_id, result)
            self._send_state(node_id, "finished", 1, 1)
            return
        self._send_state(node_id, "running", 0.0, 1.0)
        self.sockets.set_running_node(self.client, node_id)
        self.send("executing", {"node": node_id, "display_node": node_id, "prompt_id": self.job.prompt_id})
        node = self.job.prompt[node_id]
        inputs = NodeInputs(
            node["class_type"], self.signatures.nodes[node["class_type"]], self._inputs(node_id)
        )
        context = JobNodeContext(self, node_id)
        context.pause(0)
        if self._gpu:
            self._gpu.load()
        result = NodeResult(*run_node(inputs, context))
        self.cache[self.keys[node_id]] = result
        self._send_ui_output(node_id, result)
        maximum = self.states[node_id]["max"]
        self._send_state(node_id, "finished", maximum, maximum)

    def _inputs(self, node_id: str) -> dict[str, Any]:
        """The inputs of a node, with links replaced by the outputs of other nodes."""
        inputs = self.job.prompt[node_id]["inputs"]
        return {name: self._output(*value) if _is_link(value) else value for name, value in inputs.items()}

    def _output(self, node_id: str, slot: int) -> Value:
        return self.cache[self.keys[node_id]].outputs[slot]

    # --- events ---

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Send an event to the job's client, if it has one."""
        if self.client is not None:
            self.sockets.send(event, data, self.client)

    def _send_and_record(self, event: str, data: dict[str, Any]) -> None:
        """Send an event and record it in the history."""
        data = {"prompt_id": self.job.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        if event == "execution_cached":
            data = {"nodes": data["nodes"], **data}
        self._messages.append((event, data))
        self.send(event, data)

    def _send_ui_output(self, node_id: str, result: NodeResult) -> None:
        if result.ui:
            data = {
                "node": node_id,
                "display_node": node_id,
                "output": result.ui,
                "prompt_id": self.job.prompt_id,
            }
            self.send("executed", data)

    def _send_state(self, node_id: str, state: str, value: float, maximum: float) -> None:
        self.states[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self.job.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self.sockets.send(
            "progress_state", {"prompt_id": self.job.prompt_id, "nodes": dict(self.states)}, self.client
        )

    def progress(self, node_id: str, value: int, maximum: int, picture: tuple[str, bytes] | None) -> None:
        """Send a step of a node; if the job has no client, to all clients, as in ComfyUI."""
        self._send_state(node_id, "running", value, maximum)
        data = {"value": value, "max": maximum, "prompt_id": self.job.prompt_id, "node": node_id}
        self.sockets.send_progress(data, picture, self.client)

    def _node_info(self, node_id: str) -> dict[str, Any]:
        return {
            "node_id": node_id,
            "node_type": self.job.prompt[node_id]["class_type"],
            "executed": list(self.executed),
        }

    def _error_info(self, node_id: str, error: Exception) -> dict[str, Any]:
        error_class = type(error)
        module = error_class.__module__
        prefix = "" if module in ("builtins", "__main__") else module + "."
        try:
            inputs = {name: [_serializable(value)] for name, value in self._inputs(node_id).items()}
        except (KeyError, IndexError, TypeError):
            inputs = {}
        return {
            "exception_message": f"{error}\n",
            "exception_type": prefix + error_class.__qualname__,
            "traceback": [],
            "current_inputs": inputs,
            "current_outputs": list(self.job.prompt),
        }

    def _ui_outputs(self) -> dict[str, Any]:
        results = {node_id: self.cache.get(key) for node_id, key in self.keys.items()}
        return {node_id: result.ui for node_id, result in results.items() if result and result.ui}

    def _meta(self) -> dict[str, Any]:
        return {
            node_id: {
                "node_id": node_id,
                "display_node": node_id,
                "parent_node": None,
                "real_node_id": node_id,
            }
            for node_id in self._ui_outputs()
        }


class JobNodeContext:
    """Implements `inputs.NodeContext` for one node of a job."""

    def __init__(self, execution: Execution, node_id: str) -> None:
        self._execution, self._node_id = execution, node_id
        self.folders, self.render_s = execution.folders, execution.render_s
        self.prompt, self.extra_data = execution.job.prompt, execution.job.extra_data

    def wants_previews(self) -> bool:
        enabled = self.extra_data.get("preview_method") != "none"
        return enabled and self._execution.sockets.is_connected(self._execution.client)

    def pause(self, seconds: float) -> None:
        if self._execution.job.interrupted.wait(seconds):
            raise Interrupted

    def progress(self, value: int, maximum: int, picture: tuple[str, bytes] | None = None) -> None:
        self.pause(0)
        self._execution.progress(self._node_id, value, maximum, picture)


class Fingerprints:
    """Nodes with the same fingerprint give the same result. It covers class, plain inputs and all source nodes, but not
    node ids."""

    def __init__(self, prompt: Mapping[str, Any], signatures: Signatures, folders: Folders) -> None:
        self._prompt, self._signatures, self._folders = prompt, signatures, folders
        self._fingerprints: dict[str, str] = {}

    def all(self) -> dict[str, str]:
        """The fingerprint of each node."""
        return {node_id: self._of(node_id) for node_id in self._prompt}

    def _of(self, node_id: str) -> str:
        if node_id not in self._fingerprints:
            # Ends the recursion in a cycle.
            self._fingerprints[node_id] = uuid.uuid4().hex
            self._fingerprints[node_id] = self._compute(node_id)
        return self._fingerprints[node_id]

    def _compute(self, node_id: str) -> str:
        node = self._prompt[node_id]
        parts = [node["class_type"]]
        if node["class_type"] in NEVER_CACHED:
            parts.append(uuid.uuid4().hex)
        inputs = self._signatures.nodes[node["class_type"]].inputs_for(node["inputs"])
        for name, value in sorted(node["inputs"].items()):
            parts += [name, self._value(value)]
            if name in inputs and inputs[name].folder == INPUT_FOLDER:
                parts.append(self._file_digest(value))
        return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def _value(self, value: Any) -> str:
        if _is_link(value):
            source = self._of(value[0]) if value[0] in self._prompt else uuid.uuid4().hex
            return f"{source}:{value[1]}"
        return json.dumps(value, sort_keys=True)

    def _file_digest(self, name: Any) -> str:
        """A digest of the file that a node reads; empty if `name` is not the name of a file."""
        path = self._folders.image_path(name) if isinstance(name, str) else None
        try:
            return blake2b(path.read_bytes(), digest_size=16).hexdigest() if path else ""
        except OSError:
            return ""  # a directory, or just deleted: the node that opens it reports the error


def execution_order(
    prompt: Mapping[str, Any], outputs: list[str], cached: set[str], signatures: Signatures
) -> list[str]:
    """The nodes that the outputs need, in the order in which ComfyUI runs them: each after its sources, and the node
    nearest to an output first. A cached node needs no sources, and is included only if it is an output itself."""
    needs: dict[str, set[str]] = {}
    for output in outputs:
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id not in needs:
                needs[node_id] = set() if node_id in cached else _sources(prompt[node_id]) - cached
                stack += [source for source in _sources_in_order(prompt[node_id]) if source in needs[node_id]]
    users: dict[str, list[str]] = {node_id: [] for node_id in needs}
    for node_id, sources in needs.items():
        for source in sources:
            users[source].append(node_id)
    distances = {node_id: _distance(node_id, prompt, users, signatures) for node_id in needs}
    order: list[str] = []
    while needs:
        ready = [node_id for node_id, sources in needs.items() if not sources]
        order.append(min(ready, key=lambda node_id: distances[node_id]))
        del needs[order[-1]]
        for sources in needs.values():
            sources.discard(order[-1])
    return order


def _distance(
    node_id: str, prompt: Mapping[str, Any], users: Mapping[str, list[str]], signatures: Signatures
) -> int:
    """Links to the nearest output node: 0 for an output node itself, 1, 2, or 3 for all that are further away."""
    level = [node_id]
    for distance in range(3):
        if any(signatures.nodes[prompt[user]["class_type"]].output_node for user in level):
            return distance
        level = list(itertools.chain.from_iterable(users[user] for user in level))
    return 3


def _sources(node: Mapping[str, Any]) -> set[str]:
    return set(_sources_in_order(node))


def _sources_in_order(node: Mapping[str, Any]) -> list[str]:
    return [value[0] for value in node["inputs"].values() if _is_link(value)]


def _is_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _serializable(value: Any) -> Any:
    """A value for an error event: numbers and texts unchanged, other values as text."""
    return value if value is None or isinstance(value, int | float | str) else str(value)
