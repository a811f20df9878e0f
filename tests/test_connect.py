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
from tests.clients.environments import ENVIRONMENTS, Environment
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
    assert untested == set(CONNECTIONS) - RUN_HERE - set(RUN_BY_ROWS)
    refused = connect(tmp_path, "litelm")
    assert refused.returncode == 2
    assert "'litelm' is not known (did you mean litellm?). Known programs: curl, " in refused.stderr


RUN_HERE = {"curl", "openai-python", "environment"}
RUN_BY_ROWS: dict[str, list[Environment]] = {}
"""The programs that `make test-clients` runs with the printed lines, and the environments of each"""
for _environment in ENVIRONMENTS:
    for _row in _environment.rows:
        if _match := re.fullmatch(r"rows_connect_(.+)\.(?:py|mjs)", _row):
            RUN_BY_ROWS.setdefault(_match[1], []).append(_environment)


def test_every_row_for_printed_lines_is_run_and_uses_the_lines_of_its_program() -> None:
    files = [
        path for path in (ROOT / "tests/clients").rglob("rows_connect_*") if "__pycache__" not in path.parts
    ]
    names = {path.stem.removeprefix("rows_connect_"): path for path in files}
    assert set(names) == set(RUN_BY_ROWS)
    for name, path in names.items():
        assert re.search(rf"""printed\w+\(["']{name}["']\)""", path.read_text("utf-8")), path


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
    assert "`easel keys add environment` makes one" in closed.stderr
    assert "secret" not in closed.stdout + closed.stderr
    given = connect(
        tmp_path, "librechat", "--docker", "--key", "k1", "--model", "qwen3:8b", EASEL_PORT="8123"
    )
    assert 'apiKey: "k1", baseURL: "http://host.docker.internal:8123/v1"' in given.stdout
    assert "qwen3:8b" in given.stdout
    assert "EASEL_ALLOWED_HOSTS=host.docker.internal" in given.stderr
    assert "--add-host=host.docker.internal:host-gateway" in given.stderr
    assert "Untested" in given.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "address", "source"),
    [
        ([], {"EASEL_PORT": "8123"}, "http://127.0.0.1:8123", "the settings host and port, because no server runs"),
        ([], {"EASEL_HOST": "::1"}, "http://[::1]:8080", "the settings host and port"),
        ([], {"EASEL_PUBLIC_URL": "https://box.example/easel/"}, "https://box.example/easel", "public_url"),
        (["--docker"], {"EASEL_PUBLIC_URL": "https://box.example/easel"}, "https://box.example/easel", "another machine"),
        (["--docker"], {"EASEL_HOST": "::1"}, "http://host.docker.internal:8080", "allowed_hosts"),
        (["--docker", "--url", "http://localhost/easel/v1"], {}, "http://host.docker.internal/easel", "--url"),
    ],
)  # fmt: skip
def test_the_address_is_the_right_one_and_says_where_it_comes_from(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], address: str, source: str
) -> None:
    printed = connect(tmp_path, "environment", *arguments, **variables)
    assert printed.stdout.startswith(f"OPENAI_BASE_URL={address}/v1\n"), printed.stderr
    assert source in printed.stderr


def test_the_address_of_a_killed_server_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "server-url").write_text("http://127.0.0.1:9999")
    assert "http://127.0.0.1:8080/v1" in connect(tmp_path, "environment").stdout


def test_a_missing_chat_model_is_named(tmp_path: Path) -> None:
    upstreams = '[{"name": "far", "url": "http://127.0.0.1:9"}]'
    assert "No LLM server is set up" in connect(tmp_path, "aider").stderr
    lacking = connect(tmp_path, "aider", EASEL_LLM_UPSTREAMS=upstreams)
    assert "No alias primary is set up" in lacking.stderr
    given = connect(tmp_path, "aider", "--model", "qwen3:8b", EASEL_LLM_UPSTREAMS=upstreams)
    assert "--model openai/qwen3:8b " in given.stdout
    assert "alias" not in given.stderr
    complete = connect(
        tmp_path, "aider", EASEL_LLM_UPSTREAMS=upstreams, EASEL_LLM_ALIASES='{"primary": "far/qwen3:8b"}'
    )
    assert "alias" not in complete.stderr
    assert "No LLM" not in connect(tmp_path, "curl").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "box:9000"),
        ("--url", "http://me:word@box"),
        ("--url", 'http://box/"; rm'),
        ("--key", "a'b"),
        ("--key", "a b"),
        ("--model", 'x"'),
    ],
)
def test_what_a_shell_or_parser_would_read_differently_is_refused(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    refused = connect(tmp_path, "curl", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"'{arguments[0]}'" in refused.stderr


def test_the_document_names_the_tested_versions_and_the_untested_programs() -> None:
    document = (ROOT / "docs/installation.md").read_text("utf-8").partition("## Connect a program")[2]
    for name, environments in RUN_BY_ROWS.items():
        [line] = [line for line in document.splitlines() if line.startswith(f"| `{name}` |")]
        for environment in environments:
            assert _tested_version(environment, line), (environment.name, line)
    untested = re.findall(
        r"`([\w-]+)`", document.partition("No test runs the lines for")[2].partition(";")[0]
    )
    assert set(untested) == set(CONNECTIONS) - RUN_HERE - set(RUN_BY_ROWS)


def _tested_version(environment: Environment, line: str) -> bool:
    """Whether `line` has a package of the environment with its pinned version."""
    pins = environment.pins[-1].read_text("utf-8")
    pinned = re.findall(r'^ *"?([@\w/-]+?)(?:\[\w+\])?"?(?:==|: ")([\d.]+)', pins, re.MULTILINE)
    versions = re.findall(r"[\d.]*\d", line)
    return any(name in line and version in versions for name, version in pinned)


@pytest.mark.parametrize("name", sorted(set(CONNECTIONS) - RUN_HERE))
def test_the_document_says_the_same(name: str) -> None:
    document = re.sub(r"^export ", "", (ROOT / "docs/llm_stacks.md").read_text("utf-8"), flags=re.MULTILINE)
    origin = "http://127.0.0.1:8080"
    values = {"base_url": f"{origin}/v1", "origin": origin, "key": "unused", "model": "primary"}
    for line in Template(CONNECTIONS[name]["lines"]).substitute(values).splitlines():
        assert line in document
