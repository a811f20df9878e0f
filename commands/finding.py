"""What `easel doctor` finds, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "hint", "ok"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint", "ok")
"""error: no picture can be drawn, or the server does not start. warning: something fails or is not as the owner wants it.
hint: could be better. ok: checked, and right. In the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """`code`: stable, for programs; `fix`: a command, or what to do; empty if nothing is to be done."""

    code: str
    severity: Severity
    message: str
    fix: str = ""


def by_importance(findings: Iterable[Finding]) -> list[Finding]:
    """The most severe first; equal ones stay in the order of the checks, which begins with what the others need."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
