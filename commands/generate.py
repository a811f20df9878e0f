"""easel generate: draws pictures from the shell, with the same services as over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from commands.context import handle_errors, print_notes, services, write_file
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
    help="Output file; the extension chooses png, jpg or webp. Several pictures are numbered.",
)
@click.option("-m", "--model", default="", help="Model id or alias; default: the default model.")
@request_options
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=3600,
    show_default=True,
    help="Maximum time to wait, in seconds.",
)
@handle_errors
def generate(prompt: str, output: Path, model: str, timeout: int, **options: Any) -> None:
    """Draw PROMPT and write the picture to a file.

    Uses the configured ComfyUI, else a ComfyUI on 127.0.0.1:8188, else the built-in sketch engine (only if no ComfyUI
    was ever found).
    """
    suffix = output.suffix.lower()
    if suffix not in _FORMATS:
        raise InvalidValue(
            f"{output}: the file extension must be one of {', '.join(_FORMATS)}.", param="output"
        )
    request, pictures = image_request(
        RequestOptions(**options), model=model, prompt=prompt, id=str(uuid.uuid4())
    )
    with services().command_engine(), click.progressbar(length=1, label="drawing", show_eta=False) as bar:
        generation = services().generator.generate(
            request,
            OutputOptions(_FORMATS[suffix], keep=False),
            timeout_s=timeout,
            pictures=pictures,
            on_progress=_update_bar(bar),
        )
        bar.update((bar.length or 0) - bar.pos)
    _write(generation, output)


def _update_bar(bar: Any) -> Callable[[Progress | Preview], None]:
    """A callback that updates `bar` with the sampler steps. The number of steps of a job is known from its first event."""
    jobs: dict[str, Progress] = {}

    def update(event: Progress | Preview) -> None:
        if isinstance(event, Progress) and event.maximum > 1:
            jobs[event.prompt_id] = event
            bar.length = sum(job.maximum for job in jobs.values())
            bar.update(sum(job.value for job in jobs.values()) - bar.pos)

    return update


def _write(generation: Generation, output: Path) -> None:
    is_numbered = len(generation.images) > 1
    for index, image in enumerate(generation.images, start=1):
        path = output.with_stem(f"{output.stem}-{index}") if is_numbered else output
        write_file(path, image.data)
        seed = "no seed" if image.seed is None else f"seed {image.seed}"
        click.echo(f"{path}  {image.size}  {generation.plan.model}  {seed}")
    print_notes((*generation.plan.adjusted, *generation.adjusted, *generation.plan.ignored))
    if generation.is_sketch:
        click.secho(
            "This is a sketch; no model ran. Set EASEL_ENGINE_URL to use ComfyUI.",
            err=True,
            fg="yellow",
        )
