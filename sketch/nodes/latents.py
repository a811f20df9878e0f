"""LATENT: makes, encodes, masks, repeats and samples them. Sampling draws the sketch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageFilter

from sketch.drawing import Box, Size, Sketch, SketchSpec, draw_caption
from sketch.nodes.images import DEFAULT_SIDE, centre, crop, new_size, repeat, scale, stretch
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.outputs import encode
from sketch.nodes.values import GREY, Caption, Images, Latent, Mask, Token, check_memory

MAX_PREVIEW_SIDE = 512
CELLS = 32
"""Cells per side of the grid in which a mask is searched for a place for the caption"""
STEPS_LEFT: dict[str, Callable[[int, float], int]] = {
    "AlignYourStepsScheduler": lambda steps, denoise: round(steps * denoise),
    "GITSScheduler": lambda steps, denoise: round(steps * denoise),
    "SDTurboScheduler": lambda steps, denoise: min(steps, int(10 * denoise)),
}
"""How many steps run at a strength below 1, for the schedulers that skip the first steps. All other schedulers spread all
steps over the remaining noise. This cannot be derived from types."""


def make_latent(inputs: NodeInputs, context: NodeContext) -> Latent:
    samples: Latent | None = inputs.first_linked(Latent, "LATENT")
    if samples and (inputs.first_linked(Token, "MODEL") or inputs.first_linked(Token, "GUIDER")):
        return _sample(inputs.token(), samples, context)
    if samples:
        return _change(samples, inputs)
    images: Images | None = inputs.first_linked(Images, "IMAGE")
    if images:
        return _encode(images, inputs)
    size = (inputs.number("width", DEFAULT_SIDE), inputs.number("height", DEFAULT_SIDE))
    return Latent(_multiple_of_8(size), inputs.number("batch_size", 1))


def _change(samples: Latent, inputs: NodeInputs) -> Latent:
    """Repeat, resize or mask a latent; it keeps its mask."""
    if inputs.has("amount"):
        batch = samples.batch * inputs.plain("amount")
        pixels = repeat(samples.pixels, inputs.plain("amount")) if samples.pixels else None
        return replace(samples, batch=batch, pixels=pixels)
    mask: Mask | None = inputs.first_linked(Mask, "MASK")
    size = _multiple_of_8(new_size(samples.size, inputs))
    pixels = scale(samples.pixels, size, inputs) if samples.pixels else None
    return replace(samples, size=size, pixels=pixels, mask=mask.image if mask else samples.mask)


def _encode(images: Images, inputs: NodeInputs) -> Latent:
    """The centre of the pictures, cropped to multiples of 8 pixels, with the mask if there is one."""
    size = _multiple_of_8(images.size)
    box = centre(images.size, size)
    latent = Latent(size, len(images.pictures), crop(images, box))
    mask: Mask | None = inputs.first_linked(Mask, "MASK")
    if mask is None or not inputs.plain("noise_mask", True):
        return latent
    mask_image = stretch(mask.image, images.size).crop(box)
    if inputs.has("grow_mask_by"):
        return _cut_hole(latent, mask_image, inputs.plain("grow_mask_by"))
    return replace(latent, mask=mask_image)


def _cut_hole(latent: Latent, mask: Image.Image, grow: int) -> Latent:
    """For inpainting models: grey pixels where the mask is white, and the mask grown by `grow // 2` pixels."""
    hole = mask.point(lambda level: 255 if level > 127 else 0)
    pictures = tuple(
        Image.composite(Image.new("RGB", latent.size, GREY), picture, hole)
        for picture in latent.decoded().pictures
    )
    for _ in range(grow // 2):
        hole = hole.filter(ImageFilter.MaxFilter(3))
    return replace(latent, pixels=Images(pictures), mask=hole)


def _multiple_of_8(size: Size) -> Size:
    return max(8, size[0] // 8 * 8), max(8, size[1] // 8 * 8)


# --- sampling ---


def _sample(token: Token, latent: Latent, context: NodeContext) -> Latent:
    """Report the steps with previews, then draw one sketch for each picture of the batch."""
    steps, strength = _schedule(token)
    if steps <= 0:
        return latent
    check_memory(latent.size, latent.batch)
    mask = stretch(latent.mask, latent.size) if latent.mask else None
    bases = latent.pixels.pictures if latent.pixels else (None,) * latent.batch
    layers = [_Layers(base, strength, mask) for base in bases]
    specs = [_sketch_spec(token, latent.size, steps, index) for index in range(latent.batch)]
    sketches = [Sketch(specs[0])]
    _report_steps(sketches[0], steps, layers[0], context)
    sketches += [Sketch(spec) for spec in specs[1:]]
    box = _caption_box(mask) if mask else (0, 0, *latent.size)
    drawn = [layer.finished(sketch, box) for layer, sketch in zip(layers, sketches, strict=True)]
    caption = Caption(specs[0].lines, box, drawn[0][1])
    return replace(latent, pixels=Images(tuple(picture for picture, _ in drawn), caption))


def _schedule(token: Token) -> tuple[int, float]:
    """(how many steps run, the strength); both are inputs of the same node."""
    scheduler = token.find("steps")
    if scheduler is None:
        return 1, 1.0
    steps, strength = int(scheduler.plain["steps"]), float(scheduler.plain.get("denoise", 1.0))
    if strength <= 0:
        return 0, 0.0
    steps_left = STEPS_LEFT.get(scheduler.class_type)
    return (steps_left(steps, strength) if steps_left and strength < 1 else steps), strength


def _report_steps(sketch: Sketch, steps: int, layers: _Layers, context: NodeContext) -> None:
    frames = sketch.frames(steps, MAX_PREVIEW_SIDE) if context.wants_previews() else None
    for step in range(1, steps + 1):
        context.pause(context.render_s / steps)
        preview = None
        if frames:
            preview = ("image/jpeg", encode(layers.preview(next(frames)), "JPEG", quality=85))
        context.progress(step, steps, preview)


def _sketch_spec(token: Token, size: Size, steps: int, index: int) -> SketchSpec:
    text = str(token.find_value("text", "prompt") or "")
    model = token.find_value("ckpt_name", "unet_name", "model_name") or "no model"
    seed = token.find_value("seed", "noise_seed")
    facts = f"{size[0]} x {size[1]} · seed {seed} · {steps} steps · {model}"
    sketch_seed = int.from_bytes(token.digest) + index
    return SketchSpec(*size, seed=sketch_seed, prompt=text, lines=(text, facts) if text.strip() else (facts,))


@dataclass(frozen=True)
class _Layers:
    """How a drawing is blended: over the base picture, of which (1 - strength) stays, and only where the mask is white."""

    base: Image.Image | None
    strength: float
    mask: Image.Image | None

    def finished(self, sketch: Sketch, box: Box) -> tuple[Image.Image, Box]:
        """The drawing at full size, with its caption inside the box, and the box that the caption covers."""
        drawn = self._blend(sketch.finished())
        note = draw_caption(drawn, sketch.spec.lines, box)
        return self._apply_mask(drawn), note

    def preview(self, drawn: Image.Image) -> Image.Image:
        """The same for a preview, which may be smaller and has no caption."""
        return self._apply_mask(self._blend(drawn))

    def _blend(self, drawn: Image.Image) -> Image.Image:
        if self.base is None or self.strength >= 1:
            return drawn
        return Image.blend(self.base.resize(drawn.size), drawn, self.strength)

    def _apply_mask(self, drawn: Image.Image) -> Image.Image:
        if self.mask is None:
            return drawn
        background = self.base.resize(drawn.size) if self.base else Image.new("RGB", drawn.size, GREY)
        return Image.composite(drawn, background, self.mask.resize(drawn.size))


def _caption_box(mask: Image.Image) -> Box:
    """The largest completely white rectangle of a mask; if there is none, the bounding box of all that is not black."""
    cells = mask.resize((CELLS, CELLS), Image.Resampling.BOX).point(lambda level: level > 250).tobytes()
    largest = max(_white_rectangles(cells), key=_area, default=None)
    if largest is None:
        return mask.getbbox() or (0, 0, *mask.size)
    left, top, right, bottom = largest
    width, height = mask.size
    return left * width // CELLS, top * height // CELLS, right * width // CELLS, bottom * height // CELLS


def _white_rectangles(cells: bytes) -> Iterator[Box]:
    """For every bottom row and every range of columns, the highest white rectangle of the grid."""
    heights = [0] * CELLS
    for row in range(CELLS):
        line = cells[row * CELLS : (row + 1) * CELLS]
        heights = [height + 1 if white else 0 for height, white in zip(heights, line, strict=True)]
        for left in range(CELLS):
            height = CELLS
            for right in range(left, CELLS):
                height = min(height, heights[right])
                if not height:
                    break
                yield left, row + 1 - height, right + 1, row + 1


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
