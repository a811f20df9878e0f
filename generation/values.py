"""What goes into a picture request besides the request itself, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from compiler import Plan, Size
from engine import Preview, Progress
from image_store import KeptImage
from pictures import InputImage

OutputFormat = Literal["png", "jpeg", "webp"]
MetadataPolicy = Literal["none", "parameters", "workflow"]
MIME: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

ProgressCallback = Callable[[Progress | Preview], None]


@dataclass(frozen=True)
class OutputOptions:
    """How the pictures are to come: their format, and whether they are kept under a name."""

    format: OutputFormat = "png"
    quality: int | None = None
    """0 to 100 for jpeg and webp; None for the library's own default."""
    keep: bool = True


@dataclass(frozen=True)
class Image:
    """A finished picture. The same seed, size and batch draw it again; it was number `index` of its batch."""

    data: bytes
    mime: str
    size: Size
    seed: int
    index: int
    batch: int
    prompt_id: str
    kept: KeptImage | None


@dataclass(frozen=True)
class Timings:
    """Seconds. `gpu_wait_s` to `fetch_s` are sums over the request's jobs; `gpu_wait_s` is until the GPU was had."""

    total_s: float
    compile_s: float
    gpu_wait_s: float
    queued_s: float
    run_s: float
    fetch_s: float
    finish_s: float


@dataclass(frozen=True)
class Generation:
    """What came of a request."""

    plan: Plan
    checkpoint: str
    images: tuple[Image, ...]
    timings: Timings
    is_sketch: bool


@dataclass(frozen=True)
class Pictures:
    """What is to be redrawn, as the client sent it."""

    image: InputImage
    mask: InputImage | None = None
