"""Proofs that were made before, by a hash of all that they depend on: the model, its workflows, their templates, the nodes
that these name, and the code that proves. They only save time; only proofs without a fault are kept.

`schemas/proofs.json` has those of the shipped catalogue (`flask write-proofs` writes it, a test makes them anew), a file
in the state directory those of the owner's entries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import jinja2

from compiler.catalogue import Catalogue, Model, TaskProof
from compiler.signatures import Signatures
from compiler.values import Task

ModelProofs = Mapping[Task, TaskProof]
_CODE = Path(__file__).resolve().parents[2]
_CODE_FOLDERS = ("compiler", "schemas")
_PLAIN_CLASS = re.compile(r'class_type"\s*:\s*(?:"[^"{}%]*"|\{\{-?\s*\w+_class\s*-?\}\})')
"""A class that a template names in full, here or where it sets the variable"""
_COMPUTED_NAME = re.compile(r"\{%[^%]*_class\b[^%]*?(?:[~+|(\[.]|%(?!\}))")
"""A variable for a class whose value may be put together"""


@functools.cache
def code_digest() -> str:
    """Of the code that a proof depends on."""
    digest = hashlib.sha256(jinja2.__version__.encode())
    files = [path for folder in _CODE_FOLDERS for path in sorted((_CODE / folder).rglob("*.py"))]
    for path in (*files, _CODE / "dynamic_inputs.py"):
        digest.update(path.relative_to(_CODE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Digests:
    """The hashes under which the proofs of the models of `catalogue` are kept."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._families = {family for lora in catalogue.loras.values() for family in lora.families}
        self._workflows: dict[tuple[str, Task], str] = {}
        self._classes: dict[str, str] = {}
        self._named: dict[str, Set[str]] = {}
        """text of a template -> the node classes on which it may depend; many workflows use the same parts"""

    def of(self, model: Model) -> str:
        parts = (
            [self._workflow(workflow, task) for task, workflow in model.workflows.items()],
            sorted((role, file.folder) for role, file in model.files.items()),
            model.takes_loras and model.family in self._families,
            model.limit_batch,
            model.size,
            model.defaults,
            model.presets,
        )
        return _digest(code_digest(), parts)

    def _workflow(self, name: str, task: Task) -> str:
        if (name, task) not in self._workflows:
            workflow, signatures = self._catalogue.workflows[name], self._catalogue.signatures
            content = self._catalogue.renderer.content(workflow.template)
            classes = {each for _, text in content for each in self._classes_in(text, signatures)}
            parts = (
                (workflow.id, workflow.entry, workflow.template, content, task, workflow.inputs_for(task)),
                (
                    workflow.presets,
                    workflow.output,
                    workflow.size_from_image,
                    workflow.images,
                    workflow.faults,
                ),
                [(each, self._class(each, signatures)) for each in sorted(classes)],
            )
            self._workflows[name, task] = _digest(parts)
        return self._workflows[name, task]

    def _classes_in(self, text: str, signatures: Signatures) -> Set[str]:
        if text not in self._named:
            self._named[text] = _classes(text, signatures)
        return self._named[text]

    def _class(self, name: str, signatures: Signatures) -> str:
        if name not in self._classes:
            self._classes[name] = _digest(signatures.get(name))
        return self._classes[name]


def _classes(text: str, signatures: Signatures) -> Set[str]:
    """The node classes on which a template may depend: all whose names it has in any place, or every one if it may put a
    name together."""
    if _computes_a_class(text):
        return set(signatures)
    return {name for name in signatures if name in text}


def _computes_a_class(text: str) -> bool:
    return (
        text.count("class_type") != len(_PLAIN_CLASS.findall(text)) or _COMPUTED_NAME.search(text) is not None
    )


def read_proofs(texts: Iterable[str]) -> dict[str, ModelProofs]:
    """The proofs in files as `write_proofs` writes them; a file that is damaged has none."""
    found: dict[str, ModelProofs] = {}
    for text in texts:
        try:
            found |= {key: _read_model(key, entry) for key, entry in json.loads(text)["proofs"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return found


def write_proofs(proofs: Mapping[str, ModelProofs]) -> str:
    """A file for `read_proofs`."""
    kept = {key: _written_model(proofs[key]) for key in sorted(proofs)}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in kept.items())
    return f'{{"proofs": {{\n{lines}\n}}}}\n'


def is_kept(proofs: ModelProofs) -> bool:
    """Whether these have no fault: those are proved at every start, so that their messages are those of today."""
    return not any(proof.faults for proof in proofs.values())


def _written_model(proofs: ModelProofs) -> dict[str, Any]:
    return {
        task: {
            "has_seed": proof.has_seed,
            "files": proof.files,
            "marks": proof.marks,
            **({"unverified": proof.unverified} if proof.unverified else {}),
        }
        for task, proof in proofs.items()
    }


def _read_model(key: str, entry: Mapping[Task, Any]) -> ModelProofs:
    return {
        task: TaskProof(
            has_seed=bool(each["has_seed"]),
            files=tuple((str(a), str(b)) for a, b in each["files"]),
            marks=tuple(tuple(map(str, versions)) for versions in each["marks"]),
            unverified=tuple(map(str, each.get("unverified", ()))),
            kept_as=key,
        )
        for task, each in entry.items()
    }


def _digest(*parts: Any) -> str:
    pieces: list[str] = []
    _add_pieces(parts, pieces)
    return hashlib.sha256("".join(pieces).encode("utf-8", "surrogatepass")).hexdigest()


def _add_pieces(value: Any, pieces: list[str]) -> None:
    """Append `value` as texts that are the same in every process. There are 170,000 for the shipped catalogue, at every
    start: hence no generators, and the frequent types first."""
    kind = type(value)
    if kind is str or value is None:
        pieces.append(repr(value))
    elif isinstance(value, list | tuple):
        pieces.append("[")
        for each in value:
            if type(each) is str:
                pieces.append(repr(each))
            else:
                _add_pieces(each, pieces)
            pieces.append("\x1f,")
        pieces.append("]")
    elif fields := _compared_fields(kind):  # type: ignore[arg-type]  # every class is hashable
        pieces.append(kind.__name__)
        for name in fields:
            pieces.append(f"\x1f{name}=")
            _add_pieces(getattr(value, name), pieces)
    elif isinstance(value, Mapping):
        pieces.append("{")
        for key, each in value.items():
            _add_pieces(key, pieces)
            pieces.append("\x1f:")
            _add_pieces(each, pieces)
            pieces.append("\x1f,")
        pieces.append("}")
    elif isinstance(value, set | frozenset):
        pieces.append(f"<{sorted(map(repr, value))}>")
    else:
        pieces.append(repr(value))


@functools.cache
def _compared_fields(kind: type) -> tuple[str, ...]:
    """Empty for what is no dataclass."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field.name for field in dataclasses.fields(kind) if field.compare)
