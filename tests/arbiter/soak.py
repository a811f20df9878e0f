"""Random interleavings over real processes: image requests, LLM requests that are forwarded over HTTP, chats straight to the LLM server, switches, pins, forces, kills and restarts, on a
simulated GPU that misbehaves. `python -m tests.arbiter --runs 2000` (`make soak`); a failing run prints its seed."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import logging
import multiprocessing
import os
import random
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RDWR, socket, socketpair
from typing import Any, get_args

from arbiter import Arbiter, Policy
from arbiter.switchover import Switchover
from arbiter.values import Phase
from conversation import ROUTES, Client, Forwarder, ModelDirectory, RequestBody, read_request, read_upstreams
from errors import EaselError, SwitchInProgress
from scratch_folder import ScratchFolder
from tests.arbiter.simulated_gpu import (
    Caller,
    FakeEngine,
    FakeStacks,
    SimulatedGpu,
    SimulatedGpuServer,
    random_misbehaviour,
)
from tests.arbiter.simulated_llm import MODEL, SimulatedLlmServer
from tests.waiting import TIMEOUT_S

CHAT = next(route for route in ROUTES if route.name == "chat")

PHASES: tuple[str, ...] = get_args(Phase)
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
"""The errors with which a request may end"""
WAIT_S = 4.0
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.arbiter.soak"])


@dataclass(frozen=True)
class Op:
    """An operation of worker `worker`, `at` seconds after the start."""

    at: float
    worker: int
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """One interleaving, made from its seed alone. `killed_in`: worker -> phase at whose start it kills itself. `kills`:
    (seconds after the start, worker)."""

    seed: int
    policy: Policy
    ops: tuple[Op, ...]
    killed_in: dict[int, str]
    kills: tuple[tuple[float, int], ...]
    restart_all_at: float | None


def make_plan(seed: int) -> Plan:
    dice = random.Random(seed)
    policy = Policy(
        llm_during_generation=dice.choice(("switch", "switch", "wait", "refuse")),
        restore=dice.choice(("linger", "linger", "idle", "never")),
        linger_s=dice.choice((0, 0.05, 10)),
        idle_restore_s=dice.choice((0.05, 10)),
        min_stay_s=dice.choice((0, 0.02, 0.1)),
        depth=dice.choice((1, 2)),
        on_drain_timeout=dice.choice(("fail", "fail", "kill")),
        drain_timeout_s=dice.choice((0.05, 1, 1)),
        release_timeout_s=0.4,
        verify_timeout_s=0.2,
        poll_interval_s=0.01,
        release_interval_s=0.05,
        reconcile_interval_s=0.004,
        check_interval_s=0.05,
    )
    ops = tuple(_op(dice) for _ in range(dice.randint(5, 12)))
    kill = dice.random()
    killed_in = {dice.randint(0, 1): dice.choice(PHASES)} if kill < 0.25 else {}
    kills = ((dice.uniform(0.02, 0.3), dice.randint(0, 1)),) if 0.25 <= kill < 0.35 else ()
    restart = dice.uniform(0.05, 0.3) if kill > 0.93 else None
    return Plan(seed, policy, ops, killed_in, kills, restart)


def _op(dice: random.Random) -> Op:
    at, worker = dice.uniform(0, 0.3), dice.randint(0, 1)
    kind = dice.choice(("image",) * 5 + ("llm",) * 5 + ("chat",) * 3 + ("switch",) * 3 + ("pin", "cancel"))
    if kind in ("image", "llm"):
        return Op(
            at,
            worker,
            kind,
            {"seconds": dice.choice((0.001, 0.01, 0.03, 0.08)), "is_cancelled": dice.random() < 0.1},
        )
    if kind == "chat":
        model = dice.choice(("chat", "other"))
        return Op(at, worker, kind, {"seconds": dice.choice((0.05, 0.2, 0.4)), "model": model})
    if kind == "switch":
        mode = dice.choice(("inference", "generation"))
        pin = dice.choice((None, True)) if mode == "generation" else None
        return Op(at, worker, kind, {"mode": mode, "force": dice.random() < 0.3, "pin": pin})
    return Op(at, worker, kind, {"pinned": dice.random() < 0.5} if kind == "pin" else {})


# --- in a worker -----------------------------------------------------------------------------------


class WithoutVerification(Switchover):
    """Does not check that the memory is free."""

    def _wait_until_released(self, switch: Any) -> bool:
        return True


class WithoutLeaseCheck(Switchover):
    """Does not wait for leases."""

    def _leases(self, switch: Any) -> tuple[()]:
        return ()


MUTANTS: dict[str, type[Switchover]] = {
    "": Switchover,
    "no verification": WithoutVerification,
    "no lease check": WithoutLeaseCheck,
}


class _ReportingHandler(logging.Handler):
    """Reports each switch that begins, and kills its own process at the start of phase `killed_in`."""

    def __init__(self, call: Caller, killed_in: str | None) -> None:
        super().__init__()
        self._call, self._killed_in = call, killed_in

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
                self._call("result", kind="reconciler", outcome=f"{record.msg}: {trace}")
            return
        if phase == self._killed_in:
            self._call("killed", phase=phase)
            os.kill(os.getpid(), signal.SIGKILL)


def work(
    folder: Path, socket_path: Path, llm_url: str, worker: int, plan: Plan, mutant: str, killed_in: str | None
) -> None:
    """A worker process: runs its operations of the plan, each in a thread."""
    call = Caller(socket_path, f"w{worker}/{os.getpid()}")
    log = logging.getLogger("easel.gpu")
    log.setLevel(logging.DEBUG)
    log.addHandler(_ReportingHandler(call, killed_in))
    log.propagate = False
    logging.getLogger("easel.llm").setLevel(logging.ERROR)
    arbiter = make_arbiter(folder, call, plan.policy, mutant)
    context = Worker(arbiter, call, make_forwarder(arbiter, llm_url))
    call("result", kind="ready", worker=worker, pid=os.getpid())
    while (started_at := call("start_time")) is None:
        time.sleep(0.002)
    arbiter.reconciler.start()
    threads = [
        threading.Thread(target=_run_op, args=(context, op, started_at), daemon=True)
        for op in plan.ops
        if op.worker == worker and started_at + op.at > time.time() - 0.2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call("result", kind="done", worker=worker, pid=os.getpid())
    threading.Event().wait()


@dataclass(frozen=True)
class Worker:
    """What the operations of a worker use."""

    arbiter: Arbiter
    call: Caller
    forwarder: Forwarder
    wait_s: float = WAIT_S
    """How long an image request waits for the GPU"""


def make_forwarder(arbiter: Arbiter, llm_url: str, wait_s: float = WAIT_S) -> Forwarder:
    """Forwards to the simulated LLM server, which shares the GPU."""
    stack = {
        "name": "fake",
        "driver": "llama-server",
        "url": llm_url,
        "upstream": {"models": [MODEL], "silence_timeout_s": 10},
    }
    directory = ModelDirectory(read_upstreams((), (stack,), {}), {})
    return Forwarder(directory, lambda stack: arbiter, max_requests=100, lease_timeout_s=wait_s)


def make_arbiter(folder: Path, call: Caller, policy: Policy, mutant: str = "") -> Arbiter:
    def is_forced() -> bool:
        switch = arbiter.state_store.state().active_switch
        return policy.on_drain_timeout == "kill" or (switch is not None and switch.force)

    arbiter = Arbiter(
        folder,
        tenants={"inference": FakeStacks(call, is_forced), "generation": FakeEngine(call)},
        policy=policy,
    )
    if mutant:
        arbiter.reconciler._switchover = MUTANTS[mutant](**vars(arbiter.reconciler._switchover))
    return arbiter


def _run_op(worker: Worker, op: Op, started_at: float) -> None:
    time.sleep(max(0.0, started_at + op.at - time.time()))
    outcome = "ok"
    try:
        OPS[op.kind](worker, **op.arguments)
    except EaselError as error:
        outcome = error.code
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    worker.call("result", kind=op.kind, outcome=outcome)


def _image(worker: Worker, seconds: float, is_cancelled: bool = False) -> None:
    arbiter, call, job = worker.arbiter, worker.call, uuid.uuid4().hex
    cancelled_at = time.monotonic() + (0.03 if is_cancelled else 60)
    cancelled = lambda: time.monotonic() > cancelled_at  # noqa: E731
    with arbiter.lease("generation", job=job, timeout_s=worker.wait_s, cancelled=cancelled) as lease:
        if lease.is_void():
            return
        call("draw", job=job, seconds=seconds)
        while not call("is_done", job=job):
            if lease.is_void() or cancelled():
                call("cancel_jobs", jobs=[job])
            time.sleep(0.003)
        lease.record_run(seconds)


def _llm(worker: Worker, seconds: float, is_cancelled: bool = False) -> None:
    """A chat through Easel. A cancelled one's client hangs up after a moment."""
    document = {
        "model": MODEL,
        "stream": True,
        "job": uuid.uuid4().hex,
        "seconds": seconds,
        "pid": os.getpid(),
    }
    request = read_request(CHAT, RequestBody(json.dumps(document).encode()), "application/json")
    ours, theirs = socketpair()
    hang_up = threading.Timer(0.03 if is_cancelled else 60, theirs.shutdown, [SHUT_RDWR])
    hang_up.daemon = True
    hang_up.start()
    errors: list[EaselError] = []

    def envelope(error: EaselError) -> dict[str, Any]:
        errors.append(error)
        return {"error": {"message": error.message, "code": error.code}}

    with ours, theirs:
        client = Client([("Content-Type", "application/json")], ours, lambda: _has_hung_up(ours))
        try:
            forwarded = worker.forwarder.forward(request, client, envelope)
            with contextlib.closing(forwarded.body):
                answer = b"".join(forwarded.body)
        finally:
            hang_up.cancel()
    if errors:
        raise errors[0]
    if not (is_cancelled or answer.endswith(b"data: [DONE]\n\n")):
        raise RuntimeError(f"the stream ended with {answer[-100:]!r}")


def _has_hung_up(client: socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


_UNSEEN_S = 0.1


def _chat(worker: Worker, seconds: float, model: str) -> None:
    """A chat that bypasses Easel. If nothing is drawn or waits when it comes, and nothing has come a moment later, it
    must not be cut."""
    arbiter, call, job = worker.arbiter, worker.call, uuid.uuid4().hex
    is_quiet = _is_quiet(arbiter)
    call("chat", job=job, seconds=seconds, model=model)
    time.sleep(_UNSEEN_S)
    if is_quiet and _is_quiet(arbiter):
        call("chat_came_first", job=job)


def _is_quiet(arbiter: Arbiter) -> bool:
    state = arbiter.state_store.state()
    is_leaving = state.wanted or state.pinned or state.rebuilt
    is_drawing = any(claim.mode == "generation" for claim in arbiter.claims.all())
    target = state.active_switch.target if state.active_switch else "inference"
    return not (is_leaving or is_drawing or target == "generation")


def _switch(worker: Worker, **arguments: Any) -> None:
    if worker.arbiter.switch(**arguments) == "switching":
        worker.call("accepted")


OPS: dict[str, Callable[..., None]] = {
    "image": _image,
    "llm": _llm,
    "chat": _chat,
    "switch": _switch,
    "pin": lambda worker, pinned: worker.arbiter.pin(pinned),
    "cancel": lambda worker: worker.arbiter.cancel(None),
}


# --- the runner ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunResult:
    """The result of one interleaving. `errors` is empty if nothing was wrong."""

    seed: int
    errors: tuple[str, ...]
    killed_in: tuple[str, ...]
    outcomes: tuple[str, ...]
    log: tuple[str, ...]
    served: int
    drawn: int
    chatted: int
    cut: int


def run_interleaving(seed: int, mutant: str = "") -> RunResult:
    """Run the interleaving of `seed` and check it."""
    plan = make_plan(seed)
    with ScratchFolder("easel-soak-") as folder:
        return _run_plan(plan, Path(folder), mutant)


def _run_plan(plan: Plan, folder: Path, mutant: str) -> RunResult:
    gpu = SimulatedGpu(random_misbehaviour(random.Random(plan.seed + 1)))
    socket_path, state_folder = folder / "socket", folder / "gpu"
    server, llm = SimulatedGpuServer(socket_path, gpu), SimulatedLlmServer(gpu)
    workers: dict[int, Any] = {}

    def start(number: int, killed_in: str | None = None) -> None:
        arguments = (state_folder, socket_path, llm.url, number, plan, mutant, killed_in)
        workers[number] = PROCESSES.Process(target=work, args=arguments, daemon=True)
        workers[number].start()

    try:
        for number in (0, 1):
            start(number, plan.killed_in.get(number))
        killed = _supervise(plan, gpu, workers, start, _set_start_time(gpu))
        errors = [*gpu.violations, *_unexpected_outcomes(gpu), *_wrong_numbers(gpu, killed)]
        errors += _check_recovery(state_folder, gpu, Caller(socket_path, "runner"), plan, llm.url)
        errors += [error for error in gpu.violations if error not in errors]
    finally:
        for process in workers.values():
            process.kill()
            process.join()
        llm.close()
        server.close()
    killed_in = tuple(result["phase"] for result in gpu.results if result["kind"] == "killed")
    outcomes = tuple(result.get("outcome", "") for result in gpu.results if "outcome" in result)
    return RunResult(
        plan.seed,
        tuple(errors),
        killed_in,
        outcomes,
        tuple(gpu.log),
        gpu.served,
        gpu.drawn,
        gpu.chatted,
        gpu.cut,
    )


def _set_start_time(gpu: SimulatedGpu) -> float:
    """Set when the plan starts, once both workers are ready: on a busy machine a process takes long to start."""
    deadline = time.monotonic() + 30
    while sum(result["kind"] == "ready" for result in list(gpu.results)) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("the workers do not start")
        time.sleep(0.002)
    gpu.starts_at = time.time() + 0.02
    return gpu.starts_at


def _supervise(
    plan: Plan,
    gpu: SimulatedGpu,
    workers: dict[int, Any],
    start: Callable[[int], None],
    started_at: float,
) -> bool:
    """Kill workers as planned and start them again, until every worker is done. Returns whether any was killed."""
    kills, restart_at, killed = list(plan.kills), plan.restart_all_at, False
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        now = time.time() - started_at
        victims = [number for at, number in kills if now >= at]
        kills = [(at, number) for at, number in kills if now < at]
        if restart_at is not None and now >= restart_at:
            victims, restart_at = [0, 1], None
        for number in victims:
            workers[number].kill()
            workers[number].join()  # until then it could count as alive, and as done
        for number in list(workers):
            if not workers[number].is_alive():
                killed = True
                workers[number].join()
                start(number)
        done = {result["pid"] for result in list(gpu.results) if result["kind"] == "done"}
        if not kills and restart_at is None and all(process.pid in done for process in workers.values()):
            return killed
        time.sleep(0.01)
    gpu.violations.append("the workers did not end in time")
    return killed


def _unexpected_outcomes(gpu: SimulatedGpu) -> list[str]:
    return [
        f"{result['kind']} ended with {result['outcome']}"
        for result in gpu.results
        if "outcome" in result and result["outcome"] not in ALLOWED | {"ok"}
    ]


def _wrong_numbers(gpu: SimulatedGpu, killed: bool) -> list[str]:
    """Every switch must begin once, in the order of the numbers, without a gap."""
    numbers = [number for number, _, _ in gpu.begun]
    # A process may be killed after it has written the switch and before it has reported it.
    has_gap = not killed and numbers != list(range(1, len(numbers) + 1))
    if has_gap or len(numbers) != len(set(numbers)):
        return [f"the switches {numbers} have gaps or repetitions"]
    return []


def _check_recovery(folder: Path, gpu: SimulatedGpu, call: Caller, plan: Plan, llm_url: str) -> list[str]:
    """Once everything works again, both sides must get the GPU, and no claim may be left."""
    gpu.heal()
    arbiter = make_arbiter(folder, call, plan.policy)
    # On a busy machine the forced switch may fail, and the one for the request takes as long again.
    worker = Worker(arbiter, call, make_forwarder(arbiter, llm_url, TIMEOUT_S), TIMEOUT_S)
    errors: list[str] = []
    try:
        _wait_until_idle(arbiter)
        requested = sum(reason == "requested" for _, _, reason in gpu.begun)
        if (
            not plan.killed_in
            and not plan.kills
            and plan.restart_all_at is None
            and requested != gpu.accepted
        ):
            errors.append(f"{gpu.accepted} switches were accepted and {requested} begun")
        with contextlib.suppress(EaselError):
            arbiter.pin(False)
        for mode, request in (("inference", _llm), ("generation", _image)):
            _force_switch(arbiter, mode)
            request(worker, 0.001)
        _wait_until_idle(arbiter)
    except (EaselError, TimeoutError) as error:
        errors.append(f"afterwards: {type(error).__name__}: {error}; {arbiter.state_store.state().switch}")
    left = [claim.name for claim in arbiter.claims.all()] + [f"LLM request {job}" for job in gpu.serving()]
    return [*errors, *(f"left over: {name}" for name in left)]


def _wait_until_idle(arbiter: Arbiter) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    # One read for both: between two reads a request can become a switch.
    while (state := arbiter.state_store.state()).active_switch or state.wanted:
        if time.monotonic() > deadline:
            raise TimeoutError("a switch does not end")
        time.sleep(0.005)


def _force_switch(arbiter: Arbiter, mode: Any) -> None:
    """Repeats it if another switch begins between the wait and the call."""
    for _ in range(20):
        _wait_until_idle(arbiter)
        with contextlib.suppress(SwitchInProgress):
            arbiter.switch(mode, force=True, pin=True if mode == "generation" else None)
            return _wait_until_idle(arbiter)
    raise TimeoutError(f"no switch to {mode} was accepted")


def run_many(seeds: list[int], *, at_once: int = 6, mutant: str = "") -> list[RunResult]:
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda seed: run_interleaving(seed, mutant), seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of the first run; the others follow")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--mutant", default="", choices=list(MUTANTS))
    parser.add_argument("--log", action="store_true", help="print the log of each failed run")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seeds {seed} to {seed + options.runs - 1}", flush=True)
    started_at, failed_runs = time.monotonic(), 0
    outcomes: collections.Counter[str] = collections.Counter()
    killed_in: collections.Counter[str] = collections.Counter()
    runs_with_kills = served = drawn = chatted = cut = 0
    for start in range(seed, seed + options.runs, 60):
        seeds = list(range(start, min(start + 60, seed + options.runs)))
        for result in run_many(seeds, at_once=options.at_once, mutant=options.mutant):
            plan = make_plan(result.seed)
            runs_with_kills += bool(result.killed_in or plan.kills or plan.restart_all_at)
            outcomes.update(result.outcomes)
            killed_in.update(result.killed_in)
            served, drawn = served + result.served, drawn + result.drawn
            chatted, cut = chatted + result.chatted, cut + result.cut
            if result.errors:
                failed_runs += 1
                print(f"seed {result.seed}: {result.errors}", flush=True)
                if options.log:
                    print("\n".join(result.log))
        elapsed_s = time.monotonic() - started_at
        print(f"{seeds[-1] + 1 - seed} runs, {failed_runs} failed, {elapsed_s:.0f} s", flush=True)
    print(
        f"with kills: {runs_with_kills}; killed in {dict(killed_in)}; {drawn} pictures, {served} LLM requests, "
        f"{chatted} chats past Easel, {cut} of them put out for pictures; "
        f"outcomes {dict(outcomes)}"
    )
    sys.exit(1 if failed_runs else 0)
