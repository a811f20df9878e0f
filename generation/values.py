"""The values of a picture request: what a caller passes in besides the request itself, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from compiler import Note, Plan, Size
from errors import InvalidImage, InvalidValue
from image_store import ImageFacts, KeptImage
from pictures import InputImage

OutputFormat = Literal["png", "jpeg", "webp"]
MetadataPolicy = Literal["none", "parameters", "workflow"]
MIME: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class OutputOptions:
    """How the pictures are encoded, and whether they are kept in the image store."""

    format: OutputFormat = "png"
    quality: int | None = None
    """0 to 100 for jpeg and webp; None for the library's own default."""
    keep: bool = True
    is_opaque: bool = False
    """Transparent pictures are put on white."""


@dataclass(frozen=True)
class Image:
    """A finished picture. The same seed, size and batch draw it again; `index` is its position in the batch. `seed` is
    None if the workflow has none: then the same image gives the same picture."""

    data: bytes
    mime: str
    size: Size
    seed: int | None
    index: int
    batch: int
    prompt_id: str
    kept: KeptImage | None
    is_transparent: bool = False
    """Whether any of its pixels is not opaque"""
    facts: ImageFacts | None = field(default=None, repr=False)
    """For the index of the image store"""
    in_gallery: Future[KeptImage] | None = field(default=None, repr=False)
    """A picture that is not answered as a URL (`kept` is None), but kept too; raises the errors of `ImageStore.keep`"""
    name: str = ""
    """In the image store, perhaps soon; empty if it is not kept"""
    engine: str = ""
    """The name of the one that drew it; empty if there is only one"""


@dataclass(frozen=True)
class Timings:
    """Seconds. `gpu_wait_s` to `fetch_s` are sums over the request's jobs; `gpu_wait_s` is the wait for the GPU
    lease."""

    total_s: float
    compile_s: float
    gpu_wait_s: float
    queued_s: float
    run_s: float
    fetch_s: float
    finish_s: float


@dataclass(frozen=True)
class Generation:
    """The result of a request."""

    plan: Plan
    checkpoint: str
    images: tuple[Image, ...]
    timings: Timings
    is_sketch: bool
    adjusted: tuple[Note, ...] = ()
    """Notes in addition to those of the plan"""


@dataclass(frozen=True)
class Pictures:
    """The input pictures of an edit or variation, as the client sent them: the image to redraw, its mask, the images that
    are used with it, in order, and what is laid over the first."""

    image: InputImage
    mask: InputImage | None = None
    more: tuple[InputImage, ...] = ()
    markup: InputImage | None = None

    def __post_init__(self) -> None:
        """Raises InvalidValue for a markup beside a mask, and InvalidImage for one of another size than the image."""
        markup, image = self.markup, self.image
        if markup is None:
            return
        if self.mask is not None:
            raise InvalidValue(
                "The request has a `mask` and a `markup`; what is drawn over the image outside the mask would stay in the "
                "picture. Send one of them.",
                param="markup",
            )
        if markup.size != image.size:
            raise InvalidImage(
                f"Invalid image: the markup has {markup.width}x{markup.height} pixels, and the first image "
                f"{image.width}x{image.height} (upright, as EXIF says). Send one of the same size.",
                param="markup",
            )
