"""Settings from easel.yaml and the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from errors import SettingsInvalid
from settings import SETTINGS, SETTINGS_BY_NAME, load_settings
from tests.conftest import ROOT


def test_without_file_and_variables_every_setting_has_its_default(tmp_path: Path) -> None:
    settings = load_settings({}, root=tmp_path)
    assert {name: settings[name] for name in SETTINGS_BY_NAME} == {
        setting.name: setting.default for setting in SETTINGS
    }
    assert settings.path("state_dir") == tmp_path / "var"


def test_variables_override_the_file_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf/my.yaml"
    file.write_text(
        "port: 9000\nstate_dir: state\nengine: {url: 'http://a'}\napi_keys: [a, b]\nimages: {enabled: false}\n"
    )
    settings = load_settings(
        {"EASEL_CONFIG": str(file), "EASEL_PORT": "9001", "EASEL_IMAGES_VISIBLE": "x, y"}
    )
    assert (settings["port"], settings["engine.url"]) == (9001, "http://a")
    assert settings["images.visible"] == ("x", "y")
    assert settings["api_keys"] == ("a", "b")
    assert settings["images.enabled"] is False
    assert settings.path("state_dir") == tmp_path / "conf/state"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prt: 1", "easel.yaml:1: prt: unknown setting"),
        ("host: a\nimages:\n  visble: []", "easel.yaml:3: images.visble: unknown setting"),
        (
            "port: eighty",
            "easel.yaml:1: port: 'eighty' is not allowed; it must be a whole number from 0 to 65535",
        ),
        ("port: true", "it must be a whole number"),
        ("port: 8080.0", "it must be a whole number from 0 to 65535"),
        ('engine: {url: "http://127.0.0.1:8188\\n"}', "it must be a URL"),
        ("llm: {stacks: [1, 2]}", "it must be a list of objects"),
        ("port: -1", "from 0 to 65535"),
        ("port: 99999", "from 0 to 65535"),
        ("request_timeout_s: .nan", "is not a finite number"),
        ("engine: {url: notaurl}", "a URL such as"),
        ("engine: {url: 'http://127.0.0.1:99999'}", "its host name or port is not valid"),
        ("engine: {url: 'http://127.0.0.1:http'}", "its host name or port is not valid"),
        ("engine: {url: 'http://gpu..example'}", "its host name or port is not valid"),
        ("engine: {url: 'http://[::1'}", "its host name or port is not valid"),
        ("engine: {url: 'http://:8188'}", "its host name or port is not valid"),
        ("threads: 96", "max_waiting must be smaller than threads"),
        (
            "threads: 128\nllm: {upstreams: [{url: 'http://127.0.0.1:1'}]}",
            "max_waiting and llm.max_requests together must be smaller than threads",
        ),
        ("url_style: nice", "one of absolute, relative, data"),
        ("images: {enabled: 'no'}", "true or false"),
        ("api_keys: secret-key", "it must be a list of strings"),
        ("api_keys: [1]", "it must be a list of strings"),
        ("api_keys: ['']", "only visible ASCII characters"),
        ("api_keys: [secret-keyé]", "only visible ASCII characters"),
        ("- a", "unknown setting"),
        ("a: [", "easel.yaml:"),
        ("port: 1\nport: 2", "given twice"),
    ],
)
def test_an_invalid_file_is_refused_with_line_setting_and_allowed_values(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "easel.yaml").write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({}, root=tmp_path)
    assert expected in caught.value.message
    assert "secret-key" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("EASEL_REQUEST_TIMEOUT_S", "nan", "a finite number"),
        ("EASEL_ENGINE_URL", "localhost:8188", "a URL"),
        ("EASEL_PRT", "1", "unknown setting"),
        ("EASEL_PORT", "x", "a whole number"),
        ("EASEL_ALLOW_OPEN", "maybe", "true or false"),
        ("EASEL_API_KEYS", "one,schlüssel", "only visible ASCII characters"),
        ("EASEL_API_KEYS", "one,two words", "only visible ASCII characters"),
        ("EASEL_TRUSTED_PROXIES", "127.0.0.1, my.proxy", "each must be an IP address or network"),
    ],
)
def test_an_invalid_variable_is_refused_by_name(tmp_path: Path, name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({name: value}, root=tmp_path)
    assert caught.value.message.startswith(name)
    assert expected in caught.value.message


def test_a_missing_file_named_by_easel_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        load_settings({"EASEL_CONFIG": str(tmp_path / "gone.yaml")})


def test_the_example_file_lists_every_setting_with_its_description_and_default(tmp_path: Path) -> None:
    text = (ROOT / "easel.example.yaml").read_text()
    uncommented = re.sub(r"^(\s*)# ?(\w+:)", r"\1\2", text, flags=re.M)
    (tmp_path / "easel.yaml").write_text(uncommented)
    settings = load_settings({}, root=tmp_path)
    assert {name: settings[name] for name in SETTINGS_BY_NAME} == {
        setting.name: setting.default for setting in SETTINGS
    }
    document = yaml.safe_load(uncommented)
    named = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in document.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert named == {setting.name for setting in SETTINGS if not setting.environment_only}
    assert [setting.name for setting in SETTINGS if setting.description not in text] == []


def test_a_key_of_the_file_that_is_not_text_is_refused_with_file_line_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text("llm:\n  stacks:\n    - yes: 1\n")
    with pytest.raises(SettingsInvalid, match=r'easel.yaml:3: .* write it in quotes: "yes"'):
        load_settings({}, root=tmp_path)


def test_the_default_catalogue_is_the_one_beside_the_file_or_else_the_projects(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text("port: 81\n")
    (tmp_path / "templates_wf").mkdir()
    settings = load_settings({"EASEL_CONFIG": str(tmp_path / "easel.yaml")})
    assert settings.path("catalogue") == ROOT / "catalogue.yaml"
    assert settings.path("templates") == tmp_path / "templates_wf"
    assert settings.path("state_dir") == tmp_path / "var"
    named = load_settings({"EASEL_CONFIG": str(tmp_path / "easel.yaml"), "EASEL_CATALOGUE": "mine.yaml"})
    assert named.path("catalogue") == tmp_path / "mine.yaml"


def test_the_own_folder_is_beside_the_file_or_else_in_the_state_directory(tmp_path: Path) -> None:
    without = load_settings({"EASEL_STATE_DIR": "state"}, root=tmp_path)
    assert without.path("catalogue_dir") == tmp_path / "state/catalogue.d"
    (tmp_path / "easel.yaml").write_text("state_dir: state\n")
    beside = load_settings({}, root=tmp_path)
    assert beside.path("catalogue_dir") == tmp_path / "catalogue.d"
    named = load_settings({"EASEL_CATALOGUE_DIR": "mine"}, root=tmp_path)
    assert named.path("catalogue_dir") == tmp_path / "mine"


# --- credentials of the engine ----------------------------------------------------------------------

SECRET = "s3cret"


@pytest.mark.parametrize("name", ["user", "password", "token", "query_token"])
def test_credentials_in_the_file_are_refused_with_the_variable_to_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "easel.yaml").write_text(f"engine:\n  {name}: {SECRET}\n")
    with pytest.raises(
        SettingsInvalid, match=rf"easel.yaml:2: engine.{name}.* EASEL_ENGINE_{name.upper()} "
    ) as caught:
        load_settings({}, root=tmp_path)
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        (f"http://me:{SECRET}@gpu:8188", "EASEL_ENGINE_PASSWORD"),
        (f"http://gpu/?token={SECRET}", "EASEL_ENGINE_QUERY_TOKEN"),
    ],
)
def test_a_url_with_credentials_is_refused_with_the_variable_to_set(
    tmp_path: Path, url: str, variable: str
) -> None:
    (tmp_path / "easel.yaml").write_text(f"engine: {{url: '{url}'}}")
    for environment in ({}, {"EASEL_ENGINE_URL": url}):
        with pytest.raises(SettingsInvalid, match=variable) as caught:
            load_settings(environment, root=tmp_path)
        assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PASSWORD": SECRET}, "EASEL_ENGINE_USER"),
        ({"USER": "me", "TOKEN": SECRET}, "exclude each other"),
        ({"USER": f"me:{SECRET}"}, "must not contain a colon"),
        ({"TOKEN": f"{SECRET}\nX: y"}, "EASEL_ENGINE_TOKEN"),
        ({"TOKEN": f"{SECRET}é"}, "only ASCII"),
        ({"TOKEN": f"Bearer {SECRET}"}, "not the word Bearer"),
        ({"QUERY_TOKEN": f" {SECRET}"}, "no spaces around it"),
        ({"URL": f"http://gpu/#{SECRET}"}, "EASEL_ENGINE_URL"),
    ],
)
def test_credentials_that_cannot_be_sent_are_refused_and_not_shown(
    variables: dict[str, str], expected: str
) -> None:
    with pytest.raises(SettingsInvalid, match=expected) as caught:
        load_settings({f"EASEL_ENGINE_{name}": value for name, value in variables.items()})
    assert SECRET not in caught.value.message


def test_the_text_form_of_settings_has_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text(f"api_keys: [{SECRET}]\n")
    assert SECRET not in repr(load_settings({"EASEL_ENGINE_TOKEN": SECRET}, root=tmp_path))


def test_a_query_token_needs_a_name(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text("engine: {query_token_name: ''}")
    with pytest.raises(SettingsInvalid, match=r"engine\.query_token_name must not be empty"):
        load_settings({}, root=tmp_path)


# --- engines ----------------------------------------------------------------------------------------

ENGINES = "engines:\n  - {name: a, url: 'http://127.0.0.1:1', gpu: 0}\n"


def test_engines_come_from_the_file_or_from_a_variable(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text(ENGINES)
    assert load_settings({}, root=tmp_path)["engines"] == (
        {"name": "a", "url": "http://127.0.0.1:1", "gpu": 0},
    )
    settings = load_settings({"EASEL_ENGINES": "[{name: b, url: 'http://127.0.0.1:2'}]"}, root=tmp_path)
    assert [entry["name"] for entry in settings["engines"]] == ["b"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("url: http://127.0.0.1:8188", "`url` of an entry"),
        ("start: {docker: comfyui}", "`start` of an entry"),
        ("query_token_name: key", "`query_token_name` of an entry"),
    ],
)
def test_a_setting_of_a_single_comfyui_is_refused_beside_engines_with_line_and_remedy(
    tmp_path: Path, line: str, place: str
) -> None:
    (tmp_path / "easel.yaml").write_text(f"{ENGINES}engine:\n  {line}\n")
    name = f"engine.{line.partition(':')[0]}"
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({}, root=tmp_path)
    (error,) = caught.value.details["errors"]
    assert error.startswith(
        f"easel.yaml:4: {name}: it is for a single ComfyUI, and not used beside `engines`"
    )
    assert place in error


@pytest.mark.parametrize("variable", ["URL", "START", "USER", "TOKEN", "QUERY_TOKEN"])
def test_a_variable_of_a_single_comfyui_is_refused_beside_engines(tmp_path: Path, variable: str) -> None:
    (tmp_path / "easel.yaml").write_text(ENGINES)
    value = {"URL": "http://127.0.0.1:9", "START": "{docker: s3cret}"}.get(variable, SECRET)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({f"EASEL_ENGINE_{variable}": value}, root=tmp_path)
    (error,) = caught.value.details["errors"]
    assert error.startswith(f"EASEL_ENGINE_{variable}: it is for a single ComfyUI")
    assert SECRET not in error


def test_other_settings_of_the_engine_are_allowed_beside_engines(tmp_path: Path) -> None:
    others = "engine: {url: '', start: {}, stall_timeout_s: 9, depth: 3, sketch: false, models_dir: m}\n"
    (tmp_path / "easel.yaml").write_text(ENGINES + others)
    settings = load_settings({}, root=tmp_path)
    assert (settings["engine.stall_timeout_s"], settings["engine.depth"]) == (9, 3)


def test_the_location_of_a_value_is_its_line_or_its_variable(tmp_path: Path) -> None:
    (tmp_path / "easel.yaml").write_text(f"{ENGINES}llm:\n  stacks: []\n")
    settings = load_settings({"EASEL_LLM_STACKS": "[{driver: ollama}]"}, root=tmp_path)
    assert settings.location("engines.0.gpu") == "easel.yaml:2: "
    assert settings.location("llm.stacks.0.url") == "EASEL_LLM_STACKS: "
