"""A streamed answer: a thread draws and puts frames into a queue; the server's own thread takes them out and sends them,
so that a slow client holds up nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from api.errors import status_of
from api.stream_events import Frame, StreamEvents
from errors import EaselError
from generation import Drawing, OutputOptions

log = logging.getLogger("easel.api")

KEEP_ALIVE_S = 15.0
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MIME = "text/event-stream"


class ImageStream:
    """The body of a streamed answer; drawing begins when it is made. `close` (also by a client that hangs up) ends it.

    `release` is called once nothing is being drawn any more and nobody is being sent anything. `request_id` is for the log.
    """

    def __init__(
        self,
        drawing: Drawing,
        finish: OutputOptions,
        frames: StreamEvents,
        *,
        request_id: str,
        cancelled: Callable[[], bool],
        release: Callable[[], None],
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._drawing, self._finish, self._frames = drawing, finish, frames
        self._request_id = request_id
        self._cancelled, self._keep_alive_s = cancelled, keep_alive_s
        self._queue: SimpleQueue[Frame | None] = SimpleQueue()
        self._closed = threading.Event()
        self._holders = Countdown(2, release)
        self._thread = threading.Thread(target=self._draw, name="easel-stream", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            release()
            raise

    def __iter__(self) -> Iterator[bytes]:
        yield from self._frames.opening()
        while True:
            try:
                frame = self._queue.get(timeout=self._keep_alive_s)
            except Empty:
                frame = self._frames.keep_alive()
            if frame is None:
                return
            yield from frame

    def close(self) -> None:
        """Nobody reads any more: what still runs is taken back."""
        if not self._closed.is_set():
            self._closed.set()
            self._holders.one_less()

    def _draw(self) -> None:
        try:
            self._put(self._frames_of_pictures())
        except Exception as error:
            self._put(self._frames.failed(self._named(error)))
        finally:
            self._queue.put(None)
            self._holders.one_less()

    def _frames_of_pictures(self) -> Frame:
        images = self._drawing.images(
            self._finish,
            watch=lambda event: self._put(self._frames.shown(event)),
            cancelled=lambda: self._closed.is_set() or self._cancelled(),
            previews=self._frames.wants_previews,
        )
        for image in images:
            self._put(self._frames.finished(image))
        return self._frames.ending()

    def _put(self, frame: Frame) -> None:
        if frame:
            self._queue.put(frame)

    def _named(self, error: Exception) -> EaselError:
        if not isinstance(error, EaselError):
            log.error("%s: the stream failed", self._request_id, exc_info=error)
            return EaselError("Something failed inside.", request_id=self._request_id)
        if status_of(type(error)) >= 500:
            log.error("%s: the stream ended early: %s: %s", self._request_id, error.code, error.message)
        return error


class Countdown:
    """Calls `done` when the last of `count` holders has let go; for holders in several threads."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self._count, self._done = count, done
        self._lock = threading.Lock()

    def one_less(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._done()
