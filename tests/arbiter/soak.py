"""Random interleavings over real processes: image and LLM requests, switches, pins, forces, kills and restarts, on a GPU
that misbehaves. `python -m tests.arbiter --runs 2000` (`make soak`); a failing run prints the seed that repeats it."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arbiter import Arbiter, Policy
from arbiter.switchover import Switchover
from errors import EaselError, SwitchInProgress
from tests.arbiter.world import Caller, FakeEngine, FakeStacks, World, WorldServer, random_errors

PHASES = ("closing", "draining", "releasing", "verifying", "starting", "restoring")
ALLOWED = {
    "gpu.busy",
    "gpu.image_mode",
    "gpu.switch_failed",
    "gpu.preempted",
    "gpu.pinned",
    "gpu.not_generating",
    "comfyui.switch_in_progress",
    "comfyui.busy",
    "comfyui.cancelled",
    "request.cancelled",
}
"""How a request may end when the world is against it"""
WAIT_S = 4.0
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.arbiter.soak"])


@dataclass(frozen=True)
class Op:
    """Something that happens `at` seconds after the start, in worker `worker`."""

    at: float
    worker: int
    kind: str
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """One interleaving, made from its seed alone. `dies_in`: worker -> phase at whose beginning it is killed."""

    seed: int
    policy: Policy
    ops: tuple[Op, ...]
    dies_in: dict[int, str]
    kills: tuple[tuple[float, int], ...]
    restart_all_at: float | None


def make_plan(seed: int) -> Plan:
    dice = random.Random(seed)
    policy = Policy(
        llm_during_generation=dice.choice(("switch", "switch", "wait", "refuse")),
        restore=dice.choice(("idle", "when_done", "never")),
        idle_restore_s=dice.choice((0.05, 10)),
        min_stay_s=dice.choice((0, 0.02, 0.1)),
        depth=dice.choice((1, 2)),
        on_drain_timeout=dice.choice(("fail", "fail", "kill")),
        drain_s=dice.choice((0.05, 1, 1)),
        release_s=0.4,
        verify_s=0.2,
        look_s=0.01,
        again_s=0.05,
        tick_s=0.004,
        housekeeping_s=0.05,
    )
    ops = tuple(_op(dice) for _ in range(dice.randint(5, 12)))
    killing = dice.random()
    dies_in = {dice.randint(0, 1): dice.choice(PHASES)} if killing < 0.25 else {}
    kills = ((dice.uniform(0.02, 0.3), dice.randint(0, 1)),) if 0.25 <= killing < 0.35 else ()
    restart = dice.uniform(0.05, 0.3) if killing > 0.93 else None
    return Plan(seed, policy, ops, dies_in, kills, restart)


def _op(dice: random.Random) -> Op:
    at, worker = dice.uniform(0, 0.3), dice.randint(0, 1)
    kind = dice.choice(("image",) * 5 + ("llm",) * 5 + ("switch",) * 3 + ("pin", "cancel"))
    if kind in ("image", "llm"):
        return Op(
            at,
            worker,
            kind,
            {"seconds": dice.choice((0.001, 0.01, 0.03, 0.08)), "hangs_up": dice.random() < 0.1},
        )
    if kind == "switch":
        mode = dice.choice(("inference", "generation"))
        pin = dice.choice((None, True)) if mode == "generation" else None
        return Op(at, worker, kind, {"mode": mode, "force": dice.random() < 0.3, "pin": pin})
    return Op(at, worker, kind, {"pinned": dice.random() < 0.5} if kind == "pin" else {})


# --- in a worker -----------------------------------------------------------------------------------


class Careless(Switchover):
    """Does not look whether the memory is free."""

    def _verify_gone(self, switch: Any) -> None:
        return None


class Deaf(Switchover):
    """Does not look whether anybody holds a lease."""

    def _leases(self, switch: Any) -> tuple[()]:
        return ()


MUTANTS: dict[str, type[Switchover]] = {"": Switchover, "no verifying": Careless, "no lease check": Deaf}


class _Tells(logging.Handler):
    """Tells the world of each switch, and kills its own process where the plan says."""

    def __init__(self, call: Caller, dies_in: str | None) -> None:
        super().__init__()
        self._call, self._dies_in = call, dies_in

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "switch %d to %s: %s" and isinstance(record.args, tuple):
            number, target, reason = record.args
            self._call("begun", number=number, target=target, reason=reason)
            phase = "closing"
        elif record.msg == "switch %d is %s" and isinstance(record.args, tuple):
            phase = str(record.args[1])
        else:
            if record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info)
                self._call("result", what="reconciler", ended=f"{record.msg}: {trace}")
            return
        if phase == self._dies_in:
            self._call("died", phase=phase)
            os.kill(os.getpid(), signal.SIGKILL)


def work(folder: Path, socket: Path, worker: int, plan: Plan, mutant: str, dies_in: str | None) -> None:
    """A worker process: its share of the plan's ops, a thread each."""
    call = Caller(socket, f"w{worker}/{os.getpid()}")
    log = logging.getLogger("easel.gpu")
    log.setLevel(logging.DEBUG)
    log.addHandler(_Tells(call, dies_in))
    log.propagate = False
    arbiter = make_arbiter(folder, call, plan.policy, mutant)
    call("result", what="ready", worker=worker, pid=os.getpid())
    while (began := call("began")) is None:
        time.sleep(0.002)
    arbiter.reconciler.start()
    threads = [
        threading.Thread(target=_do, args=(arbiter, call, op, began), daemon=True)
        for op in plan.ops
        if op.worker == worker and began + op.at > time.time() - 0.2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call("result", what="done", worker=worker, pid=os.getpid())
    threading.Event().wait()


def make_arbiter(folder: Path, call: Caller, policy: Policy, mutant: str = "") -> Arbiter:
    def is_forced() -> bool:
        switch = arbiter.state_store.state().under_way
        return policy.on_drain_timeout == "kill" or (switch is not None and switch.force)

    arbiter = Arbiter(
        folder,
        tenants={"inference": FakeStacks(call, is_forced), "generation": FakeEngine(call)},
        policy=policy,
    )
    if mutant:
        arbiter.reconciler._switchover = MUTANTS[mutant](**vars(arbiter.reconciler._switchover))
    return arbiter


def _do(arbiter: Arbiter, call: Caller, op: Op, began: float) -> None:
    time.sleep(max(0.0, began + op.at - time.time()))
    ended = "ok"
    try:
        OPS[op.kind](arbiter, call, **op.given)
    except EaselError as error:
        ended = error.code
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    call("result", what=op.kind, ended=ended)


def _image(arbiter: Arbiter, call: Caller, seconds: float, hangs_up: bool = False) -> None:
    job = uuid.uuid4().hex
    leaves_at = time.monotonic() + (0.03 if hangs_up else 60)
    gone = lambda: time.monotonic() > leaves_at  # noqa: E731
    with arbiter.lease("generation", job=job, timeout_s=WAIT_S, cancelled=gone) as lease:
        if lease.is_void():
            return
        call("draw", job=job, seconds=seconds)
        while not call("is_done", job=job):
            if lease.is_void() or gone():
                call("drop", jobs=[job])
            time.sleep(0.003)
        lease.ran(seconds)


def _llm(arbiter: Arbiter, call: Caller, seconds: float, hangs_up: bool = False) -> None:
    job = uuid.uuid4().hex
    with arbiter.lease("inference", job=job, timeout_s=WAIT_S) as lease:
        if lease.is_void():
            return
        call("serve", job=job, seconds=seconds, pid=os.getpid())
        until = time.monotonic() + seconds
        while time.monotonic() < until and not lease.is_void():
            time.sleep(0.003)
        call("stop_serving", job=job)


def _switch(arbiter: Arbiter, call: Caller, **given: Any) -> None:
    if arbiter.switch(**given) == "switching":
        call("accepted")


OPS: dict[str, Callable[..., None]] = {
    "image": _image,
    "llm": _llm,
    "switch": _switch,
    "pin": lambda arbiter, call, pinned: arbiter.pin(pinned),
    "cancel": lambda arbiter, call: arbiter.cancel(None),
}


# --- the judge -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What came of one interleaving. `errors` empty: nothing was wrong."""

    seed: int
    errors: tuple[str, ...]
    killed_in: tuple[str, ...]
    endings: tuple[str, ...]
    log: tuple[str, ...]
    served: int
    drawn: int


def judge(seed: int, mutant: str = "") -> Verdict:
    """Play the interleaving of `seed` and look at what came of it."""
    plan = make_plan(seed)
    with tempfile.TemporaryDirectory(prefix="easel-soak-") as place:
        return _play(plan, Path(place), mutant)


def _play(plan: Plan, place: Path, mutant: str) -> Verdict:
    world = World(random_errors(random.Random(plan.seed + 1)))
    server = WorldServer(place / "world", world)
    folder = place / "gpu"
    workers: dict[int, Any] = {}

    def start(number: int, dies_in: str | None = None) -> None:
        arguments = (folder, place / "world", number, plan, mutant, dies_in)
        workers[number] = PROCESSES.Process(target=work, args=arguments, daemon=True)
        workers[number].start()

    try:
        for number in (0, 1):
            start(number, plan.dies_in.get(number))
        killed = _until_quiet(plan, world, workers, start, _beginning(world))
        errors = [*world.violations, *_endings_wrong(world), *_numbers_wrong(world, killed)]
        errors += _aftermath(folder, world, Caller(place / "world", "judge"), plan)
        errors += [error for error in world.violations if error not in errors]
    finally:
        for process in workers.values():
            process.kill()
            process.join()
        server.close()
    died = tuple(result["phase"] for result in world.results if result["what"] == "died")
    endings = tuple(result.get("ended", "") for result in world.results if "ended" in result)
    return Verdict(plan.seed, tuple(errors), died, endings, tuple(world.log), world.served, world.drawn)


def _beginning(world: World) -> float:
    """Say when the plan begins, once both workers are there: on a busy machine it takes long until a process runs."""
    give_up = time.monotonic() + 30
    while sum(result["what"] == "ready" for result in list(world.results)) < 2:
        if time.monotonic() > give_up:
            raise TimeoutError("the workers do not start")
        time.sleep(0.002)
    world.began_at = time.time() + 0.02
    return world.began_at


def _until_quiet(
    plan: Plan, world: World, workers: dict[int, Any], start: Callable[[int], None], began: float
) -> bool:
    """Kill and start again as planned, until every worker that lives is through. Says whether any was killed."""
    kills, restart_at, killed = list(plan.kills), plan.restart_all_at, False
    give_up = time.monotonic() + 15
    while time.monotonic() < give_up:
        now = time.time() - began
        victims = [number for at, number in kills if now >= at]
        kills = [(at, number) for at, number in kills if now < at]
        if restart_at is not None and now >= restart_at:
            victims, restart_at = [0, 1], None
        for number in victims:
            workers[number].kill()
            workers[number].join()  # else it could still pass for alive, and for done
        for number in list(workers):
            if not workers[number].is_alive():
                killed = True
                workers[number].join()
                start(number)
        done = {result["pid"] for result in list(world.results) if result["what"] == "done"}
        if not kills and restart_at is None and all(process.pid in done for process in workers.values()):
            return killed
        time.sleep(0.01)
    world.violations.append("the workers did not come to an end")
    return killed


def _endings_wrong(world: World) -> list[str]:
    return [
        f"{result['op']} ended with {result['ended']}"
        for result in world.results
        if "ended" in result and result["ended"] not in ALLOWED | {"ok"}
    ]


def _numbers_wrong(world: World, killed: bool) -> list[str]:
    """Each switch begins once, in order, and each that was asked for begins."""
    numbers = [number for number, _, _ in world.begun]
    # A process may die after it wrote the switch down and before it told of it.
    wrong = (
        [] if killed or numbers == list(range(1, len(numbers) + 1)) else [f"switches {numbers} were doubled"]
    )
    if len(numbers) != len(set(numbers)):
        wrong.append(f"switches {numbers} were doubled")
    return wrong


def _aftermath(folder: Path, world: World, call: Caller, plan: Plan) -> list[str]:
    """Once everything works again, both sides must get the GPU, and nothing may be left behind."""
    world.heal()
    arbiter = make_arbiter(folder, call, plan.policy)
    wrong: list[str] = []
    try:
        _settle(arbiter)
        asked = sum(reason == "asked" for _, _, reason in world.begun)
        if not plan.dies_in and not plan.kills and plan.restart_all_at is None and asked != world.accepted:
            wrong.append(f"{world.accepted} switches were accepted and {asked} begun")
        with contextlib.suppress(EaselError):
            arbiter.pin(False)
        for mode, request in (("inference", _llm), ("generation", _image)):
            _insist(arbiter, mode)
            request(arbiter, call, 0.001)
        _settle(arbiter)
    except (EaselError, TimeoutError) as error:
        wrong.append(f"afterwards: {type(error).__name__}: {error}; {arbiter.state_store.state().switch}")
    left = [claim.name for claim in arbiter.claims.all()]
    return [*wrong, *(f"left behind: {name}" for name in left)]


def _settle(arbiter: Arbiter) -> None:
    give_up = time.monotonic() + 5
    # One look each time: between two, a wish can become a switch.
    while (state := arbiter.state_store.state()).under_way or state.wanted:
        if time.monotonic() > give_up:
            raise TimeoutError("a switch does not come to an end")
        time.sleep(0.005)


def _insist(arbiter: Arbiter, mode: Any) -> None:
    """A switch of nobody's wish may come between a look and a call."""
    for _ in range(20):
        _settle(arbiter)
        with contextlib.suppress(SwitchInProgress):
            arbiter.switch(mode, force=True, pin=True if mode == "generation" else None)
            return _settle(arbiter)
    raise TimeoutError(f"{mode} cannot be had")


def run_many(seeds: list[int], *, at_once: int = 6, mutant: str = "") -> list[Verdict]:
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda seed: judge(seed, mutant), seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the next ones follow")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--mutant", default="", choices=list(MUTANTS))
    parser.add_argument("--log", action="store_true", help="print what happened in each run that went wrong")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seeds {seed} to {seed + given.runs - 1}", flush=True)
    began, wrong = time.monotonic(), 0
    endings: collections.Counter[str] = collections.Counter()
    deaths: collections.Counter[str] = collections.Counter()
    kills = served = drawn = 0
    for start in range(seed, seed + given.runs, 60):
        for verdict in run_many(
            list(range(start, min(start + 60, seed + given.runs))), at_once=given.at_once, mutant=given.mutant
        ):
            plan = make_plan(verdict.seed)
            kills += bool(verdict.killed_in or plan.kills or plan.restart_all_at)
            endings.update(verdict.endings)
            deaths.update(verdict.killed_in)
            served, drawn = served + verdict.served, drawn + verdict.drawn
            if verdict.errors:
                wrong += 1
                print(f"seed {verdict.seed}: {verdict.errors}", flush=True)
                if given.log:
                    print("\n".join(verdict.log))
        print(
            f"{min(start + 60, seed + given.runs) - seed} runs, {wrong} wrong, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    print(
        f"with kills: {kills}; killed in {dict(deaths)}; {drawn} pictures, {served} LLM requests; endings {dict(endings)}"
    )
    sys.exit(1 if wrong else 0)
