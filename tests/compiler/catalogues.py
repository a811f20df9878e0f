"""Variants of the project's catalogue for the compiler's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compiler import ImageRequest, SourcePaths, Sources, load_catalogue, read_sources

ROOT = Path(__file__).resolve().parents[2]
PATHS = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
SOURCES = read_sources(PATHS)
CATALOGUE = load_catalogue(SOURCES)


def image_request(prompt: str = "a cat", **fields: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "seed": 7, "id": "test", **fields})


def with_template(text: str, *, name: str = "sd15_simple.json.j2", sources: Sources = SOURCES) -> Sources:
    return replace(sources, templates={**sources.templates, name: text})


def with_document(change: Any, sources: Sources = SOURCES) -> Sources:
    """The sources after `change(document)` has modified catalogue.yaml's document in place."""
    document = yaml.safe_load(sources.catalogue)
    change(document)
    return replace(sources, catalogue=yaml.safe_dump(document, sort_keys=False))
