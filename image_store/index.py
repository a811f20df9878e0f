"""The index of the stored images: an SQLite file with what made each image, whose it is, and what changed last.

The files stay the truth. A lost or damaged index is made again from them, and whatever adds or removes files without it is
found by `reconcile`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from errors import EaselError, IndexUnavailable
from image_store.database import Database
from image_store.index_schema import MIGRATIONS, can_search, has_search, prepare_search
from image_store.records import (
    Change,
    ChangeKind,
    Cursor,
    ImageFacts,
    ImageFilter,
    ImagePage,
    ImageRecord,
    Position,
    index_bytes,
)
from image_store.search_text import GRAM, match_expression, searched, words_of

log = logging.getLogger("easel.images")
T = TypeVar("T")

INDEX_NAME = "index.sqlite3"
MAX_CHANGES = 10_000
"""Older changes are forgotten"""
MAX_CHANGES_AT_ONCE = 1000
"""Who missed more reads the list again"""
MAX_PAGE_CHARS = 1_000_000
"""Of the texts of a page: 200 images with the longest prompts would have hundreds of megabytes as JSON"""
MAX_PAGE_CPU_S = 2.0
"""A search of 10,000 images takes some 20 ms"""
_KEEP_TIMEOUT_S = 0.25
"""How long `add` waits for other writers: a picture's answer waits for it"""
_WRITE_TIMEOUT_S = 5.0
_MAX_PENDING = 2000
_BATCH = 200
"""Images per transaction, so that other writers wait only a moment"""
_MERGE_PAGES = 200

ReadFacts = Callable[[Path], ImageFacts]
"""What a picture's file itself says; unknown facts are None. Raises OSError"""


@dataclass(frozen=True)
class _NewImage:
    name: str
    size_bytes: int
    created: float
    facts: ImageFacts
    words: str
    """What is searched; made before the transaction, for which others wait"""
    is_favourite: bool = False


class ImageIndex:
    """The index of the images in `folder`. Safe for many threads and processes, also after a fork. Opened at its first use.

    Every method raises IndexUnavailable unless it says otherwise. `keeps_prompts`: false: prompts are not stored.
    `read_facts`: for images whose record was lost. `max_page_cpu_s`: see `page`."""

    def __init__(
        self,
        folder: Path,
        *,
        keeps_prompts: bool = True,
        read_facts: ReadFacts = lambda path: ImageFacts(),
        max_page_cpu_s: float = MAX_PAGE_CPU_S,
    ) -> None:
        self._folder = folder
        self._database = Database(folder / INDEX_NAME, MIGRATIONS, prepare_search)
        self._keeps_prompts, self._read_facts = keeps_prompts, read_facts
        self._max_page_cpu_s = max_page_cpu_s
        self._pending: deque[_NewImage] = deque()
        self._lock = threading.Lock()
        self._searches: tuple[int, bool] | None = None
        self._scrub_due = False
        self.has_problem = False
        """Whether the last `add` failed; only for logging it once"""

    # --- reading -----------------------------------------------------------------------------------

    def get(self, name: str) -> ImageRecord | None:
        """The image of this name."""
        return next(iter(self.records([name])), None)

    def records(self, names: Sequence[str]) -> list[ImageRecord]:
        """The images of these names, as far as they are there, in no order."""

        def read(connection: sqlite3.Connection) -> list[ImageRecord]:
            found: list[ImageRecord] = []
            for batch in _batches(names, _BATCH):
                marks = ",".join("?" * len(batch))
                rows = connection.execute(f"{_SELECT} WHERE i.name IN ({marks})", batch)
                found += [_record(row) for row in rows]
            return found

        return self._read(read)

    def page(self, selected: ImageFilter, *, limit: int, after: Cursor | None = None) -> ImagePage:
        """The newest `limit` images after `after`; fewer if their texts are very long, but at least one. Raises
        SearchTimedOut too, if it takes more than `max_page_cpu_s` seconds of processor."""
        words = words_of(selected.text)
        if selected.text.strip() and not words:
            return ImagePage(
                (), None, 0
            )  # nothing that could be looked for, such as invisible characters only

        where, values = _conditions(selected)

        def read(connection: sqlite3.Connection) -> ImagePage:
            if words:
                found = _search(connection, words, uses_index=self._can_search(connection))
                return _page_of_search(connection, found, where, values, limit, after)
            counting = f"SELECT count(*) FROM images i {_clause(where)}"  # noqa: S608 - conditions of this file
            total = connection.execute(counting, values).fetchone()[0]
            place, more = _after(after)
            rows = connection.execute(
                f"{_SELECT} {_clause([*where, *place])} ORDER BY i.place DESC, i.id DESC LIMIT ?",
                [*values, *more, limit + 1],
            )
            return _page(rows, limit, total)

        return self._read(read, self._max_page_cpu_s)

    def position(self) -> tuple[str, int]:
        """The epoch of this index, and the number of its last change."""

        def read(connection: sqlite3.Connection) -> tuple[str, int]:
            found = _position(connection)
            return found.epoch, found.number

        return self._read(read)

    def changes_after(self, epoch: str, number: int, owner: str | None) -> list[Change] | None:
        """What changed since `position` returned `epoch` and `number`, oldest first; `owner`: only of whose images, None:
        of all. None if that is not known any more, or was too much: the list of images must be read again."""

        def read(connection: sqlite3.Connection) -> list[Change] | None:
            now = _position(connection)
            if epoch != now.epoch or not now.number - MAX_CHANGES_AT_ONCE <= number <= now.number:
                return None
            rows = connection.execute(
                "SELECT number, kind, name, owner FROM changes WHERE number > ? ORDER BY number", (number,)
            )
            changes = [Change(*row) for row in rows]
            if len(changes) != now.number - number:
                return None  # forgotten meanwhile
            return [change for change in changes if owner is None or change.owner == owner]

        return self._read(read)

    def favourites(self) -> tuple[int, int]:
        """How many favourites there are, and what they count together, in bytes."""

        def read(connection: sqlite3.Connection) -> tuple[int, int]:
            row = connection.execute(
                "SELECT count(*), ifnull(sum(size_bytes + index_bytes), 0) FROM images WHERE favourite"
            )
            count, size = row.fetchone()
            return count, size

        return self._read(read)

    def sizes(self) -> dict[str, int]:
        """Name -> what its texts count for the limits, of those images whose texts are long."""

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            return dict(
                connection.execute("SELECT name, index_bytes FROM images WHERE index_bytes > 0").fetchall()
            )

        return self._read(read)

    def of_size(self, size_bytes: int, owner: str | None) -> list[str]:
        """The names of at most 20 images that have so many bytes, of `owner`, None: of anybody; newest first."""

        def read(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                "SELECT name FROM images WHERE size_bytes = ? AND (? IS NULL OR owner = ?) "
                "ORDER BY place DESC LIMIT 20",
                (size_bytes, owner, owner),
            )
            return [name for (name,) in rows]

        return self._read(read)

    # --- writing -----------------------------------------------------------------------------------

    def add(self, name: str, size_bytes: int, created: float, facts: ImageFacts) -> bool:
        """Add an image whose file is complete. Never raises: false if it cannot be written now; it is then tried again by
        `flush`, and after many failures, or if the process dies, `reconcile` finds the file."""
        image = _new_image(name, size_bytes, created, self._storable(facts))
        try:
            self._write(lambda connection: self._insert(connection, [image]), _KEEP_TIMEOUT_S)
        except EaselError as error:
            with self._lock:
                if len(self._pending) < _MAX_PENDING:
                    self._pending.append(image)
                is_new, self.has_problem = not self.has_problem, True
            if is_new:
                log.warning("images are kept, but not listed for now: %s", error.message)
            return False
        self.has_problem = False
        return True

    def bytes_for(self, facts: ImageFacts) -> int:
        """What the texts of an image count for the limits, beside its file. Never raises."""
        return index_bytes(self._storable(facts))

    @property
    def has_pending(self) -> bool:
        """Whether `flush` has something to write."""
        return bool(self._pending)

    def flush(self) -> None:
        """Add what could not be added before."""
        with self._lock:
            images = list(self._pending)
        for batch in _batches(images, _BATCH):
            self._write(lambda connection, batch=batch: self._insert(connection, batch))  # type: ignore[misc]
            with self._lock:
                for _ in batch:
                    self._pending.popleft()
        self.has_problem = False

    def _storable(self, facts: ImageFacts) -> ImageFacts:
        return facts if self._keeps_prompts else without_prompts(facts)

    def _insert(self, connection: sqlite3.Connection, images: Iterable[_NewImage]) -> None:
        """Insert images whose files are there, and what is known of those that `reconcile` found before."""
        searches = self._can_search(connection)
        for image in images:
            # In the transaction: who deletes an image removes its file before its row.
            if not os.path.lexists(self._folder / image.name):
                continue
            row = connection.execute(
                "SELECT id, favourite, owner FROM images WHERE name = ?", (image.name,)
            ).fetchone()
            if row is not None:
                _delete(connection, [row[0]], searches)
                image = replace(image, is_favourite=bool(row[1]) or image.is_favourite)
            facts = image.facts
            connection.execute(
                "INSERT INTO images (place, created, name, size_bytes, index_bytes, width, height, model, task, seed, "
                "request_id, position, owner, favourite) VALUES (max(?, ifnull((SELECT max(place) FROM images), 0)), "
                "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(image.created, image.created, image.name, image.size_bytes, index_bytes(facts)),
                    *(facts.width, facts.height),
                    *(_text(facts.model), _text(facts.task), None if facts.seed is None else str(facts.seed)),
                    *(_text(facts.request_id), facts.index, facts.owner, image.is_favourite),
                ),
            )
            _insert_texts(connection, facts, image.words, searches)
            # A sweep of another process may have found the file first, and not known whose it is.
            is_known = row is not None and row[2] == facts.owner
            _note_change(connection, "changed" if is_known else "added", image.name, facts.owner)

    def set_favourite(self, name: str, is_favourite: bool) -> ImageRecord | None:
        """Set it; the image as it is now, None if there is none."""

        return self._write(lambda connection: _set_favourite(connection, name, is_favourite))

    def remove(self, names: Sequence[str]) -> None:
        """Remove images whose files are gone, and all their texts; see `scrub`."""
        with self._lock:
            gone = set(names)
            self._pending = deque(image for image in self._pending if image.name not in gone)
        for batch in _batches(names, _BATCH):
            self._write(lambda connection, batch=batch: self._delete_names(connection, batch))  # type: ignore[misc]

    def _delete_names(self, connection: sqlite3.Connection, names: Sequence[str]) -> None:
        marks = ",".join("?" * len(names))
        query = f"SELECT id, name, owner FROM images WHERE name IN ({marks})"  # noqa: S608 - question marks
        rows = connection.execute(query, names).fetchall()
        _delete(connection, [id for id, _, _ in rows], self._can_search(connection))
        for _, name, owner in rows:
            _note_change(connection, "removed", name, owner)
        if rows:
            # In the file, too: this process may end before it has scrubbed.
            connection.execute("UPDATE facts SET scrub_due = scrub_due + 1")
            self._scrub_due = True

    @property
    def is_scrub_due(self) -> bool:
        """Whether `scrub` has something to do."""
        return self._scrub_due

    def scrub(self) -> None:
        """Remove what is left of the texts of removed images: words in the text index until its parts are merged, and pages
        in the log file until it is emptied. Does nothing if nothing was removed. It stays due while somebody reads the log
        file."""
        if not self._scrub_due:
            return
        self._scrub_due = False
        try:
            left_by = self._read(_deletions_to_scrub)
            # A negative number begins a merge of everything; each step is a short transaction.
            pages, is_done = -_MERGE_PAGES, False
            while not is_done:
                is_done = self._write(lambda connection, pages=pages: self._merge(connection, pages))  # type: ignore[misc]
                pages = _MERGE_PAGES
            if not self._database.checkpoint():
                self._scrub_due = True
                return
            # Unless more was deleted meanwhile
            self._write(
                lambda connection: connection.execute(
                    "UPDATE facts SET scrub_due = 0 WHERE scrub_due = ?", (left_by,)
                )
            )
            self._database.shrink()
        except EaselError:
            self._scrub_due = True
            raise

    def _merge(self, connection: sqlite3.Connection, pages: int) -> bool:
        """Whether there is nothing left to merge."""
        if not self._can_search(connection):
            return True
        before = connection.total_changes
        connection.execute("INSERT INTO prompt_search(prompt_search, rank) VALUES ('merge', ?)", (pages,))
        return connection.total_changes - before < 2

    # --- files that came or went without the index -------------------------------------------------

    def reconcile(
        self, files: Mapping[str, float], favourites: frozenset[str], is_marked: Callable[[str], bool]
    ) -> int:
        """Make the index agree with the folder; returns the `generation` that was compared: the index may be lost meanwhile.
        `files`: name -> time of last use of each image; `favourites`: the names of the marked ones; `is_marked`: whether one
        is marked now. An image that is kept, deleted or marked meanwhile is not touched."""

        def read(connection: sqlite3.Connection) -> tuple[set[str], set[str]]:
            names = {name for (name,) in connection.execute("SELECT name FROM images")}
            return names, {name for (name,) in connection.execute("SELECT name FROM images WHERE favourite")}

        self.position()  # opens the file, which may be another one than before
        generation = self.generation
        known, marked = self._read(read)
        gone = [name for name in known - files.keys() if not os.path.lexists(self._folder / name)]
        self.remove(gone)
        new = sorted(
            (files[name], name)
            for name in files.keys() - known - {image.name for image in list(self._pending)}
        )
        for batch in _batches(new, _BATCH):
            found = [image for used_at, name in batch if (image := self._found(name, used_at, favourites))]
            self._write(lambda connection, found=found: self._insert_found(connection, found))  # type: ignore[misc]
        for name in (marked ^ favourites) & known & files.keys():
            self._write(lambda connection, name=name: _set_favourite(connection, name, is_marked(name)))  # type: ignore[misc]
        # What a process has left that has ended meanwhile
        self._scrub_due = self._scrub_due or self._read(_deletions_to_scrub) > 0
        if new or gone:
            log.info(
                "the image index was brought up to date: %d images added, %d removed", len(new), len(gone)
            )
        return generation

    def _found(self, name: str, used_at: float, favourites: frozenset[str]) -> _NewImage | None:
        path = self._folder / name
        try:
            size = path.stat().st_size
            facts = self._storable(self._read_facts(path))
        except OSError:
            return None
        return _new_image(name, size, used_at, facts, name in favourites)

    def _insert_found(self, connection: sqlite3.Connection, images: Sequence[_NewImage]) -> None:
        """Those that are not there yet: another process may have found them too."""
        marks = ",".join("?" * len(images))
        query = f"SELECT name FROM images WHERE name IN ({marks})"  # noqa: S608 - question marks
        known = {name for (name,) in connection.execute(query, [image.name for image in images])}
        self._insert(connection, [image for image in images if image.name not in known])

    # --- the database ------------------------------------------------------------------------------

    def _can_search(self, connection: sqlite3.Connection) -> bool:
        """Whether this SQLite can use the text index; looked up once for each file."""
        generation = self._database.generation
        if self._searches is None or self._searches[0] != generation:
            self._searches = generation, can_search(connection)
        return self._searches[1]

    def _read(self, read: Callable[[sqlite3.Connection], T], max_cpu_s: float | None = None) -> T:
        def attempt() -> T:
            with self._database.reading(max_cpu_s) as connection:
                return read(connection)

        return self._again_if_replaced(attempt)

    def _write(self, write: Callable[[sqlite3.Connection], T], timeout_s: float = _WRITE_TIMEOUT_S) -> T:
        def attempt() -> T:
            with self._database.writing(timeout_s) as connection:
                return write(connection)

        return self._again_if_replaced(attempt)

    @staticmethod
    def _again_if_replaced(attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except IndexUnavailable as error:
            if not error.details.get("is_replaced"):
                raise
            return attempt()

    @property
    def generation(self) -> int:
        """Changes when this process finds another file than before: `reconcile` is due."""
        return self._database.generation


def without_prompts(facts: ImageFacts) -> ImageFacts:
    """`facts` without texts that the client wrote to describe a picture. An ignored field may have any name, such as
    `instructions`, so no text of one is kept."""
    settings = None
    if facts.settings is not None:
        settings = {name: value for name, value in facts.settings.items() if not _is_prompt(name)}

    def cleared(
        notes: tuple[Mapping[str, Any], ...] | None, *, has_any_name: bool
    ) -> tuple[Mapping[str, Any], ...] | None:
        if notes is None:
            return None
        return tuple(
            {**note, "asked": None}
            if _is_prompt(str(note.get("field"))) or (has_any_name and isinstance(note.get("asked"), str))
            else note
            for note in notes
        )

    return replace(
        facts,
        prompt=None,
        negative_prompt=None,
        settings=settings,
        adjusted=cleared(facts.adjusted, has_any_name=False),
        ignored=cleared(facts.ignored, has_any_name=True),
    )


def _is_prompt(name: str) -> bool:
    return "prompt" in name.lower() and "strength" not in name.lower()


# --- rows ------------------------------------------------------------------------------------------

_COLUMNS = (
    *(
        "i.id",
        "i.place",
        "i.name",
        "i.size_bytes",
        "i.created",
        "i.favourite",
        "i.width",
        "i.height",
        "i.model",
    ),
    *(
        "i.task",
        "i.seed",
        "i.request_id",
        "i.position",
        "i.owner",
        "t.prompt",
        "t.negative_prompt",
        "t.details",
    ),
)
_ID, _PLACE = 0, 1
_TEXTS = (-3, -2, -1)
_PROMPTS = ("prompt", "negative_prompt")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM images i JOIN texts t ON t.id = i.id"  # noqa: S608 - constants


def _record(row: Sequence[Any]) -> ImageRecord:
    _, _, name, size_bytes, created, favourite, width, height, model, task, seed, request_id, *rest = row
    position, owner, prompt, negative_prompt, details = rest
    more = json.loads(details)
    for field, text in zip(_PROMPTS, (prompt, negative_prompt), strict=True):
        if field in more.get("shared", ()):
            more["settings"][field] = text
    facts = ImageFacts(
        *(width, height, model, task, prompt, negative_prompt),
        seed=None if seed is None else int(seed),
        settings=more.get("settings"),
        adjusted=_tuple(more.get("adjusted")),
        ignored=_tuple(more.get("ignored")),
        request_id=request_id,
        index=position,
        sources=tuple(more.get("sources", ())),
        owner=owner,
        engine=more.get("engine"),
    )
    return ImageRecord(name, size_bytes, created, bool(favourite), facts)


def _tuple(value: list[Any] | None) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value)


def _text(value: str | None) -> str | None:
    """`value` as SQLite takes it: JSON can contain half of a pair of surrogates."""
    return None if value is None else value.encode("utf-8", "replace").decode("utf-8")


def _new_image(
    name: str, size_bytes: int, created: float, facts: ImageFacts, is_favourite: bool = False
) -> _NewImage:
    return _NewImage(name, size_bytes, created, facts, searched(_text(facts.prompt) or ""), is_favourite)


def _insert_texts(connection: sqlite3.Connection, facts: ImageFacts, words: str, searches: bool) -> None:
    details = {
        name: value
        for name in ("settings", "adjusted", "ignored", "sources", "engine")
        if (value := getattr(facts, name)) is not None and (name != "sources" or value)
    }
    settings = dict(details.get("settings") or {})
    # Up to 32,000 characters each, which the row has already
    shared = [name for name in _PROMPTS if name in settings and settings[name] == getattr(facts, name)]
    if shared:
        details |= {
            "settings": {name: settings[name] for name in settings if name not in shared},
            "shared": shared,
        }
    (id,) = connection.execute("SELECT last_insert_rowid()").fetchone()
    connection.execute(
        "INSERT INTO texts (id, prompt, negative_prompt, details) VALUES (?, ?, ?, ?)",
        (id, _text(facts.prompt), _text(facts.negative_prompt), json.dumps(details)),
    )
    connection.execute("INSERT INTO prompts (id, words) VALUES (?, ?)", (id, words))
    if searches:
        connection.execute("INSERT INTO prompt_search (rowid, words) VALUES (?, ?)", (id, words))
    elif has_search(connection):
        connection.execute("UPDATE facts SET has_search = 0")


def _set_favourite(connection: sqlite3.Connection, name: str, is_favourite: bool) -> ImageRecord | None:
    found = connection.execute(f"{_SELECT} WHERE i.name = ?", (name,)).fetchone()
    if found is None:
        return None
    before = _record(found)
    if before.is_favourite == is_favourite:
        return before
    connection.execute("UPDATE images SET favourite = ? WHERE name = ?", (is_favourite, name))
    _note_change(connection, "changed", name, before.facts.owner)
    return replace(before, is_favourite=is_favourite)


def _delete(connection: sqlite3.Connection, ids: Sequence[int], searches: bool) -> None:
    if ids and not searches and has_search(connection):
        connection.execute("UPDATE facts SET has_search = 0")
    for id in ids:
        if searches:
            # The text index has no copy of the text, so it is told which words it must forget.
            connection.execute(
                "INSERT INTO prompt_search (prompt_search, rowid, words) SELECT 'delete', id, words FROM prompts "
                "WHERE id = ?",
                (id,),
            )
        connection.execute("DELETE FROM prompts WHERE id = ?", (id,))
        connection.execute("DELETE FROM texts WHERE id = ?", (id,))
        connection.execute("DELETE FROM images WHERE id = ?", (id,))


def _note_change(connection: sqlite3.Connection, kind: ChangeKind, name: str, owner: str) -> None:
    connection.execute("INSERT INTO changes (kind, name, owner) VALUES (?, ?, ?)", (kind, name, owner))
    connection.execute("DELETE FROM changes WHERE number <= last_insert_rowid() - ?", (MAX_CHANGES,))


def _deletions_to_scrub(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT scrub_due FROM facts").fetchone()
    return int(count)


def _position(connection: sqlite3.Connection) -> Position:
    epoch, number = connection.execute(
        "SELECT epoch, ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) FROM facts"
    ).fetchone()
    return Position(epoch, number)


def _clause(where: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(where)}" if where else ""


def _page(rows: Iterable[Any], limit: int, total: int) -> ImagePage:
    """`rows`: up to one more than the page has."""
    shown: list[Any] = []
    chars, following = 0, None
    for row in rows:
        chars += sum(len(row[column] or "") for column in _TEXTS)
        if shown and (len(shown) == limit or chars > MAX_PAGE_CHARS):
            following = Cursor(shown[-1][_PLACE], shown[-1][_ID])
            break
        shown.append(row)
    return ImagePage(tuple(_record(row) for row in shown), following, total)


def _search(connection: sqlite3.Connection, words: list[str], *, uses_index: bool) -> set[int]:
    """The ids of all images whose prompts contain the words."""
    match = match_expression(words) if uses_index else ""
    others = [word for word in words if not match or len(word) < GRAM]
    if not others:
        rows = connection.execute("SELECT rowid FROM prompt_search WHERE prompt_search MATCH ?", (match,))
    else:
        indexed = ["id IN (SELECT rowid FROM prompt_search WHERE prompt_search MATCH ?)"] if match else []
        where = _clause([*indexed, *["instr(words, ?) > 0"] * len(others)])
        finding = f"SELECT id FROM prompts {where}"  # noqa: S608 - conditions of this file
        rows = connection.execute(finding, [*([match] if match else []), *others])
    return {id for (id,) in rows}


def _page_of_search(
    connection: sqlite3.Connection,
    found: set[int],
    where: list[str],
    values: list[Any],
    limit: int,
    after: Cursor | None,
) -> ImagePage:
    """Walks through the images, newest first, and takes those that were found. Without other conditions their number is
    known, so that it can stop when the page is full."""
    place, more = ([], []) if where else _after(after)
    walking = (
        f"SELECT i.place, i.id FROM images i {_clause([*where, *place])} ORDER BY i.place DESC, i.id DESC"  # noqa: S608
    )
    ids: list[int] = []
    total = 0 if where else len(found)
    for at, id in connection.execute(walking, [*values, *more]) if found else ():
        if id not in found:
            continue
        if where:
            total += 1
        if len(ids) <= limit and (after is None or (at, id) < (after.place, after.id)):
            ids.append(id)
            if not where and len(ids) > limit:
                break
    marks = ",".join("?" * len(ids))
    rows = connection.execute(f"{_SELECT} WHERE i.id IN ({marks}) ORDER BY i.place DESC, i.id DESC", ids)
    return _page(rows, limit, total)


def _conditions(selected: ImageFilter) -> tuple[list[str], list[Any]]:
    """Conditions on `i`, without the text, and their values."""
    pairs = [
        ("i.owner = ?", selected.owner),
        ("i.model = ?", selected.model),
        ("i.task = ?", selected.task),
        ("i.favourite = ?", selected.is_favourite),
        ("i.created >= ?", selected.since),
        ("i.created <= ?", selected.until),
    ]
    given = [(condition, value) for condition, value in pairs if value is not None]
    return [condition for condition, _ in given], [value for _, value in given]


def _after(cursor: Cursor | None) -> tuple[list[str], list[Any]]:
    """The condition on `i` of what comes after a cursor, and its values."""
    return ([], []) if cursor is None else (["(i.place, i.id) < (?, ?)"], [cursor.place, cursor.id])


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
