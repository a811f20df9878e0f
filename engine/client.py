"""The Engine: a client for one ComfyUI, shared by all threads of a process."""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from deadline import remaining_s, time_limit
from engine.credentials import NO_CREDENTIALS, Credentials
from engine.ended_jobs import ended_job
from engine.errors import rejected
from engine.http import ComfyuiHttp
from engine.inbox import CancelSignal, Inbox, SocketLost
from engine.job import SOCKET_OUTPUT, Job
from engine.job_runner import (
    CANCEL_TIMEOUT_S,
    INTERRUPT_INTERVAL_S,
    JobRunner,
    PicturesLost,
    cancel_job,
    request_cancel,
)
from engine.listener import Connection, Listener
from engine.queue_looks import QueueLooks
from engine.values import EngineStats, Outcome, ProgressCallback, QueueState
from engine.watchdog import Limits
from engine.workflow_folder import WorkflowFolder
from errors import EaselError, EngineRejected, EngineUnreachable, NoPictures, RequestCancelled

log = logging.getLogger("easel.engine")

_PING_INTERVAL_S = 20.0
_SUBFOLDER = "easel"
_BLACK_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYGAAAAAEAAHI6uv5AAAAAElFTkSuQmCC"
)
"""A PNG of one pixel, in RGB: newer ComfyUIs cannot load small grey ones"""
_MAX_ATTEMPTS = 3
"""How often a job is run whose pictures are lost with the socket"""
_ERASE_TIMEOUT_S = 3.0
_MIN_ERASE_WAIT_S = 0.5
"""How long a request whose time has ended waits for its images to be erased; the rest happens in the background"""
_MAX_SILENCE_S = 10.0
"""So long after its last sign of life, an engine that answers late counts as busy"""
_FREE_TIMEOUT_S = 15.0
_FREE_POLL_INTERVAL_S = 0.2
_FREE_STEADY_POLLS = 4
"""After so many polls in a row without more free memory, freeing counts as finished."""
_FREE_NOISE_BYTES = 32 * 2**20


_UNKNOWN = object()
"""For a node class that ComfyUI was not asked about; None for one that it does not have"""


def upload_name(name: str) -> str:
    """What LoadImage calls the image that `Engine.upload` stores under `name`."""
    return f"{_SUBFOLDER}/{name} [temp]"


class Engine:
    """One ComfyUI. Thread-safe; connects when it is first used, and makes new connections after a fork.

    `stall_timeout_s`: how long a running job may send no events before the engine counts as stalled; it must be
    longer than the slowest load of a model, which sends none either. `poll_interval_s`: how long a job may send no
    events before history is polled. `idle_timeout_s`: how long a job may be pending while nothing runs.
    `unreachable_timeout_s`: how long connections may be refused while a job runs.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials = NO_CREDENTIALS,
        connect_timeout_s: float = 5.0,
        stall_timeout_s: float = 120.0,
        poll_interval_s: float = 1.0,
        idle_timeout_s: float = 10.0,
        unreachable_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._limits = Limits(
            stall_timeout_s=stall_timeout_s,
            idle_timeout_s=idle_timeout_s,
            unreachable_timeout_s=unreachable_timeout_s,
        )
        self._poll_interval_s = poll_interval_s
        self._clock = clock
        self._reset()
        _engines.add(self)

    def _reset(self) -> None:
        self._http = ComfyuiHttp(
            self.url, connect_timeout_s=self._connect_timeout_s, credentials=self._credentials
        )
        self._queue_looks = QueueLooks(self._http.queue)
        self._inboxes: dict[str, Inbox] = {}
        self._signatures: dict[str, Any] = {}
        self._stuck: set[str] = set()
        self._listener = Listener(
            self.url,
            connect_timeout_s=self._connect_timeout_s,
            ping_interval_s=_PING_INTERVAL_S,
            on_connect=self._forget_version,
            credentials=self._credentials,
        )
        self._interrupted_at: dict[str, float] = {}
        self._is_sketch: bool | None = None
        self._version: str | None = None
        self._silent_at = -math.inf
        """When a WebSocket that is open was last found to deliver nothing, as behind a proxy that holds messages back"""

    def _forget_version(self) -> None:
        """After each new connection: it may be another ComfyUI, or have other nodes."""
        self._signatures.clear()
        self._version = None
        self._http.forget_routes()

    def run(
        self,
        graph: Mapping[str, Any],
        *,
        prompt_id: str,
        timeout_s: float,
        output: str | None = None,
        saving_graph: Mapping[str, Any] | None = None,
        on_progress: ProgressCallback = lambda _: None,
        on_queued: Callable[[int], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        previews: bool = False,
        on_submitted: Callable[[], None] = lambda: None,
        keep_lease: Callable[[], Callable[[], None]] = lambda: lambda: None,
        on_node: Callable[[str | None], None] = lambda node: None,
    ) -> Outcome:
        """Run a graph in API format and fetch the pictures of its node `output`; None: those of all nodes.

        `prompt_id` is a new `str(uuid4())`; `timeout_s` covers queueing too. `on_progress` is called in this thread;
        `on_submitted` there too, once ComfyUI has the job, and again if it is submitted again; `on_queued` about once a
        second while the job is pending, with the number of jobs before it; `on_node` when ComfyUI says that a node
        starts, with None when the last one has ended; `cancelled` at least every 0.5 s while the engine answers.
        Without `previews` the engine makes none; with it, those of ComfyUI 0.8 and newer do; older ones do as they were
        started (`--preview-method`). Give every SaveImage its own `filename_prefix`: a fully cached job returns the
        file names of the previous job, whose files may be gone (NoPictures) or, with `--cache-lru`, belong to another
        job.

        Pictures of SaveImageWebsocket are lost with the socket. The job is then submitted again, under the same id; the
        last time as `saving_graph`, if there is one: the same graph, whose pictures do not need the socket.

        Raises EngineRejected, NodeFailed, EngineOutOfMemory, JobInterrupted, JobLost, JobTimedOut, NoPictures,
        EngineStalled, EngineUnreachable, RequestCancelled, and the reason given to `cancel_all`. Before any exception
        is raised, also one of `on_progress`, the job is cancelled, which takes up to 20 s. If `timeout_s` ends before
        that, or if it is not known whether ComfyUI has the job, the job is cancelled in the background: `keep_lease` is
        called, and then what it returned, in another thread, once the job is gone or after about two minutes.
        """
        if str(uuid.UUID(prompt_id)) != prompt_id:
            raise ValueError(f"not a canonical UUID: {prompt_id!r}")  # newer ComfyUIs refuse it
        inbox = Inbox()
        self._inboxes[prompt_id] = inbox
        deadline = self._clock() + timeout_s

        def attempt(graph: Mapping[str, Any], connection: Connection | None) -> Outcome:
            runner = JobRunner(
                self._http,
                Job(prompt_id, graph, on_progress, self._clock, output, on_node),
                inbox,
                queue_looks=self._queue_looks,
                limits=self._limits,
                poll_interval_s=self._poll_interval_s,
                timeout_s=deadline - self._clock(),
                cancelled=cancelled,
                on_queued=on_queued,
                clock=self._clock,
                stuck=self._stuck,
                on_submitted=on_submitted,
                keep_lease=keep_lease,
                socket_received_at=lambda: connection.received_at if connection else 0.0,
            )
            if connection is None:
                inbox.put(SocketLost())  # so that its end is found by polling
            return runner.run(graph, connection.client_id if connection else uuid.uuid4().hex, previews)

        try:
            with time_limit(timeout_s):
                return self._run_until_received(attempt, prompt_id, inbox, graph, saving_graph)
        except EngineRejected as error:
            raise self._named(error) from error
        finally:
            self._inboxes.pop(prompt_id, None)

    def ended_job(self, prompt_id: str, graph: Mapping[str, Any], output: str) -> Outcome | None:
        """The outcome of a job that another process submitted and ComfyUI has finished, with the pictures that the node
        `output` has saved. `graph`: the one that the job must have had. None if there is no such job, it did not succeed, or
        its files are gone. Raises EngineUnreachable."""
        return ended_job(self._http, prompt_id, graph, output)

    def _run_until_received(
        self,
        attempt: Callable[[Mapping[str, Any], Connection | None], Outcome],
        prompt_id: str,
        inbox: Inbox,
        graph: Mapping[str, Any],
        saving_graph: Mapping[str, Any] | None,
    ) -> Outcome:
        """Run the job again if its pictures are lost with the socket. The nodes above its output are in ComfyUI's cache; if
        not, the same seed gives the same picture."""
        lost: list[PicturesLost] = []
        while len(lost) < _MAX_ATTEMPTS:
            was_silent = bool(lost) and lost[-1].is_silent
            with contextlib.ExitStack() as subscription:
                connection = None
                try:
                    # A silent socket may still deliver the end of the earlier run, which has the same id.
                    if not was_silent:
                        connection = subscription.enter_context(self._listener.subscribe(prompt_id, inbox))
                except EngineUnreachable:
                    # HTTP may work where the WebSocket no longer does.
                    if not lost or saving_graph is None:
                        raise
                is_last = len(lost) == _MAX_ATTEMPTS - 1 or connection is None or self._socket_is_silent
                try:
                    outcome = attempt(saving_graph or graph if is_last else graph, connection)
                except PicturesLost as error:
                    lost.append(error)
                else:
                    return _with_times_of(lost, outcome)
            if lost[-1].is_silent:
                self._mark_silent()
                if saving_graph is None:
                    raise NoPictures(
                        "The WebSocket to ComfyUI is open, but the pictures of the job did not arrive. Let the proxy in "
                        "front of ComfyUI pass WebSocket messages at once, or end the workflow with a SaveImage.",
                        prompt_id=prompt_id,
                    )
            self._prepare_next_attempt(prompt_id, inbox)
        raise NoPictures(
            f"The WebSocket to ComfyUI was lost {len(lost)} times before the pictures of the job had arrived.",
            prompt_id=prompt_id,
        )

    @property
    def _socket_is_silent(self) -> bool:
        """Whether the WebSocket has delivered nothing since it was found to deliver nothing."""
        return self._listener.received_at < self._silent_at

    def _mark_silent(self) -> None:
        if not self._socket_is_silent:
            log.warning(
                "the WebSocket to ComfyUI at %s is open but delivers nothing: until it does, pictures are saved in "
                "ComfyUI's output folder and fetched from there",
                self.url,
            )
        self._silent_at = self._clock()

    def _prepare_next_attempt(self, prompt_id: str, inbox: Inbox) -> None:
        log.warning("job %s: the pictures were lost with the socket; it is submitted again", prompt_id)
        try:
            self._http.forget(prompt_id)
        except EngineUnreachable:
            if remaining_s() > 0:
                raise
            # The next attempt raises JobTimedOut.
        inbox.drop_messages()

    def _named(self, error: EngineRejected) -> EngineRejected:
        """The same error; it says so if it was the sketch engine that refused."""
        with contextlib.suppress(EaselError):
            if self.is_sketch:
                return rejected(error.details["errors"], "Easel's sketch engine")
        return error

    def cancel(self, prompt_id: str) -> None:
        """Cancel a job of this process (its `run` raises RequestCancelled) or of another one. Never raises."""
        inbox = self._inboxes.get(prompt_id)
        if inbox is not None:
            inbox.put(CancelSignal(RequestCancelled("The job was cancelled.", prompt_id=prompt_id)))
        else:
            cancel_job(self._http, prompt_id, Inbox(), CANCEL_TIMEOUT_S)

    def cancel_all(self, reason: EaselError) -> None:
        """Make every `run` of this process cancel its job and raise `reason`. Returns at once."""
        for inbox in list(self._inboxes.values()):
            inbox.put(CancelSignal(reason))

    def cancel_jobs(self, prompt_ids: Sequence[str] | None) -> bool:
        """Ask ComfyUI to cancel these jobs, from any client; None: all running and pending jobs. Returns whether the
        queue has none of them any more. Does not wait, so the caller asks again until it returns true: ComfyUI loses an
        interrupt that arrives while the job is between the queue and its first node. Raises EngineUnreachable."""
        queue = self._http.queue()
        pending, running = (
            [prompt_id for prompt_id in ids if prompt_ids is None or prompt_id in prompt_ids]
            for ids in (queue.pending, queue.running)
        )
        for prompt_id in pending:
            request_cancel(self._http, prompt_id, is_pending=True)
        for prompt_id in running:
            if self._may_interrupt(prompt_id):
                request_cancel(self._http, prompt_id, is_pending=False)
        return not pending and not running

    def _may_interrupt(self, prompt_id: str) -> bool:
        """Not often: an interrupt that arrives as the job ends may stop the next job."""
        now = self._clock()
        recent = {id: at for id, at in self._interrupted_at.items() if now - at < INTERRUPT_INTERVAL_S}
        self._interrupted_at = recent if prompt_id in recent else {**recent, prompt_id: now}
        return prompt_id not in recent

    def request_free(self) -> None:
        """Ask ComfyUI to unload its models. Does not wait: ComfyUI's worker does it after the running job."""
        self._http.free()

    def free(self) -> None:
        """Make ComfyUI unload its models; returns when free memory no longer grows, after 15 s at most.

        ComfyUI answers at once; its worker frees the memory after the running job.
        """
        self._http.free()
        deadline = self._clock() + _FREE_TIMEOUT_S
        max_free, steady_polls = _free_memory(self._http.stats()), 0
        while steady_polls < _FREE_STEADY_POLLS and self._clock() < deadline:
            time.sleep(_FREE_POLL_INTERVAL_S)
            free = _free_memory(self._http.stats())
            steady_polls = steady_polls + 1 if free <= max_free + _FREE_NOISE_BYTES else 0
            max_free = max(max_free, free)

    def stats(self) -> EngineStats:
        """Version, device and memory. A response proves that HTTP works, not that jobs run."""
        return self._http.stats()

    def version(self, *, fresh: bool = False) -> str:
        """The version that ComfyUI reports; requested once, or now with `fresh`. Raises EngineUnreachable."""
        if fresh or self._version is None:
            self._version = self.stats().version
        return self._version

    def connect(self) -> None:
        """Open the WebSocket, unless it is open. Raises EngineUnreachable; EngineWithoutWebSocket if a proxy in front of
        ComfyUI does not pass WebSockets."""
        self._listener.connect()

    def stats_and_queue(self, timeout_s: float) -> tuple[EngineStats, QueueState]:
        """Both for a status page, with a short timeout for each. Raises EngineUnreachable."""
        return self._http.stats(timeout_s), self._http.queue(timeout_s)

    @property
    def is_sketch(self) -> bool:
        """Whether this is the built-in sketch engine; requested once. Raises EngineUnreachable."""
        if self._is_sketch is None:
            self._is_sketch = self.stats().is_sketch
        return self._is_sketch

    def queue(self) -> QueueState:
        return self._http.queue()

    def is_busy(self, error: EngineUnreachable) -> bool:
        """Whether an engine that did not answer in time gave a sign of life moments ago. ComfyUI's event loop answers
        nothing while it encodes pictures for SaveImageWebsocket, and while some models load."""
        heard_at = max(self._http.answered_at, self._listener.received_at)
        return bool(error.details.get("slow")) and self._clock() - heard_at < _MAX_SILENCE_S

    def silent_s(self) -> float:
        """Since its last sign of life, in seconds. Says something only while it is asked, as during a job."""
        return self._clock() - max(self._http.answered_at, self._listener.received_at)

    @property
    def sends_pictures(self) -> bool:
        """Whether ComfyUI can send pictures over the WebSocket: it has the node SaveImageWebsocket, as a default
        installation does, and nothing holds back what it sends. Raises EngineUnreachable."""
        return not self._socket_is_silent and SOCKET_OUTPUT in self.signatures([SOCKET_OUTPUT])

    def signatures(self, classes: Iterable[str], *, fresh: bool = False) -> dict[str, Any]:
        """The raw `/object_info` entry of each class that the engine has. Entries are cached until the engine restarts;
        `fresh` requests them again."""
        entries = {name: self._signature(name, fresh) for name in classes}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def _signature(self, name: str, fresh: bool) -> Any:
        # A new connection clears the cache in another thread, at any time.
        entry = _UNKNOWN if fresh else self._signatures.get(name, _UNKNOWN)
        if entry is _UNKNOWN:
            entry = self._signatures[name] = self._http.signature(name)
        return entry

    def template(self, name: str) -> Any:
        """The JSON of one of ComfyUI's official workflow templates, or of their `index`; None if there is none of this name.
        Raises EngineUnreachable."""
        return self._http.template(name)

    def file_metadata(self, folder: str, name: str) -> dict[str, Any]:
        """The metadata in the head of a file of weights; empty if it has none. Raises EngineUnreachable."""
        metadata = self._http.file_metadata(folder, name)
        return metadata if isinstance(metadata, dict) else {}

    def upload(self, data: bytes, name: str) -> str:
        """Store an input image under a unique name; returns `upload_name(name)`, for LoadImage.

        The file is in ComfyUI's temp folder, which ComfyUI empties when it starts. Only such names belong in a graph:
        LoadImage reads any image file of the engine's machine. Raises UploadRefused, EngineUnreachable.
        """
        self._http.upload(data, name, _SUBFOLDER)
        return upload_name(name)

    def has_upload(self, name: str) -> bool:
        """Whether the engine still has an image that was uploaded. Raises EngineUnreachable."""
        return self._http.has_upload(name, _SUBFOLDER)

    def erase_uploads(self, names: Iterable[str]) -> None:
        """Overwrite uploaded images with one pixel, because ComfyUI cannot delete files. Never raises. Waits for an engine
        that does not answer at most 3 s, and not beyond the time limit of the thread: the rest then happens in the
        background."""
        names = tuple(names)
        if not names:
            return
        wait_s = max(_MIN_ERASE_WAIT_S, min(_ERASE_TIMEOUT_S, remaining_s()))
        eraser = threading.Thread(target=self._erase, args=(names,), name="easel-erase", daemon=True)
        try:
            eraser.start()
        except RuntimeError:  # no more threads
            self._erase(names)
        else:
            eraser.join(wait_s)

    def _erase(self, names: Sequence[str]) -> None:
        """Try each, whatever happens to the others."""
        failures = [error for name in names if (error := self._erase_one(name)) is not None]
        if failures:
            log.warning(
                "%d of %d uploaded images stay in ComfyUI's temp folder until it restarts: %s",
                len(failures),
                len(names),
                failures[0],
            )

    def _erase_one(self, name: str) -> Exception | None:
        try:
            self._http.upload(_BLACK_PIXEL, name, _SUBFOLDER, timeout_s=_ERASE_TIMEOUT_S)
        except Exception as error:
            return error
        return None

    def save_workflow(self, file_name: str, data: bytes, *, numbered: bool) -> str:
        """Store a file of ComfyUI's editor where the editor lists its workflows; returns its name. `file_name`: from
        `workflow_file_name`. No file is replaced: if the name is taken, `numbered` adds a number to it. Raises
        WorkflowExists, WorkflowNotSaved and EngineUnreachable."""
        return WorkflowFolder(self._http).save(file_name, data, numbered=numbered)

    def close(self) -> None:
        """Close the connections; a later use opens new ones."""
        self._listener.close()
        self._http.close()


def _with_times_of(lost: Sequence[PicturesLost], outcome: Outcome) -> Outcome:
    """The outcome, with the seconds of the attempts before it."""
    return replace(
        outcome,
        queued_s=outcome.queued_s + sum(attempt.queued_s for attempt in lost),
        run_s=outcome.run_s + sum(attempt.run_s for attempt in lost),
    )


def _free_memory(stats: EngineStats) -> int:
    return (stats.vram_free or 0) + (stats.ram_free or 0)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _reset_all() -> None:
    """A forked child cannot use the parent's sockets and locks: the thread that reads the socket exists only there."""
    for engine in _engines:
        engine._reset()


os.register_at_fork(after_in_child=_reset_all)
