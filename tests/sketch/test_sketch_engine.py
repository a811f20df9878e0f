"""What the sketch engine draws, asked over HTTP as a ComfyUI is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from sketch import SketchProcess
from sketch.process import STOP_TIMEOUT_S
from tests.sketch.sketch_client import FILES, NODES, Client, distance, graph


def pixels(client: Client, wanted: dict[str, Any]) -> bytes:
    return client.draw(wanted).picture().tobytes()


def test_the_same_graph_gives_the_same_bytes_in_every_engine(client: Client) -> None:
    with SketchProcess(nodes=NODES, files=FILES) as another:
        assert client.draw(graph()).files == Client(another.url).draw(graph()).files


@pytest.mark.parametrize(
    "changed",
    [
        {"sampler": {"seed": 2}},
        {"sampler": {"seed": 2**64 - 1}},
        {"sampler": {"steps": 4}},
        {"sampler": {"cfg": 6.9}},
        {"sampler": {"sampler_name": "heun"}},
        {"sampler": {"scheduler": "karras"}},
        {"positive": {"text": "a tree"}},
        {"negative": {"text": "sharp"}},
        {"model": {"ckpt_name": "two.safetensors"}},
    ],
)
def test_everything_that_is_asked_shows(client: Client, changed: dict[str, Any]) -> None:
    assert pixels(client, graph(**changed)) != pixels(client, graph())


LORAS: dict[str, dict[str, Any]] = {
    "LoraLoader": {"clip": ["model", 1], "strength_clip": 1.0},
    "LoraLoaderModelOnly": {},
}


def with_lora(loader: str, **inputs: Any) -> dict[str, Any]:
    """The graph through a LoRA, which what it loads of a text encoder goes through too."""
    wanted = graph(sampler={"model": ["lora", 0]})
    inputs = {"model": ["model", 0], "lora_name": "ink.safetensors", "strength_model": 1.0} | inputs
    wanted["lora"] = {"class_type": loader, "inputs": LORAS[loader] | inputs}
    if "clip" in LORAS[loader]:
        wanted["positive"]["inputs"]["clip"] = ["lora", 1]
    return wanted


@pytest.mark.parametrize(
    ("loader", "changed"),
    [
        ("LoraLoaderModelOnly", {"strength_model": 0.9}),
        ("LoraLoaderModelOnly", {"lora_name": "oil.safetensors"}),
        ("LoraLoader", {"strength_model": 0.9}),
        ("LoraLoader", {"strength_clip": 0.9}),
        ("LoraLoader", {"lora_name": "oil.safetensors"}),
    ],
)
def test_a_lora_its_name_and_its_strength_show(client: Client, loader: str, changed: dict[str, Any]) -> None:
    graphs = [graph(), with_lora(loader), with_lora(loader, **changed)]
    assert len({pixels(client, wanted) for wanted in graphs}) == 3


def test_size_and_batch_are_as_asked_and_pictures_of_a_batch_differ(client: Client) -> None:
    drawn = client.draw(graph(latent={"width": 200, "height": 136, "batch_size": 3}))
    assert [drawn.picture(i).size for i in range(3)] == [(200, 136)] * 3
    assert len({drawn.picture(i).tobytes() for i in range(3)}) == 3


def test_each_step_is_told_and_its_preview_grows(client: Client) -> None:
    drawn = client.draw(graph(latent={"width": 768, "height": 512}, sampler={"steps": 5, "seed": 77}))
    assert [(step["value"], step["max"]) for step in drawn.told("progress")] == [(i, 5) for i in range(1, 6)]
    assert [frame.size for frame in drawn.frames] == [(512, 341)] * 5
    assert [frame.format for frame in drawn.frames] == ["JPEG"] * 5
    far = [distance(frame, drawn.frames[-1]) for frame in drawn.frames]
    assert far == sorted(far, reverse=True)


def test_previews_can_be_declined(client: Client) -> None:
    drawn = client.draw(graph(sampler={"seed": 78}), extra_data={"preview_method": "none"})
    assert (len(drawn.told("progress")), drawn.frames) == (3, [])


def test_a_png_carries_the_graph_and_the_extra_information(client: Client) -> None:
    wanted = graph(save={"filename_prefix": "told"})
    told = client.draw(wanted, extra_data={"extra_pnginfo": {"workflow": {"a": 1}}}).picture().info
    assert (json.loads(told["prompt"]), json.loads(told["workflow"])) == (wanted, {"a": 1})


def test_empty_image_is_its_flat_colour(client: Client) -> None:
    flat = {
        "class_type": "EmptyImage",
        "inputs": {"width": 20, "height": 10, "batch_size": 1, "color": 0x0A141E},
    }
    drawn = client.draw({"decoded": flat, "save": graph()["save"]}).picture()
    assert drawn.getcolors() == [(200, (10, 20, 30))]


def test_an_absurd_size_fails_as_an_allocator_does_and_the_next_job_runs(client: Client) -> None:
    [error] = client.draw(graph(latent={"width": 16384, "height": 16384})).told("execution_error")
    assert (error["exception_type"], error["node_id"]) == ("RuntimeError", "sampler")
    assert "not enough memory" in error["exception_message"]
    assert client.draw(graph()).files


@pytest.mark.parametrize("image", [5, None, ["latent", 0], ".", "a\0b.png"])
def test_a_node_that_nothing_needs_may_name_its_image_as_it_likes(client: Client, image: Any) -> None:
    lonely = {"class_type": "LoadImage", "inputs": {"image": image}}
    assert client.post("/prompt", {"prompt": graph() | {"lonely": lonely}}).ok
    assert client.draw(graph()).files


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": graph(), "extra_data": None},
        {"prompt": graph(), "client_id": ["a"]},
        {"prompt": graph() | {"lonely": {"class_type": "EmptyImage"}}},
        {"prompt": graph() | {"lonely": {"class_type": "EmptyImage", "inputs": []}}},
    ],
)
def test_what_ends_the_worker_of_a_comfyui_is_refused_here(client: Client, body: dict[str, Any]) -> None:
    assert client.post("/prompt", body).status_code in (400, 500)
    assert client.draw(graph()).files


def test_a_client_that_stopped_reading_holds_up_neither_the_others_nor_the_end() -> None:
    with SketchProcess(nodes=NODES, files=FILES) as sketch:
        stalled = websocket.create_connection(f"{sketch.url.replace('http', 'ws')}/ws?clientId=s", timeout=10)
        other = Client(sketch.url)
        many = graph(latent={"width": 512, "height": 512}, sampler={"steps": 300})
        assert other.post("/prompt", {"prompt": many, "client_id": "s"}).ok
        assert other.draw(graph()).files
        before = time.monotonic()
        sketch.stop()
        assert time.monotonic() - before < STOP_TIMEOUT_S
        stalled.shutdown()


def test_a_file_list_is_read_again_when_it_changes(tmp_path: Path) -> None:
    files = tmp_path / "files.json"
    with SketchProcess(nodes=NODES, files=files) as sketch:
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 400
        files.write_text(json.dumps({"checkpoints": ["one.safetensors"]}))
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 200
        files.unlink()
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 400


def test_a_node_added_to_the_signatures_needs_no_code(tmp_path: Path) -> None:
    signatures = json.loads(NODES.read_text())
    inputs = {"width": {"type": "INT"}, "height": {"type": "INT"}, "batch_size": {"type": "INT"}}
    signatures["nodes"]["EmptyMagicLatent"] = {"inputs": inputs, "outputs": ["LATENT"], "output_node": False}
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps(signatures))
    wanted = graph(latent={"width": 72, "height": 48})
    wanted["latent"]["class_type"] = "EmptyMagicLatent"
    with SketchProcess(nodes=nodes, files=FILES) as sketch:
        assert Client(sketch.url).draw(wanted).picture().size == (72, 48)


def test_it_says_of_itself_that_it_is_a_sketch(client: Client) -> None:
    system = requests.get(f"{client.url}/system_stats", timeout=10).json()["system"]
    assert (system["easel_sketch"], system["comfyui_version"]) == (True, "0.3.64")
