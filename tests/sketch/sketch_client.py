"""A small client that runs graphs on the sketch engine and fetches the pictures, and a text-to-image graph."""

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


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """The text-to-image graph with some inputs changed: graph(sampler={"seed": 2})."""
    changed = copy.deepcopy(TEXT_TO_IMAGE)
    for node_id, inputs in changes.items():
        changed[node_id]["inputs"].update(inputs)
    return changed


def distance(first: Image.Image, second: Image.Image) -> float:
    """Sum of the mean differences of the channels."""
    return sum(ImageStat.Stat(ImageChops.difference(first.convert("RGB"), second.convert("RGB"))).mean)


@dataclass
class JobResult:
    """Everything that a client receives of one job."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def picture(self, index: int = 0) -> Image.Image:
        return Image.open(io.BytesIO(self.files[index]))

    def data_of(self, event_type: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == event_type]


class Client:
    """Runs graphs on one engine."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60)

    def draw(self, prompt: dict[str, Any], **fields: Any) -> JobResult:
        """Run a graph, receive its events, and fetch its files."""
        client = uuid.uuid4().hex
        socket = websocket.create_connection(
            f"{self.url.replace('http', 'ws')}/ws?clientId={client}", timeout=10
        )
        try:
            response = self.post("/prompt", {"prompt": prompt, "client_id": client, **fields})
            assert response.status_code == 200, response.text
            return self._follow(socket)
        finally:
            socket.close()

    def _follow(self, socket: websocket.WebSocket) -> JobResult:
        result = JobResult()
        while not result.events or result.events[-1][1].get("node", "") is not None:
            message = socket.recv()
            if isinstance(message, bytes):
                assert struct.unpack(">I", message[:4]) == (1,)
                result.frames.append(Image.open(io.BytesIO(message[8:])))
                continue
            event = json.loads(message)
            result.events.append((event["type"], event["data"]))
        for output in result.data_of("executed"):
            result.files += [self.view(image) for image in output["output"]["images"]]
        return result

    def view(self, image: dict[str, str]) -> bytes:
        response = requests.get(f"{self.url}/view", params=image, timeout=60)
        response.raise_for_status()
        return response.content

    def upload(self, picture: Image.Image) -> str:
        """Upload a picture. Returns its name for LoadImage."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files = {"image": (f"{uuid.uuid4().hex}.png", buffer.getvalue())}
        return str(requests.post(f"{self.url}/upload/image", files=files, timeout=60).json()["name"])
