"""Runs jobs one at a time in a thread of its own, node by node, and keeps the results of the last graph."""

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
from sketch.nodes import run_node
from sketch.nodes.inputs import NodeInputs
from sketch.nodes.values import Value
from sketch.signatures import UPLOADS, Signatures
from sketch.sockets import Sockets

NEVER_CACHED = {"SaveImageWebsocket"}


class Interrupted(Exception):
    """Somebody stopped the running job."""


@dataclass(frozen=True)
class Done:
    """The result of a node."""

    outputs: tuple[Value, ...]
    shown: dict[str, Any] | None


class Worker(threading.Thread):
    """The one thread that draws."""

    def __init__(
        self, jobs: JobQueue, signatures: Signatures, folders: Folders, sockets: Sockets, render_s: float
    ) -> None:
        super().__init__(name="sketch-worker", daemon=True)
        self._jobs, self._sockets = jobs, sockets
        self._signatures, self._folders, self._render_s = signatures, folders, render_s
        self._cache: dict[str, Done] = {}

    def run(self) -> None:
        while not self._jobs.closed:
            job, free = self._jobs.take()
            if free:
                self._cache = {}
            if job:
                self._do(job)

    def _do(self, job: Job) -> None:
        execution = Execution(
            job, self._signatures, self._folders, self._sockets, self._render_s, self._cache
        )
        entry = execution.run()
        self._cache = execution.cache
        self._jobs.finish(entry)
        execution.tell("executing", {"node": None, "prompt_id": job.prompt_id})
        self._sockets.at_work(None, None)


class Execution:
    """One job while it runs. `cache` holds the results of its nodes by signature, old ones that still fit included."""

    def __init__(
        self,
        job: Job,
        signatures: Signatures,
        folders: Folders,
        sockets: Sockets,
        render_s: float,
        cache: Mapping[str, Done],
    ) -> None:
        self.job, self.folders, self.render_s = job, folders, render_s
        self.signatures, self.sockets = signatures, sockets
        self.client = job.extra_data.get("client_id")
        self.keys = Fingerprints(job.prompt, signatures, folders).all()
        self.cache = {key: cache[key] for key in self.keys.values() if key in cache}
        self.old = {node_id for node_id, key in self.keys.items() if key in self.cache}
        self.executed: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}
        self._messages: list[tuple[str, dict[str, Any]]] = []

    def run(self) -> dict[str, Any]:
        """Draws, telling the client as it goes. Gives the entry of the history, without the job itself."""
        self._say("execution_start", {})
        self._say(
            "execution_cached", {"nodes": [node_id for node_id in self.job.prompt if node_id in self.old]}
        )
        ended = self._run_nodes()
        if ended:
            self._say("execution_success", {})
        status = {
            "status_str": "success" if ended else "error",
            "completed": ended,
            "messages": [list(message) for message in self._messages],
        }
        return {"outputs": self._shown(), "status": status, "meta": self._meta()}

    def _run_nodes(self) -> bool:
        for node_id in order(self.job.prompt, self.job.outputs, self.old, self.signatures):
            try:
                self._run_node(node_id)
            except Interrupted:
                self._say("execution_interrupted", self._where(node_id))
                return False
            except Exception as error:
                self._say("execution_error", self._where(node_id) | self._why(node_id, error))
                return False
            self.executed.append(node_id)
        return True

    def _run_node(self, node_id: str) -> None:
        done = self.cache.get(self.keys[node_id])
        if done:
            self._show(node_id, done)
            self._state(node_id, "finished", 1, 1)
            return
        self._state(node_id, "running", 0.0, 1.0)
        self.sockets.at_work(self.client, node_id)
        self.tell("executing", {"node": node_id, "display_node": node_id, "prompt_id": self.job.prompt_id})
        node = self.job.prompt[node_id]
        given = NodeInputs(
            node["class_type"], self.signatures.nodes[node["class_type"]], self._inputs(node_id)
        )
        stage = JobNodeContext(self, node_id)
        stage.pause(0)
        done = Done(*run_node(given, stage))
        self.cache[self.keys[node_id]] = done
        self._show(node_id, done)
        most = self.states[node_id]["max"]
        self._state(node_id, "finished", most, most)

    def _inputs(self, node_id: str) -> dict[str, Any]:
        """The inputs of a node, with what came out of other nodes in the place of links."""
        inputs = self.job.prompt[node_id]["inputs"]
        return {name: self._output(*value) if _is_link(value) else value for name, value in inputs.items()}

    def _output(self, node_id: str, slot: int) -> Value:
        return self.cache[self.keys[node_id]].outputs[slot]

    # --- telling ---

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Sends an event to the job's client; nothing when it named none."""
        if self.client is not None:
            self.sockets.send(event, data, self.client)

    def _say(self, event: str, data: dict[str, Any]) -> None:
        """The same, and the history keeps it."""
        data = {"prompt_id": self.job.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        if event == "execution_cached":
            data = {"nodes": data["nodes"], **data}
        self._messages.append((event, data))
        self.tell(event, data)

    def _show(self, node_id: str, done: Done) -> None:
        if done.shown:
            told = {
                "node": node_id,
                "display_node": node_id,
                "output": done.shown,
                "prompt_id": self.job.prompt_id,
            }
            self.tell("executed", told)

    def _state(self, node_id: str, state: str, value: float, most: float) -> None:
        self.states[node_id] = {
            "value": value,
            "max": most,
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

    def progress(self, node_id: str, value: int, most: int, picture: tuple[str, bytes] | None) -> None:
        """A step of a node; without a client everybody hears it, as in ComfyUI."""
        self._state(node_id, "running", value, most)
        told = {"value": value, "max": most, "prompt_id": self.job.prompt_id, "node": node_id}
        self.sockets.send_progress(told, picture, self.client)

    def _where(self, node_id: str) -> dict[str, Any]:
        return {
            "node_id": node_id,
            "node_type": self.job.prompt[node_id]["class_type"],
            "executed": list(self.executed),
        }

    def _why(self, node_id: str, error: Exception) -> dict[str, Any]:
        kind = type(error)
        module = "" if kind.__module__ in ("builtins", "__main__") else kind.__module__ + "."
        try:
            inputs = {name: [_written(value)] for name, value in self._inputs(node_id).items()}
        except (KeyError, IndexError, TypeError):
            inputs = {}
        return {
            "exception_message": f"{error}\n",
            "exception_type": module + kind.__qualname__,
            "traceback": [],
            "current_inputs": inputs,
            "current_outputs": list(self.job.prompt),
        }

    def _shown(self) -> dict[str, Any]:
        found = {node_id: self.cache.get(key) for node_id, key in self.keys.items()}
        return {node_id: done.shown for node_id, done in found.items() if done and done.shown}

    def _meta(self) -> dict[str, Any]:
        return {
            node_id: {
                "node_id": node_id,
                "display_node": node_id,
                "parent_node": None,
                "real_node_id": node_id,
            }
            for node_id in self._shown()
        }


class JobNodeContext:
    """What one node may use while it runs; see `given.Stage`."""

    def __init__(self, execution: Execution, node_id: str) -> None:
        self._execution, self._node_id = execution, node_id
        self.folders, self.render_s = execution.folders, execution.render_s
        self.prompt, self.extra_data = execution.job.prompt, execution.job.extra_data

    def wants_previews(self) -> bool:
        wanted = self.extra_data.get("preview_method") != "none"
        return wanted and self._execution.sockets.listening(self._execution.client)

    def pause(self, seconds: float) -> None:
        if self._execution.job.interrupted.wait(seconds):
            raise Interrupted

    def progress(self, value: int, maximum: int, picture: tuple[str, bytes] | None = None) -> None:
        self.pause(0)
        self._execution.progress(self._node_id, value, maximum, picture)


class Fingerprints:
    """Tells nodes that would give the same result: class, plain inputs and all above them; node ids do not matter."""

    def __init__(self, prompt: Mapping[str, Any], signatures: Signatures, folders: Folders) -> None:
        self._prompt, self._signatures, self._folders = prompt, signatures, folders
        self._found: dict[str, str] = {}

    def all(self) -> dict[str, str]:
        """The fingerprint of each node."""
        return {node_id: self._of(node_id) for node_id in self._prompt}

    def _of(self, node_id: str) -> str:
        if node_id not in self._found:
            self._found[node_id] = (
                uuid.uuid4().hex
            )  # stays for what cannot be told: a cycle, a link into nowhere
            self._found[node_id] = self._made(node_id)
        return self._found[node_id]

    def _made(self, node_id: str) -> str:
        node = self._prompt[node_id]
        told = [node["class_type"]]
        if node["class_type"] in NEVER_CACHED:
            told.append(uuid.uuid4().hex)
        signature = self._signatures.nodes[node["class_type"]]
        for name, value in sorted(node["inputs"].items()):
            told += [name, self._value(value)]
            if name in signature.inputs and signature.inputs[name].folder == UPLOADS:
                told.append(self._file(value))
        return blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def _value(self, value: Any) -> str:
        if _is_link(value):
            source = self._of(value[0]) if value[0] in self._prompt else uuid.uuid4().hex
            return f"{source}:{value[1]}"
        return json.dumps(value, sort_keys=True)

    def _file(self, name: Any) -> str:
        """What is in a file that a node names, whatever stands there in the place of a name."""
        place = self._folders.uploaded(name) if isinstance(name, str) else None
        try:
            return blake2b(place.read_bytes(), digest_size=16).hexdigest() if place else ""
        except OSError:
            return ""  # a directory, or just gone: the node that opens it will say so


def order(prompt: Mapping[str, Any], outputs: list[str], old: set[str], signatures: Signatures) -> list[str]:
    """The nodes in the order ComfyUI runs them: what the outputs need, each after its sources, nearest to an output
    first. A cached node needs nothing, and is met only where it is an output itself."""
    needs: dict[str, set[str]] = {}
    for output in outputs:
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id not in needs:
                needs[node_id] = set() if node_id in old else _sources(prompt[node_id]) - old
                stack += [source for source in _sources_in_order(prompt[node_id]) if source in needs[node_id]]
    users: dict[str, list[str]] = {node_id: [] for node_id in needs}
    for node_id, sources in needs.items():
        for source in sources:
            users[source].append(node_id)
    far = {node_id: _distance(node_id, prompt, users, signatures) for node_id in needs}
    done: list[str] = []
    while needs:
        ready = [node_id for node_id, sources in needs.items() if not sources]
        done.append(min(ready, key=lambda node_id: far[node_id]))
        del needs[done[-1]]
        for sources in needs.values():
            sources.discard(done[-1])
    return done


def _distance(
    node_id: str, prompt: Mapping[str, Any], users: Mapping[str, list[str]], signatures: Signatures
) -> int:
    """0 for an output node, 1 or 2 for what stands directly before one, 3 for all else."""
    level = [node_id]
    for distance in range(3):
        if any(signatures.nodes[prompt[each]["class_type"]].output_node for each in level):
            return distance
        level = list(itertools.chain.from_iterable(users[each] for each in level))
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


def _written(value: Any) -> Any:
    """A value for the report of an error: plain ones as they are, others by their name."""
    return value if value is None or isinstance(value, int | float | str) else str(value)
