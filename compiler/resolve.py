"""Request + model -> plan: every default filled, every limit kept, and what was done differently written down."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema.exceptions import best_match

from compiler.catalogue import Catalogue, Input, Model, SizeRule, Workflow, size_fault
from compiler.values import MAX_SEED, ImageRequest, JobPlan, Note, Plan, PlannedValue, Size
from errors import InvalidValue, PromptRequired, SizeNotAllowed

MAX_PROMPT_LENGTH = 32_000
"""characters, as OpenAI's newest image models"""


def resolve(request: ImageRequest, catalogue: Catalogue) -> Plan:
    """What `request` means for its model. Raises ModelNotCurated, PromptRequired, InvalidValue, SizeNotAllowed."""
    model = catalogue.find(request.model)
    workflow = _workflow(request, model, catalogue)
    _check_prompt(request.prompt)
    size, size_notes = _size(request, model, catalogue)
    inputs, adjusted = _inputs(request, model, workflow, catalogue)
    ignored = list(_unused(request, inputs, workflow))
    for note in ignored:
        if note.field in inputs:
            inputs[note.field] = _default(note.field, model, workflow)
    return Plan(
        model=model.id,
        workflow=workflow.id,
        template=workflow.template,
        task=request.task,
        size=size.value,
        # ComfyUI fills the date in: a folder a day keeps each short, since it lists the folder at every save.
        prefix=f"easel/%year%-%month%-%day%/{request.id}",
        values={
            "prompt": PlannedValue(request.prompt, "request"),
            "width": PlannedValue(size.value.width, size.origin),
            "height": PlannedValue(size.value.height, size.origin),
            **inputs,
            "files": PlannedValue({role: file.name for role, file in model.files.items()}, "model"),
        },
        jobs=_jobs(request, model),
        adjusted=(*size_notes, *adjusted),
        ignored=tuple(ignored),
    )


def _workflow(request: ImageRequest, model: Model, catalogue: Catalogue) -> Workflow:
    if request.task not in model.workflows:
        raise InvalidValue(
            f"The model {model.id!r} cannot {request.task}; it can {', '.join(model.workflows)}.",
            param="model",
        )
    return catalogue.workflows[model.workflows[request.task]]


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
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
    except UnicodeEncodeError as fault:
        raise InvalidValue(
            f"`{name}` holds half of a surrogate pair at position {fault.start}, which is not text.",
            param=name,
        ) from fault


# --- size -----------------------------------------------------------------------------------------


def _size(request: ImageRequest, model: Model, catalogue: Catalogue) -> tuple[PlannedValue, tuple[Note, ...]]:
    rule = model.size
    if request.size is None:
        preferred = catalogue.default_size
        if preferred is not None and size_fault(preferred, rule) is None:
            return PlannedValue(round_size(preferred, rule), "setting"), ()
        return PlannedValue(rule.default, "model"), ()
    fault = size_fault(request.size, rule)
    if fault:
        raise SizeNotAllowed(
            f"{fault}, the limit of {model.id}.",
            param="size",
            size=str(request.size),
            **_limits(rule),
        )
    rounded = round_size(request.size, rule)
    why = f"width and height of {model.id} are multiples of {rule.multiple_of}"
    notes = () if rounded == request.size else (Note("size", str(request.size), str(rounded), why),)
    return PlannedValue(rounded, "request"), notes


def _limits(rule: SizeRule) -> dict[str, Any]:
    return {
        "min": str(rule.min),
        "max": str(rule.max),
        "max_pixels": rule.max_pixels,
        "suggested": [str(size) for size in rule.suggested],
    }


def round_size(size: Size, rule: SizeRule) -> Size:
    """The size nearest to `size` whose sides are multiples that the rule wants, without leaving its limits."""
    nearest = Size(
        _nearest(size.width, rule.multiple_of, rule.min.width, rule.max.width),
        _nearest(size.height, rule.multiple_of, rule.min.height, rule.max.height),
    )
    if size_fault(nearest, rule) is None:
        return nearest
    step = rule.multiple_of
    return Size(size.width // step * step, size.height // step * step)


def _nearest(side: int, step: int, low: int, high: int) -> int:
    rounded = (side + step // 2) // step * step
    if rounded > high:
        rounded -= step
    return rounded if rounded >= low else rounded + step


# --- inputs ---------------------------------------------------------------------------------------


def _inputs(
    request: ImageRequest, model: Model, workflow: Workflow, catalogue: Catalogue
) -> tuple[dict[str, PlannedValue], list[Note]]:
    planned: dict[str, PlannedValue] = {}
    notes: list[Note] = []
    for name, rule in workflow.inputs.items():
        given = request.inputs.get(name)
        value, note = _by_another_name(name, given, rule, catalogue)
        if value is None:
            planned[name] = _default(name, model, workflow)
        else:
            planned[name] = PlannedValue(checked_value(name, value, rule), "request")
        if note:
            notes.append(note)
    return planned, notes


def _default(name: str, model: Model, workflow: Workflow) -> PlannedValue:
    if name in model.defaults:
        return PlannedValue(model.defaults[name], "model")
    return PlannedValue(workflow.inputs[name].schema["default"], "workflow")


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
    fault = best_match(rule.validator.iter_errors(value))
    if fault is not None or (isinstance(value, float) and not math.isfinite(value)):
        allowed = _allowed(rule)
        raise InvalidValue(
            f"`{name}` is {_short(value)}; allowed is {allowed}.", param=name, given=value, allowed=allowed
        )
    if isinstance(value, str):
        _check_text(name, value)
    if rule.schema["type"] == "integer":
        return int(value)
    return float(value) if rule.schema["type"] == "number" else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def _allowed(rule: Input) -> str:
    schema = rule.schema
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    kind = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and low == high:
        return f"only {low}"
    words = [kind[schema["type"]]]
    if low is not None:
        words.append(f"from {low}")
    if high is not None:
        words.append(f"up to {high}")
    if "maxLength" in schema:
        words.append(f"of at most {schema['maxLength']} characters")
    return " ".join(words)


def _unused(request: ImageRequest, planned: Mapping[str, PlannedValue], workflow: Workflow) -> Iterator[Note]:
    for name, value in request.inputs.items():
        if value in (None, ""):
            continue
        if name not in workflow.inputs:
            yield Note(name, value, None, f"the workflow {workflow.id} has no such input")
            continue
        conditions = workflow.inputs[name].unused_when
        if conditions and all(planned[other].value == at for other, at in conditions.items()):
            when = " and ".join(f"{other} is {at}" for other, at in conditions.items())
            yield Note(name, value, None, f"it has no effect while {when}")


# --- jobs -----------------------------------------------------------------------------------------


def _jobs(request: ImageRequest, model: Model) -> tuple[JobPlan, ...]:
    if isinstance(request.n, bool) or not 1 <= request.n <= model.limit_n:
        raise InvalidValue(
            f"`n` is {_short(request.n)}; {model.id} makes 1 to {model.limit_n} pictures for a request.",
            param="n",
        )
    if isinstance(request.seed, bool) or not 0 <= request.seed <= MAX_SEED:
        raise InvalidValue(f"`seed` is {_short(request.seed)}; allowed is 0 to {MAX_SEED}.", param="seed")
    # Each job's seed is the request's plus the index of its first picture, so no two jobs draw the same.
    return tuple(
        JobPlan((request.seed + first) % (MAX_SEED + 1), min(model.limit_batch, request.n - first))
        for first in range(0, request.n, model.limit_batch)
    )
