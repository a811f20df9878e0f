"""easel check-catalogue: checks catalogue.yaml and the owner's folder, and what an engine lacks for each model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from commands.context import engine_at, handle_errors, services
from commands.model_checks import CheckedModel, checked_model, chosen_models
from compiler import Catalogue, Model, Task
from engine import Engine, EngineStats
from errors import EngineUnreachable, InvalidValue
from generation import ModelState, StageState, stage_states

_HEADINGS = {
    "faulty": ("cannot be drawn, because of these faults", "red"),
    "refused": ("their licences are refused, see `licences` in easel.yaml", "yellow"),
    "not_drawable": ("not drawable on this engine", "yellow"),
    "missing": ("files or nodes are missing", "yellow"),
    "ready": ("ready", "green"),
    "valid": ("valid", "green"),
}
"""group -> its heading and colour, in the order in which they are printed"""


@click.command("check-catalogue", short_help="Check catalogue.yaml, its templates, and what an engine lacks.")
@click.option(
    "--check", "url", metavar="URL", help="Also check what the ComfyUI at URL lacks for each model."
)
@click.option("--ready", "only_ready", is_flag=True, help="With --check: list only models that are ready.")
@click.option("--family", metavar="WORD", help="Only models with WORD in their family, id or title.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@handle_errors
def check_catalogue(url: str | None, only_ready: bool, family: str | None, as_json: bool) -> None:
    """Check catalogue.yaml, your own folder (the setting catalogue_dir) and the templates: schema, names, and that the
    template of each model uses everything that a request may set. With --check: which models the ComfyUI at URL can draw,
    and what the others lack.

    Exit code: 0 if everything is valid, 1 if the catalogue is invalid, an entry of your own folder is not used or a model
    cannot be drawn, 3 if the engine at URL lacks something for a listed model.
    """
    if only_ready and not url:
        raise InvalidValue("--ready needs --check URL: without an engine no model is ready.", param="ready")
    catalogue = services().catalogue()
    models = chosen_models(catalogue, family)
    engine = engine_at(url) if url else None
    stats = None
    if engine:
        stats = _connected(engine)
    checked = [checked_model(model, catalogue, engine, stats) for model in models]
    stages = stage_states(catalogue, engine, services().generator.check_stage) if engine else ()
    listed = [each for each in checked if each.group == "ready"] if only_ready else checked
    if as_json:
        click.echo(json.dumps(_document(listed, stages, catalogue, url, stats), ensure_ascii=False, indent=1))
    else:
        _print(listed, catalogue, stats)
        _print_stages(stages)
        _print_downloads(each.state for each in listed if each.group == "missing")
        _print_notes(checked, catalogue)
    if catalogue.own_faults or any(each.faults for each in checked):
        sys.exit(1)
    if engine and not all(each.group in ("ready", "refused") for each in checked):
        sys.exit(3)


def _connected(engine: Engine) -> EngineStats:
    """Asked once before all models. Raises EngineUnreachable."""
    try:
        stats = engine.stats()
        engine.connect()
    except EngineUnreachable as error:
        hint = "Start ComfyUI or correct the URL. Without --check the catalogue is checked by itself."
        raise EngineUnreachable(f"{error.message} {hint}", **error.details) from error
    return stats


# --- text ---------------------------------------------------------------------------------------------


def _print(checked: Sequence[CheckedModel], catalogue: Catalogue, stats: EngineStats | None) -> None:
    if stats is not None:
        name = "Easel's sketch engine" if stats.is_sketch else "ComfyUI"
        click.echo(f"{name} {stats.version}{_gpu(stats)}")
    width = max((len(each.model.id) for each in checked), default=0)
    for group, (heading, colour) in _HEADINGS.items():
        members = [each for each in checked if each.group == group]
        if members:
            click.secho(f"\n{heading} ({len(members)})", fg=colour, bold=True)
        for each in members:
            _print_model(each, catalogue, width)


def _gpu(stats: EngineStats) -> str:
    if not stats.has_gpu or stats.vram_total is None:
        return ""
    return f", {stats.device or 'GPU'} with {stats.vram_total / 1e9:.1f} GB"


def _print_model(checked: CheckedModel, catalogue: Catalogue, width: int) -> None:
    model, state = checked.model, checked.state
    disk = f"{model.disk_gb:.1f} GB" if model.disk_gb else ""
    licence = model.licence.name if model.licence.name != "unknown" else "licence unknown"
    if checked.is_refused:
        denied = catalogue.licences.state(model) == "denied"
        licence = f"licence {'denied' if denied else 'not accepted'}: {model.licence.name}"
    needs = f"  needs ComfyUI {state.needs_comfyui} or newer" if state and state.needs_comfyui else ""
    unverified = ", ".join(catalogue.unverified(model))
    mark = f"  unverified: {unverified}" if unverified else ""
    line = f"  {model.id:<{width}}  {model.family:<18}  {disk:>8}  {_memory(model, state):<15}  {licence}"
    click.echo(f"{line.rstrip()}{needs}{mark}")
    for faults, tasks in _tasks_by_faults(checked.faults).items():
        click.echo(f"      {', '.join(tasks)}:")
        for fault in faults:
            click.echo(f"      - {fault}")
    if state is None or state.needs_comfyui:
        return  # to get files for it would be in vain
    for file in state.files:
        similar = f"; similar: {', '.join(file.similar)}" if file.similar else ""
        click.echo(f"      {file.folder or 'models'}/{file.name}{_size(file.size)}{similar}")
    for text in state.lacks:
        click.echo(f"      {text}")


def _print_stages(stages: Sequence[StageState]) -> None:
    """What can be done with the pictures of any model."""
    if stages:
        click.secho("\nstages, for the pictures of any model", bold=True)
    for stage in stages:
        missing = [str(value) for value in stage.all_values if value not in stage.values]
        done = ", ".join(map(str, stage.values))
        parts = [f"ready: {done}"] if done else []
        parts += [f"not possible: {', '.join(missing)}"] if missing else []
        click.echo(f"  {stage.id}  {'; '.join(parts)}")
        for file in stage.files:
            click.echo(f"      {file.folder or 'models'}/{file.name}{_size(file.size)}; {stage.pull}")
        for text in (
            *stage.lacks,
            *([f"needs ComfyUI {stage.needs_comfyui} or newer"] if stage.needs_comfyui else []),
        ):
            click.echo(f"      {text}")


def _memory(model: Model, state: ModelState | None) -> str:
    if model.min_vram_gb is None:
        return ""
    fits = None if state is None else state.fits_gpu
    return f"{'' if fits is not False else 'too big: '}{model.min_vram_gb:g} GB VRAM"


def _size(size: int | None) -> str:
    return "" if size is None else f" ({size / 1e9:.2f} GB)"


def _tasks_by_faults(undrawable: Mapping[Task, tuple[str, ...]]) -> dict[tuple[str, ...], list[Task]]:
    """Tasks with the same faults are printed once."""
    tasks: dict[tuple[str, ...], list[Task]] = {}
    for task, faults in undrawable.items():
        tasks.setdefault(faults, []).append(task)
    return tasks


def _print_downloads(states: Iterable[ModelState | None]) -> None:
    """Each missing file once, though several models need it."""
    files = dict.fromkeys(replace(file, similar=()) for state in states if state for file in state.files)
    if not files:
        return
    total = sum(file.size or 0 for file in files) / 1e9
    unknown = sum(1 for file in files if file.size is None)
    more = f", and {unknown} of unknown size" if unknown else ""
    click.secho(f"\nmissing files ({len(files)}; {total:.1f} GB{more})", bold=True)
    click.echo("  easel pull-model ID gets those of a model.")
    for file in files:
        source = file.url or "the catalogue has no `url` for this file"
        click.echo(f"  {file.folder or 'models'}/{file.name}: {source}")


def _print_notes(checked: Sequence[CheckedModel], catalogue: Catalogue) -> None:
    for note in catalogue.own_overrides:
        click.echo(note)
    for fault in catalogue.own_faults:
        click.secho(fault, fg="red")
    if catalogue.own_faults:
        click.echo(
            f"What has these faults in {services().source_paths.own_folder} is not used; all else is served."
        )
    faulty = [each.model.id for each in checked if each.faults]
    click.echo()
    if faulty:
        click.secho(
            f"{len(faulty)} of {len(checked)} models cannot draw everything: {', '.join(faulty)}.", fg="red"
        )
        click.echo(
            "Requests for them are refused until their workflows are corrected; the others are served."
        )
    elif not catalogue.own_faults:
        workflows = {name for each in checked for name in each.model.workflows.values()}
        click.echo(f"{len(checked)} models and {len(workflows)} workflows are valid.")
    if unverified := sum(bool(catalogue.unverified(each.model)) for each in checked):
        click.echo(
            f"Unverified: {unverified}. What these use is known from ComfyUI's documentation only; `easel snapshot-nodes "
            "URL` learns it from a ComfyUI that has it."
        )
    if any(each.state for each in checked):
        counts = {group: sum(each.group == group for each in checked) for group in _HEADINGS}
        parts = [f"{_HEADINGS[group][0]}: {count}" for group, count in counts.items() if count]
        click.echo(f"{'; '.join(reversed(parts))}.")


# --- JSON ---------------------------------------------------------------------------------------------


def _document(
    checked: Sequence[CheckedModel],
    stages: Sequence[StageState],
    catalogue: Catalogue,
    url: str | None,
    stats: EngineStats | None,
) -> dict[str, Any]:
    return {
        "engine": None
        if stats is None
        else {
            "url": url,
            "version": stats.version,
            "sketch": stats.is_sketch,
            "vram_gb": stats.vram_total / 1e9 if stats.has_gpu and stats.vram_total is not None else None,
        },
        "models": [_entry(each, catalogue) for each in checked],
        "stages": {stage.id: stage.facts for stage in stages},
        "own_faults": list(map(str, catalogue.own_faults)),
        "own_overrides": list(map(str, catalogue.own_overrides)),
    }


def _entry(checked: CheckedModel, catalogue: Catalogue) -> dict[str, Any]:
    model = checked.model
    return {
        "id": model.id,
        "title": model.title,
        "family": model.family,
        "group": checked.group,
        "tasks": list(model.workflows),
        "faults": {task: list(faults) for task, faults in checked.faults.items()},
        "licence": {"name": model.licence.name, "commercial": model.licence.commercial},
        "disk_gb": model.disk_gb,
        "min_vram_gb": model.min_vram_gb,
        "needs_comfyui": catalogue.needed_version(model),
        "unverified": list(catalogue.unverified(model)),
        "engine": checked.state.facts if checked.state else None,
    }
