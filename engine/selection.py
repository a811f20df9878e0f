"""Which engine to use now: the configured one, the ComfyUI that was found on its usual port, or the sketch engine."""

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
_SEEN = "engine-seen.json"


class _Answer(enum.Enum):
    COMFYUI = "a ComfyUI answered"
    SLOW = "somebody listens, but did not answer in time"
    NONE = "nobody listens, or it is no ComfyUI"


class EngineSelector:
    """A configured engine is always used. Else a ComfyUI at `probe_url` is, and once one was seen, by any process that
    shares `state_dir`, nothing else ever is: pictures do not turn back into sketches. Till then, the sketch engine.

    `sketch_url` gives the sketch engine's present address, or None. Safe for many threads and after a fork.
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
        self._seen_file = state_dir / _SEEN
        self._probe_url = probe_url
        self._probe_interval_s = probe_interval_s
        self._make_engine = make_engine
        self._clock = clock
        self._probing = threading.Lock()
        self._probe_at = clock()
        self._answer: _Answer | None = None
        self._engines: dict[str, Engine] = {}
        self._adding = threading.Lock()

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
                f"No ComfyUI answers at {self._probe_url}, none is configured, and there is no sketch engine.",
                refused=True,
            )
        return self._engine(sketch_url)

    def _seen_engine(self) -> Engine:
        """One that is slow to answer is only busy: the job shall wait for it, not fail here."""
        if self._answer is _Answer.NONE:
            raise EngineUnreachable(
                f"The ComfyUI at {self._probe_url} does not answer. Easel has seen it before, so it draws no sketches "
                f"instead; remove {_SEEN} from the state directory if it is gone for good.",
                url=self._probe_url,
                refused=True,
            )
        return self._engine(self._probe_url)

    def _probe_if_due(self) -> None:
        """By one caller at a time. The others go on with the last answer, and wait for the very first one only."""
        now = self._clock()
        if self._answer is not None and now < self._probe_at:
            return
        if not self._probing.acquire(blocking=self._answer is None):
            return
        try:
            if self._answer is None or self._clock() >= self._probe_at:
                self._answer = _probe(self._probe_url)
                # An engine that was there and is away is looked for at every call, so that it is back at once.
                away = self._answer is _Answer.NONE and self._seen_file.exists()
                self._probe_at = self._clock() + (0.0 if away else self._probe_interval_s)
                if self._answer is _Answer.COMFYUI and not self._seen_file.exists():
                    write_atomic(self._seen_file, json.dumps({"url": self._probe_url}).encode() + b"\n")
        finally:
            self._probing.release()

    def _engine(self, url: str) -> Engine:
        with self._adding:
            if url not in self._engines:
                self._engines[url] = self._make_engine(url)
            return self._engines[url]

    def cancel_all(self, reason: EaselError) -> None:
        """Make every job of this process on any engine used so far end with `reason`."""
        for engine in list(self._engines.values()):
            engine.cancel_all(reason)

    def close(self) -> None:
        """Let go of the connections of every engine used so far."""
        for engine in list(self._engines.values()):
            engine.close()


def _probe(url: str) -> _Answer:
    try:
        with DirectSession() as session:
            answer = session.get(f"{url}/system_stats", timeout=_PROBE_TIMEOUT_S)
            system = answer.json()["system"]
            genuine = "comfyui_version" in system and system.get("easel_sketch") is not True
    except requests.Timeout:
        return _Answer.SLOW
    except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError):
        return _Answer.NONE
    return _Answer.COMFYUI if genuine else _Answer.NONE
