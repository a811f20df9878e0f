"""The model names and sizes of OpenAI's image models. Clients that know only these send them to every server."""

from __future__ import annotations

from compiler.size import Size

SLOT_NAME = "img"
"""The model name that hal0 sends for its image slot. It means the default model."""
_PROVIDER_PREFIX = "openai/"
"""Gateways put the provider before the name"""
_MODEL_PREFIXES = ("dall-e-", "gpt-image-", "chatgpt-image-")
_SIZES = (
    # DALL·E 2 and 3
    *("256x256", "512x512", "1024x1024", "1792x1024", "1024x1792"),
    # gpt-image-1
    *("1536x1024", "1024x1536"),
    # gpt-image-2 and newer, which name these sizes and draw others too
    *("2048x2048", "2048x1152", "1152x2048", "3840x2160", "2160x3840"),
)
OPENAI_SIZES = frozenset(map(Size.parse, _SIZES))
MIN_FITTED_SIDE, MAX_FITTED_SIDE = 64, 3840
"""pixels; other sizes are fitted between these. The larger one is the limit of OpenAI's models; beyond, a size is more
likely a mistake than a wish."""


def model_key(name: str | None) -> str:
    """The form of a model name in which it is looked up."""
    return (name or "").strip().casefold().removeprefix(_PROVIDER_PREFIX)


def names_no_model(name: str | None) -> bool:
    """Whether a request leaves the choice of the model to the server: it has no model name, hal0's, or one of OpenAI's."""
    key = model_key(name)
    return key in ("", SLOT_NAME) or key.startswith(_MODEL_PREFIXES)
