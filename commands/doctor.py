"""easel doctor: says what is wrong with this installation, and how to put it right."""

from __future__ import annotations

import click


@click.command(short_help="Say what is wrong, and which command puts it right.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check this installation: settings, data, port, ComfyUI, models, LLM servers, keys, limits. What is wrong comes first,
    each with the command that puts it right. No setting is changed.

    Exit code: 0 if nothing prevents drawing, 1 otherwise.
    """
    # Not imported before: every worker would have it in memory.
    from commands.run_doctor import run

    run(context, as_json=as_json)
