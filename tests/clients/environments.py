"""The environments of the real clients: what each contains, how it is installed and how its rows are run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.conftest import ROOT

HERE = Path(__file__).resolve().parent
PINS = HERE / "pins"
INSTALLED = ROOT / ".clients"
"""Git-ignored; delete it to install everything again"""

Kind = Literal["own", "python", "node"]
REQUIRED_PROGRAMS: Mapping[Kind, tuple[str, ...]] = {"own": ("curl",), "python": (), "node": ("node", "npm")}


@dataclass(frozen=True)
class Environment:
    """`own` is Easel's virtual environment, `python` a separate one, `node` a folder of packages. `rows`: its test
    files."""

    name: str
    kind: Kind
    rows: tuple[str, ...]
    has_common_pins: bool = True
    """Whether it has the packages of pins/rows.txt in those versions; if not, its own pins name what the rows import"""

    is_complete: bool = False
    """Whether its own pins name all packages, so that those which these want in addition are not installed"""

    @property
    def folder(self) -> Path:
        return INSTALLED / self.name

    @property
    def pins(self) -> tuple[Path, ...]:
        """The files that list its packages; empty for Easel's own."""
        if self.kind == "own":
            return ()
        if self.kind == "node":
            return (PINS / f"{self.name}.json",)
        return (*[PINS / "rows.txt"] * self.has_common_pins, PINS / f"{self.name}.txt")

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.kind == "own" else self.folder / "bin/python"


ENVIRONMENTS = (
    Environment("http", "own", ("rows_http.py", "rows_gpustack.py", "rows_openwebui.py")),
    Environment("openai-python-1", "python", ("rows_openai.py", "rows_openai_llm.py")),
    Environment("openai-python-2", "python", ("rows_openai.py", "rows_openai_llm.py")),
    Environment("openai-python-3", "python", ("rows_openai.py", "rows_openai_llm.py")),
    Environment(
        "langchain-python",
        "python",
        ("rows_langchain.py", "rows_langchain_llm.py", "rows_connect_langchain.py"),
    ),
    Environment("litellm", "python", ("rows_litellm.py", "rows_litellm_llm.py", "rows_connect_litellm.py")),
    Environment("anthropic-python", "python", ("rows_anthropic.py",)),
    Environment("ollama-python", "python", ("rows_ollama.py",)),
    Environment("aider", "python", ("rows_aider.py", "rows_connect_aider.py"), has_common_pins=False),
    Environment(
        "open-webui", "python", ("rows_connect_open-webui.py",), has_common_pins=False, is_complete=True
    ),
    Environment(
        "openai-node-6", "node", ("rows_openai.mjs", "rows_openai_llm.mjs", "rows_connect_openai-node.mjs")
    ),
    Environment(
        "openai-node-7", "node", ("rows_openai.mjs", "rows_openai_llm.mjs", "rows_connect_openai-node.mjs")
    ),
    Environment("langchain-node", "node", ("rows_langchain.mjs",)),
    Environment("sillytavern", "node", ("rows_connect_sillytavern.mjs",)),
    Environment("continue", "node", ("rows_connect_continue.mjs",)),
    Environment("claude-code", "node", ("rows_connect_claude-code.mjs",)),
    Environment("ai-sdk-6", "node", ("rows_ai_compatible.mjs", "rows_ai_openai.mjs")),
    Environment("ai-sdk-7", "node", ("rows_ai_compatible.mjs", "rows_ai_openai.mjs")),
)


def missing_programs(environment: Environment) -> list[str]:
    """The programs that it requires and that are not installed on this machine."""
    return [name for name in REQUIRED_PROGRAMS[environment.kind] if shutil.which(name) is None]


def install(environment: Environment) -> None:
    """Install the environment, unless it already matches its pins. Raises CalledProcessError if the packages cannot be
    installed."""
    fingerprint, stamp = _fingerprint(environment), environment.folder / "installed"
    if environment.kind == "own" or (stamp.exists() and stamp.read_text() == fingerprint):
        return
    print(f"installing {environment.name}", flush=True)
    shutil.rmtree(environment.folder, ignore_errors=True)
    environment.folder.mkdir(parents=True)
    _INSTALL[environment.kind](environment)
    stamp.write_text(fingerprint)


def _fingerprint(environment: Environment) -> str:
    """The interpreter's version and the pins; when it changes, the environment is installed again."""
    version = _node_version() if environment.kind == "node" else sys.version.split()[0]
    return "".join([version, "\n", *(path.read_text("utf-8") for path in environment.pins)])


def _node_version() -> str:
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _install_python(environment: Environment) -> None:
    subprocess.run([sys.executable, "-m", "venv", environment.folder], check=True)
    files = [argument for path in environment.pins for argument in ("-r", str(path))]
    quiet = ["-qq", "--disable-pip-version-check", *["--no-deps"] * environment.is_complete]
    subprocess.run([environment.python, "-m", "pip", "install", *quiet, *files], check=True)


def _install_node(environment: Environment) -> None:
    shutil.copy(environment.pins[0], environment.folder / "package.json")
    # None of these packages needs an install script. A lock file would contain the URL of the registry that was used.
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
    subprocess.run(["npm", "install", *quiet], cwd=environment.folder, check=True)


_INSTALL: Mapping[Kind, Callable[[Environment], None]] = {"python": _install_python, "node": _install_node}


@dataclass(frozen=True)
class Command:
    """A command line and its working directory."""

    argv: tuple[str, ...]
    folder: Path


def row_command(environment: Environment, junit: Path) -> Command:
    """The command that runs all rows of `environment` and writes the JUnit file `junit`."""
    return (_node_command if environment.kind == "node" else _python_command)(environment, junit)


def _python_command(environment: Environment, junit: Path) -> Command:
    # It runs in the rows' folder, so that a client does not import the project's modules instead of its own.
    folder = HERE / "python"
    options = ["-c", str(HERE / "rows.ini"), f"--rootdir={folder}", f"--confcutdir={folder}", "-q"]
    argv = [str(environment.python), "-m", "pytest", *options, f"--junitxml={junit}", *environment.rows]
    return Command(tuple(argv), folder)


def _node_command(environment: Environment, junit: Path) -> Command:
    # Node searches for packages in the folders above the importing file, so the rows are copied there.
    rows = environment.folder / "rows"
    shutil.rmtree(rows, ignore_errors=True)
    shutil.copytree(HERE / "node", rows)
    reporters = {"spec": "stdout", "junit": str(junit)}
    options = [
        option
        for name, destination in reporters.items()
        for option in (f"--test-reporter={name}", f"--test-reporter-destination={destination}")
    ]
    files = [f"rows/{name}" for name in environment.rows]
    limits = ("--test-concurrency=1", "--test-timeout=1500000")
    return Command(("node", "--test", *limits, *options, *files), environment.folder)
