"""Chooses the engine to use now: the configured one, a ComfyUI found on its default port, or the sketch engine."""

from __future__ import annotations

import enum
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests

from atomic_file import write_atomic
from engine.client import Engine
from errors import EaselError, EngineUnreachable
from http_session import DirectSession

PROBE_URL = "http://127.0.0.1:8188"
_PROBE_TIMEOUT_S = 0.3
_SEEN_FILE = "engine-seen.json"


class _Probe(enum.Enum):
    COMFYUI = "a ComfyUI answered"
    TIMED_OUT = "a server accepted the connection but did not answer in time"
    NO_COMFYUI = "no server listens, or it is not a ComfyUI"


class EngineSelector:
    """A configured engine is always used. Otherwise a ComfyUI at `probe_url` is used if it answers. Once any process
    that shares `state_dir` has seen it, no other engine is used any more, so that pictures do not turn back into
    sketches. Before that, the sketch engine is used.

    `sketch_url` gives the sketch engine's current address, or None. Thread-safe, and safe to use after a fork.
    """

    def __init__(
        self,
        configured_url: str | None,
        *,
        sketch_url: Callable[[], str | None],
        state_dir: Path,
        probe_url: str = PROBE_URL,
        probe_interval_s: float = 5.0,
        make_engine: Callable[[str], Engine] = Engine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured_url = configured_url
        self._sketch_url = sketch_url
        self._seen_file = state_dir / _SEEN_FILE
        self._probe_url = probe_url
        self._probe_interval_s = probe_interval_s
        self._make_engine = make_engine
        self._clock = clock
        self._probe_lock = threading.Lock()
        self._next_probe_at = clock()
        self._last_probe: _Probe | None = None
        self._engines: dict[str, Engine] = {}
        self._engines_lock = threading.Lock()

    def current(self) -> Engine:
        """The engine to use for the next job. Raises EngineUnreachable."""
        if self._configured_url is not None:
            return self._engine(self._configured_url)
        self._probe_if_due()
        if self._seen_file.exists():
            return self._seen_engine()
        sketch_url = self._sketch_url()
        if sketch_url is None:
            raise EngineUnreachable(
                f"No ComfyUI answers at {self._probe_url}, no engine is configured, and there is no sketch engine.",
                refused=True,
            )
        return self._engine(sketch_url)

    def _seen_engine(self) -> Engine:
        """The ComfyUI that was seen before. If it is only slow to answer, it is busy: the job waits for it."""
        if self._last_probe is _Probe.NO_COMFYUI:
            raise EngineUnreachable(
                f"The ComfyUI at {self._probe_url} does not answer. Easel has used it before and does not go back to "
                f"the sketch engine; if this ComfyUI was removed, delete {_SEEN_FILE} from the state directory.",
                url=self._probe_url,
                refused=True,
            )
        return self._engine(self._probe_url)

    def _probe_if_due(self) -> None:
        """One caller at a time probes. The others use the last result; they wait only if there is none yet."""
        now = self._clock()
        if self._last_probe is not None and now < self._next_probe_at:
            return
        if not self._probe_lock.acquire(blocking=self._last_probe is None):
            return
        try:
            if self._last_probe is None or self._clock() >= self._next_probe_at:
                self._last_probe = _probe(self._probe_url)
                # An engine that was seen and is away is probed at every call, so that it is used as soon as it is back.
                away = self._last_probe is _Probe.NO_COMFYUI and self._seen_file.exists()
                self._next_probe_at = self._clock() + (0.0 if away else self._probe_interval_s)
                if self._last_probe is _Probe.COMFYUI and not self._seen_file.exists():
                    write_atomic(self._seen_file, json.dumps({"url": self._probe_url}).encode() + b"\n")
        finally:
            self._probe_lock.release()

    def _engine(self, url: str) -> Engine:
        with self._engines_lock:
            if url not in self._engines:
                self._engines[url] = self._make_engine(url)
            return self._engines[url]

    def cancel_all(self, reason: EaselError) -> None:
        """Make every job of this process, on all engines used so far, end with `reason`."""
        for engine in list(self._engines.values()):
            engine.cancel_all(reason)

    def close(self) -> None:
        """Close the connections of all engines used so far."""
        for engine in list(self._engines.values()):
            engine.close()


def _probe(url: str) -> _Probe:
    try:
        with DirectSession() as session:
            response = session.get(f"{url}/system_stats", timeout=_PROBE_TIMEOUT_S)
            system = response.json()["system"]
            is_comfyui = "comfyui_version" in system and system.get("easel_sketch") is not True
    except requests.Timeout:
        return _Probe.TIMED_OUT
    except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError):
        return _Probe.NO_COMFYUI
    return _Probe.COMFYUI if is_comfyui else _Probe.NO_COMFYUI
