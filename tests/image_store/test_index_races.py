"""What processes and threads do to the image index at the same moment."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import image_store.database as database
from errors import IndexUnavailable
from image_store import ImageFacts, ImageFilter, ImageIndex, ImageStore
from image_store.retention import ImageEntry


def make_store(folder: Path) -> ImageStore:
    return ImageStore(folder, max_count=10_000, max_bytes=10**9, index=ImageIndex(folder))


def keep(store: ImageStore, prompt: str = "a cat") -> str:
    return store.keep(b"x", "png", ImageFacts(prompt=prompt)).name


def names(store: ImageStore) -> set[str]:
    return {image.name for image in store.page(ImageFilter(), limit=200).images}


def damage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def test_a_thread_that_finds_the_damage_late_leaves_the_new_index(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keep(store)
    damaged = sqlite3.DatabaseError("database disk image is malformed")
    damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    new = ""

    def read() -> None:
        nonlocal new
        with store.index._database.reading():
            (tmp_path / "index.sqlite3").rename(tmp_path / "moved by another thread")
            new = keep(store, "in the new index")
            raise damaged

    with pytest.raises(IndexUnavailable):
        read()
    assert store.find(new).facts.prompt == "in the new index"
    assert list(tmp_path.glob("*.corrupt")) == []


def test_an_index_that_is_made_while_another_process_sets_the_damaged_one_aside_keeps_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_store(tmp_path), make_store(tmp_path)
    keep(first)
    first.index._database.checkpoint()
    damage(tmp_path / "index.sqlite3")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"index.sqlite3{suffix}").unlink()
    kept: list[str] = []
    thread = threading.Thread(target=lambda: kept.append(keep(other, "at the same moment")))
    set_aside = database.set_aside

    def slow_set_aside(path: Path, why: BaseException) -> Path | None:
        moved = set_aside(path, why)
        if not kept and not thread.is_alive():
            thread.start()
            thread.join(1.0)  # it has the new index now, unless it waits for this process
        return moved

    monkeypatch.setattr(database, "set_aside", slow_set_aside)
    names(make_store(tmp_path))
    thread.join(90)
    # In another process, which has nothing of the log in memory
    assert make_store(tmp_path).find(kept[0]).facts.prompt == "at the same moment"


def test_a_file_that_is_replaced_while_it_is_opened_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(make_store(tmp_path))
    path = tmp_path / "index.sqlite3"
    connect = sqlite3.connect

    def connect_to_what_is_replaced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        if not (tmp_path / "old").exists():
            path.rename(tmp_path / "old")
            keep(make_store(tmp_path), "of another process")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to_what_is_replaced)
    store = make_store(tmp_path)
    name = keep(store, "the new one")
    old = (tmp_path / "old").read_bytes()
    assert store.index._database.checkpoint()
    assert (tmp_path / "old").read_bytes() == old
    assert name in names(make_store(tmp_path))


def test_an_index_that_many_threads_find_damaged_at_once_is_set_aside_once(tmp_path: Path) -> None:
    stores = [make_store(tmp_path) for _ in range(6)]
    for store in stores:
        keep(store)
    for round in range(5):
        stores[0].index._database.checkpoint()
        damage(tmp_path / "index.sqlite3")
        stores = [make_store(tmp_path) for _ in range(6)]
        start = threading.Barrier(len(stores))
        kept: list[str] = []

        def keep_at_once(store: ImageStore, start: threading.Barrier = start, kept: list[str] = kept) -> None:
            start.wait()
            kept.append(keep(store, "after the damage"))

        threads = [threading.Thread(target=keep_at_once, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in stores:
            store.index.flush()
        assert names(make_store(tmp_path)) >= set(kept)
        assert len(list(tmp_path.glob("*.corrupt"))) == round + 1
        time.sleep(0.002)  # names of such files differ by milliseconds


def test_a_favourite_that_is_marked_during_a_sweep_stays_one(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    marked, unmarked = keep(store), keep(store)
    store.set_favourite(unmarked, True)
    assert store._beside is not None
    seen = store._beside.favourites()  # by a sweep
    store.set_favourite(marked, True)
    store.set_favourite(unmarked, False)
    store._beside.swept([ImageEntry(marked, 1, 1.0), ImageEntry(unmarked, 1, 2.0)], [], seen)
    assert store.find(marked).is_favourite
    assert not store.find(unmarked).is_favourite
    assert store.index.favourites()[0] == 1
