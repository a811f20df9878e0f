"""flask check-catalogue: is catalogue.yaml right, and does an engine have what its models need?"""

from __future__ import annotations

import sys

import click

from commands.context import engine_at, handle_errors, services
from compiler import Catalogue, ImageRequest, Model, compile_workflow
from engine import Engine
from errors import EaselError, EngineUnreachable


@click.command("check-catalogue", short_help="Check catalogue.yaml and its templates.")
@click.option("--check", "url", metavar="URL", help="Also ask the ComfyUI at URL for every node and file.")
@handle_errors
def check_catalogue(url: str | None) -> None:
    """Check catalogue.yaml and its templates: schema, names, and that every model compiles.

    Ends with 0 when all is well, 1 when the catalogue is wrong, 3 when the engine at URL lacks something.
    """
    catalogue = services().catalogue()
    engine = engine_at(url) if url else None
    if engine:
        engine.stats()  # says at once that nothing is there, instead of once for each model
    errors = [_line(model, catalogue, engine) for model in catalogue.models.values()]
    click.echo(f"{len(catalogue.models)} models and {len(catalogue.workflows)} workflows are right.")
    if any(errors):
        sys.exit(3)


def _line(model: Model, catalogue: Catalogue, engine: Engine | None) -> bool:
    """Print how `model` stands; True when the engine lacks something."""
    error = _lack(model, catalogue, engine) if engine else None
    mark = click.style("lacks", fg="yellow") if error else click.style("ok", fg="green")
    disk = f"{model.disk_gb:g} GB" if model.disk_gb else ""
    click.echo(f"{mark:<6} {model.id:<28} {','.join(model.workflows.values()):<28} {disk}")
    if error:
        click.echo(f"       {error.message}")
    return error is not None


def _lack(model: Model, catalogue: Catalogue, engine: Engine) -> EaselError | None:
    request = ImageRequest(prompt="check", seed=0, id="check", model=model.id)
    try:
        services().generator.check(compile_workflow(request, catalogue), catalogue, engine)
    except EngineUnreachable:
        raise
    except EaselError as error:
        return error
    return None
