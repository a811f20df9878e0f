"""Which values a request may set, and what the proof changes each of them to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.catalogue import Input, Model, Workflow
from compiler.proof.trial_graph import Values
from compiler.size import Size
from compiler.values import MAX_SEED, ImageCount, Task

TRIAL_TEXT = (
    ' "{{ 7*7 }}",}\n\\ {% if %} {# 猫 \u2028 #} \'end (A Fox:1.2) [B|c] ' + "Quick, " * 500 + "End  "
)
"""Contains what could break out of JSON or Jinja, so that a quoted {{ prompt }} is found; and capitals, brackets, spaces
at both ends and many words, so that a filter which changes or shortens it is found."""
IMAGES = "images"
"""The variable of a template that has all images"""
TRIAL_SEEDS = (2, 1001, 2**32 + 1)
"""With the seed 1 of the base values: equal in their last digits or in their low 32 bits"""
_MAX_NEIGHBOUR_DISTANCE = 0.04
_MASK = "easel/mask.png [temp]"


@dataclass(frozen=True)
class Traits:
    """What the proof depends on besides the workflow and the task: all that counts of a model."""

    roles: tuple[tuple[str, str], ...]
    """role and folder of each file"""
    has_loras: bool
    draws_batches: bool
    width_varies: bool
    height_varies: bool
    default_size: Size
    multiple_of: int


@dataclass(frozen=True)
class Change:
    """One value and what it is changed to. All of `variants`, and the graph before, must differ from each other."""

    name: str
    variants: tuple[Values, ...]
    rule: Input | None = None
    """The declaration of an input of the workflow"""
    text: str | None = None
    """This text must arrive unchanged."""
    start: Values = field(default_factory=dict)
    """Values with which the input has an effect, if those before have none"""
    choices: tuple[Any, ...] = ()
    """All that the node to which the value is passed must take"""
    more: tuple[Values, ...] = ()
    """Further variants, which are rendered but not checked: the node takes them"""
    is_passed: bool = True
    """Whether an input that gets the value as it is must always get it as it is; false if the template translates it."""
    is_required: bool = True
    """Whether the graph must change; if not, it must only be valid."""
    must_be_valid: bool = True


def base_values(workflow: Workflow, model: Model, task: Task) -> dict[str, Any]:
    """A value for every variable of the templates. The inputs have the workflow's defaults, not the model's, because
    models share the proof."""
    return {
        "task": task,
        "prompt": "" if task == "vary" else "a cat",
        "width": model.size.default.width,
        "height": model.size.default.height,
        **{
            name: _input_image(name) if rule.is_image else _default(rule)
            for name, rule in workflow.inputs_for(task).items()
        },
        **_images([_image_name(index) for index in range(workflow.images.min if task != "generate" else 0)]),
        "mask": _MASK if task == "inpaint" else None,
        "crop": None,
        "loras": [],
        "files": {role: file.name for role, file in model.files.items()},
        "seed": 1,
        "batch": 1,
        "prefix": "easel/proof",
    }


def _input_image(name: str) -> str:
    """A picture for an input that is one. The proof begins with all of them: the other inputs have no effect without."""
    return f"easel/{name}.png [temp]"


def _image_name(index: int) -> str:
    return f"easel/image-{index + 1}.png [temp]"


def _other_image(name: str) -> str:
    return name.replace("easel/", "easel/other-")


def _images(names: list[str]) -> dict[str, Any]:
    return {"image": names[0] if names else None, "images": names}


def image_variable(index: int) -> str:
    """What the image with this index is called in a template."""
    return f"{IMAGES}[{index}]" if index else "image"


def general_changes(
    task: Task, traits: Traits, values: Values, images: ImageCount, *, is_first: bool, has_prefix: bool
) -> Iterator[Change]:
    """The changes of the values that every workflow has. `images`: how many it takes. `is_first`: the first round, which
    tries more values."""
    has_image = task != "generate"
    yield Change("prompt", ({"prompt": TRIAL_TEXT},), text=TRIAL_TEXT, is_required=task != "vary")
    yield Change("seed", _each("seed", TRIAL_SEEDS if is_first else TRIAL_SEEDS[:1]))
    if is_first:
        yield Change("seed", ({"seed": MAX_SEED},), is_required=False)
    # A size outside the model's limits is fine here: those are checked for each model.
    for side in ("width", "height"):
        yield Change(side, ({side: values[side] + traits.multiple_of},), must_be_valid=False)
    if traits.draws_batches:
        yield Change("batch", _each("batch", (2, 3) if is_first else (2,)))
    if has_prefix:
        yield Change("prefix", ({"prefix": "easel/other"},))
    if has_image:
        yield from _image_changes(values[IMAGES], images, is_first)
        crop = {"width": max(1, values["width"] - 1), "height": max(1, values["height"] - 1)}
        yield Change("crop", ({"crop": crop},), is_required=False)  # else the finished picture is cropped
    if task == "inpaint":
        yield Change("mask", ({"mask": "easel/other-mask.png [temp]"},))
    for role, file in values["files"].items():
        files = {**values["files"], role: f"other-{file}"}
        yield Change(f"files.{role}", ({"files": files},), must_be_valid=False)
    if traits.has_loras:
        yield _lora_change(is_first)


def _image_changes(names: list[str], images: ImageCount, is_first: bool) -> Iterator[Change]:
    """Each image, and every number of images; the largest only if this is not the first round."""
    for index, name in enumerate(names):
        changed = [*names[:index], _other_image(name), *names[index + 1 :]]
        yield Change(image_variable(index), (_images(changed),))
    numbers = [number for number in range(images.min, images.max + 1) if number != len(names)]
    if numbers:
        all_names = [*names, *map(_image_name, range(len(names), images.max))]
        tried = numbers if is_first else numbers[-1:]
        yield Change(IMAGES, tuple(_images(all_names[:number]) for number in tried))


def more_images(names: list[str], most: int) -> Iterator[Values]:
    """More images than `names`, at most `most`."""
    all_names = [*names, *map(_image_name, range(len(names), most))]
    return (_images(all_names[:number]) for number in range(len(names) + 1, most + 1))


def other_values(values: Values, rules: Mapping[str, Input], *, except_for: str = "") -> dict[str, Any]:
    """`values` with all of them changed except one, a variable or a role of `files`, as far as a graph of the same shape
    is likely."""
    files = {role: file if role == except_for else f"other-{file}" for role, file in values["files"].items()}
    changed: dict[str, Any] = {
        "prompt": "a dog",
        "seed": TRIAL_SEEDS[1],
        "width": values["width"] + 8,
        "height": values["height"] + 16,
        "batch": 2,
        "prefix": "easel/other",
        **_other_images(values[IMAGES], except_for),
        "mask": values["mask"] and "easel/other-mask.png [temp]",
    }
    for name, rule in rules.items():
        if rule.choices_from or ("enum" not in rule.schema and rule.schema["type"] != "boolean"):
            changed[name] = _another(rule, values[name])
    if except_for not in ("image", IMAGES):
        changed.pop(except_for, None)
    return {**values, **changed, "files": files}


def _other_images(names: list[str], except_for: str) -> dict[str, Any]:
    kept = range(len(names)) if except_for == IMAGES else ()
    return _images(
        [
            name if index in kept or image_variable(index) == except_for else _other_image(name)
            for index, name in enumerate(names)
        ]
    )


def _another(rule: Input, value: Any) -> Any:
    """Another value that the template is unlikely to handle in a branch of its own"""
    others = [other for other in _other_values(rule, value) if other not in rule.more_choices]
    if not others and isinstance(value, int | float):
        return value + 1
    return others[0] if others else value


def _lora_change(is_first: bool) -> Change:
    one = {"id": "one", "file": "one.safetensors", "strength": 0.5}
    variants: list[list[dict[str, Any]]] = [[one]]
    if is_first:
        variants += [[{**one, "strength": 0.25}], [one, {**one, "file": "two.safetensors"}]]
    return Change("loras", tuple({"loras": loras} for loras in variants), text="one.safetensors")


# --- declared inputs ---------------------------------------------------------------------------------


def input_changes(rules: Mapping[str, Input], values: Values, *, is_first: bool) -> Iterator[Change]:
    """The changes of the inputs that the workflow declares for the task. An input that has no effect with `values`, and
    is listed as ignored then, is tried with other values; but only in the first round."""
    for name, rule in rules.items():
        start: Values = {}
        if _is_unused(rule, values):
            start = _other_condition(rule, rules, values) if is_first else {}
            if not start:
                continue
        effective = rule.effective_for({**values, **start})
        for change in _value_changes(name, effective, values[name], start, is_first):
            moved = _within_limits(change, rules, values)
            yield replace(change, start={**start, **moved}) if moved or change.start != start else change


def _within_limits(change: Change, rules: Mapping[str, Input], values: Values) -> Values:
    """Values of other inputs that are allowed together with the change: a schedule may need more than one step."""
    moved: dict[str, Any] = {}
    for variant in change.variants:
        together = {**values, **change.start, **variant}
        for name, rule in rules.items():
            schema = rule.effective_for(together).schema
            value = together[name]
            if name == change.name or schema["type"] not in ("integer", "number"):
                continue
            allowed = min(max(value, schema.get("minimum", value)), schema.get("maximum", value))
            if allowed != value:
                moved[name] = type(value)(allowed)
    return moved


def _is_unused(rule: Input, values: Values) -> bool:
    return bool(rule.unused_when) and all(
        values.get(name) == expected for name, expected in rule.unused_when.items()
    )


def _other_condition(rule: Input, rules: Mapping[str, Input], values: Values) -> Values:
    """A value of another input with which the input has an effect; empty if there is none."""
    for name in rule.unused_when:
        if name in rules:
            for other in _other_values(rules[name].effective_for(values), values[name]):
                return {name: other}
    return {}


def _default(rule: Input) -> Any:
    """The workflow's default; if each model sets its own, some allowed value."""
    schema = rule.schema
    if "default" in schema:
        return float(schema["default"]) if schema["type"] == "number" else schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    low = schema.get("minimum", min(1, schema.get("maximum", 1)))
    return {"integer": int(low), "number": float(low), "string": "", "boolean": False}[schema["type"]]


def _value_changes(name: str, rule: Input, value: Any, start: Values, is_first: bool) -> Iterator[Change]:
    others = _other_values(rule, value)
    if rule.is_image:
        if value is not None:
            yield Change(name, ({name: others[0]},), rule, start=start)
            yield Change(name, ({name: None},), rule, start=start, is_passed=False)
        return
    kind = rule.schema["type"]
    if "enum" in rule.schema:
        yield from _choice_changes(name, rule, value, others, start, is_first)
    elif kind == "string":
        text = TRIAL_TEXT[: rule.schema.get("maxLength", len(TRIAL_TEXT))]
        if text:
            yield Change(name, ({name: text},), rule, text=text, start=start)
    elif others:
        yield Change(name, _each(name, others if is_first else others[:1]), rule, start=start)
    else:  # Only one value is allowed: the graph must use it and not a number of its own.
        yield Change(name, ({name: value + 1},), rule, start=start, must_be_valid=False)


def _each(name: str, values: tuple[Any, ...]) -> tuple[Values, ...]:
    return tuple({name: value} for value in values)


def _choice_changes(
    name: str, rule: Input, value: Any, others: tuple[Any, ...], start: Values, is_first: bool
) -> Iterator[Change]:
    """One other choice of the node, and in the first round every choice that the template itself must handle."""
    of_node = [choice for choice in others if rule.choices_from and choice not in rule.more_choices]
    of_template = [choice for choice in others if choice not in of_node]
    tried = (*of_node[:1], *(of_template if is_first else of_template[: 0 if of_node else 1]))
    if tried:
        all_of_node = tuple(choice for choice in rule.schema["enum"] if choice not in rule.more_choices)
        choices = all_of_node if rule.choices_from else ()
        more = _each(name, tuple(of_node[1:])) if is_first else ()
        is_passed = bool(of_node)
        yield Change(name, _each(name, tried), rule, None, start, choices, more, is_passed)
    elif isinstance(value, str):
        yield Change(name, ({name: f"{value}-other"},), rule, start=start, must_be_valid=False)


def _other_values(rule: Input, value: Any) -> tuple[Any, ...]:
    """Allowed values besides `value`: two between the limits of a number and the limits, every other choice, the other
    boolean, another text."""
    schema = rule.schema
    if rule.is_image:
        return () if value is None else (_other_image(value), None)
    kind = schema["type"]
    if "enum" in schema:
        return tuple(choice for choice in schema["enum"] if choice != value)
    if kind == "boolean":
        return (not value,)
    if kind == "string":
        return ("other",) if schema.get("maxLength", 5) >= 5 else ()
    number = int if kind == "integer" else float
    limits = [number(schema[key]) for key in ("minimum", "maximum") if key in schema]
    if "maximum" not in schema:
        limits.append(number(max([value, *limits]) + 1))
    return tuple(
        dict.fromkeys(each for each in (*_neighbours(kind, value, limits), *limits) if each != value)
    )


def _neighbours(kind: str, value: Any, limits: list[Any]) -> tuple[Any, ...]:
    """Two numbers that are close to each other, between the limits, so that rounding is found; none if there is no room
    for them."""
    low, high = min(value, *limits), max(value, *limits)
    if kind == "integer":
        first = low + (high - low) * 5 // 8
        pairs = ((first + shift, first + shift + 1) for shift in range(3))
        return next((pair for pair in pairs if low < pair[0] and pair[1] < high and value not in pair), ())
    first = round(low + (high - low) * 0.3717, 4)
    second = round(first + min((high - low) / 100, _MAX_NEIGHBOUR_DISTANCE), 4)
    return (first, second) if low < first < second < high and value not in (first, second) else ()
