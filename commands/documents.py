"""flask write-docs: the tables in docs/ that are made from the code, put between their marks."""

from __future__ import annotations

import re
from pathlib import Path

import click

from api import status_of
from commands.context import EXIT_CODES, handle_errors, write_file
from errors import every_error
from settings import TABLE

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
    """Each document with generated tables, and the text it should have."""
    tables = {"error-codes": error_table(), "settings": settings_table()}
    return {
        path: _filled(path.read_text("utf-8"), tables)
        for path in sorted(DOCS.glob("*.md"))
        if "<!-- generated: " in path.read_text("utf-8")
    }


def _filled(text: str, tables: dict[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{tables[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([a-z-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def error_table() -> str:
    """Every code with its status, whether a client should try again, when it comes, and what helps."""
    rows = ["| Code | Status | Retry | Exit | When | What helps |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in every_error():
        exit_status = next(code for parent, code in EXIT_CODES if issubclass(kind, parent))
        retry = "yes" if kind.retry else "no"
        rows.append(
            f"| `{kind.code}` | {status_of(kind)} | {retry} | {exit_status} | {kind.when} | {kind.remedy} |"
        )
    return "\n".join(rows)


def settings_table() -> str:
    """Every setting with its variable, default and sentence."""
    rows = ["| In easel.yaml | Variable | Default | |", "| --- | --- | --- | --- |"]
    for setting in TABLE:
        words = setting.sentence
        if setting.choices:
            words += f" One of {', '.join(f'`{choice}`' for choice in setting.choices)}."
        default = str(setting.default).lower() if setting.kind == "switch" else str(setting.default)
        shown = (
            f"`{default}`"
            if setting.default or setting.kind in ("switch", "integer", "number")
            else "(empty)"
        )
        rows.append(f"| `{setting.name}` | `{setting.variable}` | {shown} | {words} |")
    return "\n".join(rows)
