"""Keeps one sketch engine running for a server with several processes, and gives all of them its URL."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from errors import EaselError
from sketch.process import SketchProcess
from sketch.shared_files import SharedFiles
from state_files import KeptFile, ensure_folder, read_file
from system_errors import shortage_in

log = logging.getLogger("easel.sketch")

CHECK_INTERVAL_S = 0.25
URL_TIMEOUT_S = 15.0
"""How long `url` waits for an engine that is starting: on a slow machine that is busy it takes more than five seconds, and
the first request of a new user would be refused"""
RESTART_DELAY_S = 2.0
"""Limits the load on the machine if the engine crashes at every start"""
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


class SketchSupervisor:
    """`start` and `stop` are for the one process that is the engine's parent. `url` is for all processes, which share
    `url_file`: it contains the engine's URL while the engine runs, and is written again if it is lost. `folder` is for
    its pictures; `start` clears it. `prepare` is called before each start of the engine, so that the files that it reads
    are there."""

    def __init__(
        self, files: SharedFiles, *, url_file: Path, folder: Path, prepare: Callable[[], None]
    ) -> None:
        self._files, self._url_file, self._folder, self._prepare = files, url_file, folder, prepare
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._known_url: tuple[tuple[int, int, int], str] | None = None

    def start(self) -> None:
        """Returns immediately; the engine responds some tenths of a second later."""
        KeptFile(self._url_file, b"").remove()
        shutil.rmtree(self._folder, ignore_errors=True)  # if the last server was killed
        self._stopping.clear()
        thread = threading.Thread(target=self._supervise, name="sketch-supervisor", daemon=True)
        thread.start()
        self._thread = thread

    def stop(self) -> None:
        """Stop the engine if this process started it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def url(self) -> str | None:
        """The engine's URL; None if it does not start within URL_TIMEOUT_S. Raises TooManyFiles and the other errors of
        `shortage_in`."""
        deadline = time.monotonic() + URL_TIMEOUT_S
        while True:
            try:
                return self._read_url()
            except (OSError, ValueError) as error:
                if shortage := shortage_in(error):
                    raise shortage from error
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)

    def _read_url(self) -> str:
        """Read the file only if it has changed. Raises OSError, and ValueError if it is damaged."""
        found = self._url_file.stat()
        version = found.st_ino, found.st_mtime_ns, found.st_size
        if self._known_url is None or self._known_url[0] != version:
            url = read_file(self._url_file).decode()
            if not _URL.fullmatch(url):
                raise ValueError(f"{self._url_file.name} contains no address")
            self._known_url = version, url
        return self._known_url[1]

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            try:
                self._run_engine()
            except (EaselError, OSError) as error:
                log.error("the sketch engine failed: %s", error)
            if not self._stopping.wait(0):
                log.error("the sketch engine ended; restarting it in %g s", RESTART_DELAY_S)
                self._stopping.wait(RESTART_DELAY_S)

    def _run_engine(self) -> None:
        """Run one engine until it ends or the server stops. Raises OSError, EngineUnreachable."""
        ensure_folder(self._folder)
        self._prepare()
        with SketchProcess(nodes=self._files.nodes, files=self._files.files, folder=self._folder) as sketch:
            url_file = KeptFile(self._url_file, sketch.url.encode())
            log.warning("no ComfyUI: the built-in sketch engine draws instead, at %s", sketch.url)
            try:
                while True:
                    # The disk may be full, or the state directory unwritable, for a while.
                    with contextlib.suppress(OSError):
                        url_file.restore()
                    if self._stopping.wait(CHECK_INTERVAL_S) or not sketch.alive():
                        return
            finally:
                url_file.remove()
