"""Turns a request into a plan for its model: fills in every default, checks every limit, and notes every value that was
adjusted or ignored."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from compiler.catalogue import Catalogue, Input, Model, Workflow
from compiler.choose_size import ChosenSize, choose_size
from compiler.loras import read_loras, values_of_loras
from compiler.sampling_names import find_sampling_name, split_sampler
from compiler.size import has_ratio
from compiler.stages import planned_stages
from compiler.values import MAX_SEED, TASK_SOURCES, ImageRequest, JobPlan, Note, Plan, PlannedValue, Task
from errors import (
    MAX_NAMED,
    ImageCountNotAllowed,
    InvalidValue,
    ModelNotDrawable,
    PromptRequired,
    list_names,
)
from schemas import allowed_values, first_error
from schemas.explain import given_value

MAX_PROMPT_LENGTH = 32_000
"""characters; the limit of OpenAI's newest image models"""


def resolve(request: ImageRequest, catalogue: Catalogue) -> Plan:
    """The plan of `request`. Raises ModelNotCurated, PromptRequired, InvalidValue, SizeNotAllowed, ImageCountNotAllowed,
    LicenceNotAccepted."""
    model = catalogue.find(request.model)
    catalogue.licences.check(model)
    workflow = _workflow(request, model, catalogue)
    if request.source is not None and request.task != "generate":
        check_image_count(len(request.source.images), model, catalogue, [request.task])
    has_seed = catalogue.proof_of(model, request.task).has_seed
    request, loras = read_loras(request, model, catalogue)
    _check_prompt(request)
    inputs = split_sampler(request.inputs, workflow.inputs_for(request.task), catalogue)
    request = replace(request, inputs=inputs)
    chosen = choose_size(request, model, catalogue)
    of_loras = values_of_loras(request, loras, workflow.inputs_for(request.task), catalogue)
    presets = _presets(request, model, workflow, of_loras)
    planned, adjusted = _inputs(request, model, workflow, catalogue, presets, of_loras)
    ignored = [*_ignored_inputs(request, planned, workflow), *_ignored_presets(request, presets)]
    if not has_seed and request.seed_origin == "request":
        why = f"the workflow {workflow.id} has no seed: the same image always gives the same picture"
        ignored.append(Note("seed", request.seed, None, why))
    for note in ignored:
        if note.field in planned:
            planned[note.field] = default_value(note.field, model, workflow, request.task)
    return Plan(
        model=model.id,
        workflow=workflow.id,
        template=workflow.template,
        task=request.task,
        size=chosen.size,
        canvas=chosen.canvas,
        # ComfyUI fills in the date. It lists the folder at every save, so one folder a day keeps the listing short.
        prefix=f"easel/%year%-%month%-%day%/{request.id}",
        values={
            "task": PlannedValue(request.task, "request"),
            "prompt": PlannedValue(request.prompt, "request"),
            "width": PlannedValue(chosen.canvas.width, chosen.origin),
            "height": PlannedValue(chosen.canvas.height, chosen.origin),
            **planned,
            **_source_values(request, chosen),
            "loras": PlannedValue(loras.planned, "request"),
            "files": PlannedValue({role: file.name for role, file in model.files.items()}, "model"),
        },
        jobs=_jobs(request, model, workflow, has_seed),
        adjusted=(*chosen.notes, *loras.adjusted, *adjusted, *_cropped_inputs(request, chosen)),
        ignored=(*loras.ignored, *ignored),
        presets={field: request.presets[field] for field, values in presets.items() if values},
        has_seed=has_seed,
        input_images=frozenset(request.input_images),
        stages={each.stage.id: each.value for each in planned_stages(request.stages, catalogue)},
    )


def _workflow(request: ImageRequest, model: Model, catalogue: Catalogue) -> Workflow:
    if request.task not in model.workflows:
        supported = ", ".join(f"{task} ({TASK_SOURCES[task]})" for task in model.workflows)
        raise InvalidValue(
            f"The model {model.id!r} does not support the task {request.task!r}, only {supported}.",
            param="model",
        )
    if faults := catalogue.proof_of(model, request.task).faults:
        raise _not_drawable(request, model, catalogue, faults)
    return catalogue.workflows[model.workflows[request.task]]


def _not_drawable(
    request: ImageRequest, model: Model, catalogue: Catalogue, faults: tuple[str, ...]
) -> ModelNotDrawable:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ModelNotDrawable(
        f"The model {model.id!r} cannot draw the task {request.task!r} until its workflow is corrected: "
        f"{faults[0]}{more}",
        param="model",
        model=model.id,
        task=request.task,
        faults=list(faults),
        tasks=list(catalogue.drawable_tasks(model)),
    )


def check_image_count(number: int, model: Model, catalogue: Catalogue, tasks: Collection[Task]) -> None:
    """Raises ImageCountNotAllowed if the model takes `number` images for none of `tasks`, but has one of them. It names
    models that take so many for one of `tasks`."""
    counts = catalogue.image_counts(model)
    allowed = {task: count for task, count in counts.items() if task in tasks}
    if not allowed or any(number in count for count in allowed.values()):
        return
    said = " or ".join(dict.fromkeys(map(str, allowed.values())))
    names = " or ".join(allowed)
    where = f" for the task {names}" if len(set(counts.values())) > len(set(allowed.values())) else ""
    others = [
        other.id
        for other in catalogue.visible_models
        if any(
            number in count
            for other_task, count in catalogue.image_counts(other).items()
            if other_task in tasks and other_task in catalogue.drawable_tasks(other)
        )
    ]
    remedy = f", or choose a model that takes {number}: {list_names(others)}" if others else ""
    raise ImageCountNotAllowed(
        f"The request has {number} image{'s' if number > 1 else ''}; {model.id} takes {said}{where}. Send as many{remedy}.",
        param="image",
        images=number,
        min=min(count.min for count in allowed.values()),
        max=max(count.max for count in allowed.values()),
        models=others[:MAX_NAMED],
    )


def _source_values(request: ImageRequest, chosen: ChosenSize) -> dict[str, PlannedValue]:
    """The template variables of the images, the mask and the crop of the first; each is None, or empty, if the request has
    none."""
    source, must_crop = request.source, chosen.size != chosen.canvas
    crop = {"width": chosen.size.width, "height": chosen.size.height} if must_crop else None
    return {
        "image": PlannedValue(source.image if source else None, "request"),
        "images": PlannedValue(list(source.images) if source else [], "request"),
        "mask": PlannedValue(source.mask if source else None, "request"),
        "crop": PlannedValue(crop, chosen.origin),
    }


def _check_prompt(request: ImageRequest) -> None:
    prompt = request.prompt
    if not prompt.strip() and request.task != "vary":
        raise PromptRequired("A prompt is required.", param="prompt")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidValue(
            f"The prompt has {len(prompt)} characters; at most {MAX_PROMPT_LENGTH} are allowed.",
            param="prompt",
        )
    _check_text("prompt", prompt)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(
            f"`{name}` is not valid Unicode: it has an unpaired surrogate at position {error.start}.",
            param=name,
        ) from error


# --- inputs ---------------------------------------------------------------------------------------


def _inputs(
    request: ImageRequest,
    model: Model,
    workflow: Workflow,
    catalogue: Catalogue,
    presets: Mapping[str, Mapping[str, Any]],
    of_loras: Mapping[str, Any],
) -> tuple[dict[str, PlannedValue], list[Note]]:
    planned: dict[str, PlannedValue] = {}
    notes: list[Note] = []
    rules = workflow.inputs_for(request.task)
    preset = {name: value for values in presets.values() for name, value in values.items()}
    for name, rule in rules.items():
        if rule.is_image:
            planned[name] = _input_image(name, request)
            continue
        value, note = _canonical_value(name, request.inputs.get(name), rule, catalogue)
        if rule.takes_more and _is_number(value) and value > rule.schema["maximum"]:
            maximum = rule.schema["maximum"]
            why = f"the maximum of {model.id} for the task {request.task} is {maximum}"
            value, note = maximum, Note(name, value, maximum, why)
        if value is not None:
            planned[name] = PlannedValue(checked_value(name, value, rule), "request")
        elif name in of_loras:
            planned[name] = PlannedValue(_value_of_lora(name, of_loras[name], rule, model), "lora")
        elif name in preset:
            planned[name] = PlannedValue(checked_value(name, preset[name], rule), "preset")
        else:
            planned[name] = default_value(name, model, workflow, request.task)
        if note:
            notes.append(note)
    _check_dependent_limits(planned, rules, request.task)
    return planned, notes


def _cropped_inputs(request: ImageRequest, chosen: ChosenSize) -> Iterator[Note]:
    """The pictures of inputs that have another shape than what is drawn."""
    for name, picture in request.input_images.items():
        if not has_ratio(picture.size, chosen.size.ratio):
            why = "it is scaled to cover the picture, and what does not fit is cropped"
            yield Note(name, str(picture.size), str(chosen.size), why)


def _input_image(name: str, request: ImageRequest) -> PlannedValue:
    """Raises InvalidValue for a value that is no picture of the request: the engine would load any file of that name."""
    if (picture := request.input_images.get(name)) is not None:
        return PlannedValue(picture.name, "request")
    if request.inputs.get(name) not in (None, ""):
        raise InvalidValue(f"`{name}` must be an image.", param=name)
    return PlannedValue(None, "workflow")


def _value_of_lora(name: str, value: Any, rule: Input, model: Model) -> Any:
    """`value`, which a LoRA sets. Raises InvalidValue if the model does not allow it."""
    try:
        return checked_value(name, value, rule)
    except InvalidValue as error:
        raise InvalidValue(
            f"The LoRA is made for `{name}` {value}, which {model.id} does not allow: {error.message} Send `{name}`, or "
            "choose another model.",
            param=name,
            **error.details,
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_dependent_limits(
    planned: Mapping[str, PlannedValue], rules: Mapping[str, Input], task: Task
) -> None:
    """Check the limits that depend on other values. For example, a schedule may need more than one step."""
    values = {"task": task, **{name: value.value for name, value in planned.items()}}
    for name, rule in rules.items():
        effective = rule.effective_for(values)
        if effective is not rule:
            checked_value(name, planned[name].value, effective)


def default_value(name: str, model: Model, workflow: Workflow, task: Task) -> PlannedValue:
    """What an input is if the request does not set it: the model's default, or the workflow's."""
    rule = workflow.inputs_for(task)[name]
    if name in model.defaults and rule.schema.get("default") == workflow.inputs[name].schema.get("default"):
        return PlannedValue(model.defaults[name], "model")
    return PlannedValue(rule.schema["default"], "workflow")


def _canonical_value(name: str, value: Any, rule: Input, catalogue: Catalogue) -> tuple[Any, Note | None]:
    """`value` under ComfyUI's name, and a note if another server's name for it has no exact equivalent."""
    choices = rule.schema.get("enum", ())
    if not isinstance(value, str) or value in choices:
        return value, None
    key = value.strip().casefold()
    if name not in catalogue.sampling_names:
        return key if key in choices else value, None
    mapping = find_sampling_name(name, value, rule, catalogue)
    if mapping is None:
        return value, None
    note = None if mapping.exact else Note(name, value, mapping.name, mapping.why)
    return mapping.name, note


def checked_value(name: str, value: Any, rule: Input) -> Any:
    """`value` as int, float, bool or str according to its schema. Raises InvalidValue if it is not allowed."""
    error = first_error(rule.validator, value)
    if error is not None or (isinstance(value, float) and not math.isfinite(value)):
        allowed = allowed_values(rule.schema)
        raise InvalidValue(
            f"`{name}` is {given_value(value)}; it must be {allowed}.",
            param=name,
            given=value,
            allowed=allowed,
        )
    if isinstance(value, str):
        _check_text(name, value)
    if rule.schema["type"] == "integer":
        return int(value)
    return float(value) if rule.schema["type"] == "number" else value


def _ignored_inputs(
    request: ImageRequest, planned: Mapping[str, PlannedValue], workflow: Workflow
) -> Iterator[Note]:
    for name, value in request.inputs.items():
        if value in (None, ""):
            continue
        if name not in planned:
            yield Note(
                name, value, None, f"the workflow {workflow.id} has no such input for the task {request.task}"
            )
            continue
        conditions = workflow.inputs[name].unused_when
        if conditions and all(planned[other].value == expected for other, expected in conditions.items()):
            condition = " and ".join(
                f"there is no {other}" if expected is None else f"{other} is {expected}"
                for other, expected in conditions.items()
            )
            yield Note(name, value, None, f"it has no effect if {condition}")


# --- presets ---------------------------------------------------------------------------------------


def _presets(
    request: ImageRequest, model: Model, workflow: Workflow, of_loras: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The values that each requested preset sets. Only inputs that the task has, and that neither the request nor one of its
    LoRAs sets: the steps of a Lightning LoRA are not a matter of quality."""
    inputs = workflow.inputs_for(request.task)
    result = {}
    for field, preset in request.presets.items():
        presets = {**workflow.presets.get(field, {}), **model.presets.get(field, {})}
        result[field] = {
            name: value
            for name, value in presets.get(preset, {}).items()
            if name in inputs and request.inputs.get(name) is None and name not in of_loras
        }
    return result


_DEFAULT_PRESETS: Mapping[str, tuple[str, ...]] = {
    "quality": ("auto", "standard"),
    "input_fidelity": ("auto", "low"),
}
"""Clients send these by default. Without a definition in the catalogue they have no effect and are not listed."""


def _ignored_presets(request: ImageRequest, presets: Mapping[str, Mapping[str, Any]]) -> Iterator[Note]:
    for field, values in presets.items():
        if not values and request.presets[field] not in _DEFAULT_PRESETS[field]:
            yield Note(
                field,
                request.presets[field],
                None,
                "the model has no such preset for this task, or the request or its LoRA sets the values",
            )


# --- jobs -----------------------------------------------------------------------------------------


def _jobs(request: ImageRequest, model: Model, workflow: Workflow, has_seed: bool) -> tuple[JobPlan, ...]:
    if isinstance(request.n, bool) or not 1 <= request.n <= model.limit_n:
        raise InvalidValue(
            f"`n` is {given_value(request.n)}; {model.id} draws 1 to {model.limit_n} pictures per request.",
            param="n",
        )
    if request.n > 1 and not has_seed:
        raise InvalidValue(
            f"`n` is {request.n}; it must be 1: the workflow {workflow.id!r} of {model.id} has no seed, so all pictures "
            "would be the same.",
            param="n",
        )
    if isinstance(request.seed, bool) or not 0 <= request.seed <= MAX_SEED:
        raise InvalidValue(
            f"`seed` is {given_value(request.seed)}; it must be from 0 to {MAX_SEED}.", param="seed"
        )
    # Each job's seed is the request's plus the index of its first picture, so no two jobs draw the same.
    return tuple(
        JobPlan((request.seed + first) % (MAX_SEED + 1), min(model.limit_batch, request.n - first))
        for first in range(0, request.n, model.limit_batch)
    )
