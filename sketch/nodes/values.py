"""The values that flow between nodes: pictures, masks, latents, and a token for everything without pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from PIL import Image

from sketch.drawing import Box, Size

MAX_PIXELS = 64 * 1024 * 1024
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Caption:
    """The caption drawn on pictures: its lines, the `box` that it must stay within, and the `note` that it covers."""

    lines: tuple[str, ...]
    box: Box
    note: Box


@dataclass(frozen=True)
class Images:
    """IMAGE: a batch of RGB or RGBA pictures of one size. `caption` is set if they were drawn by this engine."""

    pictures: tuple[Image.Image, ...]
    caption: Caption | None = None

    @property
    def size(self) -> Size:
        return self.pictures[0].size


@dataclass(frozen=True)
class Mask:
    """MASK: white where something is to be drawn."""

    image: Image.Image


@dataclass(frozen=True)
class Latent:
    """LATENT: sizes in pixels; `pixels` is set once something was encoded or sampled."""

    size: Size
    batch: int
    pixels: Images | None = None
    mask: Image.Image | None = None

    def decoded(self) -> Images:
        """Its pictures; grey if nothing was drawn yet."""
        return self.pixels or flat(self.size, self.batch, GREY)


@dataclass(frozen=True, repr=False)
class Token:
    """A model, text, sampler and so on: the class of its node and the node's inputs. `digest` identifies it; `denoise`
    does not count."""

    class_type: str
    plain: Mapping[str, Any]
    linked: Mapping[str, Value]
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        plain = {key: value for key, value in self.plain.items() if key != "denoise"}
        digest = blake2b(
            json.dumps([self.class_type, plain], sort_keys=True, default=str).encode(), digest_size=16
        )
        for key, value in sorted(self.linked.items()):
            digest.update(key.encode() + _digest(value))
        object.__setattr__(self, "digest", digest.digest())

    def __repr__(self) -> str:
        return f"<{self.class_type}>"

    def find_value(self, *names: str) -> Any:
        """The value of the nearest plain input with one of these names; None if there is none."""
        token = self.find(*names)
        return next((token.plain[name] for name in names if name in token.plain), None) if token else None

    def find(self, *names: str) -> Token | None:
        """The nearest token with a plain input of one of these names: this one, or one that it is made from. Never
        searches the negative conditioning."""
        level = [self]
        while level:
            for token in level:
                if any(name in token.plain for name in names):
                    return token
            level = [source for token in level for source in token._sources()]
        return None

    def _sources(self) -> Iterator[Token]:
        for name, value in self.linked.items():
            if isinstance(value, Token) and name != "negative":
                yield value


Value = Images | Mask | Latent | Token


def flat(size: Size, batch: int, colour: tuple[int, int, int]) -> Images:
    """Pictures of one colour."""
    check_memory(size, batch)
    return Images((Image.new("RGB", size, colour),) * batch)


class TooManyPixels(Exception):
    """A picture or a batch is larger than this engine draws."""


def check_memory(size: Size, batch: int) -> None:
    """Raises TooManyPixels, long before this machine runs out of memory."""
    if size[0] * size[1] * batch > MAX_PIXELS:
        raise TooManyPixels(
            f"{batch} picture(s) of {size[0]}x{size[1]} are more than the {MAX_PIXELS} pixels that a sketch may have"
        )


def _digest(value: Value) -> bytes:
    match value:
        case Token():
            return value.digest
        case Mask():
            return _digest_of((value.image,))
        case Images(pictures) | Latent(pixels=Images(pictures)):
            return _digest_of(pictures)
        case _:
            return b""  # an empty latent: its size shows in the drawing


def _digest_of(pictures: Iterable[Image.Image]) -> bytes:
    """Repeated pictures count once, so that the first picture of a batch is the same as one drawn alone."""
    return b"".join(
        dict.fromkeys(blake2b(picture.tobytes(), digest_size=16).digest() for picture in pictures)
    )
