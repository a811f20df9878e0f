"""Streamed responses: one thread draws and puts events into a queue, the server's thread sends them, so that a slow
client does not block the engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Protocol

from api.errors import status_of
from api.stream_events import EncodedEvents
from arbiter import Sender, Waiting
from engine import Preview, Progress
from errors import EaselError
from generation import Drawing, Image, OutputOptions
from logs import facts

log = logging.getLogger("easel.api")

KEEP_ALIVE_INTERVAL_S = 15.0
HEAD_START_S = 0.05
"""How long a response may wait until the engine has its job"""
_IDLE_TIMEOUT_S = 60.0
"""How long a thread that draws is kept for the next stream"""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MIME = "text/event-stream"


class Events(Protocol):
    """Formats the events of one drawing in a dialect. `opening` and `keep_alive` are called in the server's thread, all
    other methods in the thread that draws."""

    @property
    def wants_previews(self) -> bool:
        """Whether the stream contains previews."""

    def opening(self) -> EncodedEvents:
        """Sent at once."""

    def keep_alive(self) -> EncodedEvents:
        """Sent if nothing else was sent for a while."""

    def on_wait(self, waiting: Waiting) -> EncodedEvents:
        """What the drawing waits for."""

    def on_run(self) -> EncodedEvents:
        """It waits for nothing any more: the engine runs its job, and may load a model before the first step."""

    def on_progress(self, event: Progress | Preview) -> EncodedEvents:
        """A sampler step or a preview."""

    def on_image(self, image: Image) -> EncodedEvents:
        """A finished picture."""

    def ending(self) -> EncodedEvents:
        """Sent after the last picture."""

    def on_error(self, error: EaselError) -> EncodedEvents:
        """The last events of a stream that failed."""


class ImageStream:
    """The body of a streamed response. Drawing starts on construction, which returns when the engine has the job, or after
    HEAD_START_S; `close`, which the server also calls when the client disconnects, cancels it.

    `release` is called when both drawing and sending have ended. `sender` is for the log and the status.
    """

    def __init__(
        self,
        drawing: Drawing,
        output: OutputOptions,
        events: Events,
        *,
        sender: Sender,
        cancelled: Callable[[], bool],
        release: Callable[[], None],
        keep_alive_interval_s: float = KEEP_ALIVE_INTERVAL_S,
        head_start_s: float = HEAD_START_S,
    ) -> None:
        self._drawing, self._output, self._events = drawing, output, events
        self._sender = sender
        self._cancelled, self._keep_alive_interval_s = cancelled, keep_alive_interval_s
        self._queue: SimpleQueue[EncodedEvents | None] = SimpleQueue()
        self._closed, self._is_under_way = threading.Event(), threading.Event()
        self._waits = False
        """Whether the client was last told what the drawing waits for"""
        # One use by the thread that draws, one by the server that sends.
        self._uses = UseCount(2, release)
        try:
            _threads.run(self._draw)
        except BaseException:
            release()
            raise
        # Both threads need the interpreter: the head of the response is made while the engine works, not before.
        self._is_under_way.wait(head_start_s)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._events.opening()
        while True:
            try:
                encoded = self._queue.get(timeout=self._keep_alive_interval_s)
            except Empty:
                encoded = self._events.keep_alive()
            if encoded is None:
                return
            yield from encoded

    def close(self) -> None:
        """Cancel the drawing if it still runs."""
        if not self._closed.is_set():
            self._closed.set()
            self._uses.end_one()

    def _draw(self) -> None:
        try:
            self._draw_images()
        except Exception as error:
            self._put(self._events.on_error(self._to_easel_error(error)))
        finally:
            self._queue.put(None)
            self._is_under_way.set()
            self._uses.end_one()

    def _draw_images(self) -> None:
        images = self._drawing.images(
            self._output,
            on_progress=lambda event: self._put(self._events.on_progress(event)),
            on_wait=self._on_wait,
            on_run=self._on_run,
            on_submitted=self._is_under_way.set,
            sender=self._sender,
            cancelled=lambda: self._closed.is_set() or self._cancelled(),
            previews=self._events.wants_previews,
        )
        for image in images:
            self._put(self._events.on_image(image))
        self._put(self._events.ending())

    def _on_wait(self, waiting: Waiting) -> None:
        self._waits = True
        self._put(self._events.on_wait(waiting))

    def _on_run(self) -> None:
        if self._waits:
            self._waits = False
            self._put(self._events.on_run())

    def _put(self, encoded: EncodedEvents) -> None:
        if encoded:
            self._queue.put(encoded)

    def _to_easel_error(self, error: Exception) -> EaselError:
        if not isinstance(error, EaselError):
            log.error("%s: the stream failed", self._sender.request_id, exc_info=error)
            return EaselError("Internal server error.", request_id=self._sender.request_id)
        if status_of(type(error)) >= 500:
            log.error(
                "%s: the stream failed: %s: %s",
                *(self._sender.request_id, error.code, error.message),
                extra=facts(request_id=self._sender.request_id, code=error.code),
            )
        return error


class UseCount:
    """Calls `on_zero` when all of `count` uses have ended. Thread-safe."""

    def __init__(self, count: int, on_zero: Callable[[], None]) -> None:
        self._count, self._on_zero = count, on_zero
        self._lock = threading.Lock()

    def end_one(self) -> None:
        """End one use."""
        with self._lock:
            self._count -= 1
            is_zero = self._count == 0
        if is_zero:
            self._on_zero()


class KeptThreads:
    """Runs functions at once in threads of their own, which are kept for the next ones: to start a thread takes a request
    about as long as to compile its graph."""

    def __init__(self, idle_timeout_s: float = _IDLE_TIMEOUT_S) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._functions: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self.idle = 0
        """Threads that no function in the queue is meant for"""

    def run(self, function: Callable[[], None]) -> None:
        """Returns at once. Raises RuntimeError if the system gives no more threads."""
        with self._lock:
            if self.idle:
                self.idle -= 1
            else:
                threading.Thread(target=self._serve, name="easel-stream", daemon=True).start()
            self._functions.put(function)

    def _serve(self) -> None:
        while True:
            try:
                function = self._functions.get(timeout=self._idle_timeout_s)
            except Empty:
                with self._lock:
                    if self.idle:
                        self.idle -= 1
                        return
                continue  # a function has just been put, for this thread
            function()
            del function  # and with it the pictures that it has drawn
            with self._lock:
                self.idle += 1


_threads = KeptThreads()
