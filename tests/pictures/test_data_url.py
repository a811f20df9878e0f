"""Pictures that are sent as text."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from PIL import Image

from errors import InvalidImage
from pictures import decode_text
from tests.pictures.pictures import encoded

PNG = encoded(Image.new("RGB", (3, 3), "red"))
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        base64.encodebytes(PNG).decode(),
        "\r\n ".join(BASE64[i : i + 60] for i in range(0, len(BASE64), 60)),
        f"data:image/png;base64,{BASE64}",
        f"  DATA:image/png;charset=utf-8;BASE64,{BASE64}\n",
        f"data:image/png; base64 , {BASE64}",
        f"data:;base64,{BASE64}",
        f"data:text/plain;name=a.png;base64,{BASE64}",
        "data:image/png;base64," + BASE64.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        f"data:image/png;base64,{BASE64[:40]}%0D%0A{BASE64[40:]}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
def test_every_variant_of_base64_and_data_urls_is_decoded(text: str) -> None:
    assert decode_text(text, param="image") == PNG


@pytest.mark.parametrize(
    "text",
    [
        "!",
        "A",
        "data:image/png;base64,***",
        "data:image/png;base64",
        "ü" * 10,
        "https//x y",
        "%zz",
        "\ud800",
        "%41\ud800",
        "data:,\ud800",
        "AA==AA==",
        "\0",
    ],
)
def test_other_text_is_refused_with_its_param(text: str) -> None:
    with pytest.raises(InvalidImage, match=r"^Invalid image: ") as caught:
        decode_text(text, param="mask")
    assert caught.value.param == "mask"


@pytest.mark.parametrize("text", ["data:,a=b%3dc_%20", "data:text/plain,a=b%3Dc_%20"])
def test_only_escapes_are_decoded_in_a_data_url_without_base64(text: str) -> None:
    assert decode_text(text) == b"a=b=c_ "


@pytest.mark.parametrize("text", ["data:image/png," + "%89" * 1_000_000, "A" * 3_000_000, "A\n" * 1_500_000])
def test_a_long_text_takes_less_than_six_times_its_size_in_memory(text: str) -> None:
    tracemalloc.start()
    try:
        decode_text(text)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
    finally:
        tracemalloc.stop()
