"""What a host calls a job in its engines. A process that gets the job after another one has died can ask for it there."""

from __future__ import annotations

import contextlib
import logging
import uuid

import redis

from cluster import names
from cluster.redis_connection import redis_errors
from cluster.sealing import Seal
from errors import ClusterMessageInvalid, EaselError

log = logging.getLogger("easel.cluster")
_KEPT_S = 60
"""Beyond the time of the job"""


class PromptIds:
    """Of one host. The first is the job's own id. A later run gets a new one: the engine may still have what a killed
    process began, which the arbiter cancels by its id, and whose end, in ComfyUI's history, is not that of the new run."""

    def __init__(self, client: redis.Redis, seal: Seal, host: str) -> None:
        self._client, self._seal, self._host = client, seal, host

    def new(self, job: str, earlier: tuple[str, ...], timeout_s: float) -> str:
        """The id of the next run of a job, which may take `timeout_s`. `earlier`: those that may have been used. It is kept
        for a process after this one, unless Redis is away."""
        if not earlier:
            return job
        prompt_id, key = str(uuid.uuid4()), names.prompts(job, self._host)
        ids = [each for each in earlier if each != job]
        with contextlib.suppress(EaselError), redis_errors():
            self._client.set(
                key, self._seal.close(key, {"ids": [*ids, prompt_id]}), ex=int(timeout_s) + _KEPT_S
            )
        return prompt_id

    def earlier(self, job: str) -> tuple[str, ...]:
        """Those under which processes of this host may have submitted the job, the oldest first. Raises the errors of
        Redis."""
        key = names.prompts(job, self._host)
        with redis_errors():
            data = self._client.get(key)
        found = []
        if isinstance(data, bytes):
            try:
                found = [str(uuid.UUID(each)) for each in self._seal.open(key, data)["ids"]]
            except ClusterMessageInvalid as error:
                log.warning("the job %s: %s", job, error.message)
            except (KeyError, TypeError, ValueError, AttributeError):
                log.warning("the job %s: its ids have not the form of a list of ids", job)
        return (job, *found)
