"""What easel doctor does: runs the checks in the order in which they depend on each other, and prints what they find."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import click

from commands.application import easel_command, load_application
from commands.doctor_checks import (
    CHECKS,
    check_clock,
    check_completion,
    check_python,
    other_servers,
    settings_findings,
)
from commands.finding import Finding, by_importance
from commands.machine import Machine, look_around
from commands.terminal import printable
from errors import EaselError
from installation import VERSION

_COLOURS = {"error": "red", "warning": "yellow", "hint": "cyan", "ok": "green"}
_COMMAND = re.compile(r"\beasel(?= [a-z])")
_WIDTH = 9
"""Of the column with the severity"""


def run(context: click.Context, *, as_json: bool) -> None:
    """Exits with 1 if something prevents drawing."""
    command = easel_command(context)
    logging.getLogger("easel").addHandler(logging.NullHandler())  # what is logged is found, too
    findings = by_importance(with_options(finding, command) for finding in _findings(context))
    is_healthy = all(finding.severity != "error" for finding in findings)
    if as_json:
        click.echo(json.dumps(_document(findings, is_healthy), ensure_ascii=False, indent=1))
    else:
        _print(findings, is_healthy)
    if not is_healthy:
        sys.exit(1)


def with_options(finding: Finding, command: str) -> Finding:
    """The finding with commands that use the same files as this one; those that name files themselves stay."""
    return replace(finding, fix=_COMMAND.sub(lambda _: command, finding.fix))


def _findings(context: click.Context) -> Iterator[Finding]:
    yield from check_python()
    app = load_application(context)
    yield from settings_findings(app if isinstance(app, EaselError) else app.extensions["easel"])
    if isinstance(app, EaselError):
        # What does not need the settings is worth knowing all the same.
        yield from other_servers(look_around(None, os.environ))
    else:
        with app.app_context():
            machine = look_around(app.extensions["easel"].settings, os.environ)
            for check in CHECKS:
                yield from _attempted(check, machine)
    yield from check_clock()
    yield from check_completion(context.find_root().info_name or "easel")


def _attempted(check: Callable[[Machine], Iterable[Finding]], machine: Machine) -> list[Finding]:
    """What a check finds; an error that it does not expect is a finding, too, and the other checks go on."""
    found: list[Finding] = []
    try:
        found.extend(check(machine))
    except EaselError as error:
        found.append(Finding(error.code, "error", error.message, _remedy(error)))
    except OSError as error:
        found.append(
            Finding("doctor.check_failed", "warning", f"{check.__name__} could not be done: {error}.")
        )
    return found


def _remedy(error: EaselError) -> str:
    return getattr(error, "remedy", "")


def _print(findings: Iterable[Finding], is_healthy: bool) -> None:
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.severity] = counts.get(finding.severity, 0) + 1
        first, *further = [printable(line) for line in finding.message.splitlines()] or [""]
        click.secho(f"{finding.severity:<{_WIDTH}}", fg=_COLOURS[finding.severity], bold=True, nl=False)
        click.echo(first)
        for line in further:
            click.echo(" " * _WIDTH + line)
        if finding.fix:
            click.echo(f"{'':<{_WIDTH}}fix: {printable(finding.fix)}")
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if name != "ok"]
    click.echo()
    verdict = "Nothing prevents drawing." if is_healthy else "Something prevents drawing."
    click.secho(f"{verdict} {', '.join(parts) or 'No problem found'}.", bold=True)


def _document(findings: Iterable[Finding], is_healthy: bool) -> dict[str, Any]:
    return {
        "version": VERSION,
        "can_draw": is_healthy,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity,
                "message": finding.message,
                "fix": finding.fix or None,
            }
            for finding in findings
        ],
    }
