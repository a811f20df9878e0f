"""The fast check of a document says yes only where jsonschema finds nothing."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas import is_valid, read_yaml
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "schemas/catalogue.schema.json").read_text())
CATALOGUE = read_yaml((ROOT / "tests/small_catalogue/catalogue.yaml").read_text(), repeated_sections=True)
SHIPPED = read_yaml((ROOT / "catalogue.yaml").read_text(), repeated_sections=True)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1.0,
        1.5,
        2**70,
        "",
        "a",
        "x\n",
        "\u0000",
        "512x512",
        "512x512\n",
        "٣x512",
        "https://a",
    ),
    *(
        "../a",
        "a/../b",
        "C:\\\\a",
        "a\u2028b",
        "generate",
        [],
        ["a"],
        ["a", "a"],
        [1, True],
        [1, 1.0],
        {},
        {"a": 1},
    ),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in ((value, key), *places(child))]


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_jsonschema_about_changed_catalogues(seed: int) -> None:
    random, validator, valid = Random(seed), Draft202012Validator(SCHEMA), 0
    assert is_valid(SCHEMA, CATALOGUE)
    assert is_valid(SCHEMA, SHIPPED)
    for _ in range(150):
        document = copy.deepcopy(CATALOGUE)
        container, key = random.choice(places(document))
        match random.randrange(3):
            case 0:
                container[key] = random.choice(VALUES)
            case 1:
                del container[key]
            case 2 if isinstance(container, dict):
                container[random.choice(("x", "title", "name", "a.b", "Steps", "steps\n", "size", ""))] = (
                    random.choice(VALUES)
                )
        is_valid_slowly = not list(validator.iter_errors(document))
        assert is_valid(SCHEMA, document) <= is_valid_slowly, (container, key)
        valid += is_valid(SCHEMA, document)
    assert 10 < valid < 140


def test_what_it_cannot_decide_is_left_to_jsonschema() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert not is_valid(SCHEMA, {"default_model": endless})
    assert not is_valid({"type": "object"}, {1: "a"})
    assert not is_valid({"pattern": "("}, "a")
