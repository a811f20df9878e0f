"""The LoRAs of a request: those of its field `lora`, and those that its prompt names as <lora:NAME:STRENGTH>."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler.catalogue import Catalogue, Lora, Model
from compiler.values import ImageRequest, LoraChoice, Note
from errors import InvalidValue
from schemas.explain import given_value

MAX_LORAS = 8
MAX_LORA_STRENGTH = 4.0
"""Same limits as those of the field `lora`."""
_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]{0,300})>", re.IGNORECASE)
_TAG_WITHOUT_GROUPS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{0,300}>", re.IGNORECASE)
_COMMA_BEFORE_COMMA = re.compile(r",[ \t]*(?=,)")
_LORA_KINDS = ("lora", "lyco")
_WEIGHTS_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$")


@dataclass(frozen=True)
class Loras:
    """The LoRAs for the templates (`planned`: id, file and strength of each), and the notes on tags of the prompt."""

    planned: list[dict[str, Any]]
    adjusted: tuple[Note, ...] = ()
    ignored: tuple[Note, ...] = ()


def read_loras(request: ImageRequest, model: Model, catalogue: Catalogue) -> tuple[ImageRequest, Loras]:
    """The request without the LoRA tags of its prompt, and the LoRAs that it uses.

    Raises InvalidValue for a LoRA that the model does not have, for one that is given twice, for tags if they are
    refused, and for a tag in the negative prompt, where it has no effect; LicenceNotAccepted.
    """
    tags = list(_TAG.finditer(request.prompt))
    ignored: tuple[Note, ...] = ()
    if catalogue.lora_tags == "text":
        why = "it is drawn as text, because `images.lora_tags` is `text`"
        ignored = tuple(Note("prompt", tag[0], None, why) for tag in tags)
        tags = []
    else:
        _check_negative_prompt(request)
    if tags and catalogue.lora_tags == "refuse":
        raise InvalidValue(
            f"The prompt has {given_value(tags[0][0])}, and this server takes LoRAs from the field `lora` only "
            '(`images.lora_tags` is `refuse`); send "lora": [{"name": "…", "strength": 0.8}].',
            param="prompt",
        )
    choices = (*request.loras, *(_choice(tag) for tag in tags))
    planned = _planned(choices, model, catalogue)
    adjusted = tuple(
        Note(
            "prompt",
            tag[0],
            f"{lora['id']} at {lora['strength']:g}",
            "the tag is a LoRA, and no text to draw",
        )
        for tag, lora in zip(tags, planned[len(request.loras) :], strict=True)
    )
    prompt = _without_tags(request.prompt) if tags else request.prompt
    return replace(request, prompt=prompt), Loras(planned, adjusted, ignored)


def values_of_loras(
    request: ImageRequest, loras: Loras, names: Collection[str], catalogue: Catalogue
) -> dict[str, Any]:
    """What the LoRAs of a request set, of the inputs `names` of its task: their defaults, as far as the request does not set
    the input itself; nothing for a LoRA with the strength 0, which does nothing. Raises InvalidValue if two of them
    differ."""
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for lora in loras.planned:
        if lora["strength"] == 0:
            continue
        for name, value in catalogue.loras[lora["id"]].defaults.items():
            if name not in names or request.inputs.get(name) not in (None, ""):
                continue
            if found.setdefault(name, value) != value:
                raise InvalidValue(
                    f"The LoRA {origins[name]!r} is made for `{name}` {found[name]} and {lora['id']!r} for {value}; send "
                    f"`{name}` to say which counts.",
                    param=name,
                )
            origins.setdefault(name, lora["id"])
    return found


def _check_negative_prompt(request: ImageRequest) -> None:
    negative = request.inputs.get("negative_prompt")
    tag = _TAG.search(negative) if isinstance(negative, str) else None
    if tag is not None:
        raise InvalidValue(
            f"`negative_prompt` has {given_value(tag[0])}; a LoRA works for the whole picture: put the tag into `prompt`.",
            param="negative_prompt",
        )


def _choice(tag: re.Match[str]) -> LoraChoice:
    """The LoRA of <lora:NAME>, <lora:NAME:STRENGTH> or <lora:NAME:STRENGTH:STRENGTH> with two equal numbers."""
    kind, (name, *strengths) = tag[1].casefold(), tag[2].split(":")
    if kind not in _LORA_KINDS:
        raise InvalidValue(
            f"The prompt has {given_value(tag[0])}; this server has no hypernetworks: remove it.",
            param="prompt",
        )
    numbers = [_number(text) for text in strengths] or [1.0]
    strength = numbers[0]
    if not name.strip() or strength is None or len(set(numbers)) > 1 or abs(strength) > MAX_LORA_STRENGTH:
        raise InvalidValue(
            f"The prompt has {given_value(tag[0])}; write <lora:NAME:STRENGTH> with one number from "
            f"{-MAX_LORA_STRENGTH:g} to {MAX_LORA_STRENGTH:g}, such as <lora:NAME:0.8>.",
            param="prompt",
        )
    return LoraChoice(name.strip(), strength, param="prompt")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _without_tags(prompt: str) -> str:
    """The prompt without the tags, and without the commas and spaces that they leave behind."""
    # The spaces before a tag are cut afterwards: an expression that begins with them would try each run from every space.
    first, *others = _TAG_WITHOUT_GROUPS.split(prompt)
    text = "".join((*(part.rstrip(" \t") for part in (first, *others[:-1])), *others[-1:]))
    return _COMMA_BEFORE_COMMA.sub("", text).strip().strip(",").strip()


def _planned(choices: tuple[LoraChoice, ...], model: Model, catalogue: Catalogue) -> list[dict[str, Any]]:
    available = catalogue.loras_for(model)
    planned: dict[str, dict[str, Any]] = {}
    for choice in choices:
        lora = available.get(choice.name) if choice.param == "lora" else _find(choice.name, available)
        if lora is None:
            raise InvalidValue(
                f"`{choice.param}`: {model.id} has no LoRA {given_value(choice.name)}; "
                f"available: {', '.join(available) or 'none'}.",
                param=choice.param,
                given=choice.name,
                allowed=list(available),
            )
        catalogue.licences.check(lora)
        if lora.id in planned:
            raise InvalidValue(
                f"`{choice.param}`: the LoRA {lora.id!r} is given twice; give it once, with the strength that you want.",
                param=choice.param,
            )
        strength = lora.strength if choice.strength is None else choice.strength
        planned[lora.id] = {"id": lora.id, "file": lora.file.name, "strength": strength}
    if len(planned) > MAX_LORAS:
        raise InvalidValue(
            f"The request has {len(planned)} LoRAs; at most {MAX_LORAS} are allowed.", param=choices[-1].param
        )
    return list(planned.values())


def _find(name: str, available: Mapping[str, Lora]) -> Lora | None:
    """A LoRA by its id, or by the name of its file, with or without folder and suffix, in any case: in prompts of other
    programs it is the name of a file."""
    if name in available:
        return available[name]
    key = name.strip().casefold()
    by_id = {lora.id.casefold(): lora for lora in available.values()}
    by_file = {_stem(lora.file.name): lora for lora in available.values()}
    return by_id.get(key) or by_file.get(_stem(key))


def _stem(name: str) -> str:
    return _WEIGHTS_SUFFIX.sub("", name.casefold().replace("\\", "/").rpartition("/")[2])
