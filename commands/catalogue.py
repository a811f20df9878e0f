"""flask check-catalogue: checks catalogue.yaml, the owner's folder and, optionally, that an engine has all nodes and
files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from commands.context import engine_at, handle_errors, services
from compiler import Catalogue, Model, Task, compile_workflow, sample_requests
from engine import Engine
from errors import EaselError, EngineUnreachable, FilesMissing


@click.command("check-catalogue", short_help="Check catalogue.yaml and its templates.")
@click.option(
    "--check", "url", metavar="URL", help="Also check that the ComfyUI at URL has every node and file."
)
@handle_errors
def check_catalogue(url: str | None) -> None:
    """Check catalogue.yaml, your own folder (the setting catalogue_dir) and the templates: schema, names, and that the
    template of each model uses everything that a request may set.

    Exit code: 0 if everything is valid, 1 if the catalogue is invalid, an entry of your own folder is not used or a model
    cannot be drawn, 3 if the engine at URL lacks a node or file.
    """
    catalogue = services().catalogue()
    engine = engine_at(url) if url else None
    if engine:
        engine.stats()  # fails once if the engine is unreachable, instead of once for each model
        engine.connect()
    complete = [_print_model(model, catalogue, engine) for model in catalogue.models.values()]
    for note in catalogue.own_overrides:
        click.echo(note)
    for fault in catalogue.own_faults:
        click.secho(fault, fg="red")
    if catalogue.own_faults:
        click.echo(
            f"What has these faults in {services().source_paths.own_folder} is not used; all else is served."
        )
    if catalogue.undrawable:
        names = ", ".join(catalogue.undrawable)
        click.secho(
            f"{len(catalogue.undrawable)} of {len(complete)} models cannot draw everything: {names}.",
            fg="red",
        )
        click.echo(
            "Requests for them are refused until their workflows are corrected; the others are served."
        )
    if catalogue.own_faults or catalogue.undrawable:
        sys.exit(1)
    click.echo(f"{len(catalogue.models)} models and {len(catalogue.workflows)} workflows are valid.")
    if not all(complete):
        sys.exit(3)


def _print_model(model: Model, catalogue: Catalogue, engine: Engine | None) -> bool:
    """Print one line about `model`, and its faults. False if the engine lacks a node or file of it."""
    undrawable = catalogue.undrawable.get(model.id, {})
    missing = _missing(model, catalogue, engine) if engine else []
    mark, colour = ("faulty", "red") if undrawable else ("missing", "yellow") if missing else ("ok", "green")
    workflows = ",".join(dict.fromkeys(model.workflows.values()))
    disk = f"{model.disk_gb:g} GB" if model.disk_gb else ""
    licence = "" if model.licence.commercial != "unknown" else "licence unknown"
    line = f"{model.id:<28} {workflows:<28} {disk:<8} {licence}".rstrip()
    click.echo(f"{click.style(f'{mark:<7}', fg=colour)} {line}")
    for faults, tasks in _tasks_by_faults(undrawable).items():
        click.echo(f"        {', '.join(tasks)}:")
        for fault in faults:
            click.echo(f"        - {fault}")
    for line in missing:
        click.echo(f"        {line}")
    return not missing


def _tasks_by_faults(undrawable: Mapping[Task, tuple[str, ...]]) -> dict[tuple[str, ...], list[Task]]:
    """Tasks with the same faults are printed once."""
    tasks: dict[tuple[str, ...], list[Task]] = {}
    for task, faults in undrawable.items():
        tasks.setdefault(faults, []).append(task)
    return tasks


def _missing(model: Model, catalogue: Catalogue, engine: Engine) -> list[str]:
    """A line for each node and file of `model` that `engine` lacks, with the URL of the file."""
    lines: list[str] = []
    for request in sample_requests(model, catalogue):
        try:
            services().generator.fitted_graphs(compile_workflow(request, catalogue), catalogue, engine)
        except EngineUnreachable:
            raise
        except FilesMissing as error:
            lines.append(error.message)
            lines += [_download(file) for file in error.details["files"]]
        except EaselError as error:
            lines.append(error.message)
    return list(dict.fromkeys(lines))


def _download(file: Mapping[str, Any]) -> str:
    source = file["url"] or "the catalogue has no `url` for this file"
    return f"  {file['folder'] or 'models'}/{file['name']}: {source}"
