"""Notes on what differs from a request, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler import Note
from errors import shorten

_MAX_ECHO_CHARS = 200
_MAX_NOTES = 100


def note_entries(notes: tuple[Note, ...]) -> list[dict[str, Any]]:
    """Each note as an object, at most 100."""
    entries = []
    for note in notes[:_MAX_NOTES]:
        entry = {"field": _echo(note.field), "asked": _echo(note.asked), "why": note.why}
        entries.append(entry if note.done is None else {**entry, "done": note.done})
    if len(notes) > _MAX_NOTES:
        entries.append({"field": "…", "asked": len(notes) - _MAX_NOTES, "why": "number of entries not shown"})
    return entries


def _echo(value: Any) -> Any:
    """A value that the client sent, shortened and converted to valid JSON."""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    if isinstance(value, Mapping):
        return "(an object)"
    text = value if isinstance(value, str) else repr(value)
    return shorten(text, _MAX_ECHO_CHARS)
