"""Reads the files that a catalogue consists of. This is the compiler's only I/O."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import CatalogueInvalid

TEMPLATE_SUFFIX = ".json.j2"
MORE_NODES = "more_nodes.json"
"""The nodes of ComfyUI that no shipped template uses, in the form of nodes.json. An imported template may use them; reading
them all would cost every worker megabytes."""
_CLASS_TYPE = re.compile(r'"class_type"\s*:\s*"([^"]+)"')


def classes_in(template: str) -> set[str]:
    """The node classes that a template names."""
    return set(_CLASS_TYPE.findall(template))


@dataclass(frozen=True)
class SourcePaths:
    """The catalogue file, the folders of the templates and schemas, and the file with the nodes that
    `flask snapshot-nodes` has learned from the user's engines, which need not exist."""

    catalogue: Path
    templates: Path
    schemas: Path
    learned_nodes: Path | None = None

    def files(self) -> list[Path]:
        """Every file that the catalogue depends on."""
        return [
            self.catalogue,
            self.schemas / "nodes.json",
            self.schemas / "node_facts.yaml",
            *([self.learned_nodes] if self.learned_nodes else []),
            self.schemas / "sampling_names.yaml",
            self.schemas / "catalogue.schema.json",
            *sorted(self.templates.glob(f"*{TEMPLATE_SUFFIX}")),
        ]


@dataclass(frozen=True)
class Sources:
    """The contents of those files. Equal `Sources` make equal catalogues."""

    catalogue_name: str
    catalogue: str
    catalogue_schema: str
    nodes: str
    node_facts: str
    learned_nodes: str
    """empty if there are none"""
    sampling_names: str
    templates: Mapping[str, str]
    """file name -> text"""

    def dump(self) -> str:
        """As JSON for `load`, to keep the last valid catalogue when an edit breaks the files."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Sources:
        """The inverse of `dump`."""
        return cls(**json.loads(text))


def read_sources(paths: SourcePaths) -> Sources:
    """Read all files. Raises CatalogueInvalid if one cannot be read."""
    templates = {path.name: _read(path) for path in sorted(paths.templates.glob(f"*{TEMPLATE_SUFFIX}"))}
    return Sources(
        catalogue_name=paths.catalogue.name,
        catalogue=_read(paths.catalogue),
        catalogue_schema=_read(paths.schemas / "catalogue.schema.json"),
        nodes=_read_nodes(paths, templates.values()),
        node_facts=_read(paths.schemas / "node_facts.yaml"),
        learned_nodes=read_learned_nodes(paths),
        sampling_names=_read(paths.schemas / "sampling_names.yaml"),
        templates=templates,
    )


def _read_nodes(paths: SourcePaths, templates: Iterable[str]) -> str:
    """The content of nodes.json, with those of MORE_NODES that a template names."""
    text = _read(paths.schemas / "nodes.json")
    used = {name for template in templates for name in classes_in(template)}
    if all(f'"{name}":' in text for name in used):
        return text
    document, more = json.loads(text), read_more_nodes(paths)
    added = {name: more[name] for name in sorted(used & set(more)) if name not in document["nodes"]}
    return json.dumps({**document, "nodes": {**document["nodes"], **added}})


def read_more_nodes(paths: SourcePaths) -> dict[str, Any]:
    """The records in MORE_NODES by class; empty if the file does not exist. Raises CatalogueInvalid."""
    path = paths.schemas / MORE_NODES
    return dict(json.loads(_read(path))["nodes"]) if path.exists() else {}


def read_learned_nodes(paths: SourcePaths) -> str:
    """The file with the learned nodes; empty if there is none. Raises CatalogueInvalid."""
    path = paths.learned_nodes
    return _read(path) if path is not None and path.exists() else ""


def _read(path: Path) -> str:
    try:
        # Reading a pipe or a device could block, or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CatalogueInvalid(f"{path.name} is not a regular file")
        return path.read_text("utf-8-sig")  # some editors on Windows begin a file with a byte order mark
    except OSError as error:
        raise CatalogueInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueInvalid(
            f"{path.name} is not UTF-8 at byte {error.start}; save it with the encoding UTF-8"
        ) from error
