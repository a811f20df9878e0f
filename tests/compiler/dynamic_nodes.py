"""`/object_info` entries of nodes with inputs that depend on the graph, as two versions of ComfyUI report them."""

from __future__ import annotations

from typing import Any


def combo(*choices: str, **settings: Any) -> list[Any]:
    return ["COMBO", {"multiselect": False, "options": list(choices), **settings}]


def dynamic(options: dict[str, dict[str, Any]]) -> list[Any]:
    entries = [{"key": key, "inputs": {"required": inputs}} for key, inputs in options.items()]
    return ["COMFY_DYNAMICCOMBO_V3", {"options": entries}]


def node(
    required: dict[str, Any], outputs: list[str], optional: dict[str, Any] | None = None, **keys: Any
) -> dict[str, Any]:
    return {
        "input": {"required": required, "optional": optional or {}},
        "output": outputs,
        "output_node": False,
        **keys,
    }


def matched(types: str = "*") -> list[Any]:
    return ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "kind", "allowed_types": types}}]


def grown(kind: str, minimum: int, **names: Any) -> list[Any]:
    template = {"input": {"required": {"value": [kind, {}]}}, "min": minimum, **names}
    return ["COMFY_AUTOGROW_V3", {"template": template}]


SIDE = ["INT", {"default": 512, "min": 0, "max": 4096}]
FACTOR = ["FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0}]
CROP = combo("disabled", "center", default="center")
SIZES = {"by factor": {"multiplier": FACTOR}, "to size": {"width": SIDE, "height": SIDE, "crop": CROP}}
NESTED = {"plain": {}, "tuned": {"mode": dynamic({"low": {"level": SIDE}, "off": {}}), "note": ["STRING"]}}


def versions() -> dict[str, dict[str, Any]]:
    """version -> `/object_info`"""
    shared = {
        "Source": node({}, ["IMAGE", "MASK", "LATENT"]),
        "Switch": node(
            {"switch": ["BOOLEAN", {}], "on_false": matched(), "on_true": matched()},
            ["COMFY_MATCHTYPE_V3"],
            output_matchtypes=["kind"],
        ),
        "Nested": node({"setting": dynamic(NESTED), "image": ["IMAGE"]}, ["IMAGE"]),
        "Formula": node({"values": grown("FLOAT,INT", 1, names=["a", "b", "c"])}, ["FLOAT"]),
        "Chosen": node({"image": ["IMAGE"], "tags": combo("x", "y", multiselect=True)}, ["IMAGE"]),
        "Coloured": node(
            {"image": ["IMAGE"], "colour": ["COLOR", {"default": "#000000", "socketless": True}]}, ["IMAGE"]
        ),
        "End": {**node({"images": ["IMAGE"]}, []), "output_node": True},
    }
    resize = {"input": matched("IMAGE,MASK"), "scale_method": combo("area", "lanczos")}
    matches = {"output_matchtypes": ["kind"]}
    old = {
        "Resize": node({**resize, "resize_type": dynamic(SIZES)}, ["COMFY_MATCHTYPE_V3"], **matches),
        "Batch": node({"images": grown("IMAGE", 2, prefix="image", max=4)}, ["IMAGE"]),
        "Save": {**node({"images": ["IMAGE"], "format": combo("png", "jpeg")}, []), "output_node": True},
    }
    sizes = {**SIZES, "to multiple": {"multiple": ["INT", {"default": 8, "min": 1, "max": 64}]}}
    formats = {"png": {"depth": combo("8-bit", "16-bit")}, "exr": {"depth": combo("32-bit")}}
    new = {
        "Resize": node({**resize, "resize_type": dynamic(sizes)}, ["COMFY_MATCHTYPE_V3"], **matches),
        "Batch": node({"images": grown("IMAGE", 1, prefix="image", max=6)}, ["IMAGE"]),
        "Save": {**node({"images": ["IMAGE"], "format": dynamic(formats)}, []), "output_node": True},
    }
    return {"0.8.0": {**shared, **old}, "0.33.0": {**shared, **new}}


def graph_of(class_type: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """A graph in which the node `n` has these inputs; `s` is a Source, with IMAGE, MASK and LATENT."""
    return {
        "s": {"class_type": "Source", "inputs": {}},
        "n": {"class_type": class_type, "inputs": inputs},
    }
