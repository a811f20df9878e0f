"""What is wrong with an upstream, in words for its owner. All end a sentence that begins with the upstream."""

from __future__ import annotations

from http.client import HTTPException, IncompleteRead

from conversation.upstreams import Upstream
from system_errors import causes


def connection_problem(error: Exception, upstream: Upstream) -> str:
    """Why a call failed without an answer."""
    kinds = [type(cause) for cause in causes(error)]

    def has(*classes: type[BaseException]) -> bool:
        return any(issubclass(kind, classes) for kind in kinds)

    if has(ConnectionRefusedError):
        return "refuses connections; it is probably not running"
    if has(TimeoutError):
        return f"did not answer in time ({error})"
    if has(ConnectionError, IncompleteRead):
        return f"closed the connection before the end of its answer ({type(error).__name__})"
    if has(HTTPException):
        return f"sent no complete HTTP answer ({type(error).__name__})"
    return f"cannot be reached ({upstream.without_secrets(str(error))})"


def key_problem(upstream: Upstream) -> str:
    """Why it answers 401 or 403."""
    if upstream.key_variable:
        return f"rejects the key in {upstream.key_variable}"
    return "wants a key; set key_env to the name of the environment variable that holds it"
