"""Reads the files with entries in the owner's folder, and checks each entry against the catalogue's schema. A mistake in
an entry removes this entry, one that concerns the whole file removes the file, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator

from compiler.catalogue import OwnFileNote
from compiler.sources import Sources, printable
from errors import shorten
from schemas import LocatedError, fast_validity, lines_of, located_errors, read_yaml

MAX_ERRORS_OF_FILE = 20
"""further ones are only counted"""
_MAX_VALUES = 2_000_000
"""Ten thousand models have about 400,000. A file of 1 kB can stand for more than any memory holds, with YAML's aliases."""

Path = tuple[str | int, ...]


@dataclass
class OwnFile:
    """A file of the owner's folder. `sections`: section -> id -> entry; those that are not valid are left out. `errors`
    and `overrides` are located when all are known, because that reads the text once more."""

    name: str
    """as messages show it, such as catalogue.d/mine.yaml"""
    text: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[LocatedError] = field(default_factory=list)
    overrides: list[LocatedError] = field(default_factory=list)
    workflow_ids: frozenset[str] = frozenset()
    """of all workflows that it declares, valid or not"""
    fault: OwnFileNote | None = None
    """Why nothing of it is used"""

    def entries(self, section: str) -> Mapping[str, Any]:
        """id -> entry"""
        return self.sections.get(section, {})

    def faults(self) -> Iterator[OwnFileNote]:
        """Everything that is wrong with it."""
        if self.fault is not None:
            yield self.fault
        errors = list(dict.fromkeys(self.errors))  # a value that is wrong for several tasks is reported once
        yield from self._located(errors[:MAX_ERRORS_OF_FILE])
        if len(errors) > MAX_ERRORS_OF_FILE:
            yield OwnFileNote(self.name, f"and {len(errors) - MAX_ERRORS_OF_FILE} more")

    def located_overrides(self) -> Iterator[OwnFileNote]:
        """What its entries replace."""
        return self._located(self.overrides)

    def _located(self, found: list[LocatedError]) -> Iterator[OwnFileNote]:
        lines = lines_of(self.text, [path for path, _ in found]) if found else []
        for (path, text), line in zip(found, lines, strict=True):
            yield OwnFileNote(self.name, text, line, ".".join(map(str, path)) or "document")


def read_own_files(sources: Sources) -> list[OwnFile]:
    """The files in the order of their names."""
    check = _EntryCheck(own_schema(json.loads(sources.catalogue_schema)))
    return [
        _read(f"{sources.own_folder}/{printable(name)}", text, check)
        for name, text in sources.own_entries.items()
    ]


def own_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a file in the owner's folder, made from that of catalogue.yaml: no section is required, and there is
    no `default_model` and there are no `stages`."""
    sections = {
        name: {key: rule for key, rule in section.items() if key != "minProperties"}
        for name, section in schema["properties"].items()
        if name not in ("default_model", "stages")
    }
    return {**schema, "properties": sections, "required": []}


def _read(name: str, text: str, check: _EntryCheck) -> OwnFile:
    file = OwnFile(name, text)
    try:
        document = read_yaml(text, repeated_sections=True)
    except ValueError as error:
        line, _, problem = str(error).partition(": ")
        file.fault = OwnFileNote(name, problem, int(line))
        return file
    try:
        _check_number_of_values(document)
        if isinstance(document, dict) and "stages" in document:
            document = {key: value for key, value in document.items() if key != "stages"}
            file.errors.append((("stages",), _NO_STAGES))
        check.read(document, file)
    except (
        Exception
    ) as error:  # A parser may raise anything. That must not keep the other files from being served.
        file.sections.clear()
        file.fault = OwnFileNote(name, f"cannot be read: {shorten(f'{type(error).__name__}: {error}', 300)}")
    return file


def _check_number_of_values(document: Any) -> None:
    """Raises ValueError for a document that YAML's aliases make endless, or far larger than its text."""
    counts: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in counts:
            counts[id(value)] = _MAX_VALUES + 1  # while it is counted: it contains itself
            children: Iterable[Any] = value.values() if isinstance(value, dict) else value
            counts[id(value)] = 1 + sum(map(count, children))
        return counts[id(value)]

    if count(document) > _MAX_VALUES:
        raise ValueError(f"it has more than {_MAX_VALUES:,} values, counting those that its aliases repeat")


_NO_STAGES = (
    "this section is not used: stages are fields of requests, which the API must know, so only catalogue.yaml has them. "
    "Make a workflow with the task vary instead; the other sections of this file are used"
)


class _EntryCheck:
    """Checks each entry of a file by itself, so that a mistake removes no other entry."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = Draft202012Validator(schema)
        self._is_valid = fast_validity(schema)

    def read(self, document: Any, file: OwnFile) -> None:
        """Puts the valid entries and the errors of the others into `file`."""
        if document is None:  # an empty file, or one with comments only
            return
        if self._is_valid(document):
            file.sections.update(document)
            file.workflow_ids = frozenset(file.entries("workflows"))
            return
        if errors := self._frame_errors(document):
            file.errors += errors
            return
        file.workflow_ids = frozenset(document.get("workflows", ()))
        for section, entries in document.items():
            for name, entry in entries.items():
                if errors := self._entry_errors(section, name, entry):
                    file.errors += errors
                else:
                    file.sections.setdefault(section, {})[name] = entry

    def _frame_errors(self, document: Any) -> list[LocatedError]:
        """What is wrong with the document apart from its entries."""
        if not isinstance(document, dict):
            return list(located_errors(self._validator, document))
        frame = {name: {} if isinstance(value, dict) else value for name, value in document.items()}
        errors = list(located_errors(self._validator, frame))
        if errors and "default_model" in document:
            remedy = "`default_model` belongs into catalogue.yaml; set `images.default_model` in easel.yaml instead"
            return [*errors, (("default_model",), remedy)]
        return errors

    def _entry_errors(self, section: str, name: str, entry: Any) -> list[LocatedError]:
        alone = {section: {name: entry}}
        if self._is_valid(alone):
            return []
        # A name that is not allowed is an error of the section.
        return [
            (path if len(path) > 1 else (section, name), text)
            for path, text in located_errors(self._validator, alone)
        ]
