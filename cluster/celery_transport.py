"""Celery's connection to Redis, which a message that is none does not end."""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis

log = logging.getLogger("easel.cluster")


class _Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        """kombu lets the error of a message that is not JSON, or has not the form of a message, end the whole worker. It is
        out of the queue already."""
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("a message in the queue is none, and is ignored: %s", type(error).__name__)
            return True


class Transport(redis.Transport):
    """As kombu's for Redis."""

    Channel = _Channel
