"""easel connect: prints what a program needs to use this Easel."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from commands.context import handle_errors, services

_CONNECTIONS = Path(__file__).with_name("connections.yaml")
_DOCKER_HOST = "host.docker.internal"
_KEY = "YOUR-KEY"


def read_connections() -> dict[str, dict[str, Any]]:
    """The programs by the names that `easel connect` takes."""
    document: dict[str, dict[str, Any]] = yaml.safe_load(_CONNECTIONS.read_text("utf-8"))
    return document


class _ProgramName(click.ParamType[str]):
    """One of the names in connections.yaml, which is read when it is needed."""

    name = "program"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        names = read_connections()
        if value in names:
            return str(value)
        return str(
            self.fail(f"{value!r} is not known. Known programs: {', '.join(names)}.", parameter, context)
        )

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [
            click.shell_completion.CompletionItem(name)
            for name in read_connections()
            if name.startswith(incomplete)
        ]


@click.command(short_help="Print what a program needs to use this Easel.")
@click.argument("program", type=_ProgramName(), required=False)
@click.option("--url", metavar="URL", help="The address of Easel; default: this installation's server.")
@click.option("--key", metavar="KEY", help="The program's API key; `easel keys add NAME` makes one.")
@click.option("--docker", is_flag=True, help="The program runs in a container of Docker on this machine.")
@handle_errors
def connect(program: str | None, url: str | None, key: str | None, docker: bool) -> None:
    """Print the lines that make PROGRAM use this Easel; without PROGRAM, list the programs.

    Nothing is written and nothing is asked of the server. The lines go to stdout, everything else to stderr.
    """
    connections = read_connections()
    if program is None:
        for name, each in connections.items():
            click.echo(f"{name:<16}{each['title']}{'' if each.get('is_tested') else ' (untested)'}")
        return
    origin = (url or services().server_address()[0]).rstrip("/").removesuffix("/v1")
    needs_key = services().gate.needs_key
    if docker:
        parts = urlsplit(origin)
        port = f":{parts.port}" if parts.port else ""
        origin = f"{parts.scheme}://{_DOCKER_HOST}{port}{parts.path}"
    chosen = connections[program]
    click.echo(f"{chosen['where']}:", err=True)
    values = {"base_url": f"{origin}/v1", "origin": origin, "key": key or (_KEY if needs_key else "unused")}
    click.echo(Template(chosen["lines"]).substitute(values), nl=False)
    for hint in _hints(chosen, docker=docker, needs_key=needs_key and not key):
        click.echo(hint, err=True)


def _hints(chosen: dict[str, Any], *, docker: bool, needs_key: bool) -> list[str]:
    hints = []
    if needs_key:
        hints.append(f"Replace {_KEY}: `easel keys add NAME` makes a key.")
    if docker:
        hints.append(
            f"Easel must know the name: EASEL_ALLOWED_HOSTS={_DOCKER_HOST}. On Linux, Docker needs "
            f"--add-host={_DOCKER_HOST}:host-gateway, and Easel must listen where the container reaches it: see "
            "docs/network.md."
        )
    if not chosen.get("is_tested"):
        hints.append("Untested: no test runs these lines with the program.")
    return hints
