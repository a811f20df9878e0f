"""Reads a Dockerfile, as far as this project's uses the language, and carries out its steps in root filesystems."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One instruction; `text` is the rest of its line, continuation lines joined."""

    name: str
    text: str


@dataclass
class Stage:
    """What lies between two FROM lines."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, name: str) -> str:
        """The text of the last instruction of that name. Raises IndexError."""
        return [step.text for step in self.steps if step.name == name][-1]

    def environment(self) -> dict[str, str]:
        """All of ENV."""
        pairs = [pair for step in self.steps if step.name == "ENV" for pair in shlex.split(step.text)]
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def read(path: Path) -> list[Stage]:
    """The stages of the file, in order. Raises ValueError for an instruction that is not known here."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name not in KNOWN:
            raise ValueError(f"{path.name}: {name} is not known")
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages.append(Stage(base, stage))
        else:
            stages[-1].steps.append(Step(name, re.sub(r"\s+", " ", rest.strip())))
    return stages


METADATA = {"USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD", "ENV"}
KNOWN = {"FROM", "RUN", "COPY", "ARG", *METADATA}


def exec_form(text: str) -> list[str]:
    """The words of CMD and ENTRYPOINT. Raises ValueError if a shell would run it."""
    words = json.loads(text)
    if not isinstance(words, list):
        raise ValueError("not the exec form")
    return words


def build(
    stages: list[Stage],
    context: Path,
    folder: Path,
    make_base: Callable[[str, Path], None],
    run: Callable[[Path, list[str], dict[str, str]], None],
) -> Path:
    """The root filesystem of the last stage. `context` holds what .dockerignore lets through, `make_base` puts an image
    into a folder, and `run` runs a command in one."""
    roots: dict[str, Path] = {}
    root = folder
    for number, stage in enumerate(stages):
        root = folder / (stage.name or str(number))
        roots[stage.name] = root
        make_base(stage.base, root)
        arguments: dict[str, str] = {}
        for step in stage.steps:
            match step.name:
                case "RUN":
                    run(root, ["/bin/sh", "-c", step.text], arguments)
                case "ARG":
                    name, _, value = step.text.partition("=")
                    arguments[name] = value
                case "COPY":
                    _copy(step.text, root, context, roots)
    return root


def _copy(text: str, root: Path, context: Path, roots: dict[str, Path]) -> None:
    words = shlex.split(text)
    source_root = context
    if words[0].startswith("--from="):
        source_root = roots[words.pop(0).partition("=")[2]]
    *sources, target = words
    destination = root / target.lstrip("/")
    for source in sources:
        path = source_root / source.lstrip("/")
        if path.is_dir():
            # The content of a folder is copied, not the folder.
            destination.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", f"{path}/.", destination], check=True)
        else:
            destination.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, destination)


def copy_context(project: Path, target: Path) -> None:
    """What .dockerignore lets through, which here excludes all but a list of names."""
    lines = [
        line
        for line in (project / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    if lines[0] != "*":
        raise ValueError(".dockerignore does not begin by excluding everything")
    target.mkdir()
    ignored = shutil.ignore_patterns(*(line.removeprefix("**/") for line in lines if line.startswith("**/")))
    for name in (line[1:] for line in lines if line.startswith("!")):
        if (project / name).is_dir():
            shutil.copytree(project / name, target / name, ignore=ignored)
        else:
            shutil.copy(project / name, target / name)
