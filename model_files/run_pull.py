"""Runs a stored pull in this process and keeps its progress on disk."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

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
        ended = threading.Event()
        given_up = False

        def watch() -> None:
            nonlocal given_up
            speed = Speed()
            while True:
                given_up = given_up or is_given_up()
                if given_up or folder.is_cancelled:
                    pull.stop.set()
                current = speed.update(sum(entry.received for entry in list(pull.progress)))
                with contextlib.suppress(OSError):
                    folder.write("running", pull.progress, current)
                on_progress(pull.progress, current)
                if ended.wait(_STORE_S):
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        state: PullState = "done"
        error: EaselError | None = None
        try:
            pull.run()
        except Cancelled:
            state = "interrupted" if given_up else "cancelled"
        except KeyboardInterrupt:
            pull.stop.set()
            state = "interrupted"
            raise
        except Exception as raised:
            state, error = "failed", failure(raised)
            if not isinstance(raised, EaselError):
                log.error("a pull failed", exc_info=raised)
        finally:
            ended.set()
            watcher.join()
            with contextlib.suppress(OSError):
                folder.write(state, pull.progress, error=error)
        on_progress(pull.progress, 0)
        if error is not None:
            raise error
        if state == "cancelled":
            raise Cancelled
