"""The values that a node has in a file of ComfyUI's editor, by the names of its inputs: reads and writes them.

The editor saves them as a list in the order of its widgets, without names. Which widgets a node has follows from its
signature: an input with a plain value is one, a seed is followed by what happens to it after a run, a dynamic combo by the
inputs of the chosen option.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.signatures import PLAIN_TYPES, InputSignature, NodeSignature, plain_value
from dynamic_inputs import is_link

AFTER_A_RUN = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
"""What a seed does after a run: a widget of the editor, not an input"""

CONTROL = "control_after_generate"
"""What the editor calls that widget"""

NUMBERED_OPTIONS = "CustomCombo"
"""This class has a widget for each of its choices: `index`, then `option1`, `option2`, …"""


UNSAVED_WIDGETS: Mapping[str, Any] = {"IMAGECOMPARE": ["", ""]}
"""Types of inputs with a widget that is not saved, and the value that the editor sends"""


def has_widget(signature: InputSignature) -> bool:
    """Whether the editor shows a value for this input rather than only a socket."""
    return not signature.socket and not signature.grown_names and _is_plain(signature)


def _is_plain(signature: InputSignature) -> bool:
    return (
        signature.widget
        or signature.choices is not None
        or signature.is_file
        or signature.type in PLAIN_TYPES
    )


class SavedWidgets:
    """Reads the saved values of one node. `values`: by input name."""

    def __init__(
        self, node_class: str, signature: NodeSignature, saved: Sequence[Any] | Mapping[str, Any]
    ) -> None:
        self.values: dict[str, Any] = {}
        self.missing_control: str | None = None
        """The input whose widget for what happens after a run is missing in the file"""
        if isinstance(saved, Mapping):
            self.values = {name: value for name, value in saved.items() if name in signature.inputs}
            self._rest: list[Any] = []
            self._add_defaults(signature.inputs)
            return
        self._rest = list(saved)
        self._read(signature.inputs, "")
        if node_class == NUMBERED_OPTIONS:
            self._read_numbered_options()

    def _read(self, inputs: Mapping[str, InputSignature], prefix: str) -> None:
        for name, signature in inputs.items():
            if not has_widget(signature):
                continue
            full = prefix + name
            if signature.type in UNSAVED_WIDGETS:
                self.values[full] = UNSAVED_WIDGETS[signature.type]
                continue
            found, value = self._next(signature)
            if found:
                self.values[full] = value
            if signature.options is not None:
                chosen = signature.options.get(value) if isinstance(value, str) else None
                self._read(chosen or {}, f"{full}.")
            elif signature.control:
                self._skip_control(full)

    def _next(self, signature: InputSignature) -> tuple[bool, Any]:
        """The next saved value, or the default if the file has no more."""
        if self._rest:
            return True, self._rest.pop(0)
        return _default(signature)

    def _skip_control(self, name: str) -> None:
        first = self._rest[0] if self._rest else None
        if self._rest and (first is None or (isinstance(first, str) and first in AFTER_A_RUN)):
            self._rest.pop(0)
        elif self._rest:
            self.missing_control = name

    def _read_numbered_options(self) -> None:
        names: Iterator[str] = iter(
            ["index", *(f"option{number}" for number in range(1, len(self._rest) + 1))]
        )
        self.values |= dict(zip(names, self._rest, strict=False))

    def _add_defaults(self, inputs: Mapping[str, InputSignature]) -> None:
        for name, signature in inputs.items():
            if has_widget(signature) and name not in self.values:
                found, value = _default(signature)
                if found:
                    self.values[name] = value


def _default(signature: InputSignature) -> tuple[bool, Any]:
    if signature.has_default:
        return True, signature.default
    if signature.choices:
        return True, signature.choices[0]
    blank = {"STRING": "", "BOOLEAN": False, "INT": 0, "FLOAT": 0.0}
    return signature.type in blank, blank.get(signature.type)


# --- writing ---


@dataclass(frozen=True)
class Widget:
    """A value that the editor saves for a node. `name`: the input's full name, or CONTROL."""

    name: str
    value: Any
    signature: InputSignature | None = None
    """None for what is not an input of the node"""
    is_given: bool = True
    """Whether `value` is in the graph; otherwise the input is linked or left out, and this is its default"""


def widgets_of(node_class: str, signature: NodeSignature, inputs: Mapping[str, Any]) -> Iterator[Widget]:
    """The inverse of SavedWidgets: what the editor saves for a node with these `inputs` in the graph, in its order."""
    yield from _widgets(signature.inputs, "", inputs)
    if node_class == NUMBERED_OPTIONS:
        names = ["index"]
        while (name := f"option{len(names)}") in inputs:
            names.append(name)
        yield from (Widget(name, _given(inputs, name)) for name in names if name in inputs)


def _widgets(
    entries: Mapping[str, InputSignature], prefix: str, inputs: Mapping[str, Any]
) -> Iterator[Widget]:
    for name, signature in entries.items():
        if not has_widget(signature) or signature.type in UNSAVED_WIDGETS:
            continue
        full = prefix + name
        is_given = full in inputs and not is_link(inputs[full])
        value = _given(inputs, full) if is_given else _default(signature)[1]
        yield Widget(full, value, signature, is_given)
        if signature.options is not None:
            chosen = signature.options.get(value) if isinstance(value, str) else None
            yield from _widgets(chosen or {}, f"{full}.", inputs)
        elif signature.control:
            yield Widget(CONTROL, "fixed")


def _given(inputs: Mapping[str, Any], name: str) -> Any:
    return plain_value(inputs[name])
