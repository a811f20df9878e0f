"""ComfyUI's names for samplers and schedules that clients of other servers spell differently, such as `DPM++ 2M Karras`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from compiler.catalogue import Catalogue, Input, ValueMapping
from errors import InvalidValue
from schemas.explain import given_value

_SAMPLER, _SCHEDULE = "sampler", "schedule"
_MAX_NAME_LENGTH = 100


def squeezed(text: str) -> str:
    """The letters and digits of a name: `DPM++ 2M SDE` and `dpmpp_2m_sde` are the same."""
    return re.sub(r"[^a-z0-9]", "", text.casefold().replace("+", "p"))


def find_sampling_name(name: str, text: str, rule: Input | None, catalogue: Catalogue) -> ValueMapping | None:
    """What the value `text` of the input `name` (`sampler` or `schedule`) is in ComfyUI; None if it is not known.

    `rule`: the input of the model's workflow; None if it has none, which then has the choices of ComfyUI's own node.
    """
    choices = _choices(name, rule, catalogue)
    table = catalogue.sampling_names.get(name, {})
    if text in choices:
        return ValueMapping(text)
    key = squeezed(text)
    # Stable Horde and InvokeAI call k-diffusion's samplers k_dpmpp_2m and so on.
    for spelling in (key, key.removeprefix("k")) if name == _SAMPLER else (key,):
        if known := _by_squeezed(tuple(table)).get(spelling):
            return _offered(table[known], choices, table)
        if choice := _by_squeezed(choices).get(spelling):
            return ValueMapping(choice)
    return None


def _offered(
    mapping: ValueMapping, choices: tuple[str, ...], table: Mapping[str, ValueMapping]
) -> ValueMapping:
    """`mapping`, or what its value stands for with models that do not have it."""
    if mapping.name is None or mapping.name in choices:
        return mapping
    return table.get(mapping.name.casefold(), mapping)


def split_sampler(
    inputs: Mapping[str, Any], rules: Mapping[str, Input], catalogue: Catalogue
) -> Mapping[str, Any]:
    """`inputs` with a schedule of its own if the name of the sampler ends with one, as in `DPM++ 2M Karras`.

    Raises InvalidValue if the request has another schedule too.
    """
    text = inputs.get(_SAMPLER)
    if not isinstance(text, str) or _SAMPLER not in rules or len(text) > _MAX_NAME_LENGTH:
        return inputs
    if find_sampling_name(_SAMPLER, text, rules[_SAMPLER], catalogue) is not None:
        return inputs
    key = squeezed(text)
    for schedule in _schedules(rules, catalogue):
        sampler = key.removesuffix(schedule)
        if not sampler or sampler == key:
            continue
        if find_sampling_name(_SAMPLER, sampler, rules[_SAMPLER], catalogue) is not None:
            _check_same_schedule(inputs, schedule, rules, catalogue)
            end = next(end for end in range(len(text) + 1) if squeezed(text[:end]) == sampler)
            return {**inputs, _SAMPLER: text[:end], _SCHEDULE: text[end:].strip(" _-")}
    return inputs


def _schedules(rules: Mapping[str, Input], catalogue: Catalogue) -> list[str]:
    """The squeezed names of all schedules, the longest first: `sgmuniform` before `uniform`."""
    names = (
        *catalogue.sampling_names.get(_SCHEDULE, {}),
        *_choices(_SCHEDULE, rules.get(_SCHEDULE), catalogue),
    )
    return sorted({squeezed(name) for name in names}, key=lambda name: (-len(name), name))


def _choices(name: str, rule: Input | None, catalogue: Catalogue) -> tuple[str, ...]:
    if rule is not None:
        return tuple(choice for choice in rule.schema.get("enum", ()) if isinstance(choice, str))
    node_input = {_SAMPLER: "sampler_name", _SCHEDULE: "scheduler"}[name]
    known = catalogue.signatures.get("KSampler")
    choices = known.inputs[node_input].choices if known is not None and node_input in known.inputs else None
    return tuple(map(str, choices or ()))


@lru_cache(maxsize=64)
def _by_squeezed(names: tuple[str, ...]) -> dict[str, str]:
    return {squeezed(name): name for name in reversed(names)}


def _check_same_schedule(
    inputs: Mapping[str, Any], schedule: str, rules: Mapping[str, Input], catalogue: Catalogue
) -> None:
    given = inputs.get(_SCHEDULE)
    if not isinstance(given, str) or not given.strip():
        return
    rule = rules.get(_SCHEDULE)
    found = find_sampling_name(_SCHEDULE, given, rule, catalogue)
    if found is not None and found.name is None:
        return  # `Automatic`: the one of the sampler
    if found != find_sampling_name(_SCHEDULE, schedule, rule, catalogue):
        raise InvalidValue(
            f"`sampler` {given_value(inputs[_SAMPLER])} and `schedule` {given_value(given)} contradict each other; send "
            "the sampler without its schedule, or leave out `schedule`.",
            param=_SCHEDULE,
        )
