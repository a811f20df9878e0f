"""What a key may use: how much in a minute and a day, how much at once, and which sizes, steps and models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

WINDOWS: Mapping[str, float] = {
    "requests_per_minute": 60.0,
    "pictures_per_minute": 60.0,
    "requests_per_day": 86_400.0,
    "pictures_per_day": 86_400.0,
}
"""Limit -> the length of its window in seconds"""
MAX_NUMBER = 1_000_000_000
MAX_CONCURRENT = 1000
MAX_MODELS = 1000
_SIZE = re.compile(r"(\d{1,5})[xX×](\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """None: no limit. `max_size`: width and height in pixels of the finished picture, which may be turned by 90 degrees.
    `models`: ids or aliases, image models and LLMs alike."""

    requests_per_minute: int | None = None
    pictures_per_minute: int | None = None
    requests_per_day: int | None = None
    pictures_per_day: int | None = None
    concurrent: int | None = None
    max_size: str | None = None
    max_steps: int | None = None
    models: tuple[str, ...] | None = None

    @property
    def counts(self) -> bool:
        """Whether a limit depends on what was used before."""
        return self.concurrent is not None or any(getattr(self, name) is not None for name in WINDOWS)

    def allows_size(self, width: int, height: int) -> bool:
        """Whether a finished picture may have this size."""
        if self.max_size is None:
            return True
        long, short = sorted(parse_size(self.max_size), reverse=True)
        return max(width, height) <= long and min(width, height) <= short

    def as_json(self) -> dict[str, Any]:
        """Only the limits that there are."""
        values = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        return values if self.models is None else {**values, "models": list(self.models)}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Raises ValueError, whose text names the field and what is allowed."""
        if not isinstance(document, dict):
            raise ValueError("limits: it must be an object")
        if not document:
            return cls()
        for name in document:
            if name not in _FIELDS:
                raise ValueError(f"limits.{str(name)[:40]!r} is not known; known are {', '.join(_FIELDS)}")
        values = dict(document)
        for name, value in values.items():
            if problem := _problem(name, value):
                raise ValueError(f"limits.{name}: {problem}")
        if "models" in values:
            values["models"] = tuple(values["models"])
        return cls(**values)


_FIELDS = tuple(field.name for field in fields(Limits))


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of text such as `1024x768`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise ValueError("it must be WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(match[1]), int(match[2])


def _problem(name: str, value: Any) -> str | None:
    if name == "models":
        is_list = isinstance(value, list | tuple) and 0 < len(value) <= MAX_MODELS
        if not is_list or not all(isinstance(model, str) and model.strip() for model in value):
            return f"it must be a list of 1 to {MAX_MODELS} names of models"
        return None
    if name == "max_size":
        try:
            parse_size(value if isinstance(value, str) else "")
        except ValueError as error:
            return str(error)
        return None
    highest = MAX_CONCURRENT if name == "concurrent" else MAX_NUMBER
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= highest:
        return f"it must be a whole number from 1 to {highest}"
    return None


UNLIMITED = Limits()
