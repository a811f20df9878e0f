"""A small catalogue for the compiler's tests, which edit it in many ways, and variants of it. The tests of the shipped
catalogue are in test_shipped_catalogue.py."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compiler import ImageRequest, SourcePaths, Sources, load_catalogue, read_sources
from tests.conftest import ROOT, SMALL_CATALOGUE

PATHS = SourcePaths(SMALL_CATALOGUE / "catalogue.yaml", SMALL_CATALOGUE / "templates_wf", ROOT / "schemas")
SOURCES = read_sources(PATHS)
CATALOGUE = load_catalogue(SOURCES)


def image_request(prompt: str = "a cat", **fields: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "seed": 7, "id": "test", **fields})


def with_template(text: str, *, name: str = "sd15_simple.json.j2", sources: Sources = SOURCES) -> Sources:
    return replace(sources, templates={**sources.templates, name: text})


def with_document(change: Any, sources: Sources = SOURCES) -> Sources:
    """The sources after `change(document)` has modified catalogue.yaml's document in place."""
    document = copy.deepcopy(_document(sources.catalogue))
    change(document)
    return replace(sources, catalogue=yaml.dump(document, Dumper=_Dumper, sort_keys=False))


@functools.cache
def _document(text: str) -> Any:
    return yaml.safe_load(text)


_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The one of libyaml takes a tenth of the time"""


def with_workflow(
    template: str,
    *,
    tasks: Sequence[str] = ("generate",),
    inputs: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    nodes: Mapping[str, Any] | None = None,
    **workflow: Any,
) -> Sources:
    """The project's sources with a workflow `mine`, and a model `mine` that uses it. `model`: entries that differ from
    those of SD 1.5. `nodes`: entries for nodes.json."""

    def change(document: Any) -> None:
        document["workflows"]["mine"] = {
            "title": "Mine",
            "tasks": list(tasks),
            "inputs": dict(inputs or {}),
            **workflow,
        }
        like = dict(document["models"]["sd-1.5-pruned-emaonly"])
        for name in ("aliases", "limits"):
            like.pop(name)
        document["models"]["mine"] = {**like, "family": "Mine", "workflow": "mine", **(model or {})}

    sources = with_document(change)
    known = json.loads(sources.nodes)
    known["nodes"] |= nodes or {}
    return replace(
        sources,
        templates={**sources.templates, "mine.json.j2": template},
        nodes=json.dumps(known) if nodes else sources.nodes,
    )


def faults_of(template: str, *, task: str = "generate", **fields: Any) -> list[str]:
    """What the check says about the task of the model `mine` of `with_workflow`. The other models must stay drawable."""
    undrawable = dict(load_catalogue(with_workflow(template, **{"tasks": [task], **fields})).undrawable)
    faults = undrawable.pop("mine", {})
    assert undrawable == {}
    return [fault for each in faults.values() for fault in each]


_GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": "{{ seed }}", "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "{{ files.checkpoint }}"}},
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": "{{ width }}", "height": "{{ height }}", "batch_size": "{{ batch }}"},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{ prompt }}", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "{{ prefix }}", "images": ["8", 0]}},
}  # fmt: skip
"""A text-to-image graph as ComfyUI's *Export (API)* writes it, with the values that every request may set"""

UPSCALER_NODES = {
    "UpscaleModelLoader": {
        "inputs": {"model_name": {"type": "COMBO", "folder": "upscale_models"}},
        "outputs": ["UPSCALE_MODEL"],
    },
    "ImageUpscaleWithModel": {
        "inputs": {"upscale_model": {"type": "UPSCALE_MODEL"}, "image": {"type": "IMAGE"}},
        "outputs": ["IMAGE"],
    },
}
UPSCALER_FILES = {"upscaler": {"name": "4x.pth", "folder": "upscale_models"}}


def exported(*, add: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """A template like an export. `changes`: `n3_seed=7` is input `seed` of node 3; `add`: more nodes. A text in `{{ }}`
    is written without quotes."""
    nodes = copy.deepcopy(_GRAPH)
    for name, value in changes.items():
        node, _, key = name[1:].partition("_")
        nodes[node]["inputs"][key] = value
    return as_template({**nodes, **(add or {})})


def as_template(nodes: Mapping[str, Any]) -> str:
    return re.sub(r'"(\{\{.*?\}\})"', lambda match: json.loads(f'"{match[1]}"'), json.dumps(nodes, indent=2))


def upscaler(**changes: Any) -> str:
    """A template that only enlarges an image: without prompt and seed."""
    nodes: dict[str, Any] = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "{{ image }}"}},
        "2": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "{{ files.upscaler }}"}},
        "3": {
            "class_type": "ImageUpscaleWithModel",
            "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]},
        },
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "{{ prefix }}", "images": ["3", 0]}},
    }
    for name, value in changes.items():
        node, _, key = name[1:].partition("_")
        nodes[node]["inputs"][key] = value
    return as_template(nodes)


OWN_MODEL: Mapping[str, Any] = {
    "title": "Mine",
    "family": "Mine",
    "workflow": "sd15_simple",
    "files": {"checkpoint": {"name": "mine.safetensors", "folder": "checkpoints"}},
    "licence": {"name": "unknown", "commercial": "unknown"},
    "size": {"default": "512x512", "multiple_of": 8, "min": "256x256", "max": "1024x1024"},
}
"""A model as a file of the owner's folder has it"""


def write_sources(sources: Sources, folder: Path) -> dict[str, str]:
    """Writes the catalogue and the templates of `sources` to `folder`; returns the settings that make Easel use them."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    for name, text in sources.templates.items():
        (folder / "templates" / name).write_text(text, "utf-8")
    (folder / "catalogue.yaml").write_text(sources.catalogue, "utf-8")
    return {"catalogue": str(folder / "catalogue.yaml"), "templates": str(folder / "templates")}


IMAGES = {"min": 1, "max": 3}
STITCHED = """
{
  "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {{ files.checkpoint }}}},
  "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": {{ prompt }}}},
  "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "blurry"}},
  "image1": {"class_type": "LoadImage", "inputs": {"image": {{ image }}}},
  "latent": {"class_type": "VAEEncode", "inputs": {"pixels": ["image1", 0], "vae": ["model", 2]}},
  "sampler": {
    "class_type": "KSampler",
    "inputs": {
      "seed": {{ seed }}, "steps": 2, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.02,
      "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]
    }
  },
  "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}}
}
{% set at = namespace(picture="decoded") %}
{% for name in images[1:] %}
{
  {{ "image" ~ (loop.index + 1) }}: {"class_type": "LoadImage", "inputs": {"image": {{ name }}}},
  {{ "stitched" ~ (loop.index + 1) }}: {
    "class_type": "ImageStitch",
    "inputs": {
      "image1": [{{ at.picture }}, 0], "image2": [{{ "image" ~ (loop.index + 1) }}, 0],
      "direction": "right", "match_image_size": false, "spacing_width": 0, "spacing_color": "white"
    }
  }
}
{% set at.picture = "stitched" ~ (loop.index + 1) %}
{% endfor %}
{"save": {"class_type": "SaveImage", "inputs": {"images": [{{ at.picture }}, 0], "filename_prefix": {{ prefix }}}}}
"""
"""Redraws the first image a little, and puts the others to its right, in order"""

ENCODED = """
{
  "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": {{ files.checkpoint }}}},
  "positive": {
    "class_type": "TextEncodeQwenImageEditPlus",
    "inputs": {
      {% for _ in images %}{{ "image" ~ loop.index }}: [{{ "loaded" ~ loop.index }}, 0], {% endfor %}
      "clip": ["model", 1], "vae": ["model", 2], "prompt": {{ prompt }}
    }
  },
  "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "blurry"}},
  "latent": {
    "class_type": "EmptyLatentImage", "inputs": {"width": {{ width }}, "height": {{ height }}, "batch_size": {{ batch }}}
  },
  "sampler": {
    "class_type": "KSampler",
    "inputs": {
      "seed": {{ seed }}, "steps": 2, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
      "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]
    }
  },
  "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
  "save": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": {{ prefix }}}}
}
{% for name in images %}
{ {{ "loaded" ~ loop.index }}: {"class_type": "LoadImage", "inputs": {"image": {{ name }}}} }
{% endfor %}
"""
"""Draws a new picture from all images, as Qwen-Image-Edit does"""
