"""Finds a file of weights in the list of an engine.

The catalogue writes `/` between folders; an engine on Windows lists `SD\\x.safetensors`, and the graph needs exactly its
spelling. A name without the right folder is found if exactly one listed file ends with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise

MAX_SUGGESTIONS = 3
_MIN_SIMILARITY = 0.6
_MAX_COMPARED = 100


@dataclass(frozen=True)
class FileMatch:
    """`listed`: the engine's spelling of the file, or None. Then `ambiguous` are the files that the name could mean, and
    `nearest` those with similar names; both with `/`."""

    listed: str | None
    ambiguous: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()


def with_slashes(name: str) -> str:
    """The catalogue's spelling of a file name."""
    return name.replace("\\", "/")


def find_file(name: str, listed: Sequence[str]) -> FileMatch:
    """The entry of `listed` that `name` means."""
    if name in listed:
        return FileMatch(name)
    wanted = with_slashes(name)
    spellings = {with_slashes(entry): entry for entry in reversed(listed)}
    if wanted in spellings:
        return FileMatch(spellings[wanted])
    inside = [spelling for spelling in spellings if spelling.endswith(f"/{wanted}")]
    if len(inside) == 1:
        return FileMatch(spellings[inside[0]])
    if inside:
        return FileMatch(None, ambiguous=tuple(sorted(inside)))
    return FileMatch(None, nearest=_nearest(wanted, list(spellings)))


def _nearest(wanted: str, listed: list[str]) -> tuple[str, ...]:
    """The most similar names, in upper or lower case, with or without their folders; best first."""
    by_form: dict[str, list[str]] = {}
    for entry in _with_most_common_pairs(wanted, listed):
        for form in dict.fromkeys((entry.casefold(), _file_name(entry))):
            by_form.setdefault(form, []).append(entry)
    found: list[str] = []
    for form in dict.fromkeys((_file_name(wanted), wanted.casefold())):
        for close in get_close_matches(form, by_form, n=MAX_SUGGESTIONS, cutoff=_MIN_SIMILARITY):
            found += by_form[close]
    return tuple(dict.fromkeys(found))[:MAX_SUGGESTIONS]


def _with_most_common_pairs(wanted: str, listed: list[str]) -> list[str]:
    """The entries worth comparing exactly, sorted. Comparing all takes about a second for 5,000 files."""
    if len(listed) <= _MAX_COMPARED:
        return sorted(listed)
    own = _pairs(wanted)

    def share(entry: str) -> float:
        pairs = _pairs(entry)
        return len(own & pairs) / (len(own) + len(pairs) or 1)

    return sorted(heapq.nlargest(_MAX_COMPARED, listed, key=share))


def _file_name(entry: str) -> str:
    return entry.rpartition("/")[2].casefold()


def _pairs(entry: str) -> set[tuple[str, str]]:
    """The pairs of neighbouring characters of the file's name."""
    name = _file_name(entry)
    return set(pairwise(name))
