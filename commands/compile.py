"""easel compile-workflow: prints the graph, or the origin of each of its values, without a GPU."""

from __future__ import annotations

import json
from typing import Any

import click

from commands.context import engine_at, handle_errors, print_notes, services
from commands.request_options import RequestOptions, image_request, request_options
from compiler import Compiled, compile_workflow
from compiler.values import Note
from generation import with_source, write_for_editor


@click.command("compile-workflow", short_help="Print the ComfyUI graph for a model and a prompt.")
@click.argument("model")
@click.argument("prompt")
@request_options
@click.option(
    "--as",
    "output_format",
    type=click.Choice(["json", "explain", "editor"]),
    default="json",
    show_default=True,
    help="Print the graph in API format, explain the origin of every value, or print the graph as a file for ComfyUI's "
    "editor.",
)
@click.option(
    "--check", "url", metavar="URL", help="Also check that the ComfyUI at URL has every node and file."
)
@handle_errors
def compile_command(model: str, prompt: str, output_format: str, url: str | None, **options: Any) -> None:
    """Print the ComfyUI graph that MODEL would run for PROMPT.

    The JSON is in ComfyUI's API format: send it to POST /prompt, or load it in ComfyUI's web page. A request with
    several jobs prints several graphs. Adjusted and ignored values are printed to stderr. With --image, the graph refers
    to files that must be uploaded first with `POST /upload/image`.

    With --as editor, the output is a workflow of ComfyUI's editor: save it as a file and drop it on ComfyUI's page. It has
    the graph of the first job. What the editor would change is printed to stderr.
    """
    request, pictures = image_request(RequestOptions(**options), model=model, prompt=prompt, id="preview")
    catalogue = services().catalogue()
    compiled = compile_workflow(with_source(request, pictures), catalogue)
    graphs: list[Any] = [graph.nodes for graph in compiled.graphs]
    engine = engine_at(url) if url else None
    if engine is not None:
        fitted = services().generator.fitted_graphs(compiled, catalogue, engine)
        graphs = [graph.nodes for graph in fitted]
        click.secho(f"{url} can run this graph.", err=True, fg="green")
    if output_format == "explain":
        click.echo(explanation(compiled, request.seed_origin))
        return
    if output_format == "editor":
        written = write_for_editor(compiled, catalogue, graphs[0], engine)
        click.echo(json.dumps(written.document, indent=2, ensure_ascii=False))
        for note in written.notes:
            click.echo(note, err=True)
    else:
        for graph in graphs:
            click.echo(json.dumps(graph, indent=2, ensure_ascii=False))
    print_notes((*compiled.plan.adjusted, *compiled.plan.ignored))


def explanation(compiled: Compiled, seed_origin: str) -> str:
    """Every value of the plan with its origin, one per line, then the adjusted and ignored fields."""
    plan = compiled.plan
    rows = [
        ("model", plan.model, ""),
        (
            "workflow",
            plan.workflow,
            plan.template if "/" in plan.template else f"templates_wf/{plan.template}",
        ),
        *(
            (name, planned.value, planned.origin)
            for name, planned in plan.values.items()
            if planned.value not in (None, [])
        ),
        *(
            (f"job {index}", f"seed {job.seed}, {job.batch} picture(s)", seed_origin)
            if plan.has_seed
            else (f"job {index}", f"no seed, {job.batch} picture(s)", "")
            for index, job in enumerate(plan.jobs)
        ),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}}  {_format_value(value)}{f'  ({origin})' if origin else ''}"
        for name, value, origin in rows
    ]
    lines += [f"adjusted  {_format_note(note)}" for note in plan.adjusted]
    lines += [f"ignored   {_format_note(note)}" for note in plan.ignored]
    return "\n".join(lines)


def _format_value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _format_note(note: Note) -> str:
    done = "" if note.done is None else f" -> {_format_value(note.done)}"
    return f"{note.field}: {_format_value(note.asked)}{done} ({note.why})"
