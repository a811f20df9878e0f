"""One job's way through ComfyUI: submitted, followed to its end by the socket with history and queue as a net, its
pictures fetched; or taken back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from queue import Empty

from engine.errors import Graph, dropped_outputs, refusal, rejected
from engine.http import ComfyuiHttp
from engine.job import Job, mime_of
from engine.listener import CancelSignal, Inbox, Item, SocketLost
from engine.messages import Event
from engine.values import Outcome, Picture
from engine.watchdog import Limits, Watchdog
from errors import (
    EngineError,
    EngineStalled,
    EngineUnreachable,
    JobTimedOut,
    NoPictures,
    RequestCancelled,
)

log = logging.getLogger(__name__)

_ASK_S = 0.5
_NAMES_S = 3.0
"""How long a successful job may stay out of history; ComfyUI writes it a moment after it says success."""
TAKE_BACK_S = 20.0
"""An interrupt takes effect at the next sampler step or node, so a slow step delays it."""
_LOOK_AGAIN_S = 0.2
_INTERRUPT_AGAIN_S = 2.0
_HEAR_OUT_S = 0.5
"""How long the socket may be silent, once history has the job, until nothing more is waited for from it."""
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


def submission(graph: Graph, prompt_id: str, client_id: str, previews: bool = False) -> bytes:
    """The body of `POST /prompt`: the only shape of it that we send.

    Other shapes end ComfyUI's worker or its whole process: `extra_data` that is no object, a `client_id` that is no
    string, a node without an `inputs` object, a `number` given twice. So: no `number`, no `front`, and an id of our own.
    """
    for node, entry in graph.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("inputs"), Mapping):
            error = {
                "node": str(node),
                "class_type": entry.get("class_type") if isinstance(entry, Mapping) else None,
                "input": None,
                "type": "no_inputs",
                "message": "the node has no object `inputs`; it was not sent, for it would stop ComfyUI's worker",
            }
            raise rejected([error])
    extra = {"preview_method": "auto"} if previews else {}
    body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
    return json.dumps(body).encode()


class JobRunner:
    """The following of one job. `stuck` is shared: the ids of jobs that this engine will never finish."""

    def __init__(
        self,
        routes: ComfyuiHttp,
        job: Job,
        inbox: Inbox,
        *,
        limits: Limits,
        poll_s: float,
        timeout_s: float,
        cancelled: Callable[[], bool],
        clock: Callable[[], float],
        stuck: set[str],
    ) -> None:
        self._routes = routes
        self._job = job
        self._inbox = inbox
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._cancelled = cancelled
        self._clock = clock
        self._stuck = stuck
        self._began = clock()
        self._ask_at = self._look_at = self._began
        self._watchdog = Watchdog(job.prompt_id, limits, self._began)

    def run(self, graph: Graph, client_id: str, previews: bool = False) -> Outcome:
        """Submit, follow, fetch. However it fails, the job does not stay behind in the engine."""
        body = submission(graph, self._job.prompt_id, client_id, previews)
        try:
            self._submit(body, graph)
            submitted = self._clock()
            self._follow()
        except EngineStalled:
            self._stuck.add(self._job.prompt_id)
            take_back(self._routes, self._job.prompt_id, self._inbox, 0.0)
            raise
        except BaseException:
            if not self._job.ended:
                take_back(self._routes, self._job.prompt_id, self._inbox, TAKE_BACK_S)
            raise
        ended = self._clock()
        started = self._job.started_at or submitted
        pictures = self._pictures()
        return Outcome(
            self._job.prompt_id,
            pictures,
            self._job.cached_nodes,
            queued_s=max(0.0, started - submitted),
            run_s=ended - started,
            fetch_s=self._clock() - ended,
        )

    def _submit(self, body: bytes, graph: Graph) -> None:
        self._check_caller()
        try:
            status, answer = self._routes.submit(body)
        except EngineUnreachable as error:
            if error.details.get("refused"):
                self._job.ended = True
                raise
            if self._arrived():
                return
            if error.details.get("slow"):
                raise  # it may still be at it, and would then have the job twice
            status, answer = self._routes.submit(body)
        if status != 200 or not isinstance(answer, dict):
            self._job.ended = True  # refused as a whole: there is nothing to take back
            raise refusal(status, answer, graph)
        if answer.get("node_errors"):
            raise dropped_outputs(answer["node_errors"], graph)
        self._look_at = self._clock() + self._poll_s

    def _arrived(self) -> bool:
        """Whether ComfyUI has the job although its answer never came (a kept connection closed under the request)."""
        queue = self._routes.queue()
        known = self._job.prompt_id in (*queue.running, *queue.pending)
        return known or self._routes.history(self._job.prompt_id) is not None

    def _follow(self) -> None:
        while not self._job.succeeded:
            self._check_caller()
            try:
                self._take(self._inbox.get(timeout=self._patience()))
            except Empty:
                if self._clock() >= self._look_at:
                    self._look()

    def _check_caller(self) -> None:
        now = self._clock()
        if now - self._began >= self._timeout_s:
            state = "had not started" if self._job.started_at is None else "was running"
            raise JobTimedOut(
                f"The job was not done in time; it {state} in ComfyUI, and was taken back.",
                prompt_id=self._job.prompt_id,
            )
        if now >= self._ask_at:
            self._ask_at = now + _ASK_S
            if self._cancelled():
                raise RequestCancelled(
                    "The caller gave the job up; it was taken back.", prompt_id=self._job.prompt_id
                )

    def _patience(self) -> float:
        until = min(self._ask_at, self._look_at, self._began + self._timeout_s)
        return max(0.0, until - self._clock())

    def _take(self, item: Item) -> None:
        if isinstance(item, CancelSignal):
            raise item.reason
        if isinstance(item, SocketLost):
            self._watchdog.deaf()
            self._look_at = self._clock()
            return
        self._job.hear(item)
        now = self._clock()
        self._watchdog.heard(now)
        self._look_at = now if self._job.left_engine else now + self._poll_s

    def _look(self) -> None:
        """The net under the socket: what history and queue say. Events that we missed are not sent again."""
        now = self._clock()
        self._look_at = now + self._poll_s
        try:
            entry = self._routes.history(self._job.prompt_id)
            verdict = None
            if entry is None:
                verdict = self._watchdog.saw(now, self._routes.queue(), frozenset(self._stuck))
        except EngineUnreachable as error:
            entry, verdict = None, self._watchdog.unanswered(self._clock(), error)
        if entry is not None:
            self._hear_out()
            if not self._job.ended:
                self._job.read_history(entry)
        elif verdict is not None:
            # A worker that stalled or answers too late may still have the job; the others have not.
            self._job.ended = not (isinstance(verdict, EngineStalled) or verdict.details.get("slow"))
            raise verdict

    def _hear_out(self) -> None:
        """What was sent before the job ended may still be on its way, on a busy machine; history has no progress."""
        while not (self._job.ended or self._job.left_engine or self._watchdog.is_deaf):
            try:
                item = self._inbox.get(timeout=_HEAR_OUT_S)
            except Empty:
                return
            if isinstance(item, SocketLost):
                return
            self._take(item)

    def _pictures(self) -> tuple[Picture, ...]:
        made = self._job.made() or self._made_by_history()
        if not made:
            raise NoPictures(
                "The job succeeded, but told of no picture. If its graph ends in SaveImageWebsocket, the socket that "
                "should have brought it was lost.",
                prompt_id=self._job.prompt_id,
            )
        return tuple(item if isinstance(item, Picture) else self._fetched(node, item) for node, item in made)

    def _made_by_history(self) -> list[tuple[str, Picture | Mapping[str, str]]]:
        """For a success whose `executed` events we missed."""
        until = self._clock() + _NAMES_S
        while not self._job.left_engine and self._clock() < until:
            entry = self._routes.history(self._job.prompt_id)
            if entry is not None:
                self._job.read_history(entry)
            else:
                _came(("executing",), self._inbox, 0.05)
        return self._job.made()

    def _fetched(self, node: str, file: Mapping[str, str]) -> Picture:
        status, content_type, data = self._routes.view(file)
        if status != 200 or not data:
            raise NoPictures(
                f"The job succeeded, but ComfyUI answered {status} for its picture {file['filename']} "
                f"({file['type']} folder): the file is gone.",
                prompt_id=self._job.prompt_id,
                node=node,
                status=status,
            )
        mime = content_type.partition(";")[0].strip()
        return Picture(
            data, node, mime if mime.startswith("image/") else mime_of(file["filename"]) or "image/png"
        )


def take_back(routes: ComfyuiHttp, prompt_id: str, inbox: Inbox, patience_s: float) -> bool:
    """Get a job out of the engine; True once it is in the queue no more. Best effort, never raises.

    An engine that is too busy to answer is asked again. An interrupt is repeated, for ComfyUI forgets one that comes
    while the job is between the queue and its first node; but not often, for one that comes as the job ends may hit
    the next.
    """
    until, interrupt_at = time.monotonic() + patience_s, 0.0
    trouble = "it was still in the queue"
    while True:
        try:
            queue = routes.queue()
            if prompt_id in queue.pending:
                routes.delete(prompt_id)
            elif prompt_id not in queue.running:
                return True
            elif time.monotonic() >= interrupt_at:
                routes.interrupt(prompt_id)
                interrupt_at = time.monotonic() + _INTERRUPT_AGAIN_S
        except EngineError as error:
            trouble = error.message
            if error.details.get("refused"):
                break
        else:
            if prompt_id in queue.pending and time.monotonic() < until:
                continue
        left = until - time.monotonic()
        if left <= 0:
            break
        _came(_ENDS, inbox, min(_LOOK_AGAIN_S, left))  # it leaves the queue a moment after this
    if patience_s:
        log.warning("job %s could not be taken back within %g s: %s", prompt_id, patience_s, trouble)
    return False


def _came(kinds: tuple[str, ...], inbox: Inbox, timeout_s: float) -> bool:
    """Whether one of these events came in time. Whatever else comes is dropped."""
    until = time.monotonic() + timeout_s
    while (left := until - time.monotonic()) > 0:
        try:
            item = inbox.get(timeout=left)
        except Empty:
            break
        if isinstance(item, Event) and item.kind in kinds:
            return True
    return False
