"""The tables of the image index. A version is never changed once it was released: a new one is added."""

from __future__ import annotations

import sqlite3

MIGRATIONS: tuple[str, ...] = (
    """
CREATE TABLE facts (epoch TEXT NOT NULL, has_search INTEGER NOT NULL);
INSERT INTO facts VALUES (lower(hex(randomblob(8))), 0);
CREATE TABLE images (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  place REAL NOT NULL,
  created REAL NOT NULL,
  size_bytes INTEGER NOT NULL,
  width INTEGER,
  height INTEGER,
  model TEXT,
  task TEXT,
  seed TEXT,
  request_id TEXT,
  position INTEGER,
  owner TEXT NOT NULL,
  favourite INTEGER NOT NULL
);
CREATE INDEX images_by_place ON images (place, id);
CREATE INDEX images_by_owner ON images (owner, place, id);
CREATE INDEX images_by_size ON images (size_bytes);
CREATE INDEX favourites ON images (place, size_bytes) WHERE favourite;
CREATE TABLE texts (
  id INTEGER PRIMARY KEY,
  prompt TEXT,
  negative_prompt TEXT,
  details TEXT NOT NULL
);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, words TEXT NOT NULL);
CREATE TABLE changes (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  owner TEXT NOT NULL
);
""",
    # Rows that are removed from now on, and the words that are cut off here, must be scrubbed even after a restart.
    """
ALTER TABLE images ADD COLUMN index_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE facts ADD COLUMN scrub_due INTEGER NOT NULL DEFAULT 0;
UPDATE facts SET has_search = 0, scrub_due = 1 WHERE EXISTS (SELECT 1 FROM prompts WHERE length(words) > 4000);
UPDATE prompts SET words = substr(words, 1, 4000) WHERE length(words) > 4000;
UPDATE images SET index_bytes = (
  SELECT (length(CAST(ifnull(t.prompt, '') AS BLOB)) + length(CAST(ifnull(t.negative_prompt, '') AS BLOB))
    + length(t.details) + 7 * length(CAST(p.words AS BLOB))) / 4096 * 4096
  FROM texts t JOIN prompts p ON p.id = t.id WHERE t.id = images.id
);
DROP INDEX favourites;
CREATE INDEX favourites ON images (place, size_bytes, index_bytes) WHERE favourite;
CREATE INDEX long_texts ON images (name, index_bytes) WHERE index_bytes > 0;
""",
)
"""`place`: the order of the images, by the time of their arrival; it never goes back, even if the clock is set back.
`position`: in the batch. `texts` has what is long, so that the others are read quickly. `prompts`: in the form in which they
are searched, no longer than `SEARCHED_CHARS`. `index_bytes`: what the texts of an image take here, see `records.py`.
`scrub_due`: how many deletions have left traces, see `ImageIndex.scrub`."""


def prepare_search(connection: sqlite3.Connection) -> None:
    """Make the text index if it is not there or was not kept up, as far as this SQLite can. Texts are searched one by one
    without it."""
    if not _has_trigrams(connection) or has_search(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not has_search(connection):
            connection.execute(
                "CREATE VIRTUAL TABLE IF NOT EXISTS prompt_search USING "
                "fts5(words, content='prompts', content_rowid='id', tokenize='trigram case_sensitive 1')"
            )
            connection.execute("INSERT INTO prompt_search(prompt_search) VALUES ('rebuild')")
            connection.execute("UPDATE facts SET has_search = 1")
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def can_search(connection: sqlite3.Connection) -> bool:
    """Whether there is a text index that this SQLite can use."""
    return has_search(connection) and _has_trigrams(connection)


def has_search(connection: sqlite3.Connection) -> bool:
    """Whether there is a text index with all prompts. An SQLite that cannot use it says so when it adds or removes some."""
    return bool(connection.execute("SELECT has_search FROM facts").fetchone()[0])


def _has_trigrams(connection: sqlite3.Connection) -> bool:
    """Since SQLite 3.34, unless it was built without FTS5."""
    if sqlite3.sqlite_version_info < (3, 34):
        return False
    return connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone() is not None
