"""catalogue.yaml -> Catalogue: checked by its schema, then against itself, the templates and the node signatures. Every
fault is told at once, with file, line and path."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from compiler.catalogue import (
    DEFAULT_LIMIT_BATCH,
    DEFAULT_LIMIT_N,
    Catalogue,
    File,
    Input,
    Licence,
    Lora,
    Model,
    NamedChoice,
    Presets,
    SizeRule,
    Special,
    Workflow,
    size_fault,
)
from compiler.render import TemplateRenderer
from compiler.signatures import Signatures, parse_signatures
from compiler.sources import TEMPLATE_SUFFIX, Sources
from compiler.values import TASKS, Size
from errors import CatalogueInvalid
from yaml_text import line_of, read_yaml


def parse_catalogue(sources: Sources) -> Catalogue:
    """Check the texts against their schema and each other. Raises CatalogueInvalid with every fault found.

    Templates are not rendered yet: `compiler.load_catalogue` compiles every model as well.
    """
    document = _checked_document(sources)
    signatures = parse_signatures(json.loads(sources.nodes))
    workflows = {name: _workflow(name, entry, signatures) for name, entry in document["workflows"].items()}
    models = {name: _model(name, entry, workflows) for name, entry in document["models"].items()}
    loras = {name: _lora(name, entry) for name, entry in document.get("loras", {}).items()}
    faults = [
        *_contradictions(document, workflows, models, sources, signatures),
        *_lora_faults(loras, models),
    ]
    if faults:
        raise _invalid(sources, faults)
    return Catalogue(
        models=models,
        workflows=workflows,
        default_model=document["default_model"],
        signatures=signatures,
        sampling_names=_sampling_names(sources.sampling_names),
        renderer=TemplateRenderer(sources.templates),
        loras=loras,
    )


MOST_FAULTS = 20
_LONGEST_WORDS = 300
"""A fault repeats what was given, which may be a whole section of the file."""

Fault = tuple[tuple[str | int, ...], str]
"""Path in the document, and what is wrong there."""


def _invalid(sources: Sources, faults: list[Fault]) -> CatalogueInvalid:
    more = len(faults) - MOST_FAULTS
    lines = [
        f"{sources.catalogue_name}:{line_of(sources.catalogue, path)}: {'.'.join(map(str, path)) or 'document'}: {text}"
        for path, text in faults[:MOST_FAULTS]
    ]
    if more > 0:
        lines.append(f"and {more} more")
    return CatalogueInvalid("\n".join(lines), faults=lines)


def _checked_document(sources: Sources) -> Any:
    try:
        document = read_yaml(sources.catalogue)
    except ValueError as fault:
        raise CatalogueInvalid(f"{sources.catalogue_name}:{fault}") from fault
    validator = Draft202012Validator(json.loads(sources.catalogue_schema))
    found = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path)))
    if found:
        raise _invalid(
            sources, [(tuple(error.absolute_path), _in_words(error)[:_LONGEST_WORDS]) for error in found]
        )
    return document


def _in_words(error: ValidationError) -> str:
    if error.validator == "oneOf" and error.context:
        return "; or ".join(inner.message for inner in error.context)
    if error.validator == "pattern" and isinstance(error.schema, Mapping) and "description" in error.schema:
        return f"{error.instance!r} is not allowed: {error.schema['description']}"
    if error.validator == "not":
        return f"{error.instance!r} is not allowed here"
    return str(error.message)


def _contradictions(
    document: Mapping[str, Any],
    workflows: Mapping[str, Workflow],
    models: Mapping[str, Model],
    sources: Sources,
    signatures: Signatures,
) -> Iterator[Fault]:
    if document["default_model"] not in models:
        yield ("default_model",), f"{document['default_model']!r} is not a model; there is {_list(models)}"
    for workflow in workflows.values():
        yield from _workflow_faults(workflow, document, sources, signatures)
    for model in models.values():
        yield from _model_faults(model, workflows)
    yield from _names_claimed_twice(models)


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _workflow_faults(
    workflow: Workflow, document: Mapping[str, Any], sources: Sources, signatures: Signatures
) -> Iterator[Fault]:
    path = ("workflows", workflow.id)
    if workflow.template not in sources.templates:
        yield (*path, "template"), f"there is no {workflow.template} among {_list(sources.templates)}"
    for name, entry in document["workflows"][workflow.id]["inputs"].items():
        if "x-choices" in entry and _choices(entry["x-choices"], signatures) is None:
            yield (
                (*path, "inputs", name, "x-choices"),
                f"{entry['x-choices']!r} is not a node's input with choices in nodes.json",
            )
        elif "default" in entry:
            yield from _wrong_value(
                (*path, "inputs", name, "default"), workflow.inputs[name], entry["default"]
            )
        for other in entry.get("x-unused-when", {}):
            if other not in workflow.inputs:
                yield (*path, "inputs", name, "x-unused-when"), f"{other!r} is not an input"
        yield from _special_faults((*path, "inputs", name, "x-when"), workflow.inputs[name], workflow)
    yield from _preset_faults((*path, "presets"), workflow.presets, [workflow])


def _special_faults(path: tuple[str | int, ...], rule: Input, workflow: Workflow) -> Iterator[Fault]:
    for index, special in enumerate(rule.specials):
        for other in special.conditions:
            if other not in ("task", *workflow.inputs):
                yield (*path, index, "if"), f"{other!r} is neither an input nor task"
        if "default" in special.schema:
            if set(special.conditions) != {"task"}:
                yield (*path, index, "then", "default"), "a default can only depend on the task"
            whole = Input({**rule.schema, **special.schema})
            yield from _wrong_value((*path, index, "then", "default"), whole, special.schema["default"])


def _preset_faults(
    path: tuple[str | int, ...], presets: Presets, known: Iterable[Workflow]
) -> Iterator[Fault]:
    for field, choices in presets.items():
        for choice, values in choices.items():
            for name, value in values.items():
                rules = [workflow.inputs[name] for workflow in known if name in workflow.inputs]
                if not rules:
                    yield (*path, field, choice, name), f"{name!r} is not an input"
                for rule in rules:
                    yield from _wrong_value((*path, field, choice, name), rule, value)


def _wrong_value(path: tuple[str | int, ...], rule: Input, value: Any) -> Iterator[Fault]:
    for error in rule.validator.iter_errors(value):
        yield path, error.message


def _model_faults(model: Model, workflows: Mapping[str, Workflow]) -> Iterator[Fault]:
    path = ("models", model.id)
    rule = model.size
    for what, size in (("default", rule.default), *(("suggested", size) for size in rule.suggested)):
        if size_fault(size, rule) or size.width % rule.multiple_of or size.height % rule.multiple_of:
            yield (*path, "size", what), f"{size} is outside the model's own limits"
    if rule.min.width > rule.max.width or rule.min.height > rule.max.height:
        yield (*path, "size"), f"min {rule.min} is larger than max {rule.max}"
    for task, workflow_id in model.workflows.items():
        if workflow_id not in workflows:
            yield (*path, "workflow"), f"there is no workflow {workflow_id!r}; there is {_list(workflows)}"
        elif task not in workflows[workflow_id].tasks:
            yield (*path, "workflow"), f"the workflow {workflow_id!r} does not do {task!r}"
    known = [workflows[name] for name in model.workflows.values() if name in workflows]
    yield from _default_faults(model, known)
    yield from _preset_faults((*path, "presets"), model.presets, known)


def _lora_faults(loras: Mapping[str, Lora], models: Mapping[str, Model]) -> Iterator[Fault]:
    families = {model.family for model in models.values()}
    for lora in loras.values():
        for index, family in enumerate(lora.families):
            if family not in families:
                yield (
                    ("loras", lora.id, "families", index),
                    f"no model is of the family {family!r}; there is {', '.join(sorted(families))}",
                )


def _default_faults(model: Model, known: list[Workflow]) -> Iterator[Fault]:
    path = ("models", model.id, "defaults")
    for name, value in model.defaults.items():
        rules = [workflow.inputs[name] for workflow in known if name in workflow.inputs]
        if known and not rules:
            yield (*path, name), f"the workflow has no input {name!r}"
        for rule in rules:
            yield from _wrong_value((*path, name), rule, value)
    for workflow in known:
        for name, rule in workflow.inputs.items():
            if "default" not in rule.schema and name not in model.defaults:
                yield (
                    path,
                    f"the input {name!r} of workflow {workflow.id!r} has no default, so the model must give one",
                )


def _names_claimed_twice(models: Mapping[str, Model]) -> Iterator[Fault]:
    owners: dict[str, str] = {}
    for model in models.values():
        owner = owners.setdefault(model.id.casefold(), model.id)
        if owner != model.id:
            yield ("models", model.id), f"differs from {owner!r} only in case"
    for model in models.values():
        for index, alias in enumerate(model.aliases):
            owner = owners.setdefault(alias.casefold(), model.id)
            if owner != model.id:
                yield (
                    ("models", model.id, "aliases", index),
                    f"the name {alias!r} already belongs to {owner!r}",
                )


# --- entries -> values ----------------------------------------------------------------------------


def _workflow(name: str, entry: Mapping[str, Any], signatures: Signatures) -> Workflow:
    return Workflow(
        id=name,
        title=entry["title"],
        template=entry.get("template", name + TEMPLATE_SUFFIX),
        tasks=tuple(entry["tasks"]),
        inputs={key: _input(value, signatures) for key, value in entry["inputs"].items()},
        presets=entry.get("presets", {}),
    )


def _input(entry: Mapping[str, Any], signatures: Signatures) -> Input:
    schema = {key: value for key, value in entry.items() if not key.startswith("x-")}
    choices = _choices(entry.get("x-choices", ""), signatures)
    if choices is not None:
        schema["enum"] = [*choices, *entry.get("x-more-choices", ())]
    return Input(
        schema=schema,
        unused_when=entry.get("x-unused-when", {}),
        tasks=tuple(entry.get("x-tasks", TASKS)),
        specials=tuple(_special(special) for special in entry.get("x-when", ())),
    )


def _special(entry: Mapping[str, Any]) -> Special:
    conditions = {
        name: tuple(values) if isinstance(values, list) else (values,) for name, values in entry["if"].items()
    }
    return Special(conditions, entry["then"])


def _choices(reference: str, signatures: Signatures) -> tuple[Any, ...] | None:
    node, _, name = reference.partition(".")
    if node not in signatures or name not in signatures[node].inputs:
        return None
    return signatures[node].inputs[name].choices


def _model(name: str, entry: Mapping[str, Any], workflows: Mapping[str, Workflow]) -> Model:
    workflow = entry["workflow"]
    if isinstance(workflow, str):
        tasks = workflows[workflow].tasks if workflow in workflows else ("generate",)
        workflow = dict.fromkeys(tasks, workflow)
    limits = entry.get("limits", {})
    return Model(
        id=name,
        title=entry["title"],
        family=entry["family"],
        workflows=workflow,
        files={role: File(**file) for role, file in entry["files"].items()},
        licence=Licence(**entry["licence"]),
        size=_size_rule(entry["size"]),
        defaults=entry.get("defaults", {}),
        limit_n=limits.get("n", DEFAULT_LIMIT_N),
        limit_batch=limits.get("batch", DEFAULT_LIMIT_BATCH),
        aliases=tuple(entry.get("aliases", ())),
        disk_gb=entry.get("disk_gb"),
        min_vram_gb=entry.get("min_vram_gb"),
        presets=entry.get("presets", {}),
    )


def _lora(name: str, entry: Mapping[str, Any]) -> Lora:
    return Lora(
        id=name,
        title=entry["title"],
        families=tuple(entry["families"]),
        file=File(**entry["file"], folder="loras"),
        licence=Licence(**entry["licence"]),
        strength=entry.get("strength", 1.0),
    )


def _size_rule(entry: Mapping[str, Any]) -> SizeRule:
    return SizeRule(
        default=Size.parse(entry["default"]),
        multiple_of=entry["multiple_of"],
        min=Size.parse(entry["min"]),
        max=Size.parse(entry["max"]),
        max_pixels=entry.get("max_pixels"),
        suggested=tuple(Size.parse(text) for text in entry.get("suggested", ())),
    )


def _sampling_names(text: str) -> dict[str, dict[str, NamedChoice]]:
    return {
        kind: {
            name.casefold(): NamedChoice(entry["is"], entry.get("exact", True), entry.get("why", ""))
            for name, entry in names.items()
        }
        for kind, names in read_yaml(text).items()
    }
