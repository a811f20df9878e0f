"""easel engines: lists the engines, drains and resumes them, and says which one a model would be drawn by. A running server
knows each change with the next job."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import click

from commands.audit import command_actor
from commands.context import check_state_is_ours, handle_errors, services
from commands.gpu import Server
from deadline import time_limit
from engines import EngineUnit, Fleet, explain_choice
from errors import EaselError, GpuBusy, InvalidValue

_STATS_TIMEOUT_S = 3.0
_WAIT_POLL_S = 0.5


@click.group(short_help="List the engines; drain and resume them.")
def engines() -> None:
    """List the engines (ComfyUIs) of this host, drain and resume them. No restart is needed."""


@engines.command("list", short_help="List the engines, and what they do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@handle_errors
def list_engines(as_json: bool) -> None:
    """List the engines of easel.yaml. Each is asked whether it answers. If the running server uses others, because it
    refused the file, the reason is printed to stderr."""
    fleet = services().fleet
    with ThreadPoolExecutor(len(fleet.units)) as pool:
        reports = list(pool.map(partial(_report, fleet), fleet.units))
    if refused := refused_edit():
        click.secho(f"The running server uses the last valid engines: {refused}", err=True, fg="yellow")
    if as_json:
        click.echo(json.dumps(reports, indent=2, ensure_ascii=False))
        return
    for report in reports:
        click.echo(_line(report))


def refused_edit() -> str | None:
    """Why the running server does not use the engines of easel.yaml as it is now; None if it does, and if none answers."""
    if not services().is_server_running():
        return None
    try:
        status = Server(None).status()
    except EaselError:
        return None
    error = status.get("settings", {}).get("error")  # an older server says nothing of it
    return error["message"] if error else None


def _report(fleet: Fleet, unit: EngineUnit) -> dict[str, Any]:
    outlook = unit.arbiter.outlook()
    report: dict[str, Any] = {
        "name": unit.name,
        "url": unit.url or None,
        "gpu": unit.gpu or None,
        "version": None,
        "problem": None,
        "drained_since": fleet.drained_since(unit),
        "models": None if unit.models is None else sorted(unit.models),
        "loaded_models": list(fleet.loaded_models(unit)),
        "running": len(outlook.running),
        "waiting": len(outlook.waiting_before("")),
    }
    try:
        with time_limit(_STATS_TIMEOUT_S):
            report["version"] = unit.engine().stats().version
    except EaselError as error:
        report["problem"] = error.message
    return report


def _line(report: dict[str, Any]) -> str:
    state = f"ComfyUI {report['version']}" if report["version"] else report["problem"]
    if report["drained_since"] is not None:
        state = f"drained since {_moment(report['drained_since'])}, {state}"
    parts = [report["name"], report["url"] or "no URL", state]
    parts.append(f"{report['running']} running, {report['waiting']} waiting")
    if report["loaded_models"]:
        parts.append(f"loaded: {', '.join(report['loaded_models'])}")
    if report["models"] is not None:
        parts.append(f"draws only {', '.join(report['models'])}")
    return "  ".join(parts)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


@engines.command(short_help="Give an engine no new jobs.")
@click.argument("name")
@click.option(
    "--wait",
    "wait_s",
    type=click.IntRange(0),
    default=0,
    metavar="SECONDS",
    help="Wait until its last job has ended, so long at most.",
)
@handle_errors
def drain(name: str, wait_s: int) -> None:
    """Give the engine NAME no new jobs, until it is resumed, also over restarts. It finishes the one that it has; jobs that
    wait for it go to other engines, if one can draw them.

    Exit code: 0 if it is drained (with --wait: and has no job any more), 2 if there is no such engine or it still has
    jobs, 5 if the state directory cannot be written.
    """
    unit = _unit(name)
    _set(name, is_drained=True)
    click.echo(f"The engine {name} is drained.")
    deadline = time.monotonic() + wait_s
    while wait_s and (claims := unit.arbiter.outlook().situation.claims):
        if time.monotonic() > deadline:
            jobs = "1 job" if len(claims) == 1 else f"{len(claims)} jobs"
            raise GpuBusy(f"The engine {name} still has {jobs}.")
        time.sleep(_WAIT_POLL_S)


@engines.command(short_help="Give an engine jobs again.")
@click.argument("name")
@handle_errors
def resume(name: str) -> None:
    """Give the engine NAME jobs again. Exit code: 0; 2 if there is no such engine, 5 if the state directory cannot be
    written."""
    drains = services().fleet.drains
    if drains is None or name not in drains.all():  # one that is not listed any more may be drained, too
        _unit(name)
    _set(name, is_drained=False)
    click.echo(f"The engine {name} gets jobs.")


@engines.command(short_help="Say which engine would draw a model, and why.")
@click.argument("model")
@handle_errors
def explain(model: str) -> None:
    """Say which engine would draw a picture with MODEL now, and why. Files that an engine lacks are known only once a
    request has needed them. Exit code: 0; 2 if there is no such model, 3 if no engine can draw it."""
    fleet = services().fleet
    found = services().catalogue().find(model)
    choice = fleet.explain(found.id)
    if choice is None:
        fleet.place("explain", found.id)  # raises why
    else:
        for line in explain_choice(choice):
            click.echo(line)


def _unit(name: str) -> EngineUnit:
    fleet = services().fleet
    unit = fleet.unit(name)
    if unit is None:
        names = ", ".join(each.name for each in fleet.units)
        raise InvalidValue(f"There is no engine {name!r}; there are: {names}.", param="name")
    return unit


def _set(name: str, *, is_drained: bool) -> None:
    check_state_is_ours()
    drains = services().fleet.drains
    if drains is None:
        raise InvalidValue(
            "The only engine cannot be drained. List it under `engines` in easel.yaml, where it gets a name.",
            param="name",
        )
    action = "engines.drain" if is_drained else "engines.resume"
    with services().audit.recording(command_actor(), action, {"name": name}):
        drains.set(name, is_drained=is_drained)
