"""Settings from easel.yaml and the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from errors import SettingsInvalid
from settings import BY_NAME, TABLE, load_settings
from tests.conftest import ROOT


def test_without_anything_every_setting_has_its_default(tmp_path: Path) -> None:
    settings = load_settings({}, root=tmp_path)
    assert {name: settings[name] for name in BY_NAME} == {setting.name: setting.default for setting in TABLE}
    assert settings.path("state_dir") == tmp_path / "var"


def test_a_variable_wins_over_the_file_and_paths_start_at_the_file(tmp_path: Path) -> None:
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
    ("text", "words"),
    [
        ("prt: 1", "easel.yaml:1: prt: there is no such setting"),
        ("host: a\nimages:\n  visble: []", "easel.yaml:3: images.visble: there is no such setting"),
        (
            "port: eighty",
            "easel.yaml:1: port: 'eighty' is not allowed; it must be a whole number from 0 to 65535",
        ),
        ("port: true", "it must be a whole number"),
        ("port: -1", "from 0 to 65535"),
        ("port: 99999", "from 0 to 65535"),
        ("request_timeout_s: .nan", "is not a number"),
        ("engine: {url: notaurl}", "an address such as"),
        ("threads: 96", "max_waiting must be smaller than threads"),
        ("url_style: nice", "one of absolute, relative, data"),
        ("images: {enabled: 'no'}", "true or false"),
        ("api_keys: secret-key", "it must be a list of texts"),
        ("api_keys: [1]", "it must be a list of texts"),
        ("- a", "no such setting"),
        ("a: [", "easel.yaml:"),
        ("port: 1\nport: 2", "given twice"),
    ],
)
def test_a_wrong_file_is_refused_with_line_name_and_what_is_allowed(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "easel.yaml").write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({}, root=tmp_path)
    assert words in caught.value.message
    assert "secret-key" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EASEL_REQUEST_TIMEOUT_S", "nan", "a finite number"),
        ("EASEL_ENGINE_URL", "localhost:8188", "an address"),
        ("EASEL_PRT", "1", "no such setting"),
        ("EASEL_PORT", "x", "a whole number"),
        ("EASEL_ALLOW_OPEN", "maybe", "true or false"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings({name: value}, root=tmp_path)
    assert caught.value.message.startswith(name)
    assert words in caught.value.message


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        load_settings({"EASEL_CONFIG": str(tmp_path / "gone.yaml")})


def test_the_commented_example_names_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "easel.example.yaml").read_text()
    uncommented = re.sub(r"^(\s*)# ?(\w+:)", r"\1\2", text, flags=re.M)
    (tmp_path / "easel.yaml").write_text(uncommented)
    settings = load_settings({}, root=tmp_path)
    assert {name: settings[name] for name in BY_NAME} == {setting.name: setting.default for setting in TABLE}
    document = yaml.safe_load(uncommented)
    named = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in document.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert named == set(BY_NAME)
