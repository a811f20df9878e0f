"""The Engine: one ComfyUI by its URL, for all the threads of a process."""

from __future__ import annotations

import base64
import logging
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from engine.http import ComfyuiHttp
from engine.job import Job
from engine.job_runner import TAKE_BACK_S, JobRunner, take_back
from engine.listener import CancelSignal, Inbox, Listener
from engine.values import EngineStats, Outcome, Preview, Progress, QueueState
from engine.watchdog import Limits
from errors import EaselError, EngineError, RequestCancelled

log = logging.getLogger(__name__)

_PING_S = 20.0
_SUBFOLDER = "easel"
_NOTHING = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A PNG of one black pixel"""
_FORGET_S = 3.0
_FREE_S = 15.0
_FREE_STEP_S = 0.2
_FREE_STEADY = 4
"""Looks in a row without memory coming free that count as the end of it."""
_FREE_NOISE = 32 * 2**20


def upload_name(name: str) -> str:
    """What LoadImage calls the image that `Engine.upload` stores under `name`."""
    return f"{_SUBFOLDER}/{name} [temp]"


class Engine:
    """One ComfyUI. Safe for many threads; connects nowhere until it is used, and afresh after a fork.

    `stall_timeout_s`: how long a running job may be silent before its engine counts as stuck; it must exceed the
    slowest load of a model, which is silent too. `poll_s`: how long a job may be silent until history is asked.
    `idle_s`: how long a job may be pending while nothing runs. `gone_s`: how long connections may be refused under a job.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        stall_timeout_s: float = 120.0,
        poll_s: float = 1.0,
        idle_s: float = 10.0,
        gone_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._connect_timeout_s = connect_timeout_s
        self._limits = Limits(stall_s=stall_timeout_s, idle_s=idle_s, gone_s=gone_s)
        self._poll_s = poll_s
        self._clock = clock
        self._start_afresh()
        _engines.add(self)

    def _start_afresh(self) -> None:
        self._routes = ComfyuiHttp(self.url, connect_timeout_s=self._connect_timeout_s)
        self._inboxes: dict[str, Inbox] = {}
        self._signatures: dict[str, Any] = {}
        self._stuck: set[str] = set()
        self._listener = Listener(
            self.url,
            connect_timeout_s=self._connect_timeout_s,
            ping_s=_PING_S,
            on_connect=self._signatures.clear,  # it may be a newer ComfyUI, or have other nodes
        )
        self._is_sketch: bool | None = None

    def run(
        self,
        graph: Mapping[str, Any],
        *,
        prompt_id: str,
        timeout_s: float,
        watch: Callable[[Progress | Preview], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        previews: bool = False,
    ) -> Outcome:
        """Run a graph in API format and fetch its pictures.

        `prompt_id` is a new `str(uuid4())`; `timeout_s` covers queueing too. `watch` is called in this thread;
        `cancelled` at least every 0.5 s while the engine answers. `previews` asks for them; ComfyUIs before 0.8 send
        them only if started with `--preview-method`, and then always. Give every SaveImage a `filename_prefix` of its own:
        a fully cached job returns the file names of the job before it, whose files may be gone (NoPictures) or, with
        `--cache-lru`, belong to another job.

        Raises EngineRejected, NodeFailed, EngineOutOfMemory, JobInterrupted, JobLost, JobTimedOut, NoPictures,
        EngineStalled, EngineUnreachable, RequestCancelled, and the reason of `cancel_all`. Whatever is raised, also by
        `watch`, the job is taken back first, for which up to 20 s are waited.
        """
        if str(uuid.UUID(prompt_id)) != prompt_id:
            raise ValueError(f"not a canonical UUID: {prompt_id!r}")  # newer ComfyUIs refuse it
        inbox: Inbox = SimpleQueue()
        self._inboxes[prompt_id] = inbox
        try:
            with self._listener.listening(prompt_id, inbox) as client_id:
                errand = JobRunner(
                    self._routes,
                    Job(prompt_id, graph, watch, self._clock),
                    inbox,
                    limits=self._limits,
                    poll_s=self._poll_s,
                    timeout_s=timeout_s,
                    cancelled=cancelled,
                    clock=self._clock,
                    stuck=self._stuck,
                )
                return errand.run(graph, client_id, previews)
        finally:
            self._inboxes.pop(prompt_id, None)

    def cancel(self, prompt_id: str) -> None:
        """Take a job back, of this process (its `run` raises RequestCancelled) or of another. Never raises."""
        inbox = self._inboxes.get(prompt_id)
        if inbox is not None:
            inbox.put(CancelSignal(RequestCancelled("The job was cancelled.", prompt_id=prompt_id)))
        else:
            take_back(self._routes, prompt_id, SimpleQueue(), TAKE_BACK_S)

    def drop(self, prompt_ids: Sequence[str] | None) -> None:
        """Ask the engine to let go of these jobs, whoever sent them; None: of all that it runs and has queued. Does not
        wait: whether they are gone, the queue tells. Raises EngineUnreachable."""
        queue = self._routes.queue()
        for prompt_id in queue.pending:
            if prompt_ids is None or prompt_id in prompt_ids:
                self._routes.delete(prompt_id)
        for prompt_id in queue.running:
            if prompt_ids is None or prompt_id in prompt_ids:
                self._routes.interrupt(prompt_id)

    def let_go(self) -> None:
        """Ask the engine to free its models' memory: when its worker comes to it, after the running job."""
        self._routes.free()

    def cancel_all(self, reason: EaselError) -> None:
        """Make every `run` of this process take its job back and raise the reason. Returns at once."""
        for inbox in list(self._inboxes.values()):
            inbox.put(CancelSignal(reason))

    def free(self) -> None:
        """Make the engine let go of its models; returns when memory no longer comes free, 15 s at the most.

        ComfyUI answers at once and frees when its worker comes to it: after the running job, if there is one.
        """
        self._routes.free()
        until = self._clock() + _FREE_S
        most, steady = _free_memory(self._routes.stats()), 0
        while steady < _FREE_STEADY and self._clock() < until:
            time.sleep(_FREE_STEP_S)
            now = _free_memory(self._routes.stats())
            steady = steady + 1 if now <= most + _FREE_NOISE else 0
            most = max(most, now)

    def stats(self) -> EngineStats:
        """Version, device and memory. An answer proves that HTTP lives, not that jobs run."""
        return self._routes.stats()

    def glance(self, timeout_s: float) -> tuple[EngineStats, QueueState]:
        """Stats and queue for a status page, which had rather not know than wait. Raises EngineUnreachable."""
        return self._routes.stats(timeout_s), self._routes.queue(timeout_s)

    @property
    def is_sketch(self) -> bool:
        """Whether it is the built-in sketch engine; asked once. Raises EngineUnreachable."""
        if self._is_sketch is None:
            self._is_sketch = self.stats().is_sketch
        return self._is_sketch

    def queue(self) -> QueueState:
        return self._routes.queue()

    def signatures(self, classes: Iterable[str], *, fresh: bool = False) -> dict[str, Any]:
        """The raw `/object_info` entry of each class that the engine has, remembered until asked for `fresh` or until
        the engine was restarted."""
        entries = {name: self._signature(name, fresh) for name in classes}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def _signature(self, name: str, fresh: bool) -> Any:
        if fresh or self._signatures.get(name) is None:
            self._signatures[name] = self._routes.signature(name)
        return self._signatures[name]

    def upload(self, data: bytes, name: str) -> str:
        """Store an input image under a name that nobody else uses; returns `upload_name(name)`, for LoadImage.

        It lies in ComfyUI's temp folder, which ComfyUI empties when it starts. Only such names belong into a graph:
        LoadImage reads any image file of the engine's host. Raises UploadRefused, EngineUnreachable.
        """
        self._routes.upload(data, name, _SUBFOLDER)
        return upload_name(name)

    def forget(self, names: Iterable[str]) -> None:
        """Let uploaded images be nothing: ComfyUI has no way to delete, so a pixel takes the place of each. Never raises,
        and does not wait long for an engine that does not answer."""
        for name in names:
            try:
                self._routes.upload(_NOTHING, name, _SUBFOLDER, timeout_s=_FORGET_S)
            except EngineError as error:
                log.warning("uploaded images stay in the engine until it starts again: %s", error)
                return

    def close(self) -> None:
        """Let go of the connections; a later use makes new ones."""
        self._listener.close()
        self._routes.close()


def _free_memory(stats: EngineStats) -> int:
    return (stats.vram_free or 0) + (stats.ram_free or 0)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _start_all_afresh() -> None:
    """Sockets and locks of the parent are no use to a forked child: its reader thread stayed behind."""
    for engine in _engines:
        engine._start_afresh()


os.register_at_fork(after_in_child=_start_all_afresh)
