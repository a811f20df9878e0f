"""Files of ComfyUI's editor, and graphs in API format, for tests."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.node_records import with_facts
from compiler.signatures import Signatures, parse_signatures
from schemas.yaml_document import read_yaml
from tests.conftest import ROOT

LINKED_TYPES = ("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE")


@functools.cache
def signatures() -> Signatures:
    """Those of all nodes that Easel knows."""
    documents = [json.loads((ROOT / f"schemas/{name}.json").read_text()) for name in ("nodes", "more_nodes")]
    nodes = {**documents[1]["nodes"], **documents[0]["nodes"]}
    return parse_signatures(
        {"nodes": with_facts(nodes, read_yaml((ROOT / "schemas/node_facts.yaml").read_text()))}
    )


def socket(name: str, kind: str, link: int | None = None, *, widget: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "type": kind, "link": link}
    return entry | ({"widget": {"name": name}} if widget else {})


def node(
    number: int,
    node_class: str,
    values: Any = (),
    inputs: Sequence[Mapping[str, Any]] = (),
    outputs: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    return {
        "id": number,
        "type": node_class,
        "mode": 0,
        "inputs": list(inputs),
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
        "widgets_values": values if isinstance(values, dict) else list(values),
        "properties": {},
        **more,
    }


def editor_file(
    nodes: Sequence[Mapping[str, Any]], links: Sequence[Sequence[Any]] = (), **more: Any
) -> dict[str, Any]:
    """`links`: [id, origin, origin slot, target, target slot]"""
    return {"nodes": list(nodes), "links": [[*link, "*"] for link in links], "version": 0.4, **more}


def subgraph(
    name: str,
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Sequence[Any]],
    inputs: Sequence[tuple[str, str]] = (),
    outputs: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return {
        "id": name,
        "name": name,
        "nodes": list(nodes),
        "links": [dict(zip(keys, link, strict=True)) for link in links],
        "inputs": [{"name": each, "type": kind} for each, kind in inputs],
        "outputs": [{"name": each, "type": kind} for each, kind in outputs],
    }


def sampler_file(**changes: Any) -> dict[str, Any]:
    """Stable Diffusion in the editor's format: checkpoint 1, LoRA 2, texts 3 and 4, latent 5, sampler 6, decoder 7, picture 8.
    `changes`: "n6" to replace parts of node 6, for instance."""
    nodes = [
        node(1, "CheckpointLoaderSimple", ["a.safetensors"], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "LoraLoaderModelOnly", ["l.safetensors", 0.5], [socket("model", "MODEL", 1)], ["MODEL"]),
        node(3, "CLIPTextEncode", ["a cat"], [socket("clip", "CLIP", 2)], ["CONDITIONING"]),
        node(4, "CLIPTextEncode", ["blurry"], [socket("clip", "CLIP", 3)], ["CONDITIONING"]),
        node(5, "EmptyLatentImage", [512, 768, 1], outputs=["LATENT"]),
        node(
            6,
            "KSampler",
            [5, "randomize", 20, 7, "euler", "normal", 1],
            [
                socket("model", "MODEL", 4),
                socket("positive", "CONDITIONING", 5),
                socket("negative", "CONDITIONING", 6),
                socket("latent_image", "LATENT", 7),
            ],
            ["LATENT"],
        ),
        node(7, "VAEDecode", [], [socket("samples", "LATENT", 8), socket("vae", "VAE", 9)], ["IMAGE"]),
        node(8, "SaveImage", ["out"], [socket("images", "IMAGE", 10)]),
    ]
    links = [
        *(
            [1, 1, 0, 2, 0],
            [2, 1, 1, 3, 0],
            [3, 1, 1, 4, 0],
            [4, 2, 0, 6, 0],
            [5, 3, 0, 6, 1],
            [6, 4, 0, 6, 2],
        ),
        *([7, 5, 0, 6, 3], [8, 6, 0, 7, 0], [9, 1, 2, 7, 1], [10, 7, 0, 8, 0]),
    ]
    for entry in nodes:
        entry.update(changes.get(f"n{entry['id']}", {}))
    return editor_file([*nodes, *changes.get("more", [])], [*links, *changes.get("links", [])])


def sampler_graph(**inputs: Any) -> dict[str, Any]:
    """The graph of `sampler_file()` in API format. `inputs`: "n6" to change inputs of node 6."""
    graph: dict[str, Any] = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}),
        "2": (
            "LoraLoaderModelOnly",
            {"lora_name": "l.safetensors", "strength_model": 0.5, "model": ["1", 0]},
        ),
        "3": ("CLIPTextEncode", {"text": "a cat", "clip": ["1", 1]}),
        "4": ("CLIPTextEncode", {"text": "blurry", "clip": ["1", 1]}),
        "5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
        "6": (
            "KSampler",
            {
                "seed": 5,
                "steps": 20,
                "cfg": 7,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1,
                "model": ["2", 0],
                "positive": ["3", 0],
                "negative": ["4", 0],
                "latent_image": ["5", 0],
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"filename_prefix": "out", "images": ["7", 0]}),
    }
    return {
        name: {"class_type": node_class, "inputs": {**values, **inputs.get(f"n{name}", {})}}
        for name, (node_class, values) in graph.items()
    }
