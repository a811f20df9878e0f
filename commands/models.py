"""easel models: the models and whether they can be drawn; and all commands about them, by short names."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Protocol

import click

from commands.adopt_command import adopt_command
from commands.catalogue import check_catalogue
from commands.context import handle_errors, services
from commands.first_models import download_bytes
from commands.import_command import import_command
from commands.licences import accept_licence
from commands.model_checks import CheckedModel, checked_model, chosen_models
from commands.pull import pull_model
from errors import EngineUnreachable

_GROUPS = ("ready", "missing", "not_drawable", "refused", "valid", "faulty")
"""In the order of the list"""


@click.group(invoke_without_command=True, short_help="List the models; check, pull, adopt them.")
@click.pass_context
def models(context: click.Context) -> None:
    """List the models, ready ones first; or one of the commands below, which are check-catalogue, pull-model, adopt-models,
    accept-licence and import-workflow by shorter names."""
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@models.command("list", short_help="List the models, ready ones first.")
@click.argument("word", required=False)
@click.option("--ready", "only_ready", is_flag=True, help="Only models that can be drawn now.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@handle_errors
def list_models(word: str | None = None, only_ready: bool = False, as_json: bool = False) -> None:
    """List the models, those with WORD in their family, id or title; what can be drawn now comes first."""
    catalogue = services().catalogue()
    chosen = chosen_models(catalogue, word)
    try:
        engine = services().engine_selector.comfyui()
        stats = engine.stats() if engine else None
        if engine is None:
            click.secho("No ComfyUI answers, so it is not known what is ready.", err=True, fg="yellow")
    except EngineUnreachable as error:
        engine = stats = None
        click.secho(f"{error.message} So it is not known what is ready.", err=True, fg="yellow")
    checked = [checked_model(model, catalogue, engine, stats) for model in chosen]
    listed = sorted(checked, key=lambda each: _GROUPS.index(each.group))
    if only_ready:
        listed = [each for each in listed if each.group == "ready"]
    if as_json:
        click.echo(json.dumps([_facts(each) for each in listed], ensure_ascii=False, indent=1))
        return
    width = max((len(each.model.id) for each in listed), default=0)
    for each in listed:
        tasks = ", ".join(each.model.workflows)
        click.echo(
            f"{each.model.id:<{width}}  {_state(each):<13}  {_size(each.model.files.values()):>8}  {tasks}{_lack(each)}"
        )


def _state(checked: CheckedModel) -> str:
    if checked.group == "missing":
        return "files missing" if checked.state and checked.state.files else "nodes missing"
    return {"not_drawable": "not drawable", "refused": "licence"}.get(checked.group, checked.group)


class _Sized(Protocol):
    """A file of which the size may be known."""

    @property
    def size(self) -> int | None: ...


def _size(files: Collection[_Sized]) -> str:
    """The sizes of files together; if one is not known, more than those of the others."""
    total = sum(file.size or 0 for file in files) / 1e9
    is_known = all(file.size is not None for file in files)
    return f"{total:.1f} GB" if is_known else f">{total:.1f} GB" if total else "? GB"


def _lack(checked: CheckedModel) -> str:
    """What a model lacks, in a few words."""
    state = checked.state
    if state is None or state.is_ready:
        return ""
    if state.needs_comfyui:
        return f"  needs ComfyUI {state.needs_comfyui}"
    if state.files:
        count = len(state.files)
        return f"  lacks {count} file{'s' if count > 1 else ''}, {_size(state.files)}"
    return f"  {state.lacks[0]}" if state.lacks else ""


def _facts(checked: CheckedModel) -> dict[str, object]:
    model, state = checked.model, checked.state
    return {
        "id": model.id,
        "group": checked.group,
        "bytes": download_bytes(model),
        "tasks": list(model.workflows),
        "missing": list(state.missing) if state else None,
        "needs_comfyui": state.needs_comfyui if state else None,
    }


models.add_command(check_catalogue, "check")
models.add_command(pull_model, "pull")
models.add_command(adopt_command, "adopt")
models.add_command(accept_licence, "accept")
models.add_command(import_command, "import")
