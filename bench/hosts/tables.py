"""Prints tables and targets."""

from __future__ import annotations

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown, with columns of even width."""
    widths = [max(len(row[index]) for row in [headings, *rows]) for index in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def target(name: str, value: str, limit: str, *, is_met: bool) -> str:
    """One line of a report."""
    return f"{name}: {value}; target: {limit}: {'met' if is_met else 'NOT MET'}"
