"""The `flask` commands: compile-workflow, import-workflow, adopt-models, accept-licence, check-catalogue, pull-model,
doctor, models, generate, gpu, engines, hosts, keys, audit, setup, snapshot-nodes, top, write-docs, write-proofs."""

from __future__ import annotations

import click
from flask import Flask
from flask.cli import run_command

from commands.adopt_command import adopt_command
from commands.audit import audit_command
from commands.catalogue import check_catalogue
from commands.compile import compile_command
from commands.doctor import doctor
from commands.documents import write_docs
from commands.engines import engines
from commands.generate import generate
from commands.gpu import gpu
from commands.hosts import hosts
from commands.import_command import import_command
from commands.keys import keys
from commands.licences import accept_licence
from commands.models import models
from commands.proofs import write_proofs
from commands.pull import pull_model
from commands.replay import replay  # noqa: F401
from commands.setup import setup
from commands.snapshot import snapshot_nodes
from commands.top import top


def register_commands(app: Flask) -> None:
    """Add the commands to `flask`. They use the services in `app.extensions["easel"]`, see `CommandServices`."""
    _refuse_development_server()
    for command in (
        compile_command,
        import_command,
        accept_licence,
        adopt_command,
        check_catalogue,
        doctor,
        models,
        pull_model,
        generate,
        gpu,
        engines,
        hosts,
        keys,
        audit_command,
        setup,
        snapshot_nodes,
        top,
        write_docs,
        write_proofs,
    ):
        app.cli.add_command(command)


def _refuse_development_server() -> None:
    """`flask run` cannot be replaced by a command of the application, so it is refused where it loads the application.
    It would start no sketch engine, no reconciler and no second process, and would not notice clients that hang up."""
    context = click.get_current_context(silent=True)
    if context is not None and context.command is run_command:
        raise click.UsageError(
            "Easel does not run in Flask's development server. Use `make run` or `easel run`; "
            "the address comes from EASEL_HOST and EASEL_PORT."
        )
