"""Which pictures are accepted, how they are decoded, and which are refused."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageCms

from errors import InvalidImage
from pictures import fit_image, has_transparency, read_image
from pictures.decoding import pixels_of
from tests.pictures.pictures import bomb, chunk, decoded, empty_scans, encoded, pattern, png

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")


def drawn(data: bytes) -> Image.Image:
    image = read_image(data)
    return decoded(fit_image(image, image.size, image.size))


def near(pixel: Any, expected: tuple[int, int, int], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True))


all_formats = pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])


@all_formats
def test_every_format_is_detected_from_its_bytes(image_format: str) -> None:
    image = read_image(encoded(Image.new("RGB", (40, 30), (200, 100, 50)), image_format))
    assert image.size == (40, 30)
    assert near(drawn(image.data).getpixel((20, 15)), (200, 100, 50), 8)


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
def test_every_mode_is_converted_to_rgb(image: Image.Image, pixel: tuple[int, int, int]) -> None:
    assert near(drawn(encoded(image)).getpixel((4, 4)), pixel, 1)


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert drawn(encoded(image, transparency=0)).getpixel((4, 4)) == (255, 255, 255)


def test_cmyk_is_converted_to_rgb() -> None:
    image = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    assert near(drawn(encoded(image, "JPEG", quality=95)).getpixel((8, 8)), (220, 30, 40), 6)


def test_ycck_as_photoshop_writes_it_is_converted_to_rgb() -> None:
    cyan_magenta_yellow = Image.new("RGB", (16, 16), (255 - 220, 255 - 30, 255 - 40)).convert("YCbCr")
    channels = [ImageChops.invert(channel) for channel in cyan_magenta_yellow.split()]
    image = Image.merge("CMYK", [*channels, Image.new("L", (16, 16))])
    data = encoded(image, "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    ycck = data[:transform] + b"\x02" + data[transform + 1 :]
    assert near(drawn(ycck).getpixel((8, 8)), (220, 30, 40), 6)


def test_16_bit_rgb_is_scaled_to_8_bit() -> None:
    row = b"\0" + b"\xff\xff\x80\x00\x00\x00" * 8
    assert near(drawn(png(8, 8, b"\x10\x02", row * 8)).getpixel((4, 4)), (255, 128, 0), 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_rotated_by_its_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image_format, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        data = encoded(stored, image_format, exif=exif, **options)
        assert read_image(data).size == (60, 40)
        result = drawn(data)
        assert near(result.getpixel((8, 8)), (255, 0, 0), 12), image_format
        assert near(result.getpixel((50, 30)), (255, 255, 255), 12)


def test_a_rotated_jpeg_decoded_at_a_reduced_size_is_upright() -> None:
    upright = Image.new("RGB", (1600, 800), "white")
    upright.paste((255, 0, 0), (0, 0, 400, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    result = decoded(fit_image(read_image(data), (160, 80), (160, 80)))
    assert near(result.getpixel((20, 20)), (255, 0, 0), 12)
    assert near(result.getpixel((20, 60)), (255, 255, 255), 12)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        assert near(drawn(data).getpixel((4, 4)), (255, 0, 0), 4), image_format


def test_the_first_photo_of_an_mpo_file_is_used() -> None:
    photos = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(photos[0], "MPO", save_all=True, append_images=photos[1:])
    assert near(drawn(data).getpixel((4, 4)), (255, 0, 0), 4)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_for_blue() -> bytes:
    """A profile in which the channels are blue, green and red."""
    swapped = SRGB.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    return swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("profile", "pixel"),
    [(red_for_blue(), (0, 0, 255)), (SRGB, (255, 0, 0)), (b"no profile", (255, 0, 0)), (SRGB[:300], (255, 0, 0))],
    ids=["another", "sRGB", "none", "cut off"],
)  # fmt: skip
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_colour_profile_is_applied_unless_it_is_unusable(
    image_format: str, profile: bytes, pixel: tuple[int, int, int]
) -> None:
    data = encoded(Image.new("RGB", (16, 16), (255, 0, 0)), image_format, icc_profile=profile)
    assert near(drawn(data).getpixel((8, 8)), pixel, 6)


def test_a_profile_for_srgb_or_for_another_colour_mode_changes_nothing() -> None:
    image = pattern(64, 64)
    assert drawn(encoded(image, icc_profile=SRGB)).tobytes() == image.tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert drawn(encoded(image, icc_profile=lab)).tobytes() == image.tobytes()


def test_a_profile_does_not_change_transparency() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert drawn(encoded(image, icc_profile=red_for_blue())).getpixel((4, 4)) == (255, 255, 255)


def test_has_transparency() -> None:
    assert not has_transparency(read_image(encoded(Image.new("RGB", (8, 8)))))
    assert not has_transparency(read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 255)))))
    assert has_transparency(read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 254)))))


# --- cost ------------------------------------------------------------------------------------------


def test_reading_an_image_does_not_decode_its_pixels() -> None:
    image = read_image(png(8192, 8192, b"\x08\x06", b"far too few pixels"))
    assert image.size == (8192, 8192)
    with pytest.raises(InvalidImage, match="damaged"):
        fit_image(image, (64, 64), (64, 64))


def test_at_most_two_pictures_are_decoded_at_a_time() -> None:
    image = read_image(encoded(Image.new("RGB", (8, 8))))
    inside, may_leave = threading.Semaphore(0), threading.Event()

    def decode() -> None:
        with pixels_of(image):
            inside.release()
            may_leave.wait(10)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=10)
    assert inside.acquire(timeout=10)
    assert not inside.acquire(timeout=0.1)
    may_leave.set()
    assert inside.acquire(timeout=10)
    for thread in threads:
        thread.join(90)


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc to read the peak memory")
def test_decoding_a_picture_takes_at_most_the_documented_memory() -> None:
    program = f"""
import re, sys
from pathlib import Path
from pictures import fit_image, read_image
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("{STATUS}").read_text())[1])
data = sys.stdin.buffer.read()
before = peak()
fit_image(read_image(data), (64, 64), (64, 64))
print(peak() - before)
"""
    data = png(4096, 4096, b"\x08\x06", bytes(4096 * (1 + 4 * 4096)))
    process = subprocess.run(
        [sys.executable, "-c", program], input=data, cwd=ROOT, capture_output=True, check=True, timeout=180
    )
    assert 4 < int(process.stdout) * 1024 / 4096**2 < 12.5


def test_decoding_in_threads_restores_the_warning_filters() -> None:
    data, before = encoded(pattern(24, 24)), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [drawn(data) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert list(warnings.filters) == before


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["TIFF", "ICO", "PPM", "PDF", "TGA", "ICNS", "JPEG2000"])
def test_other_formats_are_refused(image_format: str) -> None:
    with pytest.raises(InvalidImage, match=r"^Invalid image: it is not a PNG"):
        read_image(encoded(Image.new("RGB", (16, 16)), image_format))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"text", "not a PNG, JPEG, WebP, GIF, BMP or AVIF."),
        (b"\0" * 1000, "not a PNG, JPEG, WebP, GIF, BMP or AVIF."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it seems to be HTML, SVG or other markup"),
        (b"\xef\xbb\xbf\n <!doctype html><html>", "it seems to be HTML, SVG or other markup"),
        (b"%PDF-1.7", "it seems to be a PDF"),
        (encoded(Image.new("L", (8, 8)), "TIFF"), "it seems to be a TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it seems to be a HEIC"),
        (b"\x89PNG\r\n\x1a\n", "it seems to be a PNG with a damaged header"),
        (b"GIF89a", "it seems to be a GIF with a damaged header"),
        (b"\xff\xd8\xff", "damaged"),
    ],
)
def test_data_that_is_not_a_picture_is_refused_with_its_param_and_what_it_seems_to_be(
    data: bytes, reason: str
) -> None:
    with pytest.raises(InvalidImage, match=r"^Invalid image: ") as caught:
        read_image(data, param="mask")
    assert caught.value.param == "mask"
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("width", "height"),
    [(60_000, 60_000), (12_000, 12_000), (10_000, 9000), (8193, 8193), (2**31 - 1, 1), (1, 16_385), (2**31 - 1,) * 2],
)  # fmt: skip
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(InvalidImage, match="the maximum is 67108864"):
        read_image(bomb(width, height))


def huge_gif() -> bytes:
    small = encoded(Image.new("P", (8, 8)), "GIF")
    return small[:6] + b"\xff\xff\xff\xff" + small[10:]


def huge_webp() -> bytes:
    frames = [Image.new("RGBA", (8, 8), colour) for colour in ("red", "blue")]
    small = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    canvas = small.index(b"VP8X") + 12
    return small[:canvas] + (16_382).to_bytes(3, "little") * 2 + small[canvas + 6 :]


def huge_bmp() -> bytes:
    small = encoded(Image.new("RGB", (8, 8)), "BMP")
    return small[:18] + (60_000).to_bytes(4, "little") * 2 + small[26:]


@pytest.mark.parametrize("make", [huge_gif, huge_webp, huge_bmp])
def test_a_small_file_with_a_huge_canvas_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(InvalidImage, match="the maximum is 67108864"):
        read_image(make())


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    assert drawn(empty_scans(90)).size == (64, 64)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        read_image(empty_scans(101))


@pytest.mark.parametrize("segment", [b"\xff\xe0\0\2", b"\xff\x01", b"\xff\xd9"])
def test_a_jpeg_with_too_many_segments_is_refused(segment: bytes) -> None:
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    with pytest.raises(InvalidImage, match="more than 10000 segments"):
        read_image(data[:2] + segment * 10_000 + data[2:])


@pytest.mark.parametrize("filler", [b"\xff" * 1_000_000, b"\xff\0" * 500_000, b"\xff\xd0" * 500_000])
def test_filler_between_the_segments_of_a_jpeg_is_skipped_quickly(filler: bytes) -> None:
    data = encoded(Image.new("L", (8, 8)), "JPEG")
    started_at = time.monotonic()
    outcome(data[:-2] + filler + b"\0" + data[-2:])
    assert time.monotonic() - started_at < 2


def test_scan_markers_in_a_comment_and_after_the_end_are_not_counted() -> None:
    data = encoded(Image.new("RGB", (16, 16), "red"), "JPEG", comment=b"\xff\xda" * 500)
    assert drawn(data + b"\xff\xda\0\2" * 500).size == (16, 16)


def test_a_text_that_unpacks_to_megabytes_is_refused() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 80_000_000))
    data = encoded(Image.new("RGB", (8, 8), "red"))
    data = data[:33] + text + data[33:]
    with pytest.raises(InvalidImage, match="damaged"):
        drawn(data)


def test_a_profile_that_unpacks_to_megabytes_is_refused() -> None:
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 80_000_000))
    data = encoded(Image.new("RGB", (8, 8), "red"))
    with pytest.raises(InvalidImage, match="damaged"):
        drawn(data[:33] + profile + data[33:])


def outcome(data: bytes) -> str:
    try:
        drawn(data)
    except InvalidImage:
        return "refused"
    return "accepted"


def with_metadata(image_format: str) -> bytes:
    """A picture with all metadata that the format supports."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [pattern(24, 24).rotate(90)]}
    metadata: dict[str, Any] = {"exif": exif, "icc_profile": red_for_blue()}
    return encoded(pattern(24, 24), image_format, **(metadata if image_format in ("JPEG", "WEBP", "AVIF", "PNG") else {}),
                   **(frames if image_format in ("GIF", "PNG", "WEBP") else {}))  # fmt: skip


@all_formats
def test_random_damage_raises_nothing_but_invalid_image(image_format: str) -> None:
    whole, rng = with_metadata(image_format), random.Random(image_format)
    outcomes = set()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        outcomes.add(outcome(bytes(data)))
    assert "refused" in outcomes


@all_formats
def test_a_truncated_picture_raises_nothing_but_invalid_image(image_format: str) -> None:
    whole = with_metadata(image_format)
    cuts = range(0, len(whole), max(1, len(whole) // 150))
    assert {outcome(whole[:end]) for end in cuts if end < len(whole) // 2} == {"refused"}
    assert outcome(whole) == "accepted"
    for end in cuts:
        outcome(whole[:end])


def test_noise_after_a_valid_start_is_refused() -> None:
    rng = random.Random(7)
    for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"):
        start = with_metadata(image_format)
        for length in (8, 16, 32, 64):
            assert outcome(start[:length] + rng.randbytes(500)) == "refused", (image_format, length)
