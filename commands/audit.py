"""easel audit: prints the audit log. Other commands record what they do as `command_actor`."""

from __future__ import annotations

import collections
import getpass
import json
from dataclasses import asdict

import click

from access import COMMAND, Actor
from commands.context import handle_errors, services


@click.command("audit", short_help="Show who changed what, and when.")
@click.option(
    "--last", type=click.IntRange(1), default=50, show_default=True, help="How many entries to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@handle_errors
def audit_command(last: int, as_json: bool) -> None:
    """Show the last entries of the audit log, the newest last: switches, pins, cancelled requests, downloads and removed
    files, keys, accepted licences. The log is audit.jsonl in the state directory."""
    for entry in collections.deque(services().audit.entries(), last):
        if as_json:
            click.echo(json.dumps(asdict(entry)))
            continue
        target = " ".join(
            f"{name}={json.dumps(value)}" for name, value in entry.target.items() if value is not None
        )
        parts = (entry.at, entry.who, entry.address, entry.action, target, entry.result)
        # Clients choose some of the texts, and a terminal obeys control characters.
        click.echo("  ".join(json.dumps(part)[1:-1] if not part.isprintable() else part for part in parts))


def command_actor() -> Actor:
    """Who runs this command."""
    return Actor(COMMAND.name, f"user {user_name()}")


def user_name() -> str:
    """The name of the user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
