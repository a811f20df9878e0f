"""The configured LLM stacks as one tenant of the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from errors import EaselError, StackUnreachable
from gpu_tenant import Failure, Resident
from llm.calls import ServerNotRunning
from llm.parallel import ask_all
from llm.server import Server

Found = TypeVar("Found")

Restore = Literal["saved", "lazy"] | tuple[Resident, ...]
"""What is loaded again: what was there, nothing (the next request does it), or always these."""


@dataclass(frozen=True)
class Stack:
    """One configured stack: its server, and what its owner wants of it. `url` has no secret in it; `keep`: ids that are
    never unloaded, because they do not live on the GPU."""

    name: str
    driver: str
    url: str | None
    server: Server
    restore: Restore
    keep: frozenset[str]

    def resident(self) -> tuple[Resident, ...]:
        return tuple(resident for resident in self.server.list() if resident.id not in self.keep)

    def busy(self) -> int | None:
        return self.server.busy(self.resident)

    def wanted(self, saved: Sequence[Resident]) -> tuple[Resident, ...]:
        if self.restore == "saved":
            return tuple(saved)
        return () if self.restore == "lazy" else self.restore

    def get_back(self, saved: Sequence[Resident]) -> tuple[Failure, ...]:
        wanted = self.wanted(saved)
        try:
            return self.server.load(wanted) if wanted else ()
        except EaselError as error:
            return tuple(Failure(self.name, resident.id, error.message) for resident in wanted)


@dataclass(frozen=True)
class StackStatus:
    """For people. `loaded` and `busy` are None where that is not known; `problem` says why."""

    name: str
    driver: str
    url: str | None
    reachable: bool
    loaded: tuple[str, ...] | None
    busy: int | None
    problem: str | None


class Stacks:
    """A `tenant.Tenant`. False if there is no stack. All stacks are asked at the same time, by threads that end with the
    call, so it is safe for threads and forks. Raises StackUnreachable or StackRefused as soon as one stack cannot be read:
    then nobody knows what is resident."""

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self._stacks = tuple(stacks)

    def __len__(self) -> int:
        return len(self._stacks)

    def resident(self) -> tuple[Resident, ...]:
        """What holds GPU memory, loading and sleeping models included, without those to `keep`. A server on a loopback
        address that refuses connections is not running and holds nothing."""
        return tuple(resident for held in ask_all(Stack.resident, self._stacks) for resident in held)

    def busy(self) -> int | None:
        """Requests running and queued at those stacks that tell; asking neither loads nor wakes a model."""
        known = [count for count in ask_all(Stack.busy, self._stacks) if count is not None]
        return sum(known) if known else None

    def release(self, residents: Sequence[Resident]) -> None:
        """Send the unload calls; `resident` tells when they have done their work. Takes at most the longest `unload_s`
        per stack.

        Raises StackRefused for a reply that promises nothing, StackUnreachable for a server that was not reached; all the
        others are told to unload before that. A call without an answer is no fault.
        """
        ask_all(lambda job: job[0].server.unload(job[1]), [job for job in self._shares(residents) if job[1]])

    def restore(self, residents: Sequence[Resident]) -> tuple[Failure, ...]:
        """Load again as each stack's `restore` says and wait until it is ready, at most `load_s` per model. Models of one
        stack come one after another. What is there already stays as it is."""
        told = ask_all(lambda job: job[0].get_back(job[1]), list(self._shares(residents)))
        return tuple(self._strangers(residents)) + tuple(failure for share in told for failure in share)

    def drop(self, jobs: Sequence[str] | None) -> None:
        """LLM servers do nothing for our jobs."""

    def status(self) -> tuple[StackStatus, ...]:
        """A look at each stack. Never raises."""
        return tuple(ask_all(_status, self._stacks))

    def unanswered(self) -> tuple[StackStatus, ...]:
        """What can be said of each stack when a look at them takes too long."""
        return tuple(
            StackStatus(each.name, each.driver, each.url, False, None, None, "it did not answer in time")
            for each in self._stacks
        )

    def _shares(self, residents: Sequence[Resident]) -> Iterator[tuple[Stack, list[Resident]]]:
        for stack in self._stacks:
            yield stack, [resident for resident in residents if resident.owner == stack.name]

    def _strangers(self, residents: Sequence[Resident]) -> Iterator[Failure]:
        names = {stack.name for stack in self._stacks}
        for resident in residents:
            if resident.owner not in names:
                yield Failure(resident.owner, resident.id, f"there is no stack {resident.owner!r} any more")


def _status(stack: Stack) -> StackStatus:
    health, _ = _tried(stack.server.health)
    if isinstance(health, StackUnreachable):
        # What does not answer is asked no more: each question would take its full time.
        loaded = () if isinstance(health, ServerNotRunning) else None
        return StackStatus(stack.name, stack.driver, stack.url, False, loaded, None, health.message)
    list_error, held = _tried(stack.resident)
    busy_error, busy = _tried(stack.busy)
    error = health or list_error or busy_error
    return StackStatus(
        name=stack.name,
        driver=stack.driver,
        url=stack.url,
        reachable=True,
        loaded=None if held is None else tuple(resident.id for resident in held),
        busy=busy,
        problem=error.message if error else None,
    )


def _tried(look: Callable[[], Found]) -> tuple[EaselError | None, Found | None]:
    try:
        return None, look()
    except EaselError as error:
        return error, None
