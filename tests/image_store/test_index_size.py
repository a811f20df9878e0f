"""How much of the disk the image index takes, and what is left in it of deleted images."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from image_store import ImageFacts, ImageFilter, ImageIndex, ImageStore
from image_store.index_schema import MIGRATIONS

LONGEST = 32_000
CHANCE = random.Random(18)


def make_store(folder: Path, max_bytes: int = 10**9) -> ImageStore:
    return ImageStore(folder, max_count=10_000, max_bytes=max_bytes, min_age_s=3600, index=ImageIndex(folder))


def chinese(length: int) -> str:
    """Nearly every three characters of it are new to a text index."""
    return "".join(chr(CHANCE.randint(0x4E00, 0x9FFF)) for _ in range(length))


def names(store: ImageStore, text: str) -> list[str]:
    return [image.name for image in store.page(ImageFilter(text=text), limit=200).images]


def used_bytes(folder: Path) -> int:
    """Of the index, without free pages."""
    with sqlite3.connect(folder / "index.sqlite3") as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    connection.close()
    return int((pages - free) * size)


def check_search(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO prompt_search (prompt_search, rank) VALUES ('integrity-check', 1)")
    connection.close()


def test_a_long_prompt_is_stored_whole_and_searched_in_its_first_4000_characters(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    prompt = ("lighthouse " + "x " * 1900).ljust(3990) + " harbour" + " y" * 10_000 + " gull"
    name = store.keep(b"x", "png", ImageFacts(prompt=prompt, settings={"prompt": prompt})).name
    found = store.find(name).facts
    assert found.prompt == prompt
    assert found.settings == {"prompt": prompt}
    assert names(store, "lighthouse") == [name]
    assert names(store, "harb") == [name]
    assert names(store, "gull") == []


def test_the_longest_prompts_take_twice_their_own_size_at_most(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for _ in range(10):
        prompt = chinese(LONGEST)
        store.keep(b"x", "png", ImageFacts(prompt=prompt, settings={"prompt": prompt}))
    assert used_bytes(tmp_path) < 10 * 2 * 3 * LONGEST + 100_000


def test_what_long_prompts_take_counts_for_the_limit_of_the_store(tmp_path: Path) -> None:
    limit = 2_000_000
    store = make_store(tmp_path, limit)
    for number in range(30):
        store.keep(b"x" * 1000, "png", ImageFacts(prompt=f"number{number} {chinese(LONGEST - 10)}"))
    assert store._beside is not None
    store._beside.look_after()  # what the thread of a worker does after each eviction
    kept = sum(path.stat().st_size for path in tmp_path.glob("*.png"))
    assert 5_000 < kept < 30_000
    assert used_bytes(tmp_path) + kept <= limit
    assert len(names(store, "number29")) == 1
    totals = store.totals()
    assert totals is not None
    assert used_bytes(tmp_path) <= totals[1] + 200_000
    assert totals[1] <= limit


def test_prompts_of_an_ordinary_length_count_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for _ in range(3):
        store.keep(
            b"x" * 1000, "png", ImageFacts(prompt="a cat on a window sill, " * 4, settings={"steps": 4})
        )
    assert store.totals() == (3, 3000)


def test_fields_of_a_request_that_were_ignored_count_as_long_prompts_do(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    ignored = tuple({"field": "x" * 200, "asked": "y" * 200, "why": "unknown"} for _ in range(100))
    name = store.keep(b"x", "png", ImageFacts(prompt="a cat", ignored=ignored)).name
    assert store.index.sizes()[name] > 100 * 400 - 4096


def test_favourites_with_long_prompts_leave_room_for_their_texts(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name = store.keep(b"x", "png", ImageFacts(prompt=chinese(LONGEST))).name
    store.set_favourite(name, True)
    assert store.index.favourites()[1] > 3 * LONGEST


def test_the_file_is_made_smaller_when_most_of_it_is_empty(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    kept = [store.keep(b"x", "png", ImageFacts(prompt=chinese(LONGEST))).name for _ in range(40)]
    last = store.keep(b"x", "png", ImageFacts(prompt="a lighthouse")).name
    store.index._database.checkpoint()
    before = (tmp_path / "index.sqlite3").stat().st_size
    store.index.remove(kept)
    store.index.scrub()
    assert sum(path.stat().st_size for path in tmp_path.glob("index.sqlite3*")) < before / 4
    assert names(store, "lighthouse") == [last]
    check_search(tmp_path)


def old_index(folder: Path, prompts: dict[str, str]) -> None:
    """An index of version 1 with images of these prompts."""
    with sqlite3.connect(folder / "index.sqlite3") as connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute(
            "CREATE VIRTUAL TABLE prompt_search USING "
            "fts5(words, content='prompts', content_rowid='id', tokenize='trigram case_sensitive 1')"
        )
        for id, (name, prompt) in enumerate(prompts.items(), start=1):
            connection.execute(
                "INSERT INTO images (id, name, place, created, size_bytes, owner, favourite) "
                "VALUES (?, ?, ?, ?, 1, '', 0)",
                (id, name, float(id), float(id)),
            )
            connection.execute("INSERT INTO texts VALUES (?, ?, NULL, '{}')", (id, prompt))
            connection.execute("INSERT INTO prompts VALUES (?, ?)", (id, prompt))
            connection.execute("INSERT INTO prompt_search (rowid, words) VALUES (?, ?)", (id, prompt))
        connection.execute("UPDATE facts SET has_search = 1")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_an_index_of_the_first_version_is_made_smaller_and_loses_nothing(tmp_path: Path) -> None:
    long, short = "10000000-0000-4000-8000-000000000001.png", "10000000-0000-4000-8000-000000000002.png"
    prompts = {long: f"lighthouse {chinese(LONGEST)} gull", short: "a gull"}
    for name in prompts:
        (tmp_path / name).write_bytes(b"x")
    old_index(tmp_path, prompts)
    before = used_bytes(tmp_path)
    store = make_store(tmp_path)
    assert store.find(long).facts.prompt == prompts[long]
    assert names(store, "lighthouse") == [long]
    assert names(store, "gull") == [short]
    assert store.index.sizes().keys() == {long}
    assert abs(store.index.sizes()[long] - store.index.bytes_for(store.find(long).facts)) <= 4096
    check_search(tmp_path)
    assert used_bytes(tmp_path) < before / 2
    store.delete(long)
    check_search(tmp_path)


@pytest.mark.parametrize("is_known", [True, False], ids=["after a restart", "of another process"])
def test_what_a_process_that_ended_has_left_of_deleted_texts_is_removed_later(
    tmp_path: Path, is_known: bool
) -> None:
    first = make_store(tmp_path)
    for number in range(100):
        first.keep(b"x", "png", ImageFacts(prompt=f"filler {number} of the text index"))
    other = None if is_known else make_store(tmp_path)
    name = first.keep(b"x", "png", ImageFacts(prompt="zyxomma petiolatum")).name
    (tmp_path / name).unlink()
    first.index.remove([name])  # and it is killed before it scrubs
    store = other or make_store(tmp_path)
    store._retention.recount()
    store._retention._sweep_if_due()
    assert store._beside is not None
    store._beside.look_after()
    for path in tmp_path.glob("index.sqlite3*"):
        content = path.read_bytes()
        assert not any(trace in content for trace in (b"zyxomma", b"petiolatum", b"zyx", b"yxo"))
    store._beside.look_after()
    assert not make_store(tmp_path).index.is_scrub_due
