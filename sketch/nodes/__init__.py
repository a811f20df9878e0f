"""What nodes do. A node's types decide: what makes LATENT from LATENT and MODEL samples, what makes IMAGE from LATENT
decodes, what has the type of an input passes it on, and whatever has no pixels becomes a token that records its class and
inputs. A few nodes that save or send pictures are known by name; a node added to `nodes.json` needs no code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sketch.nodes.images import make_image, make_mask, resized
from sketch.nodes.inputs import GraphFault, Interrupted, NodeContext, NodeInputs
from sketch.nodes.latents import make_latent
from sketch.nodes.outputs import output_action
from sketch.nodes.values import Images, Latent, Mask, TooManyPixels, Value

MAKE: dict[str, Callable[[NodeInputs, NodeContext], Value]] = {
    "LATENT": make_latent,
    "IMAGE": make_image,
    "MASK": make_mask,
}


class CannotSketch(Exception):
    """The sketch engine cannot draw what a node does, in this size or on this machine; a ComfyUI may."""


def run_node(inputs: NodeInputs, context: NodeContext) -> tuple[tuple[Value, ...], dict[str, Any] | None]:
    """Run one node. Returns its outputs in order, and what it reports to the user interface, if anything. Raises
    CannotSketch, Interrupted, and GraphFault with what ComfyUI raises if the graph itself is wrong."""
    try:
        inputs.check_links()
        action = output_action(inputs)
        ui = action(inputs, context) if action else None
        values: dict[str, Value] = {}
        for kind in sorted(set(inputs.node.outputs), key=lambda kind: kind != "LATENT"):
            values[kind] = _make(kind, inputs, context, values)
        return tuple(_output(index, inputs, values) for index in range(len(inputs.node.outputs))), ui
    except (Interrupted, GraphFault):
        raise
    except Exception as error:
        # ComfyUI has the code of each node. Here only its types are known, so that any error can come of guessing.
        raise CannotSketch(
            f"Easel's sketch engine, which draws without models, cannot run this node ({inputs.class_type})"
            f"{_reason(error)}. A ComfyUI that has the node can: set engine.url."
        ) from error


def _reason(error: Exception) -> str:
    """Why, if it is neither a surprise of Python's nor of use to nobody."""
    if isinstance(error, TooManyPixels):
        return f": {error}"
    if isinstance(error, MemoryError):
        return ": this machine has too little free memory"
    if isinstance(error, OSError) and error.strerror:
        return f": {error.strerror}"
    return ""


def _make(kind: str, inputs: NodeInputs, context: NodeContext, made: dict[str, Value]) -> Value:
    sampled = made.get("LATENT")
    if kind == "IMAGE" and isinstance(sampled, Latent) and sampled.pixels and inputs.linked(Latent, "LATENT"):
        return sampled.decoded()  # a node that samples and decodes
    make = MAKE.get(kind)
    return inputs.token() if make is None else make(inputs, context)


def _output(index: int, inputs: NodeInputs, values: dict[str, Value]) -> Value:
    match = inputs.node.match_of(index)
    if match is not None:
        passed = inputs.matched(match)
        if isinstance(passed, Images | Mask):
            return resized(passed, inputs)
        if passed is not None:
            return passed
    return values[inputs.node.outputs[index]]
