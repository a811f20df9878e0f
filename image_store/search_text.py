"""Prompts and queries in the form in which they are compared."""

from __future__ import annotations

import unicodedata

MAX_WORDS = 32
SEARCHED_CHARS = 4000
"""Of each prompt, from its beginning; the text index of a longer one takes up to twenty times as much as it"""
GRAM = 3
"""Characters of the parts by which SQLite's `trigram` index finds texts; shorter words are looked for in each text"""


def comparable(text: str) -> str:
    """`text` without the differences that people do not see or type: case, width, accents composed in another way,
    invisible characters such as marks of direction, line breaks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(
        char for char in folded if unicodedata.category(char) not in ("Cf", "Cc", "Cs") or char.isspace()
    )
    return " ".join(visible.split())


def searched(prompt: str) -> str:
    """What of `prompt` is searched. One character can become several."""
    return comparable(prompt[:SEARCHED_CHARS])[:SEARCHED_CHARS]


def words_of(query: str) -> list[str]:
    """The words that a text must contain, at most MAX_WORDS; anywhere in it, because Chinese and Japanese have no spaces."""
    return list(dict.fromkeys(comparable(query).split()))[:MAX_WORDS]


def match_expression(words: list[str]) -> str:
    """The words that are long enough for the index, as strings of its query language; empty if there are none."""
    quoted = ('"' + word.replace('"', '""') + '"' for word in words if len(word) >= GRAM)
    return " AND ".join(quoted)
