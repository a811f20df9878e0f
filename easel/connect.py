"""easel connect: prints what a program needs to use this Easel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from commands.context import handle_errors, services
from schemas import did_you_mean

_CONNECTIONS = Path(__file__).with_name("connections.yaml")
_DOCKER_HOST = "host.docker.internal"
_KEY = "YOUR-KEY"
_MODEL = "primary"
"""The alias that the documents use for the chat model"""
# The lines are read by shells and by parsers of YAML, JSON, Python and JavaScript: these characters are the same in all.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
_PLAIN_MODEL = re.compile(r"[A-Za-z0-9._~+/:@-]+")
_PLAIN_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?")


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
        known = f"Known programs: {', '.join(names)}."
        return str(
            self.fail(f"{value!r} is not known{did_you_mean(value, names)}. {known}", parameter, context)
        )

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [
            click.shell_completion.CompletionItem(name)
            for name in read_connections()
            if name.startswith(incomplete)
        ]


class _Plain(click.ParamType[str]):
    """A text that can be put into every kind of line unchanged."""

    def __init__(self, name: str, pattern: re.Pattern[str], wanted: str) -> None:
        self.name, self._pattern, self._wanted = name, pattern, wanted

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        if self._pattern.fullmatch(str(value)) is None:
            self.fail(f"it must be {self._wanted}.", parameter, context)
        return str(value)


_URL_TYPE = _Plain("URL", _PLAIN_URL, "an address such as http://box:8080 or https://example.org/easel")
_KEY_TYPE = _Plain("KEY", _PLAIN_KEY, "letters, digits and . _ ~ + / = -")
_MODEL_TYPE = _Plain("MODEL", _PLAIN_MODEL, "the id or alias of a model")


@dataclass(frozen=True)
class _Address:
    """Of a server, without /v1; `source` says how it is known"""

    url: str
    source: str


@click.command(short_help="Print what a program needs to use this Easel.")
@click.argument("program", type=_ProgramName(), required=False)
@click.option(
    "--url", type=_URL_TYPE, metavar="URL", help="The address of Easel; default: this installation's server."
)
@click.option(
    "--key", type=_KEY_TYPE, metavar="KEY", help="The program's API key; `easel keys add NAME` makes one."
)
@click.option(
    "--model", type=_MODEL_TYPE, metavar="MODEL", help=f"The model for chat; default: the alias {_MODEL}."
)
@click.option("--docker", is_flag=True, help="The program runs in a container of Docker on this machine.")
@handle_errors
def connect(program: str | None, url: str | None, key: str | None, model: str | None, docker: bool) -> None:
    """Print the lines that make PROGRAM use this Easel; without PROGRAM, list the programs.

    Nothing is written and nothing is asked of the server. The lines go to stdout, everything else to stderr.
    """
    connections = read_connections()
    if program is None:
        for name, each in connections.items():
            click.echo(f"{name:<16}{each['title']}{'' if each.get('is_tested') else ' (untested)'}")
        return
    chosen = connections[program]
    address = _address(url)
    in_docker = _seen_from_docker(address.url) if docker else address.url
    needs_key = services().gate.needs_key and not key
    values = {
        "base_url": f"{in_docker}/v1",
        "origin": in_docker,
        "key": key or (_KEY if needs_key else "unused"),
        "model": model or _MODEL,
    }
    hints = [f"The address is {address.source}."]
    if needs_key:
        hints.append(f"Replace {_KEY} with a key: `easel keys add {program}` makes one.")
    if url is not None and not key and not needs_key:
        hints.append("If that server wants a key, give it with --key.")
    if chosen.get("chats") and not model and url is None:
        hints += _model_hints()
    if docker:
        hints += _docker_hints(in_docker)
    if not chosen.get("is_tested"):
        hints.append("Untested: no test runs these lines with the program.")
    click.echo(f"{chosen['where']}:", err=True)
    click.echo(Template(chosen["lines"]).substitute(values), nl=False)
    for hint in hints:
        click.echo(hint, err=True)


def _address(url: str | None) -> _Address:
    if url is not None:
        return _Address(_without_v1(url), "that of --url")
    settings = services().settings
    if settings["public_url"]:
        return _Address(_without_v1(settings["public_url"]), "the setting public_url")
    stored = services().stored_server_url()
    if stored is not None and services().is_server_running():
        return _Address(stored, "that of the running server")
    return _Address(_address_of_settings(), "that of the settings host and port, because no server runs now")


def _address_of_settings() -> str:
    host, port = str(services().settings["host"]).strip("[]"), services().settings["port"]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _without_v1(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _seen_from_docker(url: str) -> str:
    """The address in a container: 127.0.0.1 is the container there. Other names are the same everywhere."""
    parts = urlsplit(url)
    if not _is_this_machine(parts.hostname or ""):
        return url
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{_DOCKER_HOST}{port}{parts.path}"


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _model_hints() -> list[str]:
    settings = services().settings
    if not settings["llm.stacks"] and not settings["llm.upstreams"]:
        return [
            f"No LLM server is set up, so that the model {_MODEL} cannot chat: see docs/llm_stacks.md. Pictures need none."
        ]
    if _MODEL not in settings["llm.aliases"]:
        return [
            f"No alias {_MODEL} is set up: give one of the models that /v1/models lists with --model, or set "
            f"llm.aliases to {{{_MODEL}: MODEL}}."
        ]
    return []


def _docker_hints(url: str) -> list[str]:
    if urlsplit(url).hostname != _DOCKER_HOST:
        return ["The address is that of another machine, which a container reaches by the same name."]
    return [
        f"Easel must know the name: EASEL_ALLOWED_HOSTS={_DOCKER_HOST} (setting allowed_hosts).",
        f"On Linux, Docker needs --add-host={_DOCKER_HOST}:host-gateway (in Compose, extra_hosts: "
        f'["{_DOCKER_HOST}:host-gateway"]), and Easel must listen where the container reaches it: see '
        "docs/network.md.",
    ]
