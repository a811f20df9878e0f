"""Small catalogues for the compiler's tests: the project's own texts, with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compiler import Catalogue, ImageRequest, SourcePaths, Sources, load_catalogue, read_sources

ROOT = Path(__file__).resolve().parents[2]
PATHS = SourcePaths(ROOT / "catalogue.yaml", ROOT / "templates_wf", ROOT / "schemas")
SOURCES = read_sources(PATHS)
CATALOGUE = load_catalogue(SOURCES)


def asked(prompt: str = "a cat", **fields: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": prompt, "seed": 7, "id": "test", **fields})


def with_template(text: str, *, name: str = "sd15_simple.json.j2", sources: Sources = SOURCES) -> Sources:
    return replace(sources, templates={**sources.templates, name: text})


def with_document(change: Any, sources: Sources = SOURCES) -> Sources:
    """The catalogue after `change(document)` was applied to it."""
    document = yaml.safe_load(sources.catalogue)
    change(document)
    return replace(sources, catalogue=yaml.safe_dump(document, sort_keys=False))


def loaded(sources: Sources) -> Catalogue:
    return load_catalogue(sources)
