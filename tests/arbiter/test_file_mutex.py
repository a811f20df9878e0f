"""The lock of the GPU's state, between processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from arbiter.file_mutex import FileMutex
from arbiter.state_store import StateStore


def is_free(path: Path) -> bool:
    """Asked with another library, which older versions of Easel use."""
    lock = FileLock(path, timeout=0, is_singleton=False)
    try:
        with lock:
            return True
    except Timeout:
        return False


def test_it_is_free_when_it_was_released_as_often_as_it_was_acquired(tmp_path: Path) -> None:
    path = tmp_path / "mutex.lock"
    mutex = FileMutex(path)
    for _ in range(2):
        mutex.acquire(1)
    mutex.release()
    assert not is_free(path)
    mutex.release()
    assert is_free(path)


def test_another_one_gets_it_in_time_or_not_at_all(tmp_path: Path) -> None:
    first, second = (FileMutex(tmp_path / "mutex.lock") for _ in range(2))
    first.acquire(1)
    with pytest.raises(TimeoutError):
        second.acquire(0.01)
    first.release()
    second.acquire(1)
    assert not is_free(tmp_path / "mutex.lock")
    second.release()
    assert is_free(tmp_path / "mutex.lock")


def test_one_that_waited_for_a_removed_file_locks_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mutex.lock"
    opened = os.open

    def open_removed(*args: object) -> int:
        """The first time: somebody removes the file between opening and locking."""
        descriptor = opened(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "open", opened)
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_removed)
    mutex = FileMutex(path)
    mutex.acquire(1)
    assert not is_free(path)
    mutex.release()


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    reader, writer = os.pipe()
    with store.mutex():
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the test has looked
            os._exit(0)
        os.close(reader)
    try:
        assert is_free(tmp_path / "mutex.lock")
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_no_file_stays_open(tmp_path: Path) -> None:
    first, second = (FileMutex(tmp_path / "mutex.lock") for _ in range(2))
    before = len(os.listdir("/proc/self/fd"))
    first.acquire(1)
    with pytest.raises(TimeoutError):
        second.acquire(0.01)
    first.release()
    assert len(os.listdir("/proc/self/fd")) == before
