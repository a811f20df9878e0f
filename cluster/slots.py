"""How many jobs a host draws at the same time."""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """As many as there are engines, which may be added and removed while the host runs, once there is a process for each.
    `wanted`: how many engines there are now. `processes`: how many processes draw, kept by Celery's pool."""

    def __init__(self, wanted: Callable[[], int]) -> None:
        self._wanted = wanted
        self.processes = self.wanted

    @property
    def wanted(self) -> int:
        """At least one: a job must be refused by somebody."""
        return max(1, self._wanted())

    @property
    def usable(self) -> int:
        """How many jobs can run now."""
        return min(self.wanted, self.processes)
