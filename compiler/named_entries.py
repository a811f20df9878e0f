"""Files and licences that several entries of a catalogue name instead of repeating them: the sections `files:` and
`licences:`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas import LocatedError, did_you_mean

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class NamedEntries:
    """What a catalogue has under `files:` and `licences:`, by name."""

    files: Mapping[str, Entry] = field(default_factory=dict)
    licences: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> NamedEntries:
        return cls(document.get("files", {}), document.get("licences", {}))

    def before(self, others: NamedEntries) -> NamedEntries:
        """Both; a name that both have means the entry of this one."""
        return NamedEntries({**others.files, **self.files}, {**others.licences, **self.licences})

    def errors(self, section: str, name: str, entry: Entry) -> Iterator[LocatedError]:
        """The names in the model or LoRA `entry` that mean nothing."""
        path = (section, name)
        if _is_unknown(entry["licence"], self.licences):
            yield (*path, "licence"), _unknown("licence", entry["licence"], self.licences)
        if _is_unknown(entry.get("file"), self.files):
            yield (*path, "file"), _unknown("file", entry["file"], self.files)
        for role, file in entry.get("files", {}).items():
            if _is_unknown(file, self.files):
                yield (*path, "files", role), _unknown("file", file, self.files)

    def expanded(self, entry: Entry) -> Entry:
        """A model or LoRA with the entries that it names."""
        expanded = {**entry, "licence": self._licence(entry["licence"])}
        if "files" in entry:
            expanded["files"] = {role: _named(file, self.files) for role, file in entry["files"].items()}
        if "file" in entry:
            expanded["file"] = _named(entry["file"], self.files)
        return expanded

    def _licence(self, value: Any) -> Entry:
        named: Entry = {**self.licences[value], "key": value} if isinstance(value, str) else value
        return named


def _named(value: Any, entries: Mapping[str, Entry]) -> Any:
    return entries[value] if isinstance(value, str) else value


def _is_unknown(value: Any, entries: Mapping[str, Entry]) -> bool:
    return isinstance(value, str) and value not in entries


def _unknown(kind: str, name: str, entries: Mapping[str, Entry]) -> str:
    return f"there is no {kind} {name!r} under `{kind}s:`{did_you_mean(name, entries)}"
