"""Nodes learned from a user's engine: custom nodes may describe themselves in any way, and a file may be damaged."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from compiler import load_catalogue
from compiler.catalogue_checks import choices_of
from compiler.catalogue_file import parse_learned
from compiler.node_records import add_learned, node_record, record_faults, without_files
from compiler.signatures import parse_object_info, parse_signatures
from dynamic_inputs import AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE
from errors import CatalogueInvalid
from tests.compiler.catalogues import SOURCES

Json = Any


def learned(*object_infos: dict[str, Any]) -> dict[str, Any]:
    """What snapshots of these engines, each of a newer version, keep."""
    return {
        "versions": {
            f"0.{number}.0": {name: without_files(node_record(entry)) for name, entry in entries.items()}
            for number, entries in enumerate(object_infos, 90)
        }
    }


def node(**inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": ["IMAGE"], "output_node": False}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[["a", 1], ["b", 2]]], [[["a", 1], ["c", 3]]]),
        ([[{"name": "a"}, "b"]], [[{"name": "a"}, {"name": "c"}]]),
        (["COMBO", {"options": [[1, 2], "x"]}], [[[1, 2], "y"]]),
        ([["a"]], ["COMBO", {"options": None}]),
        (["INT", {"min": None, "max": 5}], ["INT", {"min": 0, "max": None}]),
        (["FLOAT", {"min": "0", "max": 5}], ["FLOAT", {"min": 0.5, "max": [1]}]),
        (["INT", {"min": False}], ["INT", {"min": 3}]),
        (["INT", None], ["INT", {"default": {"a": 1}}]),
        ([["a", ["b"]]], [DYNAMIC_COMBO, {"options": [{"key": "a", "inputs": {}}]}]),
        ([DYNAMIC_COMBO, {"options": [{"key": ["a"], "inputs": {}}]}], [["a"]]),
    ],
)
def test_choices_and_limits_of_any_form_are_learned_from_several_versions(first: Json, second: Json) -> None:
    document = learned({"Custom": node(value=first)}, {"Custom": node(value=second)})
    sources = replace(SOURCES, learned_nodes=json.dumps(document))
    catalogue = load_catalogue(sources)
    assert catalogue.undrawable == {}
    signature = catalogue.signatures["Custom"].inputs["value"]
    assert signature.minimum in (None, 0)
    choices_of("Custom.value", catalogue.signatures)


def test_choices_that_are_lists_or_objects_are_kept_and_marked_with_their_versions() -> None:
    document = learned({"A": node(x=[[["a", 1], {"b": 2}]])}, {"A": node(x=[[["a", 1], "c"]])})
    merged = add_learned({"versions": [], "nodes": {}}, document)["nodes"]["A"]["inputs"]["x"]
    assert merged["choices"] == [["a", 1], {"b": 2}, "c"]
    assert set(merged["choices_in"].values().__iter__().__next__()) == {"0.90.0"}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"input": None, "output": None},
        {"input": [], "output": 5, "output_node": "yes"},
        {"input": {"required": ["a"], "optional": 3}, "output": "IMAGE"},
        {"input": {"required": {"x": None, "y": [], "z": "INT", "w": [7]}}, "output": [["a"], None]},
        {"input": {"required": {"x": [AUTOGROW, {"template": {"names": 5}}]}}, "output_matchtypes": {"a": 1}},
    ],
)
def test_a_node_described_in_any_way_has_a_record_without_faults(entry: Json) -> None:
    record = without_files(node_record(entry))
    assert list(record_faults("A", record)) == []
    parse_object_info({"A": entry})


def _random_value(rng: random.Random, depth: int = 0) -> Json:
    plain = [None, True, 0, -3, 1.5, "a", "model.safetensors", "INT", "COMBO", "*", "A,B", "", [], {}]
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(plain)
    if rng.random() < 0.5:
        return [_random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ["default", "min", "max", "step", "options", "key", "inputs", "template", "names", "prefix", "input",
            "template_id", "allowed_types", "required", "optional", "image_upload", "multiselect", "a"]  # fmt: skip
    return {rng.choice(keys): _random_value(rng, depth + 1) for _ in range(rng.randrange(5))}


def _random_input(rng: random.Random) -> Json:
    kind = rng.choice(
        ["INT", "FLOAT", "STRING", "COMBO", "IMAGE", DYNAMIC_COMBO, AUTOGROW, MATCH_TYPE, ["a", "b"]]
    )
    config: Json = _random_value(rng)
    if kind == DYNAMIC_COMBO and rng.random() < 0.7:
        inputs = {"required": {"x": _random_input(rng)}}
        config = {"options": [{"key": rng.choice(["a", "b", 1, None]), "inputs": inputs}]}
    elif kind == AUTOGROW and rng.random() < 0.7:
        template = {
            "input": {"required": {"x": _random_input(rng)}},
            "names": ["a", "b"],
            "min": rng.choice([0, 1, None]),
        }
        config = {"template": template}
    elif kind == MATCH_TYPE and rng.random() < 0.7:
        config = {"template": {"template_id": "t", "allowed_types": rng.choice(["*", "A,B", None, ["A"]])}}
    elif isinstance(kind, list) or rng.random() < 0.5:
        kind = _random_value(rng) if rng.random() < 0.5 else kind
    return [kind, config] if rng.random() < 0.9 else _random_value(rng)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_engines_answer_is_learned_and_loaded_without_a_traceback(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        versions = [
            {name: {**node(x=_random_input(rng), y=_random_input(rng)), "output": _random_value(rng),
                    "output_matchtypes": _random_value(rng)} for name in "AB"}
            for _ in range(3)
        ]  # fmt: skip
        document = learned(*versions)
        assert parse_learned(json.dumps(document)) == document
        merged = add_learned({"versions": [], "nodes": {}}, document)
        signatures = parse_signatures(merged)
        for name in ("A.x", "A.y"):
            choices_of(name, signatures)


VALID = learned(
    {
        "A": {
            **node(
                a=[["a"]],
                b=["INT", {"min": 0}],
                c=[DYNAMIC_COMBO, {"options": [{"key": "k", "inputs": {"required": {"x": ["INT"]}}}]}],
                d=[AUTOGROW, {"template": {"input": {"required": {"x": ["IMAGE"]}}, "names": ["p", "q"]}}],
                e=[MATCH_TYPE, {"template": {"template_id": "t", "allowed_types": "A,B"}}],
            ),
            "output_matchtypes": ["t"],
        }
    }
)


def _damages(value: Json, junk: Json) -> Any:
    """Copies of `value` with each part of it replaced by `junk` in turn."""
    yield junk
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        for damaged in _damages(inner, junk):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = damaged
            yield copy


@pytest.mark.parametrize("junk", [None, 7, "x", [], {}, [None], {"a": None}, [["x"]], True])
def test_a_damaged_file_is_reported_as_damaged_or_still_readable(junk: Json) -> None:
    refused = 0
    for damaged in _damages(VALID, junk):
        text = json.dumps(damaged)
        try:
            document = parse_learned(text)
        except CatalogueInvalid as error:
            refused += "is damaged" in error.message
        else:
            parse_signatures(add_learned(json.loads(SOURCES.nodes), document))
    assert refused


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "nan", '"x"', '{"versions": ' + '{"a":' * 2000 + "1" + "}" * 2001]
)
def test_a_file_that_is_no_json_of_that_form_is_damaged(text: str) -> None:
    with pytest.raises(CatalogueInvalid, match="is damaged"):
        parse_learned(text)
