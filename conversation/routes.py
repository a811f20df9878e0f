"""The routes that are forwarded to LLM servers, as data: another one is one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dialect = Literal["openai", "anthropic", "ollama"]
"""Whose form errors have: OpenAI's envelope, Anthropic's with a `type`, Ollama's with only a text"""


@dataclass(frozen=True)
class Route:
    """`name`: its key in the `paths` of an upstream. `slot`: the alias that a request without a model means. `is_form`: the
    body is multipart, else JSON."""

    name: str
    path: str
    slot: str = "primary"
    dialect: Dialect = "openai"
    is_form: bool = False


ROUTES: tuple[Route, ...] = (
    Route("chat", "/v1/chat/completions"),
    Route("completions", "/v1/completions"),
    Route("embeddings", "/v1/embeddings", slot="embed"),
    Route("rerank", "/v1/rerankings", slot="embed"),
    Route("rerank", "/v1/rerank", slot="embed"),
    Route("transcriptions", "/v1/audio/transcriptions", slot="stt", is_form=True),
    Route("translations", "/v1/audio/translations", slot="stt", is_form=True),
    Route("speech", "/v1/audio/speech", slot="tts"),
    Route("responses", "/v1/responses"),
    Route("messages", "/v1/messages", dialect="anthropic"),
    Route("count_tokens", "/v1/messages/count_tokens", dialect="anthropic"),
    Route("ollama_chat", "/api/chat", dialect="ollama"),
    Route("ollama_generate", "/api/generate", dialect="ollama"),
    Route("ollama_embed", "/api/embed", slot="embed", dialect="ollama"),
    Route("ollama_embeddings", "/api/embeddings", slot="embed", dialect="ollama"),
    Route("ollama_show", "/api/show", dialect="ollama"),
)
