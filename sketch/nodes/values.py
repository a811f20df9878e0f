"""What flows between nodes: pictures, masks, latents, and a token for whatever has no pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from PIL import Image

from sketch.drawing import Box, Size

MOST_PIXELS = 64 * 1024 * 1024
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Mark:
    """The caption that pictures of a sketch bear: its lines, the `box` it keeps within, and `note`, where it stands."""

    lines: tuple[str, ...]
    box: Box
    note: Box


@dataclass(frozen=True)
class Images:
    """IMAGE: a batch of RGB pictures of one size. `mark` is set where they were drawn here."""

    pictures: tuple[Image.Image, ...]
    mark: Mark | None = None

    @property
    def size(self) -> Size:
        return self.pictures[0].size


@dataclass(frozen=True)
class Mask:
    """MASK: white where something is to be drawn."""

    image: Image.Image


@dataclass(frozen=True)
class Latent:
    """LATENT: sizes in pixels; `pixels` once something was encoded or sampled."""

    size: Size
    batch: int
    pixels: Images | None = None
    mask: Image.Image | None = None

    def shown(self) -> Images:
        """Its pictures; grey where nothing was drawn yet."""
        return self.pixels or flat(self.size, self.batch, GREY)


@dataclass(frozen=True, repr=False)
class Token:
    """A model, a text, a sampler, … : which node made it, of what. `digest` tells it from every other."""

    class_type: str
    plain: Mapping[str, Any]
    linked: Mapping[str, Value]
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        told = {key: value for key, value in self.plain.items() if key != "denoise"}
        seed = blake2b(
            json.dumps([self.class_type, told], sort_keys=True, default=str).encode(), digest_size=16
        )
        for key, value in sorted(self.linked.items()):
            seed.update(key.encode() + _digest(value))
        object.__setattr__(self, "digest", seed.digest())

    def __repr__(self) -> str:
        return f"<{self.class_type}>"

    def told(self, *names: str) -> Any:
        """The nearest plain input of one of these names, here or further up; None where nobody says."""
        teller = self.teller(*names)
        return next((teller.plain[name] for name in names if name in teller.plain), None) if teller else None

    def teller(self, *names: str) -> Token | None:
        """The nearest that has a plain input of one of these names, itself included; never from the negative side."""
        level = [self]
        while level:
            for token in level:
                if any(name in token.plain for name in names):
                    return token
            level = [above for token in level for above in token.above()]
        return None

    def above(self) -> Iterator[Token]:
        for name, value in self.linked.items():
            if isinstance(value, Token) and name != "negative":
                yield value


Value = Images | Mask | Latent | Token


def flat(size: Size, batch: int, colour: tuple[int, int, int]) -> Images:
    """Pictures of one colour."""
    check_memory(size, batch)
    return Images((Image.new("RGB", size, colour),) * batch)


def check_memory(size: Size, batch: int) -> None:
    """Fails as an allocator does, long before this machine would."""
    if size[0] * size[1] * batch > MOST_PIXELS:
        raise RuntimeError(
            f"not enough memory for {batch} picture(s) of {size[0]}x{size[1]}: a sketch has at most {MOST_PIXELS} pixels"
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
    """Repeated pictures count once, so that the first of a batch is drawn as it would be alone."""
    return b"".join(
        dict.fromkeys(blake2b(picture.tobytes(), digest_size=16).digest() for picture in pictures)
    )
