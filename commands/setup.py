"""easel setup: looks at this machine and writes easel.yaml."""

from __future__ import annotations

import click


@click.command(short_help="Look at this machine and write easel.yaml.")
@click.option("--yes", "is_agreed", is_flag=True, help="Take all proposals without asking.")
@click.option("--print", "prints", is_flag=True, help="Print the file and write nothing.")
@click.pass_context
def setup(context: click.Context, is_agreed: bool, prints: bool) -> None:
    """Look for ComfyUI and its models, LLM servers and the GPU on this machine, and write easel.yaml with the settings that
    they need, each with its reason. Enter takes a proposal. The file is that of `easel --version`; `easel --config FILE
    setup` writes another one.

    A file that exists is never changed: what it would have in addition is shown. Nothing is asked of the internet.

    Exit code: 0 if the file was written or printed, or the existing one has everything; 1 if the existing one lacks
    something or is not valid, or nothing could be written; 2 if there is nobody to ask and neither --yes nor --print.
    """
    # Not imported before: every worker would have it in memory.
    from commands.run_setup import run

    run(context, is_agreed=is_agreed, prints=prints)
