"""easel import-workflow: makes a model of a workflow of ComfyUI, whatever form it has."""

from __future__ import annotations

from pathlib import Path

import click

from commands.context import handle_errors, text_or_json


@click.command("import-workflow", short_help="Make a model of a workflow of ComfyUI.")
@click.argument("source", required=False)
@click.option("--name", help="The id of the model. Default: from the name of the file.")
@click.option("--title", help="What people see. Default: the name.")
@click.option(
    "--yes", "is_agreed", is_flag=True, help="Do not ask: assume what the result shows, and write it."
)
@click.option("--engine", "url", metavar="URL", help="A ComfyUI that knows the nodes of the workflow.")
@click.option(
    "--object-info",
    "object_info",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A saved response of its /object_info.",
)
@click.option("--list-templates", "word", is_flag=False, flag_value="", default=None, metavar="[WORD]",
              help="List ComfyUI's official templates, or those with this word.")  # fmt: skip
@click.option("--output", metavar="NODE", help="The node whose pictures are the answer.")
@click.option("--prompt", metavar="NODE.INPUT", help="The input that gets the prompt.")
@click.option("--negative-prompt", metavar="NODE.INPUT", help="The input that gets the negative prompt.")
@click.option("--seed", metavar="NODE.INPUT", help="The input that gets the seed.")
@click.option("--width", metavar="NODE.INPUT", help="The input that gets the width.")
@click.option("--height", metavar="NODE.INPUT", help="The input that gets the height.")
@click.option("--image", metavar="NODE.INPUT", help="The input that gets the first picture of an edit.")
@click.option("--expose", multiple=True, metavar="NODE.INPUT=NAME", help="Make an input a request field.")
@click.option("--allow-api-nodes", is_flag=True, help="Import workflows that call paid services, too.")
@text_or_json
@click.option("--dry-run", is_flag=True, help="Show the result and write nothing.")
@handle_errors
def import_command(
    source: str | None,
    name: str | None,
    title: str | None,
    is_agreed: bool,
    url: str | None,
    object_info: Path | None,
    word: str | None,
    output: str | None,
    expose: tuple[str, ...],
    allow_api_nodes: bool,
    output_format: str,
    dry_run: bool,
    **places: str | None,
) -> None:
    """Make a model of SOURCE and serve it.

    SOURCE is a workflow of ComfyUI in any form: an API export, a file of its editor, a PNG or WebP picture that carries
    one, or `template:NAME`, one of ComfyUI's official templates. The template and the catalogue entries are written to the
    folder of the setting `catalogue_dir`, where a running server finds them. Before that the result is shown, and proved:
    the template gives the workflow back, and everything that a request may set changes it.
    """
    # Not imported before: every worker would have it in memory.
    from commands.import_workflow import ImportOptions, run

    run(
        ImportOptions(
            source=source,
            name=name,
            title=title,
            is_agreed=is_agreed,
            url=url,
            object_info=object_info,
            word=word,
            output=output,
            expose=expose,
            allow_api_nodes=allow_api_nodes,
            as_json=output_format == "json",
            dry_run=dry_run,
            places={key: value for key, value in places.items() if value is not None},
        )
    )
