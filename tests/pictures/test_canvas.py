"""How an image and its mask are fitted to the canvas."""

from __future__ import annotations

import threading

import pytest
from PIL import Image, ImageChops, ImageDraw

from errors import InvalidImage
from pictures import InputImage, convert_image, fit_image, fit_mask, has_transparency, read_image
from tests.pictures.pictures import decoded, encoded, pattern

Pair = tuple[int, int]


def input_image(image: Image.Image, param: str = "image") -> InputImage:
    return read_image(encoded(image), param=param)


@pytest.mark.parametrize(
    ("size", "canvas"), [((256, 256), (256, 256)), ((500, 333), (504, 336)), ((9, 7), (16, 16))]
)
def test_an_image_of_the_size_keeps_its_pixels_and_its_edges_are_repeated_on_the_canvas(
    size: Pair, canvas: Pair
) -> None:
    image = pattern(*size)
    result = decoded(fit_image(input_image(image), size, canvas))
    assert (result.size, result.mode) == (canvas, "RGB")
    assert result.crop((0, 0, *size)).tobytes() == image.tobytes()
    for x in range(size[0], canvas[0]):
        assert result.crop((x, 0, x + 1, size[1])).tobytes() == image.crop((size[0] - 1, 0, *size)).tobytes()
    last = result.crop((0, size[1] - 1, canvas[0], size[1])).tobytes()
    for y in range(size[1], canvas[1]):
        assert result.crop((0, y, canvas[0], y + 1)).tobytes() == last


@pytest.mark.parametrize("image_size", [(16_384, 1), (1, 16_384), (3, 5), (1, 1)])
@pytest.mark.parametrize("size", [(64, 64), (120, 8)])
def test_an_image_of_any_shape_can_be_fitted_to_any_size(image_size: Pair, size: Pair) -> None:
    result = decoded(fit_image(input_image(Image.new("RGB", image_size, (9, 120, 200))), size, (128, 64)))
    assert result.getcolors() == [(128 * 64, (9, 120, 200))]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_a_white_image_of_every_mode_stays_white_when_scaled(mode: str) -> None:
    image = Image.new("L", (400, 400), 255).convert(mode)
    result = decoded(fit_image(input_image(image), (100, 100), (104, 104)))
    assert (result.mode, result.getcolors()) == ("RGB", [(104 * 104, (255, 255, 255))])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_image_of_another_shape_is_scaled_to_cover_and_its_centre_is_kept(form: str) -> None:
    image = Image.new("RGB", (800, 400), "white")
    ImageDraw.Draw(image).rectangle((300, 0, 499, 399), fill=(255, 0, 0))
    data = encoded(image, form, **({"quality": 95} if form == "JPEG" else {}))
    result = decoded(fit_image(read_image(data), (200, 200), (200, 200)))
    red = [result.getpixel((x, 100))[1] < 100 for x in (40, 60, 140, 160)]  # type: ignore[index]
    assert red == [False, True, True, False]


def test_a_large_jpeg_decoded_at_a_reduced_size_looks_the_same() -> None:
    image = pattern(64, 64).resize((2048, 2048), Image.Resampling.BICUBIC)
    result = decoded(fit_image(read_image(encoded(image, "JPEG", quality=95)), (256, 256), (256, 256)))
    expected = image.resize((256, 256), Image.Resampling.LANCZOS)
    worst = ImageChops.difference(result, expected).convert("L").getextrema()[1]
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
    return input_image(image, "mask")


def channels(
    mask: InputImage, image: Pair = (256, 256), size: Pair | None = None, canvas: Pair | None = None
) -> tuple[Image.Image, Image.Image]:
    """The red channel (where to draw) and the green channel (what to keep)."""
    size = size or image
    result = decoded(fit_mask(mask, input_image(pattern(*image)), size, canvas or size))
    red, green, _ = result.split()
    return red, green


@pytest.mark.parametrize("kind", ["alpha", "L", "RGB", "1"])
def test_the_masked_area_is_transparent_or_else_white(kind: str) -> None:
    draw, keep = channels(square(kind))
    assert draw.getpixel((128, 128)) == draw.getpixel((64, 64)) == draw.getpixel((191, 191)) == 255
    assert draw.getpixel((10, 10)) == 0
    assert keep.getpixel((128, 128)) == 0
    assert keep.getpixel((10, 10)) == 255


def test_everything_outside_the_mask_is_kept_and_the_drawing_fades_in_inside_it() -> None:
    _, keep = channels(square("L"))
    inside = (64, 64, 192, 192)
    outside = keep.copy()
    outside.paste(255, inside)
    assert outside.getextrema() == (255, 255)
    rim = [keep.getpixel((x, 128)) for x in range(62, 70)]
    assert rim[:2] == [255, 255]
    assert rim == sorted(rim, reverse=True)  # type: ignore[type-var]
    assert rim[-1] == 0


def test_the_model_may_draw_in_a_rim_around_the_mask() -> None:
    draw, _ = channels(square("L"))
    rim = [draw.getpixel((x, 128)) for x in range(52, 66)]
    assert rim == sorted(rim)  # type: ignore[type-var]
    assert rim[0] == 0
    assert any(0 < level < 255 for level in rim)  # type: ignore[operator]
    assert rim[-2:] == [255, 255]


def test_a_mask_does_not_fade_at_the_edge_of_the_image() -> None:
    draw, keep = channels(square("L", (250, 250), (100, 0, 249, 249)), (250, 250), (250, 250), (256, 256))
    assert draw.size == (256, 256)
    assert keep.getpixel((249, 125)) == keep.getpixel((180, 0)) == 0
    assert draw.getpixel((249, 125)) == 255
    assert draw.getpixel((253, 253)) == 0


def test_a_thin_stroke_is_redrawn() -> None:
    _, keep = channels(square("L", box=(100, 50, 100, 200)))
    assert keep.getpixel((100, 100)) == 0
    assert keep.getpixel((102, 100)) == 255


def test_a_thin_stroke_is_drawn_at_full_strength() -> None:
    draw, _ = channels(square("L", box=(100, 50, 100, 200)))
    assert draw.getpixel((100, 100)) == 255


def test_everything_outside_a_mask_with_jpeg_artefacts_is_kept() -> None:
    image = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(image).ellipse((64, 64, 191, 191), fill=255)
    mask = read_image(encoded(image, "JPEG", quality=30), param="mask")
    _, keep = channels(mask)
    outside = Image.new("L", (256, 256), 255)
    ImageDraw.Draw(outside).ellipse((63, 63, 192, 192), fill=0)
    assert ImageChops.lighter(keep, ImageChops.invert(outside)).getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("image_size", "size", "canvas"),
    [((800, 400), (200, 200), (200, 200)), ((300, 500), (256, 128), (256, 128)), ((64, 64), (500, 333), (504, 336))],
)  # fmt: skip
def test_a_mask_has_the_same_position_as_the_area_that_it_marks(
    image_size: Pair, size: Pair, canvas: Pair
) -> None:
    width, height = image_size
    box = (width * 3 // 8, height * 3 // 8, width * 5 // 8, height * 5 // 8)
    image = Image.new("L", image_size)
    ImageDraw.Draw(image).rectangle(box, fill=255)
    marked = (
        decoded(fit_image(input_image(image), size, canvas))
        .getchannel("R")
        .point(lambda level: 255 * (level > 127))
    )
    _, keep, _ = decoded(fit_mask(input_image(image, "mask"), input_image(image), size, canvas)).split()
    redrawn = keep.crop((0, 0, *size)).point(lambda level: 255 * (level < 128))
    left, top, right, bottom = marked.getbbox()  # type: ignore[misc]
    inner = redrawn.getbbox()
    assert inner is not None
    rim = max(1, round(min(size) / 128))
    for side, expected in zip(inner, (left + rim, top + rim, right - rim, bottom - rim), strict=True):
        assert abs(side - expected) <= 1 + rim


def test_the_transparency_of_an_image_can_be_its_mask() -> None:
    image = Image.new("RGBA", (256, 256), (9, 9, 9, 255))
    ImageDraw.Draw(image).rectangle((64, 64, 191, 191), fill=(0, 0, 0, 0))
    assert has_transparency(input_image(image))
    _, keep = decoded(
        fit_mask(input_image(image, "mask"), input_image(image), (256, 256), (256, 256))
    ).split()[:2]
    assert (keep.getpixel((128, 128)), keep.getpixel((10, 10))) == (0, 255)


def test_a_thin_stroke_next_to_a_large_area_is_redrawn() -> None:
    image = Image.new("L", (1024, 1024), 0)
    ImageDraw.Draw(image).rectangle((100, 100, 600, 600), fill=255)
    ImageDraw.Draw(image).line((700, 100, 700, 900), fill=255, width=5)
    _, keep = channels(input_image(image, "mask"), (1024, 1024))
    assert keep.getpixel((700, 500)) == 0
    assert keep.getpixel((350, 350)) == 0
    assert keep.getpixel((704, 500)) == keep.getpixel((696, 500)) == 255
    assert 0 < keep.getpixel((104, 350)) < 255  # type: ignore[operator]


def test_a_mask_of_another_size_is_scaled_and_cropped_like_the_image() -> None:
    _, keep = channels(square("L", (64, 64), (16, 16, 47, 47)), (512, 256), (256, 256))
    assert keep.getpixel((128, 128)) == 0
    assert keep.getpixel((128, 40)) == 255
    assert keep.getpixel((5, 128)) < 20  # type: ignore[operator]  # a quarter of the mask is cropped with the image


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_an_empty_mask_is_refused_with_an_explanation(mode: str) -> None:
    empty = Image.new(mode, (64, 64), 0 if mode == "L" else (0, 0, 0, 255))
    with pytest.raises(InvalidImage, match="transparent") as caught:
        channels(input_image(empty, "mask"), (64, 64))
    assert caught.value.param == "mask"


# --- markup and further images ---------------------------------------------------------------------


def layer(size: Pair, box: tuple[int, int, int, int], colour: tuple[int, int, int, int]) -> InputImage:
    """A transparent picture with a rectangle."""
    image = Image.new("RGBA", size, (255, 255, 255, 0))
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return input_image(image, "markup")


def test_a_markup_changes_only_the_pixels_that_it_covers() -> None:
    image = pattern(64, 48)
    markup = layer((64, 48), (10, 10, 19, 19), (0, 0, 255, 255))
    result = decoded(fit_image(input_image(image), (64, 48), (64, 48), markup))
    expected = image.copy()
    ImageDraw.Draw(expected).rectangle((10, 10, 19, 19), fill=(0, 0, 255))
    assert result.tobytes() == expected.tobytes()


def test_a_half_transparent_markup_is_blended() -> None:
    markup = layer((8, 8), (0, 0, 7, 3), (0, 0, 200, 128))
    result = decoded(fit_image(input_image(Image.new("RGB", (8, 8), (200, 0, 0))), (8, 8), (8, 8), markup))
    assert result.getpixel((4, 1)) == (100, 0, 100)
    assert result.getpixel((4, 6)) == (200, 0, 0)


def test_a_markup_is_scaled_and_cropped_with_its_image() -> None:
    markup = layer((800, 400), (300, 0, 499, 399), (255, 0, 0, 255))
    image = input_image(Image.new("RGB", (800, 400), "white"))
    result = decoded(fit_image(image, (200, 200), (200, 200), markup))
    red = [result.getpixel((x, 100))[1] < 100 for x in (40, 60, 140, 160)]  # type: ignore[index]
    assert red == [False, True, True, False]


def test_a_scaled_markup_has_no_fringe_of_the_colour_under_its_transparency() -> None:
    markup = layer((400, 400), (0, 0, 199, 399), (0, 0, 0, 255))
    image = input_image(Image.new("RGB", (400, 400), (40, 40, 40)))
    result = decoded(fit_image(image, (100, 100), (100, 100), markup))
    assert max(high for _, high in result.getextrema()) <= 41  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_a_markup_without_transparency_is_refused(mode: str) -> None:
    markup = input_image(Image.new("L", (8, 8), 200).convert(mode), "markup")
    with pytest.raises(InvalidImage, match="no transparent pixels") as caught:
        fit_image(input_image(pattern(8, 8)), (8, 8), (8, 8), markup)
    assert caught.value.param == "markup"


def test_pictures_with_markups_in_threads_do_not_wait_for_each_other() -> None:
    image, markup = input_image(pattern(64, 64)), layer((64, 64), (0, 0, 9, 9), (0, 0, 0, 255))
    threads = [
        threading.Thread(
            target=lambda: [fit_image(image, (64, 64), (64, 64), markup) for _ in range(20)], daemon=True
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_another_image_becomes_an_rgb_png_of_its_own_size(mode: str) -> None:
    image = pattern(37, 23).convert(mode)
    result = decoded(convert_image(input_image(image)))
    assert (result.size, result.mode, result.info) == ((37, 23), "RGB", {})
    if mode == "RGB":
        assert result.tobytes() == image.tobytes()


def test_another_image_is_turned_upright_and_laid_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = pattern(30, 20).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 0))
    result = decoded(convert_image(read_image(encoded(image, exif=exif))))
    assert result.size == (20, 30)
    assert result.getpixel((19, 0)) == (255, 255, 255)


def test_an_image_that_is_larger_as_a_png_than_the_engine_takes_is_refused() -> None:
    with pytest.raises(InvalidImage, match="Send a smaller one"):
        convert_image(input_image(pattern(64, 64)), max_bytes=200)
