"""The configured LLM stacks as one tenant of the GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from errors import EaselError, StackUnreachable
from gpu_tenant import Failure, Resident
from llm.http import ServerNotRunning
from llm.parallel import parallel_map
from llm.server import LlmServer

Result = TypeVar("Result")

Restore = Literal["saved", "lazy"] | tuple[Resident, ...]
"""What is loaded again: the models that were loaded; nothing (the next request loads its model); or always these"""


@dataclass(frozen=True)
class Stack:
    """One configured stack: its server and its settings. `url` contains no secret. `keep`: ids that are never unloaded,
    because they are not on the GPU."""

    name: str
    driver: str
    url: str | None
    server: LlmServer
    restore: Restore
    keep: frozenset[str]

    def resident(self) -> tuple[Resident, ...]:
        return tuple(resident for resident in self.server.list() if resident.id not in self.keep)

    def busy(self) -> int | None:
        return self.server.busy(self.resident)

    def load_again(self, saved: Sequence[Resident]) -> tuple[Failure, ...]:
        """Load what `restore` says; `saved`: the models that were loaded."""
        choices = {"saved": tuple(saved), "lazy": ()}
        residents = choices[self.restore] if isinstance(self.restore, str) else self.restore
        try:
            return self.server.load(residents) if residents else ()
        except EaselError as error:
            return tuple(Failure(self.name, resident.id, error.message) for resident in residents)


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

    def __len__(self) -> int:
        return len(self._stacks)

    def resident(self) -> tuple[Resident, ...]:
        """What holds GPU memory, including loading and sleeping models, except those in `keep`. A server on a loopback
        address that refuses connections is not running and holds nothing."""
        return tuple(resident for held in parallel_map(Stack.resident, self._stacks) for resident in held)

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

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """Load again as each stack's `restore` says and wait until the models are ready, at most `load_s` per model.
        Models of one stack are loaded one after another; models that are loaded already are left alone."""
        failures = parallel_map(lambda share: share[0].load_again(share[1]), list(self._by_stack(residents)))
        return (*self._without_stack(residents), *itertools.chain.from_iterable(failures))

    def cancel_jobs(self, jobs: Sequence[str] | None) -> None:
        """Does nothing: LLM servers run no jobs of Easel."""

    def status(self) -> tuple[StackStatus, ...]:
        """The status of each stack. Never raises."""
        return tuple(parallel_map(_status, self._stacks))

    def timed_out_status(self) -> tuple[StackStatus, ...]:
        """The status to show for each stack if `status` takes too long."""
        return tuple(
            StackStatus(stack.name, stack.driver, stack.url, False, None, None, "no response in time")
            for stack in self._stacks
        )

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
