"""The strengths that ComfyUI's samplers can draw with few steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compiler.values import Note, Plan, PlannedValue

_FULL = 0.9999
"""ComfyUI takes a denoise above it as 1."""
_TAKES_WHOLE_STEPS = ("KSampler", "BasicScheduler")
"""They draw the last `steps` of int(steps / denoise) steps, which may be all of them: then nothing of the image is left."""


def with_drawable_strength(plan: Plan, nodes: Mapping[str, Any]) -> Plan:
    """`plan`, with the strength that leaves something of the image if the graph's sampler would take the planned one as 1
    although that leaves less than asked. Of both, the nearer one to the planned strength is taken; either is listed as
    adjusted."""
    planned = plan.values.get("strength")
    if planned is None or plan.task == "generate" or not isinstance(planned.value, int | float):
        return plan
    for node in nodes.values():
        inputs = node["inputs"]
        steps, denoise = inputs.get("steps"), inputs.get("denoise")
        if (
            node["class_type"] in _TAKES_WHOLE_STEPS
            and isinstance(steps, int)
            and denoise == planned.value
            and 0 < denoise <= _FULL
            and int(steps / denoise) == steps
        ):
            return _adjusted(plan, planned, steps)
    return plan


def largest_strength(steps: int) -> float:
    """The largest strength below 1, in hundredths, with which ComfyUI draws `steps` of more than `steps` steps."""
    return int(100 * steps / (steps + 1)) / 100


def _adjusted(plan: Plan, planned: PlannedValue, steps: int) -> Plan:
    less = largest_strength(steps)
    done = less if planned.value - less <= 1 - planned.value else 1.0
    number = "1 step" if steps == 1 else f"{steps} steps"
    why = (
        f"with {number} ComfyUI takes a strength above {less} as 1, which leaves nothing of the image; "
        "send more steps for strengths between"
    )
    return replace(
        plan,
        values={**plan.values, "strength": PlannedValue(done, planned.origin)},
        adjusted=(*plan.adjusted, Note("strength", planned.value, done, why)),
    )
