"""Chooses the engine to use now: the configured one, a ComfyUI found on a default port, or the sketch engine."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from atomic_file import write_atomic
from deadline import time_limit
from engine.client import Engine
from errors import EaselError, EngineUnreachable
from http_connections import ConnectionPool
from state_files import read_file, set_aside
from system_errors import shortage_in

log = logging.getLogger("easel.engine")

PROBE_URLS = ("http://127.0.0.1:8188", "http://127.0.0.1:8000")
"""Where ComfyUI and ComfyUI Desktop listen by default"""
_PROBE_TIMEOUT_S = 0.3
_MAX_PROBE_BYTES = 1_000_000
_SEEN_FILE = "engine-seen.json"


class _Probe(enum.Enum):
    COMFYUI = "a ComfyUI answered"
    TIMED_OUT = "a server accepted the connection but did not answer in time"
    NO_COMFYUI = "no server listens, or it is not a ComfyUI"
    NOT_ASKED = "this process had too few resources to connect"


class EngineSelector:
    """A configured engine is always used. Otherwise the first ComfyUI that answers at one of `probe_urls` is used. Once
    any process that shares `state_dir` has seen one, the sketch engine is used no more, so that pictures do not turn
    back into sketches, and the one that was seen last is preferred. Before that, the sketch engine is used.

    What was seen is kept in a file. A damaged one is written again by a process that knows what it said, and is moved
    aside otherwise. After the file was deleted, the sketch engine is used again unless a ComfyUI answers.

    `sketch_url` gives the sketch engine's current address, or None. Thread-safe, and safe to use after a fork.
    """

    def __init__(
        self,
        configured_url: str | None,
        *,
        sketch_url: Callable[[], str | None],
        state_dir: Path,
        probe_urls: Sequence[str] = PROBE_URLS,
        probe_interval_s: float = 5.0,
        make_engine: Callable[[str], Engine] = Engine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._configured_url = configured_url
        self._sketch_url = sketch_url
        self._seen_file = state_dir / _SEEN_FILE
        self._probe_urls = tuple(probe_urls)
        self._probe_interval_s = probe_interval_s
        self._make_engine = make_engine
        self._clock = clock
        self._probe_lock = threading.Lock()
        self._next_probe_at = clock()
        self._answers: dict[str, _Probe] | None = None
        """What the last round of probes found at each URL"""
        self._known_seen: str | None = None
        """What the file said when it was read last"""
        self._engines: dict[str, Engine] = {}
        self._engines_lock = threading.Lock()

    def current(self) -> Engine:
        """The engine to use for the next job. Raises EngineUnreachable, and TooManyFiles and the other errors of
        `shortage_in`."""
        if (comfyui := self.comfyui()) is not None:
            return comfyui
        sketch_url = self._sketch_url()
        if sketch_url is None:
            raise EngineUnreachable(
                f"No ComfyUI answers at {' or '.join(self._probe_urls)}, no engine is configured, and there is no sketch "
                "engine. Start ComfyUI, or set engine.url to its address.",
                refused=True,
            )
        return self._engine(sketch_url)

    def comfyui(self) -> Engine | None:
        """The ComfyUI to use, None if none is configured and none was ever seen; does not wait for the sketch engine. Raises
        EngineUnreachable, and TooManyFiles and the other errors of `shortage_in`."""
        if self._configured_url is not None:
            return self._engine(self._configured_url)
        if self._known_seen is not None and self._seen_url() is None:
            self._probe_again()
        answers, seen = self._probe_if_due(), self._seen_url()
        return None if seen is None else self._seen_engine(seen, answers)

    def _seen_engine(self, url: str, answers: dict[str, _Probe]) -> Engine:
        """The ComfyUI that was seen before. If it is only slow to answer, it is busy: the job waits for it."""
        if answers.get(url) is _Probe.NO_COMFYUI:
            raise EngineUnreachable(
                f"The ComfyUI at {url} does not answer. Easel has used it before and does not go back to "
                f"the sketch engine; if this ComfyUI was removed, delete {_SEEN_FILE} from the state directory.",
                url=url,
                refused=True,
            )
        return self._engine(url)

    def _seen_url(self) -> str | None:
        """The ComfyUI that was seen last, by any process; None if none was. Raises the errors of `shortage_in`."""
        try:
            url = json.loads(read_file(self._seen_file))["url"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            if shortage := shortage_in(error):
                raise shortage from error
            return self._replace_damaged(error)
        self._known_seen = url if url in self._probe_urls else self._probe_urls[0]
        return self._known_seen

    def _replace_damaged(self, error: Exception) -> str | None:
        """Write again what the file said. What it said before this process started cannot be known."""
        set_aside(self._seen_file, error)
        if self._known_seen is not None:
            self._write_seen(self._known_seen)
        return self._known_seen

    def _write_seen(self, url: str) -> None:
        """If the state directory cannot be written, the file is written after the next probe."""
        with contextlib.suppress(OSError):
            write_atomic(self._seen_file, json.dumps({"url": url}).encode() + b"\n")

    def _probe_again(self) -> None:
        """The file was deleted, by the owner or with the whole directory. A ComfyUI that is there is seen again at once;
        one that is only slow is not forgotten."""
        with self._probe_lock:
            known = self._known_seen
            if known is None or self._seen_url() is not None:
                return
            self._known_seen = None
            self._answers = self._probe_all(known)
            if self._answers.get(known) in (_Probe.TIMED_OUT, _Probe.NOT_ASKED) and self._seen_url() is None:
                self._known_seen = known
                self._write_seen(known)

    def _probe_if_due(self) -> dict[str, _Probe]:
        """One caller at a time probes. The others use the last result; they wait only if there is none yet."""
        answers = self._answers
        if answers is not None and self._clock() < self._next_probe_at:
            return answers
        if not self._probe_lock.acquire(blocking=answers is None):
            assert answers is not None
            return answers
        try:
            if self._answers is None or self._clock() >= self._next_probe_at:
                self._answers = self._probe_all()
            return self._answers
        finally:
            self._probe_lock.release()

    def _probe_all(self, first: str | None = None) -> dict[str, _Probe]:
        """Ask at each URL, the one that was seen (or `first`) first, until a ComfyUI answers."""
        seen = self._seen_url() or first
        answers: dict[str, _Probe] = {}
        for url in sorted(self._probe_urls, key=lambda url: url != seen):
            answers[url] = _probe(url)
            is_busy = url == seen and answers[url] in (_Probe.TIMED_OUT, _Probe.NOT_ASKED)
            if answers[url] is _Probe.COMFYUI or is_busy:
                break
        found = next((url for url, answer in answers.items() if answer is _Probe.COMFYUI), None)
        # An engine that was seen and is away is probed at every call, so that it is used as soon as it is back.
        is_away = seen is not None and found is None and answers.get(seen) is _Probe.NO_COMFYUI
        self._next_probe_at = self._clock() + (0.0 if is_away else self._probe_interval_s)
        if found is not None and (found != seen or first is not None):
            log.info("found a ComfyUI at %s, it draws from now on", found)
            self._known_seen = found
            self._write_seen(found)
        return answers

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
    """Anything may listen there, so it gets no credentials and little time, and only the answer of a ComfyUI counts."""
    connections = ConnectionPool(url, connect_timeout_s=_PROBE_TIMEOUT_S, max_kept=0)
    try:
        with time_limit(_PROBE_TIMEOUT_S):
            response = connections.call(
                "GET", "/system_stats", timeout_s=_PROBE_TIMEOUT_S, max_bytes=_MAX_PROBE_BYTES
            )
        system = json.loads(response.content)["system"]
        is_comfyui = (
            response.status == 200
            and isinstance(system["comfyui_version"], str)
            and system.get("easel_sketch") is not True
        )
    except TimeoutError:
        return _Probe.TIMED_OUT
    except (
        *(HTTPException, OSError, RecursionError),
        *(ValueError, LookupError, TypeError, AttributeError),
    ) as error:
        return _Probe.NOT_ASKED if shortage_in(error) else _Probe.NO_COMFYUI
    return _Probe.COMFYUI if is_comfyui else _Probe.NO_COMFYUI
