"""Sends waiting jobs to hosts. Every process that waits for jobs may do it; a lock in Redis lets one at a time."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import redis

from arbiter import Turn, with_turn
from cluster import names
from cluster.host_facts import HostFacts, KnownHosts
from cluster.placing import AssignedJob, Situation, WaitingJob, finite, place
from cluster.redis_connection import answers_of, redis_errors

log = logging.getLogger("easel.cluster")
_LOCK_MS = 3000
_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
if redis.call('get', KEYS[2]) == ARGV[2] then return 0 end
return 1"""
"""Gives the lock back; whether something has changed since it was taken"""
REMOVE_ATTEMPT = """
local found = redis.call('hget', KEYS[1], ARGV[1])
if not found then return 0 end
local is_json, entry = pcall(cjson.decode, found)
if is_json and type(entry) == 'table' and entry['attempt'] ~= tonumber(ARGV[2]) then return 0 end
return redis.call('hdel', KEYS[1], ARGV[1])"""
"""Removes a job from a hash if it still has this attempt, or what somebody has written there in its place: key, job,
attempt"""
_ASSIGN = """
if redis.call('hdel', KEYS[1], ARGV[1]) == 1 then return redis.call('hset', KEYS[2], ARGV[1], ARGV[2]) end
return -1"""
"""Moves a job from those that wait to those that a host has, unless its client has hung up meanwhile"""
_T = TypeVar("_T")
_MAX_REPORTED = 100
_reported: set[bytes] = set()
"""Entries that were named in the log: they are read again many times a second"""


class Dispatcher:
    """`send`: gives a task to Celery: host, id of the job, attempt. `notify`: tells the process that waits for a job where
    it went. Thread-safe."""

    def __init__(
        self,
        client: redis.Redis,
        hosts: KnownHosts,
        *,
        send: Callable[[str, str, int], None],
        notify: Callable[[AssignedJob], None],
        need_bytes: Callable[[str], int],
    ) -> None:
        self._client, self._hosts, self._need_bytes = client, hosts, need_bytes
        self._send, self._notify = send, notify
        self._release = client.register_script(_RELEASE)
        self._remove_attempt = client.register_script(REMOVE_ATTEMPT)

    def remove(self, id: str, attempt: int) -> None:
        """Nobody waits for this attempt any more, or it has ended."""
        with redis_errors():
            self._client.hdel(names.WAITING, id)
            self._remove_attempt(keys=[names.ASSIGNED], args=[id, attempt])

    def dispatch(self, job: WaitingJob | None = None) -> None:
        """Send what can be sent now, and `job`, which waits from now on. If another process does that already, it looks
        again."""
        with redis_errors():
            while True:
                token = secrets.token_hex(8)
                # One round trip: a client waits for it.
                pipeline = self._client.pipeline(transaction=False)
                if job is not None:
                    pipeline.hset(names.WAITING, job.id, json.dumps(job.as_json()))
                pipeline.incr(names.DISPATCH_WANTED)
                pipeline.set(names.DISPATCH_LOCK, token, nx=True, px=_LOCK_MS)
                pipeline.pttl(names.DISPATCH_LOCK)
                _add_reads(pipeline)
                *_, wanted, has_lock, lock_ms, waiting, assigned, turns, now = answers_of(pipeline)
                if isinstance(wanted, Exception):
                    self._remove_foreign(names.DISPATCH_WANTED)
                    wanted = ""
                if not has_lock:
                    _check(waiting, assigned)  # else the job would wait for what cannot be sent
                    if lock_ms == -1 or lock_ms > _LOCK_MS:
                        self._remove_foreign(names.DISPATCH_LOCK)
                    return
                try:
                    hosts = self._hosts.last if self._hosts.are_fresh() else self._hosts.read()
                    self._send_waiting(_situation(waiting, assigned, turns, now, hosts))
                finally:
                    is_wanted_again = self._release(
                        keys=[names.DISPATCH_LOCK, names.DISPATCH_WANTED], args=[token, wanted]
                    )
                if not is_wanted_again:
                    return
                job = None

    def situation(self) -> Situation:
        """All hosts and jobs now. Raises the errors of Redis."""
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            _add_reads(pipeline)
            waiting, assigned, turns, now = answers_of(pipeline)
            return _situation(waiting, assigned, turns, now, self._hosts.read())

    def _remove_foreign(self, key: str) -> None:
        log.warning("%s holds what no front end has written; it is removed", key)
        self._client.delete(key)

    def _send_waiting(self, situation: Situation) -> None:
        if not situation.waiting:
            return
        sent = place(situation, self._need_bytes)
        if not sent:
            return
        turns = dict(situation.turns)
        pipeline = self._client.pipeline(transaction=True)
        for each in sent:
            entry = json.dumps(each.as_json())
            pipeline.eval(_ASSIGN, 2, names.WAITING, names.ASSIGNED, each.job.id, entry)
            number = 1 + max(
                [each.job.number, *(turn.number for turn in turns.values())],
            )
            turns = with_turn(turns, each.job.flow, number, situation.now)
        # Without keys there is one flow, whose turns say nothing.
        if any(each.job.flow for each in sent):
            pipeline.delete(names.TURNS)
            pipeline.hset(
                names.TURNS,
                mapping={flow: json.dumps([turn.number, turn.at]) for flow, turn in turns.items()},
            )
        done = pipeline.execute()
        for each, was_waiting in zip(sent, done[: len(sent)], strict=True):
            if was_waiting < 0:
                continue
            try:
                self._send(each.host, each.job.id, each.job.attempt)
            except Exception as error:
                # Not the fault of whoever dispatches, and perhaps not even its job: it waits again.
                id, host = names.shown(each.job.id), names.shown(each.host)
                log.warning("the job %s could not be sent to %s: %r", id, host, error)
                self._client.hset(names.WAITING, each.job.id, json.dumps(each.job.as_json()))
                self._remove_attempt(keys=[names.ASSIGNED], args=[each.job.id, each.job.attempt])
                continue
            self._notify(each)


def _add_reads(pipeline: Any) -> None:
    pipeline.hgetall(names.WAITING)
    pipeline.hgetall(names.ASSIGNED)
    pipeline.hgetall(names.TURNS)
    pipeline.time()


def _check(*answers: Any) -> None:
    """Raises those that are errors."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _situation(
    waiting: Mapping[bytes, bytes],
    assigned: Mapping[bytes, bytes],
    turns: Mapping[bytes, bytes],
    now: tuple[int, int],
    hosts: Mapping[str, HostFacts],
) -> Situation:
    """Raises redis' errors for what it cannot do without; without turns all keys had none yet."""
    _check(waiting, assigned)
    if isinstance(turns, Exception):
        turns = {}
    seconds, microseconds = now
    return Situation(
        _entries(waiting, WaitingJob.read),
        _entries(assigned, AssignedJob.read),
        hosts,
        dict(_entries(turns, _turn)),
        seconds + microseconds / 1e6,
    )


def _entries(found: Mapping[bytes, bytes], read: Callable[[str, Any], _T]) -> list[_T]:
    """What can be read of a hash. Somebody may have written anything there."""
    entries = []
    for name, data in found.items():
        try:
            entries.append(read(name.decode(), json.loads(data)))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
            if len(_reported) < _MAX_REPORTED and name not in _reported:
                _reported.add(name)
                log.warning("an entry in Redis has not the form of one: %r", name[:80])
    return entries


def _turn(flow: str, document: Any) -> tuple[str, Turn]:
    number, at = document
    return flow, Turn(int(number), finite(at))
