"""`easel connect`: the printed lines, run with the real program where that is possible here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from easel.connect import read_connections
from tests.conftest import ROOT
from tests.server.running import Server, running

CONNECTIONS = read_connections()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    state = tmp_path_factory.mktemp("state")
    with running(state) as server:
        yield server, state


def connect(state: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EASEL_")}
    return subprocess.run(
        [sys.executable, "-m", "easel", "--state-dir", str(state), "connect", *arguments],
        cwd=ROOT,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_programs_are_listed_with_those_that_no_test_runs(tmp_path: Path) -> None:
    listed = connect(tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(CONNECTIONS)
    untested = {line.split()[0] for line in listed if line.endswith("(untested)")}
    assert untested == set(CONNECTIONS) - RUN_HERE
    refused = connect(tmp_path, "frobnicate")
    assert refused.returncode == 2
    assert "Known programs: curl, " in refused.stderr


RUN_HERE = {"curl", "openai-python", "environment"}


def test_the_lines_for_curl_draw(served: tuple[Server, Path]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, so its lines are NOT tested")
    server, state = served
    printed = connect(state, "curl").stdout
    assert f"{server.url}/v1/" in printed  # that of the running server, whose port is any free one
    answer = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, timeout=120)
    assert '"url":"http' in answer.stdout.replace(" ", "")


def test_the_lines_for_openais_library_draw(served: tuple[Server, Path]) -> None:
    _, state = served
    lines = connect(state, "openai-python").stdout
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr


def test_the_variables_are_enough_for_openais_library(served: tuple[Server, Path]) -> None:
    _, state = served
    lines = connect(state, "environment").stdout
    variables = dict(line.split("=", 1) for line in lines.splitlines())
    code = (
        "from openai import OpenAI; print(OpenAI().images.generate(model='img', prompt='a cat').data[0].url)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr


def test_keys_addresses_and_docker_are_put_in(tmp_path: Path) -> None:
    closed = connect(tmp_path, "environment", "--url", "http://box:9000/v1/", EASEL_API_KEYS="secret")
    assert closed.stdout == "OPENAI_BASE_URL=http://box:9000/v1\nOPENAI_API_KEY=YOUR-KEY\n"
    assert "easel keys add" in closed.stderr
    assert "secret" not in closed.stdout + closed.stderr
    given = connect(tmp_path, "claude-code", "--docker", "--key", "k1", EASEL_PORT="8123")
    assert "ANTHROPIC_BASE_URL=http://host.docker.internal:8123\n" in given.stdout
    assert "ANTHROPIC_AUTH_TOKEN=k1\n" in given.stdout
    assert "EASEL_ALLOWED_HOSTS=host.docker.internal" in given.stderr
    assert "Untested" in given.stderr


@pytest.mark.parametrize("name", sorted(set(CONNECTIONS) - RUN_HERE - {"langchain", "litellm", "open-webui"}))
def test_the_document_says_the_same(name: str) -> None:
    document = re.sub(r"^export ", "", (ROOT / "docs/llm_stacks.md").read_text("utf-8"), flags=re.MULTILINE)
    origin = "http://127.0.0.1:8080"
    values = {"base_url": f"{origin}/v1", "origin": origin, "key": "unused"}
    for line in Template(CONNECTIONS[name]["lines"]).substitute(values).splitlines():
        assert line in document
