"""YAML that people write: what is refused, with the line and the text that mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from schemas import line_of, lines_of, read_yaml
from schemas.yaml_document import _PlainReader, _read_nodes
from tests.conftest import ROOT

KEYS = [
    ("1", '"1"'),
    ("1.5", '"1.5"'),
    ("2.", '"2."'),
    ("0o17", None),
    ("0x1F", '"0x1F"'),
    ("1_000", '"1_000"'),
    ("12:30", '"12:30"'),
    ("yes", '"yes"'),
    ("No", '"No"'),
    ("on", '"on"'),
    ("true", '"true"'),
    ("2024-01-31", '"2024-01-31"'),
    ("2024-01-31 10:00:00", '"2024-01-31 10:00:00"'),
    ("~", "in quotes"),
    ("null", "in quotes"),
    (".inf", '".inf"'),
    (".nan", '".nan"'),
    ("!!int '3'", '"3"'),
    ('"1.5"', None),
    ("'yes'", None),
    ("v1.5", None),
    ("!!str 1.5", None),
]


@pytest.mark.parametrize(
    ("frame", "line"),
    [("# comment\n{key}: 1\n", 2), ("a:\n  b:\n  - c: 1\n    {key}: 1\n", 4), ("a:\n {{{key}: 1}}\n", 2)],
)
@pytest.mark.parametrize(("key", "remedy"), KEYS)
def test_a_key_that_is_not_text_is_refused_wherever_it_is_with_line_and_remedy(
    frame: str, line: int, key: str, remedy: str | None
) -> None:
    text = frame.format(key=key)
    if remedy is None:
        read_yaml(text)
        return
    with pytest.raises(ValueError) as caught:
        read_yaml(text)
    assert str(caught.value).startswith(f"{line}: ")
    assert remedy in str(caught.value)


@pytest.mark.parametrize("frame", ["# comment\na: {value}\n", "a:\n- {value}\n", "a:\n  {{b: {value}}}\n"])
@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("13:59", "the number 839"),
        ("1:02:03", "the number 3723"),
        ("-1:30", "the number -90"),
        ("1:30.5", "the number 90.5"),
        ("010", "the number 8"),
        ("-017", "the number -15"),
        ("0x1F", "the number 31"),
        ("0b11", "the number 3"),
        ("1_0", "the number 10"),
        ("2024-01-31", "a date"),
        ("2024-13-45", "a date"),
    ],
)
def test_a_text_that_yaml_reads_as_another_number_or_a_date_is_refused_with_line_and_remedy(
    frame: str, value: str, meaning: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read_yaml(frame.format(value=value))
    assert str(caught.value).startswith(f'2: YAML reads {value} as {meaning}; write it in quotes: "{value}"')


@pytest.mark.parametrize(
    ("text", "value"),
    [("9", 9), ("-3", -3), ("+4", 4), ("0", 0), ("1_048_576", 1048576), ("1.5", 1.5), ('"13:59"', "13:59"), ("09", "09"), ("a:b", "a:b")],
)  # fmt: skip
def test_numbers_and_texts_that_have_one_meaning_are_read_as_such(text: str, value: object) -> None:
    assert read_yaml(f"a: {text}") == {"a": value}


@pytest.mark.parametrize(
    "text", ["9" * 5000, "!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x"]
)
def test_a_value_that_cannot_be_read_is_an_error_with_a_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^1: "):
        read_yaml(f"a: {text}")


@pytest.mark.parametrize("key", ["? [a]", "? {a: 1}"])
def test_a_key_that_is_a_list_or_a_mapping_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="2: a list or a mapping cannot be a key"):
        read_yaml(f"# comment\n{key}\n: 1\n")


def test_a_merge_key_is_allowed() -> None:
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")["b"] == {"x": 1, "y": 2}


def test_every_yaml_file_of_the_project_has_only_text_keys() -> None:
    for path in (ROOT / "catalogue.yaml", ROOT / "easel.example.yaml", *(ROOT / "schemas").glob("*.yaml")):
        read_yaml(path.read_text("utf-8"))


SECTIONS = "a:\n  x: 1\nb: {y: 2}\n# appended\na:\n  z: 3\n"


def test_sections_may_be_repeated_where_that_is_allowed() -> None:
    assert read_yaml(SECTIONS, repeated_sections=True) == {"a": {"x": 1, "z": 3}, "b": {"y": 2}}
    assert line_of(SECTIONS, ["a", "z"]) == 6
    with pytest.raises(ValueError, match="5: the key 'a' is given twice"):
        read_yaml(SECTIONS)


@pytest.mark.parametrize(
    ("text", "line"), [("a: {x: 1}\na: {x: 2}\n", 2), ("a: 1\na: 2\n", 2), ("a: {x: 1}\na: [x]\n", 2), ("a: 1\na: {x: 1}\n", 2)]
)  # fmt: skip
def test_an_entry_given_twice_in_repeated_sections_is_refused(text: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"{line}: the key '[ax]' is given twice"):
        read_yaml(text, repeated_sections=True)


def test_the_lines_of_many_places_are_found_with_one_look_at_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []
    compose = yaml.compose

    def counted(text: str, **options: Any) -> Any:
        texts.append(text)
        return compose(text, **options)

    monkeypatch.setattr(yaml, "compose", counted)
    assert lines_of(SECTIONS, [["a", "z"], ["b"], [], ["b", "gone"]]) == [6, 3, 1, 3]
    assert len(texts) == 1


# --- the fast reader ---------------------------------------------------------------------------------


def outcome(read: Callable[[], Any]) -> str:
    """The value with its types, or what is wrong."""
    try:
        return repr(read())
    except ValueError as error:
        return f"refused: {error}"


SCALARS = (
    *(
        "a",
        "b c",
        "1",
        "-7",
        "1.5",
        "1e3",
        "010",
        "13:59",
        "1_000",
        "yes",
        "No",
        "null",
        "~",
        "",
        "=",
        ".nan",
    ),
    *(
        '"1"',
        "'yes'",
        '"a\\nb"',
        "!!str 1",
        "!!int '3'",
        "2024-01-31",
        "&x 1",
        "*x",
        "*y",
        "ä",
        "|\n    text\n",
    ),
)
KEY_TEXTS = ("a", "b", "c d", '"1"', "1", "<<", '"<<"', "yes", "ä", "&k e", "*x", "? f\n", "=")


def random_document(random: Random, indent: int = 0) -> str:
    """Mostly valid YAML with what people write, and what they should not."""
    pad = " " * indent
    kind = random.random()
    if indent > 6 or kind < 0.35:
        return f" {random.choice(SCALARS)}\n"
    anchor = random.choice(("", "", "", " &x", " &y", " !!map", " !!omap"))
    if kind < 0.45:
        inner = ", ".join(random.choice(SCALARS[:20]) for _ in range(random.randrange(4)))
        return f"{anchor} [{inner}]\n"
    if kind < 0.55:
        return f"{anchor} {{a: {random.choice(SCALARS[:20])}, <<: *x}}\n"
    if kind < 0.7:
        items = (random_document(random, indent + 2) for _ in range(random.randrange(1, 4)))
        return f"{anchor}\n" + "".join(f"{pad}-{item}" for item in items)
    entries = (
        (random.choice(KEY_TEXTS), random_document(random, indent + 2)) for _ in range(random.randrange(1, 5))
    )
    return f"{anchor}\n" + "".join(f"{pad}{key}:{value}" for key, value in entries)


@pytest.mark.parametrize("seed", range(5))
def test_random_documents_are_read_as_by_the_tree_of_nodes(seed: int) -> None:
    random, fast = Random(seed), 0
    for _ in range(600):
        text = random_document(random)
        expected = outcome(lambda text=text: _read_nodes(text, False))
        assert outcome(lambda text=text: read_yaml(text)) == expected, text
        try:
            value = _PlainReader(text).read()
        except Exception:
            continue
        fast += 1
        assert repr(value) == expected, text
    assert fast > 50


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.yaml")) + sorted(ROOT.glob("*/*.yaml")), ids=lambda path: path.name
)
def test_the_projects_own_documents_are_read_fast(path: Path) -> None:
    text = path.read_text("utf-8") + "\nan_end: 1\n"
    assert repr(_PlainReader(text).read()) == repr(_read_nodes(text, False))


def test_equal_texts_are_one_object() -> None:
    first, second = read_yaml("- {name: some text}\n- {name: 'some text'}\n")
    assert first["name"] is second["name"]


def test_merged_mappings_are_read_fast() -> None:
    text = "x: &x {a: 1, b: 2}\ny:\n  b: 3\n  <<: *x\n  c: 4\n"
    assert repr(_PlainReader(text).read()) == repr(_read_nodes(text, False))
    assert list(read_yaml(text)["y"].items()) == [("a", 1), ("b", 3), ("c", 4)]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? - "])
def test_a_document_that_is_nested_too_deeply_is_refused_with_its_line(opening: str) -> None:
    with pytest.raises(ValueError, match=r"^2: lists and mappings are nested deeper than 100 levels"):
        read_yaml("# a comment\n" + opening * 100_000)
