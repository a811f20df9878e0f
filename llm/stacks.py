"""The configured LLM stacks as one tenant of the GPU."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from errors import EaselError, StackUnreachable
from gpu_tenant import Failure, Resident
from llm.parallel import parallel_map, parallel_within
from llm.server import LlmServer, ServerNotRunning

log = logging.getLogger("easel.llm")
Result = TypeVar("Result")

_START_TIMEOUT_S = 10.0
_HANGING_AGE_S = 1.0
"""A query that takes longer is not repeated beside it"""

Restore = Literal["saved", "lazy"] | tuple[Resident, ...]
"""What is loaded again: the models that were loaded; nothing (the next request loads its model); or always these"""


@dataclass(frozen=True)
class Stack:
    """One configured stack: its server and its settings. `url` contains no secret. `keep`: ids that are never unloaded,
    because they are not on the GPU. `gpu`: the GPU that it shares, as `engines` names it; empty without `engines`."""

    name: str
    driver: str
    url: str | None
    server: LlmServer
    restore: Restore
    keep: frozenset[str]
    gpu: str = ""

    def resident(self) -> tuple[Resident, ...]:
        return tuple(resident for resident in self.server.list() if resident.id not in self.keep)

    def busy(self) -> int | None:
        return self.server.busy(self.resident)

    def load_again(self, saved: Sequence[Resident], is_cancelled: Callable[[], bool]) -> tuple[Failure, ...]:
        """Load what `restore` says; `saved`: the models that were loaded. If a client has had another model loaded since
        then, nothing is loaded: it might push that one out of memory."""
        choices = {"saved": tuple(saved), "lazy": ()}
        residents = choices[self.restore] if isinstance(self.restore, str) else self.restore
        try:
            if not residents or is_cancelled() or self._has_others(residents):
                return ()
            return self.server.load(residents, is_cancelled)
        except EaselError as error:
            return tuple(Failure(self.name, resident.id, error.message) for resident in residents)

    def _has_others(self, residents: Sequence[Resident]) -> bool:
        """Whether a model is loaded that is none of `residents`."""
        known = {self.server.identity(resident) for resident in residents}
        try:
            others = [item.id for item in self.resident() if self.server.identity(item) not in known]
        except EaselError:
            return False
        if others:
            log.info("%s: nothing is loaded again, because %s is loaded", self.name, ", ".join(others))
        return bool(others)


@dataclass(frozen=True)
class StackStatus:
    """The status of one stack, for display. `loaded` and `busy` are None if unknown; `problem` says why."""

    name: str
    driver: str
    url: str | None
    reachable: bool
    loaded: tuple[str, ...] | None
    busy: int | None
    problem: str | None


class Stacks:
    """A `gpu_tenant.Tenant`. False if no stack is configured. Queries all stacks in parallel, in threads that end with
    the call, so it is safe for threads and forks. Methods raise StackUnreachable or StackRefused if any stack cannot be
    read, because what is resident is then unknown."""

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self._stacks = tuple(stacks)
        self._asked_at: dict[str, float] = {}
        """Stack -> when its `known_residents` query began that has not ended"""

    def __len__(self) -> int:
        return len(self._stacks)

    def on_gpu(self, gpu: str) -> Stacks:
        """Those that share `gpu`, as a tenant of that GPU alone; false if there are none."""
        return Stacks([stack for stack in self._stacks if stack.gpu == gpu])

    def gpu_of(self, name: str) -> str:
        """The GPU that the stack `name` shares; empty without `engines`. Raises KeyError if there is no such stack."""
        return {stack.name: stack.gpu for stack in self._stacks}[name]

    def resident(self) -> tuple[Resident, ...]:
        """What holds GPU memory, including loading and sleeping models, except those in `keep`. A server on a loopback
        address that refuses connections is not running and holds nothing."""
        return tuple(resident for held in parallel_map(Stack.resident, self._stacks) for resident in held)

    def known_residents(self, timeout_s: float) -> tuple[Resident, ...]:
        """What holds GPU memory at the stacks that answer in time. Never raises. A stack that hangs is not queried again
        before its last query has ended."""
        now = time.monotonic()
        stacks = [
            stack for stack in self._stacks if now - self._asked_at.get(stack.name, now) < _HANGING_AGE_S
        ]
        found = parallel_within(self._query_residents, stacks, timeout_s)
        return tuple(resident for held in found for resident in held or ())

    def _query_residents(self, stack: Stack) -> tuple[Resident, ...] | None:
        self._asked_at.setdefault(stack.name, time.monotonic())
        try:
            return _attempt(stack.resident)[1]
        finally:
            self._asked_at.pop(stack.name, None)

    def busy(self) -> int | None:
        """The number of running and queued requests at the stacks that report it. Never loads or wakes a model."""
        known = [count for count in parallel_map(Stack.busy, self._stacks) if count is not None]
        return sum(known) if known else None

    def release(self, residents: Sequence[Resident]) -> None:
        """Send the unload calls. The models are unloaded when `resident` no longer lists them. Takes at most the longest
        `unload_s`.

        Raises StackRefused for an unexpected response and StackUnreachable if a server was not reached, after the calls
        to all other models. A call that times out is not an error.
        """
        parallel_map(
            lambda share: share[0].server.unload(share[1]),
            [share for share in self._by_stack(residents) if share[1]],
        )

    def restore(
        self, residents: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        """Load again as each stack's `restore` says and wait until the models are ready, at most `load_s` per model.
        Models of one stack are loaded one after another, until `is_cancelled`; models that are loaded already are left
        alone."""
        failures = parallel_map(
            lambda share: share[0].load_again(share[1], is_cancelled), list(self._by_stack(residents))
        )
        return (*self._without_stack(residents), *itertools.chain.from_iterable(failures))

    def cancel_jobs(self, jobs: Sequence[str] | None) -> bool:
        """Does nothing: LLM servers run no jobs of Easel."""
        return True

    def status(self, timeout_s: float = 5.0) -> tuple[StackStatus, ...]:
        """The status of each stack; of one that does not answer in time, that it hangs. Never raises."""
        found = parallel_within(_status, self._stacks, timeout_s)
        problem = f"hangs: no answer within {timeout_s:g} s"
        return tuple(
            status or StackStatus(stack.name, stack.driver, stack.url, False, None, None, problem)
            for stack, status in zip(self._stacks, found, strict=True)
        )

    def log_problems(self) -> None:
        """Log each stack that cannot be used as it is configured, and each that is not running."""
        by_url: dict[str, str] = {}
        for stack in self._stacks:
            other = by_url.setdefault(stack.url, stack.name) if stack.url else stack.name
            if other != stack.name:
                log.warning("the LLM stacks %s and %s have the same address %s", other, stack.name, stack.url)
        for status in self.status(_START_TIMEOUT_S):
            if status.problem is None:
                log.info("LLM stack %s: loaded: %s", status.name, ", ".join(status.loaded or ()) or "nothing")
            elif status.loaded == ():
                log.warning("LLM stack %s is not running yet: %s", status.name, status.problem)
            else:
                log.error("LLM stack %s cannot be used: %s", status.name, status.problem)

    def _by_stack(self, residents: Sequence[Resident]) -> Iterator[tuple[Stack, list[Resident]]]:
        for stack in self._stacks:
            yield stack, [resident for resident in residents if resident.owner == stack.name]

    def _without_stack(self, residents: Sequence[Resident]) -> Iterator[Failure]:
        names = {stack.name for stack in self._stacks}
        for resident in residents:
            if resident.owner not in names:
                message = f"the stack {resident.owner!r} is no longer configured."
                yield Failure(resident.owner, resident.id, message)


def _status(stack: Stack) -> StackStatus:
    health_error, _ = _attempt(stack.server.health)
    if isinstance(health_error, StackUnreachable):
        # Do not send more calls to a server that does not respond: each would take its full timeout.
        loaded = () if isinstance(health_error, ServerNotRunning) else None
        return StackStatus(stack.name, stack.driver, stack.url, False, loaded, None, health_error.message)
    list_error, residents = _attempt(stack.resident)
    busy_error, busy = _attempt(stack.busy)
    error = health_error or list_error or busy_error
    return StackStatus(
        name=stack.name,
        driver=stack.driver,
        url=stack.url,
        reachable=True,
        loaded=None if residents is None else tuple(resident.id for resident in residents),
        busy=busy,
        problem=error.message if error else None,
    )


def _attempt(query: Callable[[], Result]) -> tuple[EaselError | None, Result | None]:
    try:
        return None, query()
    except EaselError as error:
        return error, None
