"""What front ends and hosts send each other, as JSON.

Both may differ by one version: `v` is the form of the documents, what is not known is ignored, and what is missing has a
default. Change FORM only if an older reader would do something wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from arbiter import Sender
from compiler import Compiled, Graph, Plan, Size, Task
from compiler.values import JobPlan, PlannedValue
from engine import Outcome, Picture
from errors import ClusterMessageInvalid, EaselError, error_from_code

FORM = 1
READABLE_FORMS = (FORM,)
"""Those that this version understands: also the one before, once there is one"""


@dataclass(frozen=True)
class JobDocument:
    """One job as a host gets it. `front`: the process that waits for it. `uploads`: name, number of bytes and SHA-256 of
    each file that its graph reads, in order; all jobs of a request have the same. `timeout_s`: how long it may take on the
    host, with its wait for the GPU if `counts_waiting`. `prompt`: what the status shows of it."""

    id: str
    request_id: str
    front: str
    compiled: Compiled
    uploads: tuple[tuple[str, int, str], ...]
    timeout_s: float
    counts_waiting: bool
    previews: bool
    sender: Sender
    prompt: str

    def as_json(self) -> dict[str, Any]:
        plan, (graph,) = self.compiled.plan, self.compiled.graphs
        loras = plan.values["loras"].value if "loras" in plan.values else ()
        return {
            "v": FORM,
            "id": self.id,
            "request_id": self.request_id,
            "front": self.front,
            "model": plan.model,
            "workflow": plan.workflow,
            "template": plan.template,
            "task": plan.task,
            "size": [plan.size.width, plan.size.height],
            "canvas": [plan.canvas.width, plan.canvas.height],
            "prefix": plan.prefix,
            "stages": dict(plan.stages),
            "loras": [lora["id"] for lora in loras or ()],
            "seed": graph.job.seed,
            "batch": graph.job.batch,
            "nodes": {name: dict(node) for name, node in graph.nodes.items()},
            "output": graph.output,
            "crops": graph.crops,
            "uploads": [list(each) for each in self.uploads],
            "timeout_s": self.timeout_s,
            "counts_waiting": self.counts_waiting,
            "previews": self.previews,
            "sender": {
                "request_id": self.sender.request_id,
                "client": self.sender.client,
                "key": self.sender.key,
                "trace": self.sender.trace,
                "owner": self.sender.owner,
            },
            "prompt": self.prompt,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> JobDocument:
        """Raises ClusterMessageInvalid."""
        _check_form(document)
        try:
            job = JobPlan(int(document["seed"]), int(document["batch"]))
            loras = [{"id": str(name)} for name in document.get("loras", ())]
            plan = Plan(
                model=str(document["model"]),
                workflow=str(document["workflow"]),
                template=str(document["template"]),
                task=cast(Task, document["task"]),
                size=Size(*map(int, document["size"])),
                canvas=Size(*map(int, document["canvas"])),
                prefix=str(document["prefix"]),
                values={"loras": PlannedValue(loras, "request")},
                jobs=(job,),
                stages=dict(document.get("stages", {})),
            )
            graph = Graph(
                dict(document["nodes"]),
                job,
                plan.template,
                str(document["output"]),
                bool(document.get("crops", True)),
            )
            return cls(
                id=str(document["id"]),
                request_id=str(document["request_id"]),
                front=str(document["front"]),
                compiled=Compiled(plan, (graph,)),
                uploads=tuple(
                    (str(name), int(size), str(digest)) for name, size, digest in document.get("uploads", ())
                ),
                timeout_s=float(document["timeout_s"]),
                counts_waiting=bool(document.get("counts_waiting", True)),
                previews=bool(document.get("previews", False)),
                sender=Sender(**{name: str(document["sender"].get(name, "")) for name in _SENDER}),
                prompt=str(document.get("prompt", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterMessageInvalid(
                f"A job has not the form of one: {type(error).__name__} {error}."
            ) from error


_SENDER = ("request_id", "client", "key", "trace", "owner")


@dataclass(frozen=True)
class ResultDocument:
    """How a job has ended on a host. `pictures`: node, MIME type, number of bytes and SHA-256 of each; their bytes come
    apart. `nodes`: the graph that saves its pictures, as the engine got it. `waited_s`: for the GPU. `error`: why there are
    no pictures; `is_hosts_fault`: another host may draw it."""

    attempt: int
    host: str
    engine: str = ""
    is_sketch: bool = False
    uses_gpu: bool = True
    pictures: tuple[tuple[str, str, int, str], ...] = ()
    cached_nodes: tuple[str, ...] = ()
    nodes: Mapping[str, Any] | None = None
    waited_s: float = 0.0
    queued_s: float = 0.0
    run_s: float = 0.0
    fetch_s: float = 0.0
    error: EaselError | None = None
    is_hosts_fault: bool = False
    has_begun: bool = False
    """Whether the engine had the job before it failed"""

    def as_json(self) -> dict[str, Any]:
        error = self.error
        return {
            "v": FORM,
            "attempt": self.attempt,
            "host": self.host,
            "engine": self.engine,
            "is_sketch": self.is_sketch,
            "uses_gpu": self.uses_gpu,
            "pictures": [list(each) for each in self.pictures],
            "cached_nodes": list(self.cached_nodes),
            "nodes": None if self.nodes is None else {name: dict(node) for name, node in self.nodes.items()},
            "waited_s": self.waited_s,
            "queued_s": self.queued_s,
            "run_s": self.run_s,
            "fetch_s": self.fetch_s,
            "error": None if error is None else error_document(error),
            "is_hosts_fault": self.is_hosts_fault,
            "has_begun": self.has_begun,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> ResultDocument:
        """Raises ClusterMessageInvalid."""
        _check_form(document)
        try:
            error = document.get("error")
            return cls(
                attempt=int(document["attempt"]),
                host=str(document["host"]),
                engine=str(document.get("engine", "")),
                is_sketch=bool(document.get("is_sketch", False)),
                uses_gpu=bool(document.get("uses_gpu", True)),
                pictures=tuple(
                    (str(node), str(mime), int(size), str(digest))
                    for node, mime, size, digest in document.get("pictures", ())
                ),
                cached_nodes=tuple(map(str, document.get("cached_nodes", ()))),
                nodes=document.get("nodes"),
                waited_s=float(document.get("waited_s", 0.0)),
                queued_s=float(document.get("queued_s", 0.0)),
                run_s=float(document.get("run_s", 0.0)),
                fetch_s=float(document.get("fetch_s", 0.0)),
                error=None if error is None else error_of(error),
                is_hosts_fault=bool(document.get("is_hosts_fault", False)),
                has_begun=bool(document.get("has_begun", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterMessageInvalid(
                f"A result has not the form of one: {type(error).__name__} {error}."
            ) from error

    def outcome(self, prompt_id: str, pictures: Sequence[bytes]) -> Outcome:
        """With the bytes of its pictures."""
        made = zip(pictures, self.pictures, strict=True)
        return Outcome(
            prompt_id,
            tuple(Picture(data, node, mime) for data, (node, mime, _, _) in made),
            self.cached_nodes,
            self.queued_s,
            self.run_s,
            self.fetch_s,
        )


def error_document(error: EaselError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "details": dict(error.details),
    }


def error_of(document: Mapping[str, Any]) -> EaselError:
    """Raises KeyError, TypeError, ValueError or AttributeError if it is none."""
    found = error_from_code(str(document["code"]), str(document["message"]), **dict(document["details"]))
    found.param = document.get("param")
    return found


def _check_form(document: Mapping[str, Any]) -> None:
    if document.get("v") not in READABLE_FORMS:
        raise ClusterMessageInvalid(
            f"A message has the form {document.get('v')!r}, which this version of Easel does not understand. All hosts may "
            "differ by one version."
        )
