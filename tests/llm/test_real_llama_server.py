"""The same tests against a real llama-server in router mode, started with --metrics. EASEL_TEST_LLAMA_SERVER is its URL
and EASEL_TEST_LLAMA_KEY its key. The models that were loaded before are loaded again afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from detection import find_services
from errors import StackRefused
from gpu_tenant import Resident
from llm import Stacks, read_stacks
from tests.llm.stack_helpers import ids
from tests.waiting import wait_until

SERVER = "EASEL_TEST_LLAMA_SERVER"
KEY = "EASEL_TEST_LLAMA_KEY"
NAME = "real"

needs_server = pytest.mark.skipif(not os.environ.get(SERVER), reason=f"{SERVER} is not set")


def test_a_real_llama_server_is_tested() -> None:
    if not os.environ.get(SERVER):
        pytest.skip(f"NO REAL LLAMA-SERVER WAS TESTED: set {SERVER}=http://127.0.0.1:18080")
    (status,) = real_stacks().status()
    assert status.reachable


@needs_server
def test_a_real_router_is_found_as_a_llama_server_that_can_unload() -> None:
    url = os.environ[SERVER]
    service = find_services([url])[url]
    assert service is not None
    assert (service.kind, service.needs_key) == ("llama-server", bool(os.environ.get(KEY)))
    assert service.can_unload or service.needs_key


def real_stacks(**settings: object) -> Stacks:
    key = {"key_env": KEY} if os.environ.get(KEY) else {}
    entry = {
        "name": NAME,
        "driver": "llama-server",
        "url": os.environ[SERVER],
        "load_s": 60,
        **key,
        **settings,
    }
    return read_stacks([entry], os.environ)


def post(path: str, **body: object) -> requests.Response:
    return requests.post(
        os.environ[SERVER].rstrip("/") + path,
        json=body,
        headers={"Authorization": f"Bearer {os.environ.get(KEY, '')}"},
        timeout=120,
    )


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    stacks = real_stacks()
    before = stacks.resident()
    yield stacks
    after = stacks.resident()
    stacks.release([resident for resident in after if resident.id not in ids(before)])
    assert stacks.restore(before) == ()


@pytest.fixture
def held(stacks: Stacks) -> tuple[Resident, ...]:
    """The loaded models, all idle; loads one if there are none."""
    if not stacks.resident():
        url, key = os.environ[SERVER].rstrip("/"), os.environ.get(KEY, "")
        listed = requests.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"}, timeout=60).json()
        models = [Resident(NAME, entry["id"]) for entry in listed["data"]]
        assert any(stacks.restore([model]) == () for model in models)
    return stacks.resident()


@needs_server
def test_real_models_are_released_and_restored(stacks: Stacks, held: tuple[Resident, ...]) -> None:
    for _ in range(3):
        stacks.release(held)
        assert wait_until(lambda: stacks.resident() == (), timeout_s=30)
        stacks.release(held)
        assert stacks.restore(held) == ()
        assert stacks.restore(held) == ()
        assert stacks.resident() == held


@needs_server
def test_an_unknown_model_fails_quickly_and_the_others_are_restored(
    stacks: Stacks, held: tuple[Resident, ...]
) -> None:
    stacks.release(held)
    assert wait_until(lambda: stacks.resident() == (), timeout_s=30)
    start = time.monotonic()
    failures = stacks.restore([Resident(NAME, "no/such model"), *held])
    assert [failure.id for failure in failures] == ["no/such model"]
    assert stacks.resident() == held
    assert time.monotonic() - start < 30


@needs_server
def test_real_requests_are_counted_and_a_busy_model_can_be_released(
    stacks: Stacks, held: tuple[Resident, ...]
) -> None:
    model = held[0].id
    assert stacks.busy() == 0
    request = threading.Thread(
        target=post, args=("/v1/completions",), kwargs={"model": model, "prompt": "a", "max_tokens": 6000}
    )
    request.start()
    assert wait_until(lambda: stacks.busy() == 1)
    stacks.release(held)
    assert wait_until(lambda: stacks.resident() == (), timeout_s=30)
    request.join()


@needs_server
def test_queries_to_a_real_server_load_nothing(stacks: Stacks, held: tuple[Resident, ...]) -> None:
    stacks.release(held)
    assert wait_until(lambda: stacks.resident() == (), timeout_s=30)
    for _ in range(5):
        stacks.busy()
        stacks.status()
        assert stacks.resident() == ()


@needs_server
def test_a_model_loaded_by_a_late_request_is_resident(stacks: Stacks, held: tuple[Resident, ...]) -> None:
    stacks.release(held)
    assert wait_until(lambda: stacks.resident() == (), timeout_s=30)
    post("/v1/completions?autoload=true", model=held[0].id, prompt="a", max_tokens=1)
    assert ids(stacks.resident()) == {held[0].id}


@needs_server
def test_a_real_server_refuses_a_wrong_key() -> None:
    if not os.environ.get(KEY):
        pytest.skip(f"the server requires no key, or {KEY} is not set")
    entry = {"driver": "llama-server", "url": os.environ[SERVER], "key_env": "WRONG"}
    with pytest.raises(StackRefused, match="401") as error_info:
        read_stacks([entry], {"WRONG": "sk-wrong"}).resident()
    assert "sk-wrong" not in error_info.value.message
