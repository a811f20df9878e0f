"""easel hosts: lists the hosts that draw for each other, drains and resumes them."""

from __future__ import annotations

import json
from typing import Any

import click

from commands.audit import command_actor
from commands.context import HostsOfCommand, handle_errors, services
from errors import InvalidValue, SettingsInvalid


@click.group(short_help="List the hosts that draw; drain and resume them.")
def hosts() -> None:
    """List the hosts that are joined by `cluster.redis`, drain and resume them. No restart is needed."""


@hosts.command("list", short_help="List the hosts, and what they do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@handle_errors
def list_hosts(as_json: bool) -> None:
    """List the hosts. Exit code: 0; 3 if Redis does not answer."""
    reports = _hosts().reports()
    if as_json:
        click.echo(json.dumps(reports, indent=2, ensure_ascii=False))
        return
    if not reports:
        click.echo(
            "No host is there. Start `easel worker` on one, with the same cluster.redis and EASEL_CLUSTER_KEY."
        )
    for report in reports:
        click.echo(_line(report))


def _line(report: dict[str, Any]) -> str:
    parts = [report["name"], report["state"]]
    if report["problem"]:
        parts.append(report["problem"])
    if report["version"]:
        parts.append(f"Easel {report['version']}, ComfyUI {report['comfyui'] or 'unknown'}")
    parts.append(f"{report['running']} running, {report['waiting']} waiting, {report['models']} models")
    if report["loaded_models"]:
        parts.append(f"loaded: {', '.join(report['loaded_models'])}")
    return "  ".join(parts)


@hosts.command(short_help="Give a host no new jobs.")
@click.argument("name")
@handle_errors
def drain(name: str) -> None:
    """Give the host NAME no new jobs until it is resumed, also over restarts; it finishes those that it has. Exit code: 0; 2
    if there is no such host, 3 if Redis does not answer."""
    _set(name, is_drained=True)
    click.echo(f"The host {name} is drained.")


@hosts.command(short_help="Give a host jobs again.")
@click.argument("name")
@handle_errors
def resume(name: str) -> None:
    """Give the host NAME jobs again. Exit code: 0; 2 if there is no such host, 3 if Redis does not answer."""
    _set(name, is_drained=False)
    click.echo(f"The host {name} gets jobs.")


def _set(name: str, *, is_drained: bool) -> None:
    found = _hosts()
    names = [report["name"] for report in found.reports()]
    unknown = f"No host is named {name!r}; there are: {', '.join(names) or 'none'}."
    if is_drained and name not in names:
        raise InvalidValue(unknown, param="name")
    action = "hosts.drain" if is_drained else "hosts.resume"
    with services().audit.recording(command_actor(), action, {"name": name}):
        # One that has ended may be resumed, before it starts again.
        if not found.set_drained(name, is_drained) and name not in names:
            raise InvalidValue(unknown, param="name")


def _hosts() -> HostsOfCommand:
    joined = services().host_list
    if joined is None:
        raise SettingsInvalid("There are no other hosts: cluster.redis (EASEL_CLUSTER_REDIS) is not set.")
    return joined
