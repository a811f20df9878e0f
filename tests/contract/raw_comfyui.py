"""A plain HTTP and WebSocket client for ComfyUI, so that these tests test the engine and not Easel's client; and the
graphs that they run, small enough for a CPU."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import requests
import websocket
from PIL import Image

REAL = "EASEL_TEST_COMFYUI"
"""The variable that holds the URL of a real ComfyUI, if there is one to test."""
TIMEOUT_S = 120.0


def new_id() -> str:
    return str(uuid.uuid4())


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    return file_of(Image.new("RGB", (width, height), colour))


def file_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def picture_of(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def flat(
    *, size: int = 64, batch: int = 1, colour: int | None = None, output: str = "SaveImage"
) -> dict[str, Any]:
    """A graph for a picture of one colour, with the nodes source and save. Each call uses another file prefix, and
    another colour unless one is given."""
    colour = uuid.uuid4().int % 2**24 if colour is None else colour
    inputs: dict[str, Any] = {"images": ["source", 0]}
    if output == "SaveImage":
        inputs["filename_prefix"] = f"easel-contract/{uuid.uuid4().hex}"
    return {
        "source": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": batch, "color": colour},
        },
        "save": {"class_type": output, "inputs": inputs},
    }


def sampled(
    checkpoint: str, *, steps: int = 2, seed: int | None = None, batch: int = 1, size: int = 64
) -> dict[str, Any]:
    """Text to image, with the nodes checkpoint, latent, positive, negative, sampler, decode, save."""
    return {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size, "height": size, "batch_size": batch},
        },
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["checkpoint", 1]}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": "blur", "clip": ["checkpoint", 1]}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["checkpoint", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": uuid.uuid4().int % 2**64 if seed is None else seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]},
        },
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["decode", 0], "filename_prefix": f"easel-contract/{uuid.uuid4().hex}"},
        },
    }


def edited(checkpoint: str, image: str, mask: str, *, crop: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Image to image within a mask, with the nodes of `sampled` (without latent), image, red, green, encode, masked,
    repeat, different, composite, crop. `image`, `mask`: names for LoadImage; the mask is red where the graph draws,
    green where it keeps the image."""
    batch = more.pop("batch", 1)
    graph = sampled(checkpoint, **more)
    del graph["latent"]
    graph |= {
        "image": {"class_type": "LoadImage", "inputs": {"image": image}},
        "red": {"class_type": "LoadImageMask", "inputs": {"image": mask, "channel": "red"}},
        "green": {"class_type": "LoadImageMask", "inputs": {"image": mask, "channel": "green"}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["checkpoint", 2]}},
        "masked": {
            "class_type": "SetLatentNoiseMask",
            "inputs": {"samples": ["encode", 0], "mask": ["red", 0]},
        },
        "repeat": {
            "class_type": "RepeatLatentBatch",
            "inputs": {"samples": ["masked", 0], "amount": batch},
        },
        "different": {"class_type": "DifferentialDiffusion", "inputs": {"model": ["checkpoint", 0]}},
        "composite": composite(["decode", 0], ["image", 0], mask=["green", 0]),
        "crop": {
            "class_type": "ImageCrop",
            "inputs": {"image": ["composite", 0], "width": crop[0], "height": crop[1], "x": 0, "y": 0},
        },
    }
    graph["sampler"]["inputs"] |= {"latent_image": ["repeat", 0], "model": ["different", 0]}
    graph["save"]["inputs"]["images"] = ["crop", 0]
    return graph


def composite(destination: list[Any], source: list[Any], **inputs: Any) -> dict[str, Any]:
    """The node that pastes a source onto a destination."""
    inputs = {"x": 0, "y": 0, "resize_source": False} | inputs
    return {
        "class_type": "ImageCompositeMasked",
        "inputs": {"destination": destination, "source": source, **inputs},
    }


def with_schedule(graph: dict[str, Any], scheduler: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The graph with a SamplerCustom instead of its KSampler, which uses the sigmas of this scheduler node."""
    graph = copy.deepcopy(graph)
    old = graph["sampler"]["inputs"]
    inherited = {name: old[name] for name in ("model", "positive", "negative", "latent_image", "cfg")}
    graph["sampler"] = {
        "class_type": "SamplerCustom",
        "inputs": inherited
        | {
            "add_noise": True,
            "noise_seed": old["seed"],
            "sampler": ["euler", 0],
            "sigmas": ["sigmas", 0],
        },
    }
    graph["euler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    graph["sigmas"] = {"class_type": scheduler, "inputs": inputs}
    return graph


def changed(graph: dict[str, Any], node: str, **inputs: Any) -> dict[str, Any]:
    """The graph with changed inputs of one node; `...` removes an input."""
    graph = copy.deepcopy(graph)
    for name, value in inputs.items():
        if value is ...:
            del graph[node]["inputs"][name]
        else:
            graph[node]["inputs"][name] = value
    return graph


def options(entry: dict[str, Any], name: str) -> list[Any]:
    """The choices of a combo input; ComfyUI has two forms of them."""
    spec = entry["input"]["required"][name]
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


class Comfy:
    """One engine's HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, **more: Any) -> requests.Response:
        return self._session.get(self.url + path, timeout=30, allow_redirects=False, **more)

    def head(self, path: str, **more: Any) -> requests.Response:
        return self._session.head(self.url + path, timeout=30, allow_redirects=False, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> requests.Response:
        return self._session.post(self.url + path, json=json, timeout=30, allow_redirects=False, **more)

    def delete(self, path: str) -> requests.Response:
        return self._session.delete(self.url + path, timeout=30, allow_redirects=False)

    def submit(self, graph: Any, **fields: Any) -> requests.Response:
        return self.post("/prompt", {"prompt": graph, "client_id": "easel-contract", **fields})

    def upload(self, data: bytes, name: str | None = None, **fields: str) -> dict[str, str]:
        """Store an image, under a new name unless one is given; returns the engine's response."""
        files = {"image": (name or f"{uuid.uuid4().hex}.png", data, "image/png")}
        response = self.post("/upload/image", files=files, data=fields)
        assert response.status_code == 200, response.text
        return response.json()

    def upload_to_temp(self, image: Image.Image) -> str:
        """Store an image in the temp folder; returns its name for LoadImage."""
        stored = self.upload(file_of(image), type="temp", subfolder="easel")
        return f"easel/{stored['name']} [temp]"

    def pictures(self, graph: Any, **fields: Any) -> list[Image.Image]:
        """Run a graph and fetch the pictures of its node "save"."""
        entry = self.wait_for_history(self.submit_ok(graph, **fields))
        assert entry["status"]["status_str"] == "success", entry["status"]
        images = entry["outputs"]["save"]["images"]
        return [picture_of(self.get("/view", params=image).content).convert("RGB") for image in images]

    def submit_ok(self, graph: Any, **fields: Any) -> str:
        """Submit a graph that must be accepted; returns its prompt id."""
        response = self.submit(graph, **fields)
        assert response.status_code == 200, response.text
        return response.json()["prompt_id"]

    def entry(self, prompt_id: str) -> dict[str, Any] | None:
        return self.get(f"/history/{prompt_id}").json().get(prompt_id)

    def wait_for_history(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a job, once there is one."""
        return self.wait_until(lambda: self.entry(prompt_id))

    def running(self) -> list[str]:
        return [entry[1] for entry in self.get("/queue").json()["queue_running"]]

    def pending(self) -> list[str]:
        return [entry[1] for entry in self.get("/queue").json()["queue_pending"]]

    def wait_until(self, condition: Any) -> Any:
        """The first true result of `condition`."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            result = condition()
            if result:
                return result
            time.sleep(0.02)
        raise AssertionError(f"did not happen within {TIMEOUT_S} s")

    @contextlib.contextmanager
    def running_job(self, endless: dict[str, Any], **fields: Any) -> Iterator[str]:
        """Keeps the engine busy with this job, which is cancelled at the end."""
        prompt_id = self.submit_ok(endless, **fields)
        try:
            self.wait_until(lambda: prompt_id in self.running())
            yield prompt_id
        finally:
            self.cancel(prompt_id)

    def cancel(self, prompt_id: str) -> None:
        """Remove a job, pending or running, and wait until it is gone."""

        def gone() -> bool:
            if prompt_id in self.pending():
                self.post("/queue", {"delete": [prompt_id]})
            elif prompt_id in self.running():
                self.post("/interrupt", {"prompt_id": prompt_id})
            else:
                return True
            return False

        self.wait_until(gone)


class Socket:
    """One engine's WebSocket. Messages are dicts, or bytes for binary ones."""

    def __init__(self, url: str, client_id: str | None = None, *, feature_flags: bool = False) -> None:
        self.client_id = client_id or uuid.uuid4().hex
        address = url.replace("http", "ws", 1)
        self._socket = websocket.create_connection(
            f"{address}/ws?clientId={self.client_id}", timeout=TIMEOUT_S, suppress_origin=True
        )
        self.first_message = self.receive()
        if feature_flags:
            self.send({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            self.flags_response = self.receive()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, message: Any) -> None:
        self._socket.send(json.dumps(message))

    def receive(self) -> Any:
        message = self._socket.recv()
        return message if isinstance(message, bytes) else json.loads(message)

    def read_until(self, kind: str, **data: Any) -> list[Any]:
        """All messages up to and including the first of this kind with this data."""
        messages = []
        while True:
            message = self.receive()
            messages.append(message)
            if isinstance(message, dict) and message["type"] == kind:
                message_data = message.get("data") or {}
                if all(name in message_data and message_data[name] == value for name, value in data.items()):
                    return messages

    def read_job(self, prompt_id: str) -> list[Any]:
        """All messages up to the last one of a job."""
        return self.read_until("executing", node=None, prompt_id=prompt_id)


def assert_steps(told: list[Any], steps: list[Any], is_newer: bool) -> None:
    """Each step was told; newer engines leave out some, but never the last."""
    if not is_newer:
        assert told == steps
        return
    assert told
    assert told[-1] == steps[-1]
    assert [step for step in steps if step in told] == list(dict.fromkeys(told))


def kinds(messages: list[Any], *, without: tuple[str, ...] = ("status", "progress_state")) -> list[str]:
    """The kind of each message, "binary" for binary ones, in order."""
    all_kinds = ["binary" if isinstance(message, bytes) else message["type"] for message in messages]
    return [kind for kind in all_kinds if kind not in without]


def data_of(messages: list[Any], kind: str) -> list[dict[str, Any]]:
    """The data of the messages of this kind."""
    return [message["data"] for message in messages if isinstance(message, dict) and message["type"] == kind]
