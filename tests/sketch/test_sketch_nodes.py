"""What nodes do: by their types, so every signature runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sketch.folders import Folders
from sketch.nodes import run_node
from sketch.nodes.inputs import NodeInputs
from sketch.nodes.values import Images, Latent, Mask, Token
from sketch.signatures import FileLists, Node, Signatures

NODES = Path(__file__).parents[2] / "schemas" / "nodes.json"
PIXELS = {"IMAGE": Images, "MASK": Mask, "LATENT": Latent}


class Quiet:
    """A stage where nobody listens."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.prompt: dict[str, Any] = {}
        self.extra_data: dict[str, Any] = {}
        self.render_s = 0.0

    def wants_previews(self) -> bool:
        return False

    def pause(self, seconds: float) -> None:
        pass

    def progress(self, value: int, maximum: int, picture: tuple[str, bytes] | None = None) -> None:
        pass


def value_of(kind: str) -> Any:
    """Something of a type, as another node would give it."""
    picture = Image.new("RGB", (64, 64), "red")
    made = {"IMAGE": Images((picture,)), "MASK": Mask(picture.convert("L")), "LATENT": Latent((64, 64), 1)}
    return made.get(kind) or Token("Some" + kind, {"steps": 2, "text": "a cat", "noise_seed": 3}, {})


def inputs_of(node: Node) -> dict[str, Any]:
    plain = {"INT": 64, "FLOAT": 1.0, "STRING": "text", "BOOLEAN": True}
    return {
        name: "red.png"
        if expected.folder == "input"
        else plain.get(expected.type, (*expected.choices, "a file")[0])
        if expected.plain
        else value_of(expected.type)
        for name, expected in node.inputs.items()
    }


def classes() -> list[str]:
    return list(json.loads(NODES.read_text())["nodes"])


@pytest.fixture
def stage(tmp_path: Path) -> Quiet:
    folders = Folders(tmp_path)
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folders.of("input") / "red.png")
    return Quiet(folders)


@pytest.mark.parametrize("name", classes())
def test_every_node_of_the_signatures_gives_what_it_promises(name: str, stage: Quiet, tmp_path: Path) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes[name]
    outputs, shown = run_node(NodeInputs(name, node, inputs_of(node)), stage)
    assert [type(value) for value in outputs] == [PIXELS.get(kind, Token) for kind in node.outputs]
    assert (shown is not None) == node.output_node


@pytest.mark.parametrize("picture", ["x", 5, None, {"a": 1}])
def test_a_plain_value_where_a_picture_is_wanted_fails_as_python_does(
    picture: Any, stage: Quiet, tmp_path: Path
) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes["SaveImage"]
    with pytest.raises((AttributeError, TypeError, KeyError)):
        run_node(NodeInputs("SaveImage", node, {"images": picture, "filename_prefix": "x"}), stage)


@pytest.mark.parametrize(
    ("asked", "size"),
    [((64, 32), (64, 32)), ((64, 0), (64, 32)), ((0, 64), (128, 64)), ((0, 0), (200, 100))],
)
def test_image_scale_keeps_proportions_where_a_side_is_zero(
    asked: tuple[int, int], size: tuple[int, int], stage: Quiet, tmp_path: Path
) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes["ImageScale"]
    image = Images((Image.new("RGB", (200, 100)),))
    values = {
        "image": image,
        "upscale_method": "area",
        "width": asked[0],
        "height": asked[1],
        "crop": "disabled",
    }
    (scaled,), _ = run_node(NodeInputs("ImageScale", node, values), stage)
    assert isinstance(scaled, Images)
    assert scaled.size == size


def test_only_what_a_0_3_64_has_is_told(tmp_path: Path) -> None:
    told = Signatures(NODES, FileLists(tmp_path / "none"), list)
    assert "resolution_steps" not in told.object_info("ImageScaleToTotalPixels")["input"]["required"]
    assert "exp_heun_2_x0" not in told.object_info("KSampler")["input"]["required"]["sampler_name"][0]
