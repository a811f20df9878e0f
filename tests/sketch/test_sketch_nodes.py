"""Nodes run by their types, so every node in the signatures runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sketch.folders import Folders
from sketch.nodes import run_node
from sketch.nodes.inputs import GraphFault, NodeInputs
from sketch.nodes.values import Images, Latent, Mask, Token
from sketch.signatures import FileLists, Node, Signatures

NODES = Path(__file__).parents[2] / "schemas" / "nodes.json"
PIXELS = {"IMAGE": Images, "MASK": Mask, "LATENT": Latent}


class QuietContext:
    """A NodeContext without a client."""

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
    """A value of a type, as another node would return it."""
    picture = Image.new("RGB", (64, 64), "red")
    values = {"IMAGE": Images((picture,)), "MASK": Mask(picture.convert("L")), "LATENT": Latent((64, 64), 1)}
    return values.get(kind) or Token("Some" + kind, {"steps": 2, "text": "a cat", "noise_seed": 3}, {})


def inputs_of(node: Node) -> dict[str, Any]:
    plain = {"INT": 64, "FLOAT": 1.0, "STRING": "text", "BOOLEAN": True}
    return {
        name: "red.png"
        if expected.folder == "input"
        else plain.get(expected.type, (*expected.choices, "a file")[0])
        if expected.is_plain
        else value_of(expected.type)
        for name, expected in node.inputs.items()
    }


def classes() -> list[str]:
    return list(json.loads(NODES.read_text())["nodes"])


@pytest.fixture
def context(tmp_path: Path) -> QuietContext:
    folders = Folders(tmp_path)
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folders.of("input") / "red.png")
    return QuietContext(folders)


@pytest.mark.parametrize("name", classes())
def test_every_node_returns_the_types_of_its_signature(
    name: str, context: QuietContext, tmp_path: Path
) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes[name]
    outputs, ui = run_node(NodeInputs(name, node, inputs_of(node)), context)
    assert [type(value) for value in outputs] == [PIXELS.get(kind, Token) for kind in node.outputs]
    assert (ui is not None) == node.output_node


@pytest.mark.parametrize("picture", ["x", 5, None, {"a": 1}])
def test_a_plain_value_in_place_of_a_picture_raises_the_error_of_python(
    picture: Any, context: QuietContext, tmp_path: Path
) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes["SaveImage"]
    with pytest.raises(GraphFault) as caught:
        run_node(NodeInputs("SaveImage", node, {"images": picture, "filename_prefix": "x"}), context)
    assert isinstance(caught.value.__cause__, AttributeError | TypeError | KeyError)


@pytest.mark.parametrize(
    ("requested", "size"),
    [((64, 32), (64, 32)), ((64, 0), (64, 32)), ((0, 64), (128, 64)), ((0, 0), (200, 100))],
)
def test_image_scale_keeps_proportions_if_a_side_is_zero(
    requested: tuple[int, int], size: tuple[int, int], context: QuietContext, tmp_path: Path
) -> None:
    node = Signatures(NODES, FileLists(tmp_path / "none"), list).nodes["ImageScale"]
    image = Images((Image.new("RGB", (200, 100)),))
    values = {
        "image": image,
        "upscale_method": "area",
        "width": requested[0],
        "height": requested[1],
        "crop": "disabled",
    }
    (scaled,), _ = run_node(NodeInputs("ImageScale", node, values), context)
    assert isinstance(scaled, Images)
    assert scaled.size == size


def test_only_inputs_and_choices_of_its_version_are_listed(tmp_path: Path) -> None:
    document = json.loads(NODES.read_text("utf-8"))
    document["nodes"]["ImageScaleToTotalPixels"]["inputs"]["resolution_steps"]["only_in"] = ["0.8.0"]
    document["nodes"]["KSampler"]["inputs"]["sampler_name"]["choices_in"]["exp_heun_2_x0"] = ["0.8.0"]
    (tmp_path / "nodes.json").write_text(json.dumps(document))
    signatures = Signatures(tmp_path / "nodes.json", FileLists(tmp_path / "none"), list)
    assert "resolution_steps" not in signatures.object_info("ImageScaleToTotalPixels")["input"]["required"]
    samplers = signatures.object_info("KSampler")["input"]["required"]["sampler_name"][0]
    assert "exp_heun_2_x0" not in samplers
    assert "exp_heun_2_x0_sde" in samplers
