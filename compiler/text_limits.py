"""What a template may make while it renders: a bounded amount of text, and elements of lists. Everything that could make
more than it is given is measured before it is done: `*`, `~`, `+`, `%`, filters and the methods of texts.

Without this, `{{ "x" * 10000000000 }}` takes all memory, and `x ~ x` in a loop doubles a text in each round.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

MAX_TEXT = 1_000_000
"""Characters, or elements of lists, of one value. A graph has some 10,000 characters."""
MAX_TOTAL = 20_000_000
"""Of all values of one rendering together, so that the time is bounded, too"""
_MAX_BITS = 8192
"""Of whole numbers"""
_MAX_DIGITS = 300
"""For `round`"""
_MAX_DEPTH = 1000
_SEQUENCES = (str, bytes, list, tuple)
_TEXTS = (str, bytes)
_HASHED = 10
"""An entry of a dict or set takes as much memory as so many elements of a list."""
_NUMBERS_IN_FORMATS = re.compile(r"\d+")


class TooMuchText(Exception):
    def __init__(self) -> None:
        super().__init__(
            f"the template makes a text or list of more than {MAX_TEXT:,} characters or elements, or more than "
            f"{MAX_TOTAL:,} in all; make it smaller"
        )


class TextBudget:
    """Counts what one rendering makes, in each thread by itself."""

    def __init__(self) -> None:
        self._made = threading.local()

    def restart(self) -> None:
        """Call it before each rendering."""
        self._made.total = 0

    def charge(self, size: int) -> None:
        """`size`: characters or elements of a value that is made. Raises TooMuchText."""
        self._made.total = total = getattr(self._made, "total", 0) + size
        if size > MAX_TEXT or total > MAX_TOTAL:
            raise TooMuchText

    def concatenated(self, parts: Iterable[str]) -> str:
        """The joined text. Raises TooMuchText before it is made."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            if size > MAX_TEXT:
                if isinstance(parts, Generator):
                    parts.throw(TooMuchText())  # so that the error has the line of the template
                raise TooMuchText
            found.append(part)
        self.charge(size)
        return "".join(found)

    def joined(self, *values: Any) -> str:
        """What `~` makes."""
        for value in values:
            self.charge(size_of(value))
        return self.concatenated(map(str, values))

    def sliced(self, value: Any) -> Any:
        """`value`, a part of which is copied. Raises TooMuchText."""
        if isinstance(value, _SEQUENCES):
            self.charge(len(value))
        return value

    def returned(self, value: Any) -> Any:
        """`value`, which a function has made. Raises TooMuchText."""
        if isinstance(value, (list, tuple)):
            self.charge(len(value))
        elif isinstance(value, (dict, set, frozenset)):
            self.charge(_HASHED * len(value))
        return value

    def operate(self, operator: str, left: Any, right: Any) -> None:
        """Measure what an operator would make. Raises TooMuchText."""
        self.charge(_operation_size(operator, left, right))

    def call(self, function: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
        """Measure what a method of a text or number would make; the arguments to call it with, which are texts and lists
        instead of what can be read only once. Raises TooMuchText."""
        function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, (str, bytes, int)):
            return args
        args = tuple(self._listed(each) for each in args)
        options = {name: self._listed(each) for name, each in options.items()}
        self.charge(_method_size(owner, str(getattr(function, "__name__", "")), args, options))
        return args

    def _listed(self, value: Any) -> Any:
        if not isinstance(value, Iterator):
            return value
        found = list(islice(value, MAX_TEXT + 1))
        self.charge(len(found))
        return found

    def filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, a filter of Jinja, which raises TooMuchText before it makes too much."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **options: Any) -> Any:
            given, values = args[:skipped], [self._listed(each) for each in args[skipped:]]
            self.charge(_filter_size(name, values, options))
            return self._listed(function(*given, *values, **options))

        return bounded


def size_of(value: Any) -> int:
    """Characters and elements of `value`, with those of what it contains; of more than MAX_TEXT, some number above."""
    return _measure(value)[0]


def _measure(value: Any) -> tuple[int, int]:
    """The size, and how deeply `value` is nested."""
    if isinstance(value, str):
        return max(1, len(value)), 1
    if value is None or isinstance(value, int | float):
        return 1, 1
    total = deepest = 0
    pending = [(value, 1)]
    while pending and total <= MAX_TEXT:
        each, depth = pending.pop()
        deepest = max(deepest, depth)
        if isinstance(each, _TEXTS):
            total += max(1, len(each))
            continue
        if isinstance(each, range):
            total += 1 + len(each)
            continue
        total += 1
        if depth > _MAX_DEPTH:
            raise TooMuchText
        if depth < _MAX_DEPTH and isinstance(each, _COLLECTIONS) and (size := _flat_size(each)) is not None:
            total, deepest = total + size, max(deepest, depth + (size > 0))
            continue
        for part in _parts(each):
            pending.append((part, depth + 1))
            if len(pending) > MAX_TEXT:
                raise TooMuchText
    return total, deepest


def _flat_size(values: Collection[Any]) -> int | None:
    """The size of `values` together if all are texts or all are numbers, else None. Counting each takes 20 times as long."""
    if len(values) > MAX_TEXT:
        raise TooMuchText
    kinds = set(map(type, values))
    if kinds <= _NUMBERS:
        return len(values)
    if kinds == {str}:
        lengths = list(map(len, values))
        return sum(lengths) + lengths.count(0)
    return None


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return (each for pair in value.items() for each in pair)
    if isinstance(value, _COLLECTIONS) or type(value) in _VIEWS:
        return tuple(value)
    attributes = getattr(type(value), "__name__", "") == "Namespace" and getattr(
        value, "_Namespace__attrs", None
    )
    return _parts(attributes) if attributes else ()


_COLLECTIONS = (list, tuple, set, frozenset)
_NUMBERS = frozenset((int, float, bool, type(None)))
_EMPTY: dict[str, str] = {}
_VIEWS: tuple[type, ...] = tuple(type(view) for view in (_EMPTY.keys(), _EMPTY.values(), _EMPTY.items()))


def _operation_size(operator: str, left: Any, right: Any) -> int:
    if operator == "%" and isinstance(left, _TEXTS):
        return _format_size(left, right, "%")
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, _SEQUENCES) and isinstance(count, int):
                return _length(sequence) * max(0, count)
        return _bits(_bit_length(left) + _bit_length(right))
    if operator == "**":
        return _bits(_bit_length(left) * abs(right)) if isinstance(right, int) else 1
    if isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
        return _length(left) + _length(right)
    return 1


def _bit_length(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _bits(count: int) -> int:
    return 1 if count <= _MAX_BITS else MAX_TEXT + 1


def _format_size(text: Any, values: Any, mark: str) -> int:
    """At most: each place takes all values, as wide as the numbers in the format, or among the values, say."""
    shown: str = text if isinstance(text, str) else str(text, "latin-1")
    widths = sum(int(number[:20]) for number in _NUMBERS_IN_FORMATS.findall(shown))
    size = size_of(values)
    if "*" in shown or (mark == "{" and re.search(r"\{[^}]*\{", shown)):  # a value may be a width
        widths += sum(abs(each) for each in _whole_numbers(values)) * shown.count(mark)
    return len(shown) + widths + shown.count(mark) * max(1, size)


def _whole_numbers(values: Any) -> Iterator[int]:
    found = values.values() if isinstance(values, Mapping) else values
    for each in found if isinstance(found, Iterable) and not isinstance(found, _TEXTS) else (found,):
        if isinstance(each, int):
            yield each
        elif isinstance(each, (list, tuple, Mapping)):
            yield from _whole_numbers(each)


def _method_size(owner: Any, name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """What the method `name` of a text or number makes at most."""
    if isinstance(owner, int):
        return max((each for each in (*args, *options.values()) if isinstance(each, int)), default=1)
    given = (*args, *options.values())
    if name in ("format", "format_map"):
        return _format_size(owner, [*args, dict(options)], "{")
    if name == "replace" and len(args) > 1:
        return _replaced_size(owner, args[0], args[1])
    if name == "join" and args:
        return size_of(args[0]) + len(owner) * _length(args[0])
    if name == "translate":
        return len(owner) * max(1, size_of(list(given)))
    widths = [each for each in given if isinstance(each, int) and not isinstance(each, bool)]
    if name == "expandtabs":
        return len(owner) * max([8, *widths])
    if name in ("center", "ljust", "rjust", "zfill"):
        return max([len(owner), *widths])
    if name == "hex":
        return len(owner) * (2 + size_of(list(given)))
    return len(owner)


def _replaced_size(text: Any, old: Any, new: Any) -> int:
    old, new = (each if isinstance(each, _TEXTS) else str(each) for each in (old, new))
    if type(text) is not type(old) and not (isinstance(text, str) and isinstance(old, str)):
        return _length(text)
    found: int = text.count(old)
    return _length(text) + found * max(0, len(new) - len(old))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (*_SEQUENCES, Mapping, set, frozenset, range)) else 1


def _filter_size(name: str, args: list[Any], options: Mapping[str, Any]) -> int:
    """What a filter makes at most of `args`, of which the first is the value."""
    value = args[0] if args else ""
    size, depth = _measure([*args, *options.values()])
    if size > MAX_TEXT:
        return size
    given = [*args[1:], *options.values()]
    numbers = [abs(each) for each in given if isinstance(each, int) and not isinstance(each, bool)]
    texts = max((len(each) for each in given if isinstance(each, str)), default=0)
    if name in ("center", "batch", "slice"):
        return size + max(numbers, default=0)
    if name == "round":
        return size if max(numbers, default=0) <= _MAX_DIGITS else MAX_TEXT + 1
    if name == "indent":
        return size + (str(value).count("\n") + 1) * max([4, texts, *numbers])
    if name == "tojson":
        return size * (1 + depth * max(numbers, default=0))
    if name == "join":
        return size + _length(value) * max((size_of(str(each)) for each in given), default=0)
    if name == "replace" and len(args) > 2:
        return size + _replaced_size(str(value), str(args[1]), str(args[2]))
    if name == "replace":
        return size * max(1, size)
    if name == "format":
        return size + _format_size(str(value), [*args[1:], dict(options)], "%")
    if name in ("wordwrap", "urlize"):
        return size * (1 + texts)
    return size
