"""The image index: pages, search, changes, favourites, and agreement with the folder."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import uuid4

import pytest

from errors import CursorInvalid, FavouritesFull, ImageNotFound, IndexUnavailable
from image_store import Cursor, ImageFacts, ImageFilter, ImageIndex, ImageStore
from image_store.index import MAX_CHANGES, MAX_CHANGES_AT_ONCE, MAX_PAGE_CHARS
from image_store.index_schema import MIGRATIONS

HOUR = 3600.0


class Clock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def make_store(
    folder: Path,
    *,
    max_count: int = 10_000,
    max_bytes: int = 10**9,
    min_age_s: float = HOUR,
    keeps_prompts: bool = True,
    clock: Callable[[], float] | None = None,
    facts_of_file: ImageFacts = ImageFacts(),  # noqa: B008 - a frozen value
) -> ImageStore:
    index = ImageIndex(folder, keeps_prompts=keeps_prompts, read_facts=lambda path: facts_of_file)
    return ImageStore(
        folder,
        max_count=max_count,
        max_bytes=max_bytes,
        min_age_s=min_age_s,
        clock=clock or Clock(),
        index=index,
        make_thumbnail=lambda data: b"small " + data[:4],
    )


def keep(store: ImageStore, prompt: str = "a cat", *, owner: str = "", data: bytes = b"picture") -> str:
    return store.keep(data, "png", ImageFacts(prompt=prompt, model="m", task="generate", owner=owner)).name


def names(store: ImageStore, **selected: object) -> list[str]:
    return [image.name for image in store.page(ImageFilter(**selected), limit=200).images]  # type: ignore[arg-type]


# --- facts and pages ---------------------------------------------------------------------------------------------------


def test_everything_that_is_known_of_an_image_is_returned_as_it_was_given(tmp_path: Path) -> None:
    facts = ImageFacts(
        *(512, 256, "sdxl", "edit", "a cat", "a dog"),
        seed=2**64 - 1,
        settings={
            "prompt": "a cat",
            "steps": 4,
            "negative_prompt": "a dog",
            "lora": [{"name": "x", "strength": 0.5}],
        },
        adjusted=({"field": "size", "asked": "1x1", "why": "too small"},),
        ignored=(),
        request_id="r-1",
        index=3,
        sources=("one.png", "two.png"),
        owner="somebody",
    )
    store = make_store(tmp_path)
    kept = store.keep(b"picture", "webp", facts)
    record = store.find(kept.name)
    assert record.facts == facts
    assert (record.size_bytes, record.is_favourite) == (7, False)
    assert store.find(kept.name) == make_store(tmp_path).find(kept.name)


def test_without_keep_prompts_no_prompt_is_in_any_file(tmp_path: Path) -> None:
    facts = ImageFacts(
        prompt="secretly drawn",
        negative_prompt="hidden wish",
        settings={
            "prompt": "secretly drawn",
            "negative_prompt": "hidden wish",
            "prompt_strength": 0.5,
            "steps": 4,
        },
        ignored=(
            {"field": "prompt", "asked": "hidden wish", "why": "variations have no prompt"},
            {"field": "instructions", "asked": "hidden wish", "why": "no language model runs"},
            {"field": "top_p", "asked": 0.5, "why": "no language model runs"},
        ),
    )
    store = make_store(tmp_path, keeps_prompts=False)
    found = store.find(store.keep(b"picture", "png", facts).name).facts
    assert (found.prompt, found.negative_prompt) == (None, None)
    assert found.settings == {"prompt_strength": 0.5, "steps": 4}
    assert found.ignored == (
        {"field": "prompt", "asked": None, "why": "variations have no prompt"},
        {"field": "instructions", "asked": None, "why": "no language model runs"},
        {"field": "top_p", "asked": 0.5, "why": "no language model runs"},
    )
    for path in tmp_path.iterdir():
        assert not any(word in path.read_bytes() for word in (b"secretly", b"hidden"))
    assert names(store, text="secretly") == []


def test_pages_are_newest_first_and_complete_while_images_arrive_and_go(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    kept = [keep(store) for _ in range(25)]
    seen: list[str] = []
    cursor: Cursor | None = None
    for step in range(5):
        page = store.page(ImageFilter(), limit=5, after=cursor)
        seen += [image.name for image in page.images]
        cursor = page.next
        keep(store, "arrived meanwhile")
        if step == 1:
            store.delete(kept[2])
            store.delete(seen[-1])  # the one that the cursor points to
    assert [name for name in seen if name != kept[2]] == [name for name in reversed(kept) if name != kept[2]]
    assert len(store.page(ImageFilter(), limit=200).images) == store.page(ImageFilter(), limit=1).total == 28
    assert store.page(ImageFilter(), limit=28).next is None
    assert store.page(ImageFilter(), limit=27).next is not None


@pytest.mark.parametrize("text", ["", "lighthouse"])
def test_a_page_with_very_long_prompts_has_fewer_images_and_none_is_skipped(
    tmp_path: Path, text: str
) -> None:
    store = make_store(tmp_path)
    long = "lighthouse " * (MAX_PAGE_CHARS // 28)
    kept = [keep(store, long) for _ in range(5)] + [keep(store, long * 3), keep(store, "a small lighthouse")]
    sizes, seen = list[int](), list[str]()
    cursor: Cursor | None = None
    while not sizes or cursor is not None:
        page = store.page(ImageFilter(text=text), limit=200, after=cursor)
        sizes.append(len(page.images))
        seen += [image.name for image in page.images]
        cursor = page.next
        assert page.total == 7
    assert seen == kept[::-1]
    assert sizes == [1, 1, 2, 2, 1]


def test_images_stay_in_the_order_of_arrival_after_the_clock_was_set_back(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, clock=clock)
    kept = [keep(store)]
    clock.now -= 1000 * HOUR
    kept += [keep(store), keep(store)]
    assert names(store) == kept[::-1]
    assert store.find(kept[2]).created < store.find(kept[0]).created


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "MTc5 IDM",
        "bmFuIDE",
        "aW5mIDE",
        "MSAw",
        "MSAtMQ",
        "MSAxIDE",
        "MSA5OTk5OTk5OTk5OTk5OTk5OTk5OTk5",
        "\u0661",
        "a" * 9999,
    ],
)
def test_a_cursor_that_the_index_did_not_make_is_refused(text: str) -> None:
    with pytest.raises(CursorInvalid):
        Cursor.parse(text)


def test_a_cursor_is_read_as_it_was_written() -> None:
    cursor = Cursor(1795798353.8827825, 2**62)
    assert Cursor.parse(str(cursor)) == cursor


def test_filters_are_combined(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, clock=clock)
    mine = keep(store, "a red cat", owner="me")
    clock.now += 100
    middle = clock.now
    later = keep(store, "a red dog", owner="me")
    keep(store, "a red cat", owner="you")
    edit = store.keep(b"x", "png", ImageFacts(model="other", task="edit", owner="me")).name
    store.set_favourite(later, True)
    assert set(names(store, owner="me")) == {mine, later, edit}
    assert names(store, owner="me", text="cat") == [mine]
    assert names(store, owner="me", is_favourite=True) == [later]
    assert names(store, owner="me", is_favourite=False, model="m") == [mine]
    assert names(store, task="edit") == [edit]
    assert names(store, until=middle) == [mine]
    assert names(store, since=middle, text="dog") == [later]
    assert store.page(ImageFilter(owner="me", text="red"), limit=1).total == 2


# --- search ------------------------------------------------------------------------------------------------------------

PROMPTS = {
    "latin": 'A Lighthouse "at dusk", Ünïcode straße (50% off) NEAR the sea_side',
    "chinese": "一只猫坐在窗台上，水彩画",
    "japanese": "夕暮れの灯台とカモメ",
    "arabic": "قطة على السطح",
    "hebrew": "חתול על הגג \u200fבלילה",
    "wide": "ＦＵＬＬ　ＷＩＤＴＨ ｶﾀｶﾅ",
}


@pytest.fixture(params=["text index", "no text index"])
def searched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    if request.param == "no text index":
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))
    store = make_store(tmp_path)
    for which, prompt in PROMPTS.items():
        store.keep(b"x", "png", ImageFacts(prompt=prompt, model=which))
    return store


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lighthouse", {"latin"}),
        ("LIGHT dusk", {"latin"}),
        ("ghtho", {"latin"}),
        ("strasse", {"latin"}),
        ("u\u0308ni\u0308code", {"latin"}),
        ('"at dusk"', {"latin"}),
        ('"dusk at"', set()),
        ('dusk",', {"latin"}),
        ("dusk*", set()),
        ("NEAR(", set()),
        ("near", {"latin"}),
        ("light OR zebra", set()),
        ("50%", {"latin"}),
        ("sea_side", {"latin"}),
        ("sea%side", set()),
        ("'; DROP TABLE images; --", set()),
        ("猫", {"chinese"}),
        ("窗台", {"chinese"}),
        ("水彩画", {"chinese"}),
        ("猫 水彩", {"chinese"}),
        ("灯台", {"japanese"}),
        ("カモメ", {"japanese"}),
        ("قطة", {"arabic"}),
        ("السطح قطة", {"arabic"}),
        ("חתול", {"hebrew"}),
        ("\u202bהגג בלילה\u202c", {"hebrew"}),
        ("full width", {"wide"}),
        ("カタカナ", {"wide"}),
        ("   ", set(PROMPTS)),
        ("\u200f", set()),
        ("\0", set()),
        ("\ud800", set()),
        (" ".join(["dusk"] * 400), {"latin"}),
    ],
)
def test_prompts_are_found_by_words_in_any_script_and_no_character_is_special(
    searched: ImageStore, query: str, found: set[str]
) -> None:
    images = searched.page(ImageFilter(text=query), limit=200)
    assert {image.facts.model for image in images.images} == found
    assert images.total == len(found)


def test_a_search_has_pages(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    kept = [keep(store, f"cat number {number}", owner=str(number % 2)) for number in range(9)]
    for owner, wanted in ((None, kept[::-1]), ("1", kept[7::-2])):
        seen: list[str] = []
        cursor = None
        while True:
            page = store.page(ImageFilter(text="cat", owner=owner), limit=2, after=cursor)
            assert page.total == len(wanted)
            seen += [image.name for image in page.images]
            cursor = page.next
            if cursor is None:
                break
        assert seen == wanted


def test_a_text_index_that_was_not_kept_up_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_store(tmp_path)
    gone, kept = keep(first, "a lighthouse"), keep(first, "a forest")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))
        other = make_store(tmp_path)
        added = keep(other, "a lighthouse too")
        other.delete(gone)
    store = make_store(tmp_path)
    assert names(store, text="lighthouse") == [added]
    store.delete(kept)
    assert names(store, text="forest") == []


# --- deletion and favourites -------------------------------------------------------------------------------------------


def test_a_deleted_image_leaves_no_file_and_no_text(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for number in range(300):
        keep(store, f"filler {number} of the text index")
    name = keep(store, "zyxomma petiolatum")
    store.thumbnail(name)
    store.set_favourite(name, True)
    store.delete(name)
    with pytest.raises(ImageNotFound):
        store.find(name)
    with pytest.raises(ImageNotFound):
        store.open(name)
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(name)] == []
    for path in tmp_path.glob("index.sqlite3*"):
        content = path.read_bytes()
        for trace in (b"zyxomma", b"petiolatum", b"zyx", b"yxo"):
            assert trace not in content
    with pytest.raises(ImageNotFound):
        store.delete(name)


def test_a_deleted_text_leaves_a_log_file_that_was_being_read_later(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name = keep(store, "secretly drawn")
    reader = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM texts").fetchone() == (1,)
    store.delete(name)
    assert store.index.is_scrub_due
    reader.rollback()
    reader.close()
    store.index.scrub()
    assert not store.index.is_scrub_due
    for path in tmp_path.glob("index.sqlite3*"):
        assert b"secretly" not in path.read_bytes()


def test_favourites_are_not_evicted_by_count_size_or_a_full_disk(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path, max_count=4, max_bytes=1000, min_age_s=0, clock=clock)
    marked = [keep(store, data=b"x" * 100) for _ in range(2)]
    for name in marked:
        store.set_favourite(name, True)
        clock.now += 10
    for _ in range(20):
        latest = keep(store, data=b"x" * 200)
        clock.now += 10
    assert set(marked) < set(names(store))
    assert latest in names(store)
    assert len(names(store)) <= 4
    store._retention.free_space(10**6)  # what `keep` does when the disk is full
    assert set(names(store)) == set(marked)
    store.set_favourite(marked[0], False)
    store._retention.free_space(10**6)
    assert names(store) == [marked[1]]


def test_favourites_alone_do_not_exceed_the_limits(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_count=3, max_bytes=1000)
    kept = [keep(store, data=b"x" * 450) for _ in range(2)]
    for name in kept:
        store.set_favourite(name, True)
    with pytest.raises(FavouritesFull) as caught:
        keep(store, data=b"x" * 450)
    assert caught.value.details == {
        "favourites": 2,
        "favourite_bytes": 900,
        "max_count": 3,
        "max_bytes": 1000,
    }
    small = [keep(store, data=b"x") for _ in range(2)]
    store.set_favourite(small[1], True)
    with pytest.raises(FavouritesFull):
        store.set_favourite(small[0], True)
    assert not store.find(small[0]).is_favourite
    with pytest.raises(FavouritesFull):
        keep(store, data=b"x")
    store.delete(kept[0])
    assert store.find(keep(store, data=b"x" * 450))


def test_favourites_survive_a_lost_index(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_count=2, min_age_s=0)
    marked = keep(store)
    store.set_favourite(marked, True)
    for path in tmp_path.glob("index.sqlite3*"):
        path.unlink()
    for _ in range(5):
        keep(store)
    assert store.find(marked).is_favourite
    assert names(store, is_favourite=True) == [marked]


def test_a_thumbnail_goes_with_its_image(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_count=1, min_age_s=0)
    name = keep(store)
    assert store.thumbnail(name).data == b"small pict"
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == [f"{name}.webp"]
    keep(store)
    keep(store)
    assert list((tmp_path / "thumbnails").iterdir()) == []
    with pytest.raises(ImageNotFound):
        store.thumbnail(name)


def test_a_thumbnail_is_no_use_of_the_image(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name = keep(store)
    before = (tmp_path / name).stat().st_mtime
    store.thumbnail(name)
    assert (tmp_path / name).stat().st_mtime == before


def test_an_identical_picture_is_recognised_only_among_those_of_its_owner(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name = keep(store, owner="me", data=b"the picture")
    keep(store, owner="me", data=b"Another one")
    assert store.same_as(b"the picture", "me") == name
    assert store.same_as(b"the picture", "you") is None
    assert store.same_as(b"the picturE", "me") is None


# --- changes -----------------------------------------------------------------------------------------------------------


def test_changes_are_numbered_in_order_and_seen_by_their_owner(tmp_path: Path) -> None:
    store, other = make_store(tmp_path), make_store(tmp_path)
    epoch, start = store.index.position()
    mine, yours = keep(store, owner="me"), keep(other, owner="you")
    store.set_favourite(mine, True)
    store.set_favourite(mine, True)  # no change
    other.delete(mine)
    assert other.index.position() == (epoch, start + 4)
    changes = store.index.changes_after(epoch, start, None)
    assert changes is not None
    assert [(change.kind, change.name) for change in changes] == [
        ("added", mine),
        ("added", yours),
        ("changed", mine),
        ("removed", mine),
    ]
    assert [change.number for change in changes] == [start + 1, start + 2, start + 3, start + 4]
    own = other.index.changes_after(epoch, start + 1, "me")
    assert own is not None
    assert [change.kind for change in own] == ["changed", "removed"]
    assert store.index.changes_after(epoch, start + 4, None) == []


def test_positions_of_another_index_of_the_future_or_long_ago_are_not_known(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keep(store)
    epoch, number = store.index.position()
    assert store.index.changes_after("another", number, None) is None
    assert store.index.changes_after(epoch, number + 1, None) is None
    name = keep(store)
    for _ in range(MAX_CHANGES_AT_ONCE // 2 + 1):
        store.set_favourite(name, True)
        store.set_favourite(name, False)
    assert store.index.changes_after(epoch, number, None) is None


def test_old_changes_are_forgotten(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keep(store)
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.executemany(
            "INSERT INTO changes (kind, name, owner) VALUES ('added', ?, '')",
            [(str(number),) for number in range(MAX_CHANGES + 50)],
        )
    connection.close()
    keep(store)
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM changes").fetchone() == (MAX_CHANGES,)
    connection.close()


# --- agreement with the folder -----------------------------------------------------------------------------------------


def sweep(store: ImageStore) -> None:
    store._retention.recount()
    store._retention._sweep_if_due()


def test_files_that_appear_or_vanish_are_found_by_a_sweep(tmp_path: Path) -> None:
    store = make_store(tmp_path, facts_of_file=ImageFacts(prompt="from the file", width=3))
    gone, kept = keep(store), keep(store)
    (tmp_path / gone).unlink()
    (tmp_path / "notes.txt").write_text("not an image")
    appeared = f"{uuid4()}.jpg"
    (tmp_path / appeared).write_bytes(b"copied here")
    sweep(store)
    assert set(names(store)) == {kept, appeared}
    found = store.find(appeared)
    assert (found.facts.prompt, found.facts.width, found.facts.model, found.size_bytes) == (
        "from the file",
        3,
        None,
        11,
    )
    assert store.find(kept).facts.model == "m"


def test_an_image_whose_file_vanished_is_forgotten_when_it_is_opened(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name = keep(store)
    (tmp_path / name).unlink()
    assert names(store) == [name]
    with pytest.raises(ImageNotFound):
        store.open(name)
    assert names(store) == []


def test_evicted_images_leave_the_index(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_count=3, min_age_s=0)
    kept = [keep(store) for _ in range(10)]
    assert names(store) == kept[:-4:-1]


def test_what_lies_beside_images_that_vanished_is_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    name, other = keep(store), keep(store)
    for each in (name, other):
        store.thumbnail(each)
        store.set_favourite(each, True)
    (tmp_path / name).unlink()
    sweep(store)
    assert [path.name for path in (tmp_path / "favourites").iterdir()] == [other]
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == [f"{other}.webp"]


# --- damage ------------------------------------------------------------------------------------------------------------


def damage_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def damage_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def damage_removed(path: Path) -> None:
    path.unlink()


def damage_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def damage_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [damage_garbage, damage_folder, damage_removed, damage_link, damage_inside]
)
@pytest.mark.parametrize("is_open", [True, False], ids=["in use", "before the start"])
def test_an_index_that_is_damaged_or_lost_is_made_again_from_the_files(
    tmp_path: Path, damage: object, is_open: bool
) -> None:
    from_file = ImageFacts(prompt="from the file")
    store = make_store(tmp_path, facts_of_file=from_file)
    kept = [keep(store) for _ in range(5)]
    store.set_favourite(kept[0], True)
    epoch, number = store.index.position()
    store.index._database.checkpoint()
    if not is_open:
        store = make_store(tmp_path, facts_of_file=from_file)
    damage(tmp_path / "index.sqlite3")  # type: ignore[operator]
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"index.sqlite3{suffix}").unlink(missing_ok=True)
    new = keep(store, "the new one")
    # Who had the file open may still have all of it in memory; who opens it now finds the damage.
    other = make_store(tmp_path, facts_of_file=from_file)
    newest = keep(other, "the newest one")
    sweep(other)
    for each in (other, store):
        assert set(names(each)) == {*kept, new, newest}
        assert names(each, is_favourite=True) == [kept[0]]
        assert each.find(newest).facts.prompt == "the newest one"
        assert each.find(kept[1]).facts == from_file
        assert each.index.changes_after(epoch, number, None) is None
    assert [store.open(name).data for name in kept] == [b"picture"] * 5


def test_an_index_of_a_newer_version_is_refused_and_pictures_are_kept_all_the_same(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keep(store)
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    store = make_store(tmp_path)
    name = keep(store)
    assert store.open(name).data == b"picture"
    with pytest.raises(IndexUnavailable, match="newer Easel"):
        store.page(ImageFilter(), limit=5)
    assert list(tmp_path.glob("*.corrupt")) == []


def test_a_picture_is_kept_while_the_index_is_locked_and_listed_later(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    keep(store)
    other = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started_at = time.monotonic()
    name = keep(store, "while it is locked")
    assert time.monotonic() - started_at < 10
    assert store.open(name).data == b"picture"
    assert name not in names(store)
    other.rollback()
    other.close()
    assert store.index.has_pending
    store.index.flush()
    assert store.find(name).facts.prompt == "while it is locked"
    assert not store.index.has_pending


def test_an_image_that_a_sweep_has_found_first_is_new_for_its_owner(tmp_path: Path) -> None:
    store, other = make_store(tmp_path), make_store(tmp_path)
    keep(store)
    epoch, number = store.index.position()
    lock = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    name = keep(store, owner="me")
    lock.rollback()
    lock.close()
    sweep(other)
    assert store.find(name).facts.owner == ""
    store.index.flush()
    changes = store.index.changes_after(epoch, number, "me")
    assert changes is not None
    assert [(change.kind, change.name) for change in changes] == [("added", name)]


def test_the_index_is_private_to_the_user(tmp_path: Path) -> None:
    store = make_store(tmp_path / "images")
    store.thumbnail(keep(store))
    store.set_favourite(names(store)[0], True)
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "images").rglob("*")}
    assert "index.sqlite3-wal" in modes
    assert set(modes.values()) == {0}


# --- several processes -------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")
TIMEOUT_S = 120.0


def keep_many(folder: Path, pipe: Connection) -> None:
    store = make_store(folder, clock=time.time)  # other processes compare the times of files with it
    pipe.send("ready")
    pipe.recv()
    made: list[str] = []
    for number in range(100):
        made.append(keep(store, f"picture {number}", owner=str(os.getpid())))
        if number % 10 == 3:
            store.delete(made.pop(0))
        if number % 10 == 7:
            store.set_favourite(made[-1], True)
    pipe.send((os.getpid(), made, store.index.has_pending))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    ends = [SPAWN.Pipe() for _ in range(3)]
    children = [SPAWN.Process(target=keep_many, args=(tmp_path, far), daemon=True) for _, far in ends]
    for child in children:
        child.start()
    for near, _ in ends:
        assert near.recv() == "ready"
    for near, _ in ends:
        near.send("go")
    results = []
    for near, _ in ends:
        assert near.poll(TIMEOUT_S)
        results.append(near.recv())
    for child in children:
        child.join(TIMEOUT_S)
    store = make_store(tmp_path, clock=time.time)
    sweep(store)  # finds those that were kept while another process wrote for long
    listed = {image.name: image for image in _all(store)}
    assert set(listed) == {name for _, made, _ in results for name in made}
    for pid, made, had_pending in results:
        if not had_pending:
            assert {listed[name].facts.owner for name in made} == {str(pid)}
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO prompt_search (prompt_search, rank) VALUES ('integrity-check', 1)")
    connection.close()


def _all(store: ImageStore) -> list:  # type: ignore[type-arg]
    found = []
    cursor = None
    while True:
        page = store.page(ImageFilter(), limit=200, after=cursor)
        found += page.images
        cursor = page.next
        if cursor is None:
            return found


def keep_until_killed(folder: Path, pipe: Connection) -> None:
    store = make_store(folder)
    number = 0
    while True:
        pipe.send(keep(store, f"picture {number}"))
        number += 1


def test_an_index_whose_writer_is_killed_is_whole(tmp_path: Path) -> None:
    near, far = SPAWN.Pipe()
    reported: list[str] = []
    for round in range(3):
        child = SPAWN.Process(target=keep_until_killed, args=(tmp_path, far), daemon=True)
        child.start()
        wanted = len(reported) + 20 + round
        while len(reported) < wanted:
            assert near.poll(TIMEOUT_S)
            reported.append(near.recv())
        child.kill()
        child.join(TIMEOUT_S)
        while near.poll(0):
            reported.append(near.recv())
    store = make_store(tmp_path)
    assert set(reported) <= {image.name for image in _all(store)}
    sweep(store)
    assert {image.name for image in _all(store)} == {path.name for path in tmp_path.glob("*.png")}
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO prompt_search (prompt_search, rank) VALUES ('integrity-check', 1)")
    connection.close()


def test_an_index_that_was_open_before_a_fork_is_used_by_parent_and_child(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = keep(store, "before")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            name = keep(store, "child")
            os.write(writer, name.encode())
        finally:
            os._exit(0)
    parent = keep(store, "parent")
    os.waitpid(pid, 0)
    child = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert set(names(store)) == {before, parent, child}
    assert names(store, text="child") == [child]
