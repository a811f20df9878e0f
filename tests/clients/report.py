"""What came of the rows: read from the JUnit files of pytest and node, told as a table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROWS = range(1, 39)
"""The rows of the acceptance table; a test's name begins with the number of its own."""


@dataclass(frozen=True)
class Result:
    """What came of one environment. `error` says why it has no or not all results."""

    client: str
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    error: str = ""
    is_missing: bool = False
    """Not run, for this machine lacks a program for it"""

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.error and not self.is_missing

    @property
    def rows(self) -> set[int]:
        return {row for name in (*self.passed, *self.failed, *self.skipped) for row in row_of(name)}


def row_of(name: str) -> set[int]:
    """The row that a test stands for: 8 for `test_08_an_unknown_…` and for `08 an unknown …`; none for a check of the
    rows' own tools."""
    found = re.match(r"(?:test_)?(\d\d)[_ ]", name)
    return {int(found[1])} if found else set()


def result_of(client: str, junit: Path) -> Result:
    """From the file that the test runner wrote."""
    if not junit.exists():
        return Result(client, error="its test runner ended without a report")
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ET.parse(junit).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        outcomes[outcome].append(case.get("name", "?"))
    if not any(outcomes.values()):
        return Result(client, error="not a single test ran")
    return Result(client, *(tuple(names) for names in outcomes.values()))


def report(results: Sequence[Result]) -> str:
    """A line for each client, what failed, and the rows that nobody tested."""
    lines = [f"{'client':<18} {'passed':>6} {'failed':>6} {'skipped':>7}  rows"]
    for result in results:
        counts = f"{len(result.passed):>6} {len(result.failed):>6} {len(result.skipped):>7}"
        lines.append(f"{result.client:<18} {counts}  {result.error or spans(result.rows)}")
    failed = [f"  {result.client}: {name}" for result in results for name in result.failed]
    if failed:
        lines += ["", "failed:", *failed]
    return "\n".join(lines)


def untested(results: Iterable[Result]) -> set[int]:
    """The rows that no client tested."""
    return set(ROWS).difference(*(result.rows for result in results))


def spans(rows: Iterable[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    parts: list[list[int]] = []
    for row in sorted(rows):
        if parts and row == parts[-1][-1] + 1:
            parts[-1].append(row)
        else:
            parts.append([row])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
