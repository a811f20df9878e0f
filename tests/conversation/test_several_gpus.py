"""An LLM request takes its lease on the GPU that the stack of its upstream shares, and waits for no other GPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arbiter import Arbiter
from conversation import ROUTES, Client, Forwarder, ModelDirectory, RequestBody, read_request, read_upstreams
from errors import EaselError
from tests.arbiter.fakes import FakeEngine, FakeStacks, Request, quick_policy
from tests.conversation.upstream import Exchange, upstream
from tests.waiting import wait_until

CHAT = next(route for route in ROUTES if route.name == "chat")
GPU_OF = {"large": "0", "small": "1"}
"""LLM stack -> GPU. The model has the name of the stack."""


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[dict[str, Arbiter]]:
    """GPU -> its arbiter."""
    arbiters = {
        gpu: Arbiter(
            tmp_path / gpu,
            tenants={"inference": FakeStacks(), "generation": FakeEngine()},
            policy=quick_policy(),
        )
        for gpu in GPU_OF.values()
    }
    for arbiter in arbiters.values():
        arbiter.reconciler.start()
    yield arbiters
    for arbiter in arbiters.values():
        arbiter.reconciler.stop()


def forwarder(url: str, arbiter_of: Callable[[str], Arbiter]) -> Forwarder:
    stacks = [
        {"name": name, "driver": "llama-server", "url": url, "upstream": {"models": [name]}}
        for name in GPU_OF
    ]
    others = [
        {"name": "second-address", "url": url, "stack": "small", "models": ["second"]},
        {"name": "cpu", "url": url, "models": ["cpu"]},
    ]
    directory = ModelDirectory(read_upstreams(others, stacks, {}), {})
    return Forwarder(directory, arbiter_of, max_requests=100, lease_timeout_s=60)


def chat(forwarder: Forwarder, model: str) -> Any:
    body = RequestBody(json.dumps({"model": model}).encode())

    def envelope(error: EaselError) -> dict[str, Any]:
        return {"error": error.code}

    client = Client([("Content-Type", "application/json")], None, lambda: False)
    forwarded = forwarder.forward(read_request(CHAT, body, "application/json"), client, envelope)
    with contextlib.closing(forwarded.body):
        return json.loads(b"".join(forwarded.body))["choices"][0]["message"]["content"]


def leases(arbiter: Arbiter) -> list[str]:
    return [claim.mode for claim in arbiter.claims.all() if claim.kind == "lease"]


@pytest.mark.parametrize("model", ["small", "second"])
def test_a_chat_is_answered_on_its_gpu_while_another_gpu_draws(gpus: dict[str, Arbiter], model: str) -> None:
    picture = Request(gpus["0"], "generation", "picture").wait_granted()
    seen: list[tuple[list[str], list[str]]] = []

    def answer(exchange: Exchange) -> None:
        seen.append((leases(gpus["0"]), leases(gpus["1"])))
        exchange.send_json({"choices": [{"message": {"content": "hello"}}]})

    with upstream(answer) as server:
        assert chat(forwarder(server.url, lambda stack: gpus[GPU_OF[stack]]), model) == "hello"
    assert seen == [(["generation"], ["inference"])]
    assert leases(gpus["1"]) == []
    assert picture.finish() is None
    assert gpus["1"].state_store.state().switch is None


def test_a_chat_waits_for_the_picture_on_its_own_gpu_only(gpus: dict[str, Arbiter]) -> None:
    picture = Request(gpus["0"], "generation", "picture").wait_granted()
    with upstream() as server, ThreadPoolExecutor(1) as pool:
        sends = forwarder(server.url, lambda stack: gpus[GPU_OF[stack]])
        answered: Future[Any] = pool.submit(chat, sends, "large")
        wait_until(lambda: [claim.mode for claim in gpus["0"].claims.all() if claim.kind == "ticket"])
        assert chat(sends, "small") == "hello"
        assert not answered.done()
        assert server.posts[-1].json()["model"] == "small"
        assert picture.finish() is None
        assert answered.result() == "hello"
        assert [post.json()["model"] for post in server.posts] == ["small", "large"]


def test_a_model_that_needs_no_gpu_asks_for_no_arbiter(gpus: dict[str, Arbiter]) -> None:
    asked: list[str] = []

    def arbiter_of(stack: str) -> Arbiter:
        asked.append(stack)
        return gpus[GPU_OF[stack]]

    with upstream() as server:
        sends = forwarder(server.url, arbiter_of)
        assert [chat(sends, model) for model in ("cpu", "second")] == ["hello", "hello"]
    assert asked == ["small"]
