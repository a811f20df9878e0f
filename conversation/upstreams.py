"""The servers and services that LLM requests are forwarded to. What is known of each kind is in presets.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from conversation.routes import ROUTES
from http_connections import ConnectionPool
from schemas import read_yaml

DEFAULT_PRESET = "openai-compatible"
DEFAULT_CONNECT_TIMEOUT_S = 5.0
DEFAULT_SILENCE_TIMEOUT_S = 600.0
"""As long as OpenAI's own clients wait"""
MAX_KEPT_CONNECTIONS = 32
MAX_IDLE_S = 3.0
"""Servers close an idle connection after 5 s (llama-server, uvicorn, Node) or more"""


@dataclass(frozen=True)
class ModelListing:
    """How an upstream lists its models: the path, the field with the list, and the field with an entry's id."""

    path: str
    items: str
    id: str


@dataclass(frozen=True)
class Upstream:
    """One server or service. `url` contains no secret.

    `models`: the ids that it has; None: they are listed by `listing`. `stack`: the LLM stack through which it shares the
    GPU; None if it uses another device. `not_on_gpu`: ids of its models that use another device all the same.
    """

    name: str
    url: str
    preset: str
    paths: Mapping[str, str]
    """Route name -> path; a route that is missing here is not forwarded to it"""
    models: tuple[str, ...] | None
    listing: ModelListing
    stack: str | None
    not_on_gpu: frozenset[str]
    silence_timeout_s: float
    default_headers: Mapping[str, str]
    """Sent where the client sends none of this name"""
    own_headers: frozenset[str]
    """Names in lower case of the headers that the owner sets for it, with the one for its key; a client cannot send them"""
    key: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    """Its key and other texts that no client gets, the longest first"""
    key_variable: str
    key_header: str
    """The name of the header that contains only the key; empty: it is sent as `Authorization: Bearer`"""
    bearer_routes: frozenset[str]
    """Names of routes on which it is sent as `Authorization: Bearer` in any case"""
    connections: ConnectionPool = field(repr=False)

    def shares_gpu(self, model: str) -> bool:
        """Whether a request for this model needs the GPU that is shared with ComfyUI."""
        return self.stack is not None and not {model, model.removesuffix(":latest")} & self.not_on_gpu

    def key_headers(self, route: str = "") -> dict[str, str]:
        """The header with the key for a request of this route, or for the list of models; empty without a key."""
        if not self.key:
            return {}
        if self.key_header and route not in self.bearer_routes:
            return {self.key_header: self.key}
        return {"Authorization": f"Bearer {self.key}"}

    def without_secrets(self, text: str) -> str:
        """A text from the upstream; some quote the key that they reject."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


@dataclass(frozen=True)
class Preset:
    """What is known of a kind of upstream."""

    url: str
    auth: str
    header: str
    bearer: frozenset[str]
    """Names of routes on which the key is sent as `Authorization: Bearer`, although `auth` is `header`"""
    headers: Mapping[str, str]
    paths: Mapping[str, str]
    listing: ModelListing


def presets() -> Mapping[str, Preset]:
    """All by name."""
    return _presets()


@cache
def _presets() -> Mapping[str, Preset]:
    document = read_yaml(Path(__file__).with_name("presets.yaml").read_text("utf-8"))
    return {name: _preset(data) for name, data in document.items()}


def _preset(data: Mapping[str, Any]) -> Preset:
    return Preset(
        url=data.get("url", ""),
        auth=data["auth"],
        header=data.get("header", ""),
        bearer=frozenset(data.get("bearer", ())),
        headers=data.get("headers", {}),
        paths=route_paths(data["paths"]),
        listing=ModelListing(**data["models"]),
    )


def route_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """Route name -> path on the upstream, of `paths` in the configuration: a path, true for Easel's own, or false."""
    own = {route.name: route.path for route in reversed(ROUTES)}
    return {
        name: own[name] if path is True else str(path) for name, path in config.items() if path is not False
    }
