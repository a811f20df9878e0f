"""A client just big enough to look at what the sketch engine draws, and the graph it draws from."""

from __future__ import annotations

import copy
import io
import json
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import websocket
from PIL import Image, ImageChops, ImageStat

NODES = Path(__file__).parents[2] / "schemas" / "nodes.json"
FILES = {
    "checkpoints": ["one.safetensors", "two.safetensors"],
    "loras": ["ink.safetensors", "oil.safetensors"],
    "vae": ["ae.safetensors"],
}
TEXT_TO_IMAGE: dict[str, Any] = {
    "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "one.safetensors"}},
    "positive": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["model", 1]}},
    "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["model", 1]}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["model", 0],
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "latent_image": ["latent", 0],
            "seed": 1,
            "steps": 3,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "sketch"}},
}


def graph(**changed: dict[str, Any]) -> dict[str, Any]:
    """The text-to-image graph with some inputs changed: graph(sampler={"seed": 2})."""
    fresh = copy.deepcopy(TEXT_TO_IMAGE)
    for node_id, inputs in changed.items():
        fresh[node_id]["inputs"].update(inputs)
    return fresh


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of all channels."""
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


@dataclass
class Drawn:
    """All that a client hears of one job."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def picture(self, index: int = 0) -> Image.Image:
        return Image.open(io.BytesIO(self.files[index]))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == kind]


class Client:
    """Draws with one engine."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=10)

    def draw(self, wanted: dict[str, Any], **more: Any) -> Drawn:
        """Runs a graph with a socket listening, and fetches its files."""
        client = uuid.uuid4().hex
        socket = websocket.create_connection(
            f"{self.url.replace('http', 'ws')}/ws?clientId={client}", timeout=10
        )
        try:
            answer = self.post("/prompt", {"prompt": wanted, "client_id": client, **more})
            assert answer.status_code == 200, answer.text
            return self._follow(socket)
        finally:
            socket.close()

    def _follow(self, socket: websocket.WebSocket) -> Drawn:
        drawn = Drawn()
        while not drawn.events or drawn.events[-1][1].get("node", "") is not None:
            message = socket.recv()
            if isinstance(message, bytes):
                assert struct.unpack(">I", message[:4]) == (1,)
                drawn.frames.append(Image.open(io.BytesIO(message[8:])))
                continue
            said = json.loads(message)
            drawn.events.append((said["type"], said["data"]))
        for output in drawn.told("executed"):
            drawn.files += [self.view(image) for image in output["output"]["images"]]
        return drawn

    def view(self, image: dict[str, str]) -> bytes:
        answer = requests.get(f"{self.url}/view", params=image, timeout=10)
        answer.raise_for_status()
        return answer.content

    def upload(self, picture: Image.Image) -> str:
        """Gives the name for LoadImage."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files = {"image": (f"{uuid.uuid4().hex}.png", buffer.getvalue())}
        return str(requests.post(f"{self.url}/upload/image", files=files, timeout=10).json()["name"])
