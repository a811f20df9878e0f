"""LATENT: made, encoded, masked, repeated, and sampled, which is where a sketch is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageFilter

from sketch.drawing import Box, Size, Sketch, SketchSpec, caption
from sketch.nodes.images import cropped, middle, new_size, repeated, scaled, stretched
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.outputs import encoded
from sketch.nodes.values import GREY, Images, Latent, Mark, Mask, Token, check_memory

PREVIEW_SIDE = 512
CELLS = 32
"""How finely a mask is searched for a place for the caption: so many cells a side"""
STEPS_LEFT: dict[str, Callable[[int, float], int]] = {
    "AlignYourStepsScheduler": lambda steps, denoise: round(steps * denoise),
    "GITSScheduler": lambda steps, denoise: round(steps * denoise),
    "SDTurboScheduler": lambda steps, denoise: min(steps, int(10 * denoise)),
}
"""How many steps run below full strength, of the schedules that leave out the first ones. All others spread every step
over what is left, and types do not tell which does what."""


def make_latent(given: NodeInputs, stage: NodeContext) -> Latent:
    samples: Latent | None = given.one(Latent, "LATENT")
    if samples and (given.one(Token, "MODEL") or given.one(Token, "GUIDER")):
        return _sampled(given.token(), samples, stage)
    if samples:
        return _changed(samples, given)
    images: Images | None = given.one(Images, "IMAGE")
    if images:
        return _encoded(images, given)
    return Latent(_eighths((given.plain("width"), given.plain("height"))), given.plain("batch_size", 1))


def _changed(samples: Latent, given: NodeInputs) -> Latent:
    """Repeated, resized or masked; the mask stays with it."""
    if given.asks("amount"):
        batch = samples.batch * given.plain("amount")
        pixels = repeated(samples.pixels, given.plain("amount")) if samples.pixels else None
        return replace(samples, batch=batch, pixels=pixels)
    mask: Mask | None = given.one(Mask, "MASK")
    size = _eighths(new_size(samples.size, given))
    pixels = scaled(samples.pixels, size, given) if samples.pixels else None
    return replace(samples, size=size, pixels=pixels, mask=mask.image if mask else samples.mask)


def _encoded(images: Images, given: NodeInputs) -> Latent:
    """The middle of the pictures that is whole eights of pixels wide and high, with the mask that is given for them."""
    size = _eighths(images.size)
    box = middle(images.size, size)
    latent = Latent(size, len(images.pictures), cropped(images, box))
    mask: Mask | None = given.one(Mask, "MASK")
    if mask is None or not given.plain("noise_mask", True):
        return latent
    veil = stretched(mask.image, images.size).crop(box)
    if given.asks("grow_mask_by"):
        return _emptied(latent, veil, given.plain("grow_mask_by"))
    return replace(latent, mask=veil)


def _emptied(latent: Latent, mask: Image.Image, grow: int) -> Latent:
    """For models that fill holes: grey where the mask is white, and a mask that reaches a little further."""
    hole = mask.point(lambda level: 255 if level > 127 else 0)
    pictures = tuple(
        Image.composite(Image.new("RGB", latent.size, GREY), picture, hole)
        for picture in latent.shown().pictures
    )
    for _ in range(grow // 2):
        hole = hole.filter(ImageFilter.MaxFilter(3))
    return replace(latent, pixels=Images(pictures), mask=hole)


def _eighths(size: Size) -> Size:
    return max(8, size[0] // 8 * 8), max(8, size[1] // 8 * 8)


# --- sampling ---


def _sampled(token: Token, latent: Latent, stage: NodeContext) -> Latent:
    """The sketch: steps that are seen, then a picture for each of the batch."""
    steps, strength = _schedule(token)
    if steps <= 0:
        return latent
    check_memory(latent.size, latent.batch)
    mask = stretched(latent.mask, latent.size) if latent.mask else None
    under = latent.pixels.pictures if latent.pixels else (None,) * latent.batch
    layers = [_Layers(each, strength, mask) for each in under]
    briefs = [_brief(token, latent.size, steps, index) for index in range(latent.batch)]
    sketches = [Sketch(briefs[0])]
    _show_steps(sketches[0], steps, layers[0], stage)
    sketches += [Sketch(brief) for brief in briefs[1:]]
    box = _room(mask) if mask else (0, 0, *latent.size)
    drawn = [each.finished(sketch, box) for each, sketch in zip(layers, sketches, strict=True)]
    mark = Mark(briefs[0].lines, box, drawn[0][1])
    return replace(latent, pixels=Images(tuple(picture for picture, _ in drawn), mark))


def _schedule(token: Token) -> tuple[int, float]:
    """(how many steps run, the strength); both are told by the same node."""
    told = token.teller("steps")
    if told is None:
        return 1, 1.0
    steps, strength = int(told.plain["steps"]), float(told.plain.get("denoise", 1.0))
    if strength <= 0:
        return 0, 0.0
    left = STEPS_LEFT.get(told.class_type)
    return (left(steps, strength) if left and strength < 1 else steps), strength


def _show_steps(sketch: Sketch, steps: int, layers: _Layers, stage: NodeContext) -> None:
    growing = sketch.growing(steps, PREVIEW_SIDE) if stage.wants_previews() else None
    for step in range(1, steps + 1):
        stage.pause(stage.render_s / steps)
        preview = None
        if growing:
            preview = ("image/jpeg", encoded(layers.over(next(growing)), "JPEG", quality=85))
        stage.progress(step, steps, preview)


def _brief(token: Token, size: Size, steps: int, index: int) -> SketchSpec:
    text = str(token.told("text", "prompt") or "")
    model = token.told("ckpt_name", "unet_name", "model_name") or "no model"
    facts = f"{size[0]} x {size[1]} · seed {token.told('seed', 'noise_seed')} · {steps} steps · {model}"
    seed = int.from_bytes(token.digest) + index
    return SketchSpec(*size, seed=seed, prompt=text, lines=(text, facts) if text.strip() else (facts,))


@dataclass(frozen=True)
class _Layers:
    """What a drawing goes on top of: an input image of which (1 - strength) stays, and the mask it keeps within."""

    under: Image.Image | None
    strength: float
    mask: Image.Image | None

    def finished(self, sketch: Sketch, box: Box) -> tuple[Image.Image, Box]:
        """The drawing at full size, and where in it the caption stands: in the box, where the drawing is."""
        drawn = self._blended(sketch.finished())
        note = caption(drawn, sketch.brief.lines, box)
        return self._masked(drawn), note

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


def _room(mask: Image.Image) -> Box:
    """The largest rectangle of a mask that is white throughout; where there is none, all that is not black."""
    cells = mask.resize((CELLS, CELLS), Image.Resampling.BOX).point(lambda level: level > 250).tobytes()
    largest = max(_white_rectangles(cells), key=_area, default=None)
    if largest is None:
        return mask.getbbox() or (0, 0, *mask.size)
    left, top, right, bottom = largest
    wide, high = mask.size
    return left * wide // CELLS, top * high // CELLS, right * wide // CELLS, bottom * high // CELLS


def _white_rectangles(cells: bytes) -> Iterator[Box]:
    """For every row that may be its foot and all columns it may span, the highest rectangle of a grid of `CELLS`."""
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
