"""Errors in `llm.stacks` are reported all together, with their paths and without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from errors import SettingsInvalid
from llm import built_in_drivers, read_stacks
from llm.drivers import driver_data

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
OLLAMA = {"driver": "ollama", "url": "http://127.0.0.1:11434"}
ARGVS = {"items": ["x"], "loaded": ["true"], "unload": ["true"], "load": ["true"]}


def errors_of(config: Any, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsInvalid) as error_info:
        read_stacks(config, environment or {})
    errors: list[str] = error_info.value.details["errors"]
    return errors


@pytest.mark.parametrize("config", [[], None])
def test_stacks_are_false_and_empty_if_none_is_configured(config: Any) -> None:
    stacks = read_stacks(config, {})
    assert not stacks
    assert (stacks.resident(), stacks.busy(), stacks.restore([]), stacks.status()) == ((), None, (), ())


def test_a_driver_and_a_url_are_enough() -> None:
    stacks = read_stacks(
        [{"driver": name, "url": "http://gpu.lan:1/base/"} for name in built_in_drivers()], {}
    )
    assert len(stacks) == len(built_in_drivers())


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"url": "http://127.0.0.1:1"}, "llm.stacks.0"),
        ({"driver": "ollama"}, "llm.stacks.0"),
        ({"driver": "sglang", "url": "http://127.0.0.1:1"}, "llm.stacks.0.driver"),
        (OLLAMA | {"url": "127.0.0.1:11434"}, "llm.stacks.0.url"),
        (OLLAMA | {"url": "http://host:1/?key=x"}, "llm.stacks.0.url"),
        (OLLAMA | {"name": "a b"}, "llm.stacks.0.name"),
        (OLLAMA | {"unload_s": 0}, "llm.stacks.0.unload_s"),
        (OLLAMA | {"load_s": "1"}, "llm.stacks.0.load_s"),
        (OLLAMA | {"restore": "never"}, "llm.stacks.0.restore"),
        (OLLAMA | {"keep": "x"}, "llm.stacks.0.keep"),
        (OLLAMA | {"timeout": 3}, "llm.stacks.0"),
        (OLLAMA | {"list": {"call": "GET /x", "items": "x", "id": "id"}}, "llm.stacks.0"),
        ({"driver": "http", "url": "http://x:1"}, "llm.stacks.0.list"),
        ({"driver": "http", "url": "http://x:1", "like": "sglang"}, "llm.stacks.0.like"),
        (
            {"driver": "http", "url": "http://x:1", "like": "vllm", "busy": {"call": "POST /x"}},
            "llm.stacks.0.busy",
        ),
        ({"driver": "http", "url": "http://x:1", "like": "vllm", "load": {"call": "x"}}, "llm.stacks.0.load"),
        ({"driver": "command"}, "llm.stacks.0.items"),
        ({"driver": "command", **ARGVS, "unload": "rm x"}, "llm.stacks.0.unload"),
        ({"driver": "command", **ARGVS, "health": "http://x"}, "llm.stacks.0.health"),
        ({"driver": "command", **ARGVS, "systemd": ["x"]}, "llm.stacks.0.systemd"),
        ({"driver": "command", "systemd": ["x"], "docker": ["y"]}, "llm.stacks.0.systemd"),
        ({"driver": "command", **ARGVS, "url": "http://x:1"}, "llm.stacks.0"),
        ("ollama", "llm.stacks.0"),
    ],
)
def test_an_error_is_reported_with_its_path(entry: Any, path: str) -> None:
    assert any(error.startswith((f"{path}: ", f"{path}.")) for error in errors_of([entry]))


def test_all_errors_are_reported_together() -> None:
    config = [OLLAMA | {"url": "x", "load_s": -1}, {"driver": "vlm", "url": "http://x:1"}]
    report = "\n".join(errors_of(config))
    assert all(path in report for path in ("llm.stacks.0.url", "llm.stacks.0.load_s", "llm.stacks.1.driver"))


def test_two_stacks_with_the_same_name_are_refused() -> None:
    (error,) = errors_of([OLLAMA, OLLAMA | {"name": "Ollama"}])
    assert error.startswith("llm.stacks.1.name: ")
    assert "llm.stacks.0" in error


@pytest.mark.parametrize("environment", [{}, {"KEY": ""}])
def test_a_key_variable_that_is_not_set_is_reported(environment: dict[str, str]) -> None:
    assert errors_of([OLLAMA | {"key_env": "KEY"}], environment) == [
        "llm.stacks.0.key_env: the environment variable KEY is not set"
    ]


def test_a_key_that_cannot_be_sent_in_a_header_is_reported_without_showing_it() -> None:
    (error,) = errors_of([OLLAMA | {"key_env": "KEY"}], {"KEY": "sk-secret\r\nX-Evil: 1"})
    assert "sk-secret" not in error


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    (error,) = errors_of([OLLAMA | {"url": "http://me:hunter2@127.0.0.1:11434"}])
    assert "key_env" in error
    assert "hunter2" not in error


def test_a_driver_needs_no_load_call_if_restore_is_lazy() -> None:
    operations = {"list": {"call": "GET /x", "items": "x", "id": "id"}, "unload": {"call": "POST /y"}}
    entry = {"driver": "http", "url": "http://127.0.0.1:1", **operations}
    assert errors_of([entry])[0].startswith("llm.stacks.0.load: ")
    assert read_stacks([entry | {"restore": "lazy"}], {})


def test_the_built_in_drivers_are_valid_against_their_schema() -> None:
    schema = json.loads((SCHEMAS / "llm_drivers.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    assert list(Draft202012Validator(schema).iter_errors(dict(driver_data()))) == []


def test_the_stacks_schema_lists_all_drivers() -> None:
    schema = json.loads((SCHEMAS / "stacks.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    built_in = set(built_in_drivers())
    assert set(schema["items"]["properties"]["driver"]["enum"]) == built_in | {"http", "command"}
    assert set(schema["items"]["allOf"][2]["if"]["properties"]["driver"]["enum"]) == built_in
    assert set(schema["$defs"]["http"]["properties"]["like"]["enum"]) == built_in


# --- the GPU of a stack -----------------------------------------------------------------------------


def gpu_entries() -> list[dict[str, Any]]:
    return [
        OLLAMA,
        {"driver": "vllm", "url": "http://127.0.0.1:8000", "gpu": 1},
        {"driver": "http", "like": "vllm", "name": "own", "url": "http://127.0.0.1:8001", "gpu": "1"},
        {"driver": "command", **ARGVS, "gpu": "small"},
    ]


def test_a_stack_shares_the_gpu_that_it_names_or_the_first() -> None:
    stacks = read_stacks(gpu_entries(), {}, ["0", "1", "small"])
    assert {name: stacks.gpu_of(name) for name in ("ollama", "vllm", "own", "command")} == {
        "ollama": "0",
        "vllm": "1",
        "own": "1",
        "command": "small",
    }


def test_the_stacks_of_one_gpu_are_a_tenant_of_that_gpu_alone() -> None:
    stacks = read_stacks(gpu_entries(), {}, ["0", "1", "small", "idle"])
    found = {
        gpu: [status.name for status in stacks.on_gpu(gpu).status()] for gpu in ("0", "1", "small", "idle")
    }
    assert found == {"0": ["ollama"], "1": ["vllm", "own"], "small": ["command"], "idle": []}
    assert not stacks.on_gpu("idle")
    assert {resident.owner for resident in stacks.on_gpu("small").resident()} == {"command"}


def test_without_engines_no_stack_names_a_gpu() -> None:
    assert read_stacks([OLLAMA], {}).gpu_of("ollama") == ""
    assert errors_of([OLLAMA | {"gpu": 0}]) == [
        "llm.stacks.0.gpu: it is only for several ComfyUIs; remove it, or list them in `engines`, each with its GPU"
    ]


def test_a_gpu_that_no_engine_uses_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        read_stacks([OLLAMA, OLLAMA | {"name": "b", "gpu": 2}], {}, ["0", "small"])
    assert caught.value.details["errors"] == [
        "llm.stacks.1.gpu: no entry of `engines` uses this GPU; their GPUs are: 0, small"
    ]


@pytest.mark.parametrize("gpu", [-1, True, "", "a b", [0]])
def test_a_gpu_must_be_a_number_or_a_name(gpu: Any) -> None:
    (error,) = errors_of([OLLAMA | {"gpu": gpu}])
    assert error.startswith("llm.stacks.0.gpu: it must be the number or the name of a GPU")
