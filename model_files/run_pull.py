"""Runs a stored pull in this process and keeps its progress on disk."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from errors import EaselError
from model_files.download import failure
from model_files.http_source import HttpOptions
from model_files.plan import FileProgress
from model_files.pull import Pull
from model_files.pull_store import PullFolder, PullState
from model_files.stop_signal import Cancelled

log = logging.getLogger("easel.pull")
_STORE_S = 1.0
_LOCK_S = 2.0
"""Whoever reports on a pull holds its lock for a moment."""


class Speed:
    """Bytes a second over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def update(self, received: int, now: float | None = None) -> float:
        """The speed, now that `received` bytes are there."""
        now = time.monotonic() if now is None else now
        self._seen = [(at, size) for at, size in self._seen if now - at <= 10] + [(now, received)]
        (begun, size_then), passed = self._seen[0], now - self._seen[0][0]
        return max(0.0, (received - size_then) / passed) if passed > 0 and begun else 0.0


TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105
TOKEN_HOST = "huggingface.co"  # noqa: S105


def http_options(environment: Mapping[str, str]) -> HttpOptions:
    """The options of pulls, with the token of the environment."""
    token = environment.get(TOKEN_VARIABLE, "").strip()
    return HttpOptions(
        tokens={TOKEN_HOST: token} if token.isascii() and token.isprintable() and token else {}
    )


def run_pull(
    folder: PullFolder,
    options: HttpOptions,
    *,
    is_given_up: Callable[[], bool] = lambda: False,
    on_progress: Callable[[list[FileProgress], float], None] = lambda files, speed: None,
) -> None:
    """Run the pull in `folder` until it ends; not at all if another process runs it. `is_given_up`: whether to
    stop, so that the pull goes on later; asked each second, as `on_progress` is called with the speed in bytes a second.

    Raises the error that ended it, and Cancelled.
    """
    with folder.lock(_LOCK_S) as is_mine:
        job = folder.job
        if not is_mine or job is None:
            return
        pull = Pull(job.plan, job.folders, options)
        watch = _Watch(folder, pull, is_given_up, on_progress)
        ending = _Ending("interrupted")  # such as by Ctrl-C
        try:
            with watch:
                ending = _run(pull, lambda: watch.is_given_up)
        finally:
            with contextlib.suppress(OSError):
                folder.write(ending.state, pull.progress, error=ending.error)
        on_progress(pull.progress, 0)
        if ending.error is not None:
            raise ending.error
        if ending.state == "cancelled":
            raise Cancelled


@dataclass(frozen=True)
class _Ending:
    state: PullState
    error: EaselError | None = None


def _run(pull: Pull, is_given_up: Callable[[], bool]) -> _Ending:
    """Run `pull`, and say how it ended. Raises KeyboardInterrupt."""
    try:
        pull.run()
    except Cancelled:
        return _Ending("interrupted" if is_given_up() else "cancelled")
    except KeyboardInterrupt:
        pull.stop.set()
        raise
    except Exception as raised:
        if not isinstance(raised, EaselError):
            log.error("a pull failed", exc_info=raised)
        return _Ending("failed", failure(raised))
    return _Ending("done")


class _Watch:
    """While its block runs, a thread that each second stores how far the pull is, and stops it if somebody cancels it or
    gives it up."""

    def __init__(
        self,
        folder: PullFolder,
        pull: Pull,
        is_given_up: Callable[[], bool],
        on_progress: Callable[[list[FileProgress], float], None],
    ) -> None:
        self._folder, self._pull = folder, pull
        self._asks_given_up, self._on_progress = is_given_up, on_progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.is_given_up = False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pull, speed = self._pull, Speed()
        while True:
            self.is_given_up = self.is_given_up or self._asks_given_up()
            if self.is_given_up or self._folder.is_cancelled:
                pull.stop.set()
            current = speed.update(sum(entry.received for entry in list(pull.progress)))
            with contextlib.suppress(OSError):
                self._folder.write("running", pull.progress, current)
            self._on_progress(pull.progress, current)
            if self._ended.wait(_STORE_S):
                return
