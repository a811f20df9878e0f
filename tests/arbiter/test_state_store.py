"""The state that all processes share: complete, never stale, and rebuilt if its file is corrupt."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter, State, Switch
from arbiter.policy import is_open
from arbiter.state_store import StateStore
from arbiter.values import MODES, SwitchRequest
from errors import GpuBusy, StoreFull
from gpu_tenant import Failure, Resident
from tests.arbiter.conftest import MakeArbiter
from tests.arbiter.fakes import WAIT_S, FakeEngine, FakeStacks, Harness
from tests.waiting import wait_until

SPAWN = multiprocessing.get_context("forkserver")

EVERYTHING = State(
    mode="generation",
    since=1_700_000_000.25,
    pinned=True,
    wanted=SwitchRequest("inference", force=True),
    switch=Switch(
        number=7,
        target="generation",
        reason="image request",
        began=1_700_000_000.0,
        force=True,
        pin=True,
        phase="restoring",
        phase_since=1_700_000_001.5,
        phases=(("closing", 0.1), ("draining", 1.25)),
        pid=4711,
        resumed=2,
        error={"code": "llm.unreachable", "message": "gone", "phase": "releasing"},
        notes=("still there",),
        failed=(Failure("ollama", "gemma3:4b", "too little memory"),),
        ended=1_700_000_002.0,
    ),
    saved=(Resident("ollama", "gemma3:4b", {"keep_alive": -1, "nested": {"options": [1, 2]}}),),
    revoked={"inference": 3, "generation": 9},
    took_s={"generation": 2.5},
    requested=True,
    rebuilt="state.1.corrupt: why",
)


def settled(state_store: StateStore) -> State:
    """The state once its file is old enough to be cached by its stamp."""
    path = state_store.folder / "state.json"
    wait_until(lambda: time.time_ns() - path.stat().st_mtime_ns > 30_000_000)
    return state_store.state()


def test_a_written_state_is_read_back_unchanged(tmp_path: Path) -> None:
    StateStore(tmp_path).write(EVERYTHING)
    assert StateStore(tmp_path).state() == EVERYTHING


def test_the_initial_state_is_inference_mode_with_nothing_revoked(tmp_path: Path) -> None:
    state = StateStore(tmp_path / "missing" / "folder").state()
    assert (state.mode, state.pinned, state.switch, state.saved, state.rebuilt) == (
        "inference",
        False,
        None,
        (),
        None,
    )
    assert state.revoked == {"inference": 0, "generation": 0}


def write_on_request(folder: Path, pipe: Connection) -> None:
    state_store = StateStore(folder)
    state_store.state()
    pipe.send("ready")
    while (texts := pipe.recv()) is not None:
        for text in texts:
            state_store.update(lambda state, text=text: replace(state, rebuilt=text))
        pipe.send("written")


@pytest.mark.parametrize("texts", [["one"], ["first", "other", "third"]], ids=["one write", "within a tick"])
def test_a_write_of_another_process_is_seen_at_once(tmp_path: Path, texts: list[str]) -> None:
    pipe, child_end = SPAWN.Pipe()
    child = SPAWN.Process(target=write_on_request, args=(tmp_path, child_end), daemon=True)
    child.start()
    state_store = StateStore(tmp_path)
    assert pipe.recv() == "ready"
    for _ in range(20):
        state_store.update(lambda state: replace(state, rebuilt="mine!"))
        assert settled(state_store).rebuilt == "mine!"
        pipe.send(texts)
        assert pipe.recv() == "written"
        assert state_store.state().rebuilt == texts[-1]
        assert settled(state_store).rebuilt == texts[-1]
    pipe.send(None)
    child.join(WAIT_S)


class FileClock:
    """A clock that runs only when a test says so, in nanoseconds."""

    def __init__(self) -> None:
        self.now = time.time_ns()

    def __call__(self) -> int:
        return self.now


def rewrite_in_place(path: Path, old: str, new: str) -> None:
    """Changes the content and nothing else: two writes within one tick of the file system's clock can leave the same
    time, size and inode number."""
    stamp = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))


def test_content_read_within_a_tick_of_the_file_clock_is_read_again_later(tmp_path: Path) -> None:
    clock = FileClock()
    writer, path = StateStore(tmp_path, clock), tmp_path / "state.json"
    writer.write(State(rebuilt="first"))
    os.utime(path, ns=(clock.now, clock.now))
    readers = [StateStore(tmp_path, clock), StateStore(tmp_path, clock)]
    clock.now += 1_000_000
    assert [reader.state().rebuilt for reader in (writer, *readers)] == ["first"] * 3
    rewrite_in_place(path, "first", "third")
    clock.now += 1_000_000_000
    assert [reader.state().rebuilt for reader in (writer, *readers)] == ["third"] * 3


def test_content_whose_read_took_long_is_read_again_later(tmp_path: Path) -> None:
    """The file is written, read within a tick, and the reader is stopped for a second in the middle of the read."""
    clock = FileClock()
    writer, path = StateStore(tmp_path), tmp_path / "state.json"
    writer.write(State(rebuilt="first"))
    os.utime(path, ns=(clock.now, clock.now))

    def clock_that_jumps_after_each_reading() -> int:
        now, clock.now = clock.now, clock.now + 1_000_000_000
        return now

    reader = StateStore(tmp_path, clock_that_jumps_after_each_reading)
    assert reader.state().rebuilt == "first"
    rewrite_in_place(path, "first", "third")
    assert reader.state().rebuilt == "third"


def test_content_that_was_written_after_the_clock_was_read_is_read_again_later(tmp_path: Path) -> None:
    """The reader is stopped between the clock and the stat; meanwhile the file is written."""
    clock = FileClock()
    writer, path = StateStore(tmp_path), tmp_path / "state.json"
    writer.write(State(rebuilt="first"))
    written_at = clock.now + 1_000_000_000
    os.utime(path, ns=(written_at, written_at))
    reader = StateStore(tmp_path, clock)
    assert reader.state().rebuilt == "first"
    rewrite_in_place(path, "first", "third")
    assert reader.state().rebuilt == "third"


def increment_repeatedly(folder: Path, pipe: Connection) -> None:
    state_store = StateStore(folder)
    pipe.send("ready")
    pipe.recv()
    for _ in range(40):
        state_store.update(
            lambda state: replace(
                state, revoked={**state.revoked, "generation": state.revoked["generation"] + 1}
            )
        )
    pipe.send("done")


def test_concurrent_updates_of_several_processes_are_not_lost(tmp_path: Path) -> None:
    pipes = [SPAWN.Pipe() for _ in range(3)]
    children = [
        SPAWN.Process(target=increment_repeatedly, args=(tmp_path, child_end), daemon=True)
        for _, child_end in pipes
    ]
    for child in children:
        child.start()
    assert [own_end.recv() for own_end, _ in pipes] == ["ready"] * 3
    for own_end, _ in pipes:
        own_end.send("go")
    assert [own_end.recv() for own_end, _ in pipes] == ["done"] * 3
    assert StateStore(tmp_path).state().revoked["generation"] == 120
    for child in children:
        child.join(WAIT_S)
    assert {path.name for path in tmp_path.iterdir()} <= {"state.json", "saved.json", "mutex.lock"}


def hold_the_mutex(folder: Path, pipe: Connection) -> None:
    with StateStore(folder).mutex():
        pipe.send("ready")
        pipe.recv()


def test_the_mutex_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    pipe, child_end = SPAWN.Pipe()
    child = SPAWN.Process(target=hold_the_mutex, args=(tmp_path, child_end), daemon=True)
    child.start()
    assert pipe.recv() == "ready"
    child.kill()
    child.join(WAIT_S)
    started_at = time.monotonic()
    StateStore(tmp_path).update(lambda state: replace(state, rebuilt="mine"))
    assert time.monotonic() - started_at < 5, "the timeout for a running process is longer"


# --- corrupt files ---------------------------------------------------------------------------------


def document(**changes: Any) -> bytes:
    return json.dumps({**EVERYTHING.as_json(), **changes}).encode()


CORRUPT = {
    "empty": b"",
    "truncated": document()[:200],
    "not JSON": b"\x00\xff\x00",
    "a list": b"[]",
    "another version": document(version=2),
    "an unknown mode": document(mode="img"),
    "a string for a boolean": document(pinned="no"),
    "a negative time": document(since=-1),
    "an unknown key": document(saved_llm_slots=[]),
    "a string for a list": document(saved="chat"),
    "a string in the list": document(saved=["chat"]),
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_state_is_moved_aside_and_reported_and_starts_a_switch_to_inference(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.json").write_bytes(content)
    state = StateStore(tmp_path).state()
    (corrupt_file,) = tmp_path.glob("*.corrupt")
    assert corrupt_file.read_bytes() == content
    assert state.rebuilt is not None
    assert state.rebuilt.startswith(f"{corrupt_file.name}: ")
    assert state.active_switch is not None
    assert state.active_switch.target == "inference"
    assert state.saved == ()
    assert StateStore(tmp_path).state() == state
    assert len(list(tmp_path.glob("*.corrupt"))) == 1


def test_a_string_instead_of_a_list_is_not_split_into_characters(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(document(saved="gemma3"))
    assert StateStore(tmp_path).state().saved == ()


@pytest.mark.parametrize("mode", ["inference", "generation"])
def test_after_a_lost_state_no_lease_is_granted_until_the_engine_has_released_its_memory(
    tmp_path: Path, make_arbiter: MakeArbiter, engine: FakeEngine, mode: Any
) -> None:
    engine.holds_memory = True
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu/state.json").write_bytes(document()[:99])
    without_reconciler = make_arbiter(reconciles=False)
    with pytest.raises(GpuBusy), without_reconciler.lease(mode, job="early", timeout_s=0.05):
        pytest.fail("a lease was granted in an unknown state")
    assert without_reconciler.state_store.state().rebuilt

    arbiter = make_arbiter(restore="never")
    state = wait_until(
        lambda: arbiter.state_store.state() if not arbiter.state_store.state().active_switch else None
    )
    assert state.mode == "inference"
    assert state.rebuilt is None, "it is reported until it is repaired"
    assert not engine.holds_memory
    with arbiter.lease(mode, job="now", timeout_s=WAIT_S):
        assert arbiter.state_store.state().mode == mode


def test_a_lost_state_grants_no_lease_even_if_its_first_repair_fails(tmp_path: Path) -> None:
    """A long render of another client keeps the engine busy."""
    harness = Harness(tmp_path)
    harness.engine.holds_memory = True
    (tmp_path / "state.json").write_bytes(b"{")
    harness.engine.busy_until = harness.clock.now + 200
    harness.state_store.state()
    assert harness.resume().error is not None
    for mode in MODES:
        assert not is_open(harness.state_store.state(), mode)
    assert harness.state_store.state().rebuilt
    harness.run_ticks(200)
    assert harness.state_store.state().rebuilt is None
    assert any("corrupt" in note for note in harness.switch.notes)  # reported until the next switch
    assert harness.state_store.state().mode == "inference"
    assert not harness.engine.holds_memory


# --- a full disk -----------------------------------------------------------------------------------


class FullDisk(StateStore):
    """Refuses writes while `full`."""

    full = False
    refused = 0

    def write(self, state: State) -> None:
        if self.full:
            self.refused += 1
            raise StoreFull("the disk is full")
        super().write(state)


def work_on_a_full_disk(folder: Path, pipe: Connection) -> None:
    """A limit on the size of files simulates a full disk on any system."""
    stacks, engine = FakeStacks(), FakeEngine()
    arbiter = Arbiter(folder, tenants={"inference": stacks, "generation": engine})
    with arbiter.lease("inference", job="before", timeout_s=1):
        pass
    results: dict[str, Any] = {}
    before = arbiter.state_store.state()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        arbiter.state_store.update(lambda state: replace(state, pinned=True))
        results["write"] = "succeeded"
    except StoreFull as error:
        results["write"] = error.code
    with arbiter.lease("inference", job="meanwhile", timeout_s=1):
        results["lease"] = True
    arbiter.job_progress.report("a-job", 1, 2)
    arbiter.state_store.record_use(1.0, 2.0)
    results["unchanged"] = arbiter.state_store.state() == before == StateStore(folder).state()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    results["afterwards"] = arbiter.state_store.update(lambda state: replace(state, pinned=True)).pinned
    results["left"] = sorted(path.name for path in folder.rglob("*") if path.is_file())
    pipe.send(results)


def test_a_full_disk_keeps_the_old_state_and_still_grants_leases_of_the_current_mode(
    tmp_path: Path,
) -> None:
    pipe, child_end = SPAWN.Pipe()
    child = SPAWN.Process(target=work_on_a_full_disk, args=(tmp_path, child_end), daemon=True)
    child.start()
    assert pipe.poll(WAIT_S)
    results = pipe.recv()
    child.join(WAIT_S)
    assert results == {
        "write": "image.store_full",
        "lease": True,
        "unchanged": True,
        "afterwards": True,
        "left": ["mutex.lock", "saved.json", "state.json"],
    }


@pytest.mark.parametrize("op", ["busy", "resident", "release"])
def test_a_disk_that_fills_during_a_switch_loses_no_model(tmp_path: Path, op: str) -> None:
    """The same process resumes the switch once there is space, and still restores what it had unloaded."""
    harness = Harness(tmp_path)
    disk, calls = harness.use(FullDisk(tmp_path)), list[str]()

    def fill(called: str) -> None:
        if called == op and not calls:
            calls.append(op)
            disk.full = True

    harness.stacks.on_call = fill
    with pytest.raises(StoreFull):
        harness.run_switch("generation")
    assert harness.switch.ended is None
    disk.full = False
    assert harness.resume().error is None
    assert harness.state_store.state().mode == "generation"
    assert harness.stacks.loaded == {}
    assert harness.run_switch("inference").failed == ()
    assert sorted(harness.stacks.loaded) == ["chat", "embed"]


def test_the_reconciler_survives_a_full_disk_and_continues_when_there_is_space(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    disk = harness.use(FullDisk(tmp_path))
    disk.full = True
    request = harness.claim("generation", "ticket")
    harness.reconciler.start()
    wait_until(lambda: disk.refused)
    disk.full = False
    wait_until(lambda: harness.state_store.state().mode == "generation")
    harness.reconciler.stop()
    request.end()


# --- the pace --------------------------------------------------------------------------------------


def test_the_pace_follows_the_last_jobs_and_is_read_by_a_new_process(tmp_path: Path) -> None:
    state_store = StateStore(tmp_path)
    for number in range(30):
        state_store.record_use(100.0 + 3 * number, 2.0)
    assert StateStore(tmp_path).pace().last == 187.0
    assert StateStore(tmp_path).pace().seconds_each == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"last": 1, "unknown": 2}',
        b'{"la',
        b'{"last": null}',
        b'{"seconds_each": "1"}',
        b'{"jobs": NaN}',
        b'{"last": -1}',
    ],
)
def test_a_corrupt_pace_file_counts_as_no_measurement(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pace.json").write_bytes(content)
    state_store = StateStore(tmp_path)
    assert state_store.pace().last == 0.0
    state_store.record_use(5.0)
    assert state_store.pace().last == 5.0


def test_after_a_lost_state_it_is_still_known_what_the_llms_had_loaded(tmp_path: Path) -> None:
    saved = (Resident("chat", "gemma3", {"config": {"context_length": 8192}}),)
    StateStore(tmp_path).update(lambda state: replace(state, mode="generation", saved=saved))
    (tmp_path / "state.json").write_bytes(b"truncated")
    state = StateStore(tmp_path).state()
    assert (state.saved, bool(state.rebuilt)) == (saved, True)
