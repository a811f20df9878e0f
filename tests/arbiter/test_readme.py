"""arbiter/README.md describes the code as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from arbiter.values import Phase

ARBITER = Path(__file__).parents[2] / "arbiter"
README = (ARBITER / "README.md").read_text("utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_readme_describes_the_phases_in_order() -> None:
    phases = re.findall(r"^- `(\w+)`", section("The phases of a switch"), re.MULTILINE)
    assert phases == list(get_args(Phase))


def test_the_readme_numbers_the_decisions_as_the_policy_does() -> None:
    described = re.findall(r"^(\d+)\. ", section("Which switch starts next"), re.MULTILINE)
    code = re.findall(r"^    # (\d+)\. ", (ARBITER / "policy.py").read_text("utf-8"), re.MULTILINE)
    assert described == code == [str(number) for number in range(1, len(code) + 1)]
