"""What the arbiter relies on, tested with every kind of LLM server."""

from __future__ import annotations

import time

import pytest

from errors import StackRefused, StackUnreachable
from llm import built_in_drivers, read_stacks
from tests.llm.fake_servers import ALL, SECRET_ARGUMENT, FakeServer
from tests.llm.stack_helpers import SHORT_TIMEOUTS, ids, stacks_of
from tests.processes import free_port
from tests.waiting import wait_until


def test_there_is_a_fake_for_each_built_in_driver() -> None:
    assert {kind.DRIVER for kind in ALL} == set(built_in_drivers())


def test_released_models_are_unloaded_and_restored_models_are_loaded(server: FakeServer) -> None:
    stacks = stacks_of(server)
    before = stacks.resident()
    assert ids(before) == set(server.MODELS)
    stacks.release(before)
    assert stacks.resident() == ()
    assert server.loaded() == []
    assert stacks.restore(before) == ()
    assert ids(stacks.resident()) == set(server.MODELS)


def test_saved_values_are_the_same_after_a_restore(server: FakeServer) -> None:
    stacks = stacks_of(server)
    before = stacks.resident()
    stacks.release(before)
    stacks.restore(before)
    assert stacks.resident() == before


def test_releasing_twice_is_not_an_error(server: FakeServer) -> None:
    stacks = stacks_of(server)
    before = stacks.resident()
    stacks.release(before)
    stacks.release(before)
    assert stacks.resident() == ()


def test_restoring_twice_loads_each_model_once(server: FakeServer) -> None:
    stacks = stacks_of(server)
    before = stacks.resident()
    stacks.release(before)
    assert stacks.restore(before) == ()
    assert stacks.restore(before) == ()
    assert server.loads == len(server.MODELS)


def test_a_model_is_resident_until_its_memory_is_freed(server: FakeServer) -> None:
    server.unload_delay_s = 0.3
    stacks = stacks_of(server)
    stacks.release(stacks.resident())
    assert ids(stacks.resident()) == set(server.MODELS)
    assert wait_until(lambda: stacks.resident() == ())


def test_a_model_stays_resident_if_a_successful_unload_call_had_no_effect(server: FakeServer) -> None:
    server.ignores_unloads = True
    stacks = stacks_of(server)
    stacks.release(stacks.resident())
    assert ids(stacks.resident()) == set(server.MODELS)


def test_a_model_loaded_by_a_late_request_is_resident(server: FakeServer) -> None:
    stacks = stacks_of(server)
    stacks.release(stacks.resident())
    server.load(server.MODELS[0])
    assert ids(stacks.resident()) == {server.MODELS[0]}


def test_an_unload_call_that_hangs_times_out_and_the_models_stay_resident(server: FakeServer) -> None:
    server.hanging_paths = (
        "/api/generate",
        "/models/unload",
        "/api/models",
        "/sleep",
        "/api/v1/models/unload",
    )
    server.hanging_paths += ("/v1/unload", "/v1/model/unload", "/backend/shutdown")
    stacks = stacks_of(server, unload_s=0.3)
    held = stacks.resident()
    start = time.monotonic()
    stacks.release(held)
    assert time.monotonic() - start < 2
    assert stacks.resident() == held


def test_the_right_key_is_accepted_and_not_shown(server: FakeServer) -> None:
    server.key = "sk-1234567890"
    stacks = stacks_of(server)
    before = stacks.resident()
    stacks.release(before)
    assert server.loaded() == []
    assert stacks.restore(before) == ()
    (status,) = stacks.status()
    assert status.reachable
    assert server.key not in repr(status)
    assert server.key not in repr(vars(stacks))


def test_a_wrong_key_is_refused_without_showing_it(server: FakeServer) -> None:
    server.key = "sk-right"
    entry = {"driver": server.DRIVER, "url": server.url, "key_env": "LLM_KEY", **SHORT_TIMEOUTS}
    stacks = read_stacks([entry], {"LLM_KEY": "sk-wrong"})
    with pytest.raises(StackRefused) as error_info:
        stacks.resident()
    assert server.DRIVER in error_info.value.message
    assert "sk-" not in error_info.value.message + repr(error_info.value.details)
    assert "sk-" not in repr(stacks.status())


def test_a_missing_key_is_reported_as_missing(server: FakeServer) -> None:
    stacks = read_stacks([{"driver": server.DRIVER, "url": server.url}], {})
    server.key = "sk-right"
    with pytest.raises(StackRefused, match="key_env"):
        stacks.resident()


@pytest.mark.parametrize("status", [200, 302, 404, 500, 502, 503])
def test_a_response_that_is_not_a_list_never_counts_as_an_empty_list(server: FakeServer, status: int) -> None:
    server.garbage_status = status
    with pytest.raises(StackRefused, match=str(status)):
        stacks_of(server).resident()


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        "{}",
        "3",
        '"text"',
        '{"models": null}',
        '{"models": [3]}',
        '{"models": [{}]}',
        '{"data": [{"id": "x"}]}',
        '{"running": {}}',
        '{"running": [{"state": "ready"}]}',
        '{"all_models_loaded": [{"model_name": "x"}]}',
        '{"loaded_models": [{"id": 7}]}',
        "[" * 100_000,
    ],
)
def test_json_of_another_shape_never_counts_as_an_empty_list(server: FakeServer, body: str) -> None:
    server.answer = lambda *_: (200, body)  # type: ignore[method-assign]
    stacks = stacks_of(server)
    with pytest.raises(StackRefused):
        stacks.resident()
    assert not isinstance(stacks.status()[0].loaded, tuple)


def test_a_server_that_is_not_running_holds_nothing(server: FakeServer) -> None:
    stacks = stacks_of(server)
    held = stacks.resident()
    server.stop()
    assert stacks.resident() == ()
    stacks.release(held)
    (status,) = stacks.status()
    assert (status.reachable, status.loaded) == (False, ())


def test_nothing_can_be_restored_to_a_server_that_is_not_running(server: FakeServer) -> None:
    stacks = stacks_of(server)
    held = stacks.resident()
    server.stop()
    failures = stacks.restore(held)
    assert [failure.id for failure in failures] == [resident.id for resident in held]
    assert all("refused" in failure.message for failure in failures)


def test_a_server_that_hangs_is_reported_as_unreachable_in_time(server: FakeServer) -> None:
    server.hanging_paths = ("/",)
    stacks = stacks_of(server, call_s=0.2)
    start = time.monotonic()
    with pytest.raises(StackUnreachable, match="timed out"):
        stacks.resident()
    (status,) = stacks.status()
    assert (status.reachable, status.loaded, status.busy) == (False, None, None)
    assert time.monotonic() - start < 3


def test_an_unload_call_with_an_unexpected_status_raises(server: FakeServer) -> None:
    stacks = stacks_of(server)
    held = stacks.resident()
    server.answer = lambda *_: (500, {"error": "out of order"})  # type: ignore[method-assign]
    with pytest.raises(StackRefused, match="500"):
        stacks.release(held)


def test_a_model_that_no_longer_exists_does_not_stop_the_others(server: FakeServer) -> None:
    stacks = stacks_of(server)
    (first, *_) = stacks.resident()
    stacks.release(stacks.resident())
    if server.DRIVER == "vllm":
        pytest.skip("vLLM has only one model, without a name")
    unknown = type(first)(first.owner, "unknown:latest", {**first.saved, "key": "unknown:latest"})
    failures = stacks.restore([unknown, first])
    assert [failure.id for failure in failures] == ["unknown:latest"]
    assert ids(stacks.resident()) == {first.id}


def test_command_lines_listed_by_servers_are_never_shown(server: FakeServer) -> None:
    stacks = stacks_of(server)
    shown = [repr(stacks.resident()), repr(stacks.status())]
    answer = server.answer
    server.answer = lambda *call: (500, answer(*call)[1])  # type: ignore[method-assign]
    with pytest.raises(StackRefused) as error_info:
        stacks.resident()
    shown += [error_info.value.message, repr(error_info.value.details), repr(stacks.status())]
    assert SECRET_ARGUMENT not in "".join(shown)


def test_a_status_has_name_driver_url_and_loaded_models(server: FakeServer) -> None:
    (status,) = stacks_of(server, name="mine").status()
    assert (status.name, status.driver, status.url) == ("mine", server.DRIVER, server.url)
    assert status.reachable
    assert set(status.loaded or ()) == set(server.MODELS)
    assert status.problem is None


def test_queries_never_load_a_model(server: FakeServer) -> None:
    stacks = stacks_of(server)
    stacks.release(stacks.resident())
    stacks.status()
    stacks.busy()
    stacks.resident()
    assert server.loads == 0


def test_a_refused_connection_on_another_machine_does_not_count_as_not_running() -> None:
    """0.0.0.0 reaches this machine, but is not a loopback address."""
    stacks = read_stacks([{"driver": "ollama", "url": f"http://0.0.0.0:{free_port()}"}], {})
    with pytest.raises(StackUnreachable, match="refused"):
        stacks.resident()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_refused_connection_on_loopback_counts_as_not_running(host: str) -> None:
    stacks = read_stacks([{"driver": "ollama", "url": f"http://{host}:{free_port()}"}], {})
    assert stacks.resident() == ()
    assert stacks.busy() is None


def test_a_host_name_that_does_not_resolve_does_not_count_as_not_running() -> None:
    stacks = read_stacks([{"driver": "ollama", "url": "http://no-such-host.invalid:11434"}], {})
    with pytest.raises(StackUnreachable):
        stacks.resident()
