"""What the compared clients send and draw."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from bench.clients import check_png, over_socket, window, with_seed
from bench.equality import compare_pixels
from bench.options import Options, Peer
from bench.testbed import SIZES, EngineUnderTest, open_sources, open_testbed
from compiler import ImageRequest, Size, compile_workflow


def png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height)).save(encoded, "PNG")
    return encoded.getvalue()


ENGINE = EngineUnderTest("http://127.0.0.1:1", None, None, is_sketch=False, has_socket_output=True)


@pytest.mark.parametrize("size", SIZES)
def test_the_direct_client_submits_the_graph_that_easel_compiles_for_the_same_seed(size: int) -> None:
    seed = 987_654
    left, top = window(seed)
    with open_sources(ENGINE) as sources:
        direct = with_seed(sources.graph(ENGINE.model, size), seed, "another")
        request = ImageRequest(
            prompt=direct["window"]["inputs"]["prompt"],
            model="photo",
            seed=seed,
            size=Size(size, size),
            id="another",
            inputs={"left": left, "top": top},
        )
        (compiled,) = compile_workflow(request, sources.load()).graphs
    assert direct == compiled.nodes


def test_the_catalogue_of_the_benchmark_draws_everything_that_it_lists() -> None:
    with open_sources(ENGINE) as sources:
        assert sources.load().undrawable == {}


def test_only_the_output_node_differs_with_saveimagewebsocket() -> None:
    with open_sources(ENGINE) as sources:
        graph = sources.graph(ENGINE.model, 64)
    other = over_socket(graph)
    assert {name for name in graph if graph[name] != other[name]} == {"picture"}
    assert other["picture"] == {"class_type": "SaveImageWebsocket", "inputs": {"images": ["window", 0]}}


def test_pictures_of_successive_seeds_show_other_parts_of_the_photo() -> None:
    assert len({window(seed) for seed in range(1000, 5096)}) == 4096


def test_a_peer_is_measured_as_the_gateway_is() -> None:
    """The peer here is another Easel, with another engine that gives the same pictures."""
    with open_testbed(Options(sizes=[64])) as other:
        options = Options(sizes=[64], peers=[Peer("other", other.server.url, "bench")])
        with open_testbed(options) as testbed:
            assert [route.name for route in testbed.routes(64)][-1] == "other"
            entry = compare_pixels(testbed, testbed.routes(64), 64)["other"]
    assert entry["same_pixels"]
    assert entry["png_bytes"] > 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"error": "no"}', "not a complete PNG"),
        (png(64, 64)[:-1], "not a complete PNG"),
        (png(64, 72), "64x72 pixels instead of 64x64"),
    ],
)
def test_an_answer_without_the_requested_picture_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_png(data, 64)
    check_png(png(64, 64), 64)
