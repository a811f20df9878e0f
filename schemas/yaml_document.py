"""Reads YAML with line numbers in error messages. Unlike PyYAML, refuses duplicate keys, keys that are not text, numbers
that are not finite, and text that YAML 1.1 reads as another number or as a date."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from schemas.yaml_mistakes import yaml_mistake

# The C parser reads a catalogue of 1,000 models about ten times faster, but is not available on all platforms.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_TAG = "tag:yaml.org,2002:"
_KEY_KINDS = {"int": "a number", "float": "a number", "bool": "true or false", "timestamp": "a date"}


class _StrictLoader(_Loader):  # type: ignore[misc]
    """Refuses a mapping with duplicate keys, or with a key that is not text: nobody could name it in a request."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                continue
            error = _key_error(key) or (
                f"the key {key.value!r} is given twice" if key.value in seen else None
            )
            if error:
                raise yaml.constructor.ConstructorError(None, None, error, key.start_mark)
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def _key_error(key: yaml.Node) -> str | None:
    """What to write instead, if the key of a mapping is not text."""
    if key.tag == f"{_TAG}str":
        return None
    if not isinstance(key, yaml.ScalarNode):
        return "a list or a mapping cannot be a key; write a text"
    if key.tag == f"{_TAG}null":
        return f'the key {key.value or "before the colon"!r} is empty; write a text in quotes, such as "none"'
    kind = _KEY_KINDS.get(key.tag.removeprefix(_TAG), f"of the type {key.tag}")
    return f'YAML reads the key {key.value} as {kind}; write it in quotes: "{key.value}"'


def _finite(loader: Any, node: yaml.ScalarNode) -> float:
    value: float = loader.construct_yaml_float(node)
    if ":" in node.value:
        raise _ambiguous(node, f"the number {value}", f", or {value} if you mean the number")
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value} is not a finite number", node.start_mark
        )
    return value


_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)")
_MAX_DIGITS = 100


def _decimal(loader: Any, node: yaml.ScalarNode) -> int:
    """A decimal number. YAML 1.1 also reads 13:59, the id of a node in a subgraph, as 839, and 010 as 8."""
    text = node.value
    if len(text) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number has at most {_MAX_DIGITS} digits", node.start_mark
        )
    value: int = loader.construct_yaml_int(node)
    if not _DECIMAL.fullmatch(text):
        raise _ambiguous(node, f"the number {value}", f", or {value} if you mean the number")
    return value


def _ambiguous(
    node: yaml.ScalarNode, meaning: str, alternative: str = ""
) -> yaml.constructor.ConstructorError:
    error = f'YAML reads {node.value} as {meaning}; write it in quotes: "{node.value}"{alternative}'
    return yaml.constructor.ConstructorError(None, None, error, node.start_mark)


def _no_date(loader: Any, node: yaml.ScalarNode) -> None:
    raise _ambiguous(node, "a date")


_StrictLoader.add_constructor(f"{_TAG}int", _decimal)
_StrictLoader.add_constructor(f"{_TAG}float", _finite)
_StrictLoader.add_constructor(f"{_TAG}timestamp", _no_date)


def read_yaml(text: str, *, repeated_sections: bool = False) -> Any:
    """The document as plain values. Raises ValueError with the line number first if `text` is not valid YAML.

    With `repeated_sections`, a key of the document that is given several times with a mapping each is one mapping, so
    that an entry can be appended to a file together with its section.
    """
    try:
        return _PlainReader(text).read()
    except Exception:
        # Whatever is wrong or uncommon is read again, with PyYAML's tree of nodes, which knows the lines.
        return _read_nodes(text, repeated_sections)


class _Uncommon(Exception):
    """The text has something that only `_read_nodes` reads."""


class _PlainReader:
    """Makes the values of a document right from PyYAML's events.

    A tree of nodes takes seven times as long for a catalogue of 10,000 models, and 300 MB that stay with the process.
    Equal texts become one object. Refuses tags, uncommon merges and everything that is wrong.
    """

    def __init__(self, text: str) -> None:
        self._loader = _StrictLoader(text)
        self._next = self._loader.get_event
        self._texts: dict[str, str] = {}
        self._plain: dict[str, Any] = {}
        """scalar without quotes -> its value"""
        self._begun_anchors: set[str | None] = set()
        self._anchors: dict[str | None, Any] = {}
        """Those whose value has ended"""

    def read(self) -> Any:
        """The document. Raises any Exception for what it does not read."""
        try:
            self._expect(StreamStartEvent)
            self._expect(DocumentStartEvent)
            document = self._value(self._next())
            self._expect(DocumentEndEvent)
            self._expect(StreamEndEvent)
        finally:
            self._loader.dispose()
        return document

    def _expect(self, kind: type[Event]) -> None:
        if type(self._next()) is not kind:
            raise _Uncommon

    def _value(self, event: Any) -> Any:
        if type(event) is AliasEvent:
            return self._anchors[event.anchor]
        if event.tag is not None or event.anchor in self._begun_anchors:
            raise _Uncommon
        if event.anchor is not None:
            self._begun_anchors.add(event.anchor)
        value: Any
        if type(event) is ScalarEvent:
            value = self._scalar(event)
        elif type(event) is MappingStartEvent:
            value = self._mapping()
        elif type(event) is SequenceStartEvent:
            value = self._sequence()
        else:
            raise _Uncommon
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _mapping(self) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while type(event := self._next()) is not MappingEndEvent:
            if type(event) is not ScalarEvent:
                raise _Uncommon
            if event.value == "<<" and event.implicit[0] and not merged:
                merged = self._value(self._next())
                if type(merged) is not dict:
                    raise _Uncommon
                continue
            key = self._value(event)
            if type(key) is not str or key in mapping:
                raise _Uncommon
            mapping[key] = self._value(self._next())
        return {**merged, **mapping} if merged else mapping

    def _sequence(self) -> list[Any]:
        sequence = []
        while type(event := self._next()) is not SequenceEndEvent:
            sequence.append(self._value(event))
        return sequence

    def _scalar(self, event: ScalarEvent) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # in quotes
            return self._texts.setdefault(text, text)
        if text not in self._plain:
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
            if tag == f"{_TAG}str":
                self._plain[text] = self._texts.setdefault(text, text)
            else:
                self._plain[text] = self._loader.construct_object(yaml.ScalarNode(tag, text))
        return self._plain[text]


MAX_DEPTH = 100
"""of lists and mappings. LibYAML's tree needs the C stack for each level, and a deep document would end the process."""


def _check_depth(text: str) -> None:
    """Raises ValueError, with the line first."""
    depth = 0
    with contextlib.suppress(yaml.YAMLError):  # which is reported when the tree is made
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ValueError(f"{line}: lists and mappings are nested deeper than {MAX_DEPTH} levels")
            elif isinstance(event, CollectionEndEvent):
                depth -= 1


def _read_nodes(text: str, repeated_sections: bool) -> Any:
    _check_depth(text)
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if repeated_sections:
            _join_sections(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ValueError(yaml_mistake(text, error)) from error
    except (yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"1: {error}") from error
    finally:
        loader.dispose()


def _join_sections(document: yaml.Node) -> None:
    """Move the entries of repeated mappings at the top level into the first one, in place."""
    if not isinstance(document, yaml.MappingNode):
        return
    sections: dict[str, yaml.MappingNode] = {}
    kept = []
    for key, value in document.value:
        first = sections.get(key.value) if isinstance(key, yaml.ScalarNode) else None
        if first is not None and isinstance(value, yaml.MappingNode) and value is not first:
            first.value = [*first.value, *value.value]
            continue
        if isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.MappingNode):
            sections.setdefault(key.value, value)
        kept.append((key, value))
    document.value = kept


def line_of(text: str, path: Iterable[str | int]) -> int:
    """The 1-based line of the value at `path`, or of the deepest part of `path` that exists."""
    return lines_of(text, [path])[0]


def lines_of(text: str, paths: Iterable[Iterable[str | int]]) -> list[int]:
    """`line_of` for each of `paths`. The text is parsed once, which takes 5 s for a catalogue of 10,000 models."""
    node = yaml.compose(text, Loader=_Loader)
    if node is not None:
        _join_sections(node)
    return [_line_in(node, path) for path in paths]


def _line_in(node: yaml.Node | None, path: Iterable[str | int]) -> int:
    line = node.start_mark.line + 1 if node else 1
    for step in path:
        child = _child(node, step)
        if child is None:
            break
        line, node = child
    return line


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        value = node.value[step]
        return value.start_mark.line + 1, value
    return None
