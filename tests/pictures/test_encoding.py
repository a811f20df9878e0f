"""Which metadata encoded pictures contain, and that their pixels are unchanged."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from errors import EaselError, InvalidValue
from pictures import (
    BrokenPicture,
    as_png,
    crop,
    encode,
    is_transparent,
    opaque,
    png_size,
    size_in_canvas,
    with_texts,
)

PROMPT = "a red fox, 雪の中の狐, лиса"
MARK = "a red fox"
PARAMETERS = (
    "a red fox\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, CFG scale: 1, Seed: 7, Size: 24x16"
)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
USER_COMMENT = 0x9286
EXIF_IFD = 0x8769


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        data = png[at + 8 : at + 8 + length]
        assert chunk(png[at + 4 : at + 8], data) == png[at : at + 12 + length]
        yield png[at + 4 : at + 8], data
        at += 12 + length


def kinds(png: bytes) -> list[bytes]:
    return [kind for kind, _ in chunks(png)]


def pixel_bytes(png: bytes) -> list[bytes]:
    return [data for kind, data in chunks(png) if kind in (b"IDAT", b"fdAT")]


def noise(mode: Literal["RGB", "RGBA", "L", "LA"] = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    data = random.Random(3).randbytes(size[0] * size[1] * len(mode))
    return Image.frombytes(mode, size, data)


def saved(image: Image.Image, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, "PNG", **options)
    return target.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def palette() -> bytes:
    return saved(noise().quantize(16))


def palette_with_transparency() -> bytes:
    return saved(noise().quantize(16), transparency=bytes(range(16)))


def grey_16_bit() -> bytes:
    image = Image.frombytes("I;16", (24, 16), random.Random(4).randbytes(24 * 16 * 2))
    return saved(image)


def grey_16_bit_with_transparency() -> bytes:
    plain = grey_16_bit()
    return plain[:33] + chunk(b"tRNS", b"\xff\xfe") + plain[33:]


def rgb_16_bit() -> bytes:
    rows = b"".join(b"\0" + random.Random(y).randbytes(24 * 6) for y in range(16))
    header = struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def interlaced() -> bytes:
    pixels, rows = noise(), b""
    for x0, y0, dx, dy in [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]:
        for y in range(y0, 16, dy):
            row = [pixels.getpixel((x, y)) for x in range(x0, 24, dx)]
            rows += b"\0" + b"".join(bytes(pixel) for pixel in row if isinstance(pixel, tuple))
    header = struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 1)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def many_pixel_chunks() -> bytes:
    whole = saved(noise(size=(200, 100)))
    (data,) = [data for kind, data in chunks(whole) if kind == b"IDAT"]
    parts = b"".join(chunk(b"IDAT", data[at : at + 1000]) for at in range(0, len(data), 1000))
    return SIGNATURE + chunk(b"IHDR", whole[16:29]) + parts + chunk(b"IEND", b"")


def animated() -> bytes:
    frames = [noise(), noise().rotate(180)]
    target = io.BytesIO()
    frames[0].save(target, "PNG", save_all=True, append_images=frames[1:], duration=100)
    return target.getvalue()


def with_colour_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(noise(), icc_profile=profile, dpi=(300, 300))


PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb": lambda: saved(noise()),
    "alpha": lambda: saved(noise("RGBA")),
    "grey": lambda: saved(noise("L")),
    "grey and alpha": lambda: saved(noise("LA")),
    "black and white": lambda: saved(noise("L").convert("1")),
    "one colour transparent": lambda: saved(noise(), transparency=(1, 2, 3)),
    "palette": palette,
    "palette, transparent": palette_with_transparency,
    "16-bit grey": grey_16_bit,
    "16-bit grey, one level transparent": grey_16_bit_with_transparency,
    "16-bit rgb": rgb_16_bit,
    "interlaced": interlaced,
    "many IDAT": many_pixel_chunks,
    "animated": animated,
    "colour profile": with_colour_profile,
    "one pixel": lambda: saved(noise(size=(1, 1))),
}
all_pictures = pytest.mark.parametrize("plain", [make() for make in PICTURES.values()], ids=list(PICTURES))


def with_metadata(png: bytes) -> bytes:
    """The picture with the prompt in every place that a PNG has for it: before the pixels, after them, and after the
    end."""
    text, latin = PROMPT.encode(), MARK.encode()
    before = [
        chunk(b"tEXt", b"prompt\0" + latin),
        chunk(b"tEXt", b"workflow\0" + latin),
        chunk(b"tEXt", b"parameters\0old " + latin),
        chunk(b"tEXt", b"comment\0" + latin),
        chunk(b"zTXt", b"prompt2\0\0" + zlib.compress(text)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + text),
        chunk(b"tIME", struct.pack(">HBBBBB", 2025, 1, 2, 3, 4, 5)),
        chunk(b"prVt", text),
        chunk(b"caBX", text),
    ]
    after = [chunk(b"iTXt", b"Description\0\0\0\0\0" + text), chunk(b"tEXt", b"late\0" + latin)]
    return png[:33] + b"".join(before) + png[33:-12] + b"".join(after) + png[-12:] + b"trailing " + text


def same_pixels(png: bytes, other_png: bytes) -> bool:
    first, second = decoded(png), decoded(other_png)
    return (
        (first.mode, first.size, first.getpalette(), first.info.get("transparency"))
        == (second.mode, second.size, second.getpalette(), second.info.get("transparency"))
        and first.tobytes() == second.tobytes()
        and pixel_bytes(png) == pixel_bytes(other_png)
    )


def assert_no_prompt(data: bytes) -> None:
    for secret in (
        MARK.encode(),
        MARK.encode("utf-16-be"),
        MARK.encode("utf-16-le"),
        "雪".encode(),
        b"prompt",
    ):
        assert secret not in data


# --- PNG -------------------------------------------------------------------------------------------------------


@all_pictures
def test_none_keeps_the_pixels_and_removes_the_prompt(plain: bytes) -> None:
    stripped = with_texts(with_metadata(plain))
    assert stripped == with_texts(plain)
    assert_no_prompt(stripped)
    assert zlib.compress(PROMPT.encode()) not in stripped
    assert same_pixels(plain, stripped)
    assert not decoded(stripped).getexif()


def test_none_keeps_every_chunk_that_the_pixels_need() -> None:
    needed = [b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"cICP"]
    plain = palette_with_transparency()
    full = plain[:33] + b"".join(chunk(kind, b"\0" * 4) for kind in needed) + plain[33:]
    assert with_texts(full) == full
    assert {b"PLTE", b"tRNS"} <= set(kinds(plain))
    animation = animated()
    assert with_texts(animation) == animation
    assert {b"acTL", b"fcTL", b"fdAT"} <= set(kinds(animation))
    profile = with_colour_profile()
    assert with_texts(profile) == profile
    assert b"iCCP" in kinds(profile)


@all_pictures
def test_parameters_writes_one_text_chunk_before_the_pixels(plain: bytes) -> None:
    written = with_texts(with_metadata(plain), {"parameters": PARAMETERS})
    assert same_pixels(plain, written)
    texts = [(kind, data) for kind, data in chunks(written) if kind in (b"tEXt", b"zTXt", b"iTXt")]
    assert texts == [(b"tEXt", b"parameters\0" + PARAMETERS.encode())]
    assert kinds(written).index(b"tEXt") < kinds(written).index(b"IDAT")
    assert Image.open(io.BytesIO(written)).info["parameters"] == PARAMETERS


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("plain", b"tEXt"),
        ("", b"tEXt"),
        ("café\nÿ", b"tEXt"),
        (PROMPT, b"iTXt"),
        ("emoji 🦊", b"iTXt"),
        ("quote ’", b"iTXt"),
        ("x" * 200_000, b"tEXt"),
        ("狐" * 100_000, b"iTXt"),
    ],
)
def test_parameters_can_be_written_in_any_script(text: str, kind: bytes) -> None:
    written = with_texts(saved(noise()), {"parameters": text})
    assert kinds(written).count(kind) == 1
    image = decoded(written)
    assert isinstance(image, PngImagePlugin.PngImageFile)
    assert image.text == {"parameters": text}


@pytest.mark.parametrize("text", ["nul \0 inside", "lone \ud800 surrogate"])
def test_characters_that_a_text_chunk_cannot_contain_are_removed_or_replaced(text: str) -> None:
    written = with_texts(saved(noise()), {"parameters": text})
    assert decoded(written).info["parameters"] in ("nul  inside", "lone ? surrogate")


def test_several_texts_are_written_and_those_of_comfyui_are_replaced() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", '{"1": {"class_type": "SaveImageWebsocket"}}')
    info.add_text("workflow", '{"nodes": "狐"}')
    drawn = saved(noise(), pnginfo=info)
    written = with_texts(drawn + b"garbage", {"parameters": PARAMETERS, "prompt": '{"1": "狐"}'})
    assert decoded(written).info == {"parameters": PARAMETERS, "prompt": '{"1": "狐"}'}
    assert same_pixels(drawn, written)


@pytest.mark.parametrize("texts", [{}, {"parameters": PARAMETERS}])
def test_a_truncated_picture_is_refused(texts: dict[str, str]) -> None:
    picture = saved(noise(size=(4, 4)))
    for end in range(len(picture)):
        with pytest.raises(BrokenPicture):
            with_texts(picture[:end], texts)


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


HEADER = header(1, 1)
PIXEL = chunk(b"IDAT", zlib.compress(b"\0\0"))
END = chunk(b"IEND", b"")


INVALID = {
    "nothing": b"",
    "half a signature": b"\x89PNG",
    "a web page": b"<html>502 Bad Gateway</html>" * 10,
    "a jpeg": b"\xff\xd8\xff\xe0" + b"jpeg" * 20,
    "header not first": SIGNATURE + PIXEL + HEADER + END,
    "no pixels": SIGNATURE + HEADER + END,
    "no end": SIGNATURE + HEADER + PIXEL,
    "length out of bounds": SIGNATURE + HEADER + b"\xff\xff\xff\xffIDAT" + PIXEL + END,
    "kind not letters": SIGNATURE + HEADER + b"\x00\x00\x00\x01ID\0T" + PIXEL + END,
    "unknown critical chunk": SIGNATURE + HEADER + chunk(b"CgBI", b"\0\0\0\0") + PIXEL + END,
    "no width": SIGNATURE + header(0, 1) + PIXEL + END,
    "height beyond the standard": SIGNATURE + header(1, 1 << 31) + PIXEL + END,
}


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID)
def test_invalid_data_is_a_broken_picture(invalid: bytes) -> None:
    with pytest.raises(BrokenPicture) as caught:
        with_texts(invalid)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, EaselError)


def test_a_picture_with_a_changed_byte_is_broken_or_has_no_metadata() -> None:
    picture, rng = with_metadata(saved(noise(size=(4, 4)))), random.Random(5)
    for _ in range(2000):
        damaged = bytearray(picture)
        damaged[rng.randrange(len(picture))] = rng.randrange(256)
        try:
            stripped = with_texts(bytes(damaged))
        except BrokenPicture:
            continue
        assert set(kinds_unchecked(stripped)) <= {b"IHDR", b"IDAT", b"IEND"}


def kinds_unchecked(png: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(png):
        yield png[at + 4 : at + 8]
        at += 12 + int.from_bytes(png[at : at + 4])


# --- size ------------------------------------------------------------------------------------------------------


def test_the_size_is_read_from_the_first_bytes() -> None:
    assert png_size(saved(noise(size=(300, 7)))) == (300, 7)
    assert png_size(saved(noise(size=(300, 7)))[:24]) == (300, 7)


@pytest.mark.parametrize("data", [b"", SIGNATURE, saved(noise())[:23], b"GIF89a" + b"\0" * 40])
def test_the_size_of_invalid_data_is_a_broken_picture(data: bytes) -> None:
    with pytest.raises(BrokenPicture):
        png_size(data)


# --- JPEG and WebP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@all_pictures
def test_every_picture_becomes_a_jpeg_and_a_webp_without_the_prompt(
    plain: bytes, format: Literal["jpeg", "webp"]
) -> None:
    result = encode(with_metadata(plain), format, None, None)
    image = decoded(result)
    assert (image.format, image.size) == (format.upper(), png_size(plain))
    assert_no_prompt(result)
    assert not image.getexif()
    assert "comment" not in image.info


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("text", [PARAMETERS, PROMPT, "🦊", "狐" * 40_000])
def test_parameters_are_in_the_user_comment(format: Literal["jpeg", "webp"], text: str) -> None:
    result = encode(saved(noise()), format, 80, text)
    comment = decoded(result).getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment == b"UNICODE\0" + text[:32_000].encode("utf-16-be")


def test_transparency_becomes_white_in_a_jpeg_and_is_kept_in_a_webp() -> None:
    clear = saved(Image.new("RGBA", (16, 16), (200, 0, 0, 0)))
    half = saved(Image.new("RGBA", (16, 16), (0, 0, 0, 128)))
    assert decoded(encode(clear, "jpeg", 95, None)).getpixel((8, 8)) == (255, 255, 255)
    level = decoded(encode(half, "jpeg", 95, None)).getpixel((8, 8))
    assert isinstance(level, tuple)
    assert abs(level[0] - 127) <= 2
    assert decoded(encode(clear, "webp", 95, None)).mode == "RGBA"


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = Image.new("I;16", (16, 16), 0x8080)
    level = decoded(encode(saved(grey), "jpeg", 95, None)).getpixel((8, 8))
    assert isinstance(level, tuple)
    assert abs(level[0] - 0x80) <= 2


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_higher_quality_makes_a_larger_file(format: Literal["jpeg", "webp"]) -> None:
    picture = saved(noise(size=(128, 128)))
    sizes = [len(encode(picture, format, quality, None)) for quality in (0, 50, None, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_colour_profile_is_kept(format: Literal["jpeg", "webp"]) -> None:
    picture = with_colour_profile()
    assert (
        decoded(encode(picture, format, None, None)).info["icc_profile"]
        == decoded(picture).info["icc_profile"]
    )


def test_a_picture_with_a_huge_size_in_its_header_is_not_decoded() -> None:
    bomb = SIGNATURE + header(60_000, 60_000) + PIXEL + END
    with pytest.raises(BrokenPicture, match="60000x60000"):
        encode(bomb, "jpeg", None, None)


def test_a_side_that_is_too_long_for_the_format_is_an_error_of_the_request() -> None:
    wide = saved(Image.new("L", (20_000, 1)))
    with pytest.raises(InvalidValue) as caught:
        encode(wide, "webp", None, None)
    assert caught.value.param == "output_format"
    assert decoded(encode(wide, "jpeg", None, None)).size == (20_000, 1)


DAMAGED = {
    "not deflated": SIGNATURE + HEADER + chunk(b"IDAT", b"not deflated") + END,
    "half the pixels": SIGNATURE
    + header(99, 99)
    + chunk(b"IDAT", zlib.compress(random.randbytes(5000)))
    + END,
    "no such depth": SIGNATURE + header(1, 1, depth=7, colour=9) + PIXEL + END,
    "checksum of the header": SIGNATURE + HEADER[:-4] + b"\0\0\0\0" + PIXEL + END,
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_pixels_that_cannot_be_decoded_are_a_broken_picture(
    damaged: bytes, format: Literal["jpeg", "webp"]
) -> None:
    with pytest.raises(BrokenPicture):
        encode(damaged, format, None, None)


# --- pictures as the engine made them ---------------------------------------------------------------


def test_a_picture_is_cropped_to_its_top_left_part_with_its_pixels() -> None:
    image = noise(size=(24, 16))
    cropped = crop(with_metadata(saved(image)), (21, 13))
    assert png_size(cropped) == (21, 13)
    assert decoded(cropped).tobytes() == image.crop((0, 0, 21, 13)).tobytes()
    assert_no_prompt(cropped)
    assert crop(png := saved(image), (24, 16)) is png


def test_a_picture_that_is_cropped_and_converted_is_not_encoded_as_a_png_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, written = noise(size=(24, 16)), []
    png, save = saved(image), Image.Image.save

    def record(self: Image.Image, target: Any, format: str, **options: Any) -> None:
        written.append(format)
        save(self, target, format, **options)

    monkeypatch.setattr(Image.Image, "save", record)
    for form in ("jpeg", "webp"):
        assert decoded(encode(png, form, None, None, size=(21, 13))).size == (21, 13)
    assert written == ["jpeg", "webp"]


def test_the_part_of_a_canvas_that_was_enlarged_is_in_proportion() -> None:
    assert size_in_canvas(saved(noise(size=(48, 32))), (21, 13), (24, 16)) == (42, 26)
    assert size_in_canvas(saved(noise(size=(24, 16))), (21, 13), (24, 16)) == (21, 13)


def test_a_canvas_that_is_damaged_or_huge_is_a_broken_picture() -> None:
    for data in (b"no png", saved(noise())[:-20], header(60_000, 60_000)):
        with pytest.raises(BrokenPicture):
            crop(data, (12, 8))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_another_format_becomes_a_png(form: str, mode: Literal["RGB", "L"]) -> None:
    buffer = io.BytesIO()
    noise(mode).save(buffer, form)
    png = as_png(buffer.getvalue())
    assert png_size(png) == (24, 16)
    assert kinds(png)[-1] == b"IEND"


def test_a_png_is_not_converted_and_what_is_no_picture_is_broken() -> None:
    png = with_metadata(saved(noise()))
    assert as_png(png) is png
    for data in (b"", b"%PDF-1.4", b"\xff\xd8\xff\xe0 no jpeg"):
        with pytest.raises(BrokenPicture):
            as_png(data)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_picture_is_transparent_if_a_pixel_that_is_shown_is(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    image.putpixel((6, 6), (9, 9, 9, 0))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    png = buffer.getvalue()
    assert is_transparent(png, (8, 8))
    assert not is_transparent(png, (5, 5))
    assert not is_transparent(opaque(png), (8, 8))


def test_a_colour_of_a_palette_may_be_transparent() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((3, 3), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=1)
    assert is_transparent(buffer.getvalue(), (4, 4))
    assert not is_transparent(buffer.getvalue(), (3, 3))
    assert Image.open(io.BytesIO(opaque(buffer.getvalue()))).getpixel((3, 3)) == (255, 255, 255)
