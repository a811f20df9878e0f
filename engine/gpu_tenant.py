"""The engine as a user of the GPU: what the arbiter may ask of it (see `gpu_tenant.Tenant`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine.client import Engine
from engine.process import EngineProcess
from engine.values import EngineStats
from errors import EngineStartFailed, EngineUnreachable
from gpu_tenant import Failure, Resident

_MAX_RESIDUE_BYTES = 512 * 2**20
"""What ComfyUI's allocator may keep although no model is loaded"""
_START_POLL_INTERVAL_S = 0.1


class EngineTenant:
    """`engine` gives the current one and may raise EngineUnreachable; `start_timeout_s` limits how long a start of
    `process` may take."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        process: EngineProcess,
        *,
        start_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._engine, self._process = engine, process
        self._start_timeout_s, self._clock, self._sleep = start_timeout_s, clock, sleep

    def resident(self) -> tuple[Resident, ...]:
        """One entry while ComfyUI's allocator holds more than a residue; empty if ComfyUI does not report its GPU
        memory. A custom node may hold memory for ever, so the caller must limit how long it waits."""
        stats = self._stats()
        held = stats.torch_vram_total or 0 if stats and stats.reports_gpu_memory else 0
        return (Resident("comfyui", f"{held / 1e9:.1f} GB"),) if held > _MAX_RESIDUE_BYTES else ()

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        try:
            return self.resident()
        except EngineUnreachable:
            return ()

    def busy(self) -> int:
        """Jobs running and queued, those of ComfyUI's own page too; 0 if the engine is down."""
        if self.is_down():
            return 0
        queue = self._engine().queue()
        return len(queue.running) + len(queue.pending)

    def release(self, residents: Sequence[Resident]) -> None:
        if not self.is_down():
            self._engine().request_free()

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """Make sure that the engine is up; it loads its models by itself. Raises EngineUnreachable,
        EngineStartFailed."""
        if not self._process.can_start:
            self._engine().stats()
        elif self.is_down():
            self._process.start()
            self._wait_until_up()
        return ()

    def cancel_jobs(self, jobs: Sequence[str] | None) -> None:
        if not self.is_down():
            self._engine().cancel_jobs(jobs)

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
        """GPU memory that ComfyUI could use now, what it already holds included; None if it does not report it."""
        try:
            return self._engine().stats().available_bytes
        except EngineUnreachable:
            return None

    def _wait_until_up(self) -> None:
        deadline = self._clock() + self._start_timeout_s
        while self.is_down():
            if self._clock() >= deadline:
                raise EngineStartFailed(
                    f"ComfyUI was started ({self._process.kind} {self._process.name}) and did not answer "
                    f"within {self._start_timeout_s:g} s."
                )
            self._sleep(_START_POLL_INTERVAL_S)
