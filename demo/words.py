"""What the arbiter decided, in plain words: each line comes from an event of its log. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIDES = {"generation": "pictures", "inference": "chats"}
_PHASES = {
    "draining": "running requests ended in",
    "releasing": "unloaded in",
    "verifying": "memory checked in",
    "starting": "engine started in",
    "restoring": "LLM loaded in",
}
_MIN_SHOWN_S = 0.05
"""Of a phase"""


def switch_began(
    event: Mapping[str, Any], policy: Mapping[str, Any], *, stayed_s: float, is_contended: bool
) -> str:
    """Why the GPU is handed over. `stayed_s`: how long the other side had it; `is_contended`: it still asks for it."""
    side, waiting = _SIDES[event["target"]], len(event["waiting"])
    match event["reason"]:
        case "image request" | "LLM request":
            other = "chats" if event["target"] == "generation" else "pictures"
            noun = "picture" if event["target"] == "generation" else "chat"
            who = f"{waiting} {noun} waits" if waiting == 1 else f"{waiting} {noun}s wait"
            # The minimum stay counts only while both sides ask (arbiter/README.md, decision 6).
            if is_contended:
                least = f"gpu.min_stay_s is {policy['min_stay_s']:.2f} s"
                why = f"{who}, and the {other} had it for {stayed_s:.2f} s ({least})"
            else:
                why = f"{who}, and nobody waits for {other}"
        case "no more pictures":
            why = f"nobody asked for a picture for {policy['linger_s']:.2f} s (gpu.linger_s)"
        case reason:
            why = str(reason)
    return f"the GPU goes to the {side}: {why}"


def switch_ended(event: Mapping[str, Any]) -> str:
    """What it cost."""
    side = _SIDES[event["target"]]
    if event["error"] is not None:
        return f"the switch to the {side} failed after {event['took_s']:.2f} s: {event['error']}"
    phases = [
        f"{_PHASES[name]} {s:.2f}" for name, s in event["phases"] if name in _PHASES and s >= _MIN_SHOWN_S
    ]
    lost = f"; not loaded again: {', '.join(event['not_loaded'])}" if event["not_loaded"] else ""
    of_it = f" ({', '.join(phases)})" if phases else ""
    return f"the {side} have the GPU after {event['took_s']:.2f} s{of_it}{lost}"


def request_ended(event: Mapping[str, Any]) -> str:
    """What a request cost whoever sent it."""
    what = "picture" if event["mode"] == "generation" else "chat"
    if event["event"] == "gave_up":
        return f"{what}: gave up ({event['error']})"
    run_s = event["held_s"] if event["run_s"] is None else event["run_s"]
    failed = f", failed: {event['error']}" if event["error"] else ""
    return f"{what}: waited {event['waited_s']:.2f} s for the GPU, used it for {run_s:.2f} s{failed}"
