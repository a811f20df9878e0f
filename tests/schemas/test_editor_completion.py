"""What an editor with the YAML language server shows for the catalogue: descriptions of every key, and the schema's place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from compiler.own_files import own_schema
from schemas.modeline import modeline
from tests.conftest import ROOT

SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas/catalogue.schema.json").read_text("utf-8"))
OWN: dict[str, Any] = json.loads((ROOT / "schemas/own_catalogue.schema.json").read_text("utf-8"))
CATALOGUE = (ROOT / "catalogue.yaml").read_text("utf-8")
PREFIX = "# yaml-language-server: $schema="


def keys(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that a schema names, with its own schema."""
    for name, value in schema.items() if isinstance(schema, dict) else ():
        if name == "properties":
            for key, rule in value.items():
                yield f"{path}.{key}", rule
        if name not in ("examples", "enum", "default", "if", "then"):
            yield from keys(value, f"{path}.{name}")
    for index, value in enumerate(schema if isinstance(schema, list) else ()):
        yield from keys(value, f"{path}.{index}")


@pytest.mark.parametrize(("path", "rule"), [*keys(SCHEMA), *keys(OWN)], ids=lambda value: str(value)[:80])
def test_every_key_has_a_description_for_completion(path: str, rule: dict[str, Any]) -> None:
    description = rule.get("description", "")
    assert description, path
    assert not description.startswith("it must"), "this is the text of an error message"


def own_validator() -> Draft202012Validator:
    folder = "https://example.org/schemas/"
    resources = [
        (f"{folder}catalogue.schema.json", Resource.from_contents(SCHEMA)),
        (f"{folder}own_catalogue.schema.json", Resource.from_contents(OWN)),
    ]
    registry: Registry[Any] = Registry().with_resources(resources)  # type: ignore[arg-type]
    return Draft202012Validator({"$ref": f"{folder}own_catalogue.schema.json"}, registry=registry)


def without_default(**sections: Any) -> dict[str, Any]:
    document = yaml.safe_load(CATALOGUE)
    document.pop("default_model")
    document.pop("stages")
    return {**document, **sections}


@pytest.mark.parametrize(
    "document",
    [
        {},
        without_default(),
        {"models": without_default()["models"]},
        {"models": {}, "workflows": {}, "loras": {}, "nodes": {}},
        {"default_model": "x"},
        {"stages": yaml.safe_load(CATALOGUE)["stages"]},
        {"model": {}},
        {"models": {"a b": without_default()["models"]["sdxl-turbo"]}},
        {"models": {"a": {}}},
        {"workflows": {"A": without_default()["workflows"]["sd15_simple"]}},
        {"nodes": {"": {"more_inputs": True}}},
        {"nodes": {"A": {"more_inputs": 5}}},
        [],
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_published_schema_of_the_owners_files_allows_what_easel_reads(document: Any) -> None:
    assert own_validator().is_valid(document) == Draft202012Validator(own_schema(SCHEMA)).is_valid(document)


def test_the_catalogue_begins_with_a_line_that_leads_to_its_schema() -> None:
    first = CATALOGUE.splitlines()[0]
    assert first.startswith(PREFIX)
    assert (ROOT / first.removeprefix(PREFIX)).resolve() == ROOT / "schemas/catalogue.schema.json"


@pytest.mark.parametrize("folder", [ROOT, ROOT / "catalogue.d", ROOT / "var/catalogue.d"])
def test_the_line_for_a_folder_of_the_installation_is_a_relative_path(folder: Path) -> None:
    target = modeline(folder).removeprefix(PREFIX)
    assert not target.startswith(("/", "file:"))
    assert Path(f"{folder}/{target}").resolve() == ROOT / "schemas/own_catalogue.schema.json"


def test_the_line_for_a_folder_elsewhere_has_no_spaces_and_leads_to_the_schema(tmp_path: Path) -> None:
    line = modeline(tmp_path / "my folder")
    assert re.fullmatch(re.escape(PREFIX) + r"file:///\S+", line)
    path = Path(url2pathname(urlsplit(line.removeprefix(PREFIX)).path))
    assert path == ROOT / "schemas/own_catalogue.schema.json"
    assert yaml.safe_load(f"{line}\nmodels: {{}}\n") == {"models": {}}
