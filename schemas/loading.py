"""Loads the JSON Schemas and YAML documents of this folder."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from schemas.yaml_document import read_yaml

FOLDER = Path(__file__).resolve().parent


def load_schema(name: str) -> dict[str, Any]:
    """The schema in `NAME.schema.json`, as a copy that the caller may change."""
    return deepcopy(_schema(name))


def load_yaml(name: str) -> Any:
    """The document in `NAME.yaml`. Aliases are resolved: no two parts share an object."""
    return json.loads(json.dumps(read_yaml((FOLDER / f"{name}.yaml").read_text("utf-8"))))


@cache
def validator_of(name: str) -> Draft202012Validator:
    """A validator for the schema in `NAME.schema.json`; it may refer to other schemas of this folder by their `$id`."""
    return Draft202012Validator(_schema(name), registry=_registry())


@cache
def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8"))
    return schema


@cache
def _registry() -> Registry[Any]:
    names = [path.name.removesuffix(".schema.json") for path in sorted(FOLDER.glob("*.schema.json"))]
    schemas = [_schema(name) for name in names]
    resources: list[tuple[str, Resource[Any]]] = [
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas if "$id" in schema
    ]
    registry: Registry[Any] = Registry().with_resources(resources)
    return registry
