"""The proof of one workflow for one task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.answer import describe, find_output
from compiler.catalogue import Catalogue, Model, Workflow
from compiler.check import BROKEN_LINKS, find_errors
from compiler.graph import render_nodes
from compiler.links import is_link, upstream
from compiler.proof import remedies
from compiler.proof.canvas import content, is_before_a_sampler, size_place
from compiler.proof.changes import (
    IMAGES,
    Change,
    Traits,
    base_values,
    general_changes,
    input_changes,
    more_images,
    other_values,
)
from compiler.proof.hints import OTHER_SIDE, SEED_NAMES, Place, has_input, input_signature
from compiler.proof.pattern import FILE_NAME_INPUT, MIN_NODES, Filled, Patterns
from compiler.proof.trial_graph import ABSENT, TrialGraph, Values, arrivals, changed_places
from compiler.signatures import NodeSignature
from compiler.values import Nodes, Task
from compiler.versions import Marks
from errors import GraphInvalid, TemplateInvalid, shorten
from schemas.explain import given_value

_MAX_FAULTS = 30
"""Further faults of a task are only counted."""

_MAX_RENDERINGS = 5000
"""More for one proof is a fault; this bounds the time that a template with very many values and branches takes."""

_SHARE_OF_A_CHANGE = 0.1
"""The time to consider a change in a branch, compared with that of a rendering"""

_CHANGES_OF_BRANCHES = ("width", "height", "batch", "loras", "crop", IMAGES)
"""Variables of every template that may lead to another branch of it, besides the declared inputs"""


@dataclass(frozen=True)
class SideRange:
    """The smallest and largest width or height that an input of a node takes."""

    where: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class UsedParts:
    """What a graph uses that not every ComfyUI has: the versions that have it, and what only the documentation has."""

    marks: Marks = ()
    unverified: tuple[str, ...] = ()


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
    traits: Traits
    base: TrialGraph | None = None
    """The graph for the base values; None if it has no answer"""
    other: TrialGraph | None = None
    """The graph with all values changed, if it has an answer"""
    places: Mapping[str, set[Place]] = field(default_factory=dict)
    """name of a value -> the inputs that it changes"""
    names_at_fault: frozenset[str] = frozenset()
    patterns: Patterns | None = None
    trials: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The faults of values that only some models have, by these values"""
    used_parts: dict[str, UsedParts] = field(default_factory=dict)
    """Those of the graph, by the values that only some models have"""


def prove_template(
    catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, traits: Traits
) -> TemplateProof:
    """`model` is one of those that share the proof: its files and sizes are the base values."""
    return Prover(catalogue, model, workflow, task, traits).prove()


def failure(template: str, error: Exception) -> str:
    """The fault of a template on which the proof itself failed: the model cannot be drawn, but all others can."""
    return (
        f"{template}: it cannot be checked ({type(error).__name__}: {shorten(str(error), 200)}); the log has the details. "
        "Simplify the template, and report this as a bug of Easel"
    )


def failed_proof(fault: str, traits: Traits) -> TemplateProof:
    """A proof that has only this fault."""
    return TemplateProof(
        faults=(fault,),
        has_seed=True,
        unused_roles={},
        side_ranges={},
        files=(),
        signatures={},
        traits=traits,
    )


class Prover:
    """Renders the template with one value changed after another, and collects the faults."""

    def __init__(
        self, catalogue: Catalogue, model: Model, workflow: Workflow, task: Task, traits: Traits
    ) -> None:
        self._catalogue, self._signatures = catalogue, catalogue.signatures
        self._model, self._workflow, self._task, self._traits = model, workflow, task, traits
        self._rules = workflow.inputs_for(task)
        self._patterns: Patterns | None = None
        self._faults: dict[str, None] = {}
        self._names_at_fault: set[str] = set()
        self._has_seed = True
        self._classes: set[str] = set()
        self._used_roles: set[str] = set()
        self._unused_roles: dict[str, UnusedRole] = {}
        self._side_ranges: dict[str, tuple[SideRange, ...]] = {}
        self._files: set[tuple[str, str]] = set()
        self._places: dict[str, set[Place]] = {}
        self._renderings = 0.0
        self._reported: set[str] = set()
        """Errors of templates and graphs: each is listed with the first values that lead to it."""

    def prove(self) -> TemplateProof:
        base = self._render(base_values(self._workflow, self._model, self._task), "")
        other = None
        if base is not None:
            other = self._render_unchecked(self._other_values(base.values))
            with self._bounded():
                self._prove_rounds(base, other)
        unused = {role: entry for role, entry in self._unused_roles.items() if role not in self._used_roles}
        return TemplateProof(
            faults=self._listed_faults(),
            has_seed=self._has_seed,
            unused_roles=unused,
            side_ranges=self._side_ranges,
            files=tuple(sorted(self._files)),
            signatures={name: self._signatures.get(name) for name in self._classes},
            traits=self._traits,
            base=base,
            other=other,
            places=self._places,
            names_at_fault=frozenset(self._names_at_fault),
            patterns=self._patterns,
        )

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Too many renderings are a fault."""
        try:
            yield
        except _TooManyRenderings:
            self._fault(
                f"{self._workflow.template}: it has too many values and branches to try them all (more than "
                f"{_MAX_RENDERINGS} graphs); declare fewer inputs or choices, or make several workflows of it"
            )

    def _prove_rounds(self, base: TrialGraph, other: TrialGraph | None) -> None:
        again = self._render_unchecked(base.values)
        if again is None or again.fingerprint != base.fingerprint:
            self._fault(
                f"{self._workflow.template}: equal values must give equal graphs, but two renderings differ"
            )
        branches: list[_Branch] = []
        for change in self._changes(base, is_first=True):
            branches += [_Branch(change, *each) for each in self._check(change, base, "")]
        shapes = {base.shape}
        for branch in branches:
            is_new = branch.graph.shape not in shapes
            shapes.add(branch.graph.shape)
            if is_new or _leads_to_a_branch(branch.change):
                self._prove_branch(branch.graph, branch.given, branch.condition, base, other, is_new=is_new)

    def _prove_branch(
        self,
        graph: TrialGraph,
        given: Values,
        condition: str,
        base: TrialGraph,
        other: TrialGraph | None,
        *,
        is_new: bool,
    ) -> None:
        """Every other value must have an effect in this branch too. One rendering with all of them changed shows most of
        them; those that it does not show are changed one by one."""
        if base.errors and not graph.errors:
            graph = replace(graph, errors=base.errors)
        changed = None if other is None else self._render_unchecked({**other.values, **given})
        for change in self._changes(graph, is_first=False):
            self._count_rendering(_SHARE_OF_A_CHANGE)
            if {change.name, change.name.partition("[")[0]} & self._names_at_fault:
                continue
            if change.name.partition(".")[0] in given:
                continue
            is_optional = not change.is_required and change.text is None
            if change.name in OTHER_SIDE and self._task != "generate":
                is_optional = size_place(graph.nodes, graph.output, change.name) is None
            if is_optional and not is_new:
                continue
            if (
                changed is None
                or other is None
                or not self._has_effect(change.name, graph, changed, base, other)
            ):
                for _ in self._check(change, graph, condition):
                    pass

    def _has_effect(
        self, name: str, graph: TrialGraph, changed: TrialGraph, base: TrialGraph, other: TrialGraph
    ) -> bool:
        """Whether an input to which `name` is passed outside the branch gets the same in the branch, before and after
        all values were changed."""
        return any(
            graph.value(place) == base.value(place)
            and changed.value(place) == other.value(place)
            and base.value(place) != other.value(place)
            for place in self._places.get(name, ())
        )

    def _other_values(self, values: Values) -> dict[str, Any]:
        loras = [{"id": "one", "file": "one.safetensors", "strength": 0.5}] if self._traits.has_loras else []
        return {**other_values(values, self._rules), "loras": loras}

    def _changes(self, base: TrialGraph, *, is_first: bool) -> Iterator[Change]:
        yield from general_changes(
            self._task,
            self._traits,
            base.values,
            self._workflow.images,
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
        self._count_rendering()
        filled = self._fill(values)
        try:
            nodes = render_nodes(template, values, self._catalogue) if filled is None else filled.nodes
        except TemplateInvalid as error:
            if error.message not in self._reported:
                self._reported.add(error.message)
                remedy = remedies.for_template_error(error.message, values, self._workflow)
                self._fault(error.message + remedy + condition)
            return None
        errors = None if filled is None else filled.errors(self._signatures, template)
        is_known = errors == []
        if errors is None:
            errors = list(find_errors(nodes, self._signatures, template))
        if filled is not None and not errors:
            filled.note_checked()
        texts = tuple(map(str, errors))
        hint = self._catalogue.renderer.quotes_hint(template)
        for error_of_node, text in zip(errors, texts, strict=True):
            if text not in known_errors and text not in self._reported:
                self._reported.add(text)
                text = remedies.explained(
                    error_of_node, condition, nodes, values, self._rules, self._signatures
                )
                self._fault(text + hint)
                hint = ""
        if filled is not None and is_known and self._classes:
            return self._graph(values, nodes, filled.output, texts, filled)
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
        return self._graph(values, nodes, output, texts, filled)

    def _fill(self, values: Values) -> Filled | None:
        """The graph for `values`, if the template need not be rendered for it."""
        return None if self._patterns is None else self._patterns.fill(values)

    def _graph(
        self,
        values: Values,
        nodes: Nodes,
        output: str,
        errors: tuple[str, ...] = (),
        filled: Filled | None = None,
    ) -> TrialGraph:
        if self._patterns is None and len(nodes) >= MIN_NODES:
            self._patterns = Patterns(self._catalogue, self._workflow)
            filled = self._fill(values)
            if filled is not None and filled.nodes == nodes:
                nodes = filled.nodes
                if not errors:
                    filled.note_checked()
            else:
                self._patterns.give_up()
                filled = None
        return TrialGraph(values, nodes, output, errors, filled, has_digest=self._patterns is not None)

    def _count_rendering(self, share: float = 1.0) -> None:
        self._renderings += share
        if self._renderings > _MAX_RENDERINGS:
            raise _TooManyRenderings

    def _render_unchecked(self, values: Values) -> TrialGraph | None:
        self._count_rendering()
        if (filled := self._fill(values)) is not None:
            return self._graph(values, filled.nodes, filled.output, (), filled)
        try:
            nodes = render_nodes(self._workflow.template, values, self._catalogue)
            if not all(map(_has_form, nodes.values())):
                return None
            return self._graph(values, nodes, self._output(nodes))
        except (TemplateInvalid, GraphInvalid):
            return None

    def _output(self, nodes: Nodes) -> str:
        return find_output(
            nodes,
            self._signatures,
            template=self._workflow.template,
            entry=self._workflow.entry,
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
        by_text = {_text(start, change): start}
        for index, variant in enumerate((*change.variants, *change.more)):
            said = _said(change, variant)
            values = {**start.values, **variant}
            if not change.must_be_valid:
                changed = self._render_unchecked(values)
            elif index < len(change.variants):
                changed = self._render(values, condition or said, start.errors)
            else:
                changed = self._render_further(values, condition or said)
            if changed is None:
                return
            self._places.setdefault(change.name, set()).update(
                [(changed.output, FILE_NAME_INPUT)]
                if change.name == "prefix"
                else changed_places(start, changed)
            )
            yield changed, {**change.start, **variant}, said
            if change.name in OTHER_SIDE:
                self._check_side(change, start, changed, condition)
            elif self._is_too_large(change, variant, seen):
                continue  # the template reduces it, as it must
            elif (same := by_text.get(_text(changed, change))) is not None:
                self._note_no_effect(change, start, same, changed, condition)
                return
            seen.append(changed)
            by_text[_text(changed, change)] = changed
            self._check_arrival(change, start, changed, condition)
        self._check_passed(change, seen, condition)
        if change.name.startswith("files."):
            self._used_roles.add(change.name.removeprefix("files."))

    def _render_further(self, values: Values, condition: str) -> TrialGraph | None:
        """Like `_render`, without checking a graph that differs only in a value that the node takes."""
        changed = self._render_unchecked(values)
        return self._render(values, condition) if changed is None else changed

    def _is_too_large(self, change: Change, variant: Values, seen: list[TrialGraph]) -> bool:
        """Whether the seed is above what the nodes take that get it."""
        if change.name != "seed" or not change.is_required or len(seen) < 2:
            return False
        places = arrivals("seed", seen[0], seen[1], self._signatures)
        highest = [None if entry is None else entry.maximum for _, entry in places]
        return bool(highest) and all(limit is not None and variant["seed"] > limit for limit in highest)

    def _check_passed(self, change: Change, seen: list[TrialGraph], condition: str) -> None:
        """An input that gets a value as it is must get every value as it is, not only some of them."""
        if len(seen) < 3 or not change.is_passed or change.text is not None:
            return
        name, handled = change.name, change.rule.more_choices if change.rule is not None else ()
        for place, _ in list(arrivals(name, seen[0], seen[1], self._signatures)):
            for graph in seen[2:]:
                value, given = graph.value(place), graph.values[name]
                if value not in (given, ABSENT) and given not in handled:
                    self._names_at_fault.add(name)
                    self._fault(
                        f"{self._workflow.template}: {describe(graph.nodes, place[0])}, input {place[1]!r} gets "
                        f"{given_value(value)} if `{name}` is {given_value(given)}{condition}; write {{{{ {name} }}}}"
                    )
                    return

    def _note_no_effect(
        self, change: Change, start: TrialGraph, same: TrialGraph, changed: TrialGraph, condition: str
    ) -> None:
        name = change.name
        if any(f": {message}" in error for error in start.errors for message in BROKEN_LINKS):
            self._names_at_fault.add(
                name
            )  # which cuts off what gets it; the next check tells, once that is corrected
        elif name.startswith("files."):
            self._note_unused_role(name.removeprefix("files."), start, condition)
        elif name == "seed" and self._is_seedless(start):
            self._has_seed = False
        elif name == "batch" and not self._has_seed:
            pass  # several pictures are refused, because they would be the same
        elif change.is_required:
            self._names_at_fault.add(name)
            what = f"`{name}` has no effect"
            if len(change.variants) + len(change.more) > 1 or same is not start:
                pair = (_given(graph, name) for graph in (same, changed))
                what = (
                    f"`{name}`: {' and '.join(pair)} give the same graph"
                    if self._has_any_effect(change, start)
                    else what
                )
            if number := self._images_for_an_effect(change, start):
                what = f"`{name}` has no effect on a request with fewer than {number} images"
                remedy = remedies.for_few_images(name, number, self._workflow)
            else:
                remedy = remedies.for_no_effect(
                    change,
                    start,
                    changed,
                    condition,
                    self._taken(start, name),
                    self._workflow,
                    self._signatures,
                )
            self._fault(f"{self._workflow.template}: {what}{condition}; {remedy}")

    def _images_for_an_effect(self, change: Change, start: TrialGraph) -> int:
        """The number of images with which an input has an effect, if it has none with those of `start`; else 0."""
        if change.rule is None or not start.values[IMAGES]:
            return 0
        for values in more_images(start.values[IMAGES], self._workflow.images.max):
            graphs = [
                self._render_unchecked({**start.values, **values, **variant})
                for variant in ({}, change.variants[0])
            ]
            first, second = graphs
            if first is not None and second is not None and first.fingerprint != second.fingerprint:
                return len(values[IMAGES])
        return 0

    def _check_side(self, change: Change, start: TrialGraph, changed: TrialGraph, condition: str) -> None:
        """The width, or height, must decide the size of the pictures: another node that gets it is not enough."""
        name = change.name
        if start.values["crop"] is not None:
            return  # the graph crops to a size of its own
        if self._workflow.size_from_image and self._task != "generate":
            return  # the workflow says so; what the pictures really have is measured and listed
        before, after = (size_place(graph.nodes, graph.output, name) for graph in (start, changed))
        if before is None or after is None:
            # The pictures have the size of the loaded image, or it is not known what decides their size.
            if self._task == "generate" and before is None and start.fingerprint == changed.fingerprint:
                self._note_no_effect(change, start, start, changed, condition)
            return
        was, now = content(start.nodes, before), content(changed.nodes, after)
        if was != now or self._is_the_only_size(name, start, was):
            return
        if self._task != "generate" and self._is_seedless(start):
            return  # such as an upscaler to a certain size
        self._names_at_fault.add(name)
        what = (
            "has no effect"
            if start.fingerprint == changed.fingerprint
            else "does not set the size of the picture"
        )
        other = size_place(changed.nodes, changed.output, OTHER_SIDE[name])
        if other is not None and content(start.nodes, other) != content(changed.nodes, other):
            if condition:
                return  # An input may turn the picture on its side.
            what = f"is used as the {OTHER_SIDE[name]}"
        remedy = remedies.for_side(
            change,
            before,
            other,
            start,
            changed,
            condition,
            self._taken(start, name),
            self._workflow,
            self._signatures,
        )
        self._fault(f"{self._workflow.template}: `{name}` {what}{condition}; {remedy}")

    def _is_the_only_size(self, name: str, start: TrialGraph, given: str) -> bool:
        """Whether the graph has the only width, or height, that the model draws."""
        varies = self._traits.width_varies if name == "width" else self._traits.height_varies
        return not varies and given == str(start.values[name])

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

    def _check_arrival(self, change: Change, start: TrialGraph, changed: TrialGraph, condition: str) -> None:
        """Texts must arrive unchanged, nodes must take every choice; note which sizes they take."""
        if change.text is not None and not changed.contains(change.text):
            self._names_at_fault.add(change.name)
            remedy = remedies.for_changed_text(change.name, start, changed)
            self._fault(f"{self._workflow.template}: {remedy}{condition}")
        if change.name == "batch" and not self._draws_several(start, changed):
            self._names_at_fault.add("batch")
            self._fault(
                f"{self._workflow.template}: `batch` only repeats pictures that are drawn already{condition}; "
                f"{remedies.BATCH_REMEDY}"
            )
        if change.name == "prompt" and (node_id := self._only_negative(start, changed)) is not None:
            self._names_at_fault.add("prompt")
            self._fault(
                f"{self._workflow.template}: `prompt` only reaches the input 'negative' of "
                f"{describe(changed.nodes, node_id)}{condition}; write {{{{ prompt }}}} in the text that its input "
                "'positive' gets"
            )
        if not change.choices and change.name not in OTHER_SIDE:
            return
        places = list(arrivals(change.name, start, changed, self._signatures))
        for place, entry in places if change.choices else ():
            refused = [
                choice
                for choice in change.choices
                if entry and entry.choices and not entry.any_value and choice not in entry.choices
            ]
            if refused:
                remedy = remedies.for_refused_choices(change.name, place, refused, changed)
                self._fault(f"{self._workflow.template}: {remedy}{condition}")
        if change.name in OTHER_SIDE and not condition:
            self._side_ranges[change.name] = tuple(
                SideRange(
                    f"{describe(changed.nodes, place[0])}, input {place[1]!r}", entry.minimum, entry.maximum
                )
                for place, entry in places
                if entry is not None
            )

    def _draws_several(self, start: TrialGraph, changed: TrialGraph) -> bool:
        places = {place[0] for place in changed_places(start, changed)}
        new = set(changed.part) - set(start.part)
        return is_before_a_sampler(changed.nodes, set(changed.part), places | new)

    def _only_negative(self, start: TrialGraph, changed: TrialGraph) -> str | None:
        """A node that gets the prompt as what to avoid, if no node gets it as what to draw; else None."""
        nodes, places = changed.nodes, {place[0] for place in changed_places(start, changed)}
        negative = None
        for node_id, (_, inputs) in changed.part.items():
            sides = [inputs.get(side) for side in ("positive", "negative")]
            if not all(is_link(link, nodes) for link in sides):
                continue
            wanted, avoided = (bool(places & upstream(nodes, [link[0]])) for link in sides if link)
            if wanted:
                return None
            negative = node_id if avoided else negative
        return negative


@dataclass(frozen=True)
class _Branch:
    """A changed graph in which every other value must have an effect too."""

    change: Change
    graph: TrialGraph
    given: Values
    condition: str


class _TooManyRenderings(Exception):
    pass


def _leads_to_a_branch(change: Change) -> bool:
    if change.rule is None:
        return change.name in _CHANGES_OF_BRANCHES
    return "enum" in change.rule.schema or change.rule.schema["type"] != "string"


def _text(graph: TrialGraph, change: Change) -> str | int:
    """What the change must change, as a value that can be compared."""
    return repr(graph.part_with_file_name) if change.name == "prefix" else graph.fingerprint


_UNKNOWN_FOLDER = "unknown"
"""The folder under which a file is listed if no signature says where it belongs"""


def _has_form(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _said(change: Change, variant: Values) -> str:
    """The condition of a variant, for messages"""
    if change.name == IMAGES:
        return f" (with {_number_of_images(variant)})"
    return say({**change.start, **variant}) if change.rule is not None else f" (with `{change.name}`)"


def _given(graph: TrialGraph, name: str) -> str:
    return _number_of_images(graph.values) if name == IMAGES else given_value(graph.values.get(name))


def _number_of_images(values: Values) -> str:
    number = len(values[IMAGES])
    return "1 image" if number == 1 else f"{number} images"


def say(values: Values, whose: str = "") -> str:
    """A condition for messages, such as ` (with schedule "ays")`."""
    return f" (with {whose}{', '.join(f'{name} {given_value(value)}' for name, value in values.items())})"
