"""What a node gets that is about to run: its inputs, and what it may use of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Protocol

from sketch.folders import Folders
from sketch.nodes.values import Token, Value
from sketch.signatures import UPLOADS, Node

FIRST_USE: dict[str, Callable[[Any], Any]] = {
    "IMAGE": lambda value: value[0].shape,
    "LATENT": lambda value: value["samples"],
    "CONDITIONING": lambda value: value[0][1],
    "MODEL": attrgetter("get_model_object"),
    "CLIP": attrgetter("tokenize"),
    "VAE": attrgetter("decode"),
}
"""What ComfyUI first does with a link of this type, so that a plain value in its place fails with the same words."""


class NodeContext(Protocol):
    """What a running node may use of its surroundings. `render_s`: how long a sampler is to take."""

    @property
    def folders(self) -> Folders: ...

    @property
    def prompt(self) -> Mapping[str, Any]: ...

    @property
    def extra_data(self) -> Mapping[str, Any]: ...

    @property
    def render_s(self) -> float: ...

    def wants_previews(self) -> bool:
        """Whether anybody would see a preview."""

    def pause(self, seconds: float) -> None:
        """Passes time; raises when the job is interrupted."""

    def progress(self, value: int, maximum: int, picture: tuple[str, bytes] | None = None) -> None:
        """Tells how far the node is, with a picture (mime type, bytes) if there is one; raises when interrupted."""


class NodeInputs:
    """The inputs of one node about to run."""

    def __init__(self, class_type: str, node: Node, values: Mapping[str, Any]) -> None:
        self.class_type, self.node, self.values = class_type, node, values

    def plain(self, name: str, otherwise: Any = None) -> Any:
        """The value that stands in the graph."""
        return self.values.get(name, otherwise)

    def asks(self, *names: str) -> bool:
        """Whether the graph gives all of these inputs."""
        return all(name in self.values for name in names)

    def all(self, kind: type[Any], type_name: str) -> list[Any]:
        """What is linked to the inputs of this type, in the order of the signature."""
        named = [name for name, expected in self.node.inputs.items() if expected.type == type_name]
        return [self.values[name] for name in named if isinstance(self.values.get(name), kind)]

    def one(self, kind: type[Any], type_name: str) -> Any:
        """The first of them, or None."""
        return next(iter(self.all(kind, type_name)), None)

    def check_links(self) -> None:
        """Fails as Python would where a plain value stands in the place of a link: validation lets that pass."""
        for name, expected in self.node.inputs.items():
            if expected.plain or expected.type == "*" or name not in self.values:
                continue
            value = self.values[name]
            if not isinstance(value, Value):
                FIRST_USE.get(expected.type, attrgetter("shape"))(value)
                raise TypeError(f"{name}: a link was expected, not {value!r}")

    def upload(self) -> Any:
        """The name of the image file it reads, or None."""
        named = (name for name, expected in self.node.inputs.items() if expected.folder == UPLOADS)
        return self.values.get(next(named, ""))

    def token(self) -> Token:
        """All of it, remembered."""
        known = {name: value for name, value in self.values.items() if name in self.node.inputs}
        linked = {name: value for name, value in known.items() if isinstance(value, Value)}
        plain = {name: value for name, value in known.items() if name not in linked}
        return Token(self.class_type, plain, linked)
