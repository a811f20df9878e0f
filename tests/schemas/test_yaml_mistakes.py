"""Mistakes of people who write YAML by hand: each is answered with the line to correct and what to write."""

from __future__ import annotations

import pytest

from schemas import read_yaml

TEXT = """models:
  mine:
    title: Mine
    sizes: [1, 2]
    file: {name: a, folder: b}
    note: x
"""


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("    title", "\ttitle", "3: the line is indented with a tab; write spaces"),
        ("  mine:", "  mine", "2: a colon is missing at the end of the line"),
        ("title: Mine", "title:Mine", "3: a space is missing after `title:`"),
        ("title: Mine", "title: Mine: two", "3: a text with a colon and a space must be in quotes"),
        ("title: Mine", "title: @mine", "3: a text that begins with @ must be in quotes"),
        ("title: Mine", "title: `mine`", "3: a text that begins with ` must be in quotes"),
        ("title: Mine", "title: *mine", "3: a text that begins with * must be in quotes"),
        ("title: Mine", "title: {{ mine }}", "3: {{ }} and {% %} belong into templates"),
        ("title: Mine", 'title: "Mine', "3: the quote that begins here is not closed"),
        ("[1, 2]", "[1, 2", "4: the `[` that begins here is not closed"),
        ("{name: a, folder: b}", "{name: a, folder: b", "5: the `{` that begins here is not closed"),
        ("{name: a, folder: b}", "{name: a folder: b}", "5: the `{` that begins here is not closed: a comma is missing"),
        ("    note", "     note", "6: the line is indented"),
        ("    note", "   note", "6: the line is indented by another number of spaces"),
        ("    note: x\n", "    note: x\n---\na: b\n", "7: a file is one document"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_its_line_and_the_remedy(right: str, wrong: str, expected: str) -> None:
    assert read_yaml(TEXT)["models"]["mine"]["note"] == "x"
    with pytest.raises(ValueError) as caught:
        read_yaml(TEXT.replace(right, wrong))
    assert str(caught.value).startswith(expected)


def test_a_quote_that_is_closed_lines_later_is_reported_where_it_begins() -> None:
    with pytest.raises(ValueError, match=r"3: a quote in this line is not closed"):
        read_yaml(TEXT.replace("title: Mine", 'title: "Mine').replace("note: x", 'note: "x"'))
