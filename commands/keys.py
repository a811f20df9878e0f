"""easel keys: adds, lists and revokes named keys. A running server knows each change with the next request."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from commands.audit import command_actor
from commands.context import check_state_is_ours, handle_errors, services
from errors import InvalidValue

_DURATION = re.compile(r"(\d{1,6})\s*([mhdwy])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 365 * 86_400}


@click.group(short_help="Add, list and revoke the keys of clients.")
def keys() -> None:
    """Add, list and revoke named keys, with which clients may use this server. No restart is needed."""


def _number(
    name: str, text: str, *, highest: int = 1_000_000_000
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name}", type=click.IntRange(1, highest), help=text)


@keys.command(short_help="Add a key, and print it.")
@click.argument("name")
@click.option(
    "--scopes",
    default="draw,view",
    show_default=True,
    help="One or more of draw (pictures and LLMs), view (status and models), metrics (for Prometheus) and operate "
    "(everything else), with commas.",
)
@_number("requests-per-minute", "Requests for pictures or to LLMs in a minute.")
@_number("pictures-per-minute", "Pictures in a minute.")
@_number("requests-per-day", "Requests in 24 hours.")
@_number("pictures-per-day", "Pictures in 24 hours.")
@_number("concurrent", "Requests that may run or wait at the same time.", highest=1000)
@click.option(
    "--max-size", metavar="WxH", help="Largest finished picture, which may be turned by 90 degrees."
)
@_number("max-steps", "Most steps of a picture.")
@click.option("--models", help="The only models that may be used: ids or aliases with commas, LLMs too.")
@click.option("--expires", metavar="TIME", help="Such as 12h, 30d or 1y from now, or 2027-01-31 (UTC).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@handle_errors
def add(
    name: str, scopes: str, models: str | None, expires: str | None, as_json: bool, **numbers: Any
) -> None:
    """Add a key NAME for a client, and print it. It is shown only now: the server keeps its hash.

    The first key closes the server: from then on each request needs one. Exit code: 0 if it was added, 2 if a value is not
    allowed or the name is taken, 5 if the state directory cannot be written.
    """
    check_state_is_ours()
    values = {limit: value for limit, value in numbers.items() if value is not None}
    if models is not None:
        values["models"] = _parts(models)
    target = {"name": name, "scopes": _parts(scopes), "limits": values, "expires": expires}
    with services().audit.recording(command_actor(), "keys.add", target):
        key, text = services().gate.add_key(name, _parts(scopes), values, expires=_time(expires, time.time()))
    if as_json:
        click.echo(json.dumps({**services().gate.report(key), "key": text}, indent=2, ensure_ascii=False))
        return
    click.echo(text)
    click.secho(f"This is the key {key.name}. It is not shown again.", err=True)


@keys.command("list", short_help="List the keys, their limits and what they used.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@handle_errors
def list_keys(as_json: bool) -> None:
    """List the named keys with their limits and what they used today (UTC) and in all."""
    reports, problem = services().gate.reports(), services().gate.problem
    if problem is not None:
        click.secho(f"{problem.code}: {problem.message}", err=True, fg="red")
    if as_json:
        click.echo(json.dumps(reports, indent=2, ensure_ascii=False))
        return
    for report in reports:
        for line in _lines(report):
            click.echo(line)
    if not reports:
        click.echo("There are no named keys.", err=True)


@keys.command(short_help="Revoke a key.")
@click.argument("name")
@handle_errors
def revoke(name: str) -> None:
    """Revoke the key NAME. Its requests that run or wait end within 2 seconds. Its name may be used again afterwards."""
    check_state_is_ours()
    with services().audit.recording(command_actor(), "keys.revoke", {"name": name}):
        key = services().gate.revoke_key(name)
    click.echo(f"The key {key.name} is revoked.")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _time(text: str | None, now: float) -> float | None:
    """Unix seconds of a duration from now or a date. Raises InvalidValue."""
    if text is None:
        return None
    if match := _DURATION.fullmatch(text.strip()):
        return now + int(match[1]) * _SECONDS[match[2]]
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise InvalidValue(
            f"`expires` is {text!r}; it must be a time such as 12h, 30d, 2027-01-31 or 2027-01-31T12:00.",
            param="expires",
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def _lines(report: dict[str, Any]) -> Iterator[str]:
    today, total = report["usage"]["today"], report["usage"]["total"]
    ends = f", until {_day(report['expires'])}" if report["expires"] and report["state"] == "active" else ""
    yield f"{report['name']}  {report['state']}{ends}  {','.join(report['scopes'])}  since {_day(report['created'])}"
    limits = ", ".join(
        f"{name.replace('_', ' ')} {'/'.join(value) if isinstance(value, list) else value}"
        for name, value in report["limits"].items()
    )
    if limits:
        yield f"  limits  {limits}"
    for title, counts in (("today", today), ("total", total)):
        yield (
            f"  {title}   {counts['requests']} requests, {counts['pictures']} pictures, {counts['refused']} refused, "
            f"{counts['gpu_s']:.1f} GPU seconds"
        )


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
