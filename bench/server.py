"""The gateway as its owner runs it: gunicorn in a process of its own, defaults but for the addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from bench.clients import session
from bench.processes import children

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_LOOK_S = 0.002
_AT = re.compile(r"Easel is at (http://\S+)")


class Server:
    """`with Server(engine_url=…, catalogue=…) as server: server.url`. It has a state directory of its own."""

    def __init__(self, *, engine_url: str, catalogue: Path) -> None:
        self._engine_url, self._catalogue = engine_url, catalogue
        self.url = ""
        self.began = 0.0
        """When gunicorn was started, on the clock of time.perf_counter"""

    def __enter__(self) -> Self:
        self._place = TemporaryDirectory(prefix="easel-bench-")
        place = Path(self._place.name)
        (place / "easel.yaml").touch()  # so that the owner's own settings do not count
        self._log = place / "log"
        with self._log.open("wb") as log:
            self.began = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "wsgi:app"],
                cwd=ROOT,
                env=self._environment(place),
                stdout=log,
                stderr=log,
            )
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._place.cleanup()

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return children(self._process.pid)

    def _environment(self, place: Path) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
        return {
            **others,
            "EASEL_CONFIG": str(place / "easel.yaml"),
            "EASEL_STATE_DIR": str(place / "state"),
            "EASEL_PORT": "0",
            "EASEL_ENGINE_URL": self._engine_url,
            "EASEL_CATALOGUE": str(self._catalogue),
            "EASEL_TEMPLATES": str(ROOT / "templates_wf"),
        }

    def _wait_for_url(self) -> str:
        """Its address, once it has answered there."""
        give_up = time.perf_counter() + START_TIMEOUT_S
        while time.perf_counter() < give_up and self._process.poll() is None:
            found = _AT.search(self._log.read_text())
            if found:
                self._ask(found[1])
                return found[1]
            time.sleep(_LOOK_S)
        raise RuntimeError(f"the gateway did not start; it said:\n{self._log.read_text()}")

    def _ask(self, url: str) -> None:
        with session() as asking:
            asking.get(f"{url}/health", timeout=START_TIMEOUT_S).raise_for_status()
