"""What can be said of the Dockerfile and the compose files by reading them. `make test-install` runs the Dockerfile's steps."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import GRACEFUL_TIMEOUT_S
from settings import load_settings
from tests.conftest import ROOT
from tests.deploy import dockerfile
from tests.deploy.compose import COMBINATIONS, merged

STAGES = dockerfile.read(ROOT / "Dockerfile")
IMAGE = STAGES[-1]
COMPOSE_FILES = sorted(ROOT.glob("compose*.yaml"))


def test_the_image_runs_as_a_user_of_its_own_and_gets_signals() -> None:
    uid, _, gid = IMAGE.last("USER").partition(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000
    assert dockerfile.exec_form(IMAGE.last("ENTRYPOINT")) + dockerfile.exec_form(IMAGE.last("CMD")) == [
        "easel",
        "run",
    ]
    health = IMAGE.last("HEALTHCHECK").partition("CMD ")[2]
    assert dockerfile.exec_form(health)[0] == "python3"


def test_a_digest_is_whole() -> None:
    for file in [ROOT / "Dockerfile", *COMPOSE_FILES]:
        for digest in re.findall(r"@sha256:(\S+)", re.sub(r"(?m)^\s*#.*", "", file.read_text())):
            assert re.fullmatch("[0-9a-f]{64}", digest), file.name


def test_the_image_gets_what_the_wheel_is_built_of_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    built_of = {path.partition("/")[0] for path in wheel["force-include"]}
    others = {
        "pyproject.toml",
        "README.md",
        "requirements.txt",
        "requirements-otel.txt",
        "requirements-cluster.txt",
    }
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == built_of | others


def test_what_is_copied_exists() -> None:
    named = {stage.name for stage in STAGES}
    for stage in STAGES:
        for text in (step.text for step in stage.steps if step.name == "COPY"):
            words = shlex.split(text)
            if words[0].startswith("--from="):
                assert words[0].partition("=")[2] in named
            else:
                assert all((ROOT / source).exists() for source in words[:-1])


def test_the_settings_of_the_image_and_of_the_compose_files_are_valid(tmp_path: Path) -> None:
    for name, document in COMBINATIONS.items():
        given = merged(document)["services"]["easel"]["environment"]
        given = {key: value or "" for key, value in given.items()}
        settings = load_settings({**IMAGE.environment(), **given}, tmp_path)
        assert settings["host"] == "0.0.0.0", name
        assert not settings["allow_open"], name


@pytest.mark.parametrize("name", COMBINATIONS)
def test_only_easel_is_published_and_on_this_machine_only(name: str) -> None:
    document = merged(COMBINATIONS[name])
    ports = {service: entry["ports"] for service, entry in document["services"].items() if "ports" in entry}
    assert ports == {"easel": ["127.0.0.1:8080:8080"]}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_networks_and_volumes_that_are_used_are_declared(name: str) -> None:
    document = merged(COMBINATIONS[name])
    for service in document["services"].values():
        assert set(service["networks"]) <= set(document["networks"])
        sources = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert {source for source in sources if not source.startswith((".", "/"))} <= set(document["volumes"])
        assert set(service.get("depends_on", ())) <= set(document["services"])


def test_easel_is_locked_down_and_has_time_to_stop() -> None:
    easel = merged(COMBINATIONS["easel"])["services"]["easel"]
    assert easel["read_only"] is True
    assert easel["cap_drop"] == ["ALL"]
    assert easel["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in easel["tmpfs"]
    assert int(easel["stop_grace_period"].removesuffix("s")) > 2 * GRACEFUL_TIMEOUT_S
    assert f"state:{IMAGE.last('VOLUME')}" in easel["volumes"]


def test_the_documentation_has_the_folder_of_models_of_each_comfyui() -> None:
    """Its images make it as root, so that Easel can write there only after the documented command."""
    text = (ROOT / "docs/installation.md").read_text()
    uid = IMAGE.last("USER")
    for name, files in COMBINATIONS.items():
        services = merged(files)["services"]
        if "comfyui" in services:
            volumes = dict(volume.split(":")[:2] for volume in services["comfyui"]["volumes"])
            assert (
                f"`{volumes['comfyui-models']}`" in text
                or f"exec comfyui chown -R {uid} {volumes['comfyui-models']}\n" in text
            ), name
            assert "comfyui-models:/models" in services["easel"]["volumes"], name
    assert f"exec comfyui chown -R {uid} " in text


def test_a_variable_of_rocm_that_is_not_set_is_not_passed_on_empty() -> None:
    """ROCm's runtime finds no GPU if HSA_OVERRIDE_GFX_VERSION is there and no version."""
    environment = merged(COMBINATIONS["amd"])["services"]["comfyui"]["environment"]
    assert environment == {"HSA_OVERRIDE_GFX_VERSION": None}


def test_every_compose_file_is_in_a_combination() -> None:
    used = {file for files in COMBINATIONS.values() for file in files}
    assert used == {path.name for path in COMPOSE_FILES}


def test_engines_and_llm_servers_are_reached_by_the_names_of_their_services() -> None:
    for name, files in COMBINATIONS.items():
        document = merged(files)
        environment: dict[str, Any] = document["services"]["easel"]["environment"]
        stacks = yaml.safe_load(environment.get("EASEL_LLM_STACKS", "[]"))
        urls = [environment.get("EASEL_ENGINE_URL"), *(stack["url"] for stack in stacks)]
        hosts = {url.partition("://")[2].partition(":")[0] for url in urls if url}
        assert hosts == set(document["services"]) - {"easel"}, name
