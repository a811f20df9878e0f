"""What nodes do here. A node is known by its types alone: what gives LATENT from LATENT and MODEL samples, what gives
IMAGE from LATENT decodes, and whatever has no pixels becomes a token that remembers its class and inputs. Only the
three nodes that deliver pictures are known by name, so a node added to `nodes.json` needs no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sketch.nodes.images import make_image, make_mask
from sketch.nodes.inputs import NodeContext, NodeInputs
from sketch.nodes.latents import make_latent
from sketch.nodes.outputs import DELIVER
from sketch.nodes.values import Value

MAKE: dict[str, Callable[[NodeInputs, NodeContext], Value]] = {
    "LATENT": make_latent,
    "IMAGE": make_image,
    "MASK": make_mask,
}


def run_node(given: NodeInputs, stage: NodeContext) -> tuple[tuple[Value, ...], dict[str, Any] | None]:
    """Runs one node: its outputs in order, and what it tells the user interface, if it does."""
    given.check_links()
    deliver = DELIVER.get(given.class_type)
    if deliver:
        return (), deliver(given, stage)
    made: dict[str, Value] = {}
    for kind in given.node.outputs:
        if kind not in made:
            make = MAKE.get(kind)
            made[kind] = make(given, stage) if make else given.token()
    return tuple(made[kind] for kind in given.node.outputs), None
