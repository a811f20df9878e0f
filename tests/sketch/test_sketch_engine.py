"""What the sketch engine draws, tested over HTTP with a ComfyUI client."""

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


def pixels(client: Client, prompt: dict[str, Any]) -> bytes:
    return client.draw(prompt).picture().tobytes()


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
def test_every_input_changes_the_picture(client: Client, changed: dict[str, Any]) -> None:
    assert pixels(client, graph(**changed)) != pixels(client, graph())


LORAS: dict[str, dict[str, Any]] = {
    "LoraLoader": {"clip": ["model", 1], "strength_clip": 1.0},
    "LoraLoaderModelOnly": {},
}


def with_lora(loader: str, **inputs: Any) -> dict[str, Any]:
    """The graph with a LoRA for the model and, with LoraLoader, for the text encoder."""
    prompt = graph(sampler={"model": ["lora", 0]})
    inputs = {"model": ["model", 0], "lora_name": "ink.safetensors", "strength_model": 1.0} | inputs
    prompt["lora"] = {"class_type": loader, "inputs": LORAS[loader] | inputs}
    if "clip" in LORAS[loader]:
        prompt["positive"]["inputs"]["clip"] = ["lora", 1]
    return prompt


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
def test_a_lora_and_its_name_and_strength_change_the_picture(
    client: Client, loader: str, changed: dict[str, Any]
) -> None:
    graphs = [graph(), with_lora(loader), with_lora(loader, **changed)]
    assert len({pixels(client, prompt) for prompt in graphs}) == 3


def test_size_and_batch_are_as_requested_and_pictures_of_a_batch_differ(client: Client) -> None:
    drawn = client.draw(graph(latent={"width": 200, "height": 136, "batch_size": 3}))
    assert [drawn.picture(i).size for i in range(3)] == [(200, 136)] * 3
    assert len({drawn.picture(i).tobytes() for i in range(3)}) == 3


def test_each_step_is_reported_with_a_preview_closer_to_the_last(client: Client) -> None:
    drawn = client.draw(graph(latent={"width": 768, "height": 512}, sampler={"steps": 5, "seed": 77}))
    assert [(step["value"], step["max"]) for step in drawn.data_of("progress")] == [
        (i, 5) for i in range(1, 6)
    ]
    assert [frame.size for frame in drawn.frames] == [(512, 341)] * 5
    assert [frame.format for frame in drawn.frames] == ["JPEG"] * 5
    distances = [distance(frame, drawn.frames[-1]) for frame in drawn.frames]
    assert distances == sorted(distances, reverse=True)


def test_previews_can_be_disabled(client: Client) -> None:
    drawn = client.draw(graph(sampler={"seed": 78}), extra_data={"preview_method": "none"})
    assert (len(drawn.data_of("progress")), drawn.frames) == (3, [])


def test_a_png_contains_the_graph_and_the_extra_pnginfo(client: Client) -> None:
    prompt = graph(save={"filename_prefix": "metadata"})
    info = client.draw(prompt, extra_data={"extra_pnginfo": {"workflow": {"a": 1}}}).picture().info
    assert (json.loads(info["prompt"]), json.loads(info["workflow"])) == (prompt, {"a": 1})


def test_empty_image_has_one_colour(client: Client) -> None:
    flat = {
        "class_type": "EmptyImage",
        "inputs": {"width": 20, "height": 10, "batch_size": 1, "color": 0x0A141E},
    }
    drawn = client.draw({"decoded": flat, "save": graph()["save"]}).picture()
    assert drawn.getcolors() == [(200, (10, 20, 30))]


def test_an_excessive_size_is_a_limit_of_the_sketch_engine_and_the_next_job_runs(client: Client) -> None:
    [error] = client.draw(graph(latent={"width": 16384, "height": 16384})).data_of("execution_error")
    assert (error["exception_type"], error["node_id"]) == ("sketch.nodes.CannotSketch", "sampler")
    assert "cannot run this node (KSampler): 1 picture(s) of 16384x16384" in error["exception_message"]
    assert client.draw(graph()).files


@pytest.mark.parametrize("image", [5, None, ["latent", 0], ".", "a\0b.png"])
def test_an_unused_node_with_an_invalid_image_name_is_accepted(client: Client, image: Any) -> None:
    unused = {"class_type": "LoadImage", "inputs": {"image": image}}
    assert client.post("/prompt", {"prompt": graph() | {"unused": unused}}).ok
    assert client.draw(graph()).files


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": graph(), "extra_data": None},
        {"prompt": graph(), "client_id": ["a"]},
        {"prompt": graph() | {"unused": {"class_type": "EmptyImage"}}},
        {"prompt": graph() | {"unused": {"class_type": "EmptyImage", "inputs": []}}},
    ],
)
def test_a_body_that_crashes_the_worker_of_a_comfyui_is_refused(client: Client, body: dict[str, Any]) -> None:
    assert client.post("/prompt", body).status_code in (400, 500)
    assert client.draw(graph()).files


def test_a_client_that_stopped_reading_delays_neither_other_clients_nor_the_shutdown() -> None:
    with SketchProcess(nodes=NODES, files=FILES) as sketch:
        stalled = websocket.create_connection(f"{sketch.url.replace('http', 'ws')}/ws?clientId=s", timeout=10)
        other = Client(sketch.url)
        many_steps = graph(latent={"width": 512, "height": 512}, sampler={"steps": 300})
        assert other.post("/prompt", {"prompt": many_steps, "client_id": "s"}).ok
        assert other.draw(graph()).files
        start = time.monotonic()
        sketch.stop()
        assert time.monotonic() - start < STOP_TIMEOUT_S
        stalled.shutdown()


def test_a_file_list_is_read_again_when_it_changes_and_kept_while_it_is_lost_or_damaged(
    tmp_path: Path,
) -> None:
    files = tmp_path / "files.json"
    with SketchProcess(nodes=NODES, files=files) as sketch:
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 400
        files.write_text(json.dumps({"checkpoints": ["one.safetensors"]}))
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 200
        for damage in (b"{half", b'{"checkpoints": 5}', b"[]"):
            files.write_bytes(damage)
            assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 200
        files.unlink()
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 200
        files.mkdir()
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 200
        files.rmdir()
        files.write_text("{}")
        assert Client(sketch.url).post("/prompt", {"prompt": graph()}).status_code == 400


def test_a_node_added_to_the_signatures_needs_no_code(tmp_path: Path) -> None:
    signatures = json.loads(NODES.read_text())
    inputs = {"width": {"type": "INT"}, "height": {"type": "INT"}, "batch_size": {"type": "INT"}}
    signatures["nodes"]["EmptyMagicLatent"] = {"inputs": inputs, "outputs": ["LATENT"], "output_node": False}
    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps(signatures))
    prompt = graph(latent={"width": 72, "height": 48})
    prompt["latent"]["class_type"] = "EmptyMagicLatent"
    with SketchProcess(nodes=nodes, files=FILES) as sketch:
        assert Client(sketch.url).draw(prompt).picture().size == (72, 48)


def test_system_stats_say_that_it_is_the_sketch_engine(client: Client) -> None:
    system = requests.get(f"{client.url}/system_stats", timeout=60).json()["system"]
    assert (system["easel_sketch"], system["comfyui_version"]) == (True, "0.33.0")
