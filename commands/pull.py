"""easel pull-model: puts the files of models into ComfyUI's folders, or frees them."""

from __future__ import annotations

import click

from commands.context import handle_errors


@click.command("pull-model", short_help="Download the files of models into ComfyUI's folders.")
@click.argument("names", metavar="ID...", nargs=-1, required=True)
@click.option("--remove", "removes", is_flag=True, help="Remove the files that no other model needs.")
@click.option("--yes", "is_agreed", is_flag=True, help="Accept the licences, or remove, without asking.")
@click.option("--dry-run", is_flag=True, help="Show which files are missing, or would go, and do nothing.")
@click.option("--commands", "prints", is_flag=True, help="Print shell commands for the machine of ComfyUI.")
@handle_errors
def pull_model(names: tuple[str, ...], removes: bool, is_agreed: bool, dry_run: bool, prints: bool) -> None:
    """Download the files of the models, LoRAs or stages ID... into the folder of the setting `engine.models_dir`.

    Files that are there are left as they are. A download goes on where it broke off, also after this command was killed.
    Each file is checked, where the catalogue has its size or hash, before it gets its name. If ComfyUI runs on another
    machine, the commands to run there are printed.

    The licences are shown first, and you are asked about those that nobody has accepted yet.

    Exit code: 0 if all files are there, 1 if the folder is not known, 2 if a model is not in the catalogue or its licence
    was not accepted, 3 if a file could not be pulled, 5 if the disk is full.
    """
    # Not imported before: every worker would have it in memory.
    from commands.run_pull import PullOptions, run

    run(PullOptions(names, removes=removes, is_agreed=is_agreed, dry_run=dry_run, prints=prints))
