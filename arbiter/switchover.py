"""Passing the GPU on, phase by phase, each bounded, timed and written down before it is begun, so that whoever takes over
from a process that died begins again by looking at what is resident, never by trusting what was written."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from arbiter import policy as decide
from arbiter.leases import Claim, ClaimFolder
from arbiter.state_store import StateStore
from arbiter.values import Mode, Phase, Policy, State, Switch, SwitchRequest, other
from errors import EaselError, SwitchFailed, shorten
from gpu_tenant import Failure, Resident, Tenant

log = logging.getLogger("easel.gpu")

_FORCED_AGAIN_S = 0.25
_NOISE = 16 * 2**20
"""Free memory moves by so much by itself, in bytes"""
_NEARLY = 0.75
"""Of what a model is said to need, so much is enough to try: `min_vram_gb` is a round figure, and no card is ever empty"""
_STEADY = 2
_LONG_S = 1.0
_NOT_PUT_RIGHT = "image mode could not be put right"
_LOOKS = 2
"""An empty list must be seen so often in a row: a model that is only starting may be in no list yet"""


@dataclass(frozen=True)
class Switchover:
    """The story of one switch. `tenants`: who lives in each mode. `free_memory`: bytes the GPU has free, whoever holds
    the rest, or None where nobody can tell. `pause` waits so many seconds."""

    state_store: StateStore
    claims: ClaimFolder
    tenants: Mapping[Mode, Tenant]
    policy: Policy
    free_memory: Callable[[], int | None] = lambda: None
    clock: Callable[[], float] = time.time
    pause: Callable[[float], object] = time.sleep

    # --- beginning and ending ----------------------------------------------------------------------

    def begin(self, plan: decide.NextSwitch) -> None:
        """Write the switch down: from now on no lease is granted. Under the mutex."""
        state, now = self.state_store.state(), self.clock()
        number = state.switch.number + 1 if state.switch else 1
        switch = Switch(
            number, plan.target, plan.reason, now, plan.force, plan.pin, phase_since=now, pid=os.getpid()
        )
        revoked = self._revoked(state, other(plan.target)) if plan.force else state.revoked
        self.state_store.write(replace(state, switch=switch, wanted=None, revoked=revoked))
        log.info("switch %d to %s: %s", number, plan.target, plan.reason)

    def _revoked(self, state: State, mode: Mode) -> Mapping[str, int]:
        claims = self.claims.all()
        return {**state.revoked, mode: decide.next_number(state, claims) - 1}

    def run(self) -> None:
        """Carry the switch that is under way to its end. Raises nothing that a tenant does: the switch then fails."""
        switch = self._take_up()
        try:
            if switch.error is not None:
                self._restore_after_failure(switch)
            else:
                self._pass_on(switch)
        except EaselError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a switch failed in a way that nobody foresaw")
            self._fail(SwitchFailed(f"{type(error).__name__}: {shorten(str(error), 200)}"))

    def _take_up(self) -> Switch:
        """Mark a switch that another process began as ours."""

        def change(switch: Switch) -> Switch:
            if switch.pid == os.getpid():
                return switch
            return replace(switch, pid=os.getpid(), resumed=switch.resumed + 1)

        return self._rewrite(change)

    def _rewrite(self, change: Callable[[Switch], Switch]) -> Switch:
        def changed(state: State) -> State:
            return replace(state, switch=change(state.switch)) if state.switch else state

        switch = self.state_store.update(changed).switch
        assert switch is not None
        return switch

    def _enter(self, phase: Phase) -> None:
        switch = self._rewrite(lambda switch: switch.entering(phase, self.clock()))
        log.debug("switch %d is %s", switch.number, phase)

    def _note(self, words: str) -> None:
        log.warning("switch: %s", words)
        self._rewrite(lambda switch: replace(switch, notes=(*switch.notes, words)))

    # --- the phases --------------------------------------------------------------------------------

    def _pass_on(self, switch: Switch) -> None:
        self._enter("draining")
        if not self._drain(switch):
            return self._call_off()
        residents = self._remember(switch)
        self._enter("releasing")
        self._giver(switch).release(residents)
        self._enter("verifying")
        self._verify_gone(switch)
        if switch.target == "generation":
            self._verify_memory()
        return self._hand_over(switch)

    def _giver(self, switch: Switch) -> Tenant:
        return self.tenants[other(switch.target)]

    def _drain(self, switch: Switch) -> bool:
        """Wait until nothing runs any more, ours or others'. Nothing is cut unless that was asked for. False: those who
        waited for the switch are gone, and nothing was touched yet."""
        giver, forced = self._giver(switch), switch.force
        until, drop_at = self.clock() + self.policy.drain_s, 0.0
        while self._leases(switch) or (self._waits_for_others(switch) and giver.busy()):
            if not _has_released(switch) and decide.is_unwanted(switch, self.claims.all()):
                return False
            now = self.clock()
            if now >= until and not self._may_cut(switch, forced):
                raise self._too_long(switch)
            if now >= until and not forced:
                forced, until = True, now + self.policy.drain_s
                self._revoke(switch)
            if forced and switch.target == "generation":
                return True  # its server cuts what still runs
            if forced and now >= drop_at:
                with contextlib.suppress(EaselError):
                    giver.drop(None)
                drop_at = now + _FORCED_AGAIN_S
            self.pause(self.policy.look_s)
        return True

    def _waits_for_others(self, switch: Switch) -> bool:
        """Requests that came to a model loaded behind our back, while pictures are drawn, are not waited for."""
        return self.state_store.state().mode != switch.target

    def _call_off(self) -> None:
        """The mode stays, as if nobody had asked."""

        def called_off(state: State) -> State:
            assert state.switch is not None
            ended = state.switch.ending(self.clock())
            return replace(state, switch=replace(ended, notes=(*ended.notes, "nobody waits for it any more")))

        self.state_store.update(called_off)
        log.info("the switch is called off: nobody waits for it any more")

    def _leases(self, switch: Switch) -> Sequence[Claim]:
        """Leases of those who have to go. Jobs of the dead are taken back first."""
        self.reclaim_dead_leases()
        return decide.of(self.claims.all(), "lease", other(switch.target))

    def _may_cut(self, switch: Switch, forced: bool) -> bool:
        return self.policy.on_drain_timeout == "kill" and not forced

    def _too_long(self, switch: Switch) -> SwitchFailed:
        leases = decide.of(self.claims.all(), "lease", other(switch.target))
        who = (
            ", ".join(f"job {claim.job} of process {claim.pid}" for claim in leases)
            or "requests not sent by Easel"
        )
        return SwitchFailed(f"Not done after {self.policy.drain_s:g} s: {who}.", target=switch.target)

    def _revoke(self, switch: Switch) -> None:
        mode = other(switch.target)
        self.state_store.update(lambda state: replace(state, revoked=self._revoked(state, mode)))

    def reclaim_dead_leases(self) -> None:
        """Take back the jobs of holders that died, and only then let their leases count no more."""
        for claim in self.claims.dead():
            if claim.kind == "lease" and claim.mode in self.tenants:
                log.warning("the process that ran job %s is gone; its job is taken back", claim.job)
                try:
                    self.tenants[claim.mode].drop([claim.job])
                except EaselError as error:
                    log.warning("which does not go yet: %s", error.message)
                    continue
            self.claims.remove(claim)

    def _remember(self, switch: Switch) -> tuple[Resident, ...]:
        """What has to go; written down before any of it does, for whoever has to load it again."""
        residents = self._giver(switch).resident()

        def saved(state: State) -> State:
            # An intruder of image mode is nothing that the owner had loaded; a switch that is taken up again knows more
            # than we see, whoever began it.
            fresh = () if state.mode == "generation" else residents
            ids = {(item.owner, item.id) for item in fresh}
            known = (item for item in state.saved if (item.owner, item.id) not in ids)
            return replace(state, saved=(*known, *fresh))

        if switch.target == "generation":
            self.state_store.update(saved)
            if residents and not switch.had:
                free = self._free()
                self._rewrite(lambda switch: replace(switch, had=True, free_before=free))
        return residents

    def _verify_gone(self, switch: Switch) -> None:
        """Whatever was answered: gone is what is in the list no more, twice in a row."""
        giver = self._giver(switch)
        until, again_at, empty = self.clock() + self.policy.release_s, self.clock() + self.policy.again_s, 0
        while True:
            left, trouble = _seen(giver)
            empty = empty + 1 if not left and trouble is None else 0
            if empty == _LOOKS:
                return None
            now = self.clock()
            if now >= until:
                return self._still_there(switch, left, trouble)
            if left and now >= again_at:
                again_at = now + self.policy.again_s
                giver.release(left)
            self.pause(self.policy.look_s)

    def _still_there(self, switch: Switch, left: Sequence[Resident], trouble: EaselError | None) -> None:
        if trouble is not None:
            raise trouble
        names = ", ".join(f"{item.owner}/{item.id}" for item in left)
        words = f"Still in memory after {self.policy.release_s:g} s: {names}."
        if switch.target == "generation":
            raise SwitchFailed(words, target=switch.target)
        # An LLM server that finds too little memory refuses to load; keeping it away from its own GPU helps nobody.
        self._note(words)

    def _free(self) -> int | None:
        try:
            return self.free_memory()
        except EaselError:
            return None

    def _verify_memory(self) -> None:
        """The driver gives memory back some time after a process said so. Wait for what is needed, or till no more comes.
        What was free before is in the state, for whoever takes a switch up after the models are gone."""
        switch, now = self.state_store.state().switch, self._free()
        if switch is None or now is None or (not switch.had and now >= self.policy.min_free_bytes):
            return None
        before = now if switch.free_before is None else switch.free_before
        need = max([self.policy.min_free_bytes, *(claim.need for claim in self.claims.all())])
        until, most, steady = self.clock() + self.policy.verify_s, now, 0
        while not (0 < need <= now) and not (steady >= _STEADY and self._will_do(now, before)):
            if self.clock() >= until:
                return self._none_came(now, need)
            self.pause(self.policy.look_s)
            now = self._free() or 0
            steady = steady + 1 if now <= most + _NOISE else 0
            most = max(most, now)
        return None

    def _will_do(self, now: int, before: int) -> bool:
        """A model that needs more than there is can still run, if all that could come has come."""
        return now >= before + _NOISE and now >= self.policy.min_free_bytes

    def _none_came(self, now: int, need: int) -> None:
        """What was unloaded gave nothing back: it lay in the machine's own memory, or it is still there."""
        words = f"The LLM servers list nothing any more, but only {now / 1e9:.1f} GB of GPU memory are free."
        if now < max(self.policy.min_free_bytes, _NEARLY * need):
            raise SwitchFailed(words, target="generation", free_bytes=now)
        self._note(words)

    def _hand_over(self, switch: Switch) -> None:
        self._enter("starting" if switch.target == "generation" else "restoring")
        saved = self.state_store.state().saved
        failed = self._restored(saved) if switch.target == "inference" else ()
        if switch.target == "generation":
            self._start_engine(switch)
        self._finish(failed)

    def _start_engine(self, switch: Switch) -> None:
        began = self.clock()
        self.tenants["generation"].restore(())
        if self.clock() - began > _LONG_S:  # time enough for somebody to load an LLM again
            self._verify_gone(switch)

    def _restored(self, saved: Sequence[Resident]) -> tuple[Failure, ...]:
        try:
            return self.tenants["inference"].restore(saved)
        except EaselError as error:
            return tuple(Failure(item.owner, item.id, error.message) for item in saved)

    def _finish(self, failed: tuple[Failure, ...]) -> None:
        def finished(state: State) -> State:
            now, switch = self.clock(), state.switch
            assert switch is not None
            notes = (*switch.notes, state.rebuilt) if state.rebuilt else switch.notes
            return replace(
                state,
                mode=switch.target,
                since=now,
                pinned=switch.target == "generation" and (switch.pin or state.pinned),
                saved=state.saved if switch.target == "generation" else (),
                took_s={**state.took_s, switch.target: round(max(0.0, now - switch.began), 4)},
                rebuilt=None,
                switch=replace(switch.ending(now), failed=failed, notes=notes),
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

    # --- when it does not go well ------------------------------------------------------------------

    def _fail(self, error: EaselError) -> None:
        def failing(switch: Switch) -> Switch:
            told = {"code": error.code, "message": error.message, "phase": switch.phase}
            return replace(switch, error=told)

        switch = self._rewrite(failing)
        log.error(
            "switch %d to %s failed while %s: %s", switch.number, switch.target, switch.phase, error.message
        )
        self._restore_after_failure(switch)

    def _restore_after_failure(self, switch: Switch) -> None:
        """Back to what was: the LLMs that were unloaded are loaded again. What went to inference stays where it is; image
        mode that could not be put right is given back in order, for pictures may still be drawn."""
        failed: tuple[Failure, ...] = ()
        state = self.state_store.state()
        is_repair = switch.target == state.mode
        if switch.target == "generation" and not is_repair and _has_released(switch):
            if switch.phase != "restoring":
                self._enter("restoring")
            failed = self._restored(state.saved)

        def over(state: State) -> State:
            now = self.clock()
            assert state.switch is not None
            return replace(
                state,
                since=now,
                wanted=SwitchRequest("inference", reason=_NOT_PUT_RIGHT) if is_repair else state.wanted,
                saved=() if state.mode == "inference" else state.saved,
                switch=replace(state.switch.ending(now), failed=failed),
            )

        self.state_store.update(over)


def _has_released(switch: Switch) -> bool:
    """Whether anything may have been unloaded, by whichever process."""
    return not {switch.phase, *(name for name, _ in switch.phases)} <= {"closing", "draining"}


def _seen(tenant: Tenant) -> tuple[tuple[Resident, ...], EaselError | None]:
    """What is resident; a server that does not answer while it unloads is asked again."""
    try:
        return tenant.resident(), None
    except EaselError as error:
        return (), error
