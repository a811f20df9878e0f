"""The engine as a user of the GPU: what the arbiter may ask of it (see `tenant.Tenant`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine.client import Engine
from engine.process import EngineProcess
from engine.values import EngineStats
from errors import EngineStartFailed, EngineUnreachable
from gpu_tenant import Failure, Resident

_RESIDUE = 512 * 2**20
"""What ComfyUI's allocator may keep without holding a model, in bytes"""
_LOOK_S = 0.1


class EngineTenant:
    """`engine` gives the one in force and may raise EngineUnreachable; `start_timeout_s` bounds a start by `host`."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        host: EngineProcess,
        *,
        start_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._engine, self._host = engine, host
        self._start_timeout_s, self._clock, self._pause = start_timeout_s, clock, pause

    def resident(self) -> tuple[Resident, ...]:
        """One entry while ComfyUI's allocator holds more than a residue; nothing where it cannot tell. A custom node may
        hold memory for good: how long to wait for it is for who asks."""
        stats = self._stats()
        held = stats.torch_vram_total or 0 if stats and stats.tells_gpu_memory else 0
        return (Resident("comfyui", f"{held / 1e9:.1f} GB"),) if held > _RESIDUE else ()

    def busy(self) -> int:
        """Jobs running and queued, its own page's too. Nobody listens: none."""
        if self.is_down():
            return 0
        queue = self._engine().queue()
        return len(queue.running) + len(queue.pending)

    def release(self, residents: Sequence[Resident]) -> None:
        if not self.is_down():
            self._engine().let_go()

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """See that the engine is up; its models it loads by itself. Raises EngineUnreachable and EngineStartFailed."""
        if not self._host.can_start:
            self._engine().stats()
        elif self.is_down():
            self._host.start()
            self._wait_until_up()
        return ()

    def drop(self, jobs: Sequence[str] | None) -> None:
        if not self.is_down():
            self._engine().drop(jobs)

    def is_down(self) -> bool:
        """Whether nobody takes connections at the engine's address: no process, no memory. Raises EngineUnreachable for
        one that is there and does not answer."""
        return self._stats() is None

    def _stats(self) -> EngineStats | None:
        """None when it is down. Raises EngineUnreachable when nobody knows."""
        try:
            return self._engine().stats()
        except EngineUnreachable as error:
            if error.details.get("refused") is True:
                return None
            raise

    def can_be_started(self) -> bool:
        """Whether it is down, and there is somebody to start it. Never raises."""
        try:
            return self._host.can_start and self.is_down()
        except EngineUnreachable:
            return False

    def room_bytes(self) -> int | None:
        """GPU memory that it could have if nobody else left; None where it cannot tell."""
        try:
            return self._engine().stats().room_bytes
        except EngineUnreachable:
            return None

    def _wait_until_up(self) -> None:
        until = self._clock() + self._start_timeout_s
        while self.is_down():
            if self._clock() >= until:
                raise EngineStartFailed(
                    f"ComfyUI was started ({self._host.kind} {self._host.name}) and did not answer "
                    f"within {self._start_timeout_s:g} s."
                )
            self._pause(_LOOK_S)
