"""The wheel in an environment of its own: one name more, the command `easel`, and the platform's folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
import requests
from flask.cli import FlaskGroup
from packaging.requirements import Requirement

from app import create_app
from easel.command_line import SECTIONS
from easel.command_line import easel as easel_command
from tests.conftest import ROOT
from tests.waiting import wait_until

NOT_INSTALLED = {
    *("bench", "deploy", "docs", "tests"),
    *(
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
        "SECURITY.md",
        "Dockerfile",
        "Makefile",
        "pyproject.toml",
    ),
    *(
        "compose.yaml",
        "compose.amd.yaml",
        "compose.nvidia.yaml",
        "compose.strix-halo.yaml",
        "compose.llama-server.yaml",
        "compose.ollama.yaml",
        "compose.ollama-amd.yaml",
    ),
    *("requirements-cluster.txt", "requirements-dev.txt", "requirements-otel.txt", "requirements.txt"),
}
FOR_DEVELOPERS = {"write-docs", "write-proofs"}
MAX_WHEEL_MB = 2.0


@dataclass(frozen=True)
class Installed:
    """A wheel that was installed; `home`: an empty home directory."""

    wheel: Path
    names: set[str]
    """What it has put into site-packages"""
    easel: Path
    home: Path

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.easel, *arguments],
            cwd=cwd or self.home,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EASEL_", "XDG_", "PYTHON"))
        }
        return {**kept, "HOME": str(self.home)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    [wheel] = folder.glob("*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=300)
    python = venv / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    before = {path.name for path in site.iterdir()}
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel],
        check=True,
        timeout=300,
    )
    names = {path.name for path in site.iterdir()} - before
    # Its dependencies are those of this environment: they were downloaded and checked already.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    home = folder / "home"
    home.mkdir()
    return Installed(wheel, names, venv / "bin" / "easel", home)


def test_an_installation_adds_one_name_and_is_small(installed: Installed) -> None:
    assert installed.names == {"easel", "easel-0.1.0.dist-info"}
    assert installed.wheel.stat().st_size < MAX_WHEEL_MB * 1e6


def test_settings_and_data_are_where_the_platform_keeps_them(installed: Installed) -> None:
    printed = installed.run("--version").stdout
    assert printed.startswith("Easel 0.1.0\n")
    if sys.platform == "linux":
        assert f"settings: {installed.home}/.config/easel/easel.yaml\n" in printed
        assert f"data: {installed.home}/.local/share/easel\n" in printed
    assert list(installed.home.iterdir()) == []


def test_a_user_without_a_home_has_the_folders_of_the_system(installed: Installed, tmp_path: Path) -> None:
    # What Path.home() and platformdirs raise for a number that /etc/passwd does not have.
    (tmp_path / "sitecustomize.py").write_text(
        "import os.path\nos.path.expanduser = lambda path: path\n"
        "import pwd\ndef unknown(number): raise KeyError(number)\npwd.getpwuid = unknown\n"
    )
    environment = {**installed.environment(), "PYTHONPATH": str(tmp_path)}
    del environment["HOME"]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [installed.easel, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    if sys.platform == "linux":
        shown = run("--version")
        assert "settings: /etc/easel/easel.yaml\n" in shown
        assert "data: /var/lib/easel\n" in shown
    state = ("--state-dir", str(tmp_path / "state"))
    assert "prevents drawing." in run(*state, "doctor")
    assert run(*state, "setup", "--print").startswith("# Settings of Easel")


def test_a_graph_is_compiled_in_a_folder_that_has_modules_of_our_names(
    installed: Installed, tmp_path: Path
) -> None:
    for name in ("app", "wsgi", "errors", "compiler", "settings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    done = installed.run(
        "--state-dir", str(tmp_path / "state"), "compile-workflow", "sdxl-turbo", "a cat", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "CheckpointLoaderSimple" in {node["class_type"] for node in json.loads(done.stdout).values()}


def test_the_settings_file_and_data_of_an_option_are_used(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("default_size_of_nothing: 1\n")
    wrong = installed.run("--config", str(tmp_path / "my.yaml"), "keys", "list")
    assert wrong.returncode != 0
    assert "my.yaml:1: default_size_of_nothing: unknown setting" in wrong.stderr
    added = installed.run("--state-dir", str(tmp_path / "state"), "keys", "add", "phone")
    assert added.returncode == 0, added.stderr
    assert (tmp_path / "state/keys.json").exists()


@pytest.fixture
def served(installed: Installed, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URL and working directory of `easel run`, in a folder that has modules of our names."""
    for name in ("app", "wsgi", "tracing", "importer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [installed.easel, "--state-dir", "state", "run", "--port", "0"],
            cwd=tmp_path,
            env=installed.environment(),
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: "Easel is at http" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition("Easel is at ")[2].split()[0]
        yield url, str(tmp_path)
    finally:
        process.terminate()
        assert process.wait(90) == 0


def test_an_installed_server_draws_and_has_its_page(served: tuple[str, str]) -> None:
    url, folder = served
    body = {"prompt": "a cat", "size": "256x256"}
    wait_until(lambda: requests.get(f"{url}/health", timeout=60).status_code == 200, 60)
    answer = requests.post(f"{url}/v1/images/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert requests.get(answer.json()["data"][0]["url"], timeout=60).headers["Content-Type"] == "image/png"
    page = requests.get(url, headers={"Accept": "text/html"}, timeout=60)
    assert "<html" in page.text
    assert (Path(folder) / "state/images").is_dir()


def test_setup_writes_the_settings_file_of_the_version_and_doctor_reads_it(
    installed: Installed, tmp_path: Path
) -> None:
    own = replace(installed, home=tmp_path)
    written = own.run("setup", "--yes")
    assert written.returncode == 0, written.stdout + written.stderr
    config = own.run("--version").stdout.partition("settings: ")[2].splitlines()[0]
    assert f"Written: {config}" in written.stdout
    assert Path(config).read_text("utf-8").startswith("# Settings of Easel")
    document = json.loads(own.run("doctor", "--json").stdout)
    found = {finding["code"]: finding["message"] for finding in document["findings"]}
    assert found["settings.ok"] == f"Settings: {config}"


def test_the_wheel_has_every_file_of_the_tree_that_is_used() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {path.partition("/")[0] for path in listed.splitlines() if not path.startswith(".")}
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    paths = set(included["force-include"])
    assert {path for path in paths if "/" in path} == {
        path for path in listed.splitlines() if path.startswith("easel/")
    }
    assert {path for path in paths if "/" not in path} == top - NOT_INSTALLED - {"easel"}


def test_the_pinned_packages_are_within_the_bounds_and_gunicorn_ends_before_its_next_major_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text()))
    bounds = {needed.name: needed.specifier for needed in map(Requirement, project["dependencies"])}
    assert {name for name, bound in bounds.items() if pinned[name] not in bound} == set()
    # tests/server/test_gunicorn_internals.py says which one the worker was written for.
    assert "27.99" in bounds["gunicorn"]
    assert "28.0" not in bounds["gunicorn"]


def test_easel_has_the_commands_of_flask_and_says_the_same_of_them() -> None:
    shown = {name: entry.help for entries in SECTIONS.values() for name, entry in entries.items()}
    context = click.Context(easel_command)
    for name, text in shown.items():
        command = easel_command.get_command(context, name)
        assert command is not None
        assert command.short_help == text
    flask = FlaskGroup(create_app=create_app, add_default_commands=False)
    of_flask = set(flask.list_commands(click.Context(flask)))
    assert set(shown) == of_flask - FOR_DEVELOPERS | {"connect", "demo", "run", "worker"}


def test_an_unknown_command_is_refused_with_the_nearest_ones(installed: Installed) -> None:
    done = installed.run("chek-catalogue")
    assert done.returncode == 2
    assert "No such command" in done.stderr
