"""Keeps one sketch engine running for a server with several processes, and gives all of them its URL."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from pathlib import Path

from atomic_file import write_atomic
from errors import EaselError
from sketch.process import SketchProcess

log = logging.getLogger("easel.sketch")

CHECK_INTERVAL_S = 0.25
URL_TIMEOUT_S = 5.0
"""How long `url` waits for an engine that is starting"""
RESTART_DELAY_S = 2.0
"""Limits the load on the machine if the engine crashes at every start"""


class SketchSupervisor:
    """`start` and `stop` are for the one process that is the engine's parent. `url` is for all processes, which share
    `url_file`: it contains the engine's URL while the engine runs. `folder` is for its pictures; `start` clears it."""

    def __init__(self, nodes: Path, *, url_file: Path, folder: Path) -> None:
        self._nodes, self._url_file, self._folder = nodes, url_file, folder
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, files: Path) -> None:
        """Returns immediately; the engine responds some tenths of a second later. `files`: see `SketchProcess`."""
        self._url_file.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)  # if the last server was killed
        self._stopping.clear()
        self._thread = threading.Thread(
            target=self._supervise, args=(files,), name="sketch-supervisor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the engine if this process started it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def url(self) -> str | None:
        """The engine's URL; None if it does not start within URL_TIMEOUT_S."""
        deadline = time.monotonic() + URL_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                return self._url_file.read_text("utf-8")
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)

    def _supervise(self, files: Path) -> None:
        while not self._stopping.is_set():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with SketchProcess(nodes=self._nodes, files=files, folder=self._folder) as sketch:
                    write_atomic(self._url_file, sketch.url.encode())
                    log.warning("no ComfyUI: the built-in sketch engine draws instead, at %s", sketch.url)
                    while sketch.alive() and not self._stopping.wait(CHECK_INTERVAL_S):
                        pass
            except (EaselError, OSError) as error:
                log.error("the sketch engine failed: %s", error)
            finally:
                self._url_file.unlink(missing_ok=True)
            if not self._stopping.wait(0):
                log.error("the sketch engine ended; restarting it in %g s", RESTART_DELAY_S)
                self._stopping.wait(RESTART_DELAY_S)
