"""flask check-catalogue: checks catalogue.yaml and, optionally, that an engine has all nodes and files."""

from __future__ import annotations

import sys

import click

from commands.context import engine_at, handle_errors, services
from compiler import Catalogue, ImageRequest, Model, compile_workflow
from engine import Engine
from errors import EaselError, EngineUnreachable


@click.command("check-catalogue", short_help="Check catalogue.yaml and its templates.")
@click.option(
    "--check", "url", metavar="URL", help="Also check that the ComfyUI at URL has every node and file."
)
@handle_errors
def check_catalogue(url: str | None) -> None:
    """Check catalogue.yaml and its templates: schema, names, and that every model compiles.

    Exit code: 0 if everything is valid, 1 if the catalogue is invalid, 3 if the engine at URL lacks a node or file.
    """
    catalogue = services().catalogue()
    engine = engine_at(url) if url else None
    if engine:
        engine.stats()  # fails once if the engine is unreachable, instead of once for each model
    complete = [_print_model(model, catalogue, engine) for model in catalogue.models.values()]
    click.echo(f"{len(catalogue.models)} models and {len(catalogue.workflows)} workflows are valid.")
    if not all(complete):
        sys.exit(3)


def _print_model(model: Model, catalogue: Catalogue, engine: Engine | None) -> bool:
    """Print one line about `model`. False if the engine lacks a node or file of it."""
    error = _missing(model, catalogue, engine) if engine else None
    mark = click.style("missing", fg="yellow") if error else click.style("ok", fg="green")
    disk = f"{model.disk_gb:g} GB" if model.disk_gb else ""
    click.echo(f"{mark:<7} {model.id:<28} {','.join(model.workflows.values()):<28} {disk}")
    if error:
        click.echo(f"        {error.message}")
    return error is None


def _missing(model: Model, catalogue: Catalogue, engine: Engine) -> EaselError | None:
    request = ImageRequest(prompt="check", seed=0, id="check", model=model.id)
    try:
        services().generator.fitted_graphs(compile_workflow(request, catalogue), catalogue, engine)
    except EngineUnreachable:
        raise
    except EaselError as error:
        return error
    return None
