"""What each model adds to the proof that it shares with others: its own defaults and presets, its smallest and largest
size, and its largest batch. The results are cached by these values, so equal models share them too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compiler.answer import describe
from compiler.catalogue import Catalogue, Model, Workflow
from compiler.documented_nodes import unverified_parts
from compiler.graph import render_nodes
from compiler.proof.canvas import content, size_place
from compiler.proof.template_proof import Prover, TemplateProof, UsedParts, say
from compiler.proof.trial_graph import TrialGraph, Values, changed_places
from compiler.resolve import default_value
from compiler.size import Size
from compiler.values import Task
from compiler.versions import marks_of
from schemas.explain import given_value

_MAX_CACHED = 10_000
"""results for each proof"""


def model_faults(
    catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, proof: TemplateProof
) -> list[str]:
    """The faults of this model's own values that `proof` does not have already."""
    if proof.base is None:
        return []
    found: dict[str, None] = {}
    for key, trial in _trials(catalogue, model, workflow, task, proof, proof.base):
        faults = proof.trials.get(key)
        if faults is None:
            prover = ModelProver(catalogue, model, workflow, task, proof)
            faults = prover.faults_of(trial)
            # Otherwise a change of such a node would not be noticed.
            if prover.has_known_classes and len(proof.trials) < _MAX_CACHED:
                proof.trials[key] = faults
        found |= dict.fromkeys(fault for fault in faults if fault not in proof.faults)
    return list(found)


Trial = tuple[str, Any, str]
"""What is tried (inputs, branch, size or batch), its values, and how to say these"""


def _trials(
    catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, proof: TemplateProof, base: TrialGraph
) -> Iterator[tuple[str, Trial]]:
    """Each with a text that identifies it."""
    rules, changed = workflow.inputs_for(task), _own_defaults(model, workflow, task, base)
    if changed:
        yield _with_key("inputs", changed, say(changed, "the model's default "))
    chosen = {name: value for name, value in changed.items() if isinstance(value, str | bool)}
    if len(chosen) > 1:  # each alone is part of the shared proof
        yield _with_key("branch", chosen, say(chosen, "the model's default "))
    for field in {**workflow.presets, **model.presets}:
        for preset, values in {**workflow.presets.get(field, {}), **model.presets.get(field, {})}.items():
            used = {**changed, **{name: value for name, value in values.items() if name in rules}}
            if used != changed:
                yield _with_key("inputs", used, f" (with {field} {given_value(preset)})")
    for size in (model.size.min, model.size.max):
        if size != model.size.default:
            yield _with_key("size", size, f" (with size {size})")
    if model.limit_batch > 1 and proof.has_seed:
        yield _with_key("batch", model.limit_batch, f" (with batch {model.limit_batch})")


def _own_defaults(model: Model, workflow: Workflow, task: Task, base: TrialGraph) -> dict[str, Any]:
    """The defaults of the model that differ from the values of `base`, which has a picture for each input that is one."""
    rules = workflow.inputs_for(task)
    own = {
        name: default_value(name, model, workflow, task).value for name in rules if not rules[name].is_image
    }
    return {name: value for name, value in own.items() if value != base.values[name]}


def used_parts(
    catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, proof: TemplateProof
) -> UsedParts:
    """Those of the graph that this model draws by default; empty if it has none."""
    if proof.base is None:
        return UsedParts()
    changed = _own_defaults(model, workflow, task, proof.base)
    key = repr(changed)
    if key not in proof.used_parts:
        nodes = proof.base.nodes
        if changed:
            nodes = render_nodes(workflow.template, {**proof.base.values, **changed}, catalogue)
        signatures = catalogue.signatures
        proof.used_parts[key] = UsedParts(marks_of(nodes, signatures), unverified_parts(nodes, signatures))
    return proof.used_parts[key]


def _with_key(kind: str, values: Any, said: str) -> tuple[str, Trial]:
    return f"{kind}{values}{said}", (kind, values, said)


class ModelProver(Prover):
    """Tries values of one model with the template of `proof`."""

    def __init__(
        self, catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, proof: TemplateProof
    ) -> None:
        super().__init__(catalogue, model, workflow, task, proof.traits)
        self._proof, self._patterns = proof, proof.patterns
        self._places = {name: set(places) for name, places in proof.places.items()}
        self._names_at_fault = set(proof.names_at_fault)
        self._has_seed = proof.has_seed

    @property
    def has_known_classes(self) -> bool:
        """Whether all nodes are of classes that the shared proof has seen."""
        return self._classes <= self._proof.signatures.keys()

    def faults_of(self, trial: Trial) -> tuple[str, ...]:
        """What is wrong with the graphs for `trial`."""
        kind, values, said = trial
        base = self._proof.base
        if base is not None:
            with self._bounded():
                if kind == "inputs":
                    self._render({**base.values, **values}, said, base.errors)
                elif kind == "branch":
                    self._try_branch(values, said, base)
                elif kind == "size":
                    self._try_size(values, said, base)
                else:
                    self._try_batch(values, said, base)
        return self._listed_faults()

    def _try_branch(self, given: Values, said: str, base: TrialGraph) -> None:
        graph = self._render({**base.values, **given}, said, base.errors)
        if graph is not None:
            is_new = graph.shape != base.shape
            self._prove_branch(graph, given, said, base, self._proof.other, is_new=is_new)

    def _try_size(self, size: Size, said: str, base: TrialGraph) -> None:
        given = {"width": size.width, "height": size.height}
        other = self._proof.other
        changed = None if other is None else self._render_unchecked({**other.values, **given})
        if other is None or changed is None:
            return self._try_branch(given, said, base)
        is_passed = [self._gets_side(name, size, side, base, changed, said) for name, side in given.items()]
        expected = {place for name in given for place in self._places.get(name, ())}
        has_same_shape = changed.shape == other.shape
        if not has_same_shape or not set(changed_places(other, changed)) <= expected:
            self._try_branch(given, said, base)
        elif not all(
            is_passed
        ):  # The ranges of nodes that get the size as it is are checked without rendering.
            self._render({**base.values, **given}, said, base.errors)
        return None

    def _gets_side(
        self, name: str, size: Size, side: int, base: TrialGraph, changed: TrialGraph, said: str
    ) -> bool:
        """Whether the node that decides the size gets `side` as it is, or nothing. It is a fault if it does not, but gets
        the side of the default size as it is."""
        before, after = (size_place(graph.nodes, graph.output, name) for graph in (base, changed))
        default = base.values[name]
        if before is None or after is None or name in self._names_at_fault or side == default:
            return before is None
        if self._workflow.size_from_image and self._task != "generate":
            return False
        was, now = content(base.nodes, before), content(changed.nodes, after)
        is_passed = was == str(default)
        if now == str(side) or (now != was and not is_passed):
            return is_passed
        if self._task != "generate" and self._is_seedless(base):
            return False  # such as an upscaler to a certain size
        value = changed.nodes[after[0]]["inputs"][after[1]]
        got = f"gets {given_value(value)}" if isinstance(value, int | float) else "does not change"
        self._fault(
            f"{self._workflow.template}: {describe(changed.nodes, after[0])}, input {after[1]!r} {got} if `{name}` is "
            f"{side}, which the model's size allows; write {{{{ {name} }}}}"
        )
        return False

    def _try_batch(self, batch: int, said: str, base: TrialGraph) -> None:
        if "batch" in self._names_at_fault:
            return
        graph = self._render({**base.values, "batch": batch}, said, base.errors)
        fewer = self._render_unchecked({**base.values, "batch": batch - 1})
        if graph is None or fewer is None:
            return
        wrong = next(
            (
                place
                for place in self._places.get("batch", ())
                if graph.value(place) != batch and fewer.value(place) == batch - 1
            ),
            None,
        )
        if wrong is not None or graph.fingerprint == fewer.fingerprint:
            place = wrong or next(iter(self._places["batch"]))
            self._fault(
                f"{self._workflow.template}: {describe(graph.nodes, place[0])}, input {place[1]!r} gets "
                f"{given_value(graph.value(place))} if `batch` is {batch}, the model's `limits.batch`; write "
                "{{ batch }}, or lower the limit"
            )
        elif graph.shape != base.shape:
            self._prove_branch(graph, {"batch": batch}, said, base, self._proof.other, is_new=True)
