"""What the commands share: the rooms they use, and how a named error ends a command."""

from __future__ import annotations

import functools
import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol

import click
from flask import current_app
from flask.cli import with_appcontext

import errors
from compiler import Catalogue, ImageRequest, LoraChoice, Size, SourcePaths
from engine import Engine
from errors import EaselError, InvalidValue
from generation import Generator, Pictures
from input_images import read_image
from whole_file import write_whole

P = ParamSpec("P")


class Rooms(Protocol):
    """The part of the house that commands enter."""

    @property
    def source_paths(self) -> SourcePaths: ...
    @property
    def generator(self) -> Generator: ...
    def catalogue(self) -> Catalogue: ...
    def server_address(self) -> tuple[str, str | None]:
        """The URL of this installation's running server, and a key that it takes if it wants one."""

    def command_engine(self) -> Any:
        """A context manager that gives the engine in force, or a sketch engine of its own while it lasts."""


EXIT_CODES: tuple[tuple[type[EaselError], int], ...] = (
    (errors.CatalogueInvalid, 1),
    (errors.TemplateInvalid, 1),
    (errors.GraphInvalid, 1),
    (errors.SettingsInvalid, 1),
    (errors.ServerAway, 3),
    (errors.EngineUnreachable, 3),
    (errors.StackError, 3),
    (errors.EngineStalled, 3),
    (errors.FilesMissing, 3),
    (errors.NodesMissing, 3),
    (errors.EngineError, 4),
    (errors.StoreFull, 5),
    (errors.StoreUnwritable, 5),
    (EaselError, 2),
)
"""0 done; 1 catalogue, template or settings are wrong; 2 the request is; 3 a server is away or lacks something;
4 the job failed; 5 the picture could not be kept."""


def exit_code(fault: EaselError) -> int:
    """The exit status for a named error."""
    return next(code for kind, code in EXIT_CODES if isinstance(fault, kind))


def speaks_plainly(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose named errors print as `code: message`, as over HTTP, and end it with their exit code."""

    @with_appcontext
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except EaselError as fault:
            click.secho(f"{fault.code}: {fault.message}", err=True, fg="red")
            sys.exit(exit_code(fault))

    return wrapped


def rooms() -> Rooms:
    """The house of the application that runs this command."""
    house: Rooms = current_app.extensions["easel"]
    return house


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
    except ValueError as fault:
        raise InvalidValue(f"--size: {fault}.", param="size") from fault
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
    except ValueError as fault:
        raise InvalidValue(f"--lora {text}: the strength must be a number.", param="lora") from fault


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


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a full or read-only disk is a named error."""
    if not path.absolute().parent.is_dir():
        raise errors.StoreUnwritable(f"{path} cannot be written: there is no folder {path.parent}.")
    try:
        write_whole(path, data)
    except OSError as fault:
        raise errors.StoreUnwritable(f"{path} cannot be written: {fault.strerror}.") from fault


def engine_at(url: str) -> Engine:
    """The engine at `url`, for commands that are told one."""
    return Engine(url.rstrip("/"))
