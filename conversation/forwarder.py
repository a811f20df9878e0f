"""Forwards one LLM request: chooses the upstream, holds a lease on inference mode until the last byte if the upstream shares
the GPU, and passes the response on as it comes."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException

from arbiter import Arbiter, Lease, Waiting
from conversation.client_watch import ClientWatch
from conversation.directory import ModelDirectory, Target
from conversation.forwarded import Client, Envelope, Forwarded, ForwardedBody, judge, unavailable
from conversation.headers import request_headers, request_target
from conversation.requests import LlmRequest
from errors import EaselError, GpuPreempted, QueueFull, RequestCancelled
from http_connections import OpenResponse

_RETRY_AFTER_S = 5
_SHARE_OF_ONE_KEY = 0.75
"""Of the places, while there are several keys: the others then always find one"""


class Forwarder:
    """Forwards requests to the upstreams in `directory`. One per process; thread-safe.

    `arbiter_of`: name of an LLM stack -> the arbiter of the GPU that it shares. `max_requests`: how many may run or wait at
    the same time; each holds a thread. `lease_timeout_s`: how long one waits for the GPU. `has_several_keys`: whether a
    key must leave places to others.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        arbiter_of: Callable[[str], Arbiter],
        *,
        max_requests: int,
        lease_timeout_s: float,
        has_several_keys: Callable[[], bool] = lambda: False,
    ) -> None:
        self.directory, self._arbiter_of = directory, arbiter_of
        self._max_requests, self._lease_timeout_s = max_requests, lease_timeout_s
        self._has_several_keys = has_several_keys
        self._running: Counter[str] = Counter()
        """key -> how many of its requests run or wait"""
        self._lock = threading.Lock()
        self._stop_reason: EaselError | None = None

    @contextlib.contextmanager
    def admission(self, key: str = "") -> Iterator[None]:
        """Counts a request of `key` (its name; empty for none) while it runs or waits. Raises QueueFull."""
        limit_of_key = self._max_requests
        if key and self._has_several_keys():
            limit_of_key = max(1, int(self._max_requests * _SHARE_OF_ONE_KEY))
        with self._lock:
            own, total = self._running[key], self._running.total()
            if total >= self._max_requests or own >= limit_of_key:
                raise self._refusal(total, None if total >= self._max_requests else own)
            self._running[key] = own + 1
        try:
            yield
        finally:
            with self._lock:
                self._running[key] -= 1

    @staticmethod
    def _refusal(total: int, own: int | None) -> QueueFull:
        """`own`: the number of the key's requests, if these are what is too many."""
        rest = "; the other places are for other keys" if own is not None else ""
        whose = "" if own is None else " of this key"
        return QueueFull(
            f"{total if own is None else own} LLM requests{whose} are already running or waiting in this process "
            f"(`llm.max_requests`){rest}.",
            retry_after_s=_RETRY_AFTER_S,
        )

    @property
    def running(self) -> int:
        """How many requests of this process run or wait."""
        return self._running.total()

    def forward(self, request: LlmRequest, client: Client, envelope: Envelope) -> Forwarded:
        """Send the request on and return the beginning of the response; the rest is read while it is sent to the client.

        Raises the errors of `ModelDirectory.find` and of `Arbiter.lease`, UpstreamUnavailable, UpstreamFailed, SlotLoading,
        SlotNotReady, and RequestCancelled if the client hangs up. `envelope`: the JSON of an error that occurs later.
        """
        target = self.directory.find(request.model, request.route)
        with contextlib.ExitStack() as held:
            lease = held.enter_context(self._lease(target, client))

            def check() -> None:
                self._raise_if_ended(lease, client)

            response = self._send(request, target, client, check)
            held.callback(response.close)
            forwarded = judge(ForwardedBody(target, request.route, response, envelope))
            forwarded.body.hold(held.pop_all(), check)
            return forwarded

    @contextlib.contextmanager
    def _lease(self, target: Target, client: Client) -> Iterator[Lease | None]:
        stack = target.upstream.stack
        if stack is None or not target.upstream.shares_gpu(target.model):
            yield None
            return
        arbiter = self._arbiter_of(stack)
        if not arbiter.shares_gpu:
            yield None
            return
        job = f"llm-{uuid.uuid4().hex}"
        with contextlib.ExitStack() as listed:

            def show(waiting: Waiting) -> None:
                """List the request when it begins to wait, so that the status shows who waits."""
                if not shown:
                    shown.append(True)
                    listed.enter_context(
                        arbiter.listed(
                            job, model=target.model, jobs=[job], sender=client.sender, uses_gpu=False
                        )
                    )

            shown: list[bool] = []
            with contextlib.ExitStack() as held:
                try:
                    lease = held.enter_context(
                        arbiter.lease(
                            "inference",
                            job=job,
                            timeout_s=self._lease_timeout_s,
                            cancelled=lambda: client.has_gone() or client.ended() is not None,
                            on_wait=show,
                        )
                    )
                except RequestCancelled:
                    if (reason := client.ended()) is not None:
                        raise reason from None
                    raise
                listed.close()
                yield lease

    def _raise_if_ended(self, lease: Lease | None, client: Client) -> None:
        if self._stop_reason is not None:
            raise self._stop_reason
        if (reason := client.ended()) is not None:
            raise reason
        if lease is not None and lease.is_void():
            raise GpuPreempted("The request was cancelled by a forced switchover or after a drain timeout.")

    def _send(
        self, request: LlmRequest, target: Target, client: Client, check: Callable[[], None]
    ) -> OpenResponse:
        body = request.body_for(target.model)
        upstream = target.upstream
        headers = request_headers(client.headers, upstream) | upstream.key_headers(request.route.name)
        headers["Content-Length"] = str(body.length)
        watch = ClientWatch(client.socket, timeout_s=upstream.silence_timeout_s, check=check)
        try:
            return upstream.connections.open(
                "POST",
                request_target(target.path, request.query),
                timeout_s=upstream.silence_timeout_s,
                body=body,
                headers=headers,
                before_recv=watch.until_readable,
                before_send=watch.until_writable,
            )
        except (OSError, HTTPException) as error:
            raise unavailable(target, error) from error

    def cancel_all(self, reason: EaselError) -> None:
        """End the running requests within a second; their clients get `reason`, as far as they can get an error."""
        self._stop_reason = reason
