"""The proof of one workflow for one task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.answer import describe, find_output
from compiler.catalogue import Catalogue, Model, Workflow
from compiler.check import find_errors
from compiler.graph import render_nodes
from compiler.proof import remedies
from compiler.proof.changes import Change, Traits, base_values, general_changes, input_changes, other_values
from compiler.proof.hints import SEED_NAMES, Place, fixed_size_places, has_input, input_signature, write_at
from compiler.proof.trial_graph import TrialGraph, Values, arrivals, changed_places
from compiler.signatures import InputSignature, NodeSignature
from compiler.values import Nodes, Task
from errors import GraphInvalid, TemplateInvalid, shorten
from schemas.explain import given_value

_MAX_FAULTS = 30
"""Further faults of a task are only counted."""

_MAX_SHAPES = 32
"""Graphs of other shapes that are proved too; this bounds the time that a template with very many branches takes."""


@dataclass(frozen=True)
class SideRange:
    """The smallest and largest width or height that an input of a node takes."""

    where: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class UnusedRole:
    """A role of `files` that changes nothing. `is_literal`: a node names a file itself where the role belongs."""

    fault: str
    is_literal: bool


@dataclass(frozen=True)
class TemplateProof:
    """What holds for all models with the same workflow, task and traits."""

    faults: tuple[str, ...]
    has_seed: bool
    unused_roles: Mapping[str, UnusedRole]
    side_ranges: Mapping[str, tuple[SideRange, ...]]
    """width or height -> the ranges of the inputs to which it is passed as it is"""
    files: tuple[tuple[str, str], ...]
    """folder and name of each file that the template names itself"""
    signatures: Mapping[str, NodeSignature | None]
    """The signature of each node class that was rendered. The proof is out of date if one has changed since."""


def prove_template(
    catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, traits: Traits
) -> TemplateProof:
    """`model` is one of those that share the proof: its files and sizes are the base values."""
    return _Prover(catalogue, model, workflow, task, traits).prove()


def failed_proof(template: str, error: Exception) -> TemplateProof:
    """For a template on which the proof itself failed: the model cannot be drawn, but all others can."""
    fault = (
        f"{template}: it cannot be checked ({type(error).__name__}: {shorten(str(error), 200)}); the log has the details. "
        "Simplify the template, and report this as a bug of Easel"
    )
    return TemplateProof(
        faults=(fault,), has_seed=True, unused_roles={}, side_ranges={}, files=(), signatures={}
    )


class _Prover:
    def __init__(
        self, catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, traits: Traits
    ) -> None:
        self._catalogue, self._signatures = catalogue, catalogue.signatures
        self._model, self._workflow, self._task, self._traits = model, workflow, task, traits
        self._rules = workflow.inputs_for(task)
        self._faults: dict[str, None] = {}
        self._names_at_fault: set[str] = set()
        self._has_seed = True
        self._classes: set[str] = set()
        self._used_roles: set[str] = set()
        self._unused_roles: dict[str, UnusedRole] = {}
        self._side_ranges: dict[str, tuple[SideRange, ...]] = {}
        self._files: set[tuple[str, str]] = set()

    def prove(self) -> TemplateProof:
        base = self._render(base_values(self._workflow, self._model, self._task), "")
        if base is not None:
            self._prove_rounds(base)
        unused = {role: entry for role, entry in self._unused_roles.items() if role not in self._used_roles}
        return TemplateProof(
            faults=self._listed_faults(),
            has_seed=self._has_seed,
            unused_roles=unused,
            side_ranges=self._side_ranges,
            files=tuple(sorted(self._files)),
            signatures={name: self._signatures.get(name) for name in self._classes},
        )

    def _prove_rounds(self, base: TrialGraph) -> None:
        shapes: dict[frozenset[Any], tuple[Values, str]] = {base.shape: ({}, "")}
        for change in self._changes(base, is_first=True):
            for changed, given, condition in self._check(change, base, ""):
                shapes.setdefault(changed.shape, (given, condition))
        for given, condition in list(shapes.values())[1 : _MAX_SHAPES + 1]:
            self._prove_second_round({**base.values, **given}, given, condition, base.errors)

    def _prove_second_round(
        self, values: Values, given: Values, condition: str, known_errors: tuple[str, ...]
    ) -> None:
        base = self._render(values, condition, known_errors)
        if base is None:
            return
        for change in self._changes(base, is_first=False):
            is_given = change.name.partition(".")[0] in given
            if not is_given and change.name not in self._names_at_fault:
                for _ in self._check(change, base, condition):
                    pass

    def _changes(self, base: TrialGraph, *, is_first: bool) -> Iterator[Change]:
        yield from general_changes(
            self._task,
            self._traits,
            self._model,
            base.values,
            is_first=is_first,
            has_prefix=self._has_prefix(base),
        )
        yield from input_changes(self._rules, base.values, is_first=is_first)

    def _has_prefix(self, base: TrialGraph) -> bool:
        node = base.nodes[base.output]
        signature = self._signatures.get(node["class_type"])
        return "filename_prefix" in node["inputs"] or (
            signature is not None and "filename_prefix" in signature.inputs
        )

    def _fault(self, text: str) -> None:
        self._faults.setdefault(text)

    def _listed_faults(self) -> tuple[str, ...]:
        faults = list(self._faults)
        more = len(faults) - _MAX_FAULTS
        return (*faults[:_MAX_FAULTS], f"and {more} more") if more > 0 else tuple(faults)

    # --- rendering -----------------------------------------------------------------------------------

    def _render(
        self, values: Values, condition: str, known_errors: tuple[str, ...] = ()
    ) -> TrialGraph | None:
        """The graph for `values`; None if it has no answer. What is wrong with it, except `known_errors`, is a fault."""
        template = self._workflow.template
        try:
            nodes = render_nodes(template, values, self._catalogue)
        except TemplateInvalid as error:
            remedy = remedies.for_template_error(error.message, values, self._workflow)
            self._fault(error.message + remedy + condition)
            return None
        errors = list(find_errors(nodes, self._signatures, template))
        texts = tuple(map(str, errors))
        hint = self._catalogue.renderer.quotes_hint(template)
        for error_of_node, text in zip(errors, texts, strict=True):
            if text not in known_errors:
                text = remedies.explained(
                    error_of_node, condition, nodes, values, self._rules, self._signatures
                )
                self._fault(text + hint)
                hint = ""
        if not all(map(_has_form, nodes.values())):
            return None
        self._classes |= {node["class_type"] for node in nodes.values()}
        self._note_files(nodes, values)
        try:
            output = self._output(nodes)
        except GraphInvalid as no_answer:
            # These errors say already why there is no answer.
            if not any("no output node" in text or "unknown node class" in text for text in texts):
                self._fault(no_answer.message + condition)
            return None
        return TrialGraph(values, nodes, output, texts)

    def _render_unchecked(self, values: Values) -> TrialGraph | None:
        try:
            nodes = render_nodes(self._workflow.template, values, self._catalogue)
            return TrialGraph(values, nodes, self._output(nodes))
        except (TemplateInvalid, GraphInvalid):
            return None

    def _output(self, nodes: Nodes) -> str:
        return find_output(
            nodes,
            self._signatures,
            template=self._workflow.template,
            workflow=self._workflow.id,
            declared=self._workflow.output,
        )

    def _note_files(self, nodes: Nodes, values: Values) -> None:
        """Remember the files that the template names itself."""
        given = {*values["files"].values(), *(lora["file"] for lora in values["loras"])}
        for node_id, node in nodes.items():
            for name, value in node["inputs"].items():
                entry = input_signature(nodes, (node_id, name), self._signatures)
                if (
                    entry is not None
                    and entry.is_model_file
                    and isinstance(value, str)
                    and value not in given
                ):
                    self._files.add((entry.folder or _UNKNOWN_FOLDER, value))

    # --- one change ----------------------------------------------------------------------------------

    def _check(
        self, change: Change, base: TrialGraph, condition: str
    ) -> Iterator[tuple[TrialGraph, Values, str]]:
        """Check one change; yields each changed graph, the values that led to it, and how to say these."""
        start: TrialGraph | None = base
        if change.start:
            start = self._render({**base.values, **change.start}, condition, base.errors)
        if start is None:
            return
        seen = [start]
        for variant in change.variants:
            said = (
                _say({**change.start, **variant}) if change.rule is not None else f" (with `{change.name}`)"
            )
            values = {**start.values, **variant}
            if change.must_be_valid:
                changed = self._render(values, condition or said, start.errors)
            else:
                changed = self._render_unchecked(values)
            if changed is None:
                return
            yield changed, {**change.start, **variant}, said
            same = next((graph for graph in seen if graph.part == changed.part), None)
            if same is not None:
                self._note_no_effect(change, start, same, changed, condition)
                return
            seen.append(changed)
            self._check_arrival(change, start, changed, condition)
        if change.name.startswith("files."):
            self._used_roles.add(change.name.removeprefix("files."))

    def _note_no_effect(
        self, change: Change, start: TrialGraph, same: TrialGraph, changed: TrialGraph, condition: str
    ) -> None:
        name = change.name
        if name.startswith("files."):
            self._note_unused_role(name.removeprefix("files."), start, condition)
        elif name == "seed" and self._is_seedless(start):
            self._has_seed = False
        elif name == "batch" and not self._has_seed:
            pass  # several pictures are refused, because they would be the same
        elif change.is_required or self._has_fixed_size(name, start):
            self._names_at_fault.add(name)
            what = f"`{name}` has no effect"
            if change.rule is not None and (len(change.variants) > 1 or same is not start):
                pair = (given_value(graph.values[name]) for graph in (same, changed))
                what = (
                    f"`{name}`: {' and '.join(pair)} give the same graph"
                    if self._has_any_effect(change, start)
                    else what
                )
            remedy = remedies.for_no_effect(
                change, start, changed, condition, self._taken(start, name), self._workflow, self._signatures
            )
            self._fault(f"{self._workflow.template}: {what}{condition}; {remedy}")

    def _check_side(
        self,
        name: str,
        places: list[tuple[Place, InputSignature | None]],
        changed: TrialGraph,
        condition: str,
    ) -> None:
        """The width must not only arrive as a height, nor the height as a width."""
        swapped = [place for place, _ in places if place[1] == _OTHER_SIDE[name]]
        if swapped and len(swapped) == len(places):
            remedy = write_at(swapped[:1], changed.nodes, _OTHER_SIDE[name])
            self._fault(
                f"{self._workflow.template}: `{name}` is used as the {_OTHER_SIDE[name]}{condition}; {remedy}"
            )

    def _has_any_effect(self, change: Change, start: TrialGraph) -> bool:
        graphs = [self._render_unchecked({**start.values, **variant}) for variant in change.variants]
        return any(graph is not None and graph.part != start.part for graph in graphs)

    def _taken(self, start: TrialGraph, name: str) -> set[Place]:
        """The inputs of nodes that get another value than `name`, a variable or a role of `files`."""
        values = other_values(start.values, self._rules, except_for=name)
        changed = self._render_unchecked(values)
        return set() if changed is None else set(changed_places(start, changed))

    def _note_unused_role(self, role: str, start: TrialGraph, condition: str) -> None:
        folder, file = dict(self._traits.roles)[role], self._model.files[role].name
        fault, is_literal = remedies.for_unused_role(
            role, folder, file, start, self._workflow.template, self._taken(start, role), self._signatures
        )
        if not condition:
            self._unused_roles[role] = UnusedRole(fault, is_literal)
        elif is_literal and role in self._used_roles:
            self._fault(fault + condition)

    def _is_seedless(self, start: TrialGraph) -> bool:
        """Whether the same image always gives the same picture, as with an upscaler."""
        return self._task != "generate" and not has_input(start.nodes, set(start.part), SEED_NAMES)

    def _has_fixed_size(self, name: str, start: TrialGraph) -> bool:
        """Whether the graph redraws an image on a canvas of its own, with a width or height that no request can set."""
        return name in ("width", "height") and bool(fixed_size_places(start.nodes, set(start.part), name))

    def _check_arrival(self, change: Change, start: TrialGraph, changed: TrialGraph, condition: str) -> None:
        """Texts must arrive unchanged, nodes must take every choice; note which sizes they take."""
        if change.text is not None and not changed.contains(change.text):
            self._names_at_fault.add(change.name)
            remedy = remedies.for_changed_text(change.name, start, changed)
            self._fault(f"{self._workflow.template}: {remedy}{condition}")
        if not change.choices and change.name not in ("width", "height"):
            return
        places = list(arrivals(change.name, start, changed, self._signatures))
        for place, entry in places if change.choices else ():
            refused = [
                choice for choice in change.choices if entry and entry.choices and choice not in entry.choices
            ]
            if refused:
                remedy = remedies.for_refused_choices(change.name, place, refused, changed)
                self._fault(f"{self._workflow.template}: {remedy}{condition}")
        if change.name in ("width", "height"):
            self._check_side(change.name, places, changed, condition)
        if change.name in ("width", "height") and not condition:
            self._side_ranges[change.name] = tuple(
                SideRange(
                    f"{describe(changed.nodes, place[0])}, input {place[1]!r}", entry.minimum, entry.maximum
                )
                for place, entry in places
                if entry is not None
            )


_UNKNOWN_FOLDER = "unknown"
"""The folder under which a file is listed if no signature says where it belongs"""
_OTHER_SIDE = {"width": "height", "height": "width"}


def _has_form(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _say(values: Values) -> str:
    """A condition for messages, such as ` (with schedule "ays")`."""
    return f" (with {', '.join(f'{name} {given_value(value)}' for name, value in values.items())})"
