"""The status of the machine as the API shows it: one document, and what of it each caller may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from access import Caller
from api.services import Services

OF_REQUESTS = ("jobs", "tickets")
"""The parts of the document that differ from caller to caller"""


@dataclass(frozen=True)
class Audience:
    """Callers that see the same. `key`: the name of the key, "" without one. `sees_all`: also whom others' requests belong
    to."""

    key: str
    sees_all: bool

    @classmethod
    def of(cls, caller: Caller) -> Audience:
        sees_all = caller.may("operate")
        return cls("" if sees_all else caller.key, sees_all)

    def part_of(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Those parts of the whole document that differ, as this audience sees them."""
        if self.sees_all:
            return {name: document[name] for name in OF_REQUESTS}
        return {name: [self._visible(entry) for entry in document[name]] for name in OF_REQUESTS}

    def _visible(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Others may see that something is drawn, with which model and since when, but not for whom."""
        if entry["key"] == self.key:
            return entry
        return {**entry, "request_id": None, "key": None, "client": None}


def whole_status(services: Services) -> dict[str, Any]:
    """The status as an operator sees it. Never raises."""
    problem = services.gate.problem
    return {
        **services.system_status.report(),
        "upstreams": [asdict(upstream) for upstream in services.models_of_llms.status()],
        "keys": {"error": problem.message if problem else None},
        "metrics": {"problem": services.metrics_problem()},
    }


def status_for(caller: Caller, services: Services) -> dict[str, Any]:
    """The status as `caller` may see it."""
    document = whole_status(services)
    return {**document, **Audience.of(caller).part_of(document)}
