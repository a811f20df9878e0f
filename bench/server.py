"""A gateway as an owner runs it: gunicorn in its own process, with default settings except for the addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.clients import session
from bench.processes import child_pids
from scratch_folder import ScratchFolder

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
"""The default of Easel"""
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_POLL_INTERVAL_S = 0.002
_URL = re.compile(r"Easel is at (http://\S+)")


class Server:
    """`with Server(engine_url=…, catalogue=…) as server: server.url`. It has its own state directory.

    `templates`: the folder of the catalogue's templates. `root`: the checkout that is run. `settings`: more variables of its
    environment."""

    def __init__(
        self,
        *,
        engine_url: str,
        catalogue: Path,
        templates: Path = ROOT / "templates_wf",
        root: Path = ROOT,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings or {}
        self._engine_url, self._catalogue = engine_url, catalogue
        self._templates, self._root = templates, root
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        """When gunicorn was started, on the clock of time.perf_counter"""

    def __enter__(self) -> Self:
        self._folder = ScratchFolder("easel-bench-")
        try:
            self._start(self._folder.path)
            self.url = self._wait_for_url()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, folder: Path) -> None:
        (folder / "easel.yaml").touch()  # an empty one, so that the owner's settings are not used
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.started_at = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "wsgi:app"],
                cwd=self._root,
                env=self._environment(folder),
                stdout=log,
                stderr=log,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        try:
            if process is not None:
                process.terminate()
                process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # even if Ctrl-C comes while it waits
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            self._folder.remove()

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers, once all have started: gunicorn forks the second one up to 0.1 s later. Empty on
        systems without /proc. Raises RuntimeError if one is missing."""
        assert self._process is not None
        deadline = time.perf_counter() + START_TIMEOUT_S
        while len(pids := child_pids(self._process.pid)) < WORKERS and pids:
            if time.perf_counter() > deadline:
                raise RuntimeError(
                    f"the gateway has not all of its workers; its log:\n{self._log.read_text()}"
                )
            time.sleep(_POLL_INTERVAL_S)
        return pids

    def _environment(self, folder: Path) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
        return {
            **inherited,
            "EASEL_CONFIG": str(folder / "easel.yaml"),
            "EASEL_STATE_DIR": str(folder / "state"),
            "EASEL_PORT": "0",
            "EASEL_WORKERS": str(WORKERS),
            "EASEL_ENGINE_URL": self._engine_url,
            "EASEL_CATALOGUE": str(self._catalogue),
            "EASEL_TEMPLATES": str(self._templates),
            **self._settings,
        }

    def _wait_for_url(self) -> str:
        """The server's URL, once it has responded there. Raises RuntimeError if it does not start."""
        assert self._process is not None
        deadline = time.perf_counter() + START_TIMEOUT_S
        while time.perf_counter() < deadline and self._process.poll() is None:
            match = _URL.search(self._log.read_text())
            if match:
                with session() as http:
                    http.get(f"{match[1]}/health", timeout=START_TIMEOUT_S).raise_for_status()
                return match[1]
            time.sleep(_POLL_INTERVAL_S)
        raise RuntimeError(f"the gateway did not start; its log:\n{self._log.read_text()}")
