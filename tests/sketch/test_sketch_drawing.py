"""The drawing itself, without a server."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from sketch.drawing import Sketch, SketchSpec, draw_caption

PIXELS_PER_INK_PIXEL = 40


def ink(image: Image.Image) -> int:
    """The number of pixels that do not have the most common colour."""
    colours = image.getcolors(image.width * image.height) or []
    return image.width * image.height - max(count for count, _ in colours)


def test_the_same_spec_gives_the_same_pixels_and_another_seed_gives_others() -> None:
    first, again, other = (Sketch(SketchSpec(96, 96, seed)).finished() for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(8, 8), (16, 512), (512, 16), (64, 64), (200, 136), (1344, 768)])
def test_a_drawing_has_the_requested_size(size: tuple[int, int]) -> None:
    sketch = Sketch(SketchSpec(*size, seed=1))
    drawn = sketch.finished()
    draw_caption(drawn, ("a prompt", "facts"))
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert ink(drawn) > size[0] * size[1] / PIXELS_PER_INK_PIXEL


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_there_is_one_preview_per_step_and_each_has_more_ink(steps: int) -> None:
    frames = [frame.copy() for frame in Sketch(SketchSpec(768, 384, seed=3)).frames(steps, 512)]
    amounts = [ink(frame) for frame in frames]
    assert [frame.size for frame in frames] == [(512, 256)] * steps
    assert amounts == sorted(set(amounts))


def test_a_large_picture_is_captioned_only_at_the_bottom() -> None:
    plain = Sketch(SketchSpec(512, 512, seed=2)).finished()
    marked = plain.copy()
    draw_caption(marked, ("a boat",))
    left, top, _, bottom = ImageChops.difference(plain, marked).getbbox() or (0, 0, 0, 0)
    assert (left < 30, top > 380, bottom > 480) == (True, True, True)


def test_the_caption_shows_its_lines() -> None:
    plain = Image.new("RGB", (512, 512), "white")
    first, second = plain.copy(), plain.copy()
    draw_caption(first, ("a boat", "seed 1"))
    draw_caption(second, ("a boat", "seed 2"))
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("side", [8, 16, 32, 48, 64, 96, 127])
def test_even_the_smallest_picture_is_marked(side: int) -> None:
    plain = Image.new("RGB", (side, side), "white")
    marked = plain.copy()
    draw_caption(marked, ("a prompt",))
    assert ImageChops.difference(plain, marked).getbbox()


def test_a_caption_stays_within_its_box() -> None:
    plain = Image.new("RGB", (400, 400), "white")
    marked = plain.copy()
    draw_caption(
        marked, ("a prompt that is a good deal longer than the box is wide", "facts"), (100, 50, 300, 250)
    )
    outside = ImageChops.difference(plain, marked)
    outside.paste((0, 0, 0), (100, 50, 300, 250))
    assert plain.tobytes() != marked.tobytes()
    assert outside.getbbox() is None


@pytest.mark.parametrize("text", ["", " ", "猫が好き", "😀" * 50, "é\nü\t", "x" * 100_000, "\0", "\u0301"])
def test_any_text_can_be_a_caption(text: str) -> None:
    image = Image.new("RGB", (256, 256), "white")
    draw_caption(image, (text, "facts"))
    assert ink(image) > 500
