"""easel adopt-models: makes models of the files that ComfyUI has already."""

from __future__ import annotations

from pathlib import Path

import click

from commands.context import handle_errors, text_or_json


@click.command("adopt-models", short_help="Use the model files that are there already.")
@click.option(
    "--models-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="ComfyUI's folder models. Default: the setting engine.models_dir.",
)
@click.option("--hash", "is_hashed", is_flag=True, help="Also recognize renamed files by their SHA-256.")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show the result and write nothing.")
@text_or_json
@handle_errors
def adopt_command(
    models_dir: Path | None, is_hashed: bool, is_agreed: bool, dry_run: bool, output_format: str
) -> None:
    """Look at the files of ComfyUI and make models and LoRAs of those that the catalogue does not have.

    Files are known by their names, with --hash also by their content; what another one is says the head of a safetensors
    file, of which nothing else is read. Pickles (.ckpt, .pt) are never opened. The entries are written to the folder of the
    setting catalogue_dir, one file for each, where a running server finds them; nothing is overwritten.
    """
    # Not imported before: every worker would have it in memory.
    from commands.adopt_models import AdoptOptions, run

    run(AdoptOptions(models_dir, is_hashed, is_agreed, dry_run, as_json=output_format == "json"))
