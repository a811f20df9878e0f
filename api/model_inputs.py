"""What a request to a model may set: for each of its tasks every field that changes the picture, with its limits and its
default, as the compiler knows them. For forms that are built from it. Pure.

Not listed are other names and spellings of the same fields (`aspect_ratio` for `size`), and how the answer is sent
(`response_format`, `stream`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.outpaint import FIELD as OUTPAINT
from api.request_fields import PRESETS
from compiler import MAX_SEED, Catalogue, ImageRequest, Lora, Model, Size, Stage, Task
from compiler.catalogue import Input, Workflow
from compiler.choose_size import choose_size
from compiler.loras import MAX_LORA_STRENGTH
from compiler.resolve import MAX_PROMPT_LENGTH, default_value
from generation import StageState
from schemas import load_schema

_FIELDS: Mapping[str, Mapping[str, Any]] = load_schema("image_request")["properties"]
_ALIASES = re.compile(r" *\bAlias(es)?: [^.]*\.")
_NEUTRAL_PRESETS: Mapping[str, str] = {"quality": "auto", "input_fidelity": "low"}
"""Without a meaning of its own in the catalogue it means: no preset"""
_BASIC = frozenset(("steps", "strength", "negative_prompt", "control_image", "control_type", "scale"))
"""Inputs of workflows that a form shows at once"""
_FINE_RANGE = 2.0
"""A number within a range up to this one is set in hundredths, another in tenths"""


def inputs_of(
    model: Model, catalogue: Catalogue, stages: Mapping[str, StageState]
) -> dict[Task, list[dict[str, Any]]]:
    """The inputs of each task that the model can draw, be its licence accepted or not. `stages`: what the engine can do
    with finished pictures, by id; one that is not in it counts as possible."""
    return {
        task: list(_TaskInputs(model, task, catalogue, stages).all())
        for task in model.workflows
        if not catalogue.proof_of(model, task).faults
    }


@dataclass(frozen=True)
class _TaskInputs:
    model: Model
    task: Task
    catalogue: Catalogue
    stages: Mapping[str, StageState]

    @property
    def workflow(self) -> Workflow:
        return self.catalogue.workflows[self.model.workflows[self.task]]

    def all(self) -> Iterator[dict[str, Any]]:
        yield from self._prompt()
        yield from self._images()
        yield from self._size()
        yield from self._count_and_seed()
        yield from self._presets()
        for name, rule in self.workflow.inputs_for(self.task).items():
            if rule.is_image or not _is_constant(rule):
                yield self._of_workflow(name, rule)
        yield from self._loras()
        yield from self._finish()

    def _prompt(self) -> Iterator[dict[str, Any]]:
        if self.task != "vary":
            yield _input("prompt", "string", default="", max_length=MAX_PROMPT_LENGTH, required=True)

    def _images(self) -> Iterator[dict[str, Any]]:
        if self.task == "generate":
            return
        count = self.workflow.images
        yield _input("image", "image", min=count.min, max=count.max, required=True)
        if self.task == "edit":
            yield _input("markup", "image", advanced=True)
        if self.task == "inpaint":
            yield _input("mask", "mask")
            if OUTPAINT not in self.workflow.inputs:
                yield _input(OUTPAINT, "outpaint", min=1)

    def _size(self) -> Iterator[dict[str, Any]]:
        rule = self.model.size
        if rule.min == rule.max:
            return
        yield _input(
            "size",
            "size",
            # An edit has the size of its image.
            default=str(self._default_size()) if self.task == "generate" else None,
            min=str(rule.min),
            max=str(rule.max),
            multiple_of=rule.multiple_of,
            max_pixels=rule.max_pixels,
            choices=[str(size) for size in rule.suggested],
        )

    def _default_size(self) -> Size:
        request = ImageRequest(prompt="", seed=0, id="", model=self.model.id)
        return choose_size(request, self.model, self.catalogue).size

    def _count_and_seed(self) -> Iterator[dict[str, Any]]:
        if not self.catalogue.proof_of(self.model, self.task).has_seed:
            return
        if self.model.limit_n > 1:
            yield _input("n", "integer", default=1, min=1, max=self.model.limit_n, step=1)
        yield _input("seed", "seed", min=0, max=MAX_SEED, step=1)

    def _presets(self) -> Iterator[dict[str, Any]]:
        inputs = self.workflow.inputs_for(self.task)
        for field in PRESETS if self.task != "generate" else PRESETS[:1]:
            presets = {**self.workflow.presets.get(field, {}), **self.model.presets.get(field, {})}
            names = [name for name, values in presets.items() if set(values) & set(inputs)]
            neutral = _NEUTRAL_PRESETS[field]
            if names:
                choices = names if neutral in names else [neutral, *names]
                default = None if neutral in names else neutral
                yield _input(
                    field, "choice", default=default, choices=choices, advanced=field == "input_fidelity"
                )

    def _of_workflow(self, name: str, rule: Input) -> dict[str, Any]:
        if rule.is_image:
            return _input(name, "image", description=rule.schema.get("description"))
        schema = rule.schema
        kind = "choice" if "enum" in schema else schema["type"]
        return _input(
            name,
            kind,
            default=default_value(name, self.model, self.workflow, self.task).value,
            min=schema.get("minimum"),
            max=schema.get("maximum"),
            step=_step(schema),
            max_length=schema.get("maxLength", MAX_PROMPT_LENGTH) if kind == "string" else None,
            choices=list(schema["enum"]) if kind == "choice" else None,
            advanced=name not in _BASIC,
            description=schema.get("description"),
            unused_when=dict(self.workflow.inputs[name].unused_when) or None,
            when=_conditional_limits(rule),
        )

    def _loras(self) -> Iterator[dict[str, Any]]:
        licences = self.catalogue.licences
        loras = self.catalogue.loras_for(self.model).values()
        allowed = [lora for lora in loras if not licences.blocks_drawing(lora)]
        if allowed:
            yield _input(
                "lora",
                "loras",
                default=[],
                min=-MAX_LORA_STRENGTH,
                max=MAX_LORA_STRENGTH,
                step=0.05,
                choices=[lora.id for lora in allowed],
                loras=[self._lora(lora) for lora in allowed],
            )

    def _lora(self, lora: Lora) -> dict[str, Any]:
        """`needs`: the inputs that a request with it must set, because the model does not allow what it is made for."""
        rules = self.workflow.inputs_for(self.task)
        used = {name: value for name, value in lora.defaults.items() if name in rules}
        needs = [name for name, value in used.items() if not rules[name].validator.is_valid(value)]
        facts = {"id": lora.id, "title": lora.title, "strength": lora.strength}
        return {**facts, "defaults": used, "needs": needs}

    def _finish(self) -> Iterator[dict[str, Any]]:
        factors = self._stage_values("upscale")
        if factors:
            yield _input("upscale", "choice", default=1, choices=[1, *factors])
        backgrounds = self._stage_values("background")
        if backgrounds:
            yield _input(
                "background",
                "choice",
                default="auto",
                choices=["auto", "opaque", *backgrounds],
            )
        yield _input("output_format", "choice", default="png", choices=["png", "jpeg", "webp"], advanced=True)
        yield _input(
            "output_compression",
            "integer",
            min=0,
            max=100,
            step=1,
            advanced=True,
            unused_when={"output_format": "png"},
        )

    def _stage_values(self, name: str) -> list[Any]:
        """Those that a request can have now. A workflow that has an input of this name does it itself."""
        stage: Stage | None = self.catalogue.stages.get(name)
        if (
            stage is None
            or name in self._all_workflow_inputs
            or self.catalogue.licences.blocks_drawing(stage)
        ):
            return []
        state = self.stages.get(name)
        return list(stage.values if state is None else state.values)

    @property
    def _all_workflow_inputs(self) -> set[str]:
        workflows = (self.catalogue.workflows[each] for each in self.model.workflows.values())
        return {name for workflow in workflows for name in workflow.inputs}


def _input(name: str, kind: str, **facts: Any) -> dict[str, Any]:
    """An input as JSON. Facts that few inputs have are left out if they are None."""
    common = {
        "name": name,
        "type": kind,
        "default": facts.pop("default", None),
        "min": facts.pop("min", None),
        "max": facts.pop("max", None),
        "choices": facts.pop("choices", None),
        "advanced": facts.pop("advanced", False),
        "required": facts.pop("required", False),
        "description": facts.pop("description", None) or _description(name),
    }
    return {**common, **{key: value for key, value in facts.items() if value is not None}}


def _description(name: str) -> str | None:
    """What the description of the API says, without the other names of the field."""
    text = _FIELDS.get(name, {}).get("description")
    return _ALIASES.sub("", text) if text else None


def _is_constant(rule: Input) -> bool:
    """Whether only one value is allowed, such as cfg 1 of a distilled model."""
    schema = rule.schema
    choices = schema.get("enum")
    return len(choices) < 2 if choices else schema.get("minimum", 0) == schema.get("maximum", 1)


def _step(schema: Mapping[str, Any]) -> float | None:
    if schema["type"] == "integer":
        return 1
    if schema["type"] != "number":
        return None
    low, high = schema.get("minimum"), schema.get("maximum")
    is_fine = low is not None and high is not None and high - low <= _FINE_RANGE
    return 0.01 if is_fine else 0.1


def _conditional_limits(rule: Input) -> list[dict[str, Any]] | None:
    """The other limits that apply if other inputs have certain values; those of the task are applied already."""
    limits = [
        {
            "if": {name: list(values) for name, values in other.conditions.items()},
            "min": other.schema.get("minimum"),
            "max": other.schema.get("maximum"),
        }
        for other in rule.conditional_schemas
        if "task" not in other.conditions
    ]
    return limits or None
