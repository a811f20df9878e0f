"""The page of the comparison is made from the committed numbers, and says what could not be measured."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.comparison.cells import measured
from bench.comparison.page import DATA, PAGE, PROGRAMS, render
from bench.comparison.programs import BROKER, PROXY, Program, free_port

DOCUMENT: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
ROWS = ("install", "start", "overhead", "kill", "term", "idempotency", "cancel", "unknown", "chat")
STATUSES = {"measured", "not measured", "not its aim"}


def test_the_page_is_what_the_numbers_make() -> None:
    assert render(DOCUMENT) == PAGE.read_text("utf-8")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("row", ROWS)
def test_each_cell_has_what_was_measured_or_says_why_nothing_was(row: str, program: str) -> None:
    cell = DOCUMENT["cells"][program][row]
    assert cell["status"] in STATUSES
    assert cell["values"] if cell["status"] == "measured" else cell["why"]


def test_the_versions_are_those_that_are_installed_and_named() -> None:
    page = " ".join(PAGE.read_text("utf-8").split())
    for requirement in (PROXY, BROKER):
        name, version = requirement.split("==")
        assert DOCUMENT["versions"][name] == version
        assert f"{name} {version} (Python 3." in page
    assert re.search(r"Measured on \d{4}-\d\d-\d\d:", page)


def test_a_number_that_changes_changes_the_page() -> None:
    changed = copy.deepcopy(DOCUMENT)
    changed["cells"]["easel"]["overhead"]["values"]["through_64_s"] += 1
    assert render(changed) != render(DOCUMENT)


def test_another_outcome_is_not_told_as_the_present_one() -> None:
    changed = copy.deepcopy(DOCUMENT)
    changed["cells"]["comfy-api-proxy"]["idempotency"]["values"]["statuses"] = [201, 200]
    changed["cells"]["gpu-broker"]["idempotency"]["values"]["jobs"] = 1
    changed["cells"]["gpu-broker"]["cancel"]["values"]["statuses"] = [200, 200]
    changed["cells"]["comfy-api-proxy"]["unknown"]["values"]["node_input_status"] = 400
    page = render(changed)
    for claim in ("gets no job or picture", "makes no difference", "no route for it", "left to the engine"):
        assert claim in render(DOCUMENT)
        assert claim not in page


def test_a_program_that_never_serves_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.comparison.programs._START_TIMEOUT_S", 0.3)
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = Program(command, url, "/health", tmp_path / "log")
    with pytest.raises(RuntimeError, match="did not start"):
        program.start()
    assert program._process.poll() is not None


def test_what_could_not_be_measured_is_shown_with_its_reason() -> None:
    changed = copy.deepcopy(DOCUMENT)

    def fail() -> dict[str, Any]:
        raise RuntimeError("no answer | at all")

    changed["cells"]["easel"]["kill"] = measured(fail)
    assert "| not measured: RuntimeError: no answer \\| at all |" in render(changed)
