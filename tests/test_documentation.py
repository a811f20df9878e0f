"""The documentation is formatted and points at things that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "arbiter/README.md", ROOT / "engines/README.md"]
)
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines outside code blocks and tables, with their numbers."""
    is_code = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    too_long = [number for number, line in prose(page.read_text("utf-8")) if len(line) > 120]
    assert too_long == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_sentence_of_a_page_is_there_twice(page: Path) -> None:
    """As after a merge that kept both sides."""
    text = " ".join(line for _, line in prose(page.read_text("utf-8")))
    sentences = [each[:60] for each in re.split(r"(?<=[.:])\s+", text) if len(each) > 60]
    assert {each for each in sentences if sentences.count(each) > 1} == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_between_pages_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_files_that_the_architecture_page_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    named = set(re.findall(r"(?<![\w/.-])((?:[a-z_]+/)+(?:[\w.-]+)?|[a-z_]+\.(?:py|yaml|md))(?![\w/])", text))
    state_files = set(
        re.findall(
            r"`((?:gpu/)?[\w.-]+/?)`", text[text.index("| File |") : text.index("The sketch engine is")]
        )
    )
    missing = {
        name
        for name in named - state_files
        if not (ROOT / name).exists() and not (ROOT / "docs" / name).exists()
    }
    assert {name for name in missing if not name.startswith(("v1/", "gpu/", "images/"))} == set()


@pytest.mark.parametrize("page", DECISIONS, ids=[page.name for page in DECISIONS])
def test_a_decision_has_a_number_a_date_and_a_status(page: Path) -> None:
    title, _, status, *_ = page.read_text("utf-8").split("\n")
    assert title.startswith(f"# {page.name[:4]} ")
    assert re.match(
        r"Date: 20\d\d-\d\d-\d\d(, extended 20\d\d-\d\d-\d\d)?\. Status: (accepted|superseded by)\b", status
    )
