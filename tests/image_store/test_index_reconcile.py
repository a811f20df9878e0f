"""The first start on a folder with many images: their files are read once, by one process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from image_store import ImageFacts, ImageFilter, ImageIndex, ImageStore
from tests.waiting import wait_until

COUNT = 60


class SlowReader:
    """Reads the heads of pictures as a slow disk does, and counts them."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def __call__(self, path: Path) -> ImageFacts:
        self.reads[path.name] += 1
        time.sleep(0.005)
        return ImageFacts(prompt="from the file")


def make_store(folder: Path, read: SlowReader) -> ImageStore:
    return ImageStore(folder, max_count=10_000, max_bytes=10**9, index=ImageIndex(folder, read_facts=read))


def fill(folder: Path) -> set[str]:
    names = {f"{uuid4()}.png" for _ in range(COUNT)}
    for name in names:
        (folder / name).write_bytes(b"x")
    return names


def listed(store: ImageStore) -> set[str]:
    return {image.name for image in store.page(ImageFilter(), limit=200).images}


def test_workers_that_start_at_once_read_each_file_once(tmp_path: Path) -> None:
    names, read = fill(tmp_path), SlowReader()
    stores = [make_store(tmp_path, read) for _ in range(3)]
    for store in stores:
        store.sweep_in_background()
    for store in stores:
        wait_until(lambda store=store: listed(store) == names)  # type: ignore[misc]
        wait_until(lambda store=store: store._beside is not None and not store._beside.must_read)  # type: ignore[misc]
    assert read.reads == Counter(dict.fromkeys(names, 1))


def test_a_worker_lists_and_keeps_while_another_reads_the_files(tmp_path: Path) -> None:
    names, read = fill(tmp_path), SlowReader()
    store = make_store(tmp_path, read)
    with FileLock(tmp_path / ".reconcile.lock"):  # as another process holds it
        store.sweep_in_background()
        kept = store.keep(b"y", "png", ImageFacts(prompt="meanwhile")).name
        assert listed(store) == {kept}
        time.sleep(0.2)
        assert read.reads == {}
    wait_until(lambda: listed(store) == {*names, kept})
    assert kept not in read.reads


def test_what_a_killed_reader_has_left_is_read_by_another(tmp_path: Path) -> None:
    names, read = fill(tmp_path), SlowReader()
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / ".reconcile.lock"):
            held.set()
            may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    store = make_store(tmp_path, read)
    store.sweep_in_background()
    time.sleep(0.2)
    assert listed(store) == set()
    may_end.set()
    holder.join()
    wait_until(lambda: listed(store) == names)


def test_an_index_that_is_lost_while_files_are_read_is_made_again(tmp_path: Path) -> None:
    to_lose: list[Path] = []

    def read(path: Path) -> ImageFacts:
        while to_lose:
            to_lose.pop().unlink()
        return ImageFacts()

    store = ImageStore(
        tmp_path, max_count=10_000, max_bytes=10**9, index=ImageIndex(tmp_path, read_facts=read)
    )
    known = {store.keep(b"x", "png").name for _ in range(3)}
    names = fill(tmp_path) | known
    to_lose.append(tmp_path / "index.sqlite3")
    store._retention.recount()
    store._retention._sweep_if_due()
    assert not to_lose
    assert listed(store) < names
    store.sweep_in_background()
    wait_until(lambda: listed(store) == names)


def test_a_folder_that_cannot_be_swept_is_tried_again_ever_more_rarely(tmp_path: Path) -> None:
    names, store = fill(tmp_path), make_store(tmp_path, SlowReader())
    (tmp_path / ".evict.lock").mkdir()  # as one of another user, it cannot be opened
    assert store._beside is not None

    def look_after() -> float | None:
        must_read, wait_s = store._beside.look_after()  # type: ignore[union-attr]
        if must_read:
            store._retention.recount()
            store._retention._sweep_if_due()
        return wait_s

    waits = [look_after() for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64]
    (tmp_path / ".evict.lock").rmdir()
    look_after()
    assert listed(store) == names
    assert look_after() is None
