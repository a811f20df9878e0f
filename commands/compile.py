"""flask compile-workflow: see the graph, and where each of its values comes from, without a GPU."""

from __future__ import annotations

import json
from typing import Any

import click

from commands.context import engine_at, handle_errors, services
from commands.request_options import RequestOptions, image_request, request_options
from compiler import Compiled, compile_workflow
from compiler.values import Note
from generation import with_source


@click.command("compile-workflow", short_help="Print the graph a model runs for a prompt.")
@click.argument("model")
@click.argument("prompt")
@request_options
@click.option(
    "--as",
    "form",
    type=click.Choice(["json", "explain"]),
    default="json",
    show_default=True,
    help="Print the graph, or every value with its origin.",
)
@click.option(
    "--check", "url", metavar="URL", help="Also ask the ComfyUI at URL whether it has every node and file."
)
@handle_errors
def compile_command(model: str, prompt: str, form: str, url: str | None, **options: Any) -> None:
    """Print the ComfyUI graph that MODEL would run for PROMPT.

    The JSON is ComfyUI's API format: paste it into POST /prompt, or load it in ComfyUI's own page. A request of
    several jobs prints several graphs. With --image the graph names files that `POST /upload/image` must bring first.
    """
    request, pictures = image_request(RequestOptions(**options), model=model, prompt=prompt, id="preview")
    catalogue = services().catalogue()
    compiled = compile_workflow(with_source(request, pictures), catalogue)
    graphs: list[Any] = [graph.nodes for graph in compiled.graphs]
    if url:
        graphs = services().generator.check(compiled, catalogue, engine_at(url))
        click.secho(f"{url} can run it.", err=True, fg="green")
    if form == "explain":
        click.echo(explanation(compiled, request.seed_origin))
    else:
        for graph in graphs:
            click.echo(json.dumps(graph, indent=2, ensure_ascii=False))


def explanation(compiled: Compiled, seed_origin: str) -> str:
    """Every value of the plan with who decided it, one a line, then what was not done as asked."""
    plan = compiled.plan
    rows = [
        ("model", plan.model, ""),
        ("workflow", plan.workflow, f"templates_wf/{plan.template}"),
        *(
            (name, planned.value, planned.origin)
            for name, planned in plan.values.items()
            if planned.value not in (None, [])
        ),
        *(
            (f"job {index}", f"seed {job.seed}, {job.batch} picture(s)", seed_origin)
            for index, job in enumerate(plan.jobs)
        ),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{name:<{width}}  {_shown(value)}{f'  ({origin})' if origin else ''}" for name, value, origin in rows
    ]
    lines += [f"adjusted  {_note(note)}" for note in plan.adjusted]
    lines += [f"ignored   {_note(note)}" for note in plan.ignored]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _note(note: Note) -> str:
    done = "" if note.done is None else f" -> {_shown(note.done)}"
    return f"{note.field}: {_shown(note.asked)}{done} ({note.why})"
