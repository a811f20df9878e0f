"""Nodes that the sketch engine has learned from other engines: inputs that depend on the graph, custom nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from compiler.node_records import record_nodes
from compiler.signatures import parse_object_info, parse_signatures
from sketch import SketchProcess
from tests.compiler.dynamic_nodes import versions
from tests.sketch.sketch_client import FILES, NODES, Client, graph

LOADER_FILES = [["None", "x.gguf"], {}]
EFFICIENT = {
    "Loader (x)": {
        "input": {
            "required": {
                "ckpt": LOADER_FILES,
                "text": ["STRING", {}],
                "empty_latent_width": ["INT", {}],
                "empty_latent_height": ["INT", {}],
                "batch_size": ["INT", {}],
            }
        },
        "output": ["MODEL", "CONDITIONING", "LATENT"],
        "output_node": False,
    },
    "Sampler (x)": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "positive": ["CONDITIONING"],
                "latent_image": ["LATENT"],
                "seed": ["INT", {}],
                "steps": ["INT", {}],
            }
        },
        "output": ["LATENT", "IMAGE"],
        "output_node": True,
    },
    "Odd": {
        "input": {"required": {"image": ["IMAGE"], "amount": ["STRING", {}]}},
        "output": ["IMAGE"],
        "output_node": False,
    },
    "Saver": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
        "output": ["IMAGE"],
        "output_node": True,
    },
}


def learned() -> dict[str, Any]:
    document = json.loads(NODES.read_text())
    entries = {**versions()["0.33.0"], **EFFICIENT}
    document = record_nodes(document, entries, version="0.99.0", classes=list(entries), facts={})
    return {**document, "learned": ["0.99.0"]}


@pytest.fixture(scope="module")
def client() -> Any:
    with SketchProcess(nodes=learned(), files={**FILES, "gguf": ["later.gguf"]}) as sketch:
        yield Client(sketch.url)


def test_object_info_describes_them_so_that_their_signatures_are_the_same(client: Client) -> None:
    entries = requests.get(f"{client.url}/object_info", timeout=60).json()
    known, listed = parse_signatures(learned()), parse_object_info(entries)
    for name in versions()["0.33.0"]:
        assert listed[name] == replace(known[name], only_in=())


def with_resize(**inputs: Any) -> dict[str, Any]:
    prompt = graph(save={"images": ["resized", 0]})
    values = {"input": ["decoded", 0], "scale_method": "area", **inputs}
    prompt["resized"] = {"class_type": "Resize", "inputs": values}
    return prompt


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({"resize_type": "by factor", "resize_type.multiplier": 2.0}, (256, 256)),
        ({"resize_type": "to size", "resize_type.width": 64, "resize_type.height": 32, "resize_type.crop": "center"}, (64, 32)),
        ({"resize_type": "to multiple", "resize_type.multiple": 8}, (128, 128)),
    ],
)  # fmt: skip
def test_a_dynamic_combo_resizes_what_passes_through_a_matched_output(
    client: Client, inputs: dict[str, Any], size: tuple[int, int]
) -> None:
    assert client.draw(with_resize(**inputs)).picture().size == size


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        ({"resize_type": "by factor"}, "required_input_missing"),
        ({"resize_type": "by factor", "resize_type.multiplier": 99}, "value_bigger_than_max"),
        ({"resize_type": "nope"}, "value_not_in_list"),
    ],
)
def test_the_inputs_of_an_option_are_validated(client: Client, inputs: dict[str, Any], kind: str) -> None:
    response = client.post("/prompt", {"prompt": with_resize(**inputs)})
    assert response.status_code == 400
    assert kind in {error["type"] for error in response.json()["node_errors"]["resized"]["errors"]}


@pytest.mark.parametrize("switch", [True, False])
def test_a_switch_passes_on_the_input_that_it_chooses(client: Client, switch: bool) -> None:
    prompt = graph(save={"images": ["chosen", 0]})
    flat = {"width": 64, "height": 64, "batch_size": 1, "color": 255}
    prompt["flat"] = {"class_type": "EmptyImage", "inputs": flat}
    values = {"switch": switch, "on_true": ["flat", 0], "on_false": ["decoded", 0]}
    prompt["chosen"] = {"class_type": "Switch", "inputs": values}
    assert client.draw(prompt).picture().size == ((64, 64) if switch else (128, 128))


def custom_graph(**loader: Any) -> dict[str, Any]:
    values = {
        "ckpt": "later.gguf",
        "text": "a cat",
        "empty_latent_width": 192,
        "empty_latent_height": 96,
        "batch_size": 1,
    }
    sampler = {"model": ["l", 0], "positive": ["l", 1], "latent_image": ["l", 2], "seed": 1, "steps": 2}
    return {
        "l": {"class_type": "Loader (x)", "inputs": {**values, **loader}},
        "s": {"class_type": "Sampler (x)", "inputs": sampler},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["s", 1], "filename_prefix": "a"}},
    }


def test_nodes_that_load_everything_or_sample_and_decode_are_sketched(client: Client) -> None:
    picture = client.draw(custom_graph()).picture()
    assert picture.size == (192, 96)
    assert len(picture.getcolors(maxcolors=100_000) or []) > 50  # a drawing, not grey
    assert client.post("/prompt", {"prompt": custom_graph(ckpt="gone.gguf")}).status_code == 400
    assert client.post("/prompt", {"prompt": custom_graph(ckpt="None")}).status_code == 200


def test_a_custom_node_that_saves_pictures_saves_them(client: Client) -> None:
    prompt = graph()
    prompt["save"]["class_type"] = "Saver"
    assert client.draw(prompt).picture().size == (128, 128)


def test_a_node_that_cannot_be_played_says_so_in_words(client: Client) -> None:
    prompt = graph(save={"images": ["odd", 0]})
    prompt["odd"] = {"class_type": "Odd", "inputs": {"image": ["decoded", 0], "amount": "three"}}
    (error,) = client.draw(prompt).data_of("execution_error")
    assert error["exception_type"] == "sketch.nodes.CannotSketch"
    assert (
        "sketch engine, which draws without models, cannot run this node (Odd)" in error["exception_message"]
    )
    assert "set engine.url" in error["exception_message"]
    assert "Error" not in error["exception_message"]


def test_nodes_learned_while_it_runs_are_used_at_once_and_stay(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes.json"
    nodes.write_text(NODES.read_text())
    with SketchProcess(nodes=nodes, files=FILES) as sketch:
        prompt = with_resize(**{"resize_type": "by factor", "resize_type.multiplier": 2.0})
        assert Client(sketch.url).post("/prompt", {"prompt": prompt}).status_code == 400
        nodes.write_text(json.dumps(learned()))
        assert Client(sketch.url).draw(prompt).picture().size == (256, 256)
        nodes.write_text("half a fi")
        assert Client(sketch.url).draw(prompt).picture().size == (256, 256)
        nodes.unlink()
        assert Client(sketch.url).draw(prompt).picture().size == (256, 256)
