"""Writes the catalogue's entries for an imported workflow: its inputs with limits from the node signatures, and a model with
its files and sizes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import yaml

from compiler.signatures import InputSignature
from compiler.values import Nodes
from errors import WorkflowNotImportable
from importer.bindings import Bindings, Field
from importer.graph_view import GraphView, Place
from importer.read_source import ModelFile

_ROLES = {
    "checkpoints": "checkpoint",
    "diffusion_models": "diffusion_model",
    "unet": "diffusion_model",
    "text_encoders": "text_encoder",
    "clip": "text_encoder",
    "loras": "lora",
    "upscale_models": "upscale_model",
    "latent_upscale_models": "latent_upscale_model",
    "model_patches": "model_patch",
    "style_models": "style_model",
}
_OWN_FIELDS = frozenset({"prompt", "width", "height", "seed", "batch", "prefix"})
"""Every workflow has these: they need no entry under `inputs`."""
_PICTURE_FIELDS = frozenset({"image", "mask"})

_MAX_FILES = 500
"""Each file gets a role that is proved; workflows that people make have a few dozen."""

_MIN_SIDE, _MAX_SIDE = 64, 2048
_MAX_STEPS = 100
_MAX_NUMBER = 1_000_000
_UNKNOWN_SIZE = (1024, 1024)


def file_roles(
    nodes: Nodes, bindings: Bindings, declared: Mapping[str, ModelFile]
) -> dict[str, tuple[ModelFile, tuple[Place, ...]]]:
    """role -> the file, and the inputs that name it. Raises WorkflowNotImportable."""
    graph_files: dict[tuple[str, str], list[Place]] = {}
    for place, folder in bindings.files.items():
        name = str(nodes[place[0]]["inputs"][place[1]])
        known = declared.get(name) or declared.get(re.split(r"[/\\]", name)[-1])
        graph_files.setdefault((name, folder or (known.folder if known else None) or ""), []).append(place)
    if len(graph_files) > _MAX_FILES:
        raise WorkflowNotImportable(
            f"The workflow names {len(graph_files)} different model files; a model has at most {_MAX_FILES}. "
            "Remove those that are not needed in ComfyUI."
        )
    found: dict[str, tuple[ModelFile, tuple[Place, ...]]] = {}
    numbers: dict[str, int] = {}
    for (name, folder), places in graph_files.items():
        if not folder:
            continue  # the node's own list decides; the name stays as exported
        known = declared.get(name) or declared.get(re.split(r"[/\\]", name)[-1]) or ModelFile(name)
        role = _role(folder, found, numbers)
        found[role] = ModelFile(name, folder, known.url, known.sha256), tuple(places)
    return found


def _role(folder: str, taken: Container[str], numbers: dict[str, int]) -> str:
    """A role that is not taken yet. `numbers`: the last number of each name, which is counted up."""
    base = _ROLES.get(folder) or re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    base = base if base[:1].isalpha() else f"file_{base}"
    name = base
    while name in taken:
        numbers[base] = numbers.get(base, 1) + 1
        name = f"{base}_{numbers[base]}"
    return name


def entries(
    *,
    name: str,
    title: str,
    graph: GraphView,
    bindings: Bindings,
    files: Mapping[str, tuple[ModelFile, tuple[Place, ...]]],
    output: str,
    least_images: int,
) -> dict[str, Any]:
    """The content of the file NAME.yaml: `workflows:` and `models:`. `output`: the id of the answer's node in the
    template. `least_images`: how many pictures a request must have."""
    workflow: dict[str, Any] = {"title": title, "tasks": list(bindings.tasks), "output": output}
    if bindings.images and "width" not in bindings.fields:
        workflow["size_from_image"] = True
    if len(bindings.images) > 1:
        workflow["images"] = {"min": least_images, "max": len(bindings.images)}
    workflow["inputs"] = dict(_inputs(graph, bindings))
    model = {
        "title": title,
        "family": title,
        "workflow": workflow_id(name),
        "files": {role: _file(file) for role, (file, _) in files.items()},
        "licence": {"name": "unknown", "commercial": "unknown"},
        "size": _size(graph, bindings),
    }
    document = {"workflows": {workflow_id(name): workflow}, "models": {name: model}}
    return document | ({"nodes": facts} if (facts := node_facts(graph)) else {})


def node_facts(graph: GraphView) -> dict[str, dict[str, Any]]:
    """What the workflow shows about node classes that their signatures do not say: further inputs, and values beside the
    listed choices, as where the workflow was made for a later ComfyUI. The engine that draws decides about them."""
    facts: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        found = facts.setdefault(graph.node_class(node), {})
        if list(graph.unlisted_inputs(node)):
            found["more_inputs"] = True
        if choices := list(graph.unlisted_choices(node)):
            found["any_value"] = sorted({*found.get("any_value", ()), *choices})
    return {node_class: entry for node_class, entry in facts.items() if entry}


def workflow_id(name: str) -> str:
    return name.lower().replace("/", "-")


def _file(file: ModelFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": file.name.replace("\\", "/"), "folder": file.folder}
    if file.url is not None:
        entry["url"] = file.url
    if file.sha256 is not None:
        entry["sha256"] = file.sha256
    return entry


# --- inputs ---------------------------------------------------------------------------------------------


def _inputs(graph: GraphView, bindings: Bindings) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in bindings.fields.items():
        if name in _OWN_FIELDS | _PICTURE_FIELDS:
            continue
        entry = _input(graph, field)
        if name == "negative_prompt" and "cfg" in bindings.fields and _is_cfg_of_sampler(bindings):
            entry["x-unused-when"] = {"cfg": 1.0}
        yield name, entry


def _is_cfg_of_sampler(bindings: Bindings) -> bool:
    return bindings.sampling is not None and bindings.fields["cfg"].places[0] == bindings.sampling.cfg


def _input(graph: GraphView, field: Field) -> dict[str, Any]:
    place = field.places[0]
    signature = graph.inputs(place[0]).get(place[1]) or InputSignature("*")
    value = field.value
    if isinstance(value, bool):
        return {"type": "boolean", "default": value}
    if isinstance(value, str):
        if signature.choices is not None and value in signature.choices:
            choices = f"{graph.node_class(place[0])}.{place[1]}"
            return {"type": "string", "x-choices": choices, "default": value}
        return {"type": "string", "default": value}
    if not isinstance(value, int | float):
        raise WorkflowNotImportable(f"{place[0]}.{place[1]} has no plain value that could be a field.")
    kind = (
        "integer"
        if signature.type == "INT" or (isinstance(value, int) and signature.type != "FLOAT")
        else "number"
    )
    low, high = _limits(field.name, signature, value)
    return {
        "type": kind,
        "minimum": low,
        "maximum": high,
        "default": value if kind == "integer" else float(value),
    }


def _limits(name: str, signature: InputSignature, value: float) -> tuple[float, float]:
    low = signature.minimum if signature.minimum is not None else min(0, value)
    high = signature.maximum if signature.maximum is not None else max(100, 2 * value)
    if name == "cfg" or max(abs(low), abs(high)) > _MAX_NUMBER:  # a node that takes any number
        low, high = max(low, min(0, value)), min(high, max(100, 2 * value))
    if name == "steps":
        low, high = max(low, 1), min(high, max(_MAX_STEPS, 2 * value))
    if name == "strength":
        low, high = max(low, 0.05), min(high, 1)
    return min(low, value), max(high, value)


# --- size -----------------------------------------------------------------------------------------------


def _size(graph: GraphView, bindings: Bindings) -> dict[str, Any]:
    width, height = bindings.size.value or _UNKNOWN_SIZE
    signatures = [
        graph.inputs(node).get(name)
        for side in ("width", "height")
        if (field := bindings.fields.get(side)) is not None
        for node, name in field.places
    ]
    step = _step(width, height)
    lows = [each.minimum for each in signatures if each is not None and each.minimum is not None]
    highs = [each.maximum for each in signatures if each is not None and each.maximum is not None]
    low = int(max([_MIN_SIDE, *lows]))
    high = int(min([max(_MAX_SIDE, width, height), *highs]))
    low, high = -(-low // step) * step, high // step * step
    return {
        "default": f"{width}x{height}",
        "multiple_of": step,
        "min": f"{min(low, width)}x{min(low, height)}",
        "max": f"{max(high, width)}x{max(high, height)}",
    }


def _step(width: int, height: int) -> int:
    """The largest usual multiple that both sides have: what a latent can have, at least."""
    return next((step for step in (16, 8, 4, 2) if width % step == 0 == height % step), 1)


# --- text -----------------------------------------------------------------------------------------------

_BLOCK_KEYS = frozenset({"workflows", "models", "inputs", "files"})


def entries_text(document: Mapping[str, Any], comment: str) -> str:
    """The entries as YAML in the project's style: one line for each entry of `inputs` and `files`."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for section, found in document.items():
        lines.append(f"{section}:")
        for name, entry in found.items():
            lines.append(f"  {_key(name)}:")
            for key, value in entry.items():
                if key in _BLOCK_KEYS and value:
                    lines.append(f"    {key}:")
                    lines += [f"      {_key(inner)}: {_inline(each)}" for inner, each in value.items()]
                else:
                    lines.append(f"    {key}: {_inline(value)}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return _inline(name)


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n...\n").strip()
