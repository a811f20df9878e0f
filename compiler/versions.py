"""Which ComfyUI a graph needs, by the marks that its node signatures have: `only_in`, the versions that have a class, an
input or a choice."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.node_records import version_key
from compiler.signatures import Signatures, plain_value

Marks = tuple[tuple[str, ...], ...]
"""The versions that have a part of a graph, for each part that not all versions have"""

_NUMBERS = re.compile(r"v?([0-9]{1,9}(?:\.[0-9]{1,9})*)")


def _numbers(version: str) -> tuple[int, ...] | None:
    """The numbers that a version begins with, such as 0.3.64 of v0.3.64-12-gabcdef; None if it begins otherwise."""
    match = _NUMBERS.match(version.strip())
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()  # 0.8 is 0.8.0
    return tuple(numbers)


def is_older(version: str, other: str) -> bool:
    """Whether `version` is certainly older than `other`. A version that is no number is not."""
    given, limit = _numbers(version), _numbers(other)
    return given is not None and limit is not None and given < limit


def is_at_least(version: str, other: str) -> bool:
    """Whether `version` is certainly `other` or newer. A version that is no number is not."""
    given, limit = _numbers(version), _numbers(other)
    return given is not None and limit is not None and given >= limit


@dataclass(frozen=True)
class Needs:
    """ComfyUI `comfyui` or a newer one. `too_old`: the newest version that is known not to do, if versions between both
    may do; None: all older ones are too old."""

    comfyui: str
    too_old: str | None = None

    def refuses(self, version: str) -> bool:
        """Whether this version of ComfyUI is certainly too old. A version that is no number is not."""
        if self.too_old is None:
            return is_older(version, self.comfyui)
        return _numbers(version) is not None and not is_older(self.too_old, version)


def derived_needs(marks: Marks, versions: Collection[str]) -> tuple[Needs, ...]:
    """What parts with these marks need. `versions`: those whose nodes are all known. A part that newer versions lost is
    left to the engine's own answer."""
    found: dict[Needs, None] = {}
    for having in marks:
        first = min(having, key=version_key)
        older = [each for each in versions if version_key(each) < version_key(first)]
        if older:
            found[Needs(first, max(older, key=version_key))] = None
    return newest_first(found)


def newest_first(needs: Iterable[Needs]) -> tuple[Needs, ...]:
    """The first one says which ComfyUI meets all."""
    return tuple(sorted(needs, key=lambda each: version_key(each.comfyui), reverse=True))


def too_old_for(needs: Iterable[Needs], version: str) -> Needs | None:
    """The newest one of these that this version of ComfyUI does not meet; None if it may meet all."""
    return next((each for each in newest_first(needs) if each.refuses(version)), None)


def marks_of(nodes: Mapping[str, Any], signatures: Signatures) -> Marks:
    """The marks of the classes, inputs and choices that a valid graph uses. An input that has its default value does not
    count: it is left out for an engine that does not have it."""
    return tuple(sorted({mark for node in nodes.values() for mark in _marks_of_node(node, signatures)}))


def _marks_of_node(node: Mapping[str, Any], signatures: Signatures) -> Iterator[tuple[str, ...]]:
    signature = signatures.get(node["class_type"])
    if signature is None:
        return
    if signature.only_in:
        yield signature.only_in
    known = signature.inputs_for(node["inputs"])
    for name, value in node["inputs"].items():
        entry = known.get(name)
        if entry is None:
            continue
        if entry.only_in and not (entry.has_default and value == entry.default):
            yield entry.only_in
        if entry.choices_in:
            given = plain_value(value)
            for choice in given if isinstance(given, list) else [given]:
                if isinstance(choice, str | int | float) and (mark := entry.choices_in.get(str(choice))):
                    yield mark
