"""What nodes do. A node's types decide: what makes LATENT from LATENT and MODEL samples, what makes IMAGE from LATENT
decodes, what has the type of an input passes it on, and whatever has no pixels becomes a token that records its class and
inputs. A few nodes that save or send pictures are known by name; a node added to `nodes.json` needs no code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sketch.nodes.images import make_image, make_mask, resized
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.latents import make_latent
from sketch.nodes.outputs import output_action
from sketch.nodes.values import Images, Latent, Mask, Value

MAKE: dict[str, Callable[[NodeInputs, NodeContext], Value]] = {
    "LATENT": make_latent,
    "IMAGE": make_image,
    "MASK": make_mask,
}


# Raised if a node's inputs are not what its types suggest. ComfyUI has such a node's code; here only its types are known.
_SURPRISES = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)


class CannotSketch(Exception):
    """The sketch engine cannot draw what a node does."""


def run_node(inputs: NodeInputs, context: NodeContext) -> tuple[tuple[Value, ...], dict[str, Any] | None]:
    """Run one node. Returns its outputs in order, and what it reports to the user interface, if anything. Raises
    CannotSketch, and what Python raises if there is a plain value in place of a link."""
    inputs.check_links()
    action = output_action(inputs)
    ui = action(inputs, context) if action else None
    values: dict[str, Value] = {}
    for kind in sorted(set(inputs.node.outputs), key=lambda kind: kind != "LATENT"):
        values[kind] = _make(kind, inputs, context, values)
    return tuple(_output(index, inputs, values) for index in range(len(inputs.node.outputs))), ui


def _make(kind: str, inputs: NodeInputs, context: NodeContext, made: dict[str, Value]) -> Value:
    sampled = made.get("LATENT")
    if kind == "IMAGE" and isinstance(sampled, Latent) and sampled.pixels and inputs.linked(Latent, "LATENT"):
        return sampled.decoded()  # a node that samples and decodes
    make = MAKE.get(kind)
    if make is None:
        return inputs.token()
    try:
        return make(inputs, context)
    except _SURPRISES as error:
        raise CannotSketch(
            "Easel's sketch engine, which draws without models, cannot play this node; a ComfyUI that has it can: set "
            "engine.url."
        ) from error


def _output(index: int, inputs: NodeInputs, values: dict[str, Value]) -> Value:
    match = inputs.node.match_of(index)
    if match is not None:
        passed = inputs.matched(match)
        if isinstance(passed, Images | Mask):
            return resized(passed, inputs)
        if passed is not None:
            return passed
    return values[inputs.node.outputs[index]]
