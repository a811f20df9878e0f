"""What nodes do here. A node is known by its types alone: what gives LATENT from LATENT and MODEL samples, what gives
IMAGE from LATENT decodes, and whatever has no pixels becomes a token that remembers its class and inputs. Only the
three nodes that deliver pictures are known by name, so a node added to `nodes.json` needs no code."""

from __future__ import annotations

import io
import json
import math
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Protocol

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from engine.sketch.drawing import Brief, Sketch, caption
from engine.sketch.folders import Folders
from engine.sketch.signatures import UPLOADS, Node

MOST_PIXELS = 64 * 1024 * 1024
PREVIEW_SIDE = 512
GREY = (127, 127, 127)
TEMP_PREFIX = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))
RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

FIRST_USE: dict[str, Callable[[Any], Any]] = {
    "IMAGE": lambda value: value[0].shape,
    "LATENT": lambda value: value["samples"],
    "CONDITIONING": lambda value: value[0][1],
    "MODEL": attrgetter("get_model_object"),
    "CLIP": attrgetter("tokenize"),
    "VAE": attrgetter("decode"),
}
"""What ComfyUI first does with a link of this type, so that a plain value in its place fails with the same words."""


class Stage(Protocol):
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


@dataclass(frozen=True)
class Images:
    """IMAGE: a batch of RGB pictures of one size."""

    pictures: tuple[Image.Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures[0].size


@dataclass(frozen=True)
class Mask:
    """MASK: white where something is to be drawn."""

    image: Image.Image


@dataclass(frozen=True)
class Latent:
    """LATENT: sizes in pixels; `pixels` once something was encoded or sampled."""

    size: tuple[int, int]
    batch: int
    pixels: tuple[Image.Image, ...] | None = None
    mask: Image.Image | None = None

    def shown(self) -> tuple[Image.Image, ...]:
        """Its pictures; grey where nothing was drawn yet."""
        return self.pixels or _flat(self.size, self.batch, GREY).pictures


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
        """The nearest plain input of one of these names, here or further up; never from the negative side."""
        level = [self]
        while level:
            for token in level:
                for name in names:
                    if name in token.plain:
                        return token.plain[name]
            level = [above for token in level for above in token.above()]
        return None

    def above(self) -> Iterator[Token]:
        for name, value in self.linked.items():
            if isinstance(value, Token) and name != "negative":
                yield value


Value = Images | Mask | Latent | Token


class Given:
    """The inputs of one node about to run."""

    def __init__(self, class_type: str, node: Node, values: Mapping[str, Any]) -> None:
        self.class_type, self.node, self.values = class_type, node, values

    def plain(self, name: str, otherwise: Any = None) -> Any:
        """The value that stands in the graph."""
        return self.values.get(name, otherwise)

    def one(self, kind: type[Any], type_name: str) -> Any:
        """What is linked to the first input of this type, or None."""
        named = (name for name, expected in self.node.inputs.items() if expected.type == type_name)
        return next((self.values[name] for name in named if isinstance(self.values.get(name), kind)), None)

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


def run_node(given: Given, stage: Stage) -> tuple[tuple[Value, ...], dict[str, Any] | None]:
    """Runs one node: its outputs in order, and what it tells the user interface, if it does."""
    given.check_links()
    deliver = DELIVER.get(given.class_type)
    if deliver:
        return (), deliver(given, stage)
    made: dict[str, Value] = {}
    for kind in given.node.outputs:
        if kind not in made:
            make = MAKE.get(kind)
            made[kind] = make(given, stage) if make else given.token()
    return tuple(made[kind] for kind in given.node.outputs), None


# --- LATENT ---


def make_latent(given: Given, stage: Stage) -> Latent:
    samples: Latent | None = given.one(Latent, "LATENT")
    mask: Mask | None = given.one(Mask, "MASK")
    if samples and (given.one(Token, "MODEL") or given.one(Token, "GUIDER")):
        return _sampled(given.token(), samples, stage)
    if samples:
        size = _eighths(_new_size(samples.size, given))
        pixels = (
            tuple(_resized(picture, size, given) for picture in samples.pixels) if samples.pixels else None
        )
        return replace(samples, size=size, pixels=pixels, mask=mask.image if mask else samples.mask)
    images: Images | None = given.one(Images, "IMAGE")
    if images:
        size = _eighths(images.size)
        pixels = tuple(_middle(picture, size) for picture in images.pictures)
        return Latent(size, len(pixels), pixels, mask.image if mask else None)
    return Latent(_eighths((given.plain("width"), given.plain("height"))), given.plain("batch_size", 1))


def _sampled(token: Token, latent: Latent, stage: Stage) -> Latent:
    """The sketch: steps that are seen, then a picture for each of the batch."""
    steps, denoise = int(token.told("steps") or 1), token.told("denoise")
    strength = 1.0 if denoise is None else float(denoise)
    if strength <= 0:
        return latent
    _check_memory(latent.size, latent.batch)
    mask = latent.mask.resize(latent.size) if latent.mask else None
    under = latent.pixels or (None,) * latent.batch
    briefs = [_brief(token, latent.size, steps, index) for index in range(latent.batch)]
    sketches = [Sketch(briefs[0])]
    _show_steps(sketches[0], steps, _Layers(under[0], strength, mask), stage)
    sketches += [Sketch(brief) for brief in briefs[1:]]
    pixels = (_Layers(u, strength, mask).finished(s) for s, u in zip(sketches, under, strict=True))
    return replace(latent, pixels=tuple(pixels))


def _show_steps(sketch: Sketch, steps: int, layers: _Layers, stage: Stage) -> None:
    growing = sketch.growing(steps, PREVIEW_SIDE) if stage.wants_previews() else None
    for step in range(1, steps + 1):
        stage.pause(stage.render_s / steps)
        preview = None
        if growing:
            preview = ("image/jpeg", _encoded(layers.over(next(growing)), "JPEG", quality=85))
        stage.progress(step, steps, preview)


def _brief(token: Token, size: tuple[int, int], steps: int, index: int) -> Brief:
    text = str(token.told("text", "prompt") or "")
    model = token.told("ckpt_name", "unet_name", "model_name") or "no model"
    facts = f"{size[0]} x {size[1]} · seed {token.told('seed', 'noise_seed')} · {steps} steps · {model}"
    seed = int.from_bytes(token.digest) + index
    return Brief(*size, seed=seed, prompt=text, lines=(text, facts) if text.strip() else (facts,))


@dataclass(frozen=True)
class _Layers:
    """What a drawing goes on top of: an input image of which (1 - strength) stays, and the mask it keeps within."""

    under: Image.Image | None
    strength: float
    mask: Image.Image | None

    def finished(self, sketch: Sketch) -> Image.Image:
        """The drawing at full size with its caption, which stands where the drawing is."""
        drawn = self._blended(sketch.finished())
        caption(drawn, sketch.brief.lines, _heart(self.mask) if self.mask else None)
        return self._masked(drawn)

    def over(self, drawn: Image.Image) -> Image.Image:
        """The same for a preview, which may be smaller and has no caption."""
        return self._masked(self._blended(drawn))

    def _blended(self, drawn: Image.Image) -> Image.Image:
        if self.under is None or self.strength >= 1:
            return drawn
        return Image.blend(self.under.resize(drawn.size), drawn, self.strength)

    def _masked(self, drawn: Image.Image) -> Image.Image:
        if self.mask is None:
            return drawn
        under = self.under.resize(drawn.size) if self.under else Image.new("RGB", drawn.size, GREY)
        return Image.composite(drawn, under, self.mask.resize(drawn.size))


def _heart(mask: Image.Image) -> tuple[int, int, int, int] | None:
    """The middle of what a mask leaves white: of a round hole, the square within."""
    box = mask.getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    aside, down = (right - left) * 3 // 20, (bottom - top) * 3 // 20
    return left + aside, top + down, right - aside, bottom - down


# --- IMAGE ---


def make_image(given: Given, stage: Stage) -> Images:
    samples: Latent | None = given.one(Latent, "LATENT")
    if samples:
        _check_memory(samples.size, samples.batch)
        return Images(samples.shown())
    images: Images | None = given.one(Images, "IMAGE")
    if images:
        size = _new_size(images.size, given)
        _check_memory(size, len(images.pictures))
        return Images(tuple(_resized(picture, size, given) for picture in images.pictures))
    mask: Mask | None = given.one(Mask, "MASK")
    if mask:
        return Images((mask.image.convert("RGB"),))
    if given.upload() is not None:
        return Images((_opened(given, stage).convert("RGB"),))
    colour = int(given.plain("color", 0))
    size = (given.plain("width"), given.plain("height"))
    return _flat(size, given.plain("batch_size", 1), (colour >> 16 & 255, colour >> 8 & 255, colour & 255))


def _new_size(size: tuple[int, int], given: Given) -> tuple[int, int]:
    """The size that a node asks for by width and height (0: in proportion), by megapixels or by a factor."""
    wide, high = size
    if "width" in given.values and "height" in given.values:
        to_wide, to_high = given.plain("width"), given.plain("height")
        if not to_wide and not to_high:
            return size
        return (
            to_wide or max(1, round(wide * to_high / high)),
            to_high or max(1, round(high * to_wide / wide)),
        )
    factor = given.plain("scale_by", 1.0)
    if "megapixels" in given.values:
        factor = math.sqrt(given.plain("megapixels") * 1024 * 1024 / (wide * high))
    return max(1, round(wide * factor)), max(1, round(high * factor))


def _resized(picture: Image.Image, size: tuple[int, int], given: Given) -> Image.Image:
    if picture.size == size:
        return picture
    method = RESAMPLING.get(given.plain("upscale_method", ""), Image.Resampling.BILINEAR)
    if given.plain("crop") == "center":
        return ImageOps.fit(picture, size, method)
    return picture.resize(size, method)


def _middle(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if picture.size == size:
        return picture
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))


def _flat(size: tuple[int, int], batch: int, colour: tuple[int, int, int]) -> Images:
    _check_memory(size, batch)
    return Images((Image.new("RGB", size, colour),) * batch)


# --- MASK ---


def make_mask(given: Given, stage: Stage) -> Mask:
    if given.upload() is not None:
        return Mask(_channel(_opened(given, stage), given.plain("channel", "alpha")))
    mask: Mask | None = given.one(Mask, "MASK")
    images: Images | None = given.one(Images, "IMAGE")
    if mask:
        return mask
    if images:
        return Mask(_channel(images.pictures[0], given.plain("channel", "red")))
    size = (given.plain("width", 64), given.plain("height", 64))
    _check_memory(size, 1)
    return Mask(Image.new("L", size, round(255 * float(given.plain("value", 1.0)))))


def _channel(image: Image.Image, name: str) -> Image.Image:
    """One channel as a mask; of alpha the opposite, as in ComfyUI: what is transparent is to be drawn."""
    if name == "alpha":
        if "A" not in image.getbands() and "transparency" not in image.info:
            return Image.new("L", (64, 64), 0)
        return ImageOps.invert(image.convert("RGBA").getchannel("A"))
    return image.convert("RGB").getchannel(name[0].upper())


def _opened(given: Given, stage: Stage) -> Image.Image:
    place = stage.folders.uploaded(given.upload())
    if place is None:
        raise FileNotFoundError(f"[Errno 2] No such file or directory: '{given.upload()}'")
    with Image.open(place) as image:
        return ImageOps.exif_transpose(image)


# --- delivery ---


def save_image(given: Given, stage: Stage) -> dict[str, Any]:
    return _saved(given, stage, str(given.plain("filename_prefix", "ComfyUI")), "output", 4)


def preview_image(given: Given, stage: Stage) -> dict[str, Any]:
    return _saved(given, stage, TEMP_PREFIX, "temp", 1)


def send_image(given: Given, stage: Stage) -> dict[str, Any]:
    images: Images = given.one(Images, "IMAGE")
    for index, picture in enumerate(images.pictures):
        stage.progress(index, len(images.pictures), ("image/png", _encoded(picture, "PNG", compress_level=1)))
    return {}


def _saved(given: Given, stage: Stage, prefix: str, kind: str, level: int) -> dict[str, Any]:
    images: Images = given.one(Images, "IMAGE")
    place, name, subfolder, number = stage.folders.next_picture(prefix, kind, *images.size)
    told = PngInfo()
    told.add_text("prompt", json.dumps(stage.prompt))
    pnginfo = stage.extra_data.get("extra_pnginfo") or {}
    for key in pnginfo:
        told.add_text(key, json.dumps(pnginfo[key]))
    files = []
    for index, picture in enumerate(images.pictures):
        file = f"{name.replace('%batch_num%', str(index))}_{number + index:05}_.png"
        picture.save(place / file, pnginfo=told, compress_level=level)
        stage.folders.remember(place / file)
        files.append({"filename": file, "subfolder": subfolder, "type": kind})
    return {"images": files}


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _check_memory(size: tuple[int, int], batch: int) -> None:
    """Fails as an allocator does, long before this machine would."""
    if size[0] * size[1] * batch > MOST_PIXELS:
        raise RuntimeError(
            f"not enough memory for {batch} picture(s) of {size[0]}x{size[1]}: a sketch has at most {MOST_PIXELS} pixels"
        )


def _eighths(size: tuple[int, int]) -> tuple[int, int]:
    return max(8, size[0] // 8 * 8), max(8, size[1] // 8 * 8)


def _digest(value: Value) -> bytes:
    match value:
        case Token():
            return value.digest
        case Mask():
            return blake2b(value.image.tobytes(), digest_size=16).digest()
        case Images(pictures) | Latent(pixels=pictures) if pictures:
            return blake2b(b"".join(picture.tobytes() for picture in pictures), digest_size=16).digest()
        case _:
            return b""  # an empty latent: its size shows in the drawing


MAKE: dict[str, Callable[[Given, Stage], Value]] = {
    "LATENT": make_latent,
    "IMAGE": make_image,
    "MASK": make_mask,
}
DELIVER = {"SaveImage": save_image, "PreviewImage": preview_image, "SaveImageWebsocket": send_image}
