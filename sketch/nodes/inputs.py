"""What a running node gets: its inputs, and its context in the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Protocol

from dynamic_inputs import MATCH_TYPE
from sketch.folders import Folders
from sketch.nodes.values import Token, Value
from sketch.signatures import INPUT_FOLDER, Input, Node

FIRST_USE: dict[str, Callable[[Any], Any]] = {
    "IMAGE": lambda value: value[0].shape,
    "LATENT": lambda value: value["samples"],
    "CONDITIONING": lambda value: value[0][1],
    "MODEL": attrgetter("get_model_object"),
    "CLIP": attrgetter("tokenize"),
    "VAE": attrgetter("decode"),
}
"""What ComfyUI does first with a link of this type, so that a plain value in its place fails with the same message"""
CORE_TYPES = {
    *FIRST_USE,
    "MASK",
    "CLIP_VISION",
    "CLIP_VISION_OUTPUT",
    "CONTROL_NET",
    "GUIDER",
    "NOISE",
    "SAMPLER",
    "SIGMAS",
}
"""Types of ComfyUI itself"""


class Interrupted(Exception):
    """The running job was interrupted."""


class GraphFault(Exception):
    """The graph is wrong for every engine. `__cause__` is what ComfyUI raises for it."""


class NodeContext(Protocol):
    """What a running node may use. `render_s`: duration of a sampler."""

    @property
    def folders(self) -> Folders: ...

    @property
    def prompt(self) -> Mapping[str, Any]: ...

    @property
    def extra_data(self) -> Mapping[str, Any]: ...

    @property
    def render_s(self) -> float: ...

    def wants_previews(self) -> bool:
        """Whether a client would receive previews."""

    def pause(self, seconds: float) -> None:
        """Wait; raises if the job is interrupted."""

    def progress(self, value: int, maximum: int, picture: tuple[str, bytes] | None = None) -> None:
        """Report a step, with a picture (mime type, bytes) if there is one; raises if the job is interrupted."""


def _fail_as_comfyui(kind: str, name: str, value: Any) -> None:
    """Raises GraphFault, or any Exception if only a custom node has the type."""
    try:
        FIRST_USE.get(kind, attrgetter("shape"))(value)
        raise TypeError(f"{name}: a link was expected, not {value!r}")
    except Exception as error:
        if kind in CORE_TYPES:
            raise GraphFault from error
        raise


class NodeInputs:
    """The inputs of one node. A plain input is a value written in the graph; others are linked from other nodes."""

    def __init__(self, class_type: str, node: Node, values: Mapping[str, Any]) -> None:
        self.class_type, self.node, self.values = class_type, node, values
        self.inputs = node.inputs_for(values)
        """The inputs that the node has with these values, by full name"""
        self._options = {name.rpartition(".")[2]: value for name, value in values.items() if "." in name}

    def plain(self, name: str, default: Any = None) -> Any:
        """The value of a plain input; of an option's input too, by its last name (`resize_type.width`)."""
        return self.values.get(name, self._options.get(name, default))

    def has(self, *names: str) -> bool:
        """Whether the graph has all of these inputs."""
        return all(name in self.values or name in self._options for name in names)

    def has_only_links(self) -> bool:
        """Whether no input has a value of its own."""
        return all(isinstance(value, Value) for value in self.values.values())

    def number(self, word: str, default: int) -> int:
        """The first whole number in an input with `word` in its name, such as `empty_latent_width`."""
        numbers = (
            value
            for name, value in self.values.items()
            if word in name and isinstance(value, int) and not isinstance(value, bool) and value > 0
        )
        return next(numbers, default)

    def matched(self, match: str) -> Value | None:
        """The linked value that the outputs of a match pass on; None if there is none. A switch chooses by name."""
        names = [name for name, expected in self.inputs.items() if expected.match == match]
        if "switch" in self.values:
            wanted = "on_true" if self.values["switch"] is True else "on_false"
            names.sort(key=lambda name: name != wanted)
        linked = (self.values.get(name) for name in names)
        return next((value for value in linked if isinstance(value, Value)), None)

    def linked(self, kind: type[Any], type_name: str) -> list[Any]:
        """The linked values of this type, in the order of the signature."""
        names = [name for name, expected in self.inputs.items() if type_name in expected.type.split(",")]
        return [self.values[name] for name in names if isinstance(self.values.get(name), kind)]

    def first_linked(self, kind: type[Any], type_name: str) -> Any:
        """The first linked value of this type, or None."""
        return next(iter(self.linked(kind, type_name)), None)

    def check_links(self) -> None:
        """Fail as Python would if there is a plain value in place of a link: validation accepts that. Raises GraphFault;
        any Exception for a type that only a custom node has, whose values this engine does not know."""
        for name, expected in self.inputs.items():
            if expected.is_plain or name not in self.values or not self._must_be_linked(expected):
                continue
            value = self.values[name]
            if not isinstance(value, Value):
                _fail_as_comfyui(expected.type, name, value)

    def _must_be_linked(self, expected: Input) -> bool:
        """Whether a plain value would fail; a type with several names, or with settings of a widget, takes one."""
        return expected.type not in ("*", MATCH_TYPE) and "," not in expected.type and not expected.settings

    def image_name(self) -> Any:
        """The name of the image file that the node reads, or None."""
        names = (name for name, expected in self.inputs.items() if expected.folder == INPUT_FOLDER)
        return self.values.get(next(names, ""))

    def token(self) -> Token:
        """A token that records all inputs."""
        known = {name: value for name, value in self.values.items() if name in self.inputs}
        linked = {name: value for name, value in known.items() if isinstance(value, Value)}
        plain = {name: value for name, value in known.items() if name not in linked}
        return Token(self.class_type, plain, linked)
