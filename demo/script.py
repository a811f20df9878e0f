"""What three people ask for in a busy hour. Pure: the same seed gives the same hour."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "picture", "edit"]
PEOPLE = ("open-webui", "phone", "editor")
"""The names of their keys"""
HOUR_S = 3600.0
DEFAULT_SEED = 7

_JITTER_MINUTES = 0.25
_SCENES: dict[Kind, tuple[str, ...]] = {
    "picture": (
        "a lighthouse above a calm sea",
        "a red bicycle in the rain",
        "an owl that reads a map",
        "a greenhouse at night",
        "a market on a frozen river",
        "a blue teapot on a windowsill",
    ),
    "edit": ("make it evening", "add a small boat", "in the style of a woodcut", "with snow"),
    "chat": (
        "What is a file lock?",
        "Summarise these notes.",
        "Why is the sky blue?",
        "Write a unit test.",
        "Translate this letter.",
    ),
}


@dataclass(frozen=True, slots=True)
class Act:
    """One request. `at_s`: seconds of the hour. `tokens`: the length of a chat's answer."""

    at_s: float
    who: str
    kind: Kind
    text: str
    tokens: int = 0


# One picture while nobody else asks; a series of edits with chats in between; all three at once; and, most expensive for a
# GPU that is handed over for each request, pictures and chats in turns.
_PLAN: tuple[tuple[float, str, Kind], ...] = (
    *((minute, "open-webui", "chat") for minute in (1.0, 2.5, 4.5)),
    (8.0, "phone", "picture"),
    (11.0, "open-webui", "chat"),
    (14.0, "editor", "picture"),
    *((minute, "editor", "edit") for minute in (15.5, 17.0, 18.5)),
    *((minute, "open-webui", "chat") for minute in (16.0, 18.0, 20.0)),
    *((minute, "open-webui", "chat") for minute in (27.0, 28.0, 29.0, 30.0, 31.0)),
    *((minute, "phone", "picture") for minute in (27.4, 27.6, 27.8, 28.0, 28.2, 28.4)),
    *((minute, "editor", "picture") for minute in (27.5, 28.1)),
    *((minute, "editor", "edit") for minute in (29.5, 30.0, 30.5)),
    *((minute, "phone", "picture") for minute in (40.0, 42.0, 44.0, 46.0, 48.0)),
    *((minute, "open-webui", "chat") for minute in (41.0, 43.0, 45.0, 47.0, 49.0)),
    (55.0, "phone", "picture"),
    (57.0, "open-webui", "chat"),
)


def busy_hour(seed: int = DEFAULT_SEED) -> tuple[Act, ...]:
    """The requests in the order of their times."""
    chance = random.Random(seed)
    acts = []
    for minute, who, kind in _PLAN:
        at_s = max(0.0, minute + chance.uniform(-_JITTER_MINUTES, _JITTER_MINUTES)) * 60
        tokens = chance.randrange(120, 480, 20) if kind == "chat" else 0
        acts.append(Act(round(at_s, 1), who, kind, chance.choice(_SCENES[kind]), tokens))
    return tuple(sorted(acts, key=lambda act: act.at_s))
