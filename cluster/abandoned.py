"""Removes what belongs to jobs whose process has ended: their clients are gone with it. Every process that waits for jobs
does it for the others."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from cluster import input_images, names, picture_parts
from cluster.dispatcher import Dispatcher
from cluster.job_documents import JobDocument, ResultDocument
from cluster.picture_parts import StoredPicture
from cluster.placing import Situation
from cluster.redis_connection import answers_of, redis_errors
from cluster.sealing import Seal
from errors import ClusterMessageInvalid

log = logging.getLogger("easel.cluster")
_GIVEN_UP_AFTER_S = 3.0
"""After the jobs of a process have been taken out of the queue. By then all hosts have given them up, and what they have
stored until then is removed with the rest"""


class AbandonedJobs:
    """Thread-safe only for one thread. `clock`: seconds of this process."""

    def __init__(
        self,
        client: redis.Redis,
        seal: Seal,
        dispatcher: Dispatcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._seal, self._dispatcher, self._clock = client, seal, dispatcher, clock
        self._gone_since: dict[str, float] = {}
        """Process that waited for jobs -> when it was first found to have ended"""

    def forget(self, situation: Situation) -> None:
        """Take the jobs of processes that have ended out of the queue, and a moment later delete what belongs to them.
        Raises the errors of Redis."""
        with redis_errors():
            jobs = [*situation.waiting, *(each.job for each in situation.assigned)]
            gone = self._gone_fronts({job.front for job in jobs})
            for job in jobs:
                if job.front in gone:
                    self._dispatcher.remove(job.id, job.attempt)
            now = self._clock()
            self._gone_since = {front: self._gone_since.get(front, now) for front in gone}
            for front, since in self._gone_since.items():
                if now - since >= _GIVEN_UP_AFTER_S:
                    self._delete(front)

    def _gone_fronts(self, of_jobs: set[str]) -> set[str]:
        members: Any = self._client.smembers(names.FRONTS)
        fronts = sorted(of_jobs | self._readable(members))
        if not fronts:
            return set()
        pipeline = self._client.pipeline(transaction=False)
        for front in fronts:
            pipeline.exists(names.front(front))
        return {front for front, exists in zip(fronts, pipeline.execute(), strict=True) if not exists}

    def _readable(self, members: Iterable[bytes]) -> set[str]:
        """The fronts among what is listed as such. What somebody else has written there is removed."""
        found = set()
        for member in members:
            try:
                found.add(member.decode())
            except UnicodeDecodeError:
                log.warning(
                    "%s lists what is no front end; it is removed: %s", names.FRONTS, names.shown(member)
                )
                self._client.srem(names.FRONTS, member)
        return found

    def _delete(self, front: str) -> None:
        (members,) = answers_of(self._client.pipeline(transaction=False).smembers(names.jobs_of(front)))
        if isinstance(members, Exception):
            log.warning("%s is no list of jobs; it is removed", names.shown(names.jobs_of(front)))
            members = ()
        keys = [names.jobs_of(front)]
        for member in members:
            with contextlib.suppress(UnicodeDecodeError):
                keys += self._keys_of(front, member.decode())
        pipeline = self._client.pipeline(transaction=False)
        pipeline.delete(*keys)
        pipeline.srem(names.FRONTS, front)
        pipeline.execute()

    def _keys_of(self, front: str, id: str) -> list[str]:
        """All that is stored for a job: document, images, result and pictures. What cannot be read expires."""
        data, result = self._client.mget([names.job(id), names.result(id)])
        keys = [names.job(id), names.result(id), names.last_event(id)]
        with contextlib.suppress(ClusterMessageInvalid):
            if isinstance(data, bytes):
                document = JobDocument.read(self._seal.open(names.job(id), data))
                if document.front != front:
                    return []
                keys += input_images.keys_of(front, document.request_id, document.uploads)
        with contextlib.suppress(ClusterMessageInvalid):
            if isinstance(result, bytes):
                drawn = ResultDocument.read(self._seal.open(names.result(id), result))
                stored = [StoredPicture(size, digest) for _, _, size, digest in drawn.pictures]
                keys += picture_parts.keys_of(id, drawn.attempt, stored)
        return keys
