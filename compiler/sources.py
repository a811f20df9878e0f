"""Reads the files that a catalogue consists of. This is the compiler's only I/O."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.documented_nodes import DOCUMENTED_NODES, documented_classes
from errors import CatalogueInvalid
from schemas import nearest

TEMPLATE_SUFFIX = ".json.j2"
OWN_SUFFIX = ".yaml"
"""Of the owner's files with entries"""
MAX_OWN_FILE_BYTES = 50_000_000
"""Ten thousand models have about 12 MB"""
PROOFS = "proofs.json"
"""Proofs of the shipped catalogue, see compiler/proof/kept_proofs.py"""
MORE_NODES = "more_nodes.json"
"""The nodes of ComfyUI that no shipped template uses, in the form of nodes.json. An imported template may use them; reading
them all would cost every worker megabytes."""
_MAX_GUESSES = 20
"""of nodes with a misspelt name; each takes 5 ms"""
_CLASS_TYPE = re.compile(r'"class_type"\s*:\s*"([^"]+)"|\{%-?\s*set\s+\w+_class\s*=\s*"([^"]+)"')
"""A part may be told the class of a node: `{% set latent_class = "EmptyLatentImage" %}`."""


def printable(name: str) -> str:
    """The name of a file as messages show it: a name may have line breaks, or bytes that are not UTF-8."""
    return name if name.isprintable() else repr(name)[1:-1]


def classes_in(template: str) -> set[str]:
    """The node classes that a template names."""
    return {literal or assigned for literal, assigned in _CLASS_TYPE.findall(template)}


@dataclass(frozen=True)
class SourcePaths:
    """The catalogue file, the folders of the templates and schemas, the file with the nodes that `easel snapshot-nodes`
    has learned from the user's engines, and the owner's own folder. The last two need not exist."""

    catalogue: Path
    templates: Path
    schemas: Path
    learned_nodes: Path | None = None
    own_folder: Path | None = None
    own_proofs: Path | None = None
    """The file with the proofs of the owner's entries; it need not exist."""

    def files(self) -> list[Path]:
        """Every file that the catalogue depends on, without those of the own folder."""
        return [
            self.catalogue,
            self.schemas / "nodes.json",
            self.schemas / DOCUMENTED_NODES,
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
    documented_nodes: str = ""
    """Nodes that no recorded ComfyUI has; empty if there are none"""
    own_folder: str = ""
    """The name of the owner's folder, as messages show it"""
    own_entries: Mapping[str, str] = field(default_factory=dict)
    """file name in that folder -> text, in the order of the names"""
    own_templates: Mapping[str, str] = field(default_factory=dict)
    """file name in that folder -> text"""
    own_unreadable: Mapping[str, str] = field(default_factory=dict)
    """file name in that folder -> why it is not used; "" is the folder itself"""
    shipped_proofs: str = field(default="", compare=False)
    """Proofs that were made before, see compiler/proof/kept_proofs.py; they save time, and change nothing else"""
    own_proofs: str = field(default="", compare=False)
    """Further ones, which this installation has made"""

    def dump(self) -> str:
        """As JSON for `load`, to keep the last valid catalogue when an edit breaks the files."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Sources:
        """The inverse of `dump`."""
        return cls(**json.loads(text))


def is_own_file(name: str) -> bool:
    """Whether a file of this name in the owner's folder belongs to the catalogue. Editors keep hidden files beside those
    that they edit. Names such as `mine.yml` belong to it, too, so that somebody learns that they are not read."""
    if name.startswith("."):
        return False
    return name.endswith((OWN_SUFFIX, TEMPLATE_SUFFIX)) or name.lower().endswith((OWN_SUFFIX, ".yml"))


def read_sources(paths: SourcePaths) -> Sources:
    """Read all files. Raises CatalogueInvalid if one cannot be read that is not in the owner's folder."""
    own = _read_own(paths.own_folder)
    templates = {path.name: _read(path) for path in sorted(paths.templates.glob(f"*{TEMPLATE_SUFFIX}"))}
    documented = _read_documented(paths.schemas / DOCUMENTED_NODES)
    return Sources(
        catalogue_name=paths.catalogue.name,
        catalogue=_read(paths.catalogue),
        catalogue_schema=_read(paths.schemas / "catalogue.schema.json"),
        nodes=_read_nodes(
            paths, (*templates.values(), *own.templates.values()), documented_classes(documented)
        ),
        node_facts=_read(paths.schemas / "node_facts.yaml"),
        learned_nodes=read_learned_nodes(paths),
        sampling_names=_read(paths.schemas / "sampling_names.yaml"),
        templates=templates,
        documented_nodes=documented,
        own_folder=own.folder,
        own_entries=own.entries,
        own_templates=own.templates,
        own_unreadable=own.unreadable,
        shipped_proofs=_read_proofs(paths.schemas / PROOFS),
        own_proofs=_read_proofs(paths.own_proofs),
    )


@dataclass(frozen=True)
class _OwnFolder:
    folder: str = ""
    entries: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def _read_own(folder: Path | None) -> _OwnFolder:
    """Whatever cannot be read is left out and listed in `unreadable`: it must not keep the rest from being served."""
    if folder is None:
        return _OwnFolder()
    own = _OwnFolder(printable(folder.name or str(folder)))
    try:
        names = sorted(path.name for path in folder.iterdir() if is_own_file(path.name))
    except FileNotFoundError:
        if folder.is_symlink():
            own.unreadable[""] = "is a link to a folder that does not exist"
        return own
    except OSError as error:
        own.unreadable[""] = f"cannot be read: {error.strerror}"
        return own
    for name in names:
        texts = own.templates if name.endswith(TEMPLATE_SUFFIX) else own.entries
        try:
            texts[name] = _read_own_file(folder / name)
        except CatalogueInvalid as error:
            if isinstance(error.__cause__, FileNotFoundError) and not (folder / name).is_symlink():
                continue  # it was deleted meanwhile
            own.unreadable[name] = error.message.removeprefix(f"{name} ")
    return own


def _read_own_file(path: Path) -> str:
    if not path.name.endswith((OWN_SUFFIX, TEMPLATE_SUFFIX)):
        correct = path.name[: path.name.rindex(".")] + OWN_SUFFIX
        raise CatalogueInvalid(
            f"is not read, because its name must end in {OWN_SUFFIX}; rename it to {printable(correct)}"
        )
    return _read(path, MAX_OWN_FILE_BYTES)


def _read_nodes(paths: SourcePaths, templates: Iterable[str], documented: Set[str]) -> str:
    """The content of nodes.json, with those of MORE_NODES that a template names, or seems to mean by a misspelt name."""
    text = _read(paths.schemas / "nodes.json")
    used = {name for template in templates for name in classes_in(template)} - documented
    if all(f'"{name}":' in text for name in used):
        return text
    document, more = json.loads(text), read_more_nodes(paths)
    unknown = sorted(used - set(more) - set(document["nodes"]))[:_MAX_GUESSES]
    meant = {nearest(name, more, cutoff=0.85) or name for name in unknown}
    added = {name: more[name] for name in sorted((used | meant) & set(more)) if name not in document["nodes"]}
    return json.dumps({**document, "nodes": {**document["nodes"], **added}})


def read_more_nodes(paths: SourcePaths) -> dict[str, Any]:
    """The records in MORE_NODES by class; empty if the file does not exist. Raises CatalogueInvalid."""
    path = paths.schemas / MORE_NODES
    return dict(json.loads(_read(path))["nodes"]) if path.exists() else {}


def _read_documented(path: Path) -> str:
    return _read(path) if path.exists() else ""


def _read_proofs(path: Path | None) -> str:
    """Empty if the file cannot be read, or is too large to be one."""
    with contextlib.suppress(CatalogueInvalid):
        return "" if path is None else _read(path, MAX_OWN_FILE_BYTES)
    return ""


def read_learned_nodes(paths: SourcePaths) -> str:
    """The file with the learned nodes; empty if there is none. Raises CatalogueInvalid."""
    path = paths.learned_nodes
    return _read(path) if path is not None and path.exists() else ""


def _read(path: Path, max_bytes: int | None = None) -> str:
    try:
        found = path.stat()
        # Reading a pipe or a device could block, or never end.
        if not stat.S_ISREG(found.st_mode):
            raise CatalogueInvalid(f"{path.name} is not a regular file")
        if max_bytes is not None and found.st_size > max_bytes:
            raise CatalogueInvalid(
                f"{path.name} is larger than {max_bytes:,} bytes; split it into several files"
            )
        return path.read_text("utf-8-sig")  # some editors on Windows begin a file with a byte order mark
    except OSError as error:
        raise CatalogueInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CatalogueInvalid(
            f"{path.name} is not UTF-8 at byte {error.start}; save it with the encoding UTF-8"
        ) from error
