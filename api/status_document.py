"""The status of the machine as the API shows it: one document, and what of it each caller may see."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from access import Caller
from api.job_documents import waits_for
from api.services import Services
from errors import EaselError

OF_REQUESTS = ("jobs", "tickets", "requests")
_OF_INSTALLATION = (
    "problem",
    "endpoint",
    "engines",
    "gpus",
    "switchover",
    "stacks",
    "upstreams",
    "keys",
    "metrics",
)
"""They have messages, which may name files, and addresses of other servers"""
OF_CALLER = (*OF_REQUESTS, "switches", "catalogue", "settings", "last_error", *_OF_INSTALLATION)
"""The parts of the document that differ from caller to caller"""
_MAX_QUEUED = 50
"""Image jobs in the queue that are listed; GET /v1/images/jobs has all"""
_HIDDEN = ("request_id", "key", "client", "prompt")
"""What others may not see of a request"""


_PLACE = re.compile(r"(?P<file>[^\s:]+\.[A-Za-z0-9]+):(?P<line>[0-9]+)(?::(?P<column>[0-9]+))?:")


@dataclass(frozen=True)
class Audience:
    """Callers that see the same. `key`: the name of the key, "" without one. `sees_all`: also whom others' requests belong
    to. `sees_messages`: messages may name files of this installation, and other servers; without it also no addresses.
    `owner`: as `Caller.owner`, "" as `key`."""

    key: str
    sees_all: bool
    sees_messages: bool = True
    owner: str = ""

    @classmethod
    def of(cls, caller: Caller) -> Audience:
        sees_all = caller.may("operate")
        key, owner = ("", "") if sees_all else (caller.key, caller.owner)
        return cls(key, sees_all, caller.may("view", "operate"), owner)

    def part_of(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Those parts of the whole document that differ, as this audience sees them."""
        seen = {name: document[name] for name in OF_CALLER}
        if self.sees_all:
            return {**seen, **{name: [_without_owner(entry) for entry in seen[name]] for name in OF_REQUESTS}}
        # ComfyUI's message about a drawing may quote the prompt.
        if seen["last_error"] and seen["last_error"].get("of_drawing"):
            seen["last_error"] = _without_message(seen["last_error"])
        if not self.sees_messages:
            seen = _without_messages(seen)
        return {
            **seen,
            **{name: [self._visible(entry) for entry in document[name]] for name in OF_REQUESTS},
            "switches": self._visible_switches(seen["switches"]),
            "gpus": [{**gpu, "switches": self._visible_switches(gpu["switches"])} for gpu in seen["gpus"]],
        }

    def _visible_switches(self, switches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**switch, "who": switch["who"] if switch["who"] == self.key else None} for switch in switches
        ]

    def _visible(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Others may see that something is drawn, with which model and since when, but not for whom."""
        shown = _without_owner(entry)
        if is_own(entry.get("owner"), entry["key"], self.owner, self.key):
            return shown
        hidden = {name: None for name in _HIDDEN if name in entry}
        return {**shown, **hidden, **({"can_cancel": False} if "can_cancel" in entry else {})}


def is_own(owner: str | None, key: str | None, caller_owner: str, caller_key: str) -> bool:
    """Whether a request of `owner`, by a key of the name `key`, is the caller's. A later key of the same name is another
    owner; where the owner is not known, the name decides."""
    return owner == caller_owner if owner else key == caller_key


def _without_owner(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "owner"}


def whole_status(services: Services) -> dict[str, Any]:
    """The status as an operator sees it, with the owner of each request beside its key. Never raises."""
    problem, report = services.gate.problem, services.system_status.report()
    # They have no engine yet.
    of_engine = {} if services.fleet.is_single else {"engine": None}
    queued = [{**job, **of_engine} for job in _queued_jobs(services)]
    return {
        **report,
        "requests": [*report["requests"], *queued],
        "catalogue": _catalogue(services),
        "settings": {"error": _located(services.engines_error())},
        "upstreams": [asdict(upstream) for upstream in services.models_of_llms.status()],
        "keys": {"error": problem.message if problem else None},
        "metrics": {"problem": services.metrics_problem()},
    }


def _queued_jobs(services: Services) -> list[dict[str, Any]]:
    """Image jobs that no thread has taken, as `requests` lists them."""
    now = time.time()
    try:
        views = services.jobs.waiting(_MAX_QUEUED)
    except OSError:
        return []
    return [
        {
            "id": view.status.id,
            "state": "waiting",
            "place": view.waiting_before,
            **waits_for(view.waiting_before),
            "expected_s": None,
            "kind": "image",
            "model": view.status.model,
            "prompt": None,
            "key": (key := services.gate.name_of(view.status.owner) or None),
            "owner": view.status.owner,
            "client": key,
            "age_s": round(max(0.0, now - view.status.created), 1),
            "progress": None,
            "step": None,
            "steps": None,
            "can_cancel": True,
        }
        for view in views
    ]


def _catalogue(services: Services) -> dict[str, Any]:
    error, faults = services.catalogue_error(), services.catalogue().own_faults
    return {
        "error": _located(error),
        "own_errors": [
            {"file": fault.file, "line": fault.line, "path": fault.path or None, "message": fault.text}
            for fault in faults
        ],
    }


def _located(error: EaselError | None) -> dict[str, Any] | None:
    """The error with the place that its message begins with, as `FILE:LINE:COLUMN: …`."""
    if error is None:
        return None
    place = _PLACE.match(error.message)
    numbers = {name: int(text) if place and (text := place[name]) else None for name in ("line", "column")}
    file = place["file"] if place else None
    return {"code": error.code, "message": error.message, "file": file, **numbers}


def _without_messages(seen: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that differ from caller to caller, without messages and addresses. Codes stay."""
    return {
        **seen,
        "switches": _without_errors(seen["switches"]),
        "catalogue": {
            "error": _code_only(seen["catalogue"]["error"]),
            "own_errors": [],
        },
        "settings": {"error": _code_only(seen["settings"]["error"])},
        "last_error": _without_message(seen["last_error"]),
        "problem": _without_message(seen["problem"]),
        "endpoint": None,
        "engines": [
            {**engine, "endpoint": None, "problem": _without_message(engine["problem"])}
            for engine in seen["engines"]
        ],
        "gpus": [
            {
                **gpu,
                "switchover": {**gpu["switchover"], **_NO_MESSAGES_OF_SWITCH},
                "switches": _without_errors(gpu["switches"]),
            }
            for gpu in seen["gpus"]
        ],
        "switchover": {**seen["switchover"], **_NO_MESSAGES_OF_SWITCH},
        "stacks": [{**stack, "url": None, "problem": None} for stack in seen["stacks"]],
        "upstreams": [],
        "keys": {"error": None},
        "metrics": {"problem": None},
    }


_NO_MESSAGES_OF_SWITCH: Mapping[str, Any] = {"error": None, "failed": [], "notes": []}


def _without_errors(switches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Past switchovers without the messages of their errors."""
    return [{**switch, "error": _without_message(switch["error"])} for switch in switches]


def _code_only(error: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return error and {**dict.fromkeys(error), "code": error["code"]}


def _without_message(error: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return error and {**error, "message": None}


def status_for(caller: Caller, services: Services) -> dict[str, Any]:
    """The status as `caller` may see it."""
    document = whole_status(services)
    return {**document, **Audience.of(caller).part_of(document)}
