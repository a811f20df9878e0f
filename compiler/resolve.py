"""Request + model -> plan: every default filled, every limit kept, and what was done differently written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.catalogue import Catalogue, Input, Model, Workflow
from compiler.framing import Frame, frame_of
from compiler.values import MAX_SEED, ImageRequest, JobPlan, Note, Plan, PlannedValue, Task
from errors import InvalidValue, PromptRequired
from schemas import allowed_values, first_error
from schemas.explain import given_value

MAX_PROMPT_LENGTH = 32_000
"""characters, as OpenAI's newest image models"""


def resolve(request: ImageRequest, catalogue: Catalogue) -> Plan:
    """What `request` means for its model. Raises ModelNotCurated, PromptRequired, InvalidValue, SizeNotAllowed."""
    model = catalogue.find(request.model)
    workflow = _workflow(request, model, catalogue)
    _check_prompt(request)
    frame = frame_of(request, model, catalogue)
    presets = _presets(request, model, workflow)
    inputs, adjusted = _inputs(request, model, workflow, catalogue, presets)
    ignored = [*_unused(request, inputs, workflow), *_presets_ignored(request, presets)]
    for note in ignored:
        if note.field in inputs:
            inputs[note.field] = _default(note.field, model, workflow, request.task)
    return Plan(
        model=model.id,
        workflow=workflow.id,
        template=workflow.template,
        task=request.task,
        size=frame.size,
        canvas=frame.canvas,
        # ComfyUI fills the date in: a folder a day keeps each short, since it lists the folder at every save.
        prefix=f"easel/%year%-%month%-%day%/{request.id}",
        values={
            "task": PlannedValue(request.task, "request"),
            "prompt": PlannedValue(request.prompt, "request"),
            "width": PlannedValue(frame.canvas.width, frame.origin),
            "height": PlannedValue(frame.canvas.height, frame.origin),
            **inputs,
            **_source(request, frame),
            "loras": PlannedValue(_loras(request, model, catalogue), "request"),
            "files": PlannedValue({role: file.name for role, file in model.files.items()}, "model"),
        },
        jobs=_jobs(request, model),
        adjusted=(*frame.notes, *adjusted),
        ignored=tuple(ignored),
        presets={field: request.presets[field] for field, values in presets.items() if values},
    )


def _workflow(request: ImageRequest, model: Model, catalogue: Catalogue) -> Workflow:
    if request.task not in model.workflows:
        raise InvalidValue(
            f"The model {model.id!r} cannot {request.task}; it can {', '.join(model.workflows)}.",
            param="model",
        )
    return catalogue.workflows[model.workflows[request.task]]


def _source(request: ImageRequest, frame: Frame) -> dict[str, PlannedValue]:
    """What a template needs to know of the image; null where there is none."""
    source, cut = request.source, frame.size != frame.canvas
    crop = {"width": frame.size.width, "height": frame.size.height} if cut else None
    return {
        "image": PlannedValue(source.image if source else None, "request"),
        "mask": PlannedValue(source.mask if source else None, "request"),
        "crop": PlannedValue(crop, frame.origin),
    }


def _check_prompt(request: ImageRequest) -> None:
    prompt = request.prompt
    if not prompt.strip() and request.task != "vary":
        raise PromptRequired("A prompt is required: say what the picture shows.", param="prompt")
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
            f"`{name}` holds half of a surrogate pair at position {error.start}, which is not text.",
            param=name,
        ) from error


# --- inputs ---------------------------------------------------------------------------------------


def _inputs(
    request: ImageRequest,
    model: Model,
    workflow: Workflow,
    catalogue: Catalogue,
    presets: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, PlannedValue], list[Note]]:
    planned: dict[str, PlannedValue] = {}
    notes: list[Note] = []
    rules = workflow.inputs_for(request.task)
    preset = {name: value for values in presets.values() for name, value in values.items()}
    for name, rule in rules.items():
        value, note = _by_another_name(name, request.inputs.get(name), rule, catalogue)
        if rule.takes_more and _is_number(value) and value > rule.schema["maximum"]:
            most = rule.schema["maximum"]
            why = f"{model.id} takes no more than {most} to {request.task}"
            value, note = most, Note(name, value, most, why)
        if value is not None:
            planned[name] = PlannedValue(checked_value(name, value, rule), "request")
        elif name in preset:
            planned[name] = PlannedValue(checked_value(name, preset[name], rule), "preset")
        else:
            planned[name] = _default(name, model, workflow, request.task)
        if note:
            notes.append(note)
    _check_together(planned, rules, request.task)
    return planned, notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_together(planned: Mapping[str, PlannedValue], rules: Mapping[str, Input], task: Task) -> None:
    """Some limits depend on other values: a schedule may need more than one step."""
    facts = {"task": task, **{name: value.value for name, value in planned.items()}}
    for name, rule in rules.items():
        narrower = rule.under(facts)
        if narrower is not rule:
            checked_value(name, planned[name].value, narrower)


def _default(name: str, model: Model, workflow: Workflow, task: Task) -> PlannedValue:
    rule = workflow.inputs_for(task)[name]
    if name in model.defaults and rule.schema.get("default") == workflow.inputs[name].schema.get("default"):
        return PlannedValue(model.defaults[name], "model")
    return PlannedValue(rule.schema["default"], "workflow")


# --- presets ---------------------------------------------------------------------------------------


def _presets(request: ImageRequest, model: Model, workflow: Workflow) -> dict[str, dict[str, Any]]:
    """What each asked preset sets: only inputs that this task has and the request does not give itself."""
    there = workflow.inputs_for(request.task)
    meant = {}
    for field, choice in request.presets.items():
        choices = {**workflow.presets.get(field, {}), **model.presets.get(field, {})}
        meant[field] = {
            name: value
            for name, value in choices.get(choice, {}).items()
            if name in there and request.inputs.get(name) is None
        }
    return meant


_MEANS_DEFAULT: Mapping[str, tuple[str, ...]] = {
    "quality": ("auto", "standard"),
    "input_fidelity": ("auto", "low"),
}
"""What clients send unasked. Unless the catalogue gives it numbers, it is the same as nothing."""


def _presets_ignored(request: ImageRequest, presets: Mapping[str, Mapping[str, Any]]) -> Iterator[Note]:
    for field, values in presets.items():
        if not values and request.presets[field] not in _MEANS_DEFAULT[field]:
            yield Note(
                field,
                request.presets[field],
                None,
                "the catalogue has no such preset here, or the request gives its values itself",
            )


# --- LoRAs -----------------------------------------------------------------------------------------


def _loras(request: ImageRequest, model: Model, catalogue: Catalogue) -> list[dict[str, Any]]:
    there = catalogue.loras_for(model)
    chosen = []
    for asked in request.loras:
        lora = there.get(asked.name)
        if lora is None:
            listed = ", ".join(there) or "none"
            raise InvalidValue(
                f"`lora`: {model.id} has no LoRA {given_value(asked.name)}; there is {listed}.",
                param="lora",
                given=asked.name,
                allowed=list(there),
            )
        strength = lora.strength if asked.strength is None else asked.strength
        chosen.append({"id": lora.id, "file": lora.file.name, "strength": strength})
    return chosen


def _by_another_name(name: str, given: Any, rule: Input, catalogue: Catalogue) -> tuple[Any, Note | None]:
    if not isinstance(given, str) or given in rule.schema.get("enum", ()):
        return given, None
    choice = catalogue.sampling_names.get(name, {}).get(given.strip().casefold())
    if choice is None:
        lower = given.strip().casefold()
        return next((known for known in rule.schema.get("enum", ()) if known == lower), given), None
    note = None if choice.exact else Note(name, given, choice.name, choice.why)
    return choice.name, note


def checked_value(name: str, value: Any, rule: Input) -> Any:
    """`value` if the input's schema allows it, a whole number as int. Raises InvalidValue naming what is allowed."""
    error = first_error(rule.validator, value)
    if error is not None or (isinstance(value, float) and not math.isfinite(value)):
        allowed = allowed_values(rule.schema)
        raise InvalidValue(
            f"`{name}` is {given_value(value)}; allowed is {allowed}.",
            param=name,
            given=value,
            allowed=allowed,
        )
    if isinstance(value, str):
        _check_text(name, value)
    if rule.schema["type"] == "integer":
        return int(value)
    return float(value) if rule.schema["type"] == "number" else value


def _unused(request: ImageRequest, planned: Mapping[str, PlannedValue], workflow: Workflow) -> Iterator[Note]:
    for name, value in request.inputs.items():
        if value in (None, ""):
            continue
        if name not in planned:
            yield Note(name, value, None, f"the workflow {workflow.id} has no such input to {request.task}")
            continue
        conditions = workflow.inputs[name].unused_when
        if conditions and all(planned[other].value == at for other, at in conditions.items()):
            when = " and ".join(f"{other} is {at}" for other, at in conditions.items())
            yield Note(name, value, None, f"it has no effect while {when}")


# --- jobs -----------------------------------------------------------------------------------------


def _jobs(request: ImageRequest, model: Model) -> tuple[JobPlan, ...]:
    if isinstance(request.n, bool) or not 1 <= request.n <= model.limit_n:
        raise InvalidValue(
            f"`n` is {given_value(request.n)}; {model.id} makes 1 to {model.limit_n} pictures for a request.",
            param="n",
        )
    if isinstance(request.seed, bool) or not 0 <= request.seed <= MAX_SEED:
        raise InvalidValue(
            f"`seed` is {given_value(request.seed)}; allowed is 0 to {MAX_SEED}.", param="seed"
        )
    # Each job's seed is the request's plus the index of its first picture, so no two jobs draw the same.
    return tuple(
        JobPlan((request.seed + first) % (MAX_SEED + 1), min(model.limit_batch, request.n - first))
        for first in range(0, request.n, model.limit_batch)
    )
