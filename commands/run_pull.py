"""What easel pull-model does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import click

from commands.audit import command_actor
from commands.context import services
from commands.licences import ask_for_licences, show_licences
from compiler import Catalogue, LicenceHolder, Lora, Stage
from errors import ModelsFolderMissing
from model_files import FileProgress, PullPlan, plan_pull, plan_removal, remove, shell_commands
from model_files.run_pull import http_options, run_pull
from model_files.stop_signal import Cancelled


@dataclass(frozen=True)
class PullOptions:
    """The arguments of the command."""

    names: tuple[str, ...]
    removes: bool
    is_agreed: bool
    dry_run: bool
    prints: bool


def run(options: PullOptions) -> None:
    """Raises the errors of `model_files`."""
    catalogue = services().catalogue()
    models = _unique(catalogue.find_with_files(name) for name in options.names)
    if options.removes:
        _remove(models, catalogue, options)
        return
    if not _are_licences_accepted(models, options):
        sys.exit(2)
    if options.prints:
        _print_commands(models)
        return
    try:
        folders = services().model_folders()
    except ModelsFolderMissing:
        click.echo("If ComfyUI runs on another machine, run this there, in its folder models:", err=True)
        _print_commands(models)
        raise
    plan = plan_pull(models, folders)
    _print_plan(plan)
    plan.check_space()
    if options.dry_run or not plan.files:
        return
    store = services().pulls
    folder = store.add(plan, folders, "command")
    bar = _Bar()
    recording = services().audit.recording(command_actor(), "models.pull", {"models": list(plan.models)})
    try:
        with recording as set_result:
            set_result("cancelled")
            run_pull(folder, http_options(os.environ), on_progress=bar.update)
            set_result("done")
    except (Cancelled, KeyboardInterrupt):
        bar.end()
        click.echo("Cancelled. What has arrived is kept; the same command goes on with it.", err=True)
        sys.exit(3)
    finally:
        bar.end()
    click.echo(f"All files of {', '.join(plan.models)} are there.")


def _unique(found: Iterable[LicenceHolder]) -> list[LicenceHolder]:
    models: list[LicenceHolder] = []
    for each in found:
        if each not in models:
            models.append(each)
    return models


def _print_commands(models: Sequence[LicenceHolder]) -> None:
    for line in shell_commands(models):
        click.echo(line)


def _are_licences_accepted(models: Sequence[LicenceHolder], options: PullOptions) -> bool:
    """Shows and asks. Nothing need be accepted to see what would be pulled. Raises LicenceNotAccepted for a denied one."""
    if options.dry_run:
        return show_licences(models)
    return ask_for_licences(models, is_agreed=options.is_agreed, to_stderr=options.prints)


def _print_plan(plan: PullPlan) -> None:
    if plan.present:
        click.echo(f"{plan.present} files are there already.")
    for file in plan.files:
        size = f"{file.size / 1e9:.2f} GB" if file.size else "size unknown"
        checked = "" if file.sha256 else ", no hash known"
        click.echo(f"missing: {file.folder}/{file.name} ({size}{checked}{', gated' if file.gated else ''})")


def _remove(models: Sequence[LicenceHolder], catalogue: Catalogue, options: PullOptions) -> None:
    names = ", ".join(model.id for model in models)
    used = _other_users(models, catalogue)
    removal = plan_removal(models, list(catalogue.models.values()), services().model_folders(), used)
    for name, users in removal.kept.items():
        click.echo(f"kept: {name}, needed by {', '.join(users)}")
    for path in removal.paths:
        click.echo(f"{'would remove' if options.dry_run else 'remove'}: {path}")
    if not removal.paths:
        click.echo(f"{names}: there is nothing to remove.")
        return
    if options.dry_run:
        return
    if not options.is_agreed:
        click.confirm(f"Free {removal.bytes / 1e9:.2f} GB?", abort=True)
    with services().audit.recording(
        command_actor(),
        "models.remove",
        {"models": [model.id for model in models], "files": [path.name for path in removal.paths]},
    ):
        remove(removal)
    click.echo(f"{names}: freed {removal.bytes / 1e9:.2f} GB.")


def _other_users(models: Sequence[LicenceHolder], catalogue: Catalogue) -> Mapping[tuple[str, str], str]:
    """folder and name of a file -> what needs it, besides `models` and the files that models of the catalogue declare"""
    removed = {model.id for model in models}
    used = {
        file: f"the template of {other}"
        for other, proofs in catalogue.proofs.items()
        if other not in removed
        for proof in proofs.values()
        for file in proof.files
    }
    others: list[Lora | Stage] = [*catalogue.loras.values(), *catalogue.stages.values()]
    for each in others:
        if each not in models:
            kind = "LoRA" if isinstance(each, Lora) else "stage"
            used |= {(file.folder, file.name): f"the {kind} {each.id}" for file in each.files.values()}
    return used


class _Bar:
    """Progress on stderr: a line that is written anew on a terminal, a line for each tenth elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._tenths = -1
        self._told: set[str] = set()
        self._has_line = False

    def update(self, files: list[FileProgress], bytes_per_s: float) -> None:
        """Called each second."""
        received = sum(file.received for file in files)
        sizes = [file.size for file in files]
        total = sum(size for size in sizes if size is not None) if None not in sizes else None
        for file in files:
            if file.state == "retrying":
                self._tell(f"{file.name}: {file.reason}")
            elif file.state == "failed" and len(files) > 1:  # of one file, the command prints the error
                self._tell(file.reason)
        line = f"{received / 1e9:.2f} GB, {bytes_per_s / 1e6:.0f} MB/s"
        if total:
            share = min(1.0, received / total)
            line = f"{share:4.0%} of {total / 1e9:.2f} GB, {bytes_per_s / 1e6:.0f} MB/s"
            if bytes_per_s > 1 and share < 1:
                line += f", {(total - received) / bytes_per_s / 60:.0f} min left"
            if not self._is_terminal and int(share * 10) > self._tenths:
                self._tenths = int(share * 10)
                click.echo(line, err=True)
            filled = int(share * 30)
            line = f"[{'#' * filled}{'-' * (30 - filled)}] {line}"
        if self._is_terminal:
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
            self._has_line = True

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.end()
            click.echo(text, err=True)

    def end(self) -> None:
        """Leave the line as it is."""
        if self._has_line:
            self._has_line = False
            click.echo(err=True)
