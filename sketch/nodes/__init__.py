"""What nodes do. A node's types decide: what makes LATENT from LATENT and MODEL samples, what makes IMAGE from LATENT
decodes, and whatever has no pixels becomes a token that records its class and inputs. Only the three nodes that save or
send pictures are known by name, so a node added to `nodes.json` needs no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sketch.nodes.images import make_image, make_mask
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.latents import make_latent
from sketch.nodes.outputs import OUTPUT_NODES
from sketch.nodes.values import Value

MAKE: dict[str, Callable[[NodeInputs, NodeContext], Value]] = {
    "LATENT": make_latent,
    "IMAGE": make_image,
    "MASK": make_mask,
}


def run_node(inputs: NodeInputs, context: NodeContext) -> tuple[tuple[Value, ...], dict[str, Any] | None]:
    """Run one node. Returns its outputs in order, and what it reports to the user interface, if anything."""
    inputs.check_links()
    output_node = OUTPUT_NODES.get(inputs.class_type)
    if output_node:
        return (), output_node(inputs, context)
    values: dict[str, Value] = {}
    for kind in inputs.node.outputs:
        if kind not in values:
            make = MAKE.get(kind)
            values[kind] = make(inputs, context) if make else inputs.token()
    return tuple(values[kind] for kind in inputs.node.outputs), None
