"""The proofs of all models of a catalogue. Models that differ only in file names, sizes and limits share them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compiler.catalogue import Catalogue, Model, TaskProof, Workflow
from compiler.proof.changes import Traits
from compiler.proof.kept_proofs import Digests, is_kept, read_proofs, write_proofs
from compiler.proof.model_proof import model_faults, used_parts
from compiler.proof.template_proof import TemplateProof, UsedParts, failed_proof, failure, prove_template
from compiler.values import Task

log = logging.getLogger("easel.catalogue")

MAX_UNUSED = 1000
"""How many proofs that a catalogue did not need are kept: an edit is often taken back. All that it needed are kept, so that
after an edit of one of a thousand workflows only that one is proved again."""
_Key = tuple[Any, ...]

_cache: dict[_Key, TemplateProof] = {}
"""The proofs of this process, by the content that they depend on: reloading a catalogue proves only what has changed."""
_cache_lock = threading.Lock()


def prove_catalogue(
    catalogue: Catalogue, models: Iterable[Model], kept: Iterable[str] = ()
) -> dict[str, dict[Task, TaskProof]]:
    """model id -> task -> proof, for these models of the catalogue. `kept`: files with proofs made before."""
    proofs = _TemplateProofs(catalogue)
    digests, known = Digests(catalogue), read_proofs(kept)
    by_content: dict[_Key, dict[Task, TaskProof]] = {}
    found = {}
    for model in models:
        key = _content_key(model)
        if key not in by_content:
            known_proofs = known.get(digests.of(model), {}) if known else {}
            is_known = known_proofs.keys() == model.workflows.keys()  # else the file was edited
            by_content[key] = dict(known_proofs) if is_known else _prove_model(model, proofs)
        found[model.id] = by_content[key].copy()
    proofs.keep_in_cache()
    return found


def proofs_to_keep(catalogue: Catalogue, kept: Iterable[str] = ()) -> str:
    """The proofs of `catalogue` that `kept` does not have, as a file that a later start reads; empty if there are none."""
    digests, known = Digests(catalogue), read_proofs(kept)
    proofs = {
        digest: proofs
        for model in catalogue.models.values()
        if is_kept(proofs := catalogue.proofs[model.id])
        and (digest := _kept_as(proofs) or digests.of(model)) not in known
    }
    return write_proofs(proofs) if proofs else ""


def _kept_as(proofs: Mapping[Task, TaskProof]) -> str:
    """The hash that was computed when the catalogue was loaded: computing it again takes as long as loading."""
    return next((proof.kept_as for proof in proofs.values()), "")


def _content_key(model: Model) -> _Key:
    """What the proof of a model depends on: neither on its names nor on those of its files."""
    return (
        tuple(model.workflows.items()),
        tuple(sorted((role, file.folder) for role, file in model.files.items())),
        model.family,
        model.takes_loras,
        model.limit_batch,
        model.size,
        repr(model.defaults),
        repr(model.presets),
    )


def _prove_model(model: Model, proofs: _TemplateProofs) -> dict[Task, TaskProof]:
    by_task = {task: proofs.get(model, task) for task in model.workflows}
    used = {task: proofs.used_parts(model, task, proof) for task, proof in by_task.items()}
    return {
        task: TaskProof(
            faults=(
                *proof.faults,
                *_role_faults(task, by_task),
                *_size_faults(model, proof),
                *proofs.model_faults(model, task, proof),
            ),
            has_seed=proof.has_seed,
            files=proof.files,
            marks=used[task].marks,
            unverified=used[task].unverified,
        )
        for task, proof in by_task.items()
    }


def _role_faults(task: Task, by_task: Mapping[Task, TemplateProof]) -> Iterator[str]:
    """A file may be for another task only, unless a node of this task names a file itself where the role belongs."""
    for role, unused in by_task[task].unused_roles.items():
        if unused.is_literal or all(role in proof.unused_roles for proof in by_task.values()):
            yield unused.fault


def _size_faults(model: Model, proof: TemplateProof) -> Iterator[str]:
    low, high = model.size.min, model.size.max
    sides = {"width": (low.width, high.width), "height": (low.height, high.height)}
    for name, ranges in proof.side_ranges.items():
        smallest, largest = sides[name]
        for entry in ranges:
            if entry.low is not None and smallest < entry.low:
                yield f"{entry.where} takes at least {entry.low}, but the model's size.min is {low}; raise it"
            if entry.high is not None and largest > entry.high:
                yield f"{entry.where} takes at most {entry.high}, but the model's size.max is {high}; lower it"


class _TemplateProofs:
    """The template proofs of one catalogue: from the cache, or proved now."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._proofs: dict[_Key, TemplateProof] = {}
        self._workflow_keys: dict[tuple[str, Task], _Key] = {}
        self._families = {family for lora in catalogue.loras.values() for family in lora.families}

    def get(self, model: Model, task: Task) -> TemplateProof:
        workflow = self._catalogue.workflows[model.workflows[task]]
        traits = Traits(
            roles=tuple(sorted((role, file.folder) for role, file in model.files.items())),
            has_loras=model.takes_loras and model.family in self._families,
            draws_batches=model.limit_batch > 1,
            width_varies=model.size.min.width < model.size.max.width,
            height_varies=model.size.min.height < model.size.max.height,
            default_size=model.size.default,
            multiple_of=model.size.multiple_of,
        )
        key = (*self._workflow_key(workflow, task), traits)
        if key not in self._proofs:
            self._proofs[key] = self._cached(key) or self._prove(key, model, workflow, task, traits)
        return self._proofs[key]

    def model_faults(self, model: Model, task: Task, proof: TemplateProof) -> list[str]:
        workflow = self._catalogue.workflows[model.workflows[task]]
        try:
            return model_faults(self._catalogue, model, workflow, task, proof)
        except Exception as error:
            log.exception("cannot prove %s for the model %s, task %s", workflow.template, model.id, task)
            return [failure(workflow.template, error)]

    def used_parts(self, model: Model, task: Task, proof: TemplateProof) -> UsedParts:
        workflow = self._catalogue.workflows[model.workflows[task]]
        try:
            return used_parts(self._catalogue, model, workflow, task, proof)
        except Exception:  # The graph is faulty, which `model_faults` says.
            return UsedParts()

    def _workflow_key(self, workflow: Workflow, task: Task) -> _Key:
        key = self._workflow_keys.get((workflow.id, task))
        if key is None:
            content = self._catalogue.renderer.content(workflow.template)
            key = (
                workflow.id,
                workflow.template,
                content,
                task,
                repr(workflow.inputs_for(task)),
                workflow.output,
                workflow.size_from_image,
                workflow.images,
            )
            self._workflow_keys[workflow.id, task] = key
        return key

    def _cached(self, key: _Key) -> TemplateProof | None:
        proof, current = _cache.get(key), self._catalogue.signatures
        if proof is None or any(current.get(name) != known for name, known in proof.signatures.items()):
            return None
        return proof

    def _prove(
        self, key: _Key, model: Model, workflow: Workflow, task: Task, traits: Traits
    ) -> TemplateProof:
        try:
            proof = prove_template(self._catalogue, model, workflow, task, traits)
        except Exception as error:  # One template must not keep the server from starting.
            log.exception("cannot prove %s for the task %s", workflow.template, task)
            return failed_proof(failure(workflow.template, error), traits)
        with _cache_lock:
            _cache[key] = proof
        return proof

    def keep_in_cache(self) -> None:
        """Forget the oldest proofs that this catalogue does not need."""
        with _cache_lock:
            unused = [key for key in _cache if key not in self._proofs]
            for key in unused[: max(0, len(unused) - MAX_UNUSED)]:
                del _cache[key]
