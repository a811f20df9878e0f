"""flask write-docs: writes the tables in docs/ that are generated from the code, between their markers."""

from __future__ import annotations

import re
from pathlib import Path

import click

from api import status_of
from commands.context import EXIT_CODES, handle_errors, write_file
from compiler import SourcePaths, load_catalogue, read_sources
from errors import error_classes
from metrics import FAMILIES
from settings import SETTINGS

DOCS = Path(__file__).resolve().parent.parent / "docs"


@click.command("write-docs", short_help="Write the generated tables of docs/.")
@handle_errors
def write_docs() -> None:
    """Write the generated tables into docs/*.md."""
    for path, text in documents().items():
        if path.read_text("utf-8") != text:
            write_file(path, text.encode("utf-8"))
            click.echo(f"wrote {path.name}")


def documents() -> dict[Path, str]:
    """Each document with generated tables, and its up-to-date text."""
    tables = {
        "error-codes": error_table(),
        "settings": settings_table(),
        "models": model_table(),
        "metrics": metrics_table(),
    }
    return {
        path: _with_tables(path.read_text("utf-8"), tables)
        for path in sorted(DOCS.glob("*.md"))
        if "<!-- generated: " in path.read_text("utf-8")
    }


def model_table() -> str:
    """The models of the shipped catalogue."""
    root = DOCS.parent
    paths = SourcePaths(root / "catalogue.yaml", root / "templates_wf", root / "schemas")
    catalogue = load_catalogue(read_sources(paths))
    rows = [
        "| Model | | Tasks | Disk | GPU memory | ComfyUI | Licence | Commercial use | Workflow |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in catalogue.models.values():
        disk = f"{model.disk_gb} GB" if model.disk_gb else ""
        memory = f"{model.min_vram_gb} GB" if model.min_vram_gb else ""
        version = catalogue.needed_version(model) or ""
        if catalogue.unverified(model):
            version += ", unverified"
        use = "yes" if model.licence.commercial is True else model.licence.commercial or "no"
        cells = (
            *(f"`{model.id}`", model.title, ", ".join(model.workflows), disk, memory, version),
            *(model.licence.name, use, f"`{next(iter(model.workflows.values()))}`"),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _with_tables(text: str, tables: dict[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([a-z-]+) -->\n.*?<!-- end -->", replacement, text, flags=re.DOTALL)


def error_table() -> str:
    """Every error code with its HTTP status, whether clients should retry, its exit code, cause and remedy."""
    rows = ["| Code | Status | Retry | Exit code | Cause | Remedy |", "| --- | --- | --- | --- | --- | --- |"]
    for error in error_classes():
        code = next(code for parent, code in EXIT_CODES if issubclass(error, parent))
        retry = "yes" if error.retry else "no"
        rows.append(
            f"| `{error.code}` | {status_of(error)} | {retry} | {code} | {error.when} | {error.remedy} |"
        )
    return "\n".join(rows)


def metrics_table() -> str:
    """Every metric with its type, labels and meaning."""
    rows = ["| Metric | Type | Labels | |", "| --- | --- | --- | --- |"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows)


def settings_table() -> str:
    """Every setting with its variable, default and description."""
    rows = ["| In easel.yaml | Variable | Default | Description |", "| --- | --- | --- | --- |"]
    for setting in SETTINGS:
        description = setting.description
        if setting.choices:
            description += f" One of {', '.join(f'`{choice}`' for choice in setting.choices)}."
        default = str(setting.default).lower() if setting.kind == "boolean" else str(setting.default)
        shown = (
            f"`{default}`"
            if setting.default or setting.kind in ("boolean", "integer", "number")
            else "(empty)"
        )
        in_file = "(refused)" if setting.environment_only else f"`{setting.name}`"
        rows.append(f"| {in_file} | `{setting.variable}` | {shown} | {description} |")
    return "\n".join(rows)
