"""Shared by all commands: the services they use, and printing of errors with their exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, Protocol
from urllib.parse import urlsplit

import click
from flask import current_app
from flask.cli import with_appcontext

import errors
from access import AuditLog, Gate
from arbiter import Arbiter
from atomic_file import write_atomic
from compiler import Catalogue, SourcePaths
from compiler.values import Note
from conversation import ModelDirectory
from engine import Credentials, Engine, EngineSelector
from engines import Fleet
from errors import EaselError, SettingsInvalid
from generation import Generator
from licences import Licences
from llm import Stacks
from model_files import ModelFolders, PullStore
from settings import Settings
from state_format import refuse_newer

P = ParamSpec("P")


class HostsOfCommand(Protocol):
    """What the commands need of the hosts that draw for each other."""

    def reports(self) -> list[dict[str, Any]]:
        """Of each host, as JSON. Raises the errors of Redis."""

    def set_drained(self, name: str, is_drained: bool) -> bool:
        """Whether a host gets no new jobs; returns what it was. Raises the errors of Redis."""


class CommandServices(Protocol):
    """The part of the container that commands use."""

    @property
    def settings(self) -> Settings: ...
    @property
    def state_dir(self) -> Path: ...
    @property
    def stacks(self) -> Stacks: ...
    @property
    def model_directory(self) -> ModelDirectory: ...
    @property
    def source_paths(self) -> SourcePaths: ...
    @property
    def generator(self) -> Generator: ...
    @property
    def arbiter(self) -> Arbiter: ...
    @property
    def fleet(self) -> Fleet: ...
    @property
    def host_list(self) -> HostsOfCommand | None: ...
    @property
    def engine_selector(self) -> EngineSelector: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def pulls(self) -> PullStore: ...
    @property
    def models_dir(self) -> Path | None: ...
    @property
    def licences(self) -> Licences: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def audit(self) -> AuditLog: ...
    def catalogue(self) -> Catalogue: ...
    def model_folders(self, models_dir: Path | None = None) -> ModelFolders:
        """Raises ModelsFolderMissing."""

    def catalogue_error(self) -> EaselError | None:
        """Why the files of the catalogue are not what is served; None if they are."""

    def check_exposure(self) -> None:
        """Raises SettingsInvalid if a server would listen on a public address without keys."""

    def is_server_running(self) -> bool:
        """Whether a server uses this state directory."""

    def stored_server_url(self) -> str | None:
        """The base URL of the server of this state directory, if it has written one."""

    def server_address(self) -> tuple[str, str | None]:
        """The URL of this installation's server, and a key for it or None."""

    def command_engine(self) -> Any:
        """A context manager that starts a sketch engine for this command if there is no other engine."""


EXIT_CODES: tuple[tuple[type[EaselError], int], ...] = (
    (errors.CatalogueInvalid, 1),
    (errors.TemplateInvalid, 1),
    (errors.GraphInvalid, 1),
    (errors.ModelNotDrawable, 1),
    (errors.ModelsFolderMissing, 1),
    (errors.ModelPathUnsafe, 1),
    (errors.DownloadFailed, 3),
    (errors.ModelDiskFull, 5),
    (errors.SettingsInvalid, 1),
    (errors.ServerUnreachable, 3),
    (errors.EngineUnreachable, 3),
    (errors.StackError, 3),
    (errors.EngineDrained, 3),
    (errors.ClusterError, 3),
    (errors.EngineNotListed, 3),
    (errors.EngineStalled, 3),
    (errors.FilesMissing, 3),
    (errors.NodesMissing, 3),
    (errors.EngineTooOld, 3),
    (errors.EngineError, 4),
    (errors.StoreFull, 5),
    (errors.StoreUnwritable, 5),
    (EaselError, 2),
)
"""0: success. 1: the catalogue, a template or a setting is invalid. 2: the request is invalid. 3: a server is unreachable
or lacks something. 4: the job failed. 5: the picture could not be stored."""


def exit_code(error: EaselError) -> int:
    """The exit code for an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def handle_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorator: print an EaselError as `code: message`, with the same code as over HTTP, and exit with its exit code."""

    @with_appcontext
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except EaselError as error:
            click.secho(f"{error.code}: {error.message}", err=True, fg="red")
            sys.exit(exit_code(error))

    return wrapped


def services() -> CommandServices:
    """The services of the application that runs this command."""
    container: CommandServices = current_app.extensions["easel"]
    return container


def check_state_is_ours() -> None:
    """Call it before a command changes keys or licences, as the server does before it writes. Raises SettingsInvalid if a
    newer Easel has used the state directory, or if that cannot be read."""
    try:
        refuse_newer(services().state_dir)
    except OSError as error:
        raise SettingsInvalid(f"The state directory cannot be read: {error}") from error


def print_notes(notes: Iterable[Note]) -> None:
    """Print the adjusted and ignored fields of a request to stderr, one per line."""
    for note in notes:
        done = "ignored" if note.done is None else f"{note.done} instead of {note.asked}"
        click.echo(f"{note.field}: {done} ({note.why})", err=True)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`. Raises StoreUnwritable."""
    if not path.absolute().parent.is_dir():
        raise errors.StoreUnwritable(f"{path} cannot be written: the folder {path.parent} does not exist.")
    try:
        write_atomic(path, data)
    except OSError as error:
        raise errors.StoreUnwritable(f"{path} cannot be written: {error.strerror}.") from error


def engine_at(url: str) -> Engine:
    """The engine at `url`, for commands with a URL option; it gets the credentials in the environment. Raises
    InvalidValue for a URL with a user and password or a query, which would be shown by `ps` and in the shell's
    history."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise errors.InvalidValue(
            "The URL of ComfyUI must have no user, password or query. Set EASEL_ENGINE_USER and EASEL_ENGINE_PASSWORD, "
            "EASEL_ENGINE_TOKEN or EASEL_ENGINE_QUERY_TOKEN in the environment instead."
        )
    return Engine(url.rstrip("/"), credentials=services().credentials)


text_or_json = click.option(
    "--as",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Show what was found as text or as JSON.",
)
"""The option of commands that look for something and show it"""
