"""The results of the rows: read from the JUnit files of pytest and node, printed as a table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROWS = range(1, 53)
"""The rows of the acceptance table; a test's name starts with the number of its row."""


@dataclass(frozen=True)
class Result:
    """The results of one environment. `error` says why some or all results are missing."""

    client: str
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    error: str = ""
    is_missing: bool = False
    """Not run, because a required program is not installed"""

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.error and not self.is_missing

    @property
    def rows(self) -> set[int]:
        return {row for name in (*self.passed, *self.failed, *self.skipped) for row in rows_of(name)}


def rows_of(name: str) -> set[int]:
    """The row that a test covers: 8 for `test_08_an_unknown_…` and for `08 an unknown …`; empty for a test of the
    rows' own helpers."""
    match = re.match(r"(?:test_)?(\d\d)[_ ]", name)
    return {int(match[1])} if match else set()


def read_result(client: str, junit: Path) -> Result:
    """From the JUnit file that the test runner wrote."""
    if not junit.exists():
        return Result(client, error="the test runner ended without a report")
    outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ET.parse(junit).getroot().iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        outcomes[outcome].append(case.get("name", "?"))
    if not any(outcomes.values()):
        return Result(client, error="no test ran")
    return Result(client, *(tuple(names) for names in outcomes.values()))


def report(results: Sequence[Result]) -> str:
    """A line for each client, and the tests that failed."""
    lines = [f"{'client':<18} {'passed':>6} {'failed':>6} {'skipped':>7}  rows"]
    for result in results:
        counts = f"{len(result.passed):>6} {len(result.failed):>6} {len(result.skipped):>7}"
        lines.append(f"{result.client:<18} {counts}  {result.error or row_ranges(result.rows)}")
    failed = [f"  {result.client}: {name}" for result in results for name in result.failed]
    if failed:
        lines += ["", "failed:", *failed]
    return "\n".join(lines)


def untested(results: Iterable[Result]) -> set[int]:
    """The rows that no client tested."""
    return set(ROWS).difference(*(result.rows for result in results))


def row_ranges(rows: Iterable[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    ranges: list[list[int]] = []
    for row in sorted(rows):
        if ranges and row == ranges[-1][-1] + 1:
            ranges[-1].append(row)
        else:
            ranges.append([row])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in ranges)
