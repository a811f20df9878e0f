"""Forwards LLM requests to the servers and services that the owner configured, and shares the GPU with the pictures. Knows
no graphs and no pictures."""

from conversation.body import RequestBody
from conversation.directory import ListedModel, ModelDirectory, UpstreamStatus, id_of
from conversation.forwarded import Client, Forwarded
from conversation.forwarder import Forwarder
from conversation.json_fields import with_values
from conversation.requests import LlmRequest, read_request
from conversation.routes import ROUTES, Route
from conversation.upstream_config import read_aliases, read_upstreams
from conversation.upstream_errors import in_dialect
from conversation.upstreams import Upstream

__all__ = [
    "ROUTES",
    "Client",
    "Forwarded",
    "Forwarder",
    "ListedModel",
    "LlmRequest",
    "ModelDirectory",
    "RequestBody",
    "Route",
    "Upstream",
    "UpstreamStatus",
    "id_of",
    "in_dialect",
    "read_aliases",
    "read_request",
    "read_upstreams",
    "with_values",
]
