"""The limits of a caller's key, in terms of models and plans; and how far they are used, as OpenAI's headers say it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from access import Caller, Level, PictureUse, Use
from compiler import Catalogue, Model, Plan
from conversation import ModelDirectory
from errors import KeyLimitModel, KeyLimitSize, KeyLimitSteps, ModelNotCurated, list_names, shorten

_LATEST = ":latest"
_HOUR_S, _MINUTE_S = 3600, 60


def may_use_model(caller: Caller, model: Model, catalogue: Catalogue) -> bool:
    """Whether the key of `caller` allows an image model."""
    names = caller.limits.models
    return names is None or any(_is_named(name, model, catalogue) for name in names)


def _is_named(name: str, model: Model, catalogue: Catalogue) -> bool:
    try:
        return catalogue.find(name).id == model.id
    except ModelNotCurated:
        return False


def check_model(use: Use | None, model: Model, catalogue: Catalogue) -> None:
    """Raises KeyLimitModel."""
    if use is not None and not may_use_model(use.caller, model, catalogue):
        raise use.refuse(_model_error(use.caller, model.id))


def may_use_llm(caller: Caller, name: str, directory: ModelDirectory) -> bool:
    """Whether the key of `caller` allows the LLM `name`, an id or an alias."""
    names = caller.limits.models
    if names is None:
        return True
    return _meant_llm(name, directory) in {_meant_llm(own, directory) for own in names}


def _meant_llm(name: str, directory: ModelDirectory) -> str:
    """The id that an id or an alias means."""
    alias = directory.aliases.get(name)
    return (alias.model if alias is not None else name).removesuffix(_LATEST)


def check_llm(use: Use | None, name: str, directory: ModelDirectory) -> None:
    """Raises KeyLimitModel."""
    if use is not None and not may_use_llm(use.caller, name, directory):
        raise use.refuse(_model_error(use.caller, name))


def _model_error(caller: Caller, model: str) -> KeyLimitModel:
    names = caller.limits.models or ()
    return KeyLimitModel(
        f"The key {caller.name} may not use the model {shorten(model, 200)!r}, only {list_names(names)}.",
        param="model",
        limit=list(names[:100]),
    )


def take_pictures(use: Use, plan: Plan) -> PictureUse:
    """Check a plan, and count its pictures. Raises KeyLimitSize, KeyLimitSteps, and as `Use.take_pictures`."""
    limits, size = use.caller.limits, plan.final_size
    if not limits.allows_size(size.width, size.height):
        raise use.refuse(
            KeyLimitSize(
                f"The finished picture would have {size} pixels; the key {use.caller.name} allows {limits.max_size}.",
                param="size",
                limit=limits.max_size,
                size=str(size),
            )
        )
    steps = plan.values["steps"].value if "steps" in plan.values else None
    if limits.max_steps is not None and isinstance(steps, int | float) and steps > limits.max_steps:
        raise use.refuse(
            KeyLimitSteps(
                f"The picture would be drawn with {steps} steps; the key {use.caller.name} allows {limits.max_steps}. Send "
                "`steps`.",
                param="steps",
                limit=limits.max_steps,
                steps=steps,
            )
        )
    return use.take_pictures(sum(job.batch for job in plan.jobs))


def limit_headers(levels: Iterable[Level]) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI sends them: of the window for requests, and of that for pictures (OpenAI: images), with the
    smallest share left."""
    headers: dict[str, str] = {}
    known = list(levels)
    for what, name in (("requests", "requests_per_"), ("images", "pictures_per_")):
        found = [level for level in known if level.name.startswith(name)]
        if found:
            level = min(found, key=lambda level: level.remaining / level.limit)
            headers[f"x-ratelimit-limit-{what}"] = str(level.limit)
            headers[f"x-ratelimit-remaining-{what}"] = str(level.remaining)
            headers[f"x-ratelimit-reset-{what}"] = duration(level.reset_s or 0)
    return headers


def levels_of(windows: Iterable[Mapping[str, Any]]) -> list[Level]:
    """The levels in the details of a KeyLimitReached."""
    return [Level(window["name"], window["limit"], window["used"], window["reset"]) for window in windows]


def duration(seconds: float) -> str:
    """Such as `6m0s`, which is how OpenAI writes it."""
    rest = max(0, math.ceil(seconds))
    parts: list[str] = []
    for length, unit in ((_HOUR_S, "h"), (_MINUTE_S, "m")):
        if rest >= length or parts:
            parts.append(f"{rest // length}{unit}")
            rest %= length
    return "".join([*parts, f"{rest}s"])
