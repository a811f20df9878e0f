"""GET /api/tags, as Ollama's clients read it."""

from __future__ import annotations

from tests.conftest import MakeApp
from tests.conversation.upstream import Exchange, upstream

ENTRY = {
    "name": "llama3:latest",
    "model": "llama3:latest",
    "modified_at": "2026-01-01T00:00:00Z",
    "size": 5,
    "digest": "abc",
    "details": {"family": "llama"},
    "status": {"args": ["--api-key", "sk-1"]},
}


def test_the_models_of_ollama_and_their_aliases_are_listed_without_what_may_be_secret(
    make_app: MakeApp,
) -> None:
    def listing(exchange: Exchange) -> None:
        exchange.send_json({"models": [ENTRY]})

    with upstream(listing=listing) as ollama, upstream() as other:
        app = make_app(
            llm__upstreams=({"preset": "ollama", "url": ollama.url}, {"name": "other", "url": other.url}),
            llm__aliases={"primary": "llama3", "second": "tiny"},
        )
        models = app.test_client().get("/api/tags").get_json()["models"]
    known = {key: value for key, value in ENTRY.items() if key != "status"}
    alias = {**known, "name": "primary", "model": "primary"}
    assert models == [alias, known]
