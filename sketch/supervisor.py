"""Keeps one sketch engine alive for a server of several processes, and tells them all where it is."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

from atomic_file import write_atomic
from errors import EaselError
from sketch.process import SketchProcess

log = logging.getLogger("easel.sketch")

LOOK_S = 0.25
PATIENCE_S = 5.0
"""How long a process waits for an engine that is just being started"""
PAUSE_S = 2.0
"""Between a death and the next start, so that one that cannot live does not eat the machine"""


class SketchSupervisor:
    """`start` and `stop` are for the one process whose child the engine is; `url` is for all, which share `address`,
    a file that holds the engine's URL while it lives."""

    def __init__(self, nodes: Path, *, address: Path) -> None:
        self._nodes, self._address = nodes, address
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, files: Path) -> None:
        """Returns at once; the engine answers some tenths of a second later. `files`: what its loaders list."""
        self._address.unlink(missing_ok=True)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._keep, args=(files,), name="sketch-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the engine, if this process keeps it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def url(self) -> str | None:
        """Where the engine is, or None when it does not come up within a few seconds."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                return self._address.read_text("utf-8")
            if time.monotonic() > give_up:
                return None
            time.sleep(0.02)

    def _keep(self, files: Path) -> None:
        while not self._stopping.is_set():
            try:
                with SketchProcess(nodes=self._nodes, files=files) as sketch:
                    write_atomic(self._address, sketch.url.encode())
                    log.warning("no ComfyUI: the built-in sketch engine draws instead, at %s", sketch.url)
                    while sketch.alive() and not self._stopping.wait(LOOK_S):
                        pass
            except (EaselError, OSError) as error:
                log.error("the sketch engine: %s", error)
            finally:
                self._address.unlink(missing_ok=True)
            if not self._stopping.wait(0):
                log.error("the sketch engine ended; it is started again")
                self._stopping.wait(PAUSE_S)
