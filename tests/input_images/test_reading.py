"""What is taken for a picture, and what is not."""

from __future__ import annotations

import base64
import random
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from errors import InvalidImage
from input_images import decode_text, draw_onto, has_transparency, read_image
from tests.input_images.pictures import bomb, chunk, decoded, encoded, pattern


def drawn(data: bytes) -> Image.Image:
    image = read_image(data)
    return decoded(draw_onto(image, image.size, image.size))


def near(pixel: Any, wanted: tuple[int, int, int], by: int = 3) -> bool:
    return all(abs(one - other) <= by for one, other in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_every_common_format_is_known_by_its_bytes(form: str) -> None:
    image = read_image(encoded(Image.new("RGB", (40, 30), (200, 100, 50)), form))
    assert image.size == (40, 30)
    assert near(drawn(image.data).getpixel((20, 15)), (200, 100, 50), 8)


@pytest.mark.parametrize("form", ["TIFF", "ICO", "PPM", "PDF", "TGA"])
def test_other_formats_are_not_even_tried(form: str) -> None:
    with pytest.raises(InvalidImage, match="it is no PNG"):
        read_image(encoded(Image.new("RGB", (16, 16)), form))


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("I;16", (8, 8), 65_535), (255, 255, 255)),
        (Image.new("I;16", (8, 8), 32_768), (127, 127, 127)),
        (Image.new("RGB", (8, 8), (9, 120, 200)).convert("P", palette=Image.Palette.ADAPTIVE), (9, 120, 200)),
    ],
    ids=["grey", "1 bit", "grey and alpha", "transparent", "opaque", "16 bit white", "16 bit grey", "palette"],
)  # fmt: skip
def test_every_mode_becomes_what_a_person_sees(image: Image.Image, pixel: tuple[int, int, int]) -> None:
    assert near(drawn(encoded(image)).getpixel((4, 4)), pixel, 1)


def test_a_palette_with_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert drawn(encoded(image, transparency=0)).getpixel((4, 4)) == (255, 255, 255)


def test_cmyk_has_its_right_colours() -> None:
    image = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    assert near(drawn(encoded(image, "JPEG", quality=95)).getpixel((8, 8)), (220, 30, 40), 6)


def test_sixteen_bits_a_channel_are_scaled() -> None:
    row = b"\0" + (b"\xff\xff\x80\x00\x00\x00" * 8)
    header = (8).to_bytes(4, "big") * 2 + b"\x10\x02\x00\x00\x00"
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 8))
        + chunk(b"IEND", b"")
    )
    assert near(drawn(data).getpixel((4, 4)), (255, 128, 0), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_held_upright(orientation: int) -> None:
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    held = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        data = encoded(held, form, exif=exif, **options)
        assert read_image(data).size == (60, 40)
        made = drawn(data)
        assert near(made.getpixel((8, 8)), (255, 0, 0), 12), form
        assert near(made.getpixel((50, 30)), (255, 255, 255), 12)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert near(drawn(data).getpixel((4, 4)), (255, 0, 0), 4), form


def test_a_profile_that_is_not_srgb_is_counted_in_and_one_that_is_changes_nothing() -> None:
    image = pattern(64, 64)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert drawn(encoded(image, icc_profile=srgb)).tobytes() == image.tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert drawn(encoded(image, icc_profile=lab)).size == (64, 64)
    assert drawn(encoded(image, icc_profile=b"no profile")).tobytes() == image.tobytes()


def test_whether_anything_is_transparent_is_known() -> None:
    assert not has_transparency(read_image(encoded(Image.new("RGB", (8, 8)))))
    assert not has_transparency(read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 255)))))
    assert has_transparency(read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 254)))))


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"text", b"<svg/>", b"<html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused_by_its_param(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^Invalid image: ") as caught:
        read_image(data, param="mask")
    assert caught.value.param == "mask"


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (8193, 8193), (2**31 - 1, 1), (1, 16_385), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(InvalidImage):
        read_image(bomb(width, height))


def test_a_text_that_unpacks_to_megabytes_is_refused_or_left_alone() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 80_000_000))
    data = encoded(Image.new("RGB", (8, 8), "red"))
    data = data[:33] + text + data[33:]
    with pytest.raises(InvalidImage, match="damaged"):
        drawn(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_no_damage_is_anything_but_an_invalid_image(form: str) -> None:
    whole, dice = encoded(pattern(24, 24), form), random.Random(form)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        try:
            drawn(bytes(data))
            outcomes.add("taken")
        except InvalidImage:
            outcomes.add("refused")
    assert "refused" in outcomes


# --- texts -----------------------------------------------------------------------------------------


PNG = encoded(Image.new("RGB", (3, 3), "red"))


def test_a_text_is_decoded_however_it_was_written() -> None:
    plain = base64.b64encode(PNG).decode()
    spellings = [
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        "\n".join(plain[i : i + 60] for i in range(0, len(plain), 60)),
        f"data:image/png;base64,{plain}",
        f"  DATA:image/png;charset=utf-8;base64,{plain}\n",
        f"data:;base64,{plain}",
        "data:image/png;base64," + plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ]
    assert {decode_text(text, param="image") for text in spellings} == {PNG}


@pytest.mark.parametrize("text", ["!", "data:image/png;base64,***", "ü" * 10, "https//x y"])
def test_a_text_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage):
        decode_text(text, param="image")
