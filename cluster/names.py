"""The names of keys, channels and queues in Redis."""

from __future__ import annotations

PREFIX = "easel:"
WAITING = f"{PREFIX}waiting"
"""Hash: job -> what is needed to order and place it"""
ASSIGNED = f"{PREFIX}assigned"
"""Hash: job -> the host that has it"""
TURNS = f"{PREFIX}turns"
"""Hash: flow of a key -> its last turn"""
NUMBER = f"{PREFIX}number"
"""Counts jobs, in the order in which they came"""
HOSTS = f"{PREFIX}hosts"
"""Set: the names of the hosts that were there lately"""
QUEUES = f"{PREFIX}queues"
"""Set: the names of the hosts for which Celery may keep something"""
FRONTS = f"{PREFIX}fronts"
"""Set: the processes that wait for jobs, until what they have left is removed"""
DISPATCH_LOCK = f"{PREFIX}dispatch"
DISPATCH_WANTED = f"{PREFIX}dispatch-wanted"
"""Counts the changes after which jobs may have to be sent"""
TASK = "easel.draw"
_MAX_SHOWN = 80


def shown(name: str | bytes, longest: int = _MAX_SHOWN) -> str:
    """A name or message out of Redis for the log and for people, on one line and not long: anybody may have written it."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= longest else f"{text[:longest]}…"


def job(id: str) -> str:
    """What is to be drawn."""
    return f"{PREFIX}job:{id}"


def upload(front_id: str, request_id: str, index: int, part: int) -> str:
    """A part of an image that the jobs of a request read."""
    return f"{PREFIX}upload:{front_id}:{request_id}:{index}:{part}"


def cancelled(id: str) -> str:
    """Exists once nobody wants the job any more."""
    return f"{PREFIX}cancelled:{id}"


def last_event(id: str) -> str:
    """What the host told last about the job, for a process that did not hear it."""
    return f"{PREFIX}last:{id}"


def held(job: str) -> str:
    """Says that a process of a host has the job now, and with which attempt."""
    return f"{PREFIX}held:{job}"


def prompts(id: str, host_name: str) -> str:
    """The ids under which a host has submitted the job to its engines, after the job's own."""
    return f"{PREFIX}prompts:{id}:{host_name}"


def result(id: str) -> str:
    """How the job has ended."""
    return f"{PREFIX}result:{id}"


def picture(id: str, attempt: int, index: int, part: int) -> str:
    """A part of a picture."""
    return f"{PREFIX}picture:{id}:{attempt}:{index}:{part}"


def host(name: str) -> str:
    """The heartbeat of a host."""
    return f"{PREFIX}host:{name}"


def host_models(name: str) -> str:
    """What a host can draw."""
    return f"{PREFIX}models:{name}"


def seen(name: str) -> str:
    """Exists until a host was not there for long."""
    return f"{PREFIX}seen:{name}"


def drained(name: str) -> str:
    """Exists while a host is to get no jobs."""
    return f"{PREFIX}drained:{name}"


def front(id: str) -> str:
    """The heartbeat of a process that waits for jobs."""
    return f"{PREFIX}front:{id}"


def jobs_of(front_id: str) -> str:
    """Set: the jobs of a process that have something in Redis."""
    return f"{PREFIX}jobs-of:{front_id}"


def channel(front_id: str) -> str:
    """What hosts tell a process that waits for jobs."""
    return f"{PREFIX}to:{front_id}"


def queue(host_name: str) -> str:
    """Celery's queue of a host."""
    return f"gpu.{host_name}"
