"""Runs one job in ComfyUI: submits it, follows it to its end by the socket (with polls of history and queue as a
fallback), and fetches its pictures; or cancels it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty

from deadline import no_time_limit, time_limit
from engine.errors import Graph, dropped_outputs, is_dropped, rejected, submission_error
from engine.http import ComfyuiHttp
from engine.inbox import CancelSignal, Inbox, Item, QueueLook, SocketLost
from engine.job import Job, mime_of
from engine.messages import Event
from engine.queue_looks import QueueLooks
from engine.values import Outcome, Picture
from engine.watchdog import Limits, Watchdog
from errors import (
    EngineAccessDenied,
    EngineError,
    EngineStalled,
    EngineUnreachable,
    JobTimedOut,
    NoPictures,
    RequestCancelled,
)

log = logging.getLogger("easel.engine")

CANCEL_TIMEOUT_S = 20.0
"""An interrupt takes effect at the next sampler step or node, so a slow step delays it."""
_CANCEL_GRACE_S = 0.5
"""How long the request of a job waits for its cancel once its time has ended; the rest happens in the background"""
_BACKGROUND_CANCEL_TIMEOUT_S = 120.0
"""How long a job is cancelled in the background, so that an engine that froze does not run it once it goes on"""
_LATE_SUBMISSION_S = 3.0
"""A submission that was not answered may still be read: ComfyUI may list its queue before it has the job"""
_CANCEL_POLL_INTERVAL_S = 0.2
INTERRUPT_INTERVAL_S = 2.0
_CANCEL_CHECK_INTERVAL_S = 0.5
_HISTORY_TIMEOUT_S = 3.0
"""How long a successful job may be missing from history; ComfyUI writes it a moment after it reports success."""
_DRAIN_TIMEOUT_S = 0.5
"""Once history has the job, its last events are awaited until the socket is silent for this long."""
_FRAMES_TIMEOUT_S = 10.0
"""The same for a job whose pictures come over the socket, and for silence of the whole socket, on which not even a part of
a message comes: ComfyUI encodes and sends the pictures of all jobs one after another"""
_END_EVENTS = ("execution_success", "execution_error", "execution_interrupted")


class PicturesLost(Exception):
    """The job's pictures were lost with the socket, or would be: ComfyUI no longer has the job, which can be submitted
    again. In seconds: `queued_s` and `run_s` of the job so far. `is_silent`: the socket is open, but delivers nothing."""

    def __init__(self, queued_s: float, run_s: float, *, is_silent: bool) -> None:
        super().__init__("the pictures were lost with the socket")
        self.queued_s, self.run_s, self.is_silent = queued_s, run_s, is_silent


class _Withdrawn(Exception):
    """The job was taken out of ComfyUI's queue before it started."""


def submission(graph: Graph, prompt_id: str, client_id: str, previews: bool = False) -> bytes:
    """The body of `POST /prompt`, always of this one shape. Raises EngineRejected.

    Other shapes kill ComfyUI's worker thread or its whole process: `extra_data` that is not an object, a `client_id`
    that is not a string, a node without an `inputs` object, the same `number` twice. So the body has no `number` and
    no `front`, and `prompt_id` is made here.
    """
    for node, entry in graph.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("inputs"), Mapping):
            error = {
                "node": str(node),
                "class_type": entry.get("class_type") if isinstance(entry, Mapping) else None,
                "input": None,
                "type": "no_inputs",
                "message": "the node has no `inputs` object; it would stop ComfyUI's worker, so the graph was not sent",
            }
            raise rejected([error])
    # "none": a ComfyUI that was started with --preview-method would encode previews that nobody reads.
    extra = {"preview_method": "auto" if previews else "none"}
    body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
    return json.dumps(body).encode()


class JobRunner:
    """Runs one job. `stuck` is shared: the ids of jobs that this engine will never finish."""

    def __init__(
        self,
        http: ComfyuiHttp,
        job: Job,
        inbox: Inbox,
        *,
        queue_looks: QueueLooks,
        limits: Limits,
        poll_interval_s: float,
        timeout_s: float,
        cancelled: Callable[[], bool],
        on_queued: Callable[[int], None],
        clock: Callable[[], float],
        stuck: set[str],
        on_submitted: Callable[[], None] = lambda: None,
        keep_lease: Callable[[], Callable[[], None]] = lambda: lambda: None,
        socket_received_at: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`on_submitted`, `keep_lease`: see `Engine.run`. `socket_received_at`: when bytes of any job's messages came last,
        on `clock`"""
        self._http = http
        self._job = job
        self._inbox = inbox
        self._queue_looks = queue_looks
        self._poll_interval_s = poll_interval_s
        self._cancelled = cancelled
        self._on_queued = on_queued
        self._clock = clock
        self._stuck = stuck
        self._on_submitted = on_submitted
        self._keep_lease = keep_lease
        self._socket_received_at = socket_received_at
        self._may_be_unread = False
        """Whether the job was submitted and ComfyUI did not answer: it may take the job later"""
        now = clock()
        self._deadline = now + timeout_s
        self._next_cancel_check_at = self._next_poll_at = now
        self._last_look = queue_looks.begun
        """The look at the queue that was used last. An older one says nothing new about this job."""
        self._watchdog = Watchdog(job.prompt_id, limits, now)

    def run(self, graph: Graph, client_id: str, previews: bool = False) -> Outcome:
        """Submit, follow, fetch. If anything fails, the job is removed from the engine first. Raises PicturesLost if the
        job must be submitted again."""
        body = submission(graph, self._job.prompt_id, client_id, previews)
        submitted_at = self._clock()
        try:
            self._submit(body, graph)
            self._last_look = self._queue_looks.begun
            submitted_at = self._clock()
            self._on_submitted()
            self._follow()
        except _Withdrawn:
            raise PicturesLost(self._clock() - submitted_at, 0.0, is_silent=False) from None
        except EngineStalled:
            self._stuck.add(self._job.prompt_id)
            cancel_job(self._http, self._job.prompt_id, self._inbox, 0.0)
            raise
        except BaseException:
            if not self._job.ended:
                self._cancel()
            raise
        ended_at = self._clock()
        started_at = self._job.started_at or submitted_at
        queued_s, run_s = max(0.0, started_at - submitted_at), ended_at - started_at
        if self._job.sends_frames and not self._job.success_was_sent:
            self._check_deadline_and_cancel()
            raise PicturesLost(queued_s, run_s, is_silent=not self._watchdog.socket_lost)
        pictures = self._fetch_pictures()
        fetch_s = self._clock() - ended_at
        return Outcome(self._job.prompt_id, pictures, self._job.cached_nodes, queued_s, run_s, fetch_s)

    def _cancel(self) -> None:
        """Cancel the job and wait until it is gone, as long as the request has time. After that the job is cancelled in
        the background, and keeps its lease until it is gone."""
        remaining_s = self._deadline - self._clock()
        wait_s = max(_CANCEL_GRACE_S, min(CANCEL_TIMEOUT_S, remaining_s))
        is_gone = cancel_job(self._http, self._job.prompt_id, self._inbox, wait_s, warns=False)
        if is_gone and not self._may_be_unread:
            return
        release = self._keep_lease()
        thread = threading.Thread(
            target=self._cancel_later, args=(release,), name="easel-cancel", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads: the request waits for it
            try:
                cancel_job(self._http, self._job.prompt_id, Inbox(), CANCEL_TIMEOUT_S)
            finally:
                release()

    def _cancel_later(self, release: Callable[[], None]) -> None:
        try:
            cancel_job(self._http, self._job.prompt_id, Inbox(), _BACKGROUND_CANCEL_TIMEOUT_S)
            if self._may_be_unread:
                time.sleep(_LATE_SUBMISSION_S)
                cancel_job(self._http, self._job.prompt_id, Inbox(), CANCEL_TIMEOUT_S)
        finally:
            release()

    def _submit(self, body: bytes, graph: Graph) -> None:
        self._check_deadline_and_cancel()
        self._may_be_unread = True
        try:
            status, response = self._http.submit(body)
        except EngineUnreachable as error:
            if error.details.get("refused") or isinstance(error, EngineAccessDenied):
                self._job.ended = True
                raise
            if self._was_accepted():
                self._may_be_unread = False
                return
            if error.details.get("slow"):
                raise  # ComfyUI may still be reading the first submission; a second would run the job twice
            status, response = self._http.submit(body)
        self._may_be_unread = False
        if status != 200 or not isinstance(response, dict):
            self._job.ended = True  # ComfyUI refused the whole graph: there is no job to cancel
            raise submission_error(status, response, graph)
        if is_dropped(response.get("node_errors"), self._job.output):
            raise dropped_outputs(response["node_errors"], graph)
        self._next_poll_at = self._clock() + self._poll_interval_s

    def _was_accepted(self) -> bool:
        """Whether ComfyUI has the job although its response never arrived (it closed a kept connection meanwhile)."""
        queue = self._http.queue()
        queued = self._job.prompt_id in (*queue.running, *queue.pending)
        return queued or self._http.history(self._job.prompt_id) is not None

    def _follow(self) -> None:
        while not self._job.succeeded:
            self._check_deadline_and_cancel()
            next_action_at = min(self._next_cancel_check_at, self._next_poll_at, self._deadline)
            try:
                self._handle(self._inbox.get(max(0.0, next_action_at - self._clock())))
            except Empty:
                if self._clock() >= self._next_poll_at:
                    self._poll()

    def _check_deadline_and_cancel(self) -> None:
        now = self._clock()
        if now >= self._deadline:
            state = "had not started" if self._job.started_at is None else "was running"
            raise JobTimedOut(
                f"The job did not finish in time: it {state} in ComfyUI. Easel cancels it.",
                prompt_id=self._job.prompt_id,
            )
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if (now := self._clock()) >= self._next_cancel_check_at:
            self._next_cancel_check_at = now + _CANCEL_CHECK_INTERVAL_S
            if self._cancelled():
                raise RequestCancelled("The caller cancelled the job.", prompt_id=self._job.prompt_id)

    def _handle(self, item: Item) -> None:
        if isinstance(item, CancelSignal):
            raise item.reason
        if isinstance(item, SocketLost):
            self._watchdog.on_socket_lost()
            self._next_poll_at = self._clock()
            return
        if isinstance(item, QueueLook):
            self._handle_look(item)
            return
        self._job.handle(item)
        now = self._clock()
        self._watchdog.on_event(now)
        self._next_poll_at = now if self._job.left_engine else now + self._poll_interval_s

    def _poll(self) -> None:
        """Find out what became of the job, because ComfyUI does not send missed events again: by a look at the queue,
        which all jobs of this process share, then by the history of a job that has left it."""
        self._next_poll_at = self._clock() + self._poll_interval_s
        if not (self._job.left_engine and self._ends_by_history()):
            self._queue_looks.request(self._inbox, newer_than=self._last_look)

    def _handle_look(self, look: QueueLook) -> None:
        if look.number <= self._last_look:
            return  # it began before the job was submitted, which happens if it is submitted again
        self._last_look = look.number
        queue = look.result
        if isinstance(queue, EngineUnreachable):
            self._end_with(self._watchdog.check_unreachable(self._clock(), queue))
            return
        is_queued = self._job.prompt_id in (*queue.running, *queue.pending)
        if not is_queued and self._ends_by_history():
            return
        self._end_with(self._watchdog.check_queue(self._clock(), queue, frozenset(self._stuck)))
        if self._job.prompt_id in queue.pending and self._job.started_at is None:
            if self._watchdog.socket_lost and self._job.sends_frames:
                self._withdraw()
            self._on_queued(len(queue.running) + queue.pending.index(self._job.prompt_id))

    def _ends_by_history(self) -> bool:
        """End the job as its history says. False if it has none; no answer says neither, so it is asked again later."""
        try:
            entry = self._http.history(self._job.prompt_id)
        except EngineUnreachable as error:
            self._end_with(self._watchdog.check_unreachable(self._clock(), error))
            return True
        if entry is None:
            return False
        self._drain_inbox()
        if not self._job.ended:
            self._job.read_history(entry)
        return True

    def _end_with(self, error: EngineError | None) -> None:
        """Raise `error`, if it is one."""
        if error is not None:
            # An engine that stalled or answers too late may still have the job; in the other cases it has not.
            self._job.ended = not (isinstance(error, EngineStalled) or error.details.get("slow"))
            raise error

    def _withdraw(self) -> None:
        """Take a pending job out of the queue: its pictures would be sent to a socket that is gone. Raises _Withdrawn,
        unless ComfyUI has started it meanwhile."""
        try:
            self._http.delete(self._job.prompt_id)
            queue = self._http.queue()
            is_queued = self._job.prompt_id in (*queue.running, *queue.pending)
            is_gone = not is_queued and self._http.history(self._job.prompt_id) is None
        except EngineUnreachable as error:
            self._end_with(self._watchdog.check_unreachable(self._clock(), error))
        else:
            if is_gone:
                raise _Withdrawn

    def _drain_inbox(self) -> None:
        """Handle the events that ComfyUI sent before the job ended. On a busy machine they may still be on their way,
        and history contains neither the progress nor the pictures of SaveImageWebsocket."""
        began_at = self._clock()
        while not (self._job.ended or self._job.left_engine or self._watchdog.socket_lost):
            if self._clock() >= self._deadline:
                return
            self._check_cancelled()
            try:
                item = self._inbox.get(_DRAIN_TIMEOUT_S)
            except Empty:
                silent_s = self._clock() - max(began_at, self._socket_received_at())
                if not self._job.sends_frames or silent_s >= _FRAMES_TIMEOUT_S:
                    return
            else:
                if not isinstance(item, QueueLook):
                    self._handle(item)

    def _fetch_pictures(self) -> tuple[Picture, ...]:
        outputs = self._job.outputs() or self._outputs_from_history()
        if not outputs:
            node = "" if self._job.output is None else f" for node {self._job.output!r}"
            raise NoPictures(
                f"The job succeeded but reported no picture{node}.", prompt_id=self._job.prompt_id
            )
        return tuple(
            output
            if isinstance(output, Picture)
            else fetch_picture(self._http, self._job.prompt_id, node, output)
            for node, output in outputs
        )

    def _outputs_from_history(self) -> list[tuple[str, Picture | Mapping[str, str]]]:
        """The outputs of a job whose `executed` events were missed."""
        deadline = min(self._clock() + _HISTORY_TIMEOUT_S, self._deadline)
        while not self._job.left_engine and self._clock() < deadline:
            entry = self._http.history(self._job.prompt_id)
            if entry is not None:
                self._job.read_history(entry)
            else:
                _wait_for_event(("executing",), self._inbox, 0.05)
        return self._job.outputs()


def fetch_picture(http: ComfyuiHttp, prompt_id: str, node: str, file: Mapping[str, str]) -> Picture:
    """The picture that a node of a job has saved. Raises NoPictures if it is gone, and EngineUnreachable."""
    status, content_type, data = http.view(file)
    if status != 200 or not data:
        raise NoPictures(
            f"The job succeeded, but ComfyUI answered {status} for its picture {file['filename']} "
            f"({file['type']} folder): the file is gone.",
            prompt_id=prompt_id,
            node=node,
            status=status,
        )
    mime = content_type.partition(";")[0].strip()
    return Picture(
        data, node, mime if mime.startswith("image/") else mime_of(file["filename"]) or "image/png"
    )


def cancel_job(
    http: ComfyuiHttp, prompt_id: str, inbox: Inbox, timeout_s: float, *, warns: bool = True
) -> bool:
    """Remove a job from the engine's queue, pending or running, within about `timeout_s`, whatever time the request has.
    Returns whether the queue no longer has it. Never raises.

    Retries if the engine is too busy to answer. Repeats an interrupt, because ComfyUI loses one that arrives
    while the job is between the queue and its first node; but not often, because one that arrives as the job ends may
    stop the next job.
    """
    deadline, next_interrupt_at = time.monotonic() + timeout_s, 0.0
    problem, was_pending = "it was still in the queue", False
    while True:
        try:
            with no_time_limit(), time_limit(max(_CANCEL_GRACE_S, deadline - time.monotonic())):
                queue = http.queue()
                is_pending = prompt_id in queue.pending
                if not is_pending and prompt_id not in queue.running:
                    return True
                if is_pending or time.monotonic() >= next_interrupt_at:
                    if not is_pending:
                        next_interrupt_at = time.monotonic() + INTERRUPT_INTERVAL_S
                    request_cancel(http, prompt_id, is_pending=is_pending)
        except EngineError as error:
            problem = error.message
            if error.details.get("refused"):
                break
        else:
            if is_pending and not was_pending and time.monotonic() < deadline:
                was_pending = True  # a job that was removed is gone at once
                continue
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            break
        # The job leaves the queue a moment after one of these events.
        _wait_for_event(_END_EVENTS, inbox, min(_CANCEL_POLL_INTERVAL_S, remaining_s))
    if timeout_s and warns:
        log.warning("could not cancel job %s within %g s: %s", prompt_id, timeout_s, problem)
    return False


def request_cancel(http: ComfyuiHttp, prompt_id: str, *, is_pending: bool) -> None:
    """Ask once to cancel a job that is in the queue. The job may go on: it is gone when the queue no longer has it."""
    if http.cancel(prompt_id):
        return
    if is_pending:
        http.delete(prompt_id)
    else:
        http.interrupt(prompt_id)


def _wait_for_event(kinds: tuple[str, ...], inbox: Inbox, timeout_s: float) -> None:
    """Wait until an event of one of these kinds arrives, or the timeout. Drops all other items."""
    deadline = time.monotonic() + timeout_s
    while (remaining_s := deadline - time.monotonic()) > 0:
        try:
            item = inbox.get(remaining_s)
        except Empty:
            break
        if isinstance(item, Event) and item.kind in kinds:
            break
