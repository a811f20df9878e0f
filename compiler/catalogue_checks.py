"""The checks of a catalogue that its JSON Schema cannot express: that it agrees with itself, with the templates and
with the node signatures."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from compiler.catalogue import CATALOGUE_FILE, Input, Lora, Model, Presets, Workflow
from compiler.signatures import Signatures
from compiler.size import size_error
from compiler.sources import TEMPLATE_SUFFIX, Sources
from schemas import LocatedError, did_you_mean, explain


def choices_of(reference: str, signatures: Signatures) -> tuple[Any, ...] | None:
    """The choices of the node input `reference`, such as `KSampler.sampler_name`; None if it has no choices. An input of
    a dynamic combo's options, such as `SaveImageAdvanced.format.bit_depth`, has the choices of all options."""
    node, _, path = reference.partition(".")
    inputs = [signatures[node].inputs] if node in signatures else []
    *parents, name = path.split(".")
    for parent in parents:
        combos = [group[parent].options or {} for group in inputs if parent in group]
        inputs = [option for options in combos for option in options.values()]
    choices = [group[name].choices for group in inputs if name in group]
    # A request cannot send the lists and objects that some custom nodes have as choices.
    found = dict.fromkeys(
        choice
        for values in choices
        if values is not None
        for choice in values
        if isinstance(choice, str | int | float)
    )
    return tuple(found) if any(values is not None for values in choices) else None


def consistency_errors(
    document: Mapping[str, Any],
    workflows: Mapping[str, Workflow],
    models: Mapping[str, Model],
    sources: Sources,
    signatures: Signatures,
) -> Iterator[LocatedError]:
    if document["default_model"] not in models:
        yield (
            ("default_model",),
            f"there is no model {document['default_model']!r}{did_you_mean(document['default_model'], models)}; "
            f"available: {_list(models)}",
        )
    if not sources.templates:
        yield ("workflows",), "the folder of the templates has no file with a name that ends in .json.j2"
    for workflow in workflows.values():
        yield from workflow_errors(workflow, document, signatures)
    for model in models.values():
        yield from model_errors(model, workflows)
    yield from _duplicate_name_errors(models)


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def workflow_errors(
    workflow: Workflow, document: Mapping[str, Any], signatures: Signatures
) -> Iterator[LocatedError]:
    path = ("workflows", workflow.id)
    if workflow.images.min > workflow.images.max:
        yield (*path, "images"), f"min {workflow.images.min} is larger than max {workflow.images.max}"
    if "images" in document["workflows"][workflow.id] and set(workflow.tasks) == {"generate"}:
        yield (*path, "images"), "the task generate has no image; add edit, inpaint or vary to `tasks`"
    for name, entry in document["workflows"][workflow.id]["inputs"].items():
        reference = entry.get("x-choices", "")
        if reference and choices_of(reference, signatures) is None:
            if (
                _node_of(reference) in signatures
            ):  # if not, `unknown_choices` reports it for this workflow only
                yield (*path, "inputs", name, "x-choices"), _no_choices(reference, signatures)
        elif "default" in entry:
            yield from _value_errors(
                (*path, "inputs", name, "default"), workflow.inputs[name], entry["default"]
            )
        if entry.get("x-takes-more") and "maximum" not in entry:
            yield (*path, "inputs", name, "x-takes-more"), "requires a `maximum`"
        for other in entry.get("x-unused-when", {}):
            if other not in workflow.inputs:
                hint = did_you_mean(other, workflow.inputs)
                yield (*path, "inputs", name, "x-unused-when"), f"{other!r} is not an input{hint}"
        yield from _conditional_errors((*path, "inputs", name, "x-when"), workflow.inputs[name], workflow)
    yield from _preset_errors((*path, "presets"), workflow.presets, [workflow])


def _no_choices(reference: str, signatures: Signatures) -> str:
    node = _node_of(reference)
    names = [name for name, entry in signatures[node].inputs.items() if entry.choices is not None]
    name = reference.partition(".")[2]
    return (
        f"the node {node} has no input {name!r} with choices{did_you_mean(name, names)}; it has "
        f"{', '.join(names) or 'none'}. "
        "If your ComfyUI has another version of this node, `easel snapshot-nodes URL` learns it"
    )


def _node_of(reference: str) -> str:
    return reference.partition(".")[0]


# --- faults of single workflows ---------------------------------------------------------------------


def missing_template(workflow: str, template: str, templates: Mapping[str, str], file: str) -> Iterator[str]:
    """The fault of a workflow in `file` whose template does not exist, with what to write."""
    if template in templates:
        return
    names = [name.removesuffix(TEMPLATE_SUFFIX) for name in templates]
    similar = get_close_matches(template.removesuffix(TEMPLATE_SUFFIX), names, n=1)
    write = (
        f"`template: {similar[0]}{TEMPLATE_SUFFIX}`"
        if similar
        else f"`template: FILE`, one of {_list(templates)},"
    )
    folder = "the folder of the templates" if file == CATALOGUE_FILE else file.rpartition("/")[0]
    yield (
        f"there is no template {template}; add the file to {folder}, or write {write} "
        f"under workflows.{workflow} in {file}"
    )


def unknown_choices(
    workflow: str, inputs: Mapping[str, Mapping[str, Any]], signatures: Signatures
) -> Iterator[str]:
    """The faults of a workflow with choices of nodes that are not known yet, with what to write."""
    for name, entry in inputs.items():
        node = _node_of(entry.get("x-choices", ""))
        if node and node not in signatures:
            similar = get_close_matches(node, signatures, n=1, cutoff=0.8)
            correct = f", or write {similar[0]} in its place" if similar else ""
            yield (
                f"workflows.{workflow}.inputs.{name}.x-choices: Easel does not know the node {node}; "
                f"`easel snapshot-nodes URL --node {shlex.quote(node)}` learns it from your ComfyUI{correct}"
            )


# --- further errors ---------------------------------------------------------------------------------


def _conditional_errors(
    path: tuple[str | int, ...], rule: Input, workflow: Workflow
) -> Iterator[LocatedError]:
    for index, conditional in enumerate(rule.conditional_schemas):
        for name in conditional.conditions:
            if name not in ("task", *workflow.inputs):
                hint = did_you_mean(name, ("task", *workflow.inputs))
                yield (*path, index, "if"), f"{name!r} is neither an input nor `task`{hint}"
        if "default" in conditional.schema:
            if set(conditional.conditions) != {"task"}:
                yield (*path, index, "then", "default"), "a default can only depend on the task"
            merged = Input({**rule.schema, **conditional.schema})
            yield from _value_errors((*path, index, "then", "default"), merged, conditional.schema["default"])


def _preset_errors(
    path: tuple[str | int, ...], presets: Presets, workflows: Collection[Workflow]
) -> Iterator[LocatedError]:
    for field, choices in presets.items():
        for choice, values in choices.items():
            for name, value in values.items():
                rules = [workflow.inputs[name] for workflow in workflows if name in workflow.inputs]
                if not rules:
                    known = [key for workflow in workflows for key in workflow.inputs]
                    yield (*path, field, choice, name), f"{name!r} is not an input{did_you_mean(name, known)}"
                for rule in rules:
                    yield from _value_errors((*path, field, choice, name), rule, value)


def _value_errors(path: tuple[str | int, ...], rule: Input, value: Any) -> Iterator[LocatedError]:
    for error in rule.validator.iter_errors(value):
        yield path, explain(error)


def model_errors(model: Model, workflows: Mapping[str, Workflow]) -> Iterator[LocatedError]:
    path = ("models", model.id)
    rule = model.size
    for key, size in (("default", rule.default), *(("suggested", size) for size in rule.suggested)):
        if error := size_error(size, rule):
            yield (*path, "size", key), error
        elif size.width % rule.multiple_of or size.height % rule.multiple_of:
            yield (*path, "size", key), f"the sides of {size} are not multiples of {rule.multiple_of}"
    if rule.min.width > rule.max.width or rule.min.height > rule.max.height:
        yield (*path, "size"), f"min {rule.min} is larger than max {rule.max}"
    for task, workflow_id in model.workflows.items():
        if workflow_id not in workflows:
            hint = did_you_mean(workflow_id, workflows)
            yield (
                (*path, "workflow"),
                f"there is no workflow {workflow_id!r}{hint}; available: {_list(workflows)}",
            )
        elif task not in workflows[workflow_id].tasks:
            yield (*path, "workflow"), f"the workflow {workflow_id!r} does not have the task {task!r}"
    existing = [workflows[name] for name in model.workflows.values() if name in workflows]
    yield from _default_errors(model, existing)
    yield from _preset_errors((*path, "presets"), model.presets, existing)


def lora_errors(
    loras: Mapping[str, Lora], models: Mapping[str, Model], workflows: Mapping[str, Workflow]
) -> Iterator[LocatedError]:
    families = {model.family for model in models.values()}
    for lora in loras.values():
        for index, family in enumerate(lora.families):
            if family not in families:
                yield (
                    ("loras", lora.id, "families", index),
                    f"no model has the family {family!r}{did_you_mean(family, families)}; "
                    f"available: {', '.join(sorted(families))}",
                )
        yield from _lora_default_errors(lora, models, workflows)


def _lora_default_errors(
    lora: Lora, models: Mapping[str, Model], workflows: Mapping[str, Workflow]
) -> Iterator[LocatedError]:
    """A default must be allowed by one of the workflows at least; not by all: a family may have models of two stages, which
    need more steps."""
    used = {
        name
        for model in models.values()
        if model.family in lora.families
        for name in model.workflows.values()
    }
    existing = [workflows[name] for name in sorted(used) if name in workflows]
    for name, value in lora.defaults.items():
        path = ("loras", lora.id, "defaults", name)
        rules = [workflow.inputs[name] for workflow in existing if name in workflow.inputs]
        if existing and not rules:
            known = [key for workflow in existing for key in workflow.inputs]
            yield path, f"no model of its families has an input {name!r}{did_you_mean(name, known)}"
        if rules and not any(rule.validator.is_valid(value) for rule in rules):
            yield from _value_errors(path, rules[0], value)


def _default_errors(model: Model, workflows: list[Workflow]) -> Iterator[LocatedError]:
    path = ("models", model.id, "defaults")
    for name, value in model.defaults.items():
        rules = [workflow.inputs[name] for workflow in workflows if name in workflow.inputs]
        if workflows and not rules:
            known = [key for workflow in workflows for key in workflow.inputs]
            yield (*path, name), f"the workflow has no input {name!r}{did_you_mean(name, known)}"
        for rule in rules:
            yield from _value_errors((*path, name), rule, value)
    for workflow in workflows:
        for name, rule in workflow.inputs.items():
            if "default" not in rule.schema and name not in model.defaults:
                yield (
                    path,
                    f"the input {name!r} of workflow {workflow.id!r} has no default, so the model must set one",
                )


def _duplicate_name_errors(models: Mapping[str, Model]) -> Iterator[LocatedError]:
    model_ids: dict[str, str] = {}
    for model in models.values():
        other = model_ids.setdefault(model.id.casefold(), model.id)
        if other != model.id:
            yield ("models", model.id), f"differs from {other!r} only in upper and lower case"
    for model in models.values():
        for index, alias in enumerate(model.aliases):
            other = model_ids.setdefault(alias.casefold(), model.id)
            if other != model.id:
                yield (
                    ("models", model.id, "aliases", index),
                    f"the name {alias!r} is already used by {other!r}",
                )
