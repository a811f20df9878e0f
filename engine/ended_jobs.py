"""Jobs that ComfyUI has finished for another process: what its history and its output folder still have of them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from engine.errors import Graph
from engine.http import ComfyuiHttp
from engine.job import Job, messages_of
from engine.job_runner import fetch_picture
from engine.values import Outcome, Picture
from errors import EaselError, EngineUnreachable


def ended_job(http: ComfyuiHttp, prompt_id: str, graph: Graph, output: str) -> Outcome | None:
    """The outcome of a job that succeeded, with the pictures that its node `output` has saved. None if ComfyUI does not know
    the job, it has not ended or not succeeded, it had another graph, or its files are gone. Raises EngineUnreachable."""
    entry = http.history(prompt_id)
    if entry is None or not _has_graph(entry, graph):
        return None
    job = Job(prompt_id, graph, lambda _: None, time.monotonic, output)
    began_at = time.monotonic()
    try:
        job.read_history(entry)
        pictures = tuple(
            found if isinstance(found, Picture) else fetch_picture(http, prompt_id, node, found)
            for node, found in job.outputs()
        )
    except EngineUnreachable:
        raise
    except EaselError:
        return None
    if not pictures:
        return None
    return Outcome(
        prompt_id, pictures, job.cached_nodes, 0.0, _run_s(entry), fetch_s=time.monotonic() - began_at
    )


def _has_graph(entry: Mapping[str, Any], graph: Graph) -> bool:
    """Whether the job had this graph. ComfyUI writes more into its nodes than it got."""
    queued = entry.get("prompt")
    nodes = queued[2] if isinstance(queued, list) and len(queued) > 2 else None
    if not isinstance(nodes, dict) or nodes.keys() != graph.keys():
        return False
    return all(
        isinstance(node, dict)
        and node.get("class_type") == graph[name]["class_type"]
        and node.get("inputs") == json.loads(json.dumps(graph[name]["inputs"]))
        for name, node in nodes.items()
    )


def _run_s(entry: Mapping[str, Any]) -> float:
    """How long ComfyUI worked on the job, by its own clock; 0 if it does not say."""
    messages = messages_of(entry)
    with contextlib.suppress(KeyError, TypeError):
        began, ended = (messages[kind]["timestamp"] for kind in ("execution_start", "execution_success"))
        return max(0.0, float(ended - began) / 1000)
    return 0.0
