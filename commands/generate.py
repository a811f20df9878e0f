"""flask generate: one picture from the shell, through the same rooms as over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from commands.context import handle_errors, services, write_file
from commands.request_options import RequestOptions, image_request, request_options
from engine import Preview, Progress
from errors import InvalidValue
from generation import Generation, OutputFormat, OutputOptions

_FORMATS: dict[str, OutputFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@click.command(short_help="Draw a prompt and write the picture to a file.")
@click.argument("prompt")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="picture.png",
    show_default=True,
    help="Where to write; png, jpg or webp by its ending. Several pictures are numbered.",
)
@click.option("-m", "--model", default="", help="Id or alias; the default model if left out.")
@request_options
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=3600,
    show_default=True,
    help="Longest time to wait, in seconds.",
)
@handle_errors
def generate(prompt: str, output: Path, model: str, timeout: int, **options: Any) -> None:
    """Draw PROMPT and write the picture to a file.

    Uses the configured ComfyUI, the one on 127.0.0.1:8188, or, when there never was one, the built-in sketch engine.
    """
    suffix = output.suffix.lower()
    if suffix not in _FORMATS:
        raise InvalidValue(f"{output}: the ending must be one of {', '.join(_FORMATS)}.", param="output")
    request, pictures = image_request(
        RequestOptions(**options), model=model, prompt=prompt, id=str(uuid.uuid4())
    )
    with services().command_engine(), click.progressbar(length=1, label="drawing", show_eta=False) as bar:
        made = services().generator.generate(
            request,
            OutputOptions(_FORMATS[suffix], keep=False),
            timeout_s=timeout,
            pictures=pictures,
            watch=_shows(bar),
        )
        bar.update((bar.length or 0) - bar.pos)
    _write(made, output)


def _shows(bar: Any) -> Callable[[Progress | Preview], None]:
    """Moves `bar` with the sampler's steps; how many a job has, only its first event tells."""
    jobs: dict[str, Progress] = {}

    def show(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            jobs[event.prompt_id] = event
            bar.length = sum(job.maximum for job in jobs.values())
            bar.update(sum(job.value for job in jobs.values()) - bar.pos)

    return show


def _write(made: Generation, output: Path) -> None:
    several = len(made.images) > 1
    for index, image in enumerate(made.images, start=1):
        path = output.with_stem(f"{output.stem}-{index}") if several else output
        write_file(path, image.data)
        click.echo(f"{path}  {image.size}  {made.plan.model}  seed {image.seed}")
    for note in (*made.plan.adjusted, *made.plan.ignored):
        done = "ignored" if note.done is None else f"{note.done} instead of {note.asked}"
        click.echo(f"{note.field}: {done} ({note.why})", err=True)
    if made.is_sketch:
        click.secho(
            "A sketch: no model ran. Set EASEL_ENGINE_URL to a ComfyUI for real pictures.",
            err=True,
            fg="yellow",
        )
