"""Filling the placeholders of a driver's calls, and reading fields, entries, metrics and events from responses."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_tenant import Resident
from llm.responses import MISSING, WrongShape, entries_at, event_objects, field_at, meets, prometheus_sum
from llm.templates import fill_json, fill_path, fill_text

MODEL = Resident("stack", "org/a b?&", {"n": 4096, "on": True, "deep": {"x": [1]}})


def test_a_text_that_is_only_a_placeholder_keeps_the_json_type_of_the_value() -> None:
    template = {"id": "{id}", "n": "{saved.n}", "on": "{saved.on}", "x": ["{saved.deep.x}", 1, None]}
    assert fill_json(template, MODEL) == {"id": "org/a b?&", "n": 4096, "on": True, "x": [[1], 1, None]}


def test_members_without_a_saved_value_are_omitted() -> None:
    assert fill_json({"a": "{saved.no}", "b": ["{saved.no}"], "c": "n={saved.n}"}, MODEL) == {
        "b": [],
        "c": "n=4096",
    }
    assert fill_json("{saved.no}", MODEL) is MISSING
    assert fill_json({"a": "{id}"}, None) == {}


def test_values_in_a_path_are_escaped() -> None:
    assert fill_path("/m/{id}?n={saved.n}", MODEL) == "/m/org%2Fa%20b%3F%26?n=4096"


def test_other_braces_are_left_alone() -> None:
    assert fill_text("{{.State.Running}} {id} {saved}", MODEL) == "{{.State.Running}} org/a b?& {saved}"


def test_placeholders_in_values_are_not_filled() -> None:
    hostile = Resident("stack", "{saved.n}", {"n": "{id}"})
    assert fill_text("{id}/{saved.n}", hostile) == "{saved.n}/{id}"


@pytest.mark.parametrize(
    ("path", "value"),
    [("", {"a": {"b": 0}}), ("a.b", 0), ("a", {"b": 0}), ("a.c", MISSING), ("a.b.c", MISSING)],
)
def test_a_field_is_found_by_its_path(path: str, value: Any) -> None:
    assert field_at({"a": {"b": 0}}, path) == value


def test_entries_of_nested_lists_come_with_their_parents() -> None:
    body = {"m": [{"k": 1, "in": [{"id": "a"}, {"id": "b"}]}, {"k": 2, "in": []}]}
    assert [(parent["k"], entry["id"]) for parent, entry in entries_at(body, "m[].in")] == [
        (1, "a"),
        (1, "b"),
    ]
    with pytest.raises(WrongShape, match="`in`"):
        entries_at({"m": [{}]}, "m[].in")


def test_true_does_not_equal_one() -> None:
    assert meets({"a": True}, {"a": [True]})
    assert not meets({"a": True}, {"a": [1]})
    assert not meets({"a": 0}, {"a": [False]})
    assert not meets({}, {"a": [None]})


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("x 1\ny 2\n", 3),
        ('x{l="a b"} 1.0\nx{l="c}"} 2 1700000000000\n', 3),
        ("# x 5\nx_total 7\nxx 3\n", None),
        ("x NaN\ny 1e1\n", 10),
        ("x\nx{\ny {\n", None),
        ("", None),
    ],
)
def test_metrics_are_summed_by_their_full_names(text: str, total: float | None) -> None:
    assert prometheus_sum(text, ("x", "y")) == total


def test_events_are_read_and_other_lines_are_ignored() -> None:
    stream = b': hello\r\ndata: {"a": 1}\r\n\r\ndata: [DONE]\n\nevent: x\ndata:{"b": 2}\n'
    assert event_objects(stream) == [{"a": 1}, {"b": 2}]
