"""The drawing itself, without a server."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from sketch.drawing import Sketch, SketchSpec, caption

PAPER_AND_INK = 40


def ink(image: Image.Image) -> int:
    """How many pixels are not the most common colour."""
    colours = image.getcolors(image.width * image.height) or []
    return image.width * image.height - max(count for count, _ in colours)


def test_the_same_brief_gives_the_same_pixels_and_another_seed_others() -> None:
    first, again, other = (Sketch(SketchSpec(96, 96, seed)).finished() for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(8, 8), (16, 512), (512, 16), (64, 64), (200, 136), (1344, 768)])
def test_every_size_is_drawn_in_that_size(size: tuple[int, int]) -> None:
    sketch = Sketch(SketchSpec(*size, seed=1))
    drawn = sketch.finished()
    caption(drawn, ("a prompt", "facts"))
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert ink(drawn) > size[0] * size[1] / PAPER_AND_INK


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_previews_are_as_many_as_steps_and_only_grow(steps: int) -> None:
    frames = [frame.copy() for frame in Sketch(SketchSpec(768, 384, seed=3)).growing(steps, 512)]
    amounts = [ink(frame) for frame in frames]
    assert [frame.size for frame in frames] == [(512, 256)] * steps
    assert amounts == sorted(set(amounts))


def test_a_big_picture_is_marked_at_its_foot_and_nowhere_else() -> None:
    plain = Sketch(SketchSpec(512, 512, seed=2)).finished()
    marked = plain.copy()
    caption(marked, ("a boat",))
    left, top, _, bottom = ImageChops.difference(plain, marked).getbbox() or (0, 0, 0, 0)
    assert (left < 30, top > 380, bottom > 480) == (True, True, True)


def test_the_caption_says_what_was_asked() -> None:
    plain = Image.new("RGB", (512, 512), "white")
    one, other = plain.copy(), plain.copy()
    caption(one, ("a boat", "seed 1"))
    caption(other, ("a boat", "seed 2"))
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("side", [8, 16, 32, 48, 64, 96, 127])
def test_the_smallest_picture_still_bears_a_mark(side: int) -> None:
    plain = Image.new("RGB", (side, side), "white")
    marked = plain.copy()
    caption(marked, ("a prompt",))
    assert ImageChops.difference(plain, marked).getbbox()


def test_a_caption_keeps_within_its_box() -> None:
    plain = Image.new("RGB", (400, 400), "white")
    marked = plain.copy()
    caption(
        marked, ("a prompt that is a good deal longer than the box is wide", "facts"), (100, 50, 300, 250)
    )
    outside = ImageChops.difference(plain, marked)
    outside.paste((0, 0, 0), (100, 50, 300, 250))
    assert plain.tobytes() != marked.tobytes()
    assert outside.getbbox() is None


@pytest.mark.parametrize("text", ["", " ", "猫が好き", "😀" * 50, "é\nü\t", "x" * 100_000, "\0", "\u0301"])
def test_any_text_can_be_written(text: str) -> None:
    image = Image.new("RGB", (256, 256), "white")
    caption(image, (text, "facts"))
    assert ink(image) > 500
