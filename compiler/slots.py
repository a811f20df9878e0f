"""Stand-ins for values of a template that differ in each request, such as the prompt. A template can do nothing with a slot
but write it into the graph with `{{ name }}`: everything else raises SlotUsed. So if a template renders with slots, and does
not read its own output (see `reads_output`), its graph is the same for all values, but for the places of the slots."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from jinja2 import nodes

_CAPTURES = (
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.AssignBlock,
    nodes.Import,
    nodes.FromImport,
)


class SlotUsed(Exception):
    """The template computes with a value, compares it or branches on it."""


class Slot:
    """The value of one variable."""

    def __init__(self, name: str) -> None:
        # Jinja's sandbox lets no template read a name with an underscore.
        object.__setattr__(self, "_marker", f"\0{name}\0")


def marker_json(slot: Slot) -> str:
    """What `{{ name }}` writes: a text that no other value has."""
    return json.dumps(object.__getattribute__(slot, "_marker"))


def _refuse(*_: Any, **__: Any) -> Any:
    raise SlotUsed


_OPERATIONS = (
    *(
        "bool",
        "str",
        "repr",
        "format",
        "len",
        "iter",
        "next",
        "contains",
        "getitem",
        "call",
        "hash",
        "index",
        "int",
    ),
    *(
        "float",
        "complex",
        "round",
        "bytes",
        "reversed",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "neg",
        "pos",
        "abs",
    ),
    *("invert", "getattr", "setattr"),
    *(
        prefix + name
        for prefix in ("", "r")
        for name in (
            "add",
            "sub",
            "mul",
            "truediv",
            "floordiv",
            "mod",
            "divmod",
            "pow",
            "matmul",
            "and",
            "or",
            "xor",
        )
    ),
)
for _name in _OPERATIONS:
    setattr(Slot, f"__{_name}__", _refuse)


def refuses_slots(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test of Jinja that raises SlotUsed for a slot: many tell what type a value has without using it."""

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> Any:
        if any(isinstance(each, Slot) for each in (*args, *options.values())):
            raise SlotUsed
        return function(*args, **options)

    return guarded


def reads_output(template: nodes.Template) -> bool:
    """Whether the template may compute with what it has written, such as the result of a macro: an ordinary text, in which a
    slot is written already."""
    recursive = any(loop.recursive for loop in template.find_all(nodes.For))
    blocks = any(name.name in ("self", "super") for name in template.find_all(nodes.Name))
    return recursive or blocks or any(True for _ in template.find_all(_CAPTURES))
