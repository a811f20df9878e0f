"""Connections to Redis, and its failures as this project's errors."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster import names
from cluster.options import ClusterOptions
from errors import ClusterAccessDenied, ClusterFull, ClusterUnreachable

_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 5.0


def connect(options: ClusterOptions) -> redis.Redis:
    """A client with a pool of connections; connects when it is first used. Thread-safe."""
    tls = {"ssl_ca_certs": options.ca_file} if options.ca_file else {}
    return redis.Redis.from_url(
        options.url,
        username=options.user or None,
        password=options.password or None,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        # Once: a connection that Redis has closed meanwhile. Whoever asks decides about more.
        retry=Retry(NoBackoff(), 1),
        **tls,
    )


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Raises ClusterUnreachable, ClusterAccessDenied or ClusterFull for what Redis or the way to it fails with."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise ClusterAccessDenied("Redis refuses the user or the password.") from error
    except redis.exceptions.OutOfMemoryError as error:
        raise ClusterFull("Redis has no memory left.") from error
    except redis.ResponseError as error:
        if "OOM" in str(error) or "MISCONF" in str(error):
            raise ClusterFull(f"Redis takes no more data: {error}") from error
        if "NOAUTH" in str(error) or "NOPERM" in str(error) or "WRONGPASS" in str(error):
            raise ClusterAccessDenied("Redis wants a user and a password, or other ones.") from error
        if is_wrong_type(error):
            raise ClusterUnreachable(
                f"A key of Easel in Redis holds something else; delete it. {names.shown(str(error), 300)}"
            ) from error
        raise ClusterUnreachable(f"Redis answers with an error: {names.shown(str(error), 300)}") from error
    except (redis.RedisError, OSError) as error:
        if (failed := _tls_failure(error)) is not None:
            reason = getattr(failed, "verify_message", "") or failed.reason or "unknown"
            raise ClusterUnreachable(f"TLS with Redis fails: {reason}.") from error
        raise ClusterUnreachable(f"Redis does not answer: {type(error).__name__}.") from error


def is_wrong_type(error: Exception) -> bool:
    """Whether a key holds something else than Easel or Celery keep there: somebody else has written it."""
    return isinstance(error, redis.ResponseError) and (
        "WRONGTYPE" in str(error) or "not an integer" in str(error)
    )


def answers_of(pipeline: Any) -> list[Any]:
    """What Redis answers to each command; an exception for those whose key has another type. Raises redis' errors."""
    answers: list[Any] = pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not is_wrong_type(answer):
            raise answer
    return answers


def _tls_failure(error: BaseException | None) -> ssl.SSLError | None:
    """The error of TLS that led to this one, if it was one."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, ssl.SSLError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
