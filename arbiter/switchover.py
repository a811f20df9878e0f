"""Runs one switchover, phase by phase. Each phase has a time limit and is written to the state before it starts, so
that another process can continue the switch. That process reads what is resident; it does not rely on the written
phase."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from arbiter.event_log import NO_EVENTS, EventLog
from arbiter.leases import Claim, ClaimFolder
from arbiter.policy import ENGINE_DOWN, NextSwitch, is_abandoned, is_revoked, next_claim_number, select
from arbiter.state_store import StateStore
from arbiter.values import REQUESTED, Mode, Phase, Policy, State, Switch, SwitchRequest, other_mode
from errors import EaselError, SwitchFailed, shorten
from gpu_tenant import Failure, Resident, Tenant
from observer import Observer, SwitchReport, SwitchResult

log = logging.getLogger("easel.gpu")

_CANCEL_INTERVAL_S = 0.25
"""Between two calls that cancel all jobs during a forced drain"""
_MEMORY_NOISE = 16 * 2**20
"""Free memory varies by this much without a cause, in bytes"""
_MIN_NEED_SHARE = 0.75
"""This share of what a model needs is enough to try: `min_vram_gb` is a round figure, and some memory is always in
use"""
_STEADY_READS = 2
"""Free memory has stopped rising after so many reads in a row without a rise"""
_EMPTY_READS = 2
"""So many reads in a row must find nothing resident: a model that is just starting may not be listed yet"""
_KNOWN_TIMEOUT_S = 2.0
_RECLAIM_TIMEOUT_S = 120.0
"""How long the lease of a dead process is kept while its job does not end although it was asked to: the step of a slow
sampler ends before that"""
_SLOW_START_S = 1.0
_NOT_REPAIRED = "generation mode could not be repaired"


@dataclass(frozen=True)
class Switchover:
    """Begins and runs switches. `tenants`: the user of the GPU in each mode. `available_bytes`: GPU memory that the
    engine could use now, None if unknown; may raise EaselError."""

    state_store: StateStore
    claims: ClaimFolder
    tenants: Mapping[Mode, Tenant]
    policy: Policy
    available_bytes: Callable[[], int | None] = lambda: None
    has_requests: Callable[[float], bool] = lambda min_age_s: False
    """Whether any request for pictures is in progress, of a minimum age in seconds"""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when Easel stops: then no switch to generation is wanted any more"""
    observer: Observer = field(default_factory=Observer)
    """Is told of each switch that ends"""
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    events: EventLog = NO_EVENTS
    _cancelled_since: dict[str, float] = field(default_factory=dict)
    """When the job of each claim of a dead process was first asked to end"""

    # --- begin and resume --------------------------------------------------------------------------

    def begin(self, plan: NextSwitch) -> None:
        """Write the switch to the state: from now on no lease is granted. Call it under the mutex."""
        state, now = self.state_store.state(), self.clock()
        number = state.switch.number + 1 if state.switch else 1
        switch = Switch(
            number, plan.target, plan.reason, now, plan.force, plan.pin, phase_since=now, pid=os.getpid()
        )
        revoked = self._revoked(state, other_mode(plan.target)) if plan.force else state.revoked
        self.state_store.write(replace(state, switch=switch, wanted=None, revoked=revoked))
        log.info("switch %d to %s: %s", number, plan.target, plan.reason)
        waiting = [claim.job for claim in select(self.claims.all(), "ticket", plan.target)]
        self.events.write(
            "switch_began",
            number=number,
            target=plan.target,
            reason=plan.reason,
            force=plan.force,
            waiting=waiting,
        )

    def _revoked(self, state: State, mode: Mode) -> Mapping[str, int]:
        """The revoked numbers once every existing claim of `mode` is void."""
        return {**state.revoked, mode: next_claim_number(state, self.claims.all()) - 1}

    def run(self) -> None:
        """Run the active switch to its end. An error of a tenant fails the switch and is not raised."""
        switch = self._resume()
        result: SwitchResult = "failed"
        try:
            if switch.error is not None:
                self._restore_after_failure(switch)
            else:
                result = self._run_phases(switch)
        except EaselError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a switch failed with an unexpected error")
            self._fail(SwitchFailed(f"{type(error).__name__}: {shorten(str(error), 200)}"))
        ended = self.state_store.state().switch
        if ended is not None and ended.number == switch.number:
            self.observer.switch(SwitchReport(switch.target, result, ended.phases))
        self._record_end()

    def _record_end(self) -> None:
        state = self.state_store.state()
        switch = state.switch
        if switch is not None and switch.ended is not None:
            self.events.write(
                "switch_ended",
                number=switch.number,
                target=switch.target,
                mode=state.mode,
                took_s=round(max(0.0, switch.ended - switch.began), 4),
                phases=switch.phases,
                error=switch.error,
                notes=switch.notes,
                not_loaded=[f"{failure.owner}/{failure.id}" for failure in switch.failed],
            )

    def _resume(self) -> Switch:
        """Record this process in a switch that another process began."""

        def change(switch: Switch) -> Switch:
            if switch.pid == os.getpid():
                return switch
            return replace(switch, pid=os.getpid(), resumed=switch.resumed + 1)

        return self._update_switch(change)

    def _update_switch(self, change: Callable[[Switch], Switch]) -> Switch:
        def change_state(state: State) -> State:
            return replace(state, switch=change(state.switch)) if state.switch else state

        switch = self.state_store.update(change_state).switch
        assert switch is not None
        return switch

    def _enter(self, phase: Phase) -> None:
        switch = self._update_switch(lambda switch: switch.with_phase(phase, self.clock()))
        log.debug("switch %d is %s", switch.number, phase)

    def _add_note(self, note: str) -> None:
        log.warning("switch: %s", note)
        self._update_switch(lambda switch: replace(switch, notes=(*switch.notes, note)))

    # --- the phases --------------------------------------------------------------------------------

    def _run_phases(self, switch: Switch) -> SwitchResult:
        self._enter("draining")
        if not self._drain(switch):
            return self._cancel()
        residents = self._save_residents(switch)
        if self._is_unneeded(switch):
            return self._turn_back()
        self._enter("releasing")
        self._old_tenant(switch).release(residents)
        self._enter("verifying")
        if not self._wait_until_released(switch):
            return self._turn_back()
        if switch.target == "generation":
            self._wait_for_memory()
        return self._start_or_restore(switch)

    def _old_tenant(self, switch: Switch) -> Tenant:
        """The tenant that has to release the GPU."""
        return self.tenants[other_mode(switch.target)]

    def _drain(self, switch: Switch) -> bool:
        """Wait until nothing runs, from Easel or another client. Cancels only if that was requested (`force`) or
        configured (`on_drain_timeout: kill`). Returns False if the switch was abandoned; nothing was unloaded then."""
        tenant, is_forced = self._old_tenant(switch), switch.force
        deadline, next_cancel_at = self.clock() + self.policy.drain_timeout_s, 0.0
        while self._leases(switch) or (self._waits_for_other_clients(switch) and tenant.busy()):
            if not switch.may_have_released and self._is_abandoned(switch):
                return False
            now = self.clock()
            if now >= deadline and (is_forced or self.policy.on_drain_timeout != "kill"):
                raise self._drain_timeout(switch)
            if now >= deadline:
                is_forced, deadline = True, now + self.policy.drain_timeout_s
                self._revoke(switch)
            if is_forced and switch.target == "generation":
                return True  # unloading the models ends the LLM requests
            if is_forced and now >= next_cancel_at:
                with contextlib.suppress(EaselError):
                    tenant.cancel_jobs(None)
                next_cancel_at = now + _CANCEL_INTERVAL_S
            self.sleep(self.policy.poll_interval_s)
        return True

    def _is_abandoned(self, switch: Switch) -> bool:
        is_stopping = self.stopping.is_set() and switch.target == "generation"
        return is_stopping or is_abandoned(switch, self.claims.all())

    def _is_unneeded(self, switch: Switch) -> bool:
        """Whether a switch to generation is of no use any more, although it has drained: no picture is drawn or waits.
        The next LLM to be unloaded could be one that a client has requested since."""
        state = self.state_store.state()
        if switch.target != "generation":
            return False
        if self.stopping.is_set() and not state.pinned:
            return True
        is_wanted = switch.reason == REQUESTED or switch.force or switch.pin or state.pinned
        if is_wanted or any(claim.mode == "generation" for claim in self.claims.all()):
            return False
        return not (switch.reason == ENGINE_DOWN or self.has_requests(0.0) or self._is_engine_busy())

    def _is_engine_busy(self) -> bool:
        try:
            return bool(self.tenants["generation"].busy())
        except EaselError:
            return False

    def _turn_back(self) -> SwitchResult:
        """End a switch to generation that is not needed any more. In inference mode what it has unloaded is loaded
        again; in generation mode an LLM that is loaded now gets the GPU by the next check."""
        failed: tuple[Failure, ...] = ()
        keeps_saved = True
        if self.state_store.state().mode == "inference":
            failed, keeps_saved = self._restore_until_picture()
        note = "turned back: no picture is drawn or waits any more"

        def turned_back(state: State) -> State:
            assert state.switch is not None
            ended = state.switch.with_end(self.clock())
            saved = state.saved if keeps_saved else ()
            return replace(
                state, saved=saved, switch=replace(ended, failed=failed, notes=(*ended.notes, note))
            )

        self.state_store.update(turned_back)
        log.info("the switch is %s", note)
        return "abandoned"

    def _waits_for_other_clients(self, switch: Switch) -> bool:
        """False when generation mode is repaired: requests to a model that was loaded outside Easel are not waited
        for."""
        return self.state_store.state().mode != switch.target

    def _cancel(self) -> SwitchResult:
        """End the switch without a change of mode."""
        note = "cancelled: no request waits for it any more"

        def cancelled(state: State) -> State:
            assert state.switch is not None
            ended = state.switch.with_end(self.clock())
            return replace(state, switch=replace(ended, notes=(*ended.notes, note)))

        self.state_store.update(cancelled)
        log.info("the switch is %s", note)
        return "abandoned"

    def _leases(self, switch: Switch) -> Sequence[Claim]:
        """The leases that must end first, without those of dead processes."""
        self.reclaim_dead_leases()
        return select(self.claims.all(), "lease", other_mode(switch.target))

    def _drain_timeout(self, switch: Switch) -> SwitchFailed:
        leases = select(self.claims.all(), "lease", other_mode(switch.target))
        running = (
            ", ".join(f"job {claim.job} of process {claim.pid}" for claim in leases)
            or "requests not sent by Easel"
        )
        return SwitchFailed(
            f"Still running after {self.policy.drain_timeout_s:g} s: {running}.", target=switch.target
        )

    def _revoke(self, switch: Switch) -> None:
        mode = other_mode(switch.target)
        self.state_store.update(lambda state: replace(state, revoked=self._revoked(state, mode)))

    def reclaim_dead_leases(self) -> None:
        """Remove the claims of dead processes. The job of a lease is cancelled first; until it is gone the lease stays, so
        that no switch starts while the job may still run."""
        dead = self.claims.dead()
        for name in self._cancelled_since.keys() - {claim.name for claim in dead}:
            del self._cancelled_since[name]
        for claim in dead:
            if claim.kind != "lease" or claim.mode not in self.tenants or self._is_job_gone(claim):
                self.claims.remove(claim)

    def _is_job_gone(self, claim: Claim) -> bool:
        """Whether the job of a dead process is gone, or was asked to end for so long that it is not waited for any more.
        Asks once more if not: the engine may lose a cancel."""
        now = self.clock()
        if claim.name not in self._cancelled_since:
            log.warning("the process that ran job %s is gone, cancelling the job", claim.job)
        since = self._cancelled_since.setdefault(claim.name, now)
        try:
            is_gone = self.tenants[claim.mode].cancel_jobs([claim.job])
        except EaselError as error:
            log.warning("could not cancel job %s, will retry: %s", claim.job, error.message)
            return False
        if not is_gone and now - since >= _RECLAIM_TIMEOUT_S:
            log.error("job %s still runs after %g s of cancelling, its lease ends", claim.job, now - since)
            return True
        return is_gone

    def _save_residents(self, switch: Switch) -> tuple[Resident, ...]:
        """What has to be unloaded; written to the state before the first unload."""
        residents = self._residents(switch)
        if switch.target == "generation":
            self._save(residents)
            if residents and not switch.had:
                free = self._free_bytes()
                self._update_switch(lambda switch: replace(switch, had=True, free_before=free))
        return residents

    def _residents(self, switch: Switch) -> tuple[Resident, ...]:
        """What the old tenant holds. Raises EaselError if that is not known; but a repair of generation mode unloads what
        is known: one server that hangs must not keep it from unloading what a client has loaded into another."""
        tenant = self._old_tenant(switch)
        if self._waits_for_other_clients(switch):
            return tenant.resident()
        return tenant.known_residents(_KNOWN_TIMEOUT_S)

    def _save(self, residents: Sequence[Resident]) -> None:
        """Write to the state what has to be loaded again. For each owner the entries are what was loaded together: a
        later read replaces an earlier one, unless it only lists fewer (a process that resumes a switch finds fewer)."""

        def save(state: State) -> State:
            saved = {(item.owner, item.id): item for item in state.saved}
            for owner in {item.owner for item in residents}:
                read = {(item.owner, item.id): item for item in residents if item.owner == owner}
                if not read.keys() <= saved.keys():
                    saved = {key: item for key, item in saved.items() if key[0] != owner}
                saved |= read
            return replace(state, saved=tuple(saved.values()))

        self.state_store.update(save)

    def _wait_until_released(self, switch: Switch) -> bool:
        """Wait until two reads in a row find nothing resident. Asks again to unload what is still there; what a server
        answered to an unload call does not count. False if nobody needs the switch any more."""
        tenant, empty_reads = self._old_tenant(switch), 0
        deadline = self.clock() + self.policy.release_timeout_s
        next_release_at = self.clock() + self.policy.release_interval_s
        while True:
            residents, error = self._read_residents(switch)
            empty_reads = empty_reads + 1 if not residents and error is None else 0
            if empty_reads == _EMPTY_READS:
                return True
            if self._is_unneeded(switch):
                return False
            now = self.clock()
            if now >= deadline:
                self._not_released(switch, residents, error)
                return True
            if residents and now >= next_release_at:
                next_release_at = now + self.policy.release_interval_s
                if switch.target == "generation":  # a client may have loaded one during the switch
                    self._save(residents)
                tenant.release(residents)
            self.sleep(self.policy.poll_interval_s)

    def _read_residents(self, switch: Switch) -> tuple[tuple[Resident, ...], EaselError | None]:
        """What is resident, or the error: a server may not respond while it unloads, and is then read again."""
        try:
            return self._residents(switch), None
        except EaselError as error:
            return (), error

    def _not_released(self, switch: Switch, residents: Sequence[Resident], error: EaselError | None) -> None:
        if error is not None:
            raise error
        names = ", ".join(f"{item.owner}/{item.id}" for item in residents)
        message = f"Still in memory after {self.policy.release_timeout_s:g} s: {names}."
        if switch.target == "generation":
            raise SwitchFailed(message, target=switch.target)
        # An LLM server that finds too little memory refuses to load by itself; failing the switch would not help it.
        self._add_note(message)

    def _free_bytes(self) -> int | None:
        try:
            return self.available_bytes()
        except EaselError:
            return None

    def _wait_for_memory(self) -> None:
        """Wait until enough memory is free or no more becomes free: the driver frees memory some time after a server
        has reported the unload. The state holds what was free before, for a process that resumes the switch
        afterwards."""
        switch, free = self.state_store.state().switch, self._free_bytes()
        if switch is None or free is None or (not switch.had and free >= self.policy.min_free_bytes):
            return None
        free_before = free if switch.free_before is None else switch.free_before
        need = max([self.policy.min_free_bytes, *(claim.need for claim in self.claims.all())])
        deadline, highest, steady_reads = self.clock() + self.policy.verify_timeout_s, free, 0
        while not (0 < need <= free) and not (
            steady_reads >= _STEADY_READS and self._was_freed(free, free_before)
        ):
            if self.clock() >= deadline:
                return self._not_freed(free, need)
            self.sleep(self.policy.poll_interval_s)
            free = self._free_bytes() or 0
            steady_reads = steady_reads + 1 if free <= highest + _MEMORY_NOISE else 0
            highest = max(highest, free)
        return None

    def _was_freed(self, free: int, free_before: int) -> bool:
        """Whether the unload freed memory. A model that needs more than the GPU has can run with all that is free."""
        return free >= free_before + _MEMORY_NOISE and free >= self.policy.min_free_bytes

    def _not_freed(self, free: int, need: int) -> None:
        """The unload freed nothing: the models were in RAM, or they still hold GPU memory."""
        message = (
            f"The LLM servers list no model any more, but only {free / 1e9:.1f} GB of GPU memory is free."
        )
        if free < max(self.policy.min_free_bytes, _MIN_NEED_SHARE * need):
            raise SwitchFailed(message, target="generation", free_bytes=free)
        self._add_note(message)

    def _start_or_restore(self, switch: Switch) -> SwitchResult:
        failed: tuple[Failure, ...] = ()
        keeps_saved = True
        if switch.target == "generation":
            self._enter("starting")
            self._start_engine(switch)
        else:
            failed, keeps_saved = self._restore_until_picture()
        self._finish(failed, keeps_saved=keeps_saved)
        return "done"

    def _start_engine(self, switch: Switch) -> None:
        started_at = self.clock()
        self.tenants["generation"].restore((), lambda: False)
        if self.clock() - started_at > _SLOW_START_S:  # a client may have loaded an LLM meanwhile
            self._wait_until_released(switch)

    def _restore_until_picture(self) -> tuple[tuple[Failure, ...], bool]:
        """Enter `restoring` and load again what was saved, until a picture waits: it would have to wait for the other
        models as well, and they would be unloaded at once. Returns what could not be loaded, and whether it was cut
        short, so that everything must stay saved."""
        self._enter("restoring")
        picture = _Noticed(self._is_picture_waiting)
        failed = self._restore_llms(self.state_store.state().saved, picture)
        return failed, picture.was_seen

    def _restore_llms(
        self, saved: Sequence[Resident], is_cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[Failure, ...]:
        try:
            return self.tenants["inference"].restore(saved, is_cancelled)
        except EaselError as error:
            return tuple(Failure(item.owner, item.id, error.message) for item in saved)

    def _is_picture_waiting(self) -> bool:
        state = self.state_store.state()
        return not self.stopping.is_set() and any(
            ticket.triggers_switch and not is_revoked(state, ticket)
            for ticket in select(self.claims.all(), "ticket", "generation")
        )

    def _finish(self, failed: tuple[Failure, ...], *, keeps_saved: bool) -> None:
        def finished(state: State) -> State:
            now, switch = self.clock(), state.switch
            assert switch is not None
            notes = (*switch.notes, state.rebuilt) if state.rebuilt else switch.notes
            return replace(
                state,
                mode=switch.target,
                since=now,
                pinned=switch.target == "generation" and (switch.pin or state.pinned),
                requested=switch.target == "generation" and (switch.reason == REQUESTED or state.requested),
                saved=state.saved if keeps_saved else (),
                took_s={**state.took_s, switch.target: round(max(0.0, now - switch.began), 4)},
                rebuilt=None,
                switch=replace(switch.with_end(now), failed=failed, notes=notes),
            )

        switch = self.state_store.update(finished).switch
        assert switch is not None
        for failure in failed:
            log.error("%s/%s could not be loaded again: %s", failure.owner, failure.id, failure.message)
        log.info(
            "switch %d to %s is done in %.2f s",
            switch.number,
            switch.target,
            (switch.ended or 0) - switch.began,
        )

    # --- failure -----------------------------------------------------------------------------------

    def _fail(self, error: EaselError) -> None:
        def failing(switch: Switch) -> Switch:
            details = {"code": error.code, "message": error.message, "phase": switch.phase}
            return replace(switch, error=details)

        switch = self._update_switch(failing)
        log.error(
            "switch %d to %s failed while %s: %s", switch.number, switch.target, switch.phase, error.message
        )
        self._restore_after_failure(switch)

    def _restore_after_failure(self, switch: Switch) -> None:
        """End a failed switch. To generation: the LLMs are loaded again. To inference: nothing is undone. A failed
        repair of generation mode requests a switch to inference, which waits for the pictures that are still being
        drawn."""
        failed: tuple[Failure, ...] = ()
        state = self.state_store.state()
        is_repair = switch.target == state.mode
        if switch.target == "generation" and not is_repair and switch.may_have_released:
            if switch.phase != "restoring":
                self._enter("restoring")
            failed = self._restore_llms(state.saved)

        def ended(state: State) -> State:
            now = self.clock()
            assert state.switch is not None
            return replace(
                state,
                since=now,
                wanted=SwitchRequest("inference", reason=_NOT_REPAIRED) if is_repair else state.wanted,
                saved=() if state.mode == "inference" else state.saved,
                switch=replace(state.switch.with_end(now), failed=failed),
            )

        self.state_store.update(ended)


class _Noticed:
    """A condition that remembers whether it was ever true when somebody asked."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self._condition, self.was_seen = condition, False

    def __call__(self) -> bool:
        self.was_seen = self.was_seen or self._condition()
        return self.was_seen
