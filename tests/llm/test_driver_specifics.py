"""What is specific to one kind of LLM server, drivers from the configuration, and several stacks together."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from errors import StackRefused
from gpu_tenant import Resident
from llm import Stacks, read_stacks
from tests.llm.fake_servers import (
    FakeLemonade,
    FakeLlamaServer,
    FakeLlamaSwap,
    FakeLmStudio,
    FakeLocalAi,
    FakeOllama,
    FakeTabbyApi,
    FakeVllm,
)
from tests.llm.stack_helpers import ids, stacks_of
from tests.waiting import wait_until


def by_id(stacks: Stacks) -> dict[str, Resident]:
    return {resident.id: resident for resident in stacks.resident()}


# --- Ollama ---------------------------------------------------------------------------------------------------


def test_ollama_restores_keep_alive_of_models_that_never_expire() -> None:
    with FakeOllama() as server:
        server.expires = dict.fromkeys(server.MODELS, "2318-03-04T10:05:00.5+01:00")
        server.expires["embed:latest"] = "2026-11-21T10:05:00Z"
        stacks = stacks_of(server)
        held = by_id(stacks)
        assert held["chat:latest"].saved == {"keep_alive": -1}
        assert held["embed:latest"].saved == {}
        stacks.release(tuple(held.values()))
        server.expires.clear()
        assert stacks.restore(tuple(held.values())) == ()
        assert by_id(stacks) == held


def test_ollama_models_on_the_cpu_hold_no_gpu_memory() -> None:
    with FakeOllama() as server:
        server.on_cpu = {"embed:latest"}
        assert ids(stacks_of(server).resident()) == {"chat:latest"}


def test_a_model_that_is_restored_to_the_cpu_is_a_failure() -> None:
    with FakeOllama() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        server.on_cpu = {"chat:latest"}
        (failure,) = stacks.restore(held)
        assert failure.id == "chat:latest"
        assert "no GPU memory" in failure.message


def test_ollama_ids_may_omit_the_latest_tag() -> None:
    with FakeOllama() as server:
        stacks = stacks_of(server, restore=["small"], keep=["embed"])
        held = stacks.resident()
        assert ids(held) == {"chat:latest"}
        stacks.release(held)
        assert stacks.restore(held) == ()
        assert ids(stacks.resident()) == {"small:latest"}


def test_ollama_does_not_report_whether_it_is_busy() -> None:
    with FakeOllama() as server:
        assert stacks_of(server).busy() is None


# --- llama-server ---------------------------------------------------------------------------------------------


def test_loading_and_sleeping_models_of_llama_server_are_resident() -> None:
    with FakeLlamaServer() as server:
        server.sleeping = {"embed"}
        server.load_delay_s = 60
        server.load("chat")
        assert (server.state("chat"), server.state("embed")) == ("loading", "sleeping")
        assert ids(stacks_of(server).resident()) == {"chat", "embed"}


def test_a_model_in_an_unknown_state_is_resident() -> None:
    with FakeLlamaServer() as server:
        server.state = lambda name: "hibernating"  # type: ignore[method-assign]
        assert ids(stacks_of(server).resident()) == set(server.KNOWN)


def test_a_restore_waits_until_a_background_load_is_done() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        server.load_delay_s = 0.3
        assert stacks.restore(held) == ()
        assert {server.state(name) for name in server.MODELS} == {"loaded"}


def test_a_load_that_times_out_is_a_failure_and_the_others_are_loaded() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server, load_s=0.5)
        held = stacks.resident()
        stacks.release(held)
        server.load_delay_s = 60
        failures = stacks.restore(held[:1])
        server.load_delay_s = 0
        assert [failure.id for failure in failures] == [held[0].id]
        assert "0.5 s" in failures[0].message
        assert stacks.restore(held[1:]) == ()


def test_a_load_that_fails_in_the_background_is_reported_immediately() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server, load_s=60)
        held = stacks.resident()
        stacks.release(held)
        (failure,) = stacks.restore([Resident("llama-server", "broken"), *held])
        assert (failure.owner, failure.id) == ("llama-server", "broken")
        assert "log" in failure.message
        assert ids(stacks.resident()) == set(server.MODELS)


def test_an_earlier_failed_load_does_not_fail_a_restore() -> None:
    with FakeLlamaServer() as server:
        server.failed = {"chat"}
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        assert stacks.restore(held) == ()


def test_llama_server_reports_running_and_deferred_requests_of_loaded_models() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server)
        assert stacks.busy() == 0
        server.busy = {"chat": (1, 2), "embed": (1, 0)}
        assert stacks.busy() == 4
        assert server.loads == 0


def test_llama_server_without_metrics_does_not_report_whether_it_is_busy() -> None:
    with FakeLlamaServer() as server:
        server.has_metrics = False
        assert stacks_of(server).busy() is None


def test_a_server_with_nothing_loaded_is_not_busy() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server)
        stacks.release(stacks.resident())
        assert stacks.busy() == 0
        assert server.loads == 0


def test_an_id_with_slashes_and_spaces_arrives_unchanged() -> None:
    with FakeLlamaServer() as server:
        server.load("org/model name")
        server.busy = {"org/model name": (3, 0)}
        stacks = stacks_of(server)
        assert stacks.busy() == 3
        stacks.release([Resident("llama-server", "org/model name")])
        assert ids(stacks.resident()) == set(server.MODELS)
    with FakeLlamaSwap() as swap:
        stacks = stacks_of(swap)
        stacks.release([Resident("llama-swap", "org/embed")])
        assert swap.loaded() == ["chat"]


def test_a_llama_server_without_router_mode_is_refused_with_a_hint() -> None:
    with FakeLlamaServer() as server:
        models = {"object": "list", "data": [{"id": "chat", "object": "model"}]}
        server.answer = lambda *_: (200, models)  # type: ignore[method-assign]
        with pytest.raises(StackRefused, match="router mode"):
            stacks_of(server).resident()


def test_models_to_keep_are_neither_resident_nor_unloaded() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server, keep=["embed"])
        held = stacks.resident()
        assert ids(held) == {"chat"}
        stacks.release(held)
        assert server.loaded() == ["embed"]
        assert stacks.status()[0].loaded == ()


# --- llama-swap, vLLM, LM Studio ------------------------------------------------------------------------------


def test_starting_and_stopping_models_of_llama_swap_are_resident() -> None:
    with FakeLlamaSwap() as server:
        server.load_delay_s = server.unload_delay_s = 60
        server.load("chat")
        server.unload("org/embed")
        assert ids(stacks_of(server).resident()) == {"chat", "org/embed"}


def test_llama_swap_restores_a_model_that_was_still_stopping() -> None:
    with FakeLlamaSwap() as server:
        server.unload_delay_s = 60
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        assert stacks.restore(held) == ()
        assert server.loads == len(held)


def test_vllm_without_development_mode_is_refused_with_a_hint() -> None:
    with FakeVllm() as server:
        server.dev_mode = False
        with pytest.raises(StackRefused, match="VLLM_SERVER_DEV_MODE=1"):
            stacks_of(server).resident()


def test_vllm_requests_are_summed_over_all_engines() -> None:
    with FakeVllm() as server:
        server.running = 4
        assert stacks_of(server).busy() == 4 + 1 + 2


def test_lm_studio_restores_a_model_and_its_settings_under_another_id() -> None:
    with FakeLmStudio() as server:
        server.load("my-name")
        server.unload("qwen/chat")
        server.keys["my-name"] = "qwen/chat"
        server.config["qwen/chat"] = {"context_length": 4096, "flash_attention": False}
        stacks = stacks_of(server)
        held = by_id(stacks)
        assert held["my-name"].saved == {"key": "qwen/chat", "context_length": 4096, "flash_attention": False}
        stacks.release(list(held.values()))
        server.config.clear()
        loads = server.loads
        assert stacks.restore([held["my-name"]]) == ()
        assert stacks.restore([held["my-name"]]) == ()
        assert server.loads == loads + 1
        assert by_id(stacks)["qwen/chat"].saved == held["my-name"].saved


def test_lm_studio_models_to_restore_are_configured_by_their_keys() -> None:
    with FakeLmStudio() as server:
        stacks = stacks_of(server, restore=["embed"])
        stacks.release(stacks.resident())
        assert stacks.restore([]) == ()
        assert ids(stacks.resident()) == {"embed"}


def test_a_200_from_lm_studio_that_names_no_unloaded_instance_is_refused() -> None:
    with FakeLmStudio() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        server.ignores_unload_path = True
        with pytest.raises(StackRefused, match="instance_id"):
            stacks.release(held)


# --- Lemonade, TabbyAPI, LocalAI ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "resident"),
    [("gpu", True), ("gpu npu", True), ("npu gpu", True), ("metal", True), ("cpu", False), ("npu", False)],
)
def test_lemonade_models_are_resident_if_they_may_be_on_the_gpu(device: str, resident: bool) -> None:
    with FakeLemonade() as server:
        server.devices = {"embed": device}
        stacks = stacks_of(server)
        held = stacks.resident()
        assert ("embed" in ids(held)) == resident
        stacks.release(held)
        assert server.loaded() == ([] if resident else ["embed"])


def test_lemonade_reports_how_many_models_are_busy() -> None:
    with FakeLemonade() as server:
        stacks = stacks_of(server)
        assert stacks.busy() == 0
        server.busy = {"chat"}
        assert stacks.busy() == 1


def test_command_lines_listed_by_lemonade_are_not_saved() -> None:
    with FakeLemonade() as server:
        assert {str(r.saved) for r in stacks_of(server).resident()} == {"{'ctx_size': 4096}"}


def test_an_error_event_in_a_successful_response_is_a_failure() -> None:
    with FakeTabbyApi() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        server.load_error = "Insufficient VRAM for model"
        (failure,) = stacks.restore(held)
        assert "Insufficient VRAM" in failure.message


def test_an_event_stream_without_its_last_event_is_a_failure() -> None:
    with FakeTabbyApi() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        server.truncates_stream = True
        (failure,) = stacks.restore(held)
        assert "stream ended" in failure.message


def test_tabbyapi_context_length_is_restored_as_a_number() -> None:
    with FakeTabbyApi() as server:
        stacks = stacks_of(server)
        held = stacks.resident()
        stacks.release(held)
        stacks.restore(held)
        bodies = [body for _, path, body in server.requests if path == "/v1/model/load"]
        assert bodies == [
            {"model_name": "chat-exl3", "max_seq_len": 32768, "cache_size": 32768, "cache_mode": "FP16"}
        ]


def test_a_503_without_the_text_that_nothing_is_loaded_is_refused() -> None:
    with FakeTabbyApi() as server:
        server.answer = lambda *_: (503, "upstream overloaded")  # type: ignore[method-assign]
        with pytest.raises(StackRefused, match="503"):
            stacks_of(server).resident()


def test_an_error_quotes_the_servers_message_shortened_and_without_secrets() -> None:
    with FakeLocalAi() as server:
        server.key = "sk-1234567890"
        stacks = stacks_of(server)
        held = stacks.resident()
        message = f"boom\n{server.key} --api-key other-secret " + "x" * 1000
        server.answer = lambda *_: (500, {"error": {"message": message}})  # type: ignore[method-assign]
        with pytest.raises(StackRefused) as error_info:
            stacks.release(held)
        assert "boom" in error_info.value.message
        assert server.key not in error_info.value.message
        assert "other-secret" not in error_info.value.message
        assert len(error_info.value.message) < 400


# --- a driver from the configuration --------------------------------------------------------------------------


def configured_driver(url: str, **operations: Any) -> Stacks:
    return read_stacks([{"name": "own", "driver": "http", "url": url, "load_s": 4, **operations}], {})


def test_a_driver_from_the_configuration_works_like_a_built_in_one() -> None:
    with FakeLocalAi() as server:
        stacks = configured_driver(
            server.url,
            list={"call": "GET /system", "items": "loaded_models", "id": "id"},
            unload={"call": "POST /backend/shutdown", "json": {"model": "{id}"}, "ok": [200, 404]},
            load={"call": "POST /backend/load", "json": {"model": "{id}"}},
        )
        held = stacks.resident()
        assert {resident.owner for resident in held} == {"own"}
        stacks.release(held)
        assert stacks.resident() == ()
        assert stacks.restore(held) == ()
        assert ids(stacks.resident()) == set(server.MODELS)
        assert stacks.busy() is None


def test_a_configured_driver_may_extend_a_built_in_one() -> None:
    with FakeLlamaServer() as server:
        stacks = configured_driver(server.url, like="llama-server", load={"call": "POST /nowhere"})
        held = stacks.resident()
        stacks.release(held)
        assert stacks.resident() == ()
        assert [failure.id for failure in stacks.restore(held)] == [resident.id for resident in held]


# --- several stacks -------------------------------------------------------------------------------------------


def test_several_stacks_are_one_tenant() -> None:
    with FakeOllama() as ollama, FakeVllm() as vllm, FakeLlamaServer() as llama:
        stacks = stacks_of(ollama, vllm, llama)
        vllm.running, llama.busy = 1, {"chat": (1, 0)}
        assert stacks.busy() == 1 + 1 + 2 + 1
        held = stacks.resident()
        assert {resident.owner for resident in held} == {"ollama", "vllm", "llama-server"}
        stacks.release(held)
        assert stacks.resident() == ()
        assert stacks.restore(held) == ()
        assert sorted(stacks.resident(), key=repr) == sorted(held, key=repr)
        assert [status.name for status in stacks.status()] == ["ollama", "vllm", "llama-server"]


def test_residents_are_unknown_if_one_stack_cannot_be_read() -> None:
    with FakeOllama() as ollama, FakeLlamaServer() as llama:
        llama.garbage_status = 500
        stacks = stacks_of(ollama, llama)
        with pytest.raises(StackRefused, match="llama-server"):
            stacks.resident()
        good, bad = stacks.status()
        assert set(good.loaded or ()) == set(ollama.MODELS)
        assert bad.loaded is None
        assert "llama-server" in (bad.problem or "")


def test_a_stack_that_hangs_hides_only_its_own_residents() -> None:
    with FakeOllama() as ollama, FakeLlamaServer() as llama:
        llama.hanging_paths = ("/",)
        stacks = stacks_of(ollama, llama)
        started_at = time.monotonic()
        assert {resident.owner for resident in stacks.known_residents(0.5)} == {"ollama"}
        good, bad = stacks.status(0.5)
        assert time.monotonic() - started_at < 3, "less than the timeout of a query"
        assert set(good.loaded or ()) == set(ollama.MODELS)
        assert (bad.reachable, bad.loaded, bad.problem) == (False, None, "hangs: no answer within 0.5 s")


def test_nothing_is_loaded_again_in_a_stack_where_a_client_has_had_another_model_loaded() -> None:
    with FakeOllama() as ollama, FakeLlamaServer() as llama:
        stacks = stacks_of(ollama, llama)
        held = stacks.resident()
        stacks.release(held)
        llama.load("broken")
        assert stacks.restore(held) == ()
        assert llama.loaded() == ["broken"]
        assert set(ollama.loaded()) == set(ollama.MODELS)


def test_the_other_models_that_were_loaded_are_loaded_again_beside_one_that_a_client_has_loaded() -> None:
    with FakeLlamaServer() as llama:
        stacks = stacks_of(llama)
        held = stacks.resident()
        stacks.release(held)
        llama.load("chat")
        assert stacks.restore(held) == ()
        assert sorted(llama.loaded()) == ["chat", "embed"]


def test_a_model_that_is_being_loaded_counts_as_a_request() -> None:
    with FakeLlamaServer() as llama:
        llama.load_delay_s = 30
        stacks = stacks_of(llama)
        before = stacks.busy() or 0
        stacks.release(stacks.resident())
        llama.load("chat")
        assert stacks.busy() == before + 1


def test_a_stack_that_refuses_to_unload_does_not_stop_the_others() -> None:
    with FakeOllama() as ollama, FakeLlamaServer() as llama:
        stacks = stacks_of(llama, ollama)
        held = stacks.resident()
        llama.garbage_status = 500
        with pytest.raises(StackRefused):
            stacks.release(held)
        assert ollama.loaded() == []


def test_a_stack_that_is_down_does_not_stop_the_restore_of_the_others() -> None:
    with FakeOllama() as ollama, FakeLlamaServer() as llama:
        stacks = stacks_of(llama, ollama)
        held = stacks.resident()
        stacks.release(held)
        llama.stop()
        failures = stacks.restore(held)
        assert {failure.owner for failure in failures} == {"llama-server"}
        assert set(ollama.loaded()) == set(ollama.MODELS)


def test_a_model_of_a_removed_stack_is_a_failure() -> None:
    with FakeOllama() as ollama:
        stacks = stacks_of(ollama)
        removed = Resident("removed", "model")
        stacks.release([removed])
        (failure,) = stacks.restore([removed])
        assert (failure.owner, failure.id) == ("removed", "model")
        assert set(ollama.loaded()) == set(ollama.MODELS)


def test_a_stack_with_lazy_restore_is_not_loaded_again() -> None:
    with FakeOllama() as server:
        stacks = stacks_of(server, restore="lazy")
        held = stacks.resident()
        stacks.release(held)
        assert stacks.restore(held) == ()
        assert stacks.resident() == ()


def test_a_stack_with_a_restore_list_always_loads_that_list() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server, restore=["embed"])
        stacks.release(stacks.resident())
        assert stacks.restore([Resident("llama-server", "chat")]) == ()
        assert ids(stacks.resident()) == {"embed"}


def test_many_threads_may_query_at_the_same_time() -> None:
    with FakeLlamaServer() as server:
        stacks = stacks_of(server)
        results: list[set[str]] = []
        threads = [threading.Thread(target=lambda: results.append(ids(stacks.resident()))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [set(server.MODELS)] * 12


def test_cancelling_jobs_changes_nothing() -> None:
    with FakeOllama() as server:
        stacks_of(server).cancel_jobs(["a-job"])
        assert wait_until(lambda: set(server.loaded()) == set(server.MODELS))
