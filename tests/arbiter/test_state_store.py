"""What all processes agree on: whole, never stale, and never believed when it is broken."""

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
from tests.arbiter.fakes import WAIT_S, FakeEngine, FakeStacks, Stage, until

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
        failed=(Failure("ollama", "gemma3:4b", "no room"),),
        ended=1_700_000_002.0,
    ),
    saved=(Resident("ollama", "gemma3:4b", {"keep_alive": -1, "nested": {"options": [1, 2]}}),),
    revoked={"inference": 3, "generation": 9},
    took_s={"generation": 2.5},
    rebuilt="state.1.corrupt: why",
)


def settled(state_store: StateStore) -> State:
    """The state once its file is old enough to be trusted by its time alone."""
    path = state_store.folder / "state.json"
    until(lambda: time.time_ns() - path.stat().st_mtime_ns > 30_000_000)
    return state_store.state()


def test_all_that_is_remembered_is_there_for_the_next_process(tmp_path: Path) -> None:
    StateStore(tmp_path).write(EVERYTHING)
    assert StateStore(tmp_path).state() == EVERYTHING


def test_on_a_new_machine_the_llms_have_the_gpu_and_nobody_was_revoked(tmp_path: Path) -> None:
    state = StateStore(tmp_path / "not" / "made" / "yet").state()
    assert (state.mode, state.pinned, state.switch, state.saved, state.rebuilt) == (
        "inference",
        False,
        None,
        (),
        None,
    )
    assert state.revoked == {"inference": 0, "generation": 0}


def write_what_is_told(folder: Path, pipe: Connection) -> None:
    state_store = StateStore(folder)
    state_store.state()
    pipe.send("ready")
    while (words := pipe.recv()) is not None:
        for word in words:
            state_store.update(lambda state, word=word: replace(state, rebuilt=word))
        pipe.send("written")


@pytest.mark.parametrize("words", [["one"], ["first", "other", "third"]], ids=["one write", "within a tick"])
def test_what_another_process_wrote_is_seen_at_once_and_for_good(tmp_path: Path, words: list[str]) -> None:
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=write_what_is_told, args=(tmp_path, there), daemon=True)
    child.start()
    state_store = StateStore(tmp_path)
    assert here.recv() == "ready"
    for _ in range(20):
        state_store.update(lambda state: replace(state, rebuilt="mine!"))
        assert settled(state_store).rebuilt == "mine!"
        here.send(words)
        assert here.recv() == "written"
        assert state_store.state().rebuilt == words[-1]
        assert settled(state_store).rebuilt == words[-1]
    here.send(None)
    child.join(WAIT_S)


def test_what_was_read_within_a_tick_of_the_disks_clock_is_not_believed_later(tmp_path: Path) -> None:
    """Two more writes within one tick can leave the same time, size and inode number, for the first's is free again."""
    writer, path = StateStore(tmp_path), tmp_path / "state.json"
    writer.write(State(rebuilt="first"))
    readers = [StateStore(tmp_path), StateStore(tmp_path)]
    assert [reader.state().rebuilt for reader in (writer, *readers)] == ["first"] * 3
    stamp = path.stat()
    path.write_text(path.read_text().replace("first", "third"))  # in place: the same inode
    os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    assert [settled(reader).rebuilt for reader in (writer, *readers)] == ["third"] * 3


def add_one_at_a_time(folder: Path, pipe: Connection) -> None:
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


def test_no_change_of_any_process_is_lost(tmp_path: Path) -> None:
    ends = [SPAWN.Pipe() for _ in range(3)]
    children = [SPAWN.Process(target=add_one_at_a_time, args=(tmp_path, far), daemon=True) for _, far in ends]
    for child in children:
        child.start()
    assert [near.recv() for near, _ in ends] == ["ready"] * 3
    for near, _ in ends:
        near.send("go")
    assert [near.recv() for near, _ in ends] == ["done"] * 3
    assert StateStore(tmp_path).state().revoked["generation"] == 120
    for child in children:
        child.join(WAIT_S)
    assert {path.name for path in tmp_path.iterdir()} <= {"state.json", "saved.json", "mutex.lock"}


def hold_the_mutex_for_ever(folder: Path, pipe: Connection) -> None:
    with StateStore(folder).mutex():
        pipe.send("ready")
        pipe.recv()


def test_a_process_killed_in_the_mutex_holds_nobody_up(tmp_path: Path) -> None:
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=hold_the_mutex_for_ever, args=(tmp_path, there), daemon=True)
    child.start()
    assert here.recv() == "ready"
    child.kill()
    child.join(WAIT_S)
    began = time.monotonic()
    StateStore(tmp_path).update(lambda state: replace(state, rebuilt="mine"))
    assert time.monotonic() - began < 5, "the wait for a living holder is longer"


# --- a file that cannot be used --------------------------------------------------------------------


def document(**changes: Any) -> bytes:
    return json.dumps({**EVERYTHING.as_json(), **changes}).encode()


BROKEN = {
    "empty": b"",
    "torn": document()[:200],
    "no JSON": b"\x00\xff\x00",
    "another thing": b"[]",
    "another version": document(version=2),
    "an unknown mode": document(mode="img"),
    "a word for a truth": document(pinned="no"),
    "a negative time": document(since=-1),
    "something unknown": document(saved_llm_slots=[]),
    "a string for a list": document(saved="chat"),
    "a string in the list": document(saved=["chat"]),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_state_that_cannot_be_used_is_kept_aside_and_told_and_opens_no_mode(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "state.json").write_bytes(content)
    state = StateStore(tmp_path).state()
    (aside,) = tmp_path.glob("*.corrupt")
    assert aside.read_bytes() == content
    assert state.rebuilt is not None
    assert state.rebuilt.startswith(f"{aside.name}: ")
    assert state.under_way is not None
    assert state.under_way.target == "inference"
    assert state.saved == ()
    assert StateStore(tmp_path).state() == state
    assert len(list(tmp_path.glob("*.corrupt"))) == 1


def test_a_string_where_a_list_belongs_is_refused_and_never_split_into_characters(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(document(saved="gemma3"))
    assert StateStore(tmp_path).state().saved == ()


@pytest.mark.parametrize("mode", ["inference", "generation"])
def test_after_a_lost_state_nobody_gets_the_gpu_until_the_engine_was_emptied_and_the_llms_have_it(
    tmp_path: Path, make_arbiter: MakeArbiter, engine: FakeEngine, mode: Any
) -> None:
    engine.claims = True
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu/state.json").write_bytes(document()[:99])
    nobody_acts = make_arbiter(reconciles=False)
    with pytest.raises(GpuBusy), nobody_acts.lease(mode, job="too-early", timeout_s=0.05):
        pytest.fail("a lease was granted, and nobody knew who had the GPU")
    assert nobody_acts.state_store.state().rebuilt

    arbiter = make_arbiter(restore="never")
    state = until(lambda: arbiter.state_store.state() if not arbiter.state_store.state().under_way else None)
    assert state.mode == "inference"
    assert state.rebuilt is None, "what was lost is told until it is mended"
    assert not engine.claims
    with arbiter.lease(mode, job="now", timeout_s=WAIT_S):
        assert arbiter.state_store.state().mode == mode


def test_a_lost_state_lets_nobody_in_even_when_the_first_attempt_to_mend_it_fails(tmp_path: Path) -> None:
    """Somebody's long render: the engine cannot be emptied for a while."""
    stage = Stage(tmp_path)
    stage.engine.claims = True
    (tmp_path / "state.json").write_bytes(b"{")
    stage.engine.renders_until = stage.clock.now + 200
    stage.state_store.state()
    assert stage.resume().error is not None
    for mode in MODES:
        assert not is_open(stage.state_store.state(), mode)
    assert stage.state_store.state().rebuilt
    stage.ticks(200)
    assert stage.state_store.state().rebuilt is None
    assert any("corrupt" in note for note in stage.switch.notes)  # told on, until the next switch
    assert stage.state_store.state().mode == "inference"
    assert not stage.engine.claims


# --- a full disk -----------------------------------------------------------------------------------


class FullDisk(StateStore):
    """Takes nothing while `full`."""

    full = False
    refused = 0

    def write(self, state: State) -> None:
        if self.full:
            self.refused += 1
            raise StoreFull("the disk is full")
        super().write(state)


def work_on_a_disk_that_takes_nothing(folder: Path, pipe: Connection) -> None:
    """A limit on the size of files plays a full disk on any system."""
    stacks, engine = FakeStacks(), FakeEngine()
    arbiter = Arbiter(folder, tenants={"inference": stacks, "generation": engine})
    with arbiter.lease("inference", job="before", timeout_s=1):
        pass
    told: dict[str, Any] = {}
    before = arbiter.state_store.state()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        arbiter.state_store.update(lambda state: replace(state, pinned=True))
        told["write"] = "went well"
    except StoreFull as error:
        told["write"] = error.code
    with arbiter.lease("inference", job="meanwhile", timeout_s=1):
        told["lease"] = True
    arbiter.job_progress.show("a-job", 1, 2)
    arbiter.state_store.note_use(1.0, 2.0)
    told["unchanged"] = arbiter.state_store.state() == before == StateStore(folder).state()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    told["afterwards"] = arbiter.state_store.update(lambda state: replace(state, pinned=True)).pinned
    told["left"] = sorted(path.name for path in folder.rglob("*") if path.is_file())
    pipe.send(told)


def test_a_full_disk_leaves_the_old_state_whole_and_costs_no_lease_of_the_present_mode(
    tmp_path: Path,
) -> None:
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=work_on_a_disk_that_takes_nothing, args=(tmp_path, there), daemon=True)
    child.start()
    assert here.poll(WAIT_S)
    told = here.recv()
    child.join(WAIT_S)
    assert told == {
        "write": "image.store_full",
        "lease": True,
        "unchanged": True,
        "afterwards": True,
        "left": ["mutex.lock", "saved.json", "state.json"],
    }


@pytest.mark.parametrize("op", ["busy", "resident", "release"])
def test_a_disk_that_is_full_in_the_midst_of_a_switch_costs_no_model(tmp_path: Path, op: str) -> None:
    """The same process takes the switch up again once there is room, and knows what it had unloaded."""
    stage = Stage(tmp_path)
    disk, asked = stage.use(FullDisk(tmp_path)), list[str]()

    def fill(called: str) -> None:
        if called == op and not asked:
            asked.append(op)
            disk.full = True

    stage.stacks.before = fill
    with pytest.raises(StoreFull):
        stage.play("generation")
    assert stage.switch.ended is None
    disk.full = False
    assert stage.resume().error is None
    assert stage.state_store.state().mode == "generation"
    assert stage.stacks.loaded == {}
    assert stage.play("inference").failed == ()
    assert sorted(stage.stacks.loaded) == ["chat", "embed"]


def test_the_reconciler_outlives_a_full_disk_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    disk = stage.use(FullDisk(tmp_path))
    disk.full = True
    request = stage.claim("generation", "ticket")
    stage.reconciler.start()
    until(lambda: disk.refused)
    disk.full = False
    until(lambda: stage.state_store.state().mode == "generation")
    stage.reconciler.stop()
    request.end()


# --- the pace --------------------------------------------------------------------------------------


def test_the_pace_follows_the_jobs_of_late_and_survives_a_new_process(tmp_path: Path) -> None:
    state_store = StateStore(tmp_path)
    for number in range(30):
        state_store.note_use(100.0 + number, 2.0)
    assert StateStore(tmp_path).pace().last == 129.0
    assert StateStore(tmp_path).pace().seconds_each == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"last": 1, "unknown": 2}', b'{"la'])
def test_a_pace_that_cannot_be_read_costs_the_memory_of_it_and_nothing_more(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "pace.json").write_bytes(content)
    state_store = StateStore(tmp_path)
    assert state_store.pace().last == 0.0
    state_store.note_use(5.0)
    assert state_store.pace().last == 5.0


def test_every_process_knows_when_the_server_started(tmp_path: Path) -> None:
    assert StateStore(tmp_path).started_at() is None
    StateStore(tmp_path).mark_start()
    assert time.time() - (StateStore(tmp_path).started_at() or 0) < WAIT_S


def test_what_the_llms_had_loaded_outlives_a_lost_state(tmp_path: Path) -> None:
    saved = (Resident("chat", "gemma3", {"config": {"context_length": 8192}}),)
    StateStore(tmp_path).update(lambda state: replace(state, mode="generation", saved=saved))
    (tmp_path / "state.json").write_bytes(b"torn")
    state = StateStore(tmp_path).state()
    assert (state.saved, bool(state.rebuilt)) == (saved, True)
