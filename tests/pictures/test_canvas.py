"""Where each pixel of an image and of its mask goes."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops, ImageDraw

from errors import InvalidImage
from pictures import InputImage, draw_onto, has_transparency, mask_onto, read_image
from tests.pictures.pictures import decoded, encoded, pattern

Pair = tuple[int, int]


def sent(image: Image.Image, param: str = "image") -> InputImage:
    return read_image(encoded(image), param=param)


@pytest.mark.parametrize(
    ("size", "canvas"), [((256, 256), (256, 256)), ((500, 333), (504, 336)), ((9, 7), (16, 16))]
)
def test_an_image_of_the_size_is_untouched_and_its_edge_goes_on_to_the_canvas(
    size: Pair, canvas: Pair
) -> None:
    image = pattern(*size)
    made = decoded(draw_onto(sent(image), size, canvas))
    assert (made.size, made.mode) == (canvas, "RGB")
    assert made.crop((0, 0, *size)).tobytes() == image.tobytes()
    for x in range(size[0], canvas[0]):
        assert made.crop((x, 0, x + 1, size[1])).tobytes() == image.crop((size[0] - 1, 0, *size)).tobytes()
    last = made.crop((0, size[1] - 1, canvas[0], size[1])).tobytes()
    for y in range(size[1], canvas[1]):
        assert made.crop((0, y, canvas[0], y + 1)).tobytes() == last


@pytest.mark.parametrize("own", [(16_384, 1), (1, 16_384), (3, 5), (1, 1)])
@pytest.mark.parametrize("size", [(64, 64), (120, 8)])
def test_an_image_of_any_shape_comes_to_any_size(own: Pair, size: Pair) -> None:
    made = decoded(draw_onto(sent(Image.new("RGB", own, (9, 120, 200))), size, (128, 64)))
    assert made.getcolors() == [(128 * 64, (9, 120, 200))]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_mode_is_scaled_as_what_a_person_sees(mode: str) -> None:
    image = Image.new("L", (400, 400), 255).convert(mode)
    made = decoded(draw_onto(sent(image), (100, 100), (104, 104)))
    assert (made.mode, made.getcolors()) == ("RGB", [(104 * 104, (255, 255, 255))])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_another_shape_is_scaled_to_cover_and_its_middle_is_kept(form: str) -> None:
    image = Image.new("RGB", (800, 400), "white")
    ImageDraw.Draw(image).rectangle((300, 0, 499, 399), fill=(255, 0, 0))
    data = encoded(image, form, **({"quality": 95} if form == "JPEG" else {}))
    made = decoded(draw_onto(read_image(data), (200, 200), (200, 200)))
    red = [made.getpixel((x, 100))[1] < 100 for x in (40, 60, 140, 160)]  # type: ignore[index]
    assert red == [False, True, True, False]


def test_a_large_photo_is_decoded_smaller_and_looks_the_same() -> None:
    image = pattern(64, 64).resize((2048, 2048), Image.Resampling.BICUBIC)
    made = decoded(draw_onto(read_image(encoded(image, "JPEG", quality=95)), (256, 256), (256, 256)))
    wanted = image.resize((256, 256), Image.Resampling.LANCZOS)
    worst = ImageChops.difference(made, wanted).convert("L").getextrema()[1]
    assert worst < 30  # type: ignore[operator]


# --- masks -----------------------------------------------------------------------------------------


def square(
    kind: str, size: Pair = (256, 256), box: tuple[int, int, int, int] = (64, 64, 191, 191)
) -> InputImage:
    if kind == "alpha":
        image = Image.new("RGBA", size, (255, 255, 255, 255))
        ImageDraw.Draw(image).rectangle(box, fill=(0, 0, 0, 0))
    else:
        image = Image.new(kind, size, 0)
        ImageDraw.Draw(image).rectangle(box, fill=255 if kind != "RGB" else (255, 255, 255))
    return sent(image, "mask")


def channels(
    mask: InputImage, image: Pair = (256, 256), size: Pair | None = None, canvas: Pair | None = None
) -> tuple[Image.Image, Image.Image]:
    """Where to draw, and what to keep."""
    size = size or image
    made = decoded(mask_onto(mask, sent(pattern(*image)), size, canvas or size))
    red, green, _ = made.split()
    return red, green


@pytest.mark.parametrize("kind", ["alpha", "L", "RGB", "1"])
def test_a_mask_is_what_is_transparent_or_else_white(kind: str) -> None:
    draw, keep = channels(square(kind))
    assert draw.getpixel((128, 128)) == draw.getpixel((64, 64)) == draw.getpixel((191, 191)) == 255
    assert draw.getpixel((10, 10)) == 0
    assert keep.getpixel((128, 128)) == 0
    assert keep.getpixel((10, 10)) == 255


def test_nothing_outside_of_the_mask_is_given_up_and_inside_it_fades_in_within_a_rim() -> None:
    _, keep = channels(square("L"))
    inside = (64, 64, 192, 192)
    outside = keep.copy()
    outside.paste(255, inside)
    assert outside.getextrema() == (255, 255)
    rim = [keep.getpixel((x, 128)) for x in range(62, 70)]
    assert rim[:2] == [255, 255]
    assert rim == sorted(rim, reverse=True)  # type: ignore[type-var]
    assert rim[-1] == 0


def test_the_model_may_draw_a_little_beside_the_mask_so_that_it_fits() -> None:
    draw, _ = channels(square("L"))
    rim = [draw.getpixel((x, 128)) for x in range(52, 66)]
    assert rim == sorted(rim)  # type: ignore[type-var]
    assert rim[0] == 0
    assert any(0 < level < 255 for level in rim)  # type: ignore[operator]
    assert rim[-2:] == [255, 255]


def test_a_mask_at_the_images_edge_is_whole_there_also_beside_the_padding() -> None:
    draw, keep = channels(square("L", (250, 250), (100, 0, 249, 249)), (250, 250), (250, 250), (256, 256))
    assert draw.size == (256, 256)
    assert keep.getpixel((249, 125)) == keep.getpixel((180, 0)) == 0
    assert draw.getpixel((249, 125)) == 255
    assert draw.getpixel((253, 253)) == 0


def test_a_thin_stroke_is_not_lost() -> None:
    _, keep = channels(square("L", box=(100, 50, 100, 200)))
    assert keep.getpixel((100, 100)) == 0
    assert keep.getpixel((102, 100)) == 255


def test_a_thin_stroke_may_be_drawn_in_full() -> None:
    draw, _ = channels(square("L", box=(100, 50, 100, 200)))
    assert draw.getpixel((100, 100)) == 255


def test_a_speckled_mask_from_a_jpeg_gives_up_nothing_outside() -> None:
    image = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(image).ellipse((64, 64, 191, 191), fill=255)
    mask = read_image(encoded(image, "JPEG", quality=30), param="mask")
    _, keep = channels(mask)
    outside = Image.new("L", (256, 256), 255)
    ImageDraw.Draw(outside).ellipse((63, 63, 192, 192), fill=0)
    assert ImageChops.lighter(keep, ImageChops.invert(outside)).getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("own", "size", "canvas"),
    [((800, 400), (200, 200), (200, 200)), ((300, 500), (256, 128), (256, 128)), ((64, 64), (500, 333), (504, 336))],
)  # fmt: skip
def test_a_mask_lies_on_what_it_marks(own: Pair, size: Pair, canvas: Pair) -> None:
    box = (own[0] * 3 // 8, own[1] * 3 // 8, own[0] * 5 // 8, own[1] * 5 // 8)
    image = Image.new("L", own)
    ImageDraw.Draw(image).rectangle(box, fill=255)
    seen = (
        decoded(draw_onto(sent(image), size, canvas)).getchannel("R").point(lambda level: 255 * (level > 127))
    )
    _, keep, _ = decoded(mask_onto(sent(image, "mask"), sent(image), size, canvas)).split()
    given_up = keep.crop((0, 0, *size)).point(lambda level: 255 * (level < 128))
    left, top, right, bottom = seen.getbbox()  # type: ignore[misc]
    inner = given_up.getbbox()
    assert inner is not None
    rim = max(1, round(min(size) / 128))
    for found, wanted in zip(inner, (left + rim, top + rim, right - rim, bottom - rim), strict=True):
        assert abs(found - wanted) <= 1 + rim


def test_an_images_own_transparency_can_be_its_mask() -> None:
    image = Image.new("RGBA", (256, 256), (9, 9, 9, 255))
    ImageDraw.Draw(image).rectangle((64, 64, 191, 191), fill=(0, 0, 0, 0))
    assert has_transparency(sent(image))
    _, keep = decoded(mask_onto(sent(image, "mask"), sent(image), (256, 256), (256, 256))).split()[:2]
    assert (keep.getpixel((128, 128)), keep.getpixel((10, 10))) == (0, 255)


def test_a_thin_stroke_is_not_lost_beside_a_large_area() -> None:
    image = Image.new("L", (1024, 1024), 0)
    ImageDraw.Draw(image).rectangle((100, 100, 600, 600), fill=255)
    ImageDraw.Draw(image).line((700, 100, 700, 900), fill=255, width=5)
    _, keep = channels(sent(image, "mask"), (1024, 1024))
    assert keep.getpixel((700, 500)) == 0
    assert keep.getpixel((350, 350)) == 0
    assert keep.getpixel((704, 500)) == keep.getpixel((696, 500)) == 255
    assert 0 < keep.getpixel((104, 350)) < 255  # type: ignore[operator]


def test_a_mask_of_another_size_goes_where_the_image_goes() -> None:
    _, keep = channels(square("L", (64, 64), (16, 16, 47, 47)), (512, 256), (256, 256))
    assert keep.getpixel((128, 128)) == 0
    assert keep.getpixel((128, 40)) == 255
    assert keep.getpixel((5, 128)) < 20  # type: ignore[operator]  # the mask's quarter is cut off with the image's


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_mask_that_leaves_nothing_to_draw_is_refused_and_says_how_it_is_read(mode: str) -> None:
    closed = Image.new(mode, (64, 64), 0 if mode == "L" else (0, 0, 0, 255))
    with pytest.raises(InvalidImage, match="transparent") as caught:
        channels(sent(closed, "mask"), (64, 64))
    assert caught.value.param == "mask"
