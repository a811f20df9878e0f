"""`engines` of easel.yaml: what it means, and that all errors are reported together, with their paths and without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app import Container
from commands.machine import look_around
from engine import NO_CREDENTIALS, Credentials, EngineProcess
from engines.entries import credential_variables, engines_of_text, read_engines
from errors import SettingsInvalid
from settings import load_settings
from tests.conftest import ROOT
from tests.waiting import wait_until

URL = "http://127.0.0.1:8188"
A = {"name": "a", "url": URL}
B = {"name": "b", "url": "http://127.0.0.1:8189"}
SECRET = "s3cret"


def errors_of(config: Any, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        read_engines(config, environment or {})
    errors: list[str] = caught.value.details["errors"]
    assert caught.value.message == "\n".join(errors)
    assert SECRET not in caught.value.message
    return errors


def test_without_entries_there_are_no_engines() -> None:
    assert read_engines((), {}) == ()


def test_a_name_and_a_url_are_enough() -> None:
    (entry,) = read_engines([{"name": "large", "url": URL + "/"}], {})
    assert (entry.name, entry.url, entry.gpu, entry.models) == ("large", URL, "large", None)
    assert (entry.weight, entry.start, entry.depth, entry.credentials) == (1.0, {}, None, NO_CREDENTIALS)


def test_every_key_has_its_value_and_the_order_is_kept() -> None:
    full = {
        **B,
        "gpu": 1,
        "models": ["sdxl-turbo", "flux"],
        "weight": 0.5,
        "start": {"docker": "comfyui-1"},
        "depth": 4,
    }
    first, second = read_engines((full, A), {})
    assert (first.gpu, first.models, first.weight) == ("1", ("sdxl-turbo", "flux"), 0.5)
    assert (first.start, first.depth) == ({"docker": "comfyui-1"}, 4)
    assert EngineProcess.from_setting(first.start, Path()).name == "comfyui-1"
    assert second.name == "a"


def test_credentials_come_from_the_variables_that_the_entry_names_and_are_not_shown() -> None:
    entries = [
        {**A, "user_env": "A_USER", "password_env": "A_PASSWORD"},
        {**B, "token_env": "B_TOKEN"},
        {
            "name": "c",
            "url": "http://gpu.lan/comfy",
            "query_token_env": "C_TOKEN",
            "query_token_name": "key",
        },
    ]
    environment = {"A_USER": "me", "A_PASSWORD": SECRET, "B_TOKEN": f"{SECRET}b", "C_TOKEN": f"{SECRET}c"}
    found = read_engines(entries, environment)
    assert [entry.credentials for entry in found] == [
        Credentials(user="me", password=SECRET),
        Credentials(token=f"{SECRET}b"),
        Credentials(query_token=f"{SECRET}c", query_name="key"),
    ]
    assert SECRET not in repr(found)
    assert set(credential_variables(entries)) == set(environment)


def test_two_entries_with_one_gpu_are_refused_also_if_one_only_has_that_name() -> None:
    for pair in ([A | {"gpu": 0}, B | {"gpu": "0"}], [A | {"gpu": "B"}, B]):
        (error,) = errors_of(pair)
        assert error.startswith("engines.1.gpu: engines.0 already uses the GPU ")
        assert error.endswith("; there can be only one ComfyUI per GPU")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"url": URL}, "engines.0: `name` is missing"),
        ({"name": "a"}, "engines.0: `url` is missing"),
        (A | {"name": "a b"}, "engines.0.name: it must be at most 32 letters"),
        (A | {"name": "-a"}, "engines.0.name: it must be at most 32 letters"),
        (A | {"name": "a\n"}, "engines.0.name: it must be at most 32 letters"),
        (A | {"name": "a" * 33}, "engines.0.name: it must be at most 32 letters"),
        (A | {"name": 0}, "engines.0.name: it must be at most 32 letters"),
        (A | {"url": "gpu:8188"}, "engines.0.url: it must be a URL such as"),
        (A | {"url": ""}, "engines.0.url: it must be a URL such as"),
        (A | {"url": URL + "\n"}, "engines.0.url: it must be a URL such as"),
        (A | {"url": f"http://gpu/#{SECRET}"}, "engines.0.url: it must be a URL such as"),
        (A | {"url": f"http://me:{SECRET}@gpu"}, "engines.0.url: write it without user and password"),
        (A | {"url": f"http://me:{SECRET}@gpu"}, "in `user_env` and `password_env`"),
        (A | {"url": f"http://gpu/?token={SECRET}"}, "in `query_token_env`"),
        (A | {"url": "http://127.0.0.1:99999"}, "engines.0.url: its host name or port is not valid"),
        (A | {"url": "http://[::1"}, "engines.0.url: its host name or port is not valid"),
        (A | {"gpu": -1}, "engines.0.gpu: it must be the number or the name of a GPU"),
        (A | {"gpu": "a b"}, "engines.0.gpu: it must be the number or the name of a GPU"),
        (A | {"models": []}, "engines.0.models: it must be a list of ids"),
        (A | {"models": ["x", "x"]}, "engines.0.models: it must be a list of ids"),
        (A | {"models": "x"}, "engines.0.models: it must be a list of ids"),
        (A | {"weight": 0}, "engines.0.weight: it must be a number above 0"),
        (A | {"weight": True}, "engines.0.weight: it must be a number above 0"),
        (A | {"weight": 1001}, "engines.0.weight: it must be a number above 0"),
        (A | {"depth": 0}, "engines.0.depth: it must be a whole number from 1 to 100"),
        (A | {"start": {"docker": "a", "systemd": "b"}}, "engines.0.start: it must be {systemd: UNIT}"),
        (A | {"start": {"command": "run"}}, "engines.0.start.command: it must be a list of strings"),
        (A | {"token": SECRET}, "engines.0: unknown key token (did you mean token_env?); allowed: "),
        (
            A | {"token_env": f"{SECRET}-x"},
            "engines.0.token_env: it must be the name of an environment variable",
        ),
        (A | {"password_env": "P"}, "engines.0: `user_env` is missing, which `password_env` needs"),
        (
            A | {"query_token_name": "k"},
            "engines.0: `query_token_env` is missing, which `query_token_name` needs",
        ),
        (A | {"token_env": "T"}, "engines.0.token_env: the environment variable T is not set"),
        ("a", "engines.0: it must be an object"),
    ],
)
def test_an_error_has_its_path_and_what_is_allowed(entry: Any, expected: str) -> None:
    assert expected in "\n".join(errors_of([entry]))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("user_env", f"me:{SECRET}", "it must not contain a colon"),
        ("token_env", f"Bearer {SECRET}", "not the word Bearer"),
        ("token_env", f"{SECRET}é", "only ASCII characters"),
        ("token_env", f"{SECRET}\nX: y", "no line breaks"),
        ("query_token_env", f" {SECRET}", "no spaces around it"),
    ],
)
def test_a_credential_that_cannot_be_sent_is_refused_by_the_name_of_its_variable(
    key: str, value: str, rule: str
) -> None:
    errors = errors_of([A | {key: "VARIABLE"}], {"VARIABLE": value})
    start = f"engines.0.{key}: the value of VARIABLE is not allowed; "
    assert all(error.startswith(start) for error in errors)
    assert rule in "".join(errors)


def test_a_user_and_a_bearer_token_exclude_each_other() -> None:
    (error,) = errors_of([A | {"user_env": "U", "token_env": "T"}], {"U": "me", "T": SECRET})
    assert error.startswith("engines.0.token_env: it and `user_env` exclude each other")


def test_all_errors_are_reported_together() -> None:
    report = errors_of([A, {"name": "A", "url": URL + "/", "gpu": "a"}, B | {"url": "http://a:99999"}])
    assert [error.partition(":")[0] for error in report] == [
        "engines.1.name",
        "engines.1.url",
        "engines.1.gpu",
        "engines.2.url",
    ]


# --- the text of easel.yaml -------------------------------------------------------------------------

TEXT = """port: 81
engines:
  - name: a
    url: http://127.0.0.1:8188
  - name: b
    url: http://127.0.0.1:8189
    gpu: a
"""


@pytest.mark.parametrize("text", ["", "port: 81\n", "engines:\n", "engines: []\n"])
def test_a_text_without_engines_has_none(text: str) -> None:
    assert engines_of_text(text, {}) == ()


def test_the_engines_of_a_text_are_those_of_its_entries() -> None:
    text = TEXT.replace("gpu: a", "token_env: T")
    environment = {"T": SECRET}
    document = [{"name": "a", "url": URL}, {**B, "token_env": "T"}]
    assert engines_of_text(text, environment) == read_engines(document, environment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, "my.yaml:7: engines.1.gpu: engines.0 already uses the GPU 'a'"),
        (
            TEXT.replace("gpu: a", "token_env: T"),
            "my.yaml:7: engines.1.token_env: the environment variable T",
        ),
        (
            TEXT.replace("url: http://127.0.0.1:8189", f"url: http://me:{SECRET}@x"),
            "my.yaml:6: engines.1.url: write it",
        ),
        ("port: 1\na: b: c", "my.yaml:2: "),
        ("engines:\n  a: 1\n", "my.yaml:1: engines: it must be a list"),
        ("- a", "my.yaml:1: it must be settings"),
    ],
)
def test_an_error_in_a_text_has_file_and_line(text: str, expected: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        engines_of_text(text, {}, file_name="my.yaml")
    assert any(error.startswith(expected) for error in caught.value.details["errors"])
    assert SECRET not in caught.value.message


# --- in the application -----------------------------------------------------------------------------


def container(folder: Path, text: str, **environment: str) -> Container:
    (folder / "easel.yaml").write_text(f"state_dir: {folder / 'state'}\n{text}")
    (folder / "state").mkdir(exist_ok=True)
    return Container(load_settings(environment, root=folder))


def test_an_invalid_entry_keeps_easel_from_starting_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"^easel\.yaml:8: engines\.1\.gpu: engines\.0 already uses"):
        container(tmp_path, TEXT)


def test_a_gpu_of_a_stack_that_no_engine_uses_keeps_easel_from_starting(tmp_path: Path) -> None:
    stacks = f"llm:\n  stacks:\n    - driver: ollama\n      url: {URL}\n      gpu: c\n"
    text = TEXT.replace("gpu: a", "gpu: b")
    with pytest.raises(SettingsInvalid, match=r"^easel\.yaml:13: llm\.stacks\.0\.gpu: .* GPUs are: a, b$"):
        container(tmp_path, text + stacks)
    stacks_of = container(tmp_path, text + stacks.replace("gpu: c", "gpu: b")).stacks
    assert (len(stacks_of.on_gpu("a")), len(stacks_of.on_gpu("b"))) == (0, 1)


def test_started_commands_do_not_get_the_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_OF_B", SECRET)
    monkeypatch.setenv("ORDINARY", "yes")
    services = container(
        tmp_path, TEXT.replace("gpu: a", "start: {command: [sh, -c, env; echo end]}\n    token_env: T_OF_B")
    )
    entry = services.engine_entries[1]
    assert entry.credentials == Credentials(token=SECRET)
    EngineProcess.from_setting(entry.start, tmp_path, services.hidden_variables).start()
    output = tmp_path / "engine.log"
    wait_until(lambda: output.read_text().endswith("end\n"))
    assert "ORDINARY=yes\n" in output.read_text()
    assert SECRET not in output.read_text()


def test_the_commands_look_for_a_comfyui_at_the_address_of_an_entry(tmp_path: Path, sketch_url: str) -> None:
    (tmp_path / "easel.yaml").write_text(f"engines:\n  - {{name: a, url: '{sketch_url}/'}}\n")
    machine = look_around(load_settings({}, root=tmp_path), {})
    assert machine.at(sketch_url) is not None


# --- documentation ----------------------------------------------------------------------------------

PAGE = (ROOT / "docs/several_engines.md").read_text("utf-8")


def test_the_page_explains_every_key_and_its_example_is_valid() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert [entry.name for entry in engines_of_text(example, {})] == ["large", "small"]
    table = {
        key for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    (allowed,) = [error for error in errors_of([A | {"unknown": 1}]) if "allowed: " in error]
    assert set(allowed.partition("allowed: ")[2].split(", ")) | {"name", "url"} == table


def test_the_entries_of_the_example_file_are_valid() -> None:
    text = (ROOT / "easel.example.yaml").read_text("utf-8")
    lines = re.search(r"^# engines: \[\]\n((?:##   .*\n)+)", text, re.MULTILINE)
    assert lines
    entries = "".join(line.removeprefix("##") + "\n" for line in lines[1].splitlines())
    assert len(engines_of_text(f"engines:\n{entries}", {})) == 2
