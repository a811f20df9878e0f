"""The command-line options of an image request, and their conversion to an ImageRequest."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import click

from compiler import ImageRequest, LoraChoice, Size, Task
from errors import InvalidValue
from generation import Pictures
from pictures import read_image

P = ParamSpec("P")


def request_options(command: Callable[P, None]) -> Callable[P, None]:
    """Decorator: add the options of an image request to `command`."""
    sets = "Set a workflow input, such as steps=4 or negative_prompt=fog; VALUE is JSON or text."
    size = "Width and height in pixels; default: the model's default size."
    image = (
        "Redraw this picture instead of drawing a new one; an empty PROMPT makes a variation. Repeat it for a workflow that "
        "takes several images: the first decides the size."
    )
    markup = "Lay this transparent picture over the first image; it has the same size."
    mask = "Redraw only where this mask is transparent (or white, if it has no transparency)."
    lora = "Apply a LoRA from the catalogue, such as lcm-sd-1.5 or lcm-sd-1.5=0.8."
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--markup", type=file, help=markup),
        click.option("--mask", type=file, help=mask),
        click.option("--image", "images", type=file, multiple=True, help=image),
        click.option("--lora", "loras", multiple=True, metavar="ID[=STRENGTH]", help=lora),
        click.option("--quality", help="Quality preset of the model, such as low or high."),
        click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help=sets),
        click.option("--n", "n", default=1, show_default=True, help="Number of pictures."),
        click.option("--seed", type=int, help="Seed from 0 to 2^64-1; default: random."),
        click.option("--size", metavar="WxH", help=size),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class RequestOptions:
    """The values of the options that `request_options` adds."""

    size: str | None
    seed: int | None
    n: int
    sets: tuple[str, ...]
    quality: str | None
    loras: tuple[str, ...]
    images: tuple[Path, ...]
    mask: Path | None
    markup: Path | None


def image_request(
    options: RequestOptions, *, model: str, prompt: str, id: str
) -> tuple[ImageRequest, Pictures | None]:
    """Convert the options to a request and its input pictures. Raises InvalidValue and InvalidImage."""
    try:
        size = Size.parse(options.size) if options.size and options.size != "auto" else None
    except ValueError as error:
        raise InvalidValue(f"--size: {error}.", param="size") from error
    pictures = _pictures(options)
    request = ImageRequest(
        prompt=prompt,
        model=model,
        task=_task(prompt, pictures),
        size=size,
        n=options.n,
        seed=secrets.randbelow(2**53) if options.seed is None else options.seed,
        seed_origin="random" if options.seed is None else "request",
        id=id,
        inputs=dict(_parse_assignment(text) for text in options.sets),
        presets={"quality": options.quality.lower()} if options.quality else {},
        loras=tuple(map(_lora, options.loras)),
    )
    return request, pictures


def _task(prompt: str, pictures: Pictures | None) -> Task:
    if pictures is None:
        return "generate"
    if pictures.mask is not None:
        return "inpaint"
    return "edit" if prompt.strip() or pictures.markup is not None else "vary"


def _pictures(options: RequestOptions) -> Pictures | None:
    layers = {"mask": options.mask, "markup": options.markup}
    if not options.images:
        for name, path in layers.items():
            if path is not None:
                raise InvalidValue(f"--{name} requires --image.", param=name)
        return None
    image, *more = (read_image(path.read_bytes()) for path in options.images)
    mask, markup = (
        None if path is None else read_image(path.read_bytes(), param=name) for name, path in layers.items()
    )
    return Pictures(image, mask, tuple(more), markup)


def _lora(text: str) -> LoraChoice:
    name, equals, strength = text.partition("=")
    try:
        return LoraChoice(name, float(strength) if equals else None)
    except ValueError as error:
        raise InvalidValue(f"--lora {text}: the strength must be a number.", param="lora") from error


def _parse_assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue(f"--set {text}: the format is NAME=VALUE.", param=name)
    return name.strip(), _parse_value(value)


def _parse_value(text: str) -> Any:
    """The JSON value of `text` (4, 0.5, true, "4"); `text` itself if it is not a JSON number, boolean or string."""
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (int, float, str)) else text
