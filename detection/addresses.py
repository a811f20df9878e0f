"""Where servers usually listen."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

_USUAL_PORTS = (8188, 8000, 11434, 8080, 8081, 1234)
"""ComfyUI; its desktop app and vLLM; Ollama; llama-server and Easel; the next one; LM Studio"""
_OLLAMA_PORT = 11434
_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104  nothing listens here


def usual_urls() -> list[str]:
    """Where to look without knowing anything."""
    return [f"http://127.0.0.1:{port}" for port in _USUAL_PORTS]


def ollama_url(environment: Mapping[str, str]) -> str | None:
    """Where OLLAMA_HOST says that Ollama is, in any of the spellings that Ollama takes; None if it is not set or no
    address."""
    text = environment.get("OLLAMA_HOST", "").strip().strip("\"'")
    if not text:
        return None
    has_scheme = "://" in text
    try:
        parts = urlsplit(text if has_scheme else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    host = "127.0.0.1" if host in _ANY_ADDRESS else host
    scheme_port = {"http": 80, "https": 443}.get(parts.scheme) if has_scheme else None
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or scheme_port or _OLLAMA_PORT}"
