"""Inputs of ComfyUI nodes that depend on the graph, and the names that they have in API graphs.

A dynamic combo adds the inputs of the chosen option: `resize_type` and `resize_type.width`. An auto-grown input stands for
several inputs: `images.image0`, `images.image1`. Both can be nested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"
OPAQUE_PREFIX = "COMFY_"
"""Other types with this prefix are newer than this module: nothing is known about their values and sub-inputs."""

T = TypeVar("T", bound="DynamicInput")


class DynamicInput(Protocol):
    """The part of an input's signature that decides which inputs a node has."""

    @property
    def options(self) -> Mapping[str, Mapping[str, Any]] | None:
        """A dynamic combo's choices: each one's additional inputs; None for other inputs."""

    @property
    def grown_names(self) -> tuple[str, ...]:
        """An auto-grown input's possible names, in order; empty for other inputs."""

    def grown(self, index: int) -> Any:
        """The input with this index of an auto-grown input."""


def expand_inputs(inputs: Mapping[str, T], values: Mapping[str, Any], prefix: str = "") -> dict[str, T]:
    """Every input that a node with these signatures can have in an API graph, by its full name.

    `values` are the node's inputs in the graph: the options of its dynamic combos decide. An auto-grown input is replaced
    by all inputs that it can grow to.
    """
    expanded: dict[str, T] = {}
    for name, signature in inputs.items():
        full = f"{prefix}{name}"
        if signature.grown_names:
            grown = {key: signature.grown(index) for index, key in enumerate(signature.grown_names)}
            expanded |= expand_inputs(grown, values, f"{full}.")
            continue
        expanded[full] = signature
        if signature.options is not None:
            option = values.get(full)
            chosen = signature.options.get(option) if isinstance(option, str) else None
            expanded |= expand_inputs(chosen or {}, values, f"{full}.")
    return expanded


def grown_inputs(inputs: Mapping[str, T], values: Mapping[str, Any], prefix: str = "") -> dict[str, T]:
    """The auto-grown inputs themselves, by full name: `images`."""
    found: dict[str, T] = {}
    for name, signature in inputs.items():
        full = f"{prefix}{name}"
        if signature.grown_names:
            found[full] = signature
        elif signature.options is not None and isinstance(option := values.get(full), str):
            found |= grown_inputs(signature.options.get(option) or {}, values, f"{full}.")
    return found


def is_link(value: Any) -> bool:
    """Whether an input's value is a link: [node id, output index]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int
