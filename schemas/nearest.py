"""Suggests the name that somebody who misspelt one meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_LENGTH = 100
"""A longer text is no misspelt name, and comparing it takes long."""


def nearest(given: object, known: Iterable[object], *, cutoff: float = 0.65) -> str | None:
    """The text among `known` that is most like `given`, in upper or lower case; None if nothing is. `cutoff`: how much they
    must agree, from 0 to 1."""
    if not isinstance(given, str) or len(given) > _MAX_LENGTH:
        return None
    names = {name.casefold(): name for name in known if isinstance(name, str)}
    found = get_close_matches(given.casefold(), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def did_you_mean(given: object, known: Iterable[object], *, cutoff: float = 0.65) -> str:
    """` (did you mean NAME?)` for the nearest of `known`; empty if nothing is like `given`."""
    name = nearest(given, known, cutoff=cutoff)
    return "" if name is None or name == given else f" (did you mean {name}?)"
