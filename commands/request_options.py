"""The command-line options that describe a picture, read into an ImageRequest."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import click

from compiler import ImageRequest, LoraChoice, Size
from errors import InvalidValue
from generation import Pictures
from pictures import read_image

P = ParamSpec("P")


def request_options(command: Callable[P, None]) -> Callable[P, None]:
    """The options that say what to draw."""
    sets = "Set an input of the workflow, such as steps=4 or negative_prompt=fog; VALUE is JSON or a text."
    size = "Width and height in pixels; the model's own if left out."
    image = "Redraw this picture instead of drawing a new one."
    mask = "Redraw only where this mask is transparent, or white."
    lora = "Apply a LoRA of the catalogue, such as lcm-sd-1.5 or lcm-sd-1.5=0.8."
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--mask", type=file, help=mask),
        click.option("--image", type=file, help=image),
        click.option("--lora", "loras", multiple=True, metavar="ID[=STRENGTH]", help=lora),
        click.option("--quality", help="A preset of the model, such as low or high."),
        click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help=sets),
        click.option("--n", "n", default=1, show_default=True, help="Number of pictures."),
        click.option("--seed", type=int, help="Seed from 0 to 2^64-1; drawn if left out."),
        click.option("--size", metavar="WxH", help=size),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class RequestOptions:
    """The options that say what to draw, as `request_options` names them."""

    size: str | None
    seed: int | None
    n: int
    sets: tuple[str, ...]
    quality: str | None
    loras: tuple[str, ...]
    image: Path | None
    mask: Path | None


def image_request(
    options: RequestOptions, *, model: str, prompt: str, id: str
) -> tuple[ImageRequest, Pictures | None]:
    """The options as a request, and the pictures that it redraws. Raises InvalidValue for an option that is wrong, and
    InvalidImage."""
    try:
        size = Size.parse(options.size) if options.size and options.size != "auto" else None
    except ValueError as error:
        raise InvalidValue(f"--size: {error}.", param="size") from error
    pictures = _pictures(options)
    request = ImageRequest(
        prompt=prompt,
        model=model,
        task="generate" if pictures is None else "edit" if pictures.mask is None else "inpaint",
        size=size,
        n=options.n,
        seed=secrets.randbelow(2**53) if options.seed is None else options.seed,
        seed_origin="drawn" if options.seed is None else "request",
        id=id,
        inputs=dict(_pair(text) for text in options.sets),
        presets={"quality": options.quality.lower()} if options.quality else {},
        loras=tuple(map(_lora, options.loras)),
    )
    return request, pictures


def _pictures(options: RequestOptions) -> Pictures | None:
    if options.image is None:
        if options.mask is not None:
            raise InvalidValue("--mask: there is no --image for it.", param="mask")
        return None
    mask = None if options.mask is None else read_image(options.mask.read_bytes(), param="mask")
    return Pictures(read_image(options.image.read_bytes()), mask)


def _lora(text: str) -> LoraChoice:
    name, equals, strength = text.partition("=")
    try:
        return LoraChoice(name, float(strength) if equals else None)
    except ValueError as error:
        raise InvalidValue(f"--lora {text}: the strength must be a number.", param="lora") from error


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(f"--set {text}: it wants NAME=VALUE.", param=name)
    return name.strip(), _plain(value)


def _plain(text: str) -> Any:
    """What the text is as JSON (4, 0.5, true, "4"), else the text itself."""
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (int, float, str)) else text
