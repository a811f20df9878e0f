"""The engine as a user of the GPU: what the arbiter may ask of it (see `gpu_tenant.Tenant`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from engine.client import Engine
from engine.device_memory import free_bytes
from engine.process import EngineProcess
from engine.values import EngineStats
from errors import EngineStartFailed, EngineUnreachable
from gpu_tenant import Failure, Resident
from loopback import is_loopback

_MAX_RESIDUE_BYTES = 512 * 2**20
"""What ComfyUI's allocator may keep although no model is loaded"""
_START_POLL_INTERVAL_S = 0.1
_RISE_BYTES = 64 * 2**20
"""Free memory varies by less without a cause"""
_STEADY_S = 0.2
"""Memory counts as freed when no more became free for so long"""
_NO_RISE_S = 1.0
"""So long ComfyUI may take to begin to free memory; after that it had none to free"""


class _Freeing:
    """Follows the free memory of the device while ComfyUI unloads its models. ComfyUI answers before it does so, and no
    figure of its own tells how much its models take (see `EngineStats.device_free_bytes`)."""

    def __init__(self, free: int, now: float) -> None:
        self._highest, self._risen_at = free, now
        self._has_risen = False

    def is_done(self, free: int, now: float) -> bool:
        if free > self._highest + _RISE_BYTES:
            self._highest, self._risen_at, self._has_risen = free, now, True
        return now - self._risen_at >= (_STEADY_S if self._has_risen else _NO_RISE_S)


class EngineTenant:
    """`engine` gives the current one and may raise EngineUnreachable; `start_timeout_s` limits how long a start of
    `process` may take. `uses_gpu`: false for an engine whose jobs need no
    GPU. `driver_free_bytes`: see `device_memory`."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        process: EngineProcess,
        *,
        start_timeout_s: float,
        uses_gpu: Callable[[Engine], bool] = lambda engine: True,
        driver_free_bytes: Callable[[], int | None] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._engine, self._process = engine, process
        self._start_timeout_s, self._clock, self._sleep = start_timeout_s, clock, sleep
        self._driver_free_bytes, self._uses_gpu = driver_free_bytes, uses_gpu
        self._freeing: _Freeing | None = None

    def resident(self) -> tuple[Resident, ...]:
        """One entry while ComfyUI's allocator holds more than a residue, or after `release` while memory of the device
        is still becoming free; empty if ComfyUI does not report its GPU memory. A custom node may hold memory for ever,
        so the caller must limit how long it waits."""
        stats = self._stats()
        if stats is None or stats.device_free_bytes is None:
            self._freeing = None
            return ()
        held = stats.torch_vram_total or 0
        if held > _MAX_RESIDUE_BYTES:
            return (Resident("comfyui", f"{held / 1e9:.1f} GB"),)
        if self._freeing is not None and not self._freeing.is_done(stats.device_free_bytes, self._clock()):
            return (Resident("comfyui", "memory that is being freed"),)
        self._freeing = None
        return ()

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        try:
            return self.resident()
        except EngineUnreachable:
            return ()

    def busy(self) -> int:
        """Jobs running and queued, those of ComfyUI's own page too; 0 if the engine is down or uses no GPU."""
        if self.is_down() or not self._uses_gpu(self._engine()):
            return 0
        queue = self._engine().queue()
        return len(queue.running) + len(queue.pending)

    def release(self, residents: Sequence[Resident]) -> None:
        stats = self._stats()
        if stats is None:
            return
        self._engine().request_free()
        if self._freeing is None and stats.device_free_bytes is not None:
            self._freeing = _Freeing(stats.device_free_bytes, self._clock())

    def restore(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        """Make sure that the engine is up; it loads its models by itself. Raises EngineUnreachable,
        EngineStartFailed."""
        if not self._process.can_start:
            self._engine().stats()
        elif self.is_down():
            self._process.start()
            self._wait_until_up()
        return ()

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        return self.is_down() or self._engine().cancel_jobs(jobs)

    def is_down(self) -> bool:
        """Whether the engine's address refuses connections: then there is no process, and it holds no memory. Raises
        EngineUnreachable if a process is there but does not answer."""
        return self._stats() is None

    def _stats(self) -> EngineStats | None:
        """None if the engine is down. Raises EngineUnreachable if that cannot be found out."""
        try:
            return self._engine().stats()
        except EngineUnreachable as error:
            if error.details.get("refused") is True:
                return None
            raise

    def can_be_started(self) -> bool:
        """Whether the engine is down and Easel can start it. Never raises."""
        try:
            return self._process.can_start and self.is_down()
        except EngineUnreachable:
            return False

    def available_bytes(self) -> int | None:
        """GPU memory that ComfyUI could use now, what it already holds included. While it is down or does not report
        it, what the driver of a GPU on this machine reports as free; None if that is unknown, too."""
        try:
            engine = self._engine()
        except EngineUnreachable:
            return None
        try:
            stats = engine.stats()
        except EngineUnreachable:
            return self._driver_free_bytes() if is_loopback(urlsplit(engine.url).hostname) else None
        return stats.available_bytes

    def _wait_until_up(self) -> None:
        deadline = self._clock() + self._start_timeout_s
        while self.is_down():
            if self._clock() >= deadline:
                raise EngineStartFailed(
                    f"ComfyUI was started ({self._process.kind} {self._process.name}) and did not answer "
                    f"within {self._start_timeout_s:g} s."
                )
            self._sleep(_START_POLL_INTERVAL_S)
