"""Several processes that use one folder, some of which are killed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from errors import EaselError, ImageNotFound, StoreFull
from image_store import ImageStore

SPAWN = multiprocessing.get_context("spawn")
TIMEOUT_S = 30.0


def with_checksum(size: int) -> bytes:
    """Random bytes after their checksum, so that `is_complete` can detect partial files."""
    body = os.urandom(size)
    return hashlib.sha256(body).digest() + body


def is_complete(data: bytes) -> bool:
    return hashlib.sha256(data[32:]).digest() == data[:32]


def in_children(work: Callable[[Path, Connection], None], directory: Path, count: int) -> list[object]:
    """Runs `work` in `count` processes at the same time; returns what each sends."""
    ends = [SPAWN.Pipe() for _ in range(count)]
    children = [SPAWN.Process(target=work, args=(directory, far), daemon=True) for _, far in ends]
    for child in children:
        child.start()
    for near, _ in ends:
        assert near.recv() == "ready"
    for near, _ in ends:
        near.send("go")
    results = [near.recv() if near.poll(TIMEOUT_S) else "timeout" for near, _ in ends]
    for child in children:
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
    return results


def keep_and_open_randomly(directory: Path, pipe: Connection) -> None:
    store = ImageStore(directory, max_count=20, max_bytes=40_000, min_age_s=0)
    rng = random.Random(os.getpid())
    pipe.send("ready")
    pipe.recv()
    errors: list[str] = []

    def work() -> None:
        names: list[str] = []
        for _ in range(100):
            try:
                names.append(store.keep(with_checksum(rng.randrange(1000, 3000)), "png").name)
                if not is_complete(store.open(rng.choice(names[-3:])).data):
                    errors.append("incomplete image")
            except ImageNotFound:
                pass  # evicted by then
            except (EaselError, OSError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(errors)


def test_concurrent_processes_never_see_incomplete_images_and_end_within_the_limits(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "not" / "made" / "yet"  # all processes create it at the same time
    assert in_children(keep_and_open_randomly, directory, 3) == [[], [], []]
    left = [path for path in directory.iterdir() if not path.name.startswith(".")]
    assert all(is_complete(path.read_bytes()) for path in left)
    assert 5 < len(left) <= 20
    assert sum(path.stat().st_size for path in left) <= 40_000
    assert {path.name for path in directory.iterdir()} - {path.name for path in left} == {
        ".tally",
        ".evict.lock",
    }


def keep_and_open(directory: Path, pipe: Connection) -> None:
    # Room for half of the images that the others keep: on a busy machine one process may rest that long.
    store = ImageStore(directory, max_count=10_000, max_bytes=3_000_000)
    pipe.send("ready")
    pipe.recv()
    lost = 0
    for _ in range(250):
        name = store.keep(with_checksum(10_000), "png").name
        try:
            store.open(name)
        except ImageNotFound:
            lost += 1
    pipe.send(lost)


def test_no_image_is_evicted_before_its_own_process_has_opened_it(tmp_path: Path) -> None:
    assert in_children(keep_and_open, tmp_path, 3) == [0, 0, 0]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.png")) <= 3_000_000


def keep_forever(directory: Path, pipe: Connection) -> None:
    store = ImageStore(directory, max_count=5, max_bytes=1 << 30, min_age_s=0)
    store.keep(with_checksum(1000), "png")
    pipe.send("ready")
    while True:
        store.keep(with_checksum(8_000_000), "png")


def killed_while_keeping(directory: Path) -> list[Path]:
    """Kills a process as soon as it has started to write; returns the temporary files in the folder."""
    before = set(directory.glob(".*.part"))
    near, far = SPAWN.Pipe()
    child = SPAWN.Process(target=keep_forever, args=(directory, far), daemon=True)
    child.start()
    try:
        assert near.recv() == "ready"
        deadline = time.monotonic() + TIMEOUT_S
        while not set(directory.glob(".*.part")) - before:
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.join(TIMEOUT_S)
    return list(directory.glob(".*.part"))


def test_a_process_killed_while_keeping_leaves_no_incomplete_image(tmp_path: Path) -> None:
    leftovers: list[Path] = []
    kills = 0
    while len(leftovers) < 2 and kills < 10:  # a kill may come just after the rename
        leftovers, kills = killed_while_keeping(tmp_path), kills + 1
    assert leftovers, "no process was killed while it was keeping an image"
    assert all(is_complete(path.read_bytes()) for path in tmp_path.glob("*.png"))

    for leftover in leftovers:
        os.utime(leftover, (time.time() - 3600,) * 2)
    store = ImageStore(tmp_path, max_count=5, max_bytes=1 << 30, min_age_s=0)
    kept = store.keep(with_checksum(10), "png")
    assert is_complete(store.open(kept.name).data)
    assert not list(tmp_path.glob(".*.part"))
    assert len(list(tmp_path.glob("*.png"))) <= 5


def keep_in_a_fork(store: ImageStore, pipe: Connection) -> None:
    pipe.send(store.keep(b"from the child", "png").name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads, from Python 3.12 on
def test_a_store_created_before_a_fork_works_in_parent_and_child(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, max_count=2, max_bytes=1000, min_age_s=0)
    store.keep(b"before", "png")
    near, far = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=keep_in_a_fork, args=(store, far))
    child.start()
    assert near.poll(TIMEOUT_S)
    name = near.recv()
    child.join(TIMEOUT_S)
    assert store.open(name).data == b"from the child"
    own_name = store.keep(b"from the parent", "png").name
    assert {path.name for path in tmp_path.glob("*.png")} == {name, own_name}


def keep_beyond_the_file_size_limit(directory: Path, pipe: Connection) -> None:
    """Writes a file beyond RLIMIT_FSIZE, which fails in the middle of the file as on a full disk."""
    store = ImageStore(directory, max_count=10, max_bytes=1 << 30)
    small = store.keep(with_checksum(1000), "png").name
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    pipe.send("ready")
    pipe.recv()
    try:
        store.keep(with_checksum(200_000), "png")
    except StoreFull as error:
        pipe.send([error.message, is_complete(store.open(small).data), store.keep(b"fits", "png").size_bytes])


def test_a_partly_written_file_is_store_full_and_is_removed(tmp_path: Path) -> None:
    (result,) = in_children(keep_beyond_the_file_size_limit, tmp_path, 1)
    assert result == ["The disk of the image store is full: File too large.", True, 4]
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert not list(tmp_path.glob(".*.part"))
